from __future__ import annotations

import pytest

from eqnet_core.errors import ArtifactError
from eqnet_core.export.onnx_exact import ExactExporter
from eqnet_core.export.template import FloatGraph


def test_graph_has_the_architectures_names_and_nothing_superfluous(exporter: ExactExporter) -> None:
    graph = exporter.graph
    operators = [node.op_type for node in graph.nodes]
    assert set(operators) == {
        "Conv",
        "BatchNormalization",
        "Relu",
        "Add",
        "Slice",
        "Pad",
        "ReduceMean",
        "Gemm",
    }
    # x[:, :, ::2, ::2] slices two axes in each of the two shortcuts; the slice that keeps the channels is
    # gone
    assert operators.count("Slice") == 4
    assert graph.layers == {node.name for node in graph.nodes if node.op_type in ("Conv", "Gemm")}
    assert graph.batch_norms == {node.name for node in graph.nodes if node.op_type == "BatchNormalization"}
    assert graph.nodes[-1].output[0] == graph.output.name == "logits"
    assert graph.output.type.tensor_type.shape.dim[1].dim_value == 10
    used = {name for node in graph.nodes for name in node.input}
    assert {constant.name for constant in graph.constants} <= used
    assert not any(node.metadata_props or node.doc_string for node in graph.nodes)


def test_a_graph_comes_back_as_it_was_written(exporter: ExactExporter) -> None:
    graph = exporter.graph
    content = graph.to_bytes()
    assert FloatGraph.from_bytes(content) == graph
    assert FloatGraph.from_bytes(content).to_bytes() == content
    assert len(content) < 50_000


@pytest.mark.parametrize("content", [b"", b"not a graph"])
def test_what_is_no_graph_is_refused(content: bytes) -> None:
    with pytest.raises(ArtifactError, match="float graph"):
        FloatGraph.from_bytes(content)
