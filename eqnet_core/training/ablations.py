"""What each part of the training is worth: the same short run with the part left out or put in.

EQ-Net's Table 3 (weight distribution regularisation), Fig. 3 (guidance) and Table 4 (learned per-tensor step
sizes), and the additions that are ours.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eqnet_core.calibration import calibrate_batch_norm
from eqnet_core.errors import TrainingError
from eqnet_core.evaluation import top1
from eqnet_core.files import write_atomically
from eqnet_core.space import FORMS, Granularity, QuantizationForm
from eqnet_core.supernet import Supernet
from eqnet_core.training.batches import calibration_batches, resized
from eqnet_core.training.data import ImageData, normalise
from eqnet_core.training.run import Run
from eqnet_core.training.starting import float_digest
from eqnet_core.training.supernet_settings import SupernetSettings
from eqnet_core.training.trained import load_trained
from eqnet_core.training.trainer import train_supernet

BITS = (2, 3, 4, 8)
"""Uniform bit-widths of weights and activations that are compared, where the network has them."""

VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "EQ-Net's recipe": {},
    "no regularisation": {"skewness_weight": 0.0, "kurtosis_weight": 0.0},
    "kurtosis alone": {"skewness_weight": 0.0},
    "skewness alone": {"kurtosis_weight": 0.0},
    "hard labels": {"guidance": 0.0},
    "label smoothing": {"guidance": 0.0, "label_smoothing": 0.1},
    "float teacher": {"float_teacher": True},
    "weight averaging": {"averaging": 0.998},
    "slow zero-points": {"zero_point_learning_rate": 2e-4},
}
"""Settings that differ from the recipe, by name."""

PER_TENSOR_STEPS: Mapping[str, Callable[[Tensor, int], Tensor]] = {
    "min": torch.amin,
    "mean": torch.mean,
    "max": torch.amax,
}
"""Per-tensor step sizes made from the learned per-channel ones, instead of learned (Table 4)."""

_MEASURED = [form for form in FORMS if form.weight_symmetry is form.activation_symmetry]
_TABLE_4 = FORMS[0]  # per tensor, symmetric: the form whose step sizes are replaced


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """Held-out top-1 in [0, 1] by the name of the form and uniform bits (as text), of one way to train."""

    name: str
    accuracy: Mapping[str, Mapping[str, float]]

    def mean(self, bits: int, granularity: Granularity) -> float | None:
        """Average over the forms of one granularity; None where none was measured."""
        names = {form.name for form in FORMS if form.weight_granularity is granularity}
        rows = [row[str(bits)] for form, row in self.accuracy.items() if form in names and str(bits) in row]
        return sum(rows) / len(rows) if rows else None


def run_ablations(
    data: ImageData,
    float_weights: Path,
    folder: Path,
    settings: SupernetSettings,
    device: torch.device,
    *,
    names: Sequence[str] = tuple(VARIANTS),
    images: int | None = None,
) -> list[Ablation]:
    """Train and measure every variant; what is done already is read back, so the same command goes on.

    Accuracies are measured at the image size of the last epoch, on held-out training images, with BatchNorm
    calibrated. Each variant has its own folder below `folder`.

    Args:
        settings: of the recipe; a variant changes what `VARIANTS` says.
        names: which variants.
        images: how many held-out images; None for all.

    Raises:
        TrainingError: no float weights, or a folder holds a run with other settings, or measured on another
            number of images.
    """
    count = len(data.held_out.labels[:images])
    side = settings.sizes.at(settings.epochs - 1, data.train.images.shape[-1])
    found = []
    for name in names:
        variant = folder / name.replace(" ", "-").replace("'", "")
        path = variant / "ablation.json"
        chosen = replace(settings, **VARIANTS[name])
        if path.exists():
            origins = {"data": data.digest, "float": float_digest(float_weights)}
            Run(variant, chosen, origins=origins)  # which refuses others
        else:
            train_supernet(data, float_weights, variant, chosen, device)
            supernet = load_trained(variant).to(device)
            rows = {name: _measure(supernet, data, side, settings.seed, device, images, _MEASURED)}
            if not VARIANTS[name]:
                rows |= _measure_replaced_steps(supernet, data, side, settings.seed, device, images)
            document = {"images": count, "accuracy": rows}
            write_atomically(path, json.dumps(document, indent=2).encode())
        document = json.loads(path.read_text())
        if (before := document.get("images")) != count:
            raise TrainingError(f"{path} is of {before} images, not {count}: repeat --images, or delete it")
        for row, accuracy in document["accuracy"].items():
            found.append(Ablation(name=row, accuracy=accuracy))
    return found


def replace_per_tensor_steps(supernet: Supernet, how: str) -> None:
    """Per-tensor step sizes as the min, mean or max over channels of the symmetric per-channel ones."""
    reduce = PER_TENSOR_STEPS[how]
    with torch.no_grad():
        for layer in supernet.layers:
            quantizer = layer.weight_quantizer
            steps = reduce(quantizer.log_step_per_channel.exp(), 2)
            quantizer.log_step_per_tensor.copy_(steps.log())


def _measure_replaced_steps(
    supernet: Supernet, data: ImageData, side: int, seed: int, device: torch.device, images: int | None
) -> dict[str, dict[str, dict[str, float]]]:
    """Table 4: the per-tensor subnets with their learned step sizes, and with those of `PER_TENSOR_STEPS`."""
    learned = {name: value.clone() for name, value in supernet.state_dict().items()}
    found = {}
    for how in PER_TENSOR_STEPS:
        replace_per_tensor_steps(supernet, how)
        name = f"per-tensor steps: {how} of per-channel"
        found[name] = _measure(supernet, data, side, seed, device, images, [_TABLE_4])
        supernet.load_state_dict(learned)
    name = "per-tensor steps: learned"
    return {name: _measure(supernet, data, side, seed, device, images, [_TABLE_4]), **found}


def _measure(
    supernet: Supernet,
    data: ImageData,
    side: int,
    seed: int,
    device: torch.device,
    images: int | None,
    forms: Sequence[QuantizationForm],
) -> dict[str, dict[str, float]]:
    """Held-out top-1 of the uniform subnets of `forms`, by form and bits."""
    calibration = [
        resized(batch, side)
        for batch in calibration_batches(data, images=1024, seed=seed, index=0, device=device)
    ]
    held_out = resized(normalise(data.held_out.images[:images], data.mean, data.std).to(device), side)
    labels = data.held_out.labels[:images].to(device)
    found: dict[str, dict[str, float]] = {}
    for form in forms:
        row = found[form.name] = {}
        for bits in (bits for bits in BITS if bits in supernet.space.bit_widths):
            supernet.activate(supernet.space.uniform(form, bits))
            calibrate_batch_norm(supernet, calibration)
            row[str(bits)] = round(top1(supernet, held_out, labels), 4)
    return found
