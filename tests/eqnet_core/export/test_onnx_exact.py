from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from eqnet_core.configuration_json import configuration_from_json
from eqnet_core.errors import ArtifactError
from eqnet_core.export.inspection import check_integers
from eqnet_core.export.onnx_exact import ExactExporter
from eqnet_core.space import FORMS, SearchSpace, SubnetConfiguration
from eqnet_core.subnet import Subnet

METADATA = {"bundle": "sha256:0", "predicted_accuracy": "0.9123"}


def initializers(model: onnx.ModelProto) -> dict[str, TensorProto]:
    return {tensor.name: tensor for tensor in model.graph.initializer}


def test_every_form_holds_the_subnets_integers(exporter: ExactExporter, subnets: list[Subnet]) -> None:
    for subnet in subnets:
        model = onnx.load_from_string(exporter.render(subnet, METADATA))
        onnx.checker.check_model(model, full_check=True)
        check_integers(model, subnet)
        # the first opset with 4-bit integers only where there are any: some toolkits end at 19 or 20
        nibbles = any(tensor.data_type == TensorProto.INT4 for tensor in model.graph.initializer)
        expected = (10, 21) if nibbles else (8, 19)
        assert (model.ir_version, model.opset_import[0].version) == expected


def test_layers_are_quantised_and_batch_norm_is_kept(exporter: ExactExporter, subnets: list[Subnet]) -> None:
    model = onnx.load_from_string(exporter.render(subnets[-1], METADATA))
    operators = [node.op_type for node in model.graph.node]
    assert operators.count("DequantizeLinear") == 2 * operators.count("QuantizeLinear") == 40
    assert operators.count("Conv") == operators.count("BatchNormalization") == 19
    assert operators.count("Gemm") == 1
    assert all(len(node.input) == 2 for node in model.graph.node if node.op_type == "Conv")
    assert not [node for node in model.graph.node if node.domain]


def test_weights_of_up_to_four_bits_are_stored_in_four(
    exporter: ExactExporter, subnets: list[Subnet]
) -> None:
    for subnet in subnets[:2]:
        stored = initializers(onnx.load_from_string(exporter.render(subnet, {})))
        for layer in subnet.layers:
            tensor = stored[f"{layer.name}.weight.codes"]
            narrow = layer.weight.bits <= 4
            assert tensor.data_type == (TensorProto.INT4 if narrow else TensorProto.INT8)
            assert len(tensor.raw_data) == (-(-layer.codes.size // 2) if narrow else layer.codes.size)


def test_per_channel_scales_are_along_the_output_channels(
    exporter: ExactExporter, subnets: list[Subnet]
) -> None:
    for subnet in (subnets[0], subnets[-1]):
        model = onnx.load_from_string(exporter.render(subnet, {}))
        nodes = {node.name: node for node in model.graph.node}
        for layer in subnet.layers:
            attributes = nodes[f"{layer.name}.weight.dequantize"].attribute
            axes = [attribute.i for attribute in attributes if attribute.name == "axis"]
            assert axes == ([0] if layer.weight.per_channel else [])


def test_a_four_bit_file_is_about_half_of_an_eight_bit_one(
    exporter: ExactExporter, make_subnet: Callable[[SubnetConfiguration], Subnet], space: SearchSpace
) -> None:
    four, eight = (make_subnet(space.uniform(FORMS[4], bits)) for bits in (4, 8))
    files = [exporter.render(subnet, METADATA) for subnet in (four, eight)]
    weights = [
        sum(
            len(tensor.raw_data)
            for name, tensor in initializers(onnx.load_from_string(file)).items()
            if name.endswith(".weight.codes")
        )
        for file in files
    ]
    assert weights[0] <= 0.55 * weights[1]
    assert len(files[0]) <= 0.6 * len(files[1])


def test_metadata_says_what_the_file_is(exporter: ExactExporter, subnets: list[Subnet]) -> None:
    subnet = subnets[3]
    model = onnx.load_from_string(exporter.render(subnet, METADATA))
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert metadata["eqnet.bundle"] == "sha256:0"
    assert metadata["eqnet.predicted_accuracy"] == "0.9123"
    assert json.loads(metadata["eqnet.classes"]) == list(subnet.classes)
    assert json.loads(metadata["eqnet.input"])["mean"] == list(subnet.input.mean)
    configuration = json.loads(metadata["eqnet.configuration"])
    assert configuration_from_json(configuration, subnet.space) == subnet.configuration
    assert [value.name for value in (*model.graph.input, *model.graph.output)] == ["image", "logits"]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def test_same_subnet_same_bytes_and_no_trace_of_this_machine(
    exporter: ExactExporter, subnets: list[Subnet]
) -> None:
    file = exporter.render(subnets[5], METADATA)
    exporter.render(subnets[2], METADATA)
    assert exporter.render(subnets[5], dict(reversed(METADATA.items()))) == file
    assert b".py" not in file
    assert b"pytorch" not in file


def test_a_convolutions_bias_is_added_outside_of_it(exporter: ExactExporter, subnets: list[Subnet]) -> None:
    subnet = with_bias(subnets[1], "layer1.0.conv1")
    model = onnx.load_from_string(exporter.render(subnet, {}))
    conv = next(node for node in model.graph.node if node.name == "layer1.0.conv1")
    assert len(conv.input) == 2
    assert numpy_helper.to_array(initializers(model)["layer1.0.conv1.bias"]).shape == (16, 1, 1)


def test_a_subnet_of_another_input_is_refused(exporter: ExactExporter, subnets: list[Subnet]) -> None:
    other = replace(subnets[0], input=replace(subnets[0].input, mean=(0.0, 0.0, 0.0)))
    with pytest.raises(ArtifactError, match="normalisation"):
        exporter.render(other, {})
    with pytest.raises(ArtifactError, match="conv1"):
        exporter.render(replace(subnets[0], layers=subnets[0].layers[1:]), {})


def with_bias(subnet: Subnet, name: str) -> Subnet:
    """`subnet` with a bias in one convolution, which its BatchNorm does not take away again."""
    layers = tuple(
        replace(layer, bias=np.linspace(-0.5, 0.5, len(layer.codes), dtype=np.float32))
        if layer.name == name
        else layer
        for layer in subnet.layers
    )
    return replace(subnet, layers=layers)
