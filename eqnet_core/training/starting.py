"""What the training of a supernet begins with: a float network, or a supernet trained in another run."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from eqnet_core.calibration import initialise_quantizers
from eqnet_core.errors import TrainingError
from eqnet_core.models import ARCHITECTURES, build_model
from eqnet_core.predictor import AccuracyPredictor
from eqnet_core.space import SearchSpace
from eqnet_core.subnet import InputSpec
from eqnet_core.supernet import Supernet, trace_layers
from eqnet_core.training.data import ImageData, normalise
from eqnet_core.training.run import check_origins, load_tensors
from eqnet_core.training.trained import supernet_digest

WEIGHTS = "float.safetensors"
"""What the pretrain stage calls the weights of a float network."""

INITIALISATION_IMAGES = 256


def start_supernet(
    data: ImageData,
    float_weights: Path,
    architecture: str,
    device: torch.device,
    started: Supernet | None = None,
) -> Supernet:
    """The supernet of a float network, with quantisers fitted to its weights and 256 training images.

    With `started`, its weights and quantisers instead, in a supernet of its own.

    Raises:
        TrainingError: the float weights, or `started`, are of another network.
    """
    model = float_network(data, float_weights, architecture)
    model = model.to(device)
    images = normalise(data.train.images[:INITIALISATION_IMAGES], data.mean, data.std).to(device)
    supernet = Supernet(
        architecture=architecture,
        space=SearchSpace(trace_layers(model, images)),
        input=input_spec(data, architecture),
        classes=data.classes,
        float_model=model,
    ).to(device)
    if started is None:
        initialise_quantizers(supernet, images)
    elif (started.space, started.classes) != (supernet.space, supernet.classes):
        raise TrainingError("the supernet to begin with has other layers or classes: choose another run")
    else:
        supernet.load_tensors(started.tensors())
    return supernet


def describe_start(run: Path, supernet: Supernet) -> dict[str, Any]:
    """Digest of the supernet trained in `run`, and the settings it was trained with.

    Raises:
        TrainingError: the folder does not say how it was trained.
    """
    path = run / "supernet" / "settings.json"
    try:
        settings = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise TrainingError(f"{path} does not say how the supernet there was trained: {error}") from error
    return {"supernet": supernet_digest(supernet), **settings}


def load_searcher(run: Path | None, supernet: Supernet | None) -> AccuracyPredictor:
    """The accuracy predictor of `run`, fitted to samples of its `supernet`.

    Raises:
        TrainingError: no run, no predictor in it, or one of another supernet.
    """
    if run is None or supernet is None:
        raise TrainingError(
            "random bits can only be searched with an accuracy predictor: --start a run with one"
        )
    check_origins(run / "prediction", {"supernet": supernet_digest(supernet)})
    tensors = load_tensors(run / "prediction" / "predictor.npz", stage="fit")
    return AccuracyPredictor.from_tensors(tensors)


def input_spec(data: ImageData, architecture: str) -> InputSpec:
    """What one image must look like, with the data set's normalisation."""
    return InputSpec(shape=ARCHITECTURES[architecture].input_shape, mean=data.mean, std=data.std)


def float_digest(float_weights: Path) -> str:
    """`sha256:…` of the file of a float network's weights.

    Raises:
        TrainingError: there is none.
    """
    try:
        return f"sha256:{hashlib.sha256(float_weights.read_bytes()).hexdigest()}"
    except OSError as error:
        raise TrainingError(f"{float_weights} is missing: run the pretrain stage first") from error


def float_network(data: ImageData, float_weights: Path, architecture: str) -> nn.Module:
    """The pre-trained network, in training mode: its BatchNorm then fits images of any size.

    Raises:
        TrainingError: the file does not hold its weights.
    """
    model = build_model(architecture, len(data.classes))
    try:
        model.load_state_dict(load_file(float_weights))
    except (OSError, RuntimeError) as error:
        raise TrainingError(
            f"{float_weights} does not hold the weights of {architecture}: {error}"
        ) from error
    return model.train()
