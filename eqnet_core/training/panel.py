"""Which held-out images measure a subnet, and how much each of them counts.

Seven images of ten are classified right by every subnet worth looking at: they cost as much as the others and
say nothing. A pilot of a few subnets on all images tells where subnets disagree; a panel is a stratified
sample that has most of those and few of the rest, each standing for as many as it was drawn from (Neyman
allocation). Its estimate of the accuracy on all images is unbiased, and 1,200 of CIFAR-10's 5,000 held-out
images tell subnets apart as well as twice as many drawn at random (how:
`docs/method.md`, section 4).
"""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from eqnet_core.errors import TrainingError
from eqnet_core.files import write_atomically
from eqnet_core.training.pool import rightness

_STRATA = 12
_DOUBT_SMOOTHING = 1.0
"""Logits. How near to zero a margin is in doubt."""

LEAST_IMAGES = 8
"""Images of a panel and of each of its strata, at least: however sure the pilot was, it has to be checked."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """K of the held-out images, or of views of them.

    `images` int64 [K], ascending indices; `weights` float64 [2, K]: rows add up to 1 and say how much an
    image counts in each of the two halves, 0 in the one it does not belong to. `offset` float64 [2] is what
    the panel underestimated the pilot's accuracies by: images are drawn by luck, and most of that luck is the
    same for all subnets (a difference estimator, Cochran 1977, section 7.2).
    """

    images: NDArray[np.int64]
    weights: NDArray[np.float64]
    offset: NDArray[np.float64]

    def halves(self, total: int) -> NDArray[np.int8]:
        """The half, 0 or 1, that each of all `total` images belongs to; those not chosen alternate."""
        halves = (np.arange(total) % 2).astype(np.int8)
        halves[self.images] = self.weights[1] > 0
        return halves

    def accuracies(self, margins: NDArray[np.float32]) -> NDArray[np.float64]:
        """Top-1 in each half [2], from the margins [K] of the images.

        A margin is the right class's logit minus the largest other.
        """
        return np.clip(self.weights @ (margins > 0) + self.offset, 0.0, 1.0)

    def smooth_accuracy(self, margins: NDArray[np.float32]) -> float:
        """The accuracy of both halves together, in [0, 1], where an image on the verge counts half."""
        return float((self.weights @ rightness(margins)).mean())

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        buffer = io.BytesIO()
        np.savez(buffer, **{field.name: getattr(self, field.name) for field in fields(self)})
        write_atomically(path, buffer.getvalue())

    @classmethod
    def load(cls, path: Path) -> Panel:
        """Read what `save` wrote.

        Raises:
            TrainingError: it is not a panel file.
        """
        try:
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as archive:
                return cls(**{field.name: archive[field.name] for field in fields(cls)})
        except (EOFError, OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise TrainingError(f"{path} is not a panel file: delete it, and it is made again") from error


def choose_panel(
    margins: NDArray[np.float32],
    count: int,
    generator: np.random.Generator,
    *,
    halves: NDArray[np.int8] | None = None,
    level: float | None = None,
) -> Panel:
    """About `count` of N images, at most all, for the margins [P, N] that P pilot subnets had on them.

    Args:
        halves: int8 [N], the half, 0 or 1, that each image has to be in. A stratum that has few of one half
            then gives fewer than its share.
        level: what the pilots' mean accuracy is put on, in [0, 1]: that on these images if not given.

    Raises:
        TrainingError: so few images that two halves of every stratum cannot be told apart.
    """
    total = margins.shape[1]
    strata = min(_STRATA, count // LEAST_IMAGES)
    if strata < 1 or count > total:
        raise TrainingError(
            f"cannot choose {count} of {total} held-out images: choose {LEAST_IMAGES} to {total} of them"
        )
    right = expit(margins.astype(np.float64) / _DOUBT_SMOOTHING)
    doubt = (right * (1.0 - right)).mean(axis=0)
    groups = np.array_split(np.argsort(doubt, kind="stable"), strata)
    sizes = np.array([len(group) for group in groups])
    chosen = _allocate(sizes, np.array([np.sqrt(doubt[group].mean()) for group in groups]), count)
    weights = np.zeros((2, total))
    for group, size, number in zip(groups, sizes, chosen, strict=True):
        order = generator.permutation(group)
        for half in (0, 1):
            of_half = order[half::2] if halves is None else order[halves[order] == half]
            members = of_half[: (number + 1 - half) // 2]
            if not len(members):
                raise TrainingError(f"{total} images are too few for two halves: hold more images out")
            weights[half, members] = size / total / len(members)
    images = np.flatnonzero(weights.any(axis=0))
    hits = (margins > 0).mean(axis=0)
    return Panel(
        images=images,
        weights=weights[:, images],
        offset=(hits.mean() if level is None else level) - weights @ hits,
    )


def _allocate(sizes: NDArray[np.int64], deviations: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """How many of each stratum [H]: in proportion to size x deviation, within what there is."""
    shares = sizes * np.maximum(deviations, 1e-9)
    least = np.minimum(sizes, LEAST_IMAGES)
    chosen = least.astype(np.float64)
    low, high = 0.0, count / shares.min()
    for _ in range(100):  # bisection for the factor that spends `count`
        factor = (low + high) / 2
        chosen = np.clip(shares * factor, least, sizes)
        low, high = (factor, high) if chosen.sum() < count else (low, factor)
    return np.rint(chosen).astype(np.int64)
