"""Which tensors of a network are quantised in the `integer` flavour, and what computes each of them.

Made once per architecture from its float graph, without weights. BatchNorm is absorbed by the convolution in
front of it, and ReLU and ReLU6 by the code range of the tensor they bound: rounding and clamping commute,
clip(round(max(x, 0) / s) + z) = max(clip(round(x / s) + z), z), so that nothing is lost.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from eqnet_core.errors import UnsupportedTargetError
from eqnet_core.export.graph import pooling
from eqnet_core.export.template import FloatGraph

IMAGE, LOGITS = "image", "logits"

_MOVES = frozenset({"MaxPool", "Slice", "Pad", "Flatten"})
"""Operators whose results are among their inputs (or 0): they keep the quantiser of what they read."""


@dataclass(frozen=True, kw_only=True)
class QuantizedTensor:
    """A tensor that is held in integer codes.

    `layers` are the quantised layers that read it, in order of execution; `shared` says that not exactly one
    layer does, so that it needs a quantiser of its own. `relu`: negative values become 0; `cap`: larger
    ones become this. `nonnegative` holds behind a ReLU, a pooling of such and the like.
    """

    name: str
    layers: tuple[str, ...]
    shared: bool
    nonnegative: bool
    relu: bool = False
    cap: float | None = None


@dataclass(frozen=True, kw_only=True)
class Step:
    """One computation. `inputs` and `output` are values; several values may be of one tensor (moves).

    `node` is a Conv, Gemm, Add, GlobalAveragePool or one of the moves; its own inputs are not used, but for
    the constants of a move (`constants`). `norm` is the BatchNorm folded into a convolution.
    """

    node: onnx.NodeProto
    inputs: tuple[str, ...]
    output: str
    constants: tuple[str, ...] = ()
    layer: str | None = None
    norm: str | None = None

    @property
    def moves(self) -> bool:
        return self.node.op_type in _MOVES


@dataclass(frozen=True, kw_only=True)
class IntegerPlan:
    """`tensors` by name, in order of computation; `tensor_of` says which one each value belongs to."""

    steps: tuple[Step, ...]
    tensors: Mapping[str, QuantizedTensor]
    tensor_of: Mapping[str, str]
    constants: Mapping[str, NDArray[np.generic]]

    @property
    def ranged(self) -> tuple[str, ...]:
        """Tensors that need a measured range (`eqnet_core.ranges`)."""
        return tuple(name for name, tensor in self.tensors.items() if tensor.shared)


@dataclass
class _Draft:
    """A tensor while the graph is being walked."""

    name: str
    nonnegative: bool = False
    relu: bool = False
    cap: float | None = None
    layers: list[str] = field(default_factory=list)
    others: int = 0


def plan_integers(graph: FloatGraph) -> IntegerPlan:
    """The plan for `graph`.

    Raises:
        UnsupportedTargetError: an operator, or an arrangement of them, that has no integer form here; the
        message names it.
    """
    return _Planner(graph).plan()


class _Planner:
    def __init__(self, graph: FloatGraph) -> None:
        self.graph = graph
        self.constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.constants}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.nodes:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.steps: list[Step] = []
        self.drafts: dict[str, _Draft] = {IMAGE: _Draft(IMAGE)}
        self.tensor_of: dict[str, str] = {IMAGE: IMAGE}
        self.absorbed: set[str] = set()
        self.counts = {"add": 0, "pool": 0}

    def plan(self) -> IntegerPlan:
        for node in self.graph.nodes:
            if node.output[0] in self.absorbed:
                continue
            if node.name in self.graph.layers:
                self._layer(node)
            elif node.op_type == "Add":
                self._combine(node, "add", list(node.input), nonnegative=False)
            elif node.op_type == "GlobalAveragePool":
                self._combine(node, "pool", [node.input[0]], nonnegative=True)
            elif node.op_type == "ReduceMean":
                self._mean(node)
            elif node.op_type in _MOVES:
                self._move(node, node.input[0], list(node.input[1:]), node.output[0])
            else:
                raise UnsupportedTargetError(
                    f"{node.name}: {node.op_type} has no integer form here; ask for model.onnx instead"
                )
        return IntegerPlan(
            steps=tuple(self.steps),
            tensors={
                draft.name: QuantizedTensor(
                    name=draft.name,
                    layers=tuple(draft.layers),
                    shared=len(draft.layers) != 1 or draft.others > 0,
                    nonnegative=draft.nonnegative or draft.relu,
                    relu=draft.relu,
                    cap=draft.cap,
                )
                for draft in self.drafts.values()
            },
            tensor_of=self.tensor_of,
            constants=self.constants,
        )

    def _layer(self, node: onnx.NodeProto) -> None:
        self._draft(node, node.input[0]).layers.append(node.name)
        value, norm = node.output[0], None
        follower = self._only_reader(value)
        if follower is not None and follower.op_type == "BatchNormalization" and node.op_type == "Conv":
            value, norm = follower.output[0], follower.name
            self.absorbed.add(value)
        self._finish(node, f"{node.name}.output", (node.input[0],), value, layer=node.name, norm=norm)

    def _combine(self, node: onnx.NodeProto, kind: str, inputs: list[str], *, nonnegative: bool) -> None:
        drafts = [self._draft(node, name) for name in inputs]
        for draft in drafts:
            draft.others += 1
        name = f"{kind}.{self.counts[kind]}"
        self.counts[kind] += 1
        known = nonnegative and all(draft.nonnegative or draft.relu for draft in drafts)
        self._finish(node, name, tuple(inputs), node.output[0], nonnegative=known)

    def _mean(self, node: onnx.NodeProto) -> None:
        """The mean over height and width, as the pooling that runtimes have integer kernels for."""
        pool, *flatten = pooling(node, self.constants)
        self._combine(pool, "pool", list(pool.input), nonnegative=True)
        for move in flatten:
            self._move(move, move.input[0], [], move.output[0])

    def _move(self, node: onnx.NodeProto, value: str, constants: list[str], output: str) -> None:
        draft = self._draft(node, value)
        unknown = [name for name in constants if name and name not in self.constants]
        if unknown:
            raise UnsupportedTargetError(f"{node.name}: {', '.join(unknown)} is not constant")
        if node.op_type == "Pad" and not self._pads_zeros(node):
            raise UnsupportedTargetError(f"{node.name}: only padding with zeros has an integer form here")
        self.tensor_of[output] = draft.name
        self.steps.append(Step(node=node, inputs=(value,), output=output, constants=tuple(constants)))

    def _pads_zeros(self, node: onnx.NodeProto) -> bool:
        mode = [attribute.s for attribute in node.attribute if attribute.name == "mode"]
        value = self.constants[node.input[2]] if len(node.input) > 2 and node.input[2] else np.zeros(1)
        return mode in ([], [b"constant"]) and not value.any()

    def _finish(
        self,
        node: onnx.NodeProto,
        name: str,
        inputs: tuple[str, ...],
        value: str,
        *,
        layer: str | None = None,
        norm: str | None = None,
        nonnegative: bool = False,
    ) -> None:
        """Take in the ReLU or ReLU6 that follows and record the step and its tensor."""
        draft = _Draft(name, nonnegative=nonnegative)
        follower = self._only_reader(value)
        if follower is not None and follower.op_type in ("Relu", "Clip"):
            draft.relu = True
            if follower.op_type == "Clip":
                draft.cap = self._cap(follower)
            value = follower.output[0]
            self.absorbed.add(value)
        if value != LOGITS:
            self.drafts[name] = draft
            self.tensor_of[value] = name
        self.steps.append(Step(node=node, inputs=inputs, output=value, layer=layer, norm=norm))

    def _cap(self, node: onnx.NodeProto) -> float:
        bounds = [self.constants.get(name) for name in node.input[1:]]
        if len(bounds) != 2 or bounds[0] is None or bounds[1] is None or float(bounds[0]) != 0:
            raise UnsupportedTargetError(f"{node.name}: only a Clip from 0 up has an integer form here")
        return float(bounds[1])

    def _draft(self, node: onnx.NodeProto, value: str) -> _Draft:
        if value not in self.tensor_of:
            raise UnsupportedTargetError(
                f"{node.name or node.op_type} reads {value}, which is not quantised: a BatchNorm or ReLU "
                "must follow its layer and be its only reader"
            )
        return self.drafts[self.tensor_of[value]]

    def _only_reader(self, value: str) -> onnx.NodeProto | None:
        readers = self.readers.get(value, [])
        return readers[0] if len(readers) == 1 else None
