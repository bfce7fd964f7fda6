"""`model.integer.onnx`, flavour `integer`: every convolution and the classifier run on integer kernels.

Q/DQ pairs around every computation, int8 weights with zero-point 0, int32 biases, no BatchNorm and no ReLU:
what runtimes fuse to QLinearConv, QLinearAdd and the like without a float tensor in between. int4 weights
would load, but reach no integer kernel.

For runtimes without unsigned types (TensorRT), ReLUs and bounds are nodes in front of a pair, and the same
biases are float32: it takes no Clip of integers, and dequantises no int32
(https://github.com/onnx/onnx-tensorrt/issues/850).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray

from eqnet_core.export.folding import FoldedLayer, IntegerSubnet, TensorQuantizer, fold
from eqnet_core.export.graph import GraphBuilder, assemble, clip_values
from eqnet_core.export.plan import IMAGE, LOGITS, IntegerPlan, Step, plan_integers
from eqnet_core.export.template import FloatGraph
from eqnet_core.ranges import TensorRanges
from eqnet_core.subnet import Subnet

FORMAT = "eqnet-integer/1"
"""Changes when a reader of the file has to know. The service counts changes of bytes itself."""


class IntegerExporter:
    """Exports subnets of one architecture; both calls take milliseconds.

    Args:
        graph: the architecture's float graph.
        ranges: of the tensors that no layer quantises by itself.

    Raises:
        UnsupportedTargetError: an operator without integer form; the message names it.
        BundleError: a tensor without range.
    """

    def __init__(self, graph: FloatGraph, ranges: TensorRanges) -> None:
        self.graph, self.ranges = graph, ranges
        self.plan = plan_integers(graph)
        for name in self.plan.ranged:
            ranges.of(name)

    def fold(self, subnet: Subnet) -> IntegerSubnet:
        """`folding.fold` for this architecture."""
        return fold(subnet, self.plan, self.ranges)

    def render(self, integers: IntegerSubnet, metadata: Mapping[str, str]) -> bytes:
        """The ONNX file of `integers`, with `metadata` as in `ExactExporter.render`."""
        return render_integer(self.graph, self.plan, integers, metadata)


def render_integer(
    graph: FloatGraph, plan: IntegerPlan, integers: IntegerSubnet, metadata: Mapping[str, str]
) -> bytes:
    """The ONNX file: input `image` float32 [batch, C, H, W], normalised; output `logits`.

    The codes of tensor T are `T.codes`, those of a layer that rounds a shared tensor once more
    `<layer>.input.codes`. `metadata` as in `ExactExporter.render`. Equal arguments give equal bytes.
    """
    builder = GraphBuilder()
    dequantized = {IMAGE: _quantize(builder, IMAGE, IMAGE, integers.tensors[IMAGE])}
    for step in plan.steps:
        if step.layer is not None:
            result = _layer(builder, step, dequantized, integers)
        else:
            inputs = [*(dequantized[value] for value in step.inputs), *step.constants]
            result = _copy(builder, step, inputs)
        if step.output == LOGITS:
            continue
        tensor = plan.tensor_of[step.output]
        name = step.output if step.moves else tensor
        dequantized[step.output] = _quantize(
            builder, result, name, integers.tensors[tensor], moves=tensor if step.moves else ""
        )
    used = {name for node in builder.nodes for name in node.input}
    constants = [tensor for tensor in graph.constants if tensor.name in used]
    return assemble(graph, builder, constants, integers.subnet, FORMAT, metadata)


def _layer(builder: GraphBuilder, step: Step, dequantized: Mapping[str, str], integers: IntegerSubnet) -> str:
    assert step.layer is not None
    layer, value = integers.layers[step.layer], dequantized[step.inputs[0]]
    if step.layer in integers.requantized:
        value = _quantize(builder, value, f"{step.layer}.input", layer.input)
    signed = integers.subnet.configuration.signed
    return _copy(builder, step, [value, *_weight_and_bias(builder, layer, signed=signed)])


def _weight_and_bias(builder: GraphBuilder, layer: FoldedLayer, *, signed: bool) -> tuple[str, str]:
    weight, bias = f"{layer.name}.weight", f"{layer.name}.bias"
    zero_points = np.zeros(len(layer.codes), np.int8)
    inputs = [
        builder.initializer(f"{weight}.codes", "int8", layer.codes),
        builder.initializer(f"{weight}.scale", "float32", layer.scale),
        builder.initializer(f"{weight}.zero_point", "int8", zero_points),
    ]
    builder.node("DequantizeLinear", f"{weight}.dequantize", inputs, weight, axis=0)
    if signed:
        return weight, builder.initializer(bias, "float32", _float_bias(layer))
    inputs = [
        builder.initializer(f"{bias}.codes", "int32", layer.bias),
        # ONNX Runtime fuses only where this is exactly the product of the input's and the weight's scale.
        builder.initializer(f"{bias}.scale", "float32", layer.bias_scale),
    ]
    builder.node("DequantizeLinear", f"{bias}.dequantize", inputs, bias, axis=0)
    return weight, bias


def _float_bias(layer: FoldedLayer) -> NDArray[np.float32]:
    """The folded bias float32 [C], in whole steps: a runtime that rounds it to them changes nothing."""
    return layer.bias.astype(np.float32) * layer.bias_scale


def _copy(builder: GraphBuilder, step: Step, inputs: list[str]) -> str:
    node = onnx.NodeProto(op_type=step.node.op_type, name=step.layer or step.node.name, input=inputs)
    node.output.append(LOGITS if step.output == LOGITS else f"{step.output}.computed")
    node.attribute.extend(step.node.attribute)
    builder.nodes.append(node)
    return str(node.output[0])


def _quantize(
    builder: GraphBuilder,
    value: str,
    name: str,
    quantizer: TensorQuantizer,
    *,
    moves: str = "",
) -> str:
    """QuantizeLinear -> integer Clip (where the codes are fewer than the type's) -> DequantizeLinear.

    With int8 the Clip is one of floats in front, and stands for the ReLU too. `moves` names the tensor whose
    codes `value` has already: its scale and zero-point, nothing to clip.
    """
    owner = moves or name
    scale, zero_point = f"{owner}.scale", f"{owner}.zero_point"
    if not moves:
        builder.initializer(scale, "float32", np.asarray(quantizer.scale))
        builder.initializer(zero_point, quantizer.type, np.asarray(quantizer.zero_point))
    clip = quantizer.clips and not moves
    if clip and quantizer.type == "int8":
        bounds = (quantizer.low - quantizer.zero_point, quantizer.high - quantizer.zero_point)
        value, clip = clip_values(builder, value, name, quantizer.scale, bounds), False
    elif quantizer.relu and not moves:
        value = _relu(builder, value, name, quantizer.cap)
    codes = f"{name}.codes"
    first = f"{name}.unclipped" if clip else codes
    builder.node("QuantizeLinear", f"{name}.quantize", [value, scale, zero_point], first)
    if clip:
        low = builder.initializer(f"{name}.low", quantizer.type, np.asarray(quantizer.low))
        high = builder.initializer(f"{name}.high", quantizer.type, np.asarray(quantizer.high))
        builder.node("Clip", f"{name}.clip", [first, low, high], codes)
    return builder.node(
        "DequantizeLinear", f"{name}.dequantize", [codes, scale, zero_point], f"{name}.dequantized"
    )


def _relu(builder: GraphBuilder, value: str, name: str, cap: np.float32 | None) -> str:
    if cap is None:
        return builder.node("Relu", f"{name}.relu", [value], f"{name}.bounded")
    bounds = [
        builder.initializer(f"{name}.least", "float32", np.asarray(np.float32(0))),
        builder.initializer(f"{name}.cap", "float32", np.asarray(cap)),
    ]
    return builder.node("Clip", f"{name}.relu", [value, *bounds], f"{name}.bounded")
