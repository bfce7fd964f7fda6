"""Training images that tell what subnets are worth: another draw of them for every subnet.

A search looks for what its predictor likes. If all samples are measured on the same images, that is in part
what those images happen to like: 3-bit subnets of the first shipped predictor were 0.37 points better than
uniform ones on the panel that it was fitted to, 0.19 on all held-out images, 0.28 worse on the test images.
With images of its own for every sample that luck is noise, which a fit to many samples averages out. Images
that training saw serve as well as others: a supernet is right on few of them that it would not be right on
otherwise, and the fit puts what they say on the scale of the held-out images (`training.fitting`).
"""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from eqnet_core.errors import TrainingError
from eqnet_core.files import write_atomically

SMOOTHING = 0.5
"""Logits. An image counts sigmoid(margin / SMOOTHING): a margin of a thousandth above zero is worth no more
than one below, which takes the luck of single images out."""


@dataclass(frozen=True, kw_only=True)
class ImagePool:
    """The first P training images, which are in random order, of which `count` are drawn for each subnet.

    `reference` float64 [P] is how right a few pilot subnets are on each, on average. A draw's mean of it says
    how easy that draw is, and is subtracted: half of the noise goes with it (a control variate, Owen 2013,
    section 8.9).

    Raises:
        TrainingError: fewer images than are to be drawn.
    """

    reference: NDArray[np.float64]
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.count <= len(self.reference):
            raise TrainingError(
                f"cannot draw {self.count} of {len(self.reference)} training images for each subnet: "
                f"draw 1 to {len(self.reference)}"
            )

    @classmethod
    def of_pilots(cls, margins: NDArray[np.float32], count: int) -> ImagePool:
        """The pool for the margins [S, P] of S pilot subnets.

        A margin is the right class's logit minus the largest other.
        """
        return cls(reference=rightness(margins).mean(axis=0), count=count)

    def draw(self, generator: np.random.Generator) -> NDArray[np.int64]:
        """Indices [count] of training images, ascending, no two alike."""
        return np.sort(generator.permutation(len(self.reference))[: self.count])

    def accuracy(self, images: NDArray[np.int64], margins: NDArray[np.float32]) -> float:
        """The smooth accuracy on the pool, in [0, 1], as the margins [count] on drawn `images` tell it."""
        ease = self.reference[images].mean() - self.reference.mean()
        return float(np.clip(rightness(margins).mean() - ease, 0.0, 1.0))

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        buffer = io.BytesIO()
        np.savez(buffer, reference=self.reference)
        write_atomically(path, buffer.getvalue())

    @classmethod
    def load(cls, path: Path, count: int) -> ImagePool:
        """Read what `save` wrote.

        Raises:
            TrainingError: it is not a pool file, or of too few images.
        """
        try:
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as archive:
                reference = archive["reference"]
        except (EOFError, OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise TrainingError(f"{path} is not a pool file: delete it, and it is made again") from error
        return cls(reference=reference, count=count)


def rightness(margins: NDArray[np.float32]) -> NDArray[np.float64]:
    """How right margins are, one by one, in [0, 1]; see `SMOOTHING`."""
    return np.asarray(expit(margins.astype(np.float64) / SMOOTHING))
