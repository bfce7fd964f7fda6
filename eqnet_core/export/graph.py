"""Q/DQ surgery: the nodes and initialisers that turn a float layer into a quantised one."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from eqnet_core.configuration_json import configuration_to_json
from eqnet_core.errors import UnsupportedTargetError
from eqnet_core.export.containers import activation_container, weight_container
from eqnet_core.export.packing import pack_codes
from eqnet_core.export.template import IR_VERSION, OPSET, FloatGraph
from eqnet_core.space import LayerSpec
from eqnet_core.subnet import BatchNorm, QuantizedLayer, Subnet

_TYPES = {
    "float32": onnx.TensorProto.FLOAT,
    "uint8": onnx.TensorProto.UINT8,
    "int8": onnx.TensorProto.INT8,
    "int4": onnx.TensorProto.INT4,
    "int32": onnx.TensorProto.INT32,
}

_WITHOUT_NIBBLES = (19, 8)
"""Opset and IR version of a file without 4-bit integers, for toolkits that end there (TensorRT 10.0 at opset
20, RKNN 2.3 at 19, TIDL at 19 and IR 8).
"""


@dataclass
class GraphBuilder:
    """Collects nodes and initialisers in order; the same calls give the same bytes."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[onnx.TensorProto] = field(default_factory=list)

    def node(
        self,
        operator: str,
        name: str,
        inputs: list[str],
        output: str,
        *,
        domain: str = "",
        **attributes: int | str,
    ) -> str:
        node = onnx.NodeProto(op_type=operator, name=name, input=inputs, output=[output], domain=domain)
        node.attribute.extend(onnx.helper.make_attribute(key, value) for key, value in attributes.items())
        self.nodes.append(node)
        return output

    def initializer(self, name: str, type: str, array: NDArray[np.generic]) -> str:
        """`array` stored as ONNX type `type`; int4 as two codes per byte, the first in the low nibble."""
        if type == "int4":
            # ONNX wants two's complement nibbles; flipping the sign bit of offset binary makes them.
            raw = (pack_codes(array.astype(np.int8), 4) ^ np.uint8(0x88)).tobytes()
            if array.size % 2:
                raw = raw[:-1] + bytes([raw[-1] & 0x0F])
        else:
            raw = np.ascontiguousarray(array.astype(np.dtype(type).newbyteorder("<"))).tobytes()
        self.initializers.append(
            onnx.TensorProto(name=name, data_type=_TYPES[type], dims=array.shape, raw_data=raw)
        )
        return name


def clip_values(
    builder: GraphBuilder, value: str, name: str, scale: np.float32, codes: tuple[int, int]
) -> str:
    """Clip `value` to what `codes` (lowest and highest, less their zero-point) stand for: `<name>.bounded`.

    For runtimes without unsigned types, which take nothing between the pair: TensorRT has no integer Clip.
    A bound is a whole number of steps, so that what is clipped to it rounds to that code.
    """
    bounds = [
        builder.initializer(f"{name}.{which}", "float32", np.asarray(np.float32(code) * scale))
        for which, code in zip(("low", "high"), codes, strict=True)
    ]
    return builder.node("Clip", f"{name}.clip", [value, *bounds], f"{name}.bounded")


def quantize_input(
    builder: GraphBuilder, value: str, layer: QuantizedLayer, spec: LayerSpec, *, signed: bool
) -> str:
    """QuantizeLinear -> integer Clip (where the codes are narrower than the type) -> DequantizeLinear.

    Returns the dequantised value, `<layer>.input`. The Clip works on integers, because a float Clip before
    the QuantizeLinear keeps ONNX Runtime from fusing; for `signed` runtimes it is that one (`clip_values`).
    """
    container = activation_container(layer, spec, signed=signed)
    quantizer, name = layer.activation, f"{layer.name}.input"
    scale = builder.initializer(f"{name}.scale", "float32", quantizer.scale)
    zero_point = builder.initializer(
        f"{name}.zero_point", container.type, quantizer.zero_point + container.shift
    )
    if container.clip and signed:
        bounds = (quantizer.low - int(quantizer.zero_point), quantizer.high - int(quantizer.zero_point))
        value = clip_values(builder, value, name, np.float32(quantizer.scale), bounds)
    codes = builder.node("QuantizeLinear", f"{name}.quantize", [value, scale, zero_point], f"{name}.codes")
    if container.clip and not signed:
        low = builder.initializer(f"{name}.low", container.type, np.array(quantizer.low + container.shift))
        high = builder.initializer(f"{name}.high", container.type, np.array(quantizer.high + container.shift))
        codes = builder.node("Clip", f"{name}.clip", [codes, low, high], f"{name}.clipped")
    return builder.node("DequantizeLinear", f"{name}.dequantize", [codes, scale, zero_point], name)


def dequantize_weight(builder: GraphBuilder, layer: QuantizedLayer) -> str:
    """`<layer>.weight`: integer initialiser -> DequantizeLinear, per channel (axis 0) where the scale is."""
    container, quantizer, name = weight_container(layer.weight), layer.weight, f"{layer.name}.weight"
    inputs = [
        builder.initializer(f"{name}.codes", container.type, layer.codes),
        builder.initializer(f"{name}.scale", "float32", quantizer.scale),
        builder.initializer(f"{name}.zero_point", container.type, quantizer.zero_point),
    ]
    axis: dict[str, Any] = {"axis": 0} if quantizer.per_channel else {}
    return builder.node("DequantizeLinear", f"{name}.dequantize", inputs, name, **axis)


