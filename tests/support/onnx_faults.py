"""Faults that the tests of both proofs inject into a right file."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

Fault = Callable[[onnx.ModelProto], None]


def tensor(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)


def change(name: str, function: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> Fault:
    def fault(model: onnx.ModelProto) -> None:
        stored = tensor(model, name)
        array = numpy_helper.to_array(stored)
        changed = np.asarray(function(array.astype(np.float64))).astype(array.dtype)
        assert not np.array_equal(changed, array)
        stored.CopyFrom(numpy_helper.from_array(changed, name))

    return fault


def bypass(name: str) -> Fault:
    """Remove the node `name`, its first input takes the place of its output."""

    def fault(model: onnx.ModelProto) -> None:
        node = next(node for node in model.graph.node if node.name == name)
        source, target = node.input[0], node.output[0]
        model.graph.node.remove(node)
        for other in model.graph.node:
            for position, value in enumerate(other.input):
                if value == target:
                    other.input[position] = source

    return fault
