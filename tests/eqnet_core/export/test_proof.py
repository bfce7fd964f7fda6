"""Right exports pass; every kind of broken export fails, and the error says where."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper
from onnx_faults import Fault, bypass, change, tensor

from eqnet_core.errors import ProofError
from eqnet_core.export.inspection import find_layers
from eqnet_core.export.module import build_module
from eqnet_core.export.onnx_exact import ExactExporter
from eqnet_core.export.proof import natural_images, prove, simulate
from eqnet_core.space import FORMS, SearchSpace, SubnetConfiguration
from eqnet_core.subnet import BatchNorm, InputSpec, Subnet

LAYER = "layer2.1.conv1"


@pytest.fixture(scope="module")
def inputs(subnets: list[Subnet]) -> NDArray[np.float32]:
    return natural_images(subnets[0].input, 24, seed=5)


@pytest.fixture(scope="module")
def subnet(make_subnet: Callable[[SubnetConfiguration], Subnet], space: SearchSpace) -> Subnet:
    return make_subnet(space.uniform(FORMS[7], 4))


@pytest.mark.parametrize("form", range(8))
def test_right_exports_pass_far_inside_the_tolerance(
    form: int, subnets: list[Subnet], exporter: ExactExporter, inputs: NDArray[np.float32]
) -> None:
    found = prove(exporter.render(subnets[form], {}), subnets[form], inputs[:8])
    for agreement in (found.optimizer_off, found.optimizer_default):
        assert agreement.layer_difference < found.tolerance.layer / 5
        assert agreement.between_difference < found.tolerance.between / 50
        assert agreement.top1 >= 6 / 8


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("signed", [False, True])
def test_uniform_subnets_pass(
    bits: int,
    signed: bool,
    make_subnet: Callable[[SubnetConfiguration], Subnet],
    space: SearchSpace,
    exporter: ExactExporter,
    inputs: NDArray[np.float32],
) -> None:
    configuration = space.uniform(FORMS[4 * signed], bits, signed=signed, narrow_range=signed)
    subnet = make_subnet(configuration)
    assert prove(exporter.render(subnet, {}), subnet, inputs[:8]).optimizer_default.top1 >= 6 / 8


def test_the_numbers_of_a_proof(subnet: Subnet, exporter: ExactExporter, inputs: NDArray[np.float32]) -> None:
    file = exporter.render(subnet, {})
    found = prove(file, subnet, inputs)
    assert found.images == 24
    assert found.lock_step_images == 8
    assert prove(file, subnet, inputs) == found
    document = found.to_json()
    assert document["optimizer_default"]["top1"] == pytest.approx(found.optimizer_default.top1, abs=1e-3)
    assert document["tolerance"]["layer"] == found.tolerance.layer


def flip_code(model: onnx.ModelProto) -> None:
    stored = tensor(model, f"{LAYER}.weight.codes")
    raw = bytearray(stored.raw_data)
    raw[700] ^= 1
    stored.raw_data = bytes(raw)


def first(factor: float) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    return lambda array: array * np.where(np.arange(array.size).reshape(array.shape) == 3, factor, 1)


FAULTS: dict[str, Fault] = {
    "activation zero-point": change(f"{LAYER}.input.zero_point", lambda a: a + 1),
    "weight zero-point": change(f"{LAYER}.weight.zero_point", lambda a: a + (a < 7)),
    "clip one bit too wide": change(f"{LAYER}.input.high", lambda a: 2 * a + 1),
    "clip one bit too narrow": change(f"{LAYER}.input.high", lambda a: a // 2),
    "no clip": bypass(f"{LAYER}.input.clip"),
    "activation scale off by 0.1 %": change(f"{LAYER}.input.scale", lambda a: a * 1.001),
    "one channel's scale off by 1 %": change(f"{LAYER}.weight.scale", first(1.01)),
    "one code of 9,216": flip_code,
    "one channel's variance off by 1 %": change("layer2.1.bn1.running_var", first(1.01)),
    "no ReLU": bypass("relu.9"),
    "one class's bias off by 0.01": change("fc.bias", lambda a: a + 0.01 * (np.arange(10) == 3)),
}
ONLY_BY_RUNNING = ("variance", "ReLU", "bias")


@pytest.mark.parametrize("name", FAULTS)
def test_a_broken_export_fails(
    name: str, subnet: Subnet, exporter: ExactExporter, inputs: NDArray[np.float32]
) -> None:
    model = onnx.load_from_string(exporter.render(subnet, {}))
    FAULTS[name](model)
    with pytest.raises(ProofError):
        prove(model.SerializeToString(), subnet, inputs)


@pytest.mark.parametrize("operator", ["Gather", "Mul"])
def test_nothing_comes_after_the_last_layer(
    subnet: Subnet, exporter: ExactExporter, inputs: NDArray[np.float32], operator: str
) -> None:
    """Classes in another order, or logits 5 % larger: the bounds of whole runs alone would let those pass."""
    model = onnx.load_from_string(exporter.render(subnet, {}))
    final = next(node for node in model.graph.node if node.output[0] == "logits")
    final.output[0] = "before"
    operand = np.arange(10)[::-1] if operator == "Gather" else np.float32(1.05)
    model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(operand), "operand"))
    axis = {"axis": 1} if operator == "Gather" else {}
    model.graph.node.append(onnx.helper.make_node(operator, ["before", "operand"], ["logits"], **axis))
    with pytest.raises(ProofError, match="changes the logits after the last layer, fc"):
        prove(model.SerializeToString(), subnet, inputs)


@pytest.mark.parametrize(
    ("change", "problem"),
    [(lambda logits: logits[:, ::-1], "of the classes agree"), (lambda logits: 1.3 * logits, "on average")],
    ids=["classes", "logits"],
)
def test_whole_runs_are_compared_too(
    subnet: Subnet,
    exporter: ExactExporter,
    inputs: NDArray[np.float32],
    change: Callable[[NDArray[np.float32]], NDArray[np.float32]],
    problem: str,
) -> None:
    expected = change(simulate(build_module(subnet), inputs))
    with pytest.raises(ProofError, match=problem):
        prove(exporter.render(subnet, {}), subnet, inputs, expected=expected)


@pytest.mark.parametrize("name", [name for name in FAULTS if name != "no clip"])
def test_running_alone_finds_it_too(
    name: str,
    subnet: Subnet,
    exporter: ExactExporter,
    inputs: NDArray[np.float32],
) -> None:
    """The lock-step does not lean on the comparison of integers, and names the layer."""

    def inspect(model: onnx.ModelProto, subnet: Subnet) -> dict[str, tuple[str, str]]:
        layers = find_layers(model, [layer.name for layer in subnet.layers])
        return {name: (nodes.value, nodes.output) for name, nodes in layers.items()}

    model = onnx.load_from_string(exporter.render(subnet, {}))
    FAULTS[name](model)
    with pytest.raises(ProofError, match=f"optimiser off.*({LAYER}|a layer's input|fc)"):
        prove(model.SerializeToString(), subnet, inputs[:8], inspect=inspect)


def test_a_float_bias_that_onnx_runtime_rounds_fails_at_its_default(
    make_subnet: Callable[[SubnetConfiguration], Subnet],
    space: SearchSpace,
    exporter: ExactExporter,
    inputs: NDArray[np.float32],
) -> None:
    """BatchNorm folded into a float bias is right by the standard; WeightBiasQuantization ruins it."""
    subnet = make_subnet(space.uniform(FORMS[0], 2))
    channels = 32
    plain = BatchNorm(
        scale=np.ones(channels, np.float32),
        shift=np.zeros(channels, np.float32),
        mean=np.zeros(channels, np.float32),
        variance=np.full(channels, 1 - 1e-5, np.float32),
        epsilon=1e-5,  # torch 2.11 refuses 0
    )
    bias = np.linspace(-0.4, 0.4, channels, dtype=np.float32)
    layers = tuple(replace(layer, bias=bias) if layer.name == LAYER else layer for layer in subnet.layers)
    folded = replace(subnet, layers=layers, batch_norms={**subnet.batch_norms, "layer2.1.bn1": plain})
    model = onnx.load_from_string(exporter.render(folded, {}))
    bypass("layer2.1.bn1")(model)
    prove(model.SerializeToString(), folded, inputs[:8])
    conv = next(node for node in model.graph.node if node.name == LAYER)
    add = next(node for node in model.graph.node if node.name == f"{LAYER}.add_bias")
    conv.input.append(add.input[1])
    conv.output[0] = add.output[0]
    model.graph.node.remove(add)
    del tensor(model, f"{LAYER}.bias").dims[1:]
    with pytest.raises(ProofError, match="optimiser at its default"):
        prove(model.SerializeToString(), folded, inputs)


def test_a_file_of_another_subnet_or_of_none_fails(
    subnets: list[Subnet], subnet: Subnet, exporter: ExactExporter, inputs: NDArray[np.float32]
) -> None:
    with pytest.raises(ProofError, match="not the subnet's"):
        prove(exporter.render(subnets[0], {}), subnet, inputs)
    with pytest.raises(ProofError, match="not a valid ONNX file"):
        prove(b"not ONNX", subnet, inputs)


def test_natural_images_look_like_photographs_to_a_spectrum() -> None:
    spec = InputSpec(shape=(3, 32, 32), mean=(0.5, 0.5, 0.4), std=(0.25, 0.25, 0.25))
    inputs = natural_images(spec, 64, seed=2)
    assert np.array_equal(inputs, natural_images(spec, 64, seed=2))
    assert not np.array_equal(inputs, natural_images(spec, 64, seed=3))
    pixels = inputs * 0.25 + np.array(spec.mean).reshape(-1, 1, 1)
    assert inputs.dtype == np.float32
    assert pixels.min() > -1e-6
    assert pixels.max() < 1 + 1e-6
    # power falls with the frequency, where white noise has the same everywhere
    power = (np.abs(np.fft.fft2(inputs)) ** 2).mean((0, 1))
    assert 60 < power[0, 2] / power[0, 12] < 240
    neighbours = np.corrcoef(inputs[..., 1:].ravel(), inputs[..., :-1].ravel())[0, 1]
    channels = np.corrcoef(inputs[:, 0].ravel(), inputs[:, 1].ravel())[0, 1]
    assert neighbours > 0.85
    assert channels > 0.7
