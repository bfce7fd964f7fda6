"""Does a file hold a subnet's integers? Read with ONNX's own decoder, not with the code that wrote them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from eqnet_core.errors import ProofError
from eqnet_core.space import LayerSpec
from eqnet_core.subnet import QuantizedLayer, Subnet


@dataclass(frozen=True, kw_only=True)
class LayerNodes:
    """One quantised layer: `value` is what is quantised, `output` the layer's result, bias included.

    `clip` is of codes, between the pair; `bound` of values, in front of it, as signed runtimes have it.
    """

    value: str
    bound: onnx.NodeProto | None
    quantize: onnx.NodeProto
    clip: onnx.NodeProto | None
    dequantize_input: onnx.NodeProto
    dequantize_weight: onnx.NodeProto
    output: str


def find_layers(model: onnx.ModelProto, names: list[str]) -> dict[str, LayerNodes]:
    """The nodes of every layer in `names`.

    Raises:
        ProofError: a layer has no node, or its input or weight is not quantised.
    """
    named = {node.name: node for node in model.graph.node}
    producers = {output: node for node in model.graph.node for output in node.output}
    layers = {}
    for name in names:
        if name not in named:
            raise ProofError(f"the export has no node for the layer {name}")
        node = named[name]
        dequantize_input = _producer(producers, node.input[0], "DequantizeLinear", name)
        clip = producers.get(dequantize_input.input[0])
        clip = clip if clip is not None and clip.op_type == "Clip" else None
        quantize = _producer(producers, (clip or dequantize_input).input[0], "QuantizeLinear", name)
        bound = producers.get(quantize.input[0])
        if bound is None or (bound.op_type, bound.name) != ("Clip", f"{name}.input.clip"):  # or a ReLU6
            bound = None
        layers[name] = LayerNodes(
            value=(bound or quantize).input[0],
            bound=bound,
            quantize=quantize,
            clip=clip,
            dequantize_input=dequantize_input,
            dequantize_weight=_producer(producers, node.input[1], "DequantizeLinear", name),
            output=named.get(f"{name}.add_bias", node).output[0],
        )
    return layers


def check_integers(model: onnx.ModelProto, subnet: Subnet) -> dict[str, tuple[str, str]]:
    """Compare codes, scales, zero-points and code ranges of every layer with the subnet's, bit for bit.

    Returns the names of what each layer quantises and of its result, bias included. Running a file does not
    show all faults: a zero-point moved in both Q and DQ changes nothing until an activation saturates.

    Raises:
        ProofError: what differs, and in which layer.
    """
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    specs = {spec.name: spec for spec in subnet.space.layers}
    nodes = find_layers(model, [layer.name for layer in subnet.layers])
    for layer in subnet.layers:
        codes, scale, zero_point = (_array(tensors, n) for n in nodes[layer.name].dequantize_weight.input)
        _equal(layer.name, "weight codes", codes.astype(np.int8), layer.codes)
        _equal(layer.name, "weight scale", scale, layer.weight.scale)
        _equal(layer.name, "weight zero-point", zero_point.astype(np.int32), layer.weight.zero_point)
        _check_activation(tensors, nodes[layer.name], layer, specs[layer.name])
    return {name: (layer.value, layer.output) for name, layer in nodes.items()}


def _check_activation(
    tensors: dict[str, onnx.TensorProto], nodes: LayerNodes, layer: QuantizedLayer, spec: LayerSpec
) -> None:
    quantizer = layer.activation
    if list(nodes.quantize.input[1:]) != list(nodes.dequantize_input.input[1:]):
        raise ProofError(f"{layer.name}: the input is dequantised otherwise than it is quantised")
    scale, zero_point = (_array(tensors, name) for name in nodes.quantize.input[1:])
    _equal(layer.name, "activation scale", scale, quantizer.scale)
    limits = np.iinfo(zero_point.dtype)
    shift = 128 if zero_point.dtype == np.uint8 and quantizer.low < 0 else 0
    _equal(layer.name, "activation zero-point", zero_point.astype(np.int32) - shift, quantizer.zero_point)
    low, high = int(limits.min), int(limits.max)
    if nodes.clip is not None:
        low, high = (int(_array(tensors, name)) for name in nodes.clip.input[1:])
    if nodes.bound is not None:
        for name, code in zip(nodes.bound.input[1:], (quantizer.low, quantizer.high), strict=True):
            value = np.float32(code - int(quantizer.zero_point)) * np.float32(quantizer.scale)
            _equal(layer.name, "bounds of the input", _array(tensors, name), np.asarray(value))
        low, high = quantizer.low, quantizer.high
    # an input that is never negative never rounds to a code below its zero-point
    below = spec.nonnegative and low - shift <= quantizer.low
    if (not below and low - shift != quantizer.low) or high - shift != quantizer.high:
        raise ProofError(
            f"{layer.name}: the activation codes are clipped to {low - shift}..{high - shift} "
            f"instead of {quantizer.low}..{quantizer.high}"
        )


def _producer(producers: dict[str, onnx.NodeProto], value: str, operator: str, layer: str) -> onnx.NodeProto:
    node = producers.get(value)
    if node is None or node.op_type != operator:
        raise ProofError(
            f"the layer {layer} is not quantised in the export: {value!r} comes from no {operator}"
        )
    return node


def _array(tensors: dict[str, onnx.TensorProto], name: str) -> NDArray[Any]:
    if name not in tensors:
        raise ProofError(f"{name} is no constant of the export")
    array: NDArray[Any] = numpy_helper.to_array(tensors[name])
    return array


def _equal(layer: str, what: str, theirs: NDArray[Any], ours: NDArray[Any]) -> None:
    if not np.array_equal(theirs, ours):
        raise ProofError(f"{layer}: the {what} in the export is not the subnet's")
