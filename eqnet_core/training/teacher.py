"""A float network of another run whose logits guide a training (Hinton et al. 2015, arXiv:1503.02531)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

from eqnet_core.errors import TrainingError
from eqnet_core.models import ARCHITECTURES
from eqnet_core.training.data import ImageData
from eqnet_core.training.run import check_origins
from eqnet_core.training.starting import WEIGHTS, float_digest, float_network


def load_teacher(run: Path, data: ImageData, architecture: str) -> tuple[nn.Module, dict[str, Any]]:
    """The float network of `run`, of any architecture, to guide one of `architecture`.

    Returns:
        The network in training mode, so that its BatchNorm fits images of any size; and the digest of its
        weights with the settings it was trained with.

    Raises:
        TrainingError: there is none, or it takes images of another shape, or it was trained on others than
            `data`: what is held out here would reach the student through it.
    """
    folder = run / "float"
    try:
        settings: dict[str, Any] = json.loads((folder / "settings.json").read_text())
        theirs = ARCHITECTURES[settings["architecture"]]
    except (OSError, ValueError, KeyError) as error:
        raise TrainingError(
            f"{folder / 'settings.json'} does not say how a float network was trained ({error!r}): "
            "name a run in which the pretrain stage has ended"
        ) from error
    if theirs.input_shape != (ours := ARCHITECTURES[architecture].input_shape):
        raise TrainingError(
            f"the teacher, {settings['architecture']}, takes images {theirs.input_shape}, "
            f"{architecture} takes {ours}: choose another"
        )
    check_origins(folder, {"data": data.digest})
    digest = float_digest(folder / WEIGHTS)
    model = float_network(data, folder / WEIGHTS, settings["architecture"])
    return model, {**settings, "float": digest}
