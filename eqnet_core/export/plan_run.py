"""A network run step by step along its integer plan, without the plan's quantisers: as in `model.onnx`."""

from __future__ import annotations

from collections.abc import Callable

import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional

from eqnet_core.errors import UnsupportedTargetError
from eqnet_core.export.plan import IMAGE, LOGITS, IntegerPlan, Step


@torch.no_grad()
def run_plan(
    network: nn.Module, plan: IntegerPlan, images: Tensor, observe: Callable[[str, Tensor], None]
) -> Tensor:
    """Logits [N, classes] of `images`, normalised float32 [N, C, H, W].

    `observe` is called with the name and the values of every tensor of the plan.

    `network` has the layers and BatchNorms under their names: a supernet's `model`, a `SubnetModule`'s
    `network`, or a float one.
    """
    values = {IMAGE: images}
    observe(IMAGE, images)
    for step in plan.steps:
        inputs = [values[value] for value in step.inputs]
        if step.moves:
            values[step.output] = move(step, inputs[0], plan)
            continue
        x: Tensor
        if step.layer is not None:
            x = network.get_submodule(step.layer)(inputs[0])
            if step.norm is not None:
                x = network.get_submodule(step.norm)(x)
        else:
            x = inputs[0] + inputs[1] if len(inputs) == 2 else inputs[0].mean((2, 3), keepdim=True)
        values[step.output] = x
        if step.output == LOGITS:
            return x
        tensor = plan.tensors[plan.tensor_of[step.output]]
        if tensor.relu:
            values[step.output] = x = x.clamp(0, tensor.cap)
        observe(tensor.name, x)
    raise AssertionError("a plan ends with the logits")


def move(step: Step, x: Tensor, plan: IntegerPlan) -> Tensor:
    """What a moving step (`Step.moves`) makes of its input [N, C, H, W]."""
    node = step.node
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    constants = [plan.constants[name].tolist() for name in step.constants if name]
    if node.op_type == "Flatten":
        return x.flatten(1)
    if node.op_type == "MaxPool":
        top, left, bottom, right = attributes.get("pads", [0, 0, 0, 0])
        return functional.max_pool2d(
            functional.pad(x, (left, right, top, bottom), value=-float("inf")),
            attributes["kernel_shape"],
            attributes.get("strides", [1, 1]),
            0,
            attributes.get("dilations", [1, 1]),
            bool(attributes.get("ceil_mode", 0)),
        )
    if node.op_type == "Pad":
        before, after = constants[0][: x.ndim], constants[0][x.ndim :]
        widths = [width for pair in zip(reversed(before), reversed(after), strict=True) for width in pair]
        return functional.pad(x, widths)
    if node.op_type == "Slice":
        for start, end, axis, stride in zip(*constants, strict=True):
            index = [slice(None)] * x.ndim
            index[axis] = slice(start, min(end, x.shape[axis]), stride)
            x = x[tuple(index)]
        return x
    raise UnsupportedTargetError(f"{node.name}: {node.op_type} cannot be simulated in integers")
