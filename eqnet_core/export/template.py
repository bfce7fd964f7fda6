"""The float graph of an architecture: exported by torch once, then refilled for every subnet."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import nn

from eqnet_core.errors import ArtifactError, UnsupportedTargetError
from eqnet_core.models import build_model

OPSET = 21
IR_VERSION = 10
"""Opset 21 is the first with 4-bit Q/DQ; IR 10 is the one that came with it."""


@dataclass(frozen=True, kw_only=True)
class FloatGraph:
    """Nodes in execution order, without weights.

    A Conv or Gemm node is named after its layer, reads `<layer>.weight` and writes `<layer>.output` (or the
    graph's output); a BatchNormalization node is named after its module and reads `<module>.weight`, `.bias`,
    `.running_mean`, `.running_var`. `constants` are the shapes and axes that other nodes read.
    """

    nodes: tuple[onnx.NodeProto, ...]
    constants: tuple[onnx.TensorProto, ...]
    input: onnx.ValueInfoProto
    output: onnx.ValueInfoProto
    layers: frozenset[str]
    batch_norms: frozenset[str]

    @classmethod
    def of(cls, graph: onnx.GraphProto) -> FloatGraph:
        """What `graph` holds, a network of one input and one output."""
        return cls(
            nodes=tuple(graph.node),
            constants=tuple(graph.initializer),
            input=graph.input[0],
            output=graph.output[0],
            layers=frozenset(node.name for node in graph.node if node.op_type in ("Conv", "Gemm")),
            batch_norms=frozenset(node.name for node in graph.node if node.op_type == "BatchNormalization"),
        )

    def to_bytes(self) -> bytes:
        """An ONNX file that lacks the weights: a few bytes per node. Equal graphs give equal bytes."""
        graph = onnx.helper.make_graph(
            self.nodes, "float", [self.input], [self.output], initializer=self.constants
        )
        opset = onnx.helper.make_opsetid("", OPSET)
        model = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION)
        content: bytes = model.SerializeToString(deterministic=True)
        return content

    @classmethod
    def from_bytes(cls, content: bytes) -> FloatGraph:
        """What `to_bytes` wrote.

        Raises:
            ArtifactError: it was not written by that, or for another opset.
        """
        model = onnx.ModelProto()
        try:
            model.ParseFromString(content)
            if [entry.version for entry in model.opset_import] != [OPSET]:
                raise ArtifactError(f"the float graph is not one of opset {OPSET}")
            return cls.of(model.graph)
        except (DecodeError, IndexError) as error:
            raise ArtifactError(f"not a float graph: {error}") from error


def trace_float_graph(architecture: str, shape: tuple[int, int, int], classes: int) -> FloatGraph:
    """The graph of `build_model(architecture, classes)` for images of `shape` (C, H, W).

    The batch axis is dynamic. Takes seconds. Names depend neither on the torch version, nor on where this
    package is installed.

    Raises:
        UnsupportedTargetError: a layer that torch does not export as one Conv or Gemm.
    """
    module = build_model(architecture, classes).eval()
    model = _fold(_export(module, shape))
    parameters = module.state_dict()
    layers = {n: m for n, m in module.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    norms = {n: m for n, m in module.named_modules() if isinstance(m, nn.BatchNorm2d)}
    values = _constants(model)
    aliases = _aliases(model, values)
    nodes = [n for n in model.graph.node if n.op_type != "Constant" and n.output[0] not in aliases]
    renamed = _names(nodes, layers, norms, model.graph.output[0].name)
    kept: dict[str, onnx.TensorProto] = {}
    canonical = []
    for node in nodes:
        result = _rebuilt(node, renamed[node.output[0]], layers)
        for name in _inputs(node, result.name in layers):
            name = _follow(name, aliases)
            if name in values and name not in parameters:
                result.input.append(_intern(values[name], kept))
            else:
                result.input.append(renamed.get(name, name))
        canonical.append(result)
    canonical = _flattened(canonical)
    read = {name for node in canonical for name in node.input}
    kind = onnx.helper.make_tensor_value_info
    graph = FloatGraph.of(
        onnx.helper.make_graph(
            canonical,
            "float",
            [kind("image", onnx.TensorProto.FLOAT, ["batch", *shape])],
            [kind("logits", onnx.TensorProto.FLOAT, ["batch", classes])],
            initializer=[tensor for tensor in kept.values() if tensor.name in read],
        )
    )
    missing = sorted((set(layers) | set(norms)) - graph.layers - graph.batch_norms)
    if missing:
        raise UnsupportedTargetError(
            f"{architecture}: {', '.join(missing)} did not become one ONNX node each"
        )
    return graph


def _export(module: nn.Module, shape: tuple[int, int, int]) -> onnx.ModelProto:
    # torch's own optimisation would fold BatchNorm into the convolutions under the same weight names.
    with _quiet():
        program = torch.onnx.export(
            module,
            (torch.zeros(2, *shape),),
            dynamo=True,
            optimize=False,
            verbose=False,
            opset_version=OPSET,
            input_names=["image"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
        )
    assert program is not None
    return program.model_proto


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks on its own deprecations and on torchvision, which need not be there."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _fold(model: onnx.ModelProto) -> onnx.ModelProto:
    """Shape arithmetic computed; the whole optimiser would also fuse BatchNorm."""
    # Imported here: 60 MB that a process which gets its graph from another one does without.
    import onnx_ir
    from onnxscript import optimizer

    graph = onnx_ir.serde.deserialize_model(model)
    optimizer.fold_constants(graph)
    optimizer.remove_unused_nodes(graph)
    return onnx_ir.serde.serialize_model(graph)


def _constants(model: onnx.ModelProto) -> dict[str, NDArray[Any]]:
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            value = onnx.helper.get_attribute_value(node.attribute[0])
            values[node.output[0]] = (
                numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.asarray(value)
            )
    return values


def _aliases(model: onnx.ModelProto, values: Mapping[str, NDArray[Any]]) -> dict[str, str]:
    """Outputs that equal an input: Identity, and slices that keep everything, as in `x[:, :, ::2, ::2]`."""
    aliases = {}
    for node in model.graph.node:
        if node.op_type == "Identity":
            aliases[node.output[0]] = node.input[0]
        elif node.op_type == "Slice" and len(node.input) == 5 and all(n in values for n in node.input[1:]):
            starts, ends, _, steps = (values[name] for name in node.input[1:])
            if (starts == 0).all() and (ends == np.iinfo(np.int64).max).all() and (steps == 1).all():
                aliases[node.output[0]] = node.input[0]
    return aliases


def _follow(name: str, aliases: Mapping[str, str]) -> str:
    for _ in range(len(aliases)):
        name = aliases.get(name, name)
    return name


def _names(
    nodes: Sequence[onnx.NodeProto], layers: Iterable[str], norms: Iterable[str], output: str
) -> dict[str, str]:
    """New value names: after the module where there is one, else operator and running number."""
    weights = {f"{name}.weight": name for name in (*layers, *norms)}
    counters: dict[str, int] = {}
    renamed = {}
    for node in nodes:
        module = weights.get(node.input[1]) if len(node.input) > 1 else None
        if node.output[0] == output:
            renamed[output] = "logits"
        elif module is not None:
            renamed[node.output[0]] = f"{module}.output"
        else:
            operator = node.op_type.lower()
            counters[operator] = counters.get(operator, -1) + 1
            renamed[node.output[0]] = f"{operator}.{counters[operator]}"
    return renamed


def _inputs(node: onnx.NodeProto, is_layer: bool) -> Sequence[str]:
    # A convolution without bias comes with a bias of zeros; one with bias gets its own Add (see `graph`).
    return list(node.input[:2] if is_layer else node.input)


def _rebuilt(node: onnx.NodeProto, output: str, layers: Mapping[str, nn.Module]) -> onnx.NodeProto:
    """The node without inputs, and without torch's metadata, which holds file names."""
    result = onnx.NodeProto(op_type=node.op_type, name=output, output=[output])
    module = node.input[1].removesuffix(".weight") if len(node.input) > 1 else ""
    if node.op_type == "BatchNormalization" or (node.op_type in ("Conv", "Gemm") and module in layers):
        result.name = module
    result.attribute.extend(sorted(node.attribute, key=lambda attribute: attribute.name))
    return result


def _flattened(nodes: list[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """Flatten where torch reshapes to [batch, -1] and computes the batch from the image's shape."""
    producers = {output: node for node in nodes for output in node.output}
    for node in nodes:
        if node.op_type == "Reshape" and _keeps_batch(producers.get(node.input[1]), producers):
            node.op_type = "Flatten"
            del node.input[1:], node.attribute[:]
    # What computed the shapes is read by nothing now.
    needed = {"logits"}
    kept = []
    for node in reversed(nodes):
        if needed & set(node.output):
            needed |= set(node.input)
            kept.append(node)
    return kept[::-1]


def _keeps_batch(shape: onnx.NodeProto | None, producers: Mapping[str, onnx.NodeProto]) -> bool:
    """Whether `shape` is [batch, constant]: a Concat whose first input comes from the image's first size."""
    if shape is None or shape.op_type != "Concat" or len(shape.input) != 2 or shape.input[1] in producers:
        return False
    origin = producers.get(shape.input[0])
    while origin is not None and origin.op_type in ("Reshape", "Squeeze", "Unsqueeze", "Cast"):
        origin = producers.get(origin.input[0])
    ends = [a.i for a in origin.attribute if a.name == "end"] if origin is not None else []
    return origin is not None and origin.op_type == "Shape" and origin.input[0] == "image" and ends == [1]


def _intern(array: NDArray[Any], kept: dict[str, onnx.TensorProto]) -> str:
    """The name of the constant that equals `array`, made if there is none."""
    for name, tensor in kept.items():
        other = numpy_helper.to_array(tensor)
        if other.dtype == array.dtype and np.array_equal(other, array):
            return name
    name = f"constant.{len(kept)}"
    kept[name] = numpy_helper.from_array(np.require(array, requirements="C"), name)  # keeps scalars scalar
    return name
