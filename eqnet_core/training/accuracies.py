"""Stage 4: what the card states, top-1 on the test images of the float network and the uniform subnets."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from eqnet_core.calibration import calibrate_batch_norm
from eqnet_core.errors import TrainingError
from eqnet_core.evaluation import top1
from eqnet_core.files import write_atomically
from eqnet_core.space import FORMS
from eqnet_core.training.batches import calibration_batches, calibration_count
from eqnet_core.training.data import ImageData, normalise
from eqnet_core.training.run import Run
from eqnet_core.training.starting import float_digest, float_network
from eqnet_core.training.trained import load_trained, supernet_digest
from eqnet_core.training.unpacking import FLOAT_ACCURACY, known_float_accuracy


@dataclass(frozen=True, kw_only=True)
class AccuracySettings:
    """Which uniform bit-widths are measured, over all forms, after calibration with this many images; bits
    that the network does not have are left out, and of images there may be fewer.

    With 2,048 images the noise of statistics costs 0.1 to 0.2 points at 8 bits (docs/method.md, section 3).
    """

    bits: tuple[int, ...] = (2, 3, 4, 8)
    calibration_images: int = 16_384
    seed: int = 0
    compile: bool = True


def measure_accuracies(
    data: ImageData,
    float_weights: Path,
    supernet_folder: Path,
    folder: Path,
    settings: AccuracySettings,
    device: torch.device,
) -> Path:
    """Measure and write `accuracies.json`: `float`, and `uniform` by form and bits; goes on where it stopped.

    Without the weights of the float network, its accuracy is what `unpack` wrote.

    Raises:
        TrainingError: an earlier stage is missing, or the folder holds a run with other settings or of
        another supernet.
    """
    supernet = load_trained(supernet_folder, data).to(device)
    settings = replace(  # the card tells them
        settings,
        bits=tuple(b for b in settings.bits if b in supernet.space.bit_widths),
        calibration_images=calibration_count(data, settings.calibration_images),
    )
    images, labels = (each.to(device) for each in (data.test.images, data.test.labels))
    images = normalise(images, data.mean, data.std)
    digest, float_accuracy = _float_network(data, float_weights, supernet.architecture, images, labels)
    origins = {"data": data.digest, "float": digest, "supernet": supernet_digest(supernet)}
    Run(folder, settings, growing=("compile",), origins=origins)
    forward: Callable[[Tensor], Tensor] = (
        torch.compile(supernet, dynamic=False) if settings.compile else supernet
    )
    path = folder / "accuracies.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    if "float" not in found:
        found = {"images": len(labels), "float": float_accuracy(), "uniform": {}}
    wanted = [(form, bits) for form in FORMS for bits in settings.bits]
    for form, bits in tqdm(wanted, desc="uniform subnets", unit="subnet"):
        row = found["uniform"].setdefault(form.name, {})
        if str(bits) in row:
            continue
        supernet.activate(supernet.space.uniform(form, bits))
        calibration = calibration_batches(
            data, images=settings.calibration_images, seed=settings.seed, index=0, device=device
        )
        calibrate_batch_norm(supernet, calibration, forward=forward)
        row[str(bits)] = round(top1(supernet, images, labels, forward=forward), 4)
        write_atomically(path, json.dumps(found, indent=2).encode())
    return path


def _float_network(
    data: ImageData, weights: Path, architecture: str, images: Tensor, labels: Tensor
) -> tuple[str, Callable[[], float]]:
    """Its digest, and what tells its accuracy: measured, or known where a bundle was unpacked."""
    if not weights.exists() and (weights.parent / FLOAT_ACCURACY).exists():
        known = known_float_accuracy(weights.parent)
        return known["float"], lambda: float(known["accuracy"])
    model = float_network(data, weights, architecture).to(images.device)
    return float_digest(weights), lambda: round(top1(model, images, labels), 4)


def load_accuracies(folder: Path) -> dict[str, Any]:
    """What `measure_accuracies` wrote into `folder`.

    Raises:
        TrainingError: nothing yet, or it was stopped before the end.
    """
    try:
        found: dict[str, Any] = json.loads((folder / "accuracies.json").read_text())
        bits = json.loads((folder / "settings.json").read_text())["bits"]
    except FileNotFoundError as error:
        raise TrainingError(f"{error.filename} is missing: run the accuracies stage first") from error
    if any(len(found["uniform"].get(form.name, ())) < len(bits) for form in FORMS):
        raise TrainingError(f"{folder} is not complete: run the accuracies stage again, which goes on")
    return found
