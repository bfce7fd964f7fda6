"""Augmented batches as a pure function of the seed and the step, so that any run can go on at any step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from eqnet_core.errors import TrainingError
from eqnet_core.training.augmentation import crop_and_flip, cutmix
from eqnet_core.training.data import ImageData, LabelledImages, normalise

Stream = Literal[
    "order",
    "augmentation",
    "subnets",
    "calibration",
    "configurations",
    "ranges",
    "searches",
    "draws",
    "mixing",
    "views",
]
_STREAMS: tuple[Stream, ...] = get_args(Stream)

_CALIBRATION_BATCH = 128


def seeded(seed: int, stream: Stream, index: int) -> np.random.Generator:
    """The generator of one purpose at one step (or epoch): independent of every other."""
    return np.random.default_rng((seed, _STREAMS.index(stream), index))


def torch_seeded(seed: int, stream: Stream, index: int) -> torch.Generator:
    """The same for torch, on the CPU whatever device computes, so that every device draws alike."""
    return torch.Generator().manual_seed(int(seeded(seed, stream, index).integers(2**62)))


@dataclass(frozen=True, kw_only=True)
class ImageSizes:
    """Progressive resizing: epochs at smaller images first, given as ((side, epochs), ...), then full size.

    A 16-pixel epoch costs a quarter of a 32-pixel one; early epochs lose little by it.
    """

    stages: tuple[tuple[int, int], ...] = ()

    def __str__(self) -> str:
        return ",".join(f"{side}x{epochs}" for side, epochs in self.stages) or "full size"

    def at(self, epoch: int, full: int) -> int:
        """Image side in pixels of the given epoch (from 0)."""
        for side, epochs in self.stages:
            if epoch < epochs:
                return side
            epoch -= epochs
        return full


class Batches:
    """Training batches: normalised float32 [B, C, S, S] and labels, on `device`.

    Each epoch is one random order of the images; the incomplete last batch is left out. Labels are int64 [B],
    or of a batch mixed by CutMix float32 [B, classes], the shares of each image. `mixed` is the share of such
    batches, [0, 1].
    """

    def __init__(
        self,
        data: ImageData,
        *,
        batch_size: int,
        seed: int,
        device: torch.device,
        sizes: ImageSizes | None = None,
        mixed: float = 0.0,
    ) -> None:
        self._images = data.train.to(device)
        self._data = data
        self._batch_size = batch_size
        self._seed = seed
        self._sizes = sizes or ImageSizes()
        self._mixed = mixed
        self._order: tuple[int, Tensor] = (-1, torch.empty(0, dtype=torch.int64))
        self.steps_per_epoch = max(1, len(data.train) // batch_size)

    def at(self, step: int) -> tuple[Tensor, Tensor]:
        """The batch of a step (from 0): the same for the same seed, however the run got there."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if self._order[0] != epoch:
            order = seeded(self._seed, "order", epoch).permutation(len(self._images))
            self._order = (epoch, torch.from_numpy(order))
        indices = self._order[1][position * self._batch_size : (position + 1) * self._batch_size]
        batch = self._images.subset(indices.to(self._images.labels.device))
        generator = torch_seeded(self._seed, "augmentation", step)
        images = augmented(batch, self._data, generator)
        images = resized(images, self._sizes.at(epoch, images.shape[-1]))
        mixing = seeded(self._seed, "mixing", step)
        if mixing.random() < self._mixed:
            return cutmix(images, batch.labels, len(self._data.classes), int(mixing.integers(2**62)))
        return images, batch.labels


def check_mixed(mixed: float) -> None:
    """Refuse what is no share of the batches.

    Raises:
        TrainingError: it is not in [0, 1].
    """
    if not 0 <= mixed <= 1:
        raise TrainingError(f"cutmix {mixed} is a share of the batches: 0 for none, 1 for all")


def resized(images: Tensor, side: int) -> Tensor:
    """Images [N, C, H, W] at `side` x `side` pixels, antialiased; as they are where that is their size."""
    if images.shape[-1] == side:
        return images
    return functional.interpolate(images, size=(side, side), mode="bilinear", antialias=True)


def augmented(batch: LabelledImages, data: ImageData, generator: torch.Generator) -> Tensor:
    """The images of `batch` cropped, flipped and normalised: float32 [B, C, H, W]."""
    return normalise(crop_and_flip(batch.images, generator, mirror=data.mirror), data.mean, data.std)


def calibration_count(data: ImageData, images: int) -> int:
    """How many `calibration_batches` has when asked for so many: whole batches, of what there is."""
    count = min(images, len(data.train))
    return count - count % min(_CALIBRATION_BATCH, count)


def calibration_batches(
    data: ImageData, *, images: int, seed: int, index: int, device: torch.device
) -> Iterator[Tensor]:
    """Augmented, normalised training images for BatchNorm, in equal batches: draw `index` of `seed`.

    Each is made when it is its turn: thousands of images of 224 pixels do not fit into memory.
    """
    count = calibration_count(data, images)
    order = torch.from_numpy(seeded(seed, "calibration", index).permutation(len(data.train))[:count])
    generator = torch_seeded(seed, "calibration", index)
    for part in torch.split(order, min(_CALIBRATION_BATCH, count)):
        yield augmented(data.train.subset(part), data, generator).to(device)
