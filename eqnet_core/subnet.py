"""A subnet as plain arrays: what the supernet hands to export, and what a saved state-dict holds.

NumPy only. Everything a device needs is here as integers, scales and zero-points.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eqnet_core.space import SearchSpace, SubnetConfiguration


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """One input image: `shape` (channels, height, width); pixels in [0, 1] become (x - mean) / std."""

    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Quantizer:
    """q = clip(round_half_even(x / scale) + zero_point, low, high); x_hat = scale * (q - zero_point).

    `scale` (float32, > 0) and `zero_point` (int32, in [low, high]) have shape [] for per-tensor and [C] for
    per-output-channel weights. `bits` is the searched bit-width; `low` and `high` are the codes really used
    (narrower than `bits` allows with narrow range or on runtimes without unsigned activations).
    """

    bits: int
    low: int
    high: int
    scale: NDArray[np.float32]
    zero_point: NDArray[np.int32]

    @property
    def per_channel(self) -> bool:
        return self.scale.ndim == 1


@dataclass(frozen=True, kw_only=True)
class QuantizedLayer:
    """One convolution or linear layer. `codes` are the weight's integers, int8, in the weight's own shape."""

    name: str
    codes: NDArray[np.int8]
    weight: Quantizer
    activation: Quantizer
    bias: NDArray[np.float32] | None

    def dequantized_weight(self) -> NDArray[np.float32]:
        """The float32 weight that the integers stand for, in the weight's shape."""
        shape = (-1, *(1,) * (self.codes.ndim - 1)) if self.weight.per_channel else ()
        zero_point = self.weight.zero_point.reshape(shape)
        difference = (self.codes.astype(np.int32) - zero_point).astype(np.float32)
        return (self.weight.scale.reshape(shape) * difference).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class BatchNorm:
    """y = scale * (x - mean) / sqrt(variance + epsilon) + shift; every array is float32 [C]."""

    scale: NDArray[np.float32]
    shift: NDArray[np.float32]
    mean: NDArray[np.float32]
    variance: NDArray[np.float32]
    epsilon: float


@dataclass(frozen=True, kw_only=True)
class Subnet:
    """A complete subnet. `layers` are in the order of `space.layers`; `batch_norms` by module name."""

    architecture: str
    input: InputSpec
    classes: tuple[str, ...]
    space: SearchSpace
    configuration: SubnetConfiguration
    layers: tuple[QuantizedLayer, ...]
    batch_norms: Mapping[str, BatchNorm]
