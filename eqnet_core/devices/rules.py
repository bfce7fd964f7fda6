"""What an entry of the catalogue demands of a subnet's integers. NumPy only; files are read by
`eqnet_core.export.conformance`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from eqnet_core.devices.device import Device, Side
from eqnet_core.errors import UnsupportedTargetError, Violation
from eqnet_core.profile import escape_pointer
from eqnet_core.space import Granularity, Symmetry
from eqnet_core.subnet import QuantizedLayer, Quantizer, Subnet


def check_subnet(device: Device, subnet: Subnet) -> None:
    """Return if every layer of `subnet` is what `device` accepts.

    Raises:
        UnsupportedTargetError: names every layer that does not fit, and why.
    """
    raise_if(device, [violation for layer in subnet.layers for violation in _layer(device, layer)])


def raise_if(device: Device, violations: Sequence[Violation]) -> None:
    """Raise UnsupportedTargetError with `violations`, if there are any."""
    if violations:
        reasons = "; ".join(f"{violation.pointer} {violation.detail}" for violation in violations)
        raise UnsupportedTargetError(f"{device.name} cannot run this: {reasons}", violations=violations)


def held_in(device: Device, subnet: Subnet) -> list[dict[str, str]]:
    """What `device` holds each layer in, first and last among them: `native`, or `held in int8` and the like.

    One object per layer, in order, with `name`, `weight` and `activation`.

    Raises:
        UnsupportedTargetError: as `check_subnet`.
    """
    check_subnet(device, subnet)
    return [
        {
            "name": layer.name,
            "weight": device.weight.held(layer.weight.bits),
            "activation": device.activation.held(layer.activation.bits),
        }
        for layer in subnet.layers
    ]


def _layer(device: Device, layer: QuantizedLayer) -> list[Violation]:
    weight, activation = layer.weight, layer.activation
    granularity = Granularity.PER_CHANNEL if weight.per_channel else Granularity.PER_TENSOR
    lowest = -(1 << (weight.bits - 1)) + device.profile.narrow_range
    faults = {
        "weight": {
            f"has {granularity} step sizes": granularity not in device.granularities,
            f"uses the code {layer.codes.min()}": bool(layer.codes.min() < lowest),
            **_quantizer_faults(device.weight, weight),
        },
        "activation": {
            "has a step size per channel": activation.per_channel,
            f"uses codes up to {activation.high}": device.profile.signed and activation.high > 127,
            **_quantizer_faults(device.activation, activation),
        },
    }
    return [
        Violation(
            f"/layers/{escape_pointer(layer.name)}/{side}", f"{fault}, which {device.name} does not take"
        )
        for side, found in faults.items()
        for fault, present in found.items()
        if present
    ]


def _quantizer_faults(side: Side, quantizer: Quantizer) -> dict[str, bool]:
    positive = np.isfinite(quantizer.scale) & (quantizer.scale > 0)
    return {
        f"has {quantizer.bits} bits": quantizer.bits not in side.containers,
        "has a zero-point other than 0": (
            Symmetry.ASYMMETRIC not in side.symmetries and bool(quantizer.zero_point.any())
        ),
        "has a step size that is not positive": not bool(positive.all()),
    }
