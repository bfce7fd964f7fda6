"""Every rule of every entry of the catalogue, on the files that the device gets; `test_qonnx` has FINN's."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from eqnet_core.devices import Device, load_catalogue
from eqnet_core.devices.rules import held_in
from eqnet_core.errors import UnsupportedTargetError
from eqnet_core.export.conformance import check_encodings, check_files, check_onnx
from eqnet_core.export.encodings import encodings
from eqnet_core.export.onnx_exact import ExactExporter
from eqnet_core.export.onnx_integer import IntegerExporter
from eqnet_core.export.state_dict import read_subnet, save_subnet
from eqnet_core.space import BIT_WIDTHS, FORMS, SearchSpace, SubnetConfiguration
from eqnet_core.subnet import Subnet

CATALOGUE = load_catalogue()
Files = Mapping[str, bytes]


@pytest.fixture(scope="module")
def files_of(
    make_subnet: Callable[[SubnetConfiguration], Subnet],
    space: SearchSpace,
    exporter: ExactExporter,
    integer_exporter: IntegerExporter,
) -> Callable[[Device], Files]:
    """`files_of(device)`: all artifacts of a subnet with every bit-width, built once per form and range."""
    made: dict[SubnetConfiguration, Files] = {}

    def build(device: Device) -> Files:
        bits = np.resize(np.array(BIT_WIDTHS), len(space.searchable))
        profile = device.profile
        configuration = SubnetConfiguration(
            form=profile.form,
            weight_bits=tuple(bits.tolist()),
            activation_bits=tuple(bits[::-1].tolist()),
            narrow_range=profile.narrow_range,
            signed=profile.signed,
        )
        if configuration not in made:
            subnet = make_subnet(configuration)
            made[configuration] = {
                "encodings.json": encodings(subnet),
                "model.onnx": exporter.render(subnet, {}),
                "model.integer.onnx": integer_exporter.render(integer_exporter.fold(subnet), {}),
                "model.safetensors": save_subnet(subnet, {}),
            }
        return made[configuration]

    return build


def arrays(model: onnx.ModelProto) -> dict[str, Any]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


@pytest.mark.parametrize("name", [name for name in CATALOGUE if name != "fpga-mixed"])
def test_the_artifact_keeps_to_every_rule_of_the_entry(
    name: str, files_of: Callable[[Device], Files], tmp_path: Path
) -> None:
    """The rules once more, written down plainly: not the code that the build checks with."""
    device = CATALOGUE[name]
    profile, files = device.profile, files_of(device)
    check_files(device, files)

    (tmp_path / "model.safetensors").write_bytes(files["model.safetensors"])
    subnet = read_subnet(tmp_path / "model.safetensors")
    assert {layer.weight.bits for layer in subnet.layers} == set(BIT_WIDTHS)
    for layer, held in zip(subnet.layers, held_in(device, subnet), strict=True):
        native = layer.weight.bits in {8: (8,), 4: (4, 8), 2: BIT_WIDTHS}[smallest_native(device)]
        assert held["weight"] == ("native" if native else "held in int8")
        if profile.narrow_range:
            assert layer.codes.min() > -(2 ** (layer.weight.bits - 1))

    model = onnx.load_from_string(files[device.file])
    constants = arrays(model)
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    producers = {output: node for node in model.graph.node for output in node.output}
    computing = [node for node in model.graph.node if node.op_type in ("Conv", "Gemm")]
    assert [node.name for node in computing] == [layer.name for layer in subnet.layers]
    for node in computing:
        activation, weight = (producers[value] for value in node.input[:2])
        assert activation.op_type == weight.op_type == "DequantizeLinear"
        codes, scale, zero_point = (constants[value] for value in weight.input)
        kind = kinds[weight.input[0]]
        assert kind == TensorProto.INT8 or (kind == TensorProto.INT4 and "int4" in device.weight.file_types)
        assert (scale > 0).all()
        assert not zero_point.astype(int).any()
        if "per_channel" in [str(value) for value in device.granularities] and scale.ndim:
            assert scale.shape == codes.shape[:1]
            assert [attribute.i for attribute in weight.attribute if attribute.name == "axis"] == [0]
        else:
            assert scale.shape == ()
        if profile.narrow_range:
            assert codes.astype(int).min() > (-8 if kind == TensorProto.INT4 else -128)
        scale, zero_point = (constants[value] for value in activation.input[1:])
        assert scale.shape == ()
        assert scale > 0
        if profile.signed:
            assert zero_point.dtype == np.int8
        if profile.activation_symmetry == "symmetric":
            assert int(zero_point) in ((0,) if profile.signed else (0, 128))
    signed = {node.output[0] for node in model.graph.node if node.op_type == "QuantizeLinear"}
    assert signed, "no activation is quantised"


def smallest_native(device: Device) -> int:
    return min(bits for bits in BIT_WIDTHS if device.weight.held(bits) == "native")


@pytest.mark.parametrize("name", [name for name in CATALOGUE if "htp" in name])
def test_htp_gets_symmetric_weights_in_its_encodings(name: str, files_of: Callable[[Device], Files]) -> None:
    device = CATALOGUE[name]
    document = json.loads(files_of(device)["encodings.json"])
    expected = "PER_TENSOR" if name in ("qualcomm-htp-v66", "qualcomm-htp-v68") else "PER_CHANNEL"
    assert {entry["enc_type"] for entry in document["param_encodings"]} == {expected}
    assert all(entry["is_sym"] for entry in document["param_encodings"])
    assert {entry["bw"] for entry in document["param_encodings"]} == set(BIT_WIDTHS)
    assert {entry["enc_type"] for entry in document["activation_encodings"]} == {"PER_TENSOR"}


def replaced(content: bytes, name: str, change: Callable[[Any], Any]) -> bytes:
    """The ONNX file with another array in the place of one constant."""
    model = onnx.load_from_string(content)
    (tensor,) = [tensor for tensor in model.graph.initializer if tensor.name == name]
    tensor.CopyFrom(numpy_helper.from_array(np.asarray(change(numpy_helper.to_array(tensor).copy())), name))
    return bytes(model.SerializeToString())


def lowest_code(codes: Any) -> Any:
    codes.reshape(-1)[0] = -128
    return codes


@pytest.mark.parametrize(
    ("name", "constant", "change", "place"),
    [
        ("tensorrt", "conv1.weight.zero_point", lambda z: z + np.int8(1), "/layers/conv1/weight has a zero"),
        ("tensorrt", "fc.weight.scale", np.negative, "/layers/fc/weight has a step size that is not"),
        ("openvino-cpu", "fc.weight.codes", lowest_code, "/layers/fc/weight uses the lowest code"),
        ("litert-int8", "conv1.weight.codes", lowest_code, "/layers/conv1/weight uses the lowest code"),
        ("litert-int8", "fc.weight.scale", np.negative, "/layers/fc/weight has a step size that is not"),
        ("cmsis-nn", "fc.weight.zero_point", lambda z: z + 1, "/layers/fc/weight has a zero-point other"),
        ("cmsis-nn", "fc.weight.scale", lambda s: s[0], "/layers/fc/weight has per_tensor step sizes"),
        ("litert-int8", "fc.weight.codes", lambda c: c.astype(np.uint8), "/layers/fc/weight is in uint8"),
        (
            "ti-tidl",
            "layer1.0.conv1.input.zero_point",
            lambda z: z + np.uint8(1),
            "/layers/layer1.0.conv1/activation has a zero-point other than 0",
        ),
        (
            "qualcomm-htp-v66",
            "layer1.0.conv1.weight.scale",
            lambda s: np.full(16, s),
            "/layers/layer1.0.conv1/weight has per_channel step sizes",
        ),
        ("qualcomm-htp-v73", "fc.input.scale", np.zeros_like, "/layers/fc/activation has a step size that"),
    ],
)
def test_a_file_that_breaks_a_rule_is_refused_by_name(
    name: str, constant: str, change: Callable[[Any], Any], place: str, files_of: Callable[[Device], Files]
) -> None:
    device = CATALOGUE[name]
    broken = replaced(files_of(device)[device.file], constant, change)
    with pytest.raises(UnsupportedTargetError) as error:
        check_onnx(device, broken)
    assert place in str(error.value)
    layer = place.split("/")[2]
    assert all(violation.pointer.startswith(f"/layers/{layer}/") for violation in error.value.violations)


def test_channels_along_another_axis_are_refused(files_of: Callable[[Device], Files]) -> None:
    device = CATALOGUE["qualcomm-htp-v73"]
    model = onnx.load_from_string(files_of(device)[device.file])
    for node in model.graph.node:
        if node.name == "conv1.weight.dequantize":
            node.attribute[0].i = 1
    with pytest.raises(UnsupportedTargetError, match="/layers/conv1/weight has its channels along axis 1"):
        check_onnx(device, model.SerializeToString())


def test_the_file_of_another_device_is_refused(files_of: Callable[[Device], Files]) -> None:
    """TensorRT has no unsigned activations and no 4-bit weights beside integer activations."""
    files = files_of(CATALOGUE["qualcomm-htp-v73"])
    with pytest.raises(UnsupportedTargetError) as error:
        check_onnx(CATALOGUE["tensorrt"], files["model.onnx"])
    message = str(error.value)
    assert "/layers/conv1/activation is in uint8" in message
    assert "weight is in int4" in message


def test_a_target_of_both_signs_takes_files_of_either(files_of: Callable[[Device], Files]) -> None:
    """A signed file has float biases, which an unsigned one may not have."""
    either = CATALOGUE["onnxruntime-cpu"]
    check_onnx(either, files_of(either)["model.integer.onnx"])
    check_onnx(either, files_of(CATALOGUE["tensorrt"])["model.integer.onnx"])


def test_tensorrt_refuses_integer_clips_and_biases(
    make_subnet: Callable[[SubnetConfiguration], Subnet],
    integer_exporter: IntegerExporter,
    files_of: Callable[[Device], Files],
    space: SearchSpace,
) -> None:
    """What other devices get in the same type: a Clip between the pair, a bias in int32."""
    subnet = make_subnet(space.uniform(FORMS[4], 4))
    content = integer_exporter.render(integer_exporter.fold(subnet), {})
    with pytest.raises(UnsupportedTargetError) as error:
        check_onnx(CATALOGUE["tensorrt"], content)
    assert "/layers/conv1/bias is in int32" in str(error.value)
    assert "activation has a Clip of integers" in str(error.value)
    check_onnx(CATALOGUE["tensorrt"], files_of(CATALOGUE["tensorrt"])["model.integer.onnx"])


@pytest.mark.parametrize(
    ("kind", "change", "fault"),
    [
        ("param_encodings", {"is_sym": False}, "/layers/conv1/weight is not symmetric"),
        ("param_encodings", {"bw": 16}, "/layers/conv1/weight has 16 bits"),
        ("param_encodings", {"enc_type": "PER_CHANNEL"}, "/layers/conv1/weight is per_channel"),
        ("activation_encodings", {"dtype": "FLOAT"}, "/layers/conv1/input is no INT encoding"),
    ],
)
def test_encodings_that_break_a_rule_are_refused(
    kind: str, change: dict[str, Any], fault: str, files_of: Callable[[Device], Files]
) -> None:
    device = CATALOGUE["qualcomm-htp-v66"]
    document = json.loads(files_of(device)["encodings.json"])
    document[kind][0] |= change
    with pytest.raises(UnsupportedTargetError) as error:
        check_encodings(device, json.dumps(document).encode())
    assert fault in str(error.value)


def test_without_tensor_ranges_the_reason_is_named(files_of: Callable[[Device], Files]) -> None:
    device = CATALOGUE["openvino-cpu"]
    files = {name: content for name, content in files_of(device).items() if name != "model.integer.onnx"}
    with pytest.raises(
        UnsupportedTargetError, match=r"is in int4.*needs a bundle with tensor ranges"
    ) as refused:
        check_files(device, files)
    assert refused.value.violations


@pytest.mark.parametrize(
    ("zero_point", "highest", "accepted"),
    [
        (127, 255, False),
        (128, 255, True),
        (129, 255, False),
        (8, 15, True),
        (8, 255, False),
        (128, 15, False),
    ],
)
def test_a_symmetric_target_takes_the_middle_of_the_codes_for_zero_and_nothing_else(
    zero_point: int, highest: int, accepted: bool, files_of: Callable[[Device], Files]
) -> None:
    device = CATALOGUE["ti-tidl-tda4vm"]
    assert isinstance(device, Device)
    model = onnx.load_from_string(files_of(device)[device.file])
    (stored,) = (tensor for tensor in model.graph.initializer if tensor.name == "image.zero_point")
    assert numpy_helper.to_array(stored) == 128
    stored.CopyFrom(numpy_helper.from_array(np.array(zero_point, np.uint8), stored.name))
    if highest < 255:  # as signed activations of fewer bits than 8, which this network does not have
        (quantize, dequantize) = (node for node in model.graph.node if stored.name in node.input)
        bounds = [np.array(0, np.uint8), np.array(highest, np.uint8)]
        model.graph.initializer.extend(
            numpy_helper.from_array(bound, f"bound{i}") for i, bound in enumerate(bounds)
        )
        clip = onnx.helper.make_node("Clip", [quantize.output[0], "bound0", "bound1"], ["clipped"])
        dequantize.input[0] = "clipped"
        model.graph.node.insert(list(model.graph.node).index(dequantize), clip)
    if accepted:
        check_onnx(device, model.SerializeToString())
    else:
        with pytest.raises(UnsupportedTargetError, match="has a zero-point other than 0"):
            check_onnx(device, model.SerializeToString())
