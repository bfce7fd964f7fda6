"""What each device demands of a subnet, on subnets of random networks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from eqnet_core.devices import Device, load_catalogue
from eqnet_core.devices.rules import check_subnet, held_in
from eqnet_core.errors import UnsupportedTargetError
from eqnet_core.space import FORMS, LayerSpec, QuantizationForm, SearchSpace, SubnetConfiguration
from eqnet_core.subnet import InputSpec, QuantizedLayer, Quantizer, Subnet

CATALOGUE = load_catalogue()
NAMES = ("conv1", "block/a", "fc")
SPACE = SearchSpace(
    tuple(
        LayerSpec(
            name=name,
            kind="conv",
            searchable=name == "block/a",
            output_channels=4,
            weights=36,
            inputs=16,
            macs=36,
            nonnegative=name != "conv1",
            float_parameters=8,
        )
        for name in NAMES
    )
)


def quantizer(bits: int, shape: tuple[int, ...], low: int, high: int) -> Quantizer:
    return Quantizer(
        bits=bits,
        low=low,
        high=high,
        scale=np.full(shape, 0.1, np.float32),
        zero_point=np.zeros(shape, np.int32),
    )


def make_subnet(form: QuantizationForm, *, bits: int = 4, narrow_range: bool = False) -> Subnet:
    layers = []
    for name in NAMES:
        used = bits if name == "block/a" else 8
        low, high = -(2 ** (used - 1)) + narrow_range, 2 ** (used - 1) - 1
        shape = (4,) if form.weight_granularity == "per_channel" else ()
        layers.append(
            QuantizedLayer(
                name=name,
                codes=np.linspace(low, high, 36).round().astype(np.int8).reshape(4, 1, 3, 3),
                weight=quantizer(used, shape, low, high),
                activation=quantizer(used, (), 0, min(2**used - 1, 127)),
                bias=None,
            )
        )
    return Subnet(
        architecture="resnet20",
        input=InputSpec(shape=(3, 32, 32), mean=(0.0,), std=(1.0,)),
        classes=("a",),
        space=SPACE,
        configuration=SubnetConfiguration(
            form=form, weight_bits=(bits,), activation_bits=(bits,), narrow_range=narrow_range
        ),
        layers=tuple(layers),
        batch_norms={},
    )


def changed(subnet: Subnet, position: int, side: str, **entries: object) -> Subnet:
    layer = subnet.layers[position]
    other = replace(layer, **{side: replace(getattr(layer, side), **entries)})
    return replace(subnet, layers=(*subnet.layers[:position], other, *subnet.layers[position + 1 :]))


@pytest.mark.parametrize("name", CATALOGUE)
def test_a_subnet_of_the_devices_own_profile_is_held_as_the_entry_says(name: str) -> None:
    device = CATALOGUE[name]
    for bits in device.profile.weight_bits:
        subnet = make_subnet(device.profile.form, bits=bits, narrow_range=device.profile.narrow_range)
        first, searched, last = held_in(device, subnet)
        assert first == {"name": "conv1", "weight": "native", "activation": "native"}
        assert last["weight"] == "native"
        assert searched["weight"] == device.weight.held(bits)
        assert searched["activation"] == device.activation.held(bits)


def broken(device: Device, subnet: Subnet, fault: str) -> tuple[Subnet, str]:
    """`subnet` with one fault in its searchable layer, and the side it is on."""
    weight = subnet.layers[1].weight
    if fault == "granularity":
        other = () if weight.per_channel else (4,)
        values = {"scale": np.ones(other, np.float32), "zero_point": np.zeros(other, np.int32)}
        return changed(subnet, 1, "weight", **values), "weight"
    if fault == "zero-point":
        return changed(subnet, 1, "weight", zero_point=weight.zero_point + 1), "weight"
    if fault == "step size":
        return changed(subnet, 1, "weight", scale=-weight.scale), "weight"
    if fault == "lowest code":
        layer = subnet.layers[1]
        layer = replace(layer, codes=np.full_like(layer.codes, -8))
        return replace(subnet, layers=(subnet.layers[0], layer, subnet.layers[2])), "weight"
    if fault == "unsigned codes":
        return changed(subnet, 1, "activation", high=255), "activation"
    assert fault == "activation zero-point"
    return changed(subnet, 1, "activation", zero_point=np.array(3, np.int32)), "activation"


def faults(device: Device) -> list[str]:
    """What `device` does not take."""
    refused = {
        "step size": True,
        "granularity": len(device.granularities) == 1,
        "zero-point": "asymmetric" not in device.weight.symmetries,
        "lowest code": device.profile.narrow_range,
        "unsigned codes": device.profile.signed,
        "activation zero-point": "asymmetric" not in device.activation.symmetries,
    }
    return [fault for fault, present in refused.items() if present]


@pytest.mark.parametrize(
    ("name", "fault"), [(name, fault) for name, device in CATALOGUE.items() for fault in faults(device)]
)
def test_a_layer_that_does_not_fit_is_named(name: str, fault: str) -> None:
    device = CATALOGUE[name]
    good = make_subnet(device.profile.form, narrow_range=device.profile.narrow_range)
    bad, side = broken(device, good, fault)
    check_subnet(device, good)
    with pytest.raises(UnsupportedTargetError, match=f"{name} cannot run this") as error:
        check_subnet(device, bad)
    assert [violation.pointer for violation in error.value.violations] == [f"/layers/block~1a/{side}"]


def test_bits_that_a_device_does_not_have_are_named() -> None:
    device = CATALOGUE["tensorrt"]
    few = replace(device, weight=replace(device.weight, containers={8: "int8"}))
    with pytest.raises(UnsupportedTargetError, match="/layers/block~1a/weight has 4 bits"):
        check_subnet(few, make_subnet(FORMS[4]))
