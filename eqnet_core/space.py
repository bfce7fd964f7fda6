"""The elastic quantisation space: forms, bit-widths, layers and subnet configurations.

Pure Python and NumPy; imports nothing else of this project. See `docs/method.md` for the mathematics.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache, cached_property
from itertools import product
from operator import index
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eqnet_core.errors import InvalidConfigurationError, Violation

BIT_WIDTHS: tuple[int, ...] = (2, 3, 4, 5, 6, 7, 8)
"""Every bit-width there is, for weights and activations alike; `SearchSpace.bit_widths` are a network's."""

_KNOWN_BITS = frozenset(BIT_WIDTHS)

DEPTHWISE = "depthwise_conv"
"""The `LayerSpec.kind` of a convolution whose every channel has a filter of its own."""

FIXED_BITS = 8
"""Bit-width of the first and the last layer, which are not searched."""


NARROW_RANGE_ADVICE = "use symmetric weights, or set narrow_range to false"
"""Why: asymmetric zero-points were learned with the lowest code, and many sit on it. Without that code they
are off by one, and the subnet collapses (measured: 62 % where its neighbours had 89 %)."""


class Granularity(StrEnum):
    """What shares one weight step size: the whole tensor, or one output channel."""

    PER_TENSOR = "per_tensor"
    PER_CHANNEL = "per_channel"


class Symmetry(StrEnum):
    """Zero-point fixed at 0 (symmetric) or a learned integer (asymmetric)."""

    SYMMETRIC = "symmetric"
    ASYMMETRIC = "asymmetric"


_AXES = {"weight_granularity": Granularity, "weight_symmetry": Symmetry, "activation_symmetry": Symmetry}


@dataclass(frozen=True, kw_only=True)
class QuantizationForm:
    """What a device's hardware fixes for the whole network. Activations are always per-tensor.

    Texts such as "per_channel" become members of the enumerations.

    Raises:
        InvalidConfigurationError: a text that none of them has.
    """

    weight_granularity: Granularity
    weight_symmetry: Symmetry
    activation_symmetry: Symmetry

    def __post_init__(self) -> None:
        for name, kind in _AXES.items():
            value = getattr(self, name)
            if type(value) is kind:
                continue
            # A text equals its member and has its hash, so that one that stayed a text would pass for it.
            try:
                object.__setattr__(self, name, kind(value))
            except ValueError as error:
                raise InvalidConfigurationError(
                    f"{name} is {value!r}: use one of {', '.join(kind)}"
                ) from error

    @property
    def index(self) -> int:
        """Position in `FORMS`, 0..7."""
        return FORMS.index(self)

    @property
    def name(self) -> str:
        """Short human-readable name, such as `per_channel-symmetric-asymmetric`."""
        return f"{self.weight_granularity}-{self.weight_symmetry}-{self.activation_symmetry}"


FORMS: tuple[QuantizationForm, ...] = tuple(
    QuantizationForm(weight_granularity=g, weight_symmetry=w, activation_symmetry=a)
    for g, w, a in product(Granularity, Symmetry, Symmetry)
)
"""All 8 forms, in the order that every table and encoding of this project uses."""


@dataclass(frozen=True, kw_only=True)
class LayerSpec:
    """What search, cost and prediction need to know of one quantised layer; no tensors.

    `kind` is `conv`, `depthwise_conv` or `linear`. `weights` counts weight elements, `inputs` the elements of
    one image's input feature map (batch of 1), `macs` multiply-accumulates for one image. `nonnegative` says
    that the input is never negative (after a ReLU), so that its codes are unsigned. `float_parameters` counts
    the float32 values that stay beside the integers: bias, and scale and shift of the BatchNorm that follows.
    """

    name: str
    kind: str
    searchable: bool
    output_channels: int
    weights: int
    inputs: int
    macs: int
    nonnegative: bool
    float_parameters: int

    def code_ranges(
        self, weight_bits: int, activation_bits: int, *, narrow_range: bool, signed: bool
    ) -> tuple[tuple[int, int], tuple[int, int]]:
        """Lowest and highest code of the weights and of the activations (docs/method.md section 1).

        Weights [-2^(b-1), 2^(b-1) - 1], or from -(2^(b-1) - 1) with narrow range; non-negative activations
        [0, 2^b - 1], of which a runtime without unsigned activations holds only 7 bits; others as weights.
        """
        low = -(2 ** (weight_bits - 1)) + narrow_range
        half = 2 ** (min(activation_bits, 7 if self.nonnegative and signed else 8) - 1)
        activations = (0, 2 * half - 1) if self.nonnegative else (-half, half - 1)
        return (low, 2 ** (weight_bits - 1) - 1), activations


