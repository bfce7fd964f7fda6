"""What the training of a supernet begins with: a float network, or a supernet trained in another run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from eqnet_core.bundle import DOCUMENT, Bundle
from eqnet_core.calibration import initialise_quantizers
from eqnet_core.errors import TrainingError
from eqnet_core.models import ARCHITECTURES, build_model
from eqnet_core.predictor import AccuracyPredictor
from eqnet_core.space import SearchSpace
from eqnet_core.subnet import InputSpec
from eqnet_core.supernet import Supernet, trace_layers
from eqnet_core.training.data import ImageData, normalise
from eqnet_core.training.run import check_origins, load_tensors
from eqnet_core.training.trained import load_trained, supernet_digest

WEIGHTS = "float.safetensors"
"""What the pretrain stage calls the weights of a float network."""

NO_START = "a start share is of what the training began with: --start a run or a bundle"
"""Said where a share of it is asked for, and nothing was named."""

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
        TrainingError: the float weights, or `started`, are of another network, or `started` of other images.
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
    elif started.space != supernet.space:
        raise TrainingError("the supernet to begin with has other layers: choose another run")
    elif started.classes != data.classes:
        raise TrainingError(
            f"the supernet to begin with tells {', '.join(started.classes)} apart, the images are of "
            f"{', '.join(data.classes)}: name the same `classes`, in the same order, or choose another run"
        )
    else:
        check_input(started, data, architecture)
        supernet.load_tensors(started.tensors())
    return supernet


def check_input(started: Supernet, data: ImageData, architecture: str) -> None:
    """Refuse to begin with a supernet of other images than `data`.

    Another split has another mean: what is held out here may be what that one was trained on.

    Raises:
        TrainingError: its images have another shape, mean or standard deviation.
    """
    if started.input != input_spec(data, architecture):
        raise TrainingError(
            "the supernet to begin with was trained on other images, or another split of them: repeat its "
            "--data and --held-out"
        )


def check_split(described: Mapping[str, Any], data: ImageData) -> None:
    """Refuse to begin with what says that it was trained on others than `data`.

    Raises:
        TrainingError: it does. Means, which `check_input` compares, are rounded: splits may share them.
    """
    if described.get("data", data.digest) != data.digest:
        raise TrainingError(
            "what the training is to begin with was trained on other images, or another split of them, or "
            "(not) on mirrored ones: repeat its --data, --held-out and --no-mirror"
        )


def load_start(folder: Path) -> tuple[Supernet, dict[str, Any]]:
    """The supernet trained in a run's folder, or that of a bundle.

    Returns:
        It, in evaluation mode, and its digest with the settings it was trained with.

    Raises:
        TrainingError: neither is there, or the run does not say how it was trained.
        BundleError: a damaged bundle.
    """
    if is_bundle(folder):
        bundle = Bundle.open(folder)
        supernet = Supernet.from_bundle(bundle)
        settings = bundle.document["card"].get("stages", {}).get("supernet", {})
    else:
        supernet, settings = load_trained(folder / "supernet"), read_settings(folder / "supernet")
    return supernet, {"supernet": supernet_digest(supernet), **settings}


def load_searcher(folder: Path | None, supernet: Supernet | None) -> AccuracyPredictor:
    """The accuracy predictor of a run's folder or a bundle, fitted to samples of its `supernet`.

    Raises:
        TrainingError: no folder, no predictor in it, or one of another supernet.
        BundleError: a damaged bundle.
    """
    if folder is None or supernet is None:
        raise TrainingError(
            "random bits can only be searched with an accuracy predictor: --start a run with one"
        )
    if not is_bundle(folder):
        check_origins(folder / "prediction", {"supernet": supernet_digest(supernet)})
    return load_predictor(folder)


def load_predictor(folder: Path) -> AccuracyPredictor:
    """The accuracy predictor of a run's folder or a bundle.

    Raises:
        TrainingError: the run has none.
        BundleError: a damaged bundle.
    """
    if is_bundle(folder):
        return Bundle.open(folder).predictor()
    return AccuracyPredictor.from_tensors(load_tensors(folder / "prediction" / "predictor.npz", stage="fit"))


def load_start_weights(folder: Path, model: nn.Module, data: ImageData, architecture: str) -> dict[str, Any]:
    """Give a float network the weights of the one in a run's folder, or of a bundle's supernet.

    A bundle's supernet has no BatchNorm statistics: the training finds them.

    Returns:
        The digest of what it was, and the settings it was trained with.

    Raises:
        TrainingError: neither is there, or it is of another network, or it was trained on others than `data`.
        BundleError: a damaged bundle.
    """
    try:
        if is_bundle(folder):
            supernet, described = load_start(folder)
            check_input(supernet, data, architecture)
            check_split(described, data)
            theirs = supernet.tensors()
            for name, parameter in model.named_parameters():
                parameter.data.copy_(torch.from_numpy(theirs[name]))
        else:
            path = folder / "float" / WEIGHTS
            described = {"float": float_digest(path), **read_settings(folder / "float")}
            check_origins(folder / "float", {"data": data.digest})
            model.load_state_dict(load_file(path))
    except (KeyError, RuntimeError, SafetensorError) as error:
        raise TrainingError(
            f"{folder} holds another network, or damaged files: choose another to begin with ({error})"
        ) from error
    return described


def check_start_share(share: float) -> None:
    """Refuse what is no share of a result.

    Raises:
        TrainingError: it is not in [0, 1).
    """
    if not 0 <= share < 1:
        raise TrainingError(f"start share {share} is a share of the result: 0 to below 1")


def is_bundle(folder: Path) -> bool:
    """Whether a folder is a bundle's, rather than a run's."""
    return (folder / DOCUMENT).exists()


def read_settings(folder: Path) -> dict[str, Any]:
    """The settings that a stage's folder was trained with.

    Raises:
        TrainingError: it does not say.
    """
    path = folder / "settings.json"
    try:
        settings: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise TrainingError(
            f"{path} does not say how what is there was trained ({error!r}): "
            "name a run in which that stage has ended"
        ) from error
    return settings


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
    except (OSError, RuntimeError, SafetensorError) as error:
        raise TrainingError(
            f"{float_weights} does not hold the weights of {architecture}: {error}"
        ) from error
    return model.train()
