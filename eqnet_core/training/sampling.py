"""Stage 3: measured subnets for the predictors, <configuration, accuracy, BatchNorm statistics>."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from eqnet_core.calibration import calibrate_batch_norm
from eqnet_core.errors import TrainingError
from eqnet_core.evaluation import correct
from eqnet_core.space import SubnetConfiguration
from eqnet_core.supernet import Supernet
from eqnet_core.training.batches import calibration_batches, seeded
from eqnet_core.training.data import ImageData, normalise
from eqnet_core.training.run import Run
from eqnet_core.training.samples import Samples, append, concatenate
from eqnet_core.training.subnets import sample_configuration
from eqnet_core.training.trained import load_trained


@dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """`images` held-out images measure each subnet, `calibration_images` augmented ones calibrate it."""

    samples: int = 2000
    images: int = 5000
    calibration_images: int = 2048
    seed: int = 0


CHUNK = 16
"""Samples between two writes of the file: at most this many are measured again after a kill."""


def sample_subnets(
    data: ImageData, supernet_folder: Path, folder: Path, settings: SamplingSettings, device: torch.device
) -> Path:
    """Measure until `settings.samples` are there and write `samples.npz`; goes on where a killed run stopped.

    Every sample depends on the seed and its number alone. Each is calibrated on a draw of its own, so that
    a model fitted to all of them does not learn one draw's error.

    Raises:
        TrainingError: no trained supernet, fewer held-out images than asked for, or other settings before.
    """
    if settings.images > len(data.held_out):
        raise TrainingError(
            f"{settings.images} images asked for, {len(data.held_out)} are held out: "
            "lower --images or raise --held-out"
        )
    run = Run(folder, settings, growing=("samples",))
    path = folder / "samples.npz"
    supernet = load_trained(supernet_folder).to(device)
    images = normalise(data.held_out.images[: settings.images], data.mean, data.std).to(device)
    labels = data.held_out.labels[: settings.images].to(device)
    done = len(Samples.load(path)) if path.exists() else 0
    progress = tqdm(total=settings.samples, initial=done, desc="samples", unit="subnet")
    while done < settings.samples:
        began = time.perf_counter()
        indices = range(done, min(done + CHUNK, settings.samples))
        rows = []
        for index in indices:
            configuration = sample_configuration(
                supernet.space, index, seeded(settings.seed, "configurations", index)
            )
            calibration = calibration_batches(
                data, images=settings.calibration_images, seed=settings.seed, index=index, device=device
            )
            rows.append(measure(supernet, configuration, calibration, images, labels))
            progress.update()
        done = len(append(path, concatenate(rows)))
        forwards = len(rows) * (settings.images + settings.calibration_images)
        run.log(samples=done, images_per_s=round(forwards / (time.perf_counter() - began), 1))
    progress.close()
    return path


def measure(
    supernet: Supernet,
    configuration: SubnetConfiguration,
    calibration: list[Tensor],
    images: Tensor,
    labels: Tensor,
) -> Samples:
    """One sample: calibrate `configuration` and count its hits on the two halves (even and odd images)."""
    supernet.activate(configuration)
    statistics = calibrate_batch_norm(supernet, calibration)
    hits = correct(supernet, images, labels).cpu().numpy()
    return Samples(
        space=supernet.space,
        form=np.array([configuration.form.index], dtype=np.int8),
        narrow_range=np.array([configuration.narrow_range]),
        weight_bits=np.array([configuration.weight_bits], dtype=np.int8),
        activation_bits=np.array([configuration.activation_bits], dtype=np.int8),
        correct=np.array([[hits[::2].sum(), hits[1::2].sum()]], dtype=np.int32),
        evaluated=np.array([len(hits[::2]), len(hits[1::2])], dtype=np.int32),
        means=np.concatenate([mean for mean, _ in statistics.values()])[None],
        variances=np.concatenate([variance for _, variance in statistics.values()])[None],
        batch_norms=tuple((name, len(mean)) for name, (mean, _) in statistics.items()),
    )
