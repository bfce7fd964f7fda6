from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto

from eqnet_core.errors import BundleError
from eqnet_core.export.folding import weight_room
from eqnet_core.export.integer_inspection import check_integer_file
from eqnet_core.export.onnx_exact import ExactExporter
from eqnet_core.export.onnx_integer import IntegerExporter
from eqnet_core.export.plan import plan_integers
from eqnet_core.ranges import TensorRanges
from eqnet_core.space import FORMS, SearchSpace, SubnetConfiguration
from eqnet_core.subnet import Subnet


def optimized(file: bytes, folder: Path) -> Counter[str]:
    """Operators of the graph that ONNX Runtime really runs."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node)


def test_every_form_is_valid_and_holds_the_folded_integers(
    integer_exporter: IntegerExporter, subnets: list[Subnet]
) -> None:
    for subnet in subnets:
        integers = integer_exporter.fold(subnet)
        model = onnx.load_from_string(integer_exporter.render(integers, {"bundle": "sha256:0"}))
        onnx.checker.check_model(model, full_check=True)
        check_integer_file(model, integers, integer_exporter.plan)
        metadata = {entry.key: entry.value for entry in model.metadata_props}
        assert metadata["eqnet.format"] == "eqnet-integer/1"
        assert metadata["eqnet.bundle"] == "sha256:0"


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_every_convolution_and_the_classifier_run_on_integer_kernels(
    bits: int,
    integer_exporter: IntegerExporter,
    make_subnet: Callable[[SubnetConfiguration], Subnet],
    space: SearchSpace,
    tmp_path: Path,
) -> None:
    subnet = make_subnet(space.uniform(FORMS[7], bits))
    operators = optimized(integer_exporter.render(integer_exporter.fold(subnet), {}), tmp_path)
    assert operators["QLinearConv"] == 19
    assert operators["QLinearAdd"] == 9
    assert operators["QGemm"] == operators["QLinearGlobalAveragePool"] == 1
    assert not {"Conv", "Gemm", "MatMul", "Add", "Relu", "BatchNormalization"} & set(operators)


@pytest.mark.parametrize("bits", [3, 8])
def test_runtimes_without_unsigned_types_get_int8_and_zero_point_zero(
    bits: int,
    integer_exporter: IntegerExporter,
    make_subnet: Callable[[SubnetConfiguration], Subnet],
    space: SearchSpace,
) -> None:
    """TensorRT takes no Clip between a pair, clips no integers and dequantises no int32."""
    subnet = make_subnet(space.uniform(FORMS[4], bits, signed=True, narrow_range=True))
    model = onnx.load_from_string(integer_exporter.render(integer_exporter.fold(subnet), {}))
    assert (model.ir_version, model.opset_import[0].version) == (8, 19)
    producers = {output: node.op_type for node in model.graph.node for output in node.output}
    operators = Counter(node.op_type for node in model.graph.node)
    assert operators["Clip"] + operators["Relu"] >= 19
    assert operators["Clip"] if bits < 8 else not operators["Clip"]
    for node in model.graph.node:
        made_by = [producers.get(value) for value in node.input]
        if node.op_type == "DequantizeLinear":
            assert made_by[0] in ("QuantizeLinear", None)
        elif node.op_type in ("Conv", "Gemm"):
            assert made_by == ["DequantizeLinear", "DequantizeLinear", None]
    types = {TensorProto.INT8, TensorProto.FLOAT, TensorProto.INT64}  # the last of shapes
    assert {tensor.data_type for tensor in model.graph.initializer} <= types
    for tensor in model.graph.initializer:
        if tensor.name.endswith(".zero_point"):
            assert tensor.data_type == TensorProto.INT8
            assert not any(tensor.raw_data)


def test_weights_leave_sixteen_bit_sums_room(
    integer_exporter: IntegerExporter, subnets: list[Subnet]
) -> None:
    """x86 without VNNI adds two products of 8-bit codes in 16 bits: right on every CPU means no overflow."""
    for subnet in subnets:
        integers = integer_exporter.fold(subnet)
        for layer in integers.layers.values():
            largest = 255 if subnet.configuration.signed else layer.input.high
            assert 2 * int(np.abs(layer.codes.astype(int)).max()) * largest <= 32767
            assert weight_room(layer.input) >= 64


def test_folding_keeps_the_integers_up_to_seven_bits(
    integer_exporter: IntegerExporter, subnets: list[Subnet]
) -> None:
    """Beyond the shift, the codes are the subnet's: q - z, with the sign of BatchNorm's factor."""
    for subnet in subnets:
        integers = integer_exporter.fold(subnet)
        norms = {step.layer: step.norm for step in integer_exporter.plan.steps}
        for layer in subnet.layers:
            folded, norm = integers.layers[layer.name], norms[layer.name]
            if folded.rounded:
                assert layer.weight.bits >= 7
                continue
            factor = np.ones(len(layer.codes))
            if norm is not None:
                found = subnet.batch_norms[norm]
                factor = found.scale / np.sqrt(found.variance + found.epsilon)
            column = (-1, *(1,) * (layer.codes.ndim - 1))
            expected = layer.dequantized_weight() * factor.reshape(column)
            ours = folded.codes * folded.scale.reshape(column)
            np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-12)


def test_only_shared_tensors_are_rounded_once_more(
    integer_exporter: IntegerExporter,
    make_subnet: Callable[[SubnetConfiguration], Subnet],
    space: SearchSpace,
) -> None:
    shared = {
        name for tensor in integer_exporter.plan.tensors.values() if tensor.shared for name in tensor.layers
    }
    assert len(shared) == 9
    # 7 bits are all that 8-bit codes have where nothing is negative and the runtime is signed, but only there
    for bits, signed, expected in (
        (4, False, shared),
        (7, False, shared),
        (7, True, set()),
        (8, False, set()),
    ):
        integers = integer_exporter.fold(make_subnet(space.uniform(FORMS[5], bits, signed=signed)))
        assert integers.requantized == expected


@pytest.mark.parametrize("bits", [4, 8])
def test_no_layer_clips_what_others_read_too(
    bits: int,
    exporter: ExactExporter,
    make_subnet: Callable[[SubnetConfiguration], Subnet],
    space: SearchSpace,
) -> None:
    plan = plan_integers(exporter.graph)
    count = len(plan.ranged)
    wide = TensorRanges(
        names=plan.ranged, low=np.full(count, -1, np.float32), high=np.full(count, 100, np.float32)
    )
    integers = IntegerExporter(exporter.graph, wide).fold(make_subnet(space.uniform(FORMS[4], bits)))
    shared = [integers.tensors[tensor.name] for tensor in plan.tensors.values() if tensor.shared]
    assert len(shared) > 8
    for quantizer in shared:
        assert quantizer.scale * (quantizer.high - quantizer.zero_point) == pytest.approx(100, rel=1e-5)


def test_int32_biases_are_within_half_a_step_and_fit(
    integer_exporter: IntegerExporter, subnets: list[Subnet]
) -> None:
    for subnet in subnets:
        for layer in integer_exporter.fold(subnet).layers.values():
            assert np.abs(layer.bias.astype(np.int64)).max() <= 1 << 30
            assert np.array_equal(layer.bias_scale, (layer.input.scale * layer.scale).astype(np.float32))
            assert (layer.scale > 0).all()


def test_same_subnet_same_bytes(integer_exporter: IntegerExporter, subnets: list[Subnet]) -> None:
    file = integer_exporter.render(integer_exporter.fold(subnets[5]), {"a": "1"})
    integer_exporter.render(integer_exporter.fold(subnets[2]), {})
    assert integer_exporter.render(integer_exporter.fold(subnets[5]), {"a": "1"}) == file
    assert b".py" not in file


def test_a_dead_channel_keeps_its_bias(
    integer_exporter: IntegerExporter,
    make_subnet: Callable[[SubnetConfiguration], Subnet],
    space: SearchSpace,
) -> None:
    subnet = make_subnet(space.uniform(FORMS[4], 4))
    norm = subnet.batch_norms["layer1.0.bn1"]
    norm.scale[:3] = (0.0, 1e-30, -1e-12)
    norm.shift[:3] = (0.5, -0.5, 2.0)
    layer = integer_exporter.fold(subnet).layers["layer1.0.conv1"]
    np.testing.assert_allclose((layer.bias * layer.bias_scale)[:3], [0.5, -0.5, 2.0], rtol=1e-6)
    assert not layer.codes[:3].any()


def test_ranges_must_name_every_tensor(exporter: ExactExporter, integer_exporter: IntegerExporter) -> None:
    names = integer_exporter.plan.ranged[1:]
    ranges = TensorRanges(
        names=names, low=np.full(len(names), -1, np.float32), high=np.ones(len(names), np.float32)
    )
    with pytest.raises(BundleError, match=r"conv1\.output"):
        IntegerExporter(exporter.graph, ranges)
