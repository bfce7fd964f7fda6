"""A run from a bundle, to measure its supernet anew where the run that trained it is gone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eqnet_core.bundle import Bundle
from eqnet_core.errors import TrainingError
from eqnet_core.files import write_atomically
from eqnet_core.supernet import Supernet
from eqnet_core.training.run import read_json, save_tensors
from eqnet_core.training.trained import save_trained

FLOAT_ACCURACY = "accuracy.json"
"""Beside the weights of a float network would be: what a bundle, which has none, knows of it."""

_FOLDERS = ("float", "supernet", "statistics", "samples", "prediction")


def unpack(bundle: Bundle, run: Path) -> None:
    """Write into `run` what the stages behind `supernet` need, and the results of those that a bundle keeps:
    the supernet, both predictors, the accuracy of the float network, and how each was made.

    Samples, calibrated subnets and the float network's weights are not in a bundle: `fit`, `report` and
    `plots` need the stages that write them.

    Raises:
        TrainingError: `run` holds a run already, or the bundle does not say how it was trained.
        BundleError: a damaged bundle.
    """
    if taken := [str(run / name) for name in _FOLDERS if (run / name).exists()]:
        raise TrainingError(f"{', '.join(taken)} is there already: choose another folder with --run")
    document = bundle.document
    try:
        stages: Mapping[str, Mapping[str, Any]] = document["card"]["stages"]
        origins = {name: stages["samples"][name] for name in ("data", "supernet", "statistics")}
        network = {"float": stages["supernet"]["float"], "data": stages["supernet"]["data"]}
    except KeyError as error:
        raise TrainingError(
            f"{bundle.name} was written by an older version, whose card does not say what it was made from "
            f"({error}): train on it with --start instead"
        ) from error
    known = network | {"accuracy": bundle.float_accuracy, "images": document["accuracy"]["images"]}
    _write(run / "float" / FLOAT_ACCURACY, known)
    save_tensors(run / "statistics" / "statistics.npz", bundle.statistics().to_tensors())
    _write(run / "statistics" / "quality.json", document["statistics"])
    save_tensors(run / "prediction" / "predictor.npz", bundle.predictor().to_tensors())
    _write(run / "prediction" / "settings.json", {"stage": "fit", **origins})
    _write(run / "prediction" / "quality.json", document["predictor"])
    for name in ("float", "statistics", "samples", "supernet"):
        _write(run / name / "settings.json", stages[name])
    save_trained(run / "supernet", Supernet.from_bundle(bundle))


def known_float_accuracy(folder: Path) -> dict[str, Any]:
    """What `unpack` wrote of the float network into its `folder`: its digest `float`, its `accuracy`, a
    fraction, and on how many test `images` of which `data`.

    Raises:
        TrainingError: there is nothing of it.
    """
    return read_json(folder / FLOAT_ACCURACY, stage="pretrain")


def _write(path: Path, document: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(dict(document), indent=2).encode())
