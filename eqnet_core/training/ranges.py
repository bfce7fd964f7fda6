"""What the `integer` flavour adds: ranges of tensors that no layer quantises, and its cost in accuracy."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from eqnet_core.calibration import calibrate_batch_norm, least_error
from eqnet_core.errors import TrainingError
from eqnet_core.evaluation import top1
from eqnet_core.export.folding import fold
from eqnet_core.export.integer_module import IntegerModule
from eqnet_core.export.plan import IntegerPlan, plan_integers
from eqnet_core.export.plan_run import run_plan
from eqnet_core.export.template import trace_float_graph
from eqnet_core.files import write_atomically
from eqnet_core.ranges import TensorRanges, cost_band
from eqnet_core.space import SubnetConfiguration, Symmetry
from eqnet_core.supernet import Statistics, Supernet
from eqnet_core.training.batches import calibration_batches, seeded
from eqnet_core.training.data import ImageData, normalise
from eqnet_core.training.run import Run, load_tensors, save_tensors
from eqnet_core.training.subnets import first_mixed, sample_configuration
from eqnet_core.training.trained import supernet_digest

_SAMPLE = 16384
"""Values of each tensor that are kept of each subnet."""


@dataclass(frozen=True, kw_only=True)
class RangeSettings:
    """`subnets` of mixed bits are calibrated with `calibration_images` augmented training images each, and
    measured in both flavours on `images` held-out ones.
    """

    subnets: int = 32
    calibration_images: int = 1024
    images: int = 1000
    seed: int = 0


def measure_ranges(
    data: ImageData, supernet: Supernet, folder: Path, settings: RangeSettings, device: torch.device
) -> tuple[TensorRanges, dict[str, Any]]:
    """The ranges, and what the flavour costs in accuracy; also written to `ranges.npz` and `quality.json`.

    Takes minutes on a CPU; a folder that has them already answers at once.

    Raises:
        TrainingError: fewer held-out images than asked for, or a folder of other settings or of
        another supernet.
        UnsupportedTargetError: a network without integer form.
    """
    if settings.images > len(data.held_out):
        raise TrainingError(
            f"{settings.images} images asked for, {len(data.held_out)} are held out: "
            "lower --images or raise --held-out"
        )
    Run(folder, settings, origins={"data": data.digest, "supernet": supernet_digest(supernet)})
    if done := load_ranges(folder):
        return done
    plan = plan_integers(
        trace_float_graph(supernet.architecture, supernet.input.shape, len(supernet.classes))
    )
    supernet = supernet.to(device)
    configurations = [
        sample_configuration(
            supernet.space, first_mixed(supernet.space) + i, seeded(settings.seed, "ranges", i)
        )
        for i in range(settings.subnets)
    ]
    kept: dict[str, list[Tensor]] = {name: [] for name in plan.ranged}
    statistics: list[Statistics] = []
    for index, configuration in enumerate(tqdm(configurations, desc="ranges", unit="subnet")):
        supernet.activate(configuration)
        batches = list(
            calibration_batches(
                data, images=settings.calibration_images, seed=settings.seed, index=index, device=device
            )
        )
        statistics.append(calibrate_batch_norm(supernet, batches))
        for name, values in tensor_samples(supernet, plan, batches[0], _SAMPLE).items():
            kept[name].append(values)
    ranges = fit_ranges(kept, plan)
    images = normalise(data.held_out.images[: settings.images], data.mean, data.std)
    rows = _costs(supernet, plan, ranges, configurations, statistics, images, data.held_out.labels)
    quality = {"images": len(images), "subnets": rows, "cost": mean_costs(rows)}
    save_tensors(folder / "ranges.npz", ranges.to_tensors())
    write_atomically(folder / "quality.json", json.dumps(quality, indent=2).encode())
    return ranges, quality


def load_ranges(folder: Path) -> tuple[TensorRanges, dict[str, Any]] | None:
    """What `measure_ranges` wrote into `folder`, if it did."""
    if not (folder / "quality.json").exists():
        return None
    ranges = TensorRanges.from_tensors(load_tensors(folder / "ranges.npz", stage="ranges"))
    quality: dict[str, Any] = json.loads((folder / "quality.json").read_text())
    return ranges, quality


def tensor_samples(supernet: Supernet, plan: IntegerPlan, images: Tensor, count: int) -> dict[str, Tensor]:
    """About `count` values of every tensor that needs a range, of the active subnet; float32 on the CPU."""
    found: dict[str, Tensor] = {}

    def observe(name: str, x: Tensor) -> None:
        if plan.tensors[name].shared:
            flat = x.flatten()
            # A stride that shares no factor with the feature maps, lest one column is all that is seen.
            found[name] = flat[:: max(1, flat.numel() // count) | 1].cpu()

    run_plan(supernet.model, plan, images, observe)
    return found


def fit_ranges(samples: Mapping[str, Sequence[Tensor]], plan: IntegerPlan) -> TensorRanges:
    """The range of each tensor with the least squared error of 8 bits over `samples`, of any subnets."""
    low: list[float] = []
    high: list[float] = []
    for name, parts in samples.items():
        first, last = (0, 255) if plan.tensors[name].nonnegative else (-128, 127)
        steps, zeros = least_error(torch.cat(list(parts))[None], first, last, Symmetry.ASYMMETRIC)
        step, zero = float(steps[0]), float(zeros[0])
        low.append(min(step * (first - zero), 0.0))
        high.append(max(step * (last - zero), step))
    return TensorRanges(names=tuple(samples), low=np.array(low, np.float32), high=np.array(high, np.float32))


def mean_costs(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean top-1 lost by the flavour, a fraction, for each band of average bits that `rows` cover."""
    costs: dict[str, list[float]] = {}
    for row in rows:
        band = cost_band((row["weight_bits"], row["activation_bits"]))
        costs.setdefault(band, []).append(row["exact"] - row["integer"])
    return {band: round(sum(lost) / len(lost), 5) for band, lost in sorted(costs.items())}


def _costs(
    supernet: Supernet,
    plan: IntegerPlan,
    ranges: TensorRanges,
    configurations: Sequence[SubnetConfiguration],
    statistics: Sequence[Statistics],
    images: Tensor,
    labels: Tensor,
) -> list[dict[str, float]]:
    """Top-1 of both flavours on the same images, with the average bits, subnet by subnet."""
    labels = labels[: len(images)]
    device = next(supernet.parameters()).device
    rows = []
    for configuration, calibrated in zip(
        tqdm(configurations, desc="accuracies", unit="subnet"), statistics, strict=True
    ):
        subnet = supernet.extract(configuration, calibrated)
        exact = top1(supernet, images.to(device), labels.to(device))
        integer = top1(IntegerModule(fold(subnet, plan, ranges), plan), images, labels)
        rows.append(
            {
                "weight_bits": _average(configuration.weight_bits),
                "activation_bits": _average(configuration.activation_bits),
                "exact": round(exact, 4),
                "integer": round(integer, 4),
            }
        )
    return rows


def _average(bits: Sequence[int]) -> float:
    return round(sum(bits) / len(bits), 2)
