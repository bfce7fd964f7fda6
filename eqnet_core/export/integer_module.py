"""The torch simulation of the `integer` flavour: what `model.integer.onnx` is measured against.

Values are codes less their zero-point, as float32: products of integers are summed, biases are int32 codes,
and every tensor is rounded to 8 bits or fewer.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional

from eqnet_core.export.folding import FoldedLayer, IntegerSubnet, TensorQuantizer
from eqnet_core.export.plan import IMAGE, LOGITS, IntegerPlan, Step
from eqnet_core.export.plan_run import move

Observer = Callable[[str, Tensor], Tensor]
"""Sees the codes [N, ...] of a tensor, zero-point included, and returns those to go on with."""


class IntegerModule(nn.Module):
    """Normalised float32 images [N, C, H, W] to logits [N, classes], in integers as a device has them.

    `observer` is called with every tensor's name (`<layer>.input` for one that is rounded once more).
    """

    def __init__(self, integers: IntegerSubnet, plan: IntegerPlan) -> None:
        super().__init__()
        self.integers, self.plan = integers, plan
        layers = integers.layers.values()
        self._weights = {la.name: torch.from_numpy(la.codes.astype(np.float32)) for la in layers}
        self._biases = {la.name: torch.from_numpy(la.bias.astype(np.float32)) for la in layers}
        self._steps = {la.name: torch.from_numpy(la.bias_scale) for la in layers}
        self._last_use = {value: index for index, step in enumerate(plan.steps) for value in step.inputs}

    @torch.no_grad()
    def forward(self, images: Tensor, observer: Observer | None = None) -> Tensor:
        values = {IMAGE: self._quantize(IMAGE, images, self.integers.tensors[IMAGE], observer)}
        for index, step in enumerate(self.plan.steps):
            if step.moves:
                values[step.output] = move(step, values[step.inputs[0]], self.plan)
            else:
                result = self._compute(step, values, observer)
                if step.output == LOGITS:
                    return result
                name = self.plan.tensor_of[step.output]
                values[step.output] = self._quantize(name, result, self.integers.tensors[name], observer)
            for value in step.inputs:
                if self._last_use[value] == index:
                    del values[value]
        raise AssertionError("a plan ends with the logits")

    def _compute(self, step: Step, values: dict[str, Tensor], observer: Observer | None) -> Tensor:
        if step.layer is None:
            inputs = [values[value] * self._scale(value) for value in step.inputs]
            return inputs[0] + inputs[1] if len(inputs) == 2 else inputs[0].mean((2, 3), keepdim=True)
        layer, value = self.integers.layers[step.layer], step.inputs[0]
        x = values[value]
        if step.layer in self.integers.requantized:
            x = self._quantize(f"{step.layer}.input", x * self._scale(value), layer.input, observer)
        return self._layer(step.node, layer, x)

    def _layer(self, node: onnx.NodeProto, layer: FoldedLayer, x: Tensor) -> Tensor:
        weight, bias, step = self._weights[layer.name], self._biases[layer.name], self._steps[layer.name]
        if node.op_type == "Gemm":
            return (functional.linear(x, weight) + bias) * step
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        top, left, bottom, right = attributes.get("pads", [0, 0, 0, 0])
        if (top, left) != (bottom, right):
            x, top, left = functional.pad(x, (left, right, top, bottom)), 0, 0
        products = functional.conv2d(
            x,
            weight,
            None,
            attributes.get("strides", [1, 1]),
            [top, left],
            attributes.get("dilations", [1, 1]),
            attributes.get("group", 1),
        )
        return products.add_(bias.view(-1, 1, 1)).mul_(step.view(-1, 1, 1))

    def _scale(self, value: str) -> float:
        return float(self.integers.tensors[self.plan.tensor_of[value]].scale)

    @staticmethod
    def _quantize(name: str, x: Tensor, quantizer: TensorQuantizer, observer: Observer | None) -> Tensor:
        # Divides by the step size, as QuantizeLinear does.
        scale = torch.tensor(float(quantizer.scale), dtype=torch.float32)
        codes = (x / scale).round_().add_(quantizer.zero_point).clamp_(quantizer.low, quantizer.high)
        if observer is not None:
            codes = observer(name, codes)
        return codes.sub_(quantizer.zero_point)