@dataclass(frozen=True, kw_only=True)
class SubnetConfiguration:
    """One subnet: a form, and one weight and one activation bit-width per *searchable* layer, in order.

    `narrow_range` leaves out the lowest weight code; `signed` says that the runtime has no unsigned
    activations, so that non-negative ones use at most 7 bits of magnitude. Both change what is computed,
    hence they are part of the configuration.

    Raises:
        InvalidConfigurationError: a bit-width that is no whole number in 2..8, lists of different length, a
        flag that is no bool, or narrow range with asymmetric weights.
    """

    form: QuantizationForm
    weight_bits: tuple[int, ...]
    activation_bits: tuple[int, ...]
    narrow_range: bool = False
    signed: bool = False

    def __post_init__(self) -> None:
        for flag in ("narrow_range", "signed"):
            if not isinstance(getattr(self, flag), bool):
                raise InvalidConfigurationError(f"{flag} is {getattr(self, flag)!r}: use True or False")
        for which in ("weight_bits", "activation_bits"):
            bits = getattr(self, which)
            if type(bits) is not tuple or not _INTEGERS.issuperset(map(type, bits)):
                object.__setattr__(self, which, _whole(bits, which))
        if self.narrow_range and self.form.weight_symmetry is Symmetry.ASYMMETRIC:
            raise InvalidConfigurationError(
                f"a subnet with asymmetric weights cannot have narrow_range: {NARROW_RANGE_ADVICE}",
                violations=[Violation("/narrow_range", NARROW_RANGE_ADVICE)],
            )
        if len(self.weight_bits) != len(self.activation_bits):
            raise InvalidConfigurationError(
                f"{len(self.weight_bits)} weight bit-widths but {len(self.activation_bits)} activation "
                "bit-widths: give one of each per searchable layer"
            )
        for which, bits in (("weight_bits", self.weight_bits), ("activation_bits", self.activation_bits)):
            if _KNOWN_BITS.issuperset(bits):
                continue
            for position, value in enumerate(bits):
                if value not in _KNOWN_BITS:
                    raise InvalidConfigurationError(
                        f"{which} of searchable layer {position} is {value}: use 2..8",
                        violations=[Violation(f"/layers/{position}/{which}", "must be one of 2..8")],
                    )


_INTEGERS = frozenset({int})


def _whole(bits: Iterable[Any], which: str) -> tuple[int, ...]:
    """Bits as a tuple of Python's integers, whatever whole numbers they came as."""
    try:
        return tuple(index(value) for value in bits)
    except TypeError as error:
        raise InvalidConfigurationError(
            f"{which} must be a list of whole numbers in 2..8: {error}"
        ) from error


