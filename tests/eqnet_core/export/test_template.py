from __future__ import annotations

from eqnet_core.export.onnx_exact import ExactExporter


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
