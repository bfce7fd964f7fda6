"""Ranges of the tensors that no layer quantises by itself: what the `integer` flavour adds. NumPy only.

A layer brings the learned quantiser of its input. Where a residual addition or a pooling reads a tensor too,
all its readers share one 8-bit quantiser, whose range was measured over many subnets (`training.ranges`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eqnet_core.errors import BundleError

VERSION = 1
"""Raised when a reader of the old layout would misread the new one."""


def cost_band(bits: Sequence[float]) -> str:
    """Where a subnet of these bit-widths belongs in what a bundle states the `integer` flavour to cost."""
    return "4 bits and above" if sum(bits) / len(bits) >= 4 else "below 4 bits"


@dataclass(frozen=True, kw_only=True)
class TensorRanges:
    """Lowest and highest value that the 8-bit quantiser of each tensor should reach; 0 lies within.

    `names` are those of `export.plan.IntegerPlan.tensors`; `low` and `high` float32 [T].

    Raises:
        BundleError: a range that is empty, not finite or without 0.
    """

    names: tuple[str, ...]
    low: NDArray[np.float32]
    high: NDArray[np.float32]

    def __post_init__(self) -> None:
        count = len(self.names)
        fits = self.low.shape == self.high.shape == (count,) and len(set(self.names)) == count
        if not fits or not (np.isfinite(self.low) & np.isfinite(self.high) & (self.low < self.high)).all():
            raise BundleError("the tensor ranges make no sense: measure them again (the `ranges` stage)")
        if (self.low > 0).any() or (self.high < 0).any():
            raise BundleError("a tensor range leaves out 0: measure them again (the `ranges` stage)")

    def of(self, name: str) -> tuple[float, float]:
        """Lowest and highest value of the tensor `name`.

        Raises:
            BundleError: it was not measured.
        """
        if name not in self.names:
            raise BundleError(f"the bundle has no range for the tensor {name}: run the `ranges` stage again")
        position = self.names.index(name)
        return float(self.low[position]), float(self.high[position])

    def to_tensors(self) -> dict[str, NDArray[Any]]:
        """Everything `from_tensors` needs, by name."""
        header = json.dumps({"version": VERSION, "names": list(self.names)}).encode()
        return {"header": np.frombuffer(header, dtype=np.uint8).copy(), "low": self.low, "high": self.high}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, NDArray[Any]]) -> TensorRanges:
        """Inverse of `to_tensors`.

        Raises:
            BundleError: a tensor is missing or does not fit, or a newer version wrote it.
        """
        try:
            header = json.loads(tensors["header"].tobytes())
            version, names = int(header["version"]), tuple(str(name) for name in header["names"])
            low, high = (tensors[name].astype(np.float32) for name in ("low", "high"))
        except (KeyError, ValueError, TypeError) as error:
            raise BundleError(f"not tensor ranges: {error}") from error
        if version != VERSION:
            raise BundleError(
                f"the tensor ranges have version {version}, this one reads {VERSION}: "
                + ("upgrade eqnet-serve" if version > VERSION else "run the `ranges` stage again")
            )
        return cls(names=names, low=low, high=high)
