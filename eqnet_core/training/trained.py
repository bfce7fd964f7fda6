"""A trained supernet on disk, as the later stages read it: its tensors, and what it is in JSON."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from eqnet_core.errors import TrainingError
from eqnet_core.files import write_atomically
from eqnet_core.space import LayerSpec, SearchSpace
from eqnet_core.subnet import InputSpec
from eqnet_core.supernet import Supernet
from eqnet_core.training.data import ImageData
from eqnet_core.training.run import check_origins, tensors_digest

TENSORS = "supernet.safetensors"
DESCRIPTION = "supernet.json"


def save_trained(folder: Path, supernet: Supernet) -> Path:
    """Write `supernet.safetensors` and `supernet.json` into `folder`; returns the tensors' path."""
    document = {
        "architecture": supernet.architecture,
        "classes": supernet.classes,
        "input": asdict(supernet.input),
        "layers": [asdict(layer) for layer in supernet.space.layers],
    }
    write_atomically(folder / DESCRIPTION, json.dumps(document, indent=2).encode())
    write_atomically(folder / TENSORS, save(supernet.tensors()))
    return folder / TENSORS


def supernet_digest(supernet: Supernet) -> str:
    """`sha256:…` of everything that was trained: what later stages say that they measured."""
    return tensors_digest(supernet.tensors(), kind=supernet.architecture)


def trained_architecture(folder: Path) -> str:
    """The architecture of the supernet that `save_trained` wrote into `folder`.

    Raises:
        TrainingError: nothing there, or a damaged file.
    """
    return str(_description(folder)["architecture"])


def load_trained(folder: Path, data: ImageData | None = None) -> Supernet:
    """The supernet that `save_trained` wrote into `folder`, in evaluation mode.

    Raises:
        TrainingError: nothing there, or damaged files, or it was trained on others than `data`.
    """
    document = _description(folder)
    try:
        spec = document["input"]
        supernet = Supernet(
            architecture=document["architecture"],
            space=SearchSpace(tuple(LayerSpec(**layer) for layer in document["layers"])),
            input=InputSpec(shape=tuple(spec["shape"]), mean=tuple(spec["mean"]), std=tuple(spec["std"])),
            classes=tuple(document["classes"]),
        )
        supernet.load_tensors(load_file(folder / TENSORS))
    except FileNotFoundError as error:
        raise _missing(folder) from error
    except (KeyError, TypeError, ValueError, SafetensorError) as error:
        raise TrainingError(f"{folder} does not hold a trained supernet: {error}") from error
    if data is not None:
        _check_data(folder, supernet, data)
        check_origins(folder, {"data": data.digest})  # splits may share a mean, which is rounded
    return supernet.eval()


def _description(folder: Path) -> dict[str, Any]:
    try:
        document: dict[str, Any] = json.loads((folder / DESCRIPTION).read_text())
    except FileNotFoundError as error:
        raise _missing(folder) from error
    except ValueError as error:
        raise TrainingError(f"{folder} does not hold a trained supernet: {error}") from error
    if not isinstance(document, dict) or "architecture" not in document:
        raise TrainingError(f"{folder} does not hold a trained supernet: {DESCRIPTION} names no architecture")
    return document


def _missing(folder: Path) -> TrainingError:
    return TrainingError(f"no trained supernet in {folder}: run the supernet stage first")


def _check_data(folder: Path, supernet: Supernet, data: ImageData) -> None:
    # Mean and deviation are those of the images that are not held out: another split has others.
    theirs = (len(supernet.classes), supernet.input.mean, supernet.input.std)
    ours = (len(data.classes), data.mean, data.std)
    if theirs != ours:
        raise TrainingError(
            "the supernet in {} was trained on other images, or another split of them ({} classes, mean {}, "
            "deviation {}; these: {}, {}, {}): repeat its --data and --held-out".format(
                folder, *theirs, *ours
            )
        )
