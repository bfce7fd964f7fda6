"""Stage 3: random subnets' BatchNorm statistics, and the model that predicts them without images."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eqnet_core.calibration import calibrate_batch_norm
from eqnet_core.errors import TrainingError
from eqnet_core.files import write_atomically
from eqnet_core.statistics import StatisticsPredictor
from eqnet_core.training.batches import calibration_batches, seeded
from eqnet_core.training.collecting import Shard, Wanted, collect
from eqnet_core.training.data import ImageData
from eqnet_core.training.moments import measure_moments, output_tables
from eqnet_core.training.run import Run, load_tensors, save_tensors
from eqnet_core.training.samples import SPREAD, Calibrations, gather
from eqnet_core.training.statistics_fitting import fit_statistics
from eqnet_core.training.subnets import sample_configuration
from eqnet_core.training.trained import load_trained, supernet_digest

TENSORS = "statistics.npz"
QUALITY = "quality.json"

_MOMENT_SUBNETS = 16
"""Subnets whose input moments are averaged, at most; one for every 25 that are calibrated."""


@dataclass(frozen=True, kw_only=True)
class CalibrationSettings:
    """How many subnets are calibrated, and with how many augmented training images each."""

    samples: int = 500
    images: int = 640
    seed: int = 0
    compile: bool = True


def calibrate_subnets(
    data: ImageData,
    supernet_folder: Path,
    folder: Path,
    settings: CalibrationSettings,
    device: torch.device,
    shard: Shard,
) -> Path:
    """Calibrate until `settings.samples` are there, then fit; returns the predictor's file, or the folder as
    long as samples of other shards are missing.

    Every sample depends on the seed and its number alone. Each has a draw of images of its own, so that a
    model fitted to all of them does not learn one draw's error.

    Raises:
        TrainingError: no trained supernet, fewer training images than asked for, too few samples to fit, or
        other settings or another supernet before.
    """
    supernet = load_trained(supernet_folder, data).to(device)
    if settings.images > len(data.train):
        raise TrainingError(
            f"{settings.images} images asked for, there are {len(data.train)} training images: lower --images"
        )
    origins = {"data": data.digest, "supernet": supernet_digest(supernet)}
    run = Run(folder, settings, growing=("samples", "compile"), origins=origins)
    forward = torch.compile(supernet, dynamic=False) if settings.compile else supernet
    wanted = [
        Wanted(
            draw=SPREAD,
            index=index,
            configuration=sample_configuration(
                supernet.space, index, seeded(settings.seed, "configurations", index)
            ),
        )
        for index in range(settings.samples)
    ]

    def draw(index: int, images: int) -> list[Tensor]:
        return list(calibration_batches(data, images=images, seed=settings.seed, index=index, device=device))

    def measure(one: Wanted) -> dict[str, Any]:
        supernet.activate(one.configuration)
        statistics = calibrate_batch_norm(supernet, draw(one.index, settings.images), forward=forward)
        return {
            "means": np.concatenate([mean for mean, _ in statistics.values()]),
            "variances": np.concatenate([variance for _, variance in statistics.values()]),
        }

    before = gather(folder, Calibrations)
    batch_norms = tuple((name, module.num_features) for name, module in supernet.batch_norms().items())
    samples = collect(
        run,
        Calibrations,
        wanted,
        measure,
        shared={"space": supernet.space, "batch_norms": batch_norms},
        images=settings.images,
        shard=shard,
    )
    if len(samples) < len(wanted):
        print(f"{len(samples)} of {len(wanted)} are there: the last shard fits the predictor")
        return folder
    if before is not None and len(before) == len(samples) == _fitted(folder):
        # On other threads the same fit has other last bits, and what was measured with these would be lost.
        print(f"fitted to these {len(samples)} before")
        return folder / TENSORS
    chosen = [wanted[number] for number in moment_subnets(len(wanted))]
    moments = measure_moments(
        supernet,
        [one.configuration for one in chosen],
        [draw(settings.samples + one.index, 128)[0] for one in chosen],
    )
    outputs = output_tables(supernet, moments)
    predictor, quality = fit_statistics(samples, supernet.space, outputs=outputs, report=print)
    # Written last, so that a fit killed in between is told from a whole one.
    (folder / QUALITY).unlink(missing_ok=True)
    save_tensors(folder / TENSORS, predictor.to_tensors())
    write_atomically(folder / QUALITY, json.dumps(quality, indent=2).encode())
    return folder / TENSORS


def _fitted(folder: Path) -> int:
    """How many samples the predictor in `folder` is of, 0 without one."""
    if not ((folder / TENSORS).exists() and (folder / QUALITY).exists()):
        return 0
    return int(json.loads((folder / QUALITY).read_text())["samples"])


def moment_subnets(samples: int) -> range:
    """Which of so many samples input moments are measured of: at most 16, of all forms."""
    # Odd: forms come in turn, and a step that is a multiple of their number would meet a single one.
    step = max(25, samples // _MOMENT_SUBNETS) | 1
    return range(0, samples, step)[:_MOMENT_SUBNETS]


def load_statistics(folder: Path) -> StatisticsPredictor:
    """The predictor that `calibrate_subnets` fitted into `folder`.

    Raises:
        TrainingError: there is none.
    """
    return StatisticsPredictor.from_tensors(load_tensors(folder / TENSORS, stage="statistics"))