def quantized_layer(
    builder: GraphBuilder, node: onnx.NodeProto, layer: QuantizedLayer, inputs: tuple[str, str]
) -> None:
    """`node` (a Conv or Gemm of the template) on `inputs`, its dequantised input and weight.

    A convolution's bias is added by a node of its own: inside the node, ONNX Runtime's WeightBiasQuantization
    would round it to int32 at s_x * s_w, which ruins low bit-widths. A Gemm keeps its float bias, zeros if
    need be: without one, ONNX Runtime 1.31 makes a QGemm of it, whose 16-bit sums saturate on x86 without
    VNNI (measured: logits off by a third of their deviation with unsigned, by more than all of it with signed
    activations). Where a Gemm is not the last node, that bias is zeros and the real one is added outside too:
    ahead of a QuantizeLinear, ONNX Runtime rounds it like a convolution's.
    """
    result = onnx.NodeProto()
    result.CopyFrom(node)
    del result.input[:]
    result.input.extend(inputs)
    builder.nodes.append(result)
    name = f"{layer.name}.bias"
    if node.op_type == "Gemm":
        inside = layer.bias if node.output[0] == "logits" else None
        zeros = np.zeros(len(layer.codes), np.float32)
        which = name if inside is not None else f"{name}.zeros"
        result.input.append(builder.initializer(which, "float32", zeros if inside is None else inside))
        if inside is not None:
            return
    if layer.bias is not None:
        result.output[0] = f"{layer.name}.product"
        builder.initializer(name, "float32", layer.bias.reshape(-1, *(1,) * (layer.codes.ndim - 2)))
        builder.node("Add", f"{layer.name}.add_bias", [result.output[0], name], node.output[0])


def batch_norm(builder: GraphBuilder, node: onnx.NodeProto, norm: BatchNorm) -> None:
    """The BatchNormalization node of the template with this subnet's epsilon and tensors."""
    result = onnx.NodeProto()
    result.CopyFrom(node)
    del result.attribute[:]
    result.attribute.append(onnx.helper.make_attribute("epsilon", float(norm.epsilon)))
    builder.nodes.append(result)
    for name, array in zip(node.input[1:], (norm.scale, norm.shift, norm.mean, norm.variance), strict=True):
        builder.initializer(name, "float32", array)


def pooling(node: onnx.NodeProto, constants: Mapping[str, NDArray[np.generic]]) -> list[onnx.NodeProto]:
    """A ReduceMean of the template as GlobalAveragePool, and Flatten where it drops the axes: what integer
    kernels and FPGA toolchains know.

    Raises:
        UnsupportedTargetError: a mean over other axes than height and width.
    """
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    axes = sorted(int(axis) % 4 for axis in constants.get(node.input[1], np.array([0])).reshape(-1))
    if axes != [2, 3]:
        raise UnsupportedTargetError(
            f"{node.name}: a mean over other axes than height and width is no pooling"
        )
    if attributes.get("keepdims", 1):
        return [_pool(node, node.output[0])]
    pooled = f"{node.output[0]}.pooled"
    flatten = onnx.NodeProto(
        op_type="Flatten", name=f"{node.name}.flatten", input=[pooled], output=[node.output[0]]
    )
    return [_pool(node, pooled), flatten]


def _pool(node: onnx.NodeProto, output: str) -> onnx.NodeProto:
    return onnx.NodeProto(op_type="GlobalAveragePool", name=node.name, input=[node.input[0]], output=[output])


def assemble(
    graph: FloatGraph,
    builder: GraphBuilder,
    constants: Iterable[onnx.TensorProto],
    subnet: Subnet,
    format: str,
    metadata: Mapping[str, str],
    *,
    versions: tuple[int, int] | None = None,
) -> bytes:
    """The file of `builder`'s nodes, which read `constants` and its initialisers.

    `versions` are opset and IR version, the lowest that the initialisers allow unless given. `metadata` is
    stored under `eqnet.<key>`, beside `format`, architecture, configuration, normalisation and class names.
    Equal arguments give equal bytes.
    """
    nibbles = any(tensor.data_type == onnx.TensorProto.INT4 for tensor in builder.initializers)
    opset, ir_version = versions or ((OPSET, IR_VERSION) if nibbles else _WITHOUT_NIBBLES)
    model = onnx.ModelProto(ir_version=ir_version, producer_name="eqnet")
    model.opset_import.append(onnx.OperatorSetIdProto(domain="", version=opset))
    for domain in sorted({node.domain for node in builder.nodes} - {""}):
        model.opset_import.append(onnx.OperatorSetIdProto(domain=domain, version=1))
    model.graph.name = f"{subnet.architecture}-subnet"
    model.graph.node.extend(builder.nodes)
    read = {name for node in builder.nodes for name in node.input}
    model.graph.initializer.extend(tensor for tensor in constants if tensor.name in read)
    model.graph.initializer.extend(builder.initializers)
    model.graph.input.append(graph.input)
    model.graph.output.append(graph.output)
    for key, value in sorted({**metadata, **_own_metadata(subnet, format)}.items()):
        model.metadata_props.append(onnx.StringStringEntryProto(key=f"eqnet.{key}", value=value))
    return bytes(model.SerializeToString(deterministic=True))


def _own_metadata(subnet: Subnet, format: str) -> dict[str, str]:
    return {
        "format": format,
        "architecture": subnet.architecture,
        "configuration": _json(configuration_to_json(subnet.configuration, subnet.space)),
        "input": _json(
            {
                "shape": list(subnet.input.shape),
                "mean": list(subnet.input.mean),
                "std": list(subnet.input.std),
            }
        ),
        "classes": _json(list(subnet.classes)),
    }


def _json(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
