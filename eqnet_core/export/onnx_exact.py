"""Flavour `exact`: BatchNorm kept as a node, everything between quantised layers in float32.

`model.onnx` has its quantisers as Q/DQ pairs, `model.qonnx.onnx` as QONNX's Quant nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import onnx

from eqnet_core.errors import ArtifactError
from eqnet_core.export import qonnx
from eqnet_core.export.graph import (
    GraphBuilder,
    assemble,
    batch_norm,
    dequantize_weight,
    quantize_input,
    quantized_layer,
)
from eqnet_core.export.template import FloatGraph, trace_float_graph
from eqnet_core.subnet import InputSpec, QuantizedLayer, Subnet

FORMAT = "eqnet-exact/1"
"""Changes whenever the same subnet would give other bytes."""


class ExactExporter:
    """Exports subnets of one architecture. Making one takes seconds (torch traces the float network);
    `render` takes milliseconds.

    Args:
        architecture: a name of `eqnet_core.models.ARCHITECTURES`.
        input: the image that the file takes; the batch axis is dynamic.
        classes: class names, in the order of the logits.
        graph: the architecture's float graph, if it was traced already.

    Raises:
        InvalidConfigurationError: no such architecture.
        UnsupportedTargetError: an architecture with a layer that ONNX does not have as one node.
    """

    def __init__(
        self,
        architecture: str,
        input: InputSpec,
        classes: tuple[str, ...],
        *,
        graph: FloatGraph | None = None,
    ) -> None:
        self.architecture, self.input, self.classes = architecture, input, classes
        self.graph = graph or trace_float_graph(architecture, input.shape, len(classes))

    def render(self, subnet: Subnet, metadata: Mapping[str, str]) -> bytes:
        """The ONNX file of `subnet`: input `image` float32 [batch, C, H, W], normalised; output `logits`.

        `metadata` (bundle digest, predicted accuracy, ...) is stored under `eqnet.<key>`, beside the format,
        architecture, configuration, normalisation and class names. Equal arguments give equal bytes.

        Raises:
            ArtifactError: the subnet is not one of this architecture, input and classes.
            UnsupportedTargetError: a layer whose codes no container holds; names the layer.
        """
        specs = {spec.name: spec for spec in subnet.space.layers}
        signed = subnet.configuration.signed

        def quantize(builder: GraphBuilder, value: str, layer: QuantizedLayer) -> tuple[str, str]:
            value = quantize_input(builder, value, layer, specs[layer.name], signed=signed)
            return value, dequantize_weight(builder, layer)

        builder = self._build(subnet, self.graph.nodes, quantize)
        return assemble(self.graph, builder, self.graph.constants, subnet, FORMAT, metadata)

    def render_qonnx(self, subnet: Subnet, metadata: Mapping[str, str]) -> bytes:
        """The network of `render` for one image, its quantisers QONNX's Quant nodes (`export.qonnx`).

        Raises:
            ArtifactError: as `render`.
            UnsupportedTargetError: a zero-point other than 0; names the layer.
        """
        qonnx.check_symmetric(subnet)

        def quantize(builder: GraphBuilder, value: str, layer: QuantizedLayer) -> tuple[str, str]:
            return qonnx.quant_input(builder, value, layer), qonnx.quant_weight(builder, layer)

        graph = qonnx.single_image(self.graph)
        builder = self._build(subnet, graph.nodes, quantize)
        return assemble(
            graph, builder, graph.constants, subnet, qonnx.FORMAT, metadata, versions=qonnx.VERSIONS
        )

    def _build(
        self,
        subnet: Subnet,
        nodes: Iterable[onnx.NodeProto],
        quantize: Callable[[GraphBuilder, str, QuantizedLayer], tuple[str, str]],
    ) -> GraphBuilder:
        """`quantize` adds what a layer's input (given by its value) and weight come from, and names both."""
        self._check(subnet)
        builder = GraphBuilder()
        layers = {layer.name: layer for layer in subnet.layers}
        for node in nodes:
            if node.name in layers:
                layer = layers[node.name]
                quantized_layer(builder, node, layer, quantize(builder, node.input[0], layer))
            elif node.name in subnet.batch_norms:
                batch_norm(builder, node, subnet.batch_norms[node.name])
            else:
                builder.nodes.append(node)
        return builder

    def _check(self, subnet: Subnet) -> None:
        expected = (self.architecture, self.input, self.classes)
        if (subnet.architecture, subnet.input, subnet.classes) != expected:
            raise ArtifactError(
                f"this exporter is for {self.architecture} with images {self.input.shape} and "
                f"{len(self.classes)} classes; the subnet is a {subnet.architecture} with images "
                f"{subnet.input.shape} and {len(subnet.classes)} classes, or another normalisation"
            )
        names = {layer.name for layer in subnet.layers} | set(subnet.batch_norms)
        missing = sorted((self.graph.layers | self.graph.batch_norms) ^ names)
        if missing:
            raise ArtifactError(f"subnet and architecture disagree about {', '.join(missing)}")
