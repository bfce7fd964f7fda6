"""Which integer type holds a layer's codes in a file, and how the codes are shifted to fit. NumPy only."""

from __future__ import annotations

from dataclasses import dataclass

from eqnet_core.errors import UnsupportedTargetError, Violation
from eqnet_core.space import LayerSpec
from eqnet_core.subnet import QuantizedLayer, Quantizer


@dataclass(frozen=True, kw_only=True)
class Container:
    """An integer type of the file: stored value = code + `shift`, within [`low`, `high`] of the type."""

    type: str
    low: int
    high: int
    shift: int = 0


@dataclass(frozen=True, kw_only=True)
class ActivationContainer(Container):
    """As `Container`; `clip` says that the type alone does not saturate where the codes do."""

    clip: bool


def weight_container(quantizer: Quantizer) -> Container:
    """int4 for 2..4 bits, which every runtime loads, int8 for 5..8."""
    if quantizer.bits <= 4:
        return Container(type="int4", low=-8, high=7)
    return Container(type="int8", low=-128, high=127)


def activation_container(layer: QuantizedLayer, spec: LayerSpec, *, signed: bool) -> ActivationContainer:
    """uint8 with the codes shifted up where they are negative; int8 as they are for `signed` runtimes.

    uint8 because ONNX Runtime fuses an integer Clip after QuantizeLinear only there.

    Raises:
        UnsupportedTargetError: codes that no 8-bit container holds; names the layer.
    """
    quantizer = layer.activation
    if signed:
        container = Container(type="int8", low=-128, high=127)
    else:
        container = Container(type="uint8", low=0, high=255, shift=128 if quantizer.low < 0 else 0)
    low, high = quantizer.low + container.shift, quantizer.high + container.shift
    if low < container.low or high > container.high:
        raise UnsupportedTargetError(
            f"the activations of {layer.name} use the codes {quantizer.low}..{quantizer.high}, which "
            f"{container.type} cannot hold: use fewer bits, or a runtime with unsigned activations",
            violations=[Violation(f"/layers/{layer.name}/activation_bits", "does not fit the container")],
        )
    # An input that is never negative never rounds to a code below its zero-point: no lower bound is needed.
    bounded_below = low == container.low or (spec.nonnegative and bool(quantizer.zero_point >= quantizer.low))
    return ActivationContainer(
        type=container.type,
        low=container.low,
        high=container.high,
        shift=container.shift,
        clip=not (bounded_below and high == container.high),
    )


def aligned_container(quantizer: Quantizer, name: str, *, signed: bool) -> Container:
    """For the `integer` flavour: uint8 with the lowest code at 0; int8 as they are for `signed` runtimes.

    Codes as small as they can be leave the weights the most room (`folding`).

    Raises:
        UnsupportedTargetError: codes that int8 does not hold; names the layer.
    """
    if not signed:
        return Container(type="uint8", low=0, high=255, shift=-quantizer.low)
    if quantizer.low < -128 or quantizer.high > 127:
        raise UnsupportedTargetError(
            f"the activations of {name} use the codes {quantizer.low}..{quantizer.high}, which int8 cannot "
            "hold: use fewer bits, or a runtime with unsigned activations",
            violations=[Violation(f"/layers/{name}/activation_bits", "does not fit the container")],
        )
    return Container(type="int8", low=-128, high=127)
