"""Conversion, activation and extraction of subnets."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from eqnet_core.calibration import calibrate_batch_norm
from eqnet_core.devices import load_catalogue
from eqnet_core.devices.rules import held_in
from eqnet_core.errors import BundleError, InvalidConfigurationError
from eqnet_core.models import build_model
from eqnet_core.space import BIT_WIDTHS, FORMS, Granularity, SearchSpace, SubnetConfiguration, Symmetry
from eqnet_core.supernet import Supernet, trace_layers


def test_layers_are_traced_in_execution_order_with_their_costs(images: torch.Tensor) -> None:
    layers = trace_layers(build_model("resnet20", 10), images[:2])
    assert [layer.name for layer in layers[:3]] == ["conv1", "layer1.0.conv1", "layer1.0.conv2"]
    assert [layer.searchable for layer in layers] == [False, *[True] * 18, False]
    assert [layer.nonnegative for layer in layers] == [False, *[True] * 19]
    assert sum(layer.weights for layer in layers) == 268_336
    assert sum(layer.macs for layer in layers) == 40_551_040  # He et al.: 41 M
    assert layers[1].inputs == 16 * 32 * 32
    assert layers[0].float_parameters == 2 * 16
    assert layers[-1].float_parameters == 10


def test_more_bits_come_closer_to_the_float_network(supernet: Supernet, images: torch.Tensor) -> None:
    for layer in supernet.layers:
        layer.quantizing = False
    calibrate_batch_norm(supernet, [images])
    with torch.no_grad():
        reference = supernet(images)
    for layer in supernet.layers:
        layer.quantizing = True
    for form in FORMS:
        errors = []
        for bits in (2, 4, 8):
            supernet.activate(supernet.space.uniform(form, bits))
            calibrate_batch_norm(supernet, [images])
            with torch.no_grad():
                errors.append(float((supernet(images) - reference).norm() / reference.norm()))
        assert errors[0] > errors[1] > errors[2], form.name
        assert errors[2] < 0.1, form.name


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
@pytest.mark.parametrize("bits", BIT_WIDTHS)
def test_extracted_integers_are_what_the_supernet_simulates(
    supernet: Supernet, form: object, bits: int
) -> None:
    assert form in FORMS
    chosen = FORMS[FORMS.index(form)]
    narrow = bits % 2 == 1 and chosen.weight_symmetry is Symmetry.SYMMETRIC
    configuration = supernet.space.uniform(chosen, bits, narrow_range=narrow)
    subnet = supernet.extract(configuration, supernet.statistics())
    for elastic, layer in zip(supernet.layers, subnet.layers, strict=True):
        with torch.no_grad():
            simulated = elastic.quantized_weight().numpy()
        np.testing.assert_array_equal(layer.dequantized_weight(), simulated)
        assert layer.codes.min() >= layer.weight.low
        assert layer.codes.max() <= layer.weight.high
        assert layer.weight.per_channel == (configuration.form.weight_granularity is Granularity.PER_CHANNEL)
        for quantizer, symmetry in (
            (layer.weight, configuration.form.weight_symmetry),
            (layer.activation, configuration.form.activation_symmetry),
        ):
            assert (quantizer.scale > 0).all()
            assert (quantizer.zero_point >= quantizer.low).all()
            assert (quantizer.zero_point <= quantizer.high).all()
            if symmetry is Symmetry.SYMMETRIC:
                assert not quantizer.zero_point.any()
    searched = subnet.layers[5]
    assert (searched.weight.bits, searched.activation.bits) == (bits, bits)
    assert searched.weight.low == -(2 ** (bits - 1)) + configuration.narrow_range
    assert (subnet.layers[0].weight.bits, subnet.layers[-1].weight.bits) == (8, 8)


def test_signed_runtimes_leave_seven_bits_to_nonnegative_inputs(supernet: Supernet) -> None:
    subnet = supernet.extract(supernet.space.uniform(FORMS[4], 8, signed=True), supernet.statistics())
    first, second = subnet.layers[:2]
    assert (first.activation.low, first.activation.high) == (-128, 127)
    assert (second.activation.bits, second.activation.low, second.activation.high) == (8, 0, 127)
    tensorrt = load_catalogue()["tensorrt"]
    eight = replace(tensorrt, activation=replace(tensorrt.activation, containers={8: "int8"}))
    assert {held["activation"] for held in held_in(eight, subnet)} == {"native"}


def test_configuration_of_another_depth_is_refused(supernet: Supernet) -> None:
    short = SubnetConfiguration(form=FORMS[0], weight_bits=(8,) * 3, activation_bits=(8,) * 3)
    with pytest.raises(InvalidConfigurationError, match="18"):
        supernet.activate(short)


def test_tensors_round_trip_and_refuse_what_does_not_fit(supernet: Supernet) -> None:
    tensors = supernet.tensors()
    copy = Supernet(
        architecture="resnet20", space=supernet.space, input=supernet.input, classes=supernet.classes
    )
    copy.load_tensors(tensors)
    configuration = supernet.space.uniform(FORMS[7], 3)
    supernet.activate(configuration)
    copy.activate(configuration)
    copy.set_statistics(supernet.statistics())
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        torch.testing.assert_close(copy.eval()(x), supernet.eval()(x), rtol=0, atol=0)
    for broken in (
        np.where(np.arange(640).reshape(10, 64) == 3, np.float32(np.nan), tensors["fc.weight"]),
        tensors["fc.weight"].astype(np.int32),
    ):
        with pytest.raises(BundleError, match=r"broken: fc\.weight"):
            copy.load_tensors({**tensors, "fc.weight": broken})
    del tensors["fc.weight"]
    with pytest.raises(BundleError, match=r"fc\.weight"):
        copy.load_tensors(tensors)


@pytest.mark.parametrize("change", [{"weights": 1}, {"output_channels": 17}])
def test_layers_are_those_of_the_network(supernet: Supernet, change: dict[str, int]) -> None:
    layers = list(supernet.space.layers)
    layers[3] = replace(layers[3], **change)
    with pytest.raises(BundleError, match=f"{layers[3].name} of resnet20 has 2304 weights in 16 channels"):
        Supernet(
            architecture="resnet20",
            space=SearchSpace(tuple(layers)),
            input=supernet.input,
            classes=supernet.classes,
        )
