"""`model.qonnx.onnx`: quantisation as `Quant` nodes, which have every bit-width, for FINN and hls4ml.

The dialect is QONNX (Pappalardo et al. 2022, arXiv:2206.07527). A Quant takes float values to float values:
scale * (clip(round(x / scale + zero-point)) - zero-point), with the codes that its bit-width and the
attributes `signed` and `narrow` allow. Weights are the values that their codes stand for, and a Quant
of their own says which codes: x / scale gives them back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import onnx.parser
from numpy.typing import NDArray
from onnx import numpy_helper

from eqnet_core.errors import ProofError, UnsupportedTargetError, Violation
from eqnet_core.export.graph import GraphBuilder, pooling
from eqnet_core.export.template import FloatGraph
from eqnet_core.profile import escape_pointer
from eqnet_core.subnet import QuantizedLayer, Quantizer, Subnet

DOMAIN = "qonnx.custom_op.general"

FORMAT = "eqnet-qonnx/1"
"""Changes whenever the same subnet would give other bytes."""

VERSIONS = (13, 8)
"""Opset and IR version. 13 is the last opset before BatchNormalization has a training mode; qonnx 1.0 prefers
11 and reads it (tested).
"""

_QUANT = f"""
<domain: "{DOMAIN}", opset_import: ["": 13]>
Quant <signed, narrow, rounding_mode> (x, scale, zeropt, bitwidth) => (y) {{
    one = Constant <value = float {{1}}> ()
    two = Constant <value = float {{2}}> ()
    signed_integer = Constant <value_int: int = @signed> ()
    narrow_integer = Constant <value_int: int = @narrow> ()
    is_signed = Cast <to = 1> (signed_integer)
    is_narrow = Cast <to = 1> (narrow_integer)
    magnitude_bits = Sub (bitwidth, is_signed)
    codes = Pow (two, magnitude_bits)
    below = Sub (is_narrow, codes)
    low = Mul (is_signed, below)
    is_unsigned = Sub (one, is_signed)
    left_out = Mul (is_unsigned, is_narrow)
    last = Sub (codes, one)
    high = Sub (last, left_out)
    divided = Div (x, scale)
    shifted = Add (divided, zeropt)
    rounded = Round (shifted)
    bounded = Min (rounded, high)
    code = Max (bounded, low)
    difference = Sub (code, zeropt)
    y = Mul (difference, scale)
}}
"""
"""What Quant computes, from its specification: ONNX Runtime has none. Rounding is ROUND, half to even."""


@dataclass(frozen=True, kw_only=True)
class Quant:
    """One Quant node of a file: what goes in, its parameters, and the lowest and highest code."""

    value: str
    bits: int
    scale: NDArray[np.float32]
    zero_point: NDArray[np.float32]
    rounding: str
    codes: tuple[int, int]

    @property
    def type(self) -> str:
        """The integer type of its codes: `uint3`, `int8`."""
        return f"{'u' if self.codes[0] == 0 else ''}int{self.bits}"


def check_symmetric(subnet: Subnet) -> None:
    """Raise UnsupportedTargetError for zero-points other than 0, which no reader of the dialect takes."""
    violations = [
        Violation(f"/layers/{escape_pointer(layer.name)}/{side}", "has a zero-point other than 0")
        for layer in subnet.layers
        for side, quantizer in (("weight", layer.weight), ("activation", layer.activation))
        if quantizer.zero_point.any()
    ]
    if violations:
        raise UnsupportedTargetError(
            "model.qonnx.onnx is for symmetric weights and activations: what reads it takes zero-points of 0",
            violations=violations,
        )


def quant_input(builder: GraphBuilder, value: str, layer: QuantizedLayer) -> str:
    """`<layer>.input`: the value that the layer computes with."""
    return _quant(builder, value, layer.activation, f"{layer.name}.input", layer.activation.scale)


def quant_weight(builder: GraphBuilder, layer: QuantizedLayer) -> str:
    """`<layer>.weight`: the float values of the codes, and the Quant that says so."""
    values = builder.initializer(f"{layer.name}.weight.values", "float32", layer.dequantized_weight())
    return _quant(builder, values, layer.weight, f"{layer.name}.weight", _weight_scale(layer))


def _weight_scale(layer: QuantizedLayer) -> NDArray[np.float32]:
    """In a shape that broadcasts over the weight."""
    scale = layer.weight.scale
    return scale.reshape(-1, *(1,) * (layer.codes.ndim - 1)) if layer.weight.per_channel else scale


def _quant(
    builder: GraphBuilder, value: str, quantizer: Quantizer, name: str, scale: NDArray[np.float32]
) -> str:
    signed = quantizer.low < 0
    # From the codes: a runtime without unsigned types has 7 bits of 8, half of the codes.
    bits = quantizer.high.bit_length() + signed
    inputs = [
        value,
        builder.initializer(f"{name}.scale", "float32", scale),
        builder.initializer(f"{name}.zero_point", "float32", np.zeros((), np.float32)),
        builder.initializer(f"{name}.bits", "float32", np.asarray(bits, np.float32)),
    ]
    return builder.node(
        "Quant",
        f"{name}.quant",
        inputs,
        name,
        domain=DOMAIN,
        signed=int(signed),
        narrow=int(signed and quantizer.low == -quantizer.high),
        rounding_mode="ROUND",
    )


def single_image(graph: FloatGraph) -> FloatGraph:
    """`graph` for one image at a time, as its readers build a network, with poolings that they know."""
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.constants}
    nodes = [
        other
        for node in graph.nodes
        for other in (pooling(node, constants) if node.op_type == "ReduceMean" else [node])
    ]
    input, output = onnx.ValueInfoProto(), onnx.ValueInfoProto()
    for value, given in ((input, graph.input), (output, graph.output)):
        value.CopyFrom(given)
        value.type.tensor_type.shape.dim[0].dim_value = 1
    return replace(graph, nodes=tuple(nodes), input=input, output=output)


def runnable(content: bytes) -> bytes:
    """The file for ONNX Runtime and any number of images: with the definition of Quant, which QONNX's readers
    have themselves.
    """
    model = onnx.load_from_string(content)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    model.functions.append(onnx.parser.parse_function(_QUANT))
    return bytes(model.SerializeToString())


def find_quants(model: onnx.ModelProto, names: list[str]) -> dict[str, tuple[Quant, Quant, str]]:
    """Input, weight and name of the result (bias included) of every layer in `names`.

    Raises:
        ProofError: a layer has no node, or its input or weight is not from a Quant of constant parameters;
        names it.
    """
    named = {node.name: node for node in model.graph.node}
    producers = {output: node for node in model.graph.node for output in node.output}
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    layers = {}
    for name in names:
        if name not in named:
            raise ProofError(f"the export has no node for the layer {name}")
        value, weight = (
            _read(producers.get(source), tensors, f"{name}.{side}")
            for side, source in zip(("input", "weight"), named[name].input, strict=False)
        )
        layers[name] = value, weight, named.get(f"{name}.add_bias", named[name]).output[0]
    return layers


def check_quants(model: onnx.ModelProto, subnet: Subnet) -> dict[str, tuple[str, str]]:
    """As `inspection.check_integers`, for a file in this dialect.

    Raises:
        ProofError: what differs from the subnet, and in which layer.
    """
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    found = find_quants(model, [layer.name for layer in subnet.layers])
    for layer in subnet.layers:
        activation, weight, _ = found[layer.name]
        for side, quant, quantizer, scale in (
            ("activation", activation, layer.activation, layer.activation.scale),
            ("weight", weight, layer.weight, _weight_scale(layer)),
        ):
            equal: Mapping[str, bool] = {
                "scale": np.array_equal(quant.scale, scale),
                "zero-point": not quant.zero_point.any(),
                "code range": quant.codes == (quantizer.low, quantizer.high),
                "rounding": quant.rounding == "ROUND",
            }
            for what, same in equal.items():
                if not same:
                    raise ProofError(f"{layer.name}: the {side} {what} in the export is not the subnet's")
        if not np.array_equal(tensors.get(weight.value, np.zeros(0)), layer.dequantized_weight()):
            raise ProofError(f"{layer.name}: the weight values in the export are not the subnet's")
    return {name: (activation.value, output) for name, (activation, _, output) in found.items()}


def _read(node: onnx.NodeProto | None, tensors: Mapping[str, onnx.TensorProto], where: str) -> Quant:
    if node is None or (node.domain, node.op_type) != (DOMAIN, "Quant"):
        raise ProofError(f"{where} is not quantised in the export: it comes from no Quant")
    attributes: dict[str, Any] = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    constant = len(node.input) == 4 and set(node.input[1:]) <= set(tensors)
    if not constant or not set(attributes) >= {"signed", "narrow", "rounding_mode"}:
        raise ProofError(f"{where}: its Quant lacks a constant parameter or an attribute in the export")
    scale, zero_point, bits = (numpy_helper.to_array(tensors[name]) for name in node.input[1:])
    if bits.shape or not 1 <= bits <= 32 or bits != int(bits):
        raise ProofError(f"{where} has no whole number of bits in the export")
    signed, narrow = bool(attributes["signed"]), bool(attributes["narrow"])
    codes = 1 << (int(bits) - signed)
    return Quant(
        value=node.input[0],
        bits=int(bits),
        scale=scale,
        zero_point=zero_point,
        rounding=attributes["rounding_mode"].decode(),
        codes=(narrow - codes if signed else 0, codes - 1 - (narrow and not signed)),
    )