@dataclass(frozen=True)
class SearchSpace:
    """The quantised layers of one network in execution order, and what follows from them."""

    layers: tuple[LayerSpec, ...]

    @cached_property
    def searchable(self) -> tuple[LayerSpec, ...]:
        """The layers whose bit-widths are chosen: all but the first and the last."""
        return tuple(layer for layer in self.layers if layer.searchable)

    @cached_property
    def bit_widths(self) -> tuple[int, ...]:
        """What a searchable layer can have: 2..8, or 3..8 in a network with depthwise convolutions (EQ-Net,
        Table 1)."""
        depthwise = any(layer.kind == DEPTHWISE for layer in self.layers)
        return BIT_WIDTHS[1:] if depthwise else BIT_WIDTHS

    def uniform(
        self,
        form: QuantizationForm,
        weight_bits: int,
        activation_bits: int | None = None,
        *,
        narrow_range: bool = False,
        signed: bool = False,
    ) -> SubnetConfiguration:
        """Every searchable layer at the same bits; activations at `weight_bits` unless told otherwise."""
        count = len(self.searchable)
        return SubnetConfiguration(
            form=form,
            weight_bits=(weight_bits,) * count,
            activation_bits=(weight_bits if activation_bits is None else activation_bits,) * count,
            narrow_range=narrow_range,
            signed=signed,
        )

    def check(self, configuration: SubnetConfiguration) -> None:
        """Raise InvalidConfigurationError unless `configuration` has one entry per searchable layer, and no
        bit-width that this network does not have."""
        if len(configuration.weight_bits) != len(self.searchable):
            raise InvalidConfigurationError(
                f"the configuration has {len(configuration.weight_bits)} layers, the supernet has "
                f"{len(self.searchable)} searchable ones: give bits for each of them, in order"
            )
        if not set(self.bit_widths).issuperset((*configuration.weight_bits, *configuration.activation_bits)):
            violations = [
                Violation(f"/layers/{position}/{which}", self.bits_advice)
                for which in ("weight_bits", "activation_bits")
                for position, bits in enumerate(getattr(configuration, which))
                if bits not in self.bit_widths
            ]
            raise InvalidConfigurationError(
                f"the supernet does not have these bits: {violations[0].pointer} {self.bits_advice}",
                violations=violations,
            )

    @property
    def bits_advice(self) -> str:
        """What to say of other bit-widths."""
        return f"must be one of {self.bit_widths[0]}..{self.bit_widths[-1]}"

    def effective_activation_bits(self, activation_bits: NDArray[Any], *, signed: bool) -> NDArray[Any]:
        """Bits that the activation codes really use, [..., L] over searchable layers.

        A runtime without unsigned activations leaves a non-negative tensor the upper half of int8: 7 bits.
        """
        if not signed:
            return activation_bits
        return np.where(self._nonnegative, np.minimum(activation_bits, 7), activation_bits)

    @cached_property
    def _nonnegative(self) -> NDArray[np.bool_]:
        """Of the inputs of the searchable layers, [L]."""
        return np.array([layer.nonnegative for layer in self.searchable])

    def encode(self, configurations: Sequence[SubnetConfiguration]) -> NDArray[np.float32]:
        """Predictor input [N, encoding_size]: form one-hots, narrow range, one-hot bits per layer."""
        for configuration in configurations:
            self.check(configuration)
        weight_bits = np.array([c.weight_bits for c in configurations], dtype=np.int64)
        activation_bits = np.array([c.activation_bits for c in configurations], dtype=np.int64)
        if any(c.signed for c in configurations):
            activation_bits = np.where(
                np.array([[c.signed] for c in configurations]),
                self.effective_activation_bits(activation_bits, signed=True),
                activation_bits,
            )
        head = np.array([_encode_head(c.form, narrow_range=c.narrow_range) for c in configurations])
        return _encode(head, weight_bits, activation_bits)

    def encode_population(
        self,
        form: QuantizationForm,
        weight_bits: NDArray[Any],
        activation_bits: NDArray[Any],
        *,
        narrow_range: bool = False,
        signed: bool = False,
    ) -> NDArray[np.float32]:
        """The same for a population that shares one form: bits [N, L] int, result [N, encoding_size]."""
        activation_bits = self.effective_activation_bits(activation_bits, signed=signed)
        head = np.broadcast_to(_encode_head(form, narrow_range=narrow_range), (len(weight_bits), 7))
        return _encode(head, weight_bits, activation_bits)

    @property
    def encoding_size(self) -> int:
        """Columns of `encode`: 6 for the form's three axes, 1 for narrow range, 2 x 7 per layer."""
        return 7 + 2 * len(BIT_WIDTHS) * len(self.searchable)


@cache
def _encode_head(form: QuantizationForm, *, narrow_range: bool) -> NDArray[np.float32]:
    axes = (
        form.weight_granularity is Granularity.PER_CHANNEL,
        form.weight_symmetry is Symmetry.ASYMMETRIC,
        form.activation_symmetry is Symmetry.ASYMMETRIC,
    )
    one_hots = [value for axis in axes for value in (not axis, axis)]
    head = np.array([*one_hots, narrow_range], dtype=np.float32)
    head.flags.writeable = False  # everybody gets the same one
    return head


_ONE_HOT = (np.arange(max(BIT_WIDTHS) + 1)[:, None] == np.array(BIT_WIDTHS)).astype(np.float32)
"""[bits, len(BIT_WIDTHS)]: all zeros where there is no such bit-width."""


def _encode(
    head: NDArray[np.float32], weight_bits: NDArray[Any], activation_bits: NDArray[Any]
) -> NDArray[np.float32]:
    one_hot = _ONE_HOT[np.concatenate([weight_bits, activation_bits], axis=1)]
    return np.concatenate([head, one_hot.reshape(len(head), -1)], axis=1)
