"""Accuracies on the training images that are held out for choices."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from eqnet_core.calibration import calibrate_batch_norm
from eqnet_core.evaluation import top1
from eqnet_core.space import SubnetConfiguration
from eqnet_core.supernet import Supernet
from eqnet_core.training.batches import calibration_batches
from eqnet_core.training.data import ImageData, normalise


def held_out_top1(model: nn.Module, data: ImageData, device: torch.device) -> float:
    """Top-1 of a float network on all of them."""
    images = normalise(data.held_out.images, data.mean, data.std)
    return top1(model, images.to(device), data.held_out.labels.to(device))


def held_out_accuracies(
    supernet: Supernet,
    data: ImageData,
    configurations: Sequence[SubnetConfiguration],
    *,
    seed: int,
    device: torch.device,
    limit: int,
) -> dict[str, float]:
    """Top-1 on the first `limit` held-out images by "form @ average bits".

    BatchNorm is calibrated for each. The supernet's BatchNorm statistics and mode are as before afterwards.
    """
    statistics = supernet.statistics()
    calibration = list(calibration_batches(data, images=1024, seed=seed, index=0, device=device))
    images = normalise(data.held_out.images[:limit], data.mean, data.std).to(device)
    labels = data.held_out.labels[:limit].to(device)
    found = {}
    for configuration in configurations:
        supernet.activate(configuration)
        calibrate_batch_norm(supernet, calibration)
        bits = sum(configuration.weight_bits) / len(configuration.weight_bits)
        found[f"{configuration.form.name}@{bits:g}"] = round(top1(supernet, images, labels), 4)
    supernet.set_statistics(statistics)
    return found
