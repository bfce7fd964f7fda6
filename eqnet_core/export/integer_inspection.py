"""Does a `model.integer.onnx` hold the folded subnet, and is every computation between integers?

Read with ONNX's own decoder, not with the code that wrote the file.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from eqnet_core.errors import ProofError
from eqnet_core.export.folding import IntegerSubnet, TensorQuantizer
from eqnet_core.export.plan import LOGITS, IntegerPlan, Step

_GLUE = frozenset({"QuantizeLinear", "DequantizeLinear", "Clip", "Relu"})


def check_integer_file(model: onnx.ModelProto, integers: IntegerSubnet, plan: IntegerPlan) -> None:
    """Compare codes, biases, scales, zero-points and clipped ranges with the folded subnet's, bit for bit.

    Raises:
        ProofError: what differs, and where.
    """
    file = _File(model)
    steps = [node for node in model.graph.node if node.op_type not in _GLUE]
    if [node.op_type for node in steps] != [step.node.op_type for step in plan.steps]:
        raise ProofError("model.integer.onnx does not have the network's computations, each once, in order")
    for node, step in zip(steps, plan.steps, strict=True):
        if step.layer is not None:
            _check_layer(file, node, step, integers, plan)
        else:
            for value, name in zip(step.inputs, node.input, strict=False):
                tensor = plan.tensor_of[value]
                _check_pair(file, name, tensor, integers.tensors[tensor], step.node.op_type)
    if model.graph.output[0].name != LOGITS or steps[-1].output[0] != LOGITS:
        raise ProofError("model.integer.onnx changes the logits after the classifier")


class _File:
    """A file's constants and nodes by what they make."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        self._producers: dict[str, onnx.NodeProto] = {
            output: node for node in model.graph.node for output in node.output
        }

    def producer(self, value: str, operator: str, where: str) -> onnx.NodeProto:
        node = self._producers.get(value)
        if node is None or node.op_type != operator:
            raise ProofError(f"{where}: {value!r} comes from no {operator}, so it is not in integers")
        return node

    def maybe(self, value: str, operator: str) -> onnx.NodeProto | None:
        node = self._producers.get(value)
        return node if node is not None and node.op_type == operator else None

    def array(self, name: str) -> NDArray[Any]:
        if name not in self._tensors:
            raise ProofError(f"{name} is no constant of the export")
        array: NDArray[Any] = numpy_helper.to_array(self._tensors[name])
        return array


def _check_layer(
    file: _File, node: onnx.NodeProto, step: Step, integers: IntegerSubnet, plan: IntegerPlan
) -> None:
    assert step.layer is not None
    layer = integers.layers[step.layer]
    if len(node.input) != 3:
        raise ProofError(f"{layer.name} has no bias, or more inputs than a layer has")
    weight = file.producer(node.input[1], "DequantizeLinear", layer.name)
    codes, scale, zero_point = (file.array(name) for name in weight.input)
    _equal(layer.name, "weight codes", codes, layer.codes)
    _equal(layer.name, "weight scale", scale, layer.scale)
    _equal(layer.name, "weight zero-point", zero_point, np.zeros(len(layer.codes), np.int8))
    scaled = [weight]
    if integers.subnet.configuration.signed:
        _equal(
            layer.name, "bias", file.array(node.input[2]), layer.bias.astype(np.float32) * layer.bias_scale
        )
    else:
        bias = file.producer(node.input[2], "DequantizeLinear", layer.name)
        codes, scale = (file.array(name) for name in bias.input)
        _equal(layer.name, "bias", codes, layer.bias)
        _equal(layer.name, "bias scale", scale, layer.bias_scale)
        scaled.append(bias)
    for dequantize in scaled:
        if [attribute.i for attribute in dequantize.attribute if attribute.name == "axis"] != [0]:
            raise ProofError(f"{layer.name}: a scale per output channel lies along another axis")
    tensor = plan.tensor_of[step.inputs[0]]
    if layer.name in integers.requantized:
        source = _check_pair(file, node.input[0], f"{layer.name}.input", layer.input, layer.name)
        _check_pair(file, source, tensor, integers.tensors[tensor], layer.name)
    else:
        _check_pair(file, node.input[0], tensor, integers.tensors[tensor], layer.name)


def _check_pair(file: _File, value: str, name: str, expected: TensorQuantizer, reader: str) -> str:
    """Check the Q/DQ pair that ends in `value`; returns what it quantises."""
    dequantize = file.producer(value, "DequantizeLinear", reader)
    clip = file.maybe(dequantize.input[0], "Clip")
    quantize = file.producer((clip or dequantize).input[0], "QuantizeLinear", reader)
    if list(quantize.input[1:]) != list(dequantize.input[1:]):
        raise ProofError(f"{name}: dequantised otherwise than it is quantised")
    scale, zero_point = (file.array(parameter) for parameter in quantize.input[1:])
    _equal(name, "scale", scale, np.asarray(expected.scale))
    _equal(name, "zero-point", zero_point, np.asarray(expected.zero_point, expected.type))
    if clip is None and _is_move(file, quantize.input[0]):
        return str(quantize.input[0])
    limits = np.iinfo(expected.type)
    low, high = int(limits.min), int(limits.max)
    if clip is not None:
        low, high = (int(file.array(bound)) for bound in clip.input[1:])
    relu = file.maybe(quantize.input[0], "Relu") or file.maybe(quantize.input[0], "Clip")
    if relu is not None and relu.op_type == "Relu":
        low = max(low, int(zero_point))
    elif relu is not None:
        least, cap = (file.array(bound) for bound in relu.input[1:])
        # A bound between two steps would let values through that round to the right code, and others.
        _equal(name, "lower bound", least, np.asarray(np.float32(expected.low - expected.zero_point) * scale))
        low = max(low, int(np.rint(least / scale) + zero_point))
        high = min(high, int(np.rint(cap / scale) + zero_point))
    if (low, high) != (expected.low, expected.high):
        raise ProofError(
            f"{name}: the codes are clipped to {low}..{high} instead of {expected.low}..{expected.high}"
        )
    return str((quantize if relu is None else relu).input[0])


def _is_move(file: _File, value: str) -> bool:
    return any(file.maybe(value, operator) is not None for operator in ("MaxPool", "Slice", "Pad", "Flatten"))


def _equal(where: str, what: str, theirs: NDArray[Any], ours: NDArray[Any]) -> None:
    if theirs.dtype != ours.dtype or not np.array_equal(theirs, ours):
        raise ProofError(f"{where}: the {what} in model.integer.onnx is not the folded subnet's")
