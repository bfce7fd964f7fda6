from __future__ import annotations

import numpy as np
import pytest

from eqnet_core.errors import UnsupportedTargetError
from eqnet_core.export.containers import activation_container, weight_container
from eqnet_core.space import LayerSpec
from eqnet_core.subnet import QuantizedLayer, Quantizer


def quantizer(bits: int, low: int, high: int, zero_point: int = 0) -> Quantizer:
    return Quantizer(
        bits=bits,
        low=low,
        high=high,
        scale=np.array(1, np.float32),
        zero_point=np.array(zero_point, np.int32),
    )


def layer(activation: Quantizer, *, nonnegative: bool) -> tuple[QuantizedLayer, LayerSpec]:
    spec = LayerSpec(
        name="stem",
        kind="conv",
        searchable=True,
        output_channels=1,
        weights=1,
        inputs=1,
        macs=1,
        nonnegative=nonnegative,
        float_parameters=0,
    )
    codes = np.zeros((1, 1, 1, 1), np.int8)
    return QuantizedLayer(
        name="stem", codes=codes, weight=quantizer(8, -128, 127), activation=activation, bias=None
    ), spec


def test_weights_of_up_to_four_bits_are_four_bits_wide() -> None:
    types = [weight_container(quantizer(b, -(2 ** (b - 1)), 2 ** (b - 1) - 1)).type for b in range(2, 9)]
    assert types == ["int4"] * 3 + ["int8"] * 4


@pytest.mark.parametrize(
    ("activation", "nonnegative", "signed", "expected"),
    [
        (quantizer(8, 0, 255), True, False, ("uint8", 0, False)),
        (quantizer(4, 0, 15), True, False, ("uint8", 0, True)),
        (quantizer(8, -128, 127), False, False, ("uint8", 128, False)),
        (quantizer(3, -4, 3), False, False, ("uint8", 128, True)),
        (quantizer(8, -128, 127), False, True, ("int8", 0, False)),
        (quantizer(8, 0, 127), True, True, ("int8", 0, False)),
        (quantizer(8, 0, 127, 9), True, True, ("int8", 0, False)),
        (quantizer(8, 0, 127), False, True, ("int8", 0, True)),
        (quantizer(4, 0, 15), True, True, ("int8", 0, True)),
    ],
)
def test_activation_type_shift_and_clip(
    activation: Quantizer, nonnegative: bool, signed: bool, expected: tuple[str, int, bool]
) -> None:
    container = activation_container(*layer(activation, nonnegative=nonnegative), signed=signed)
    assert (container.type, container.shift, container.clip) == expected


def test_codes_that_do_not_fit_name_the_layer() -> None:
    with pytest.raises(UnsupportedTargetError, match="stem"):
        activation_container(*layer(quantizer(8, 0, 255), nonnegative=True), signed=True)
