"""A subnet as the `integer` flavour has it: BatchNorm folded, biases in int32, every tensor in 8 bits.

Weights come to zero-point 0 and one scale per output channel, whatever their form: codes q - z times the
sign of BatchNorm's factor, the scale times its size. Codes are then shifted left as far as they have room
and the scale right by as much, since int32 biases are multiples of s_x * s_w: at 2 bits that step would be
ruinous without the shift (measured: agreement 0.80 without, 0.99 with it).

Room is what is right on every CPU. x86 without VNNI adds pairs of products of unsigned activations and signed
weights in 16 bits, which saturate. So the weights' codes stay within `32767 / (2 * largest activation code)`:
64 where activations have 8 bits or are int8, 127 where they are unsigned with 7 bits or fewer. Codes that do
not fit are rounded once more. In a room of 64 these are 8-bit weights, and asymmetric ones of 7 bits; in one
of 127, 8-bit weights that use -128, and asymmetric ones of 8 bits. All others keep their integers.
(uint8 weights would be exact there, but their kernel on such CPUs takes 1.3 times as long.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eqnet_core.errors import ArtifactError
from eqnet_core.export.containers import aligned_container
from eqnet_core.export.plan import IntegerPlan, QuantizedTensor
from eqnet_core.ranges import TensorRanges
from eqnet_core.space import Symmetry
from eqnet_core.subnet import BatchNorm, QuantizedLayer, Quantizer, Subnet

_BIAS_LIMIT = 1 << 30
"""Biases stay within half of int32, the other half is for the products."""

_SMALLEST_SCALE = 1e-20
_PAIR_LIMIT = 32767


@dataclass(frozen=True, kw_only=True)
class TensorQuantizer:
    """q = clip(round_half_even(x / scale) + zero_point, low, high), stored as `type` ("uint8" or "int8").

    `low` and `high` are the codes in use, which may be fewer than the type has; `bits` is what they stand
    for. Bounds of a ReLU in front are part of `low` and `high`, and `relu` says that the file still has to
    have it as a node: runtimes without unsigned activations take no Clip between the pair. `cap` is what that
    node also keeps values to, where the codes in use end at it (ReLU6).
    """

    bits: int
    type: str
    scale: np.float32
    zero_point: int
    low: int
    high: int
    relu: bool = False
    cap: np.float32 | None = None

    @property
    def clips(self) -> bool:
        """Whether the type alone does not saturate where the codes do."""
        limits = np.iinfo(self.type)
        bounded_below = self.relu or self.low == limits.min
        bounded_above = self.cap is not None or self.high == limits.max
        return not (bounded_below and bounded_above)


@dataclass(frozen=True, kw_only=True)
class FoldedLayer:
    """`codes` int8 in the weight's shape, zero-point 0; `scale` float32 [C]; `bias` int32 [C] in steps of
    `bias_scale` float32 [C], the product of `input`'s scale and `scale`. `rounded`: the subnet's own codes
    had no room and were rounded once more.
    """

    name: str
    bits: int
    codes: NDArray[np.int8]
    scale: NDArray[np.float32]
    bias: NDArray[np.int32]
    bias_scale: NDArray[np.float32]
    input: TensorQuantizer
    rounded: bool


@dataclass(frozen=True, kw_only=True)
class IntegerSubnet:
    """`tensors` by name, `layers` by name. A layer in `requantized` reads a shared tensor, whose codes are
    rounded to the layer's own `input` first.
    """

    subnet: Subnet
    tensors: Mapping[str, TensorQuantizer]
    layers: Mapping[str, FoldedLayer]
    requantized: frozenset[str]


def fold(subnet: Subnet, plan: IntegerPlan, ranges: TensorRanges) -> IntegerSubnet:
    """`subnet` with BatchNorm folded and a quantiser for every tensor of `plan`.

    Raises:
        BundleError: `ranges` lacks a tensor.
        ArtifactError: subnet and plan are of different networks.
        UnsupportedTargetError: activations that no container holds; names the layer.
    """
    layers = {layer.name: layer for layer in subnet.layers}
    steps = {step.layer: step for step in plan.steps if step.layer is not None}
    if set(layers) != set(steps):
        raise ArtifactError("subnet and network disagree about the quantised layers")
    signed = subnet.configuration.signed
    symmetric = subnet.configuration.form.activation_symmetry is Symmetry.SYMMETRIC
    tensors: dict[str, TensorQuantizer] = {}
    requantized: set[str] = set()
    for tensor in plan.tensors.values():
        if tensor.shared:
            # A layer's own range is clipped to what is best for that layer, far below what the others read
            # (measured on ResNet-20 with 8 bits: 0.8 points).
            low, high = ranges.of(tensor.name)
            name = tensor.name
            quantizer = range_quantizer(
                low, high, nonnegative=tensor.nonnegative, symmetric=symmetric, signed=signed
            )
            # A layer with all 8 bits takes the codes as they are: rounding twice gains 0.1 points there and
            # takes longer.
            requantized |= {n for n in tensor.layers if not _whole(layers[n].activation, signed=signed)}
        else:
            name = tensor.layers[0]
            quantizer = layers[name].activation
        tensors[tensor.name] = _stored(quantizer, tensor, name, signed=signed)
    folded = {}
    for name, step in steps.items():
        tensor = plan.tensors[plan.tensor_of[step.inputs[0]]]
        if name in requantized:
            bounded = QuantizedTensor(name=name, layers=(name,), shared=False, nonnegative=tensor.nonnegative)
            stored = _stored(layers[name].activation, bounded, name, signed=signed)
        else:
            stored = tensors[tensor.name]
        norm = None if step.norm is None else subnet.batch_norms[step.norm]
        folded[name] = _fold_layer(layers[name], norm, stored)
    return IntegerSubnet(subnet=subnet, tensors=tensors, layers=folded, requantized=frozenset(requantized))


def range_quantizer(
    low: float, high: float, *, nonnegative: bool, symmetric: bool, signed: bool
) -> Quantizer:
    """The 8-bit quantiser of a range: unsigned where nothing is negative, 7 bits of that if `signed`."""
    if nonnegative:
        codes = (0, 127 if signed else 255)
        scale, zero_point = high / codes[1], 0
    elif symmetric or signed:
        codes = (-128, 127)
        scale, zero_point = max(-low / 128, high / 127), 0
    else:
        codes = (-128, 127)
        scale = (high - low) / 255
        zero_point = int(np.clip(np.rint(-128 - low / scale), -128, 127))
    return Quantizer(
        bits=8,
        low=codes[0],
        high=codes[1],
        scale=np.asarray(max(scale, _SMALLEST_SCALE), np.float32),
        zero_point=np.asarray(zero_point, np.int32),
    )


def _whole(quantizer: Quantizer, *, signed: bool) -> bool:
    """All codes that 8 bits have: half of them where nothing is negative and the runtime is signed."""
    return quantizer.bits == 8 or (signed and (quantizer.low, quantizer.high) == (0, 127))


def _stored(quantizer: Quantizer, tensor: QuantizedTensor, name: str, *, signed: bool) -> TensorQuantizer:
    container = aligned_container(quantizer, name, signed=signed)
    zero_point = int(quantizer.zero_point)
    low, high = quantizer.low, quantizer.high
    if tensor.relu:
        low = max(low, zero_point)
    if tensor.cap is not None:
        high = int(min(high, max(np.rint(np.float32(tensor.cap) / quantizer.scale) + zero_point, low)))
    if tensor.nonnegative and not tensor.relu:
        # nothing rounds to a code below the zero-point: no lower bound is needed
        low = container.low - container.shift
    return TensorQuantizer(
        bits=quantizer.bits,
        type=container.type,
        scale=np.float32(quantizer.scale),
        zero_point=zero_point + container.shift,
        low=low + container.shift,
        high=high + container.shift,
        relu=signed and tensor.relu,
        cap=np.float32(tensor.cap) if signed and tensor.cap is not None and high < quantizer.high else None,
    )


def weight_room(input: TensorQuantizer) -> int:
    """The largest weight code that no x86 CPU saturates with activations of `input` (see the module)."""
    # ONNX Runtime turns int8 activations into uint8 with 128 added there
    largest = 255 if input.type == "int8" else input.high
    return min(127, _PAIR_LIMIT // (2 * max(largest, 1)))


def _fold_layer(layer: QuantizedLayer, norm: BatchNorm | None, input: TensorQuantizer) -> FoldedLayer:
    channels = len(layer.codes)
    column = (-1, *(1,) * (layer.codes.ndim - 1))
    factor = np.ones(channels)
    bias = np.zeros(channels) if layer.bias is None else layer.bias.astype(np.float64)
    if norm is not None:
        factor = norm.scale / np.sqrt(norm.variance.astype(np.float64) + norm.epsilon)
        bias = norm.shift + (bias - norm.mean) * factor
    zero_points = np.broadcast_to(layer.weight.zero_point, (channels,)).reshape(column)
    codes = (layer.codes.astype(np.int64) - zero_points) * np.where(factor < 0, -1, 1).reshape(column)
    largest = np.maximum(np.abs(codes.reshape(channels, -1)).max(1), 1)
    room = weight_room(input)
    shift = np.floor(np.log2(room / largest))
    # exact where the codes fit: a power of two; otherwise the largest code comes to the end of the room
    divisor = np.where(largest <= room, 2.0**shift, room / largest)
    scale = np.broadcast_to(layer.weight.scale, (channels,)).astype(np.float64) * np.abs(factor) / divisor
    # A channel that hardly varies: its bias, in steps of a tiny scale, would not fit int32.
    least = np.maximum(np.abs(bias) / (float(input.scale) * _BIAS_LIMIT), _SMALLEST_SCALE)
    divisor = np.where(scale < least, divisor * scale / least, divisor)
    stored_scale = np.maximum(scale, least).astype(np.float32)
    bias_scale = (input.scale * stored_scale).astype(np.float32)
    return FoldedLayer(
        name=layer.name,
        bits=layer.weight.bits,
        codes=np.rint(codes * divisor.reshape(column)).astype(np.int8),
        scale=stored_scale,
        bias=np.rint(bias / bias_scale.astype(np.float64)).astype(np.int32),
        bias_scale=bias_scale,
        input=input,
        rounded=bool((largest > room).any()),
    )
