from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper

from eqnet_core.errors import UnsupportedTargetError
from eqnet_core.export.module import build_module
from eqnet_core.export.onnx_exact import ExactExporter
from eqnet_core.export.plan import LOGITS, plan_integers
from eqnet_core.export.plan_run import run_plan
from eqnet_core.export.template import FloatGraph
from eqnet_core.space import FORMS, SearchSpace, SubnetConfiguration
from eqnet_core.subnet import Subnet


def test_every_batch_norm_and_relu_is_absorbed_and_every_sum_has_a_range(exporter: ExactExporter) -> None:
    plan = plan_integers(exporter.graph)
    assert {step.norm for step in plan.steps if step.norm} == set(exporter.graph.batch_norms)
    assert {step.layer for step in plan.steps if step.layer} == set(exporter.graph.layers)
    assert {step.node.op_type for step in plan.steps} == {
        *("Conv", "Add", "Slice", "Pad", "GlobalAveragePool", "Flatten", "Gemm"),
    }
    assert plan.steps[-1].output == LOGITS
    # the stem and 9 sums, each read by a sum or the pooling, and the 9 branches that are added
    assert len(plan.ranged) == 19
    assert plan.tensors["add.0"].nonnegative
    assert plan.tensors["add.0"].layers == ("layer1.1.conv1",)
    assert not plan.tensors["layer1.0.conv2.output"].nonnegative
    assert plan.tensors["pool.0"].layers == ("fc",)
    assert not plan.tensors["pool.0"].shared


def test_the_plan_computes_what_the_network_computes(
    exporter: ExactExporter,
    make_subnet: Callable[[SubnetConfiguration], Subnet],
    space: SearchSpace,
    pictures: NDArray[np.float32],
) -> None:
    module = build_module(make_subnet(space.uniform(FORMS[7], 3)))
    images = torch.from_numpy(pictures[:8])
    seen: set[str] = set()
    plan = plan_integers(exporter.graph)
    logits = run_plan(module.network, plan, images, lambda name, _: seen.add(name))
    assert torch.equal(logits, module(images))
    assert seen == set(plan.tensors)


def graph(*nodes: onnx.NodeProto, layers: tuple[str, ...] = ("a",)) -> FloatGraph:
    return FloatGraph(
        nodes=nodes,
        constants=(helper.make_tensor("six", TensorProto.FLOAT, [], [6.0]),),
        input=helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 8, 8]),
        output=helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2]),
        layers=frozenset(layers),
        batch_norms=frozenset(),
    )


CONV = helper.make_node("Conv", ["image", "a.weight"], ["x"], name="a")


@pytest.mark.parametrize(
    ("nodes", "complaint"),
    [
        ((CONV, helper.make_node("Sigmoid", ["x"], ["y"], name="gate")), "gate: Sigmoid has no integer form"),
        ((CONV, helper.make_node("Clip", ["x", "six", "six"], ["y"], name="c")), "only a Clip from 0"),
        ((CONV, helper.make_node("ReduceMean", ["x", "six"], ["y"], name="m")), "height and width"),
        (
            (
                CONV,
                helper.make_node("Relu", ["x"], ["y"], name="r"),
                helper.make_node("Add", ["x", "y"], ["z"]),
            ),
            "r: Relu has no integer form",
        ),
        ((helper.make_node("Add", ["image", "elsewhere"], ["y"], name="sum"),), "sum reads elsewhere"),
    ],
)
def test_what_has_no_integer_form_is_named(nodes: tuple[onnx.NodeProto, ...], complaint: str) -> None:
    with pytest.raises(UnsupportedTargetError, match=complaint):
        plan_integers(graph(*nodes))
