"""The torch side of a factory."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from eqnet_core.build import INTEGER, QONNX, Build
from eqnet_core.bundle import GRAPH, Bundle
from eqnet_core.calibration import calibrate_batch_norm, normalised_batches
from eqnet_core.cost import CostModel
from eqnet_core.devices.device import Device
from eqnet_core.devices.rules import check_subnet
from eqnet_core.errors import ArtifactError, BundleError, InvalidConfigurationError
from eqnet_core.export.conformance import check_files
from eqnet_core.export.encodings import encodings
from eqnet_core.export.integer_proof import IntegerProof, prove_integer
from eqnet_core.export.module import build_module
from eqnet_core.export.onnx_exact import ExactExporter
from eqnet_core.export.onnx_integer import IntegerExporter
from eqnet_core.export.proof import Proof, check_extraction, natural_images, prove, simulate
from eqnet_core.export.qonnx import check_quants, runnable
from eqnet_core.export.report import report
from eqnet_core.export.state_dict import save_subnet
from eqnet_core.export.template import FloatGraph, trace_float_graph
from eqnet_core.ranges import cost_band
from eqnet_core.space import SubnetConfiguration
from eqnet_core.statistics import StatisticsPredictor
from eqnet_core.supernet import Statistics, Supernet

PROOF_IMAGES = 32
"""Images that each build compares ONNX Runtime and the simulation on, fewer where one takes long."""

_PROOF_MACS = 4_000_000_000
"""Multiply-accumulates that the images of a proof may need, each run once: two images of a ResNet-18."""


_PREDICTED = ("predicted_accuracy", "prediction_interval")

_EXTRACTED = 2
"""Images that show an extracted subnet to be the supernet's, which simulates several times slower."""


class SubnetBuilder:
    """What loads once and then builds many subnets, one after the other."""

    def __init__(
        self,
        bundle: Bundle,
        *,
        statistics: StatisticsPredictor,
        costs: CostModel,
        graph: FloatGraph | None = None,
    ) -> None:
        """Load the supernet and prepare the export.

        Args:
            bundle: whose subnets are built.
            statistics: predicts the BatchNorm statistics of subnets of a bundle without images.
            costs: of this bundle's subnets.
            graph: what `trace` returned; the bundle's own unless given, traced if it has none.

        Raises:
            BundleError: an architecture that this version does not have, or tensors that do not fit it.
        """
        self._bundle = bundle
        self._predicted = statistics
        self._costs = costs
        with _for_this_version(bundle):
            self._supernet = Supernet.from_bundle(bundle)
        if {*dict(statistics.batch_norms)} != {*self._supernet.batch_norms()}:
            raise BundleError(
                f"bundle {bundle.name}: its predicted statistics are of other BatchNorms than those of "
                f"{bundle.architecture}: write the bundle again"
            )
        if graph is None:
            graph = _stored_graph(bundle) or trace(bundle)
        self._exporter = ExactExporter(bundle.architecture, bundle.input, bundle.classes, graph=graph)
        self._integers = IntegerExporter(graph, bundle.ranges()) if bundle.has_ranges else None
        macs = sum(layer.macs for layer in bundle.space.layers)
        self._images = natural_images(bundle.input, proof_images(macs), seed=0)
        images = bundle.calibration_images()
        self._calibration = [] if images is None else normalised_batches(images, bundle.input)

    def build(
        self,
        configuration: SubnetConfiguration,
        artifacts: Sequence[str],
        metadata: Mapping[str, Any],
        device: Device | None,
    ) -> Build:
        """As `Factory.build`, of artifacts that there are and a configuration that fits.

        Raises:
            UnsupportedTargetError: a layer that `device` does not take.
            ProofError: the export differs from the simulation.
        """
        started = time.perf_counter()
        statistics = self._statistics(configuration)
        subnet = self._supernet.extract(configuration, statistics)
        if device is not None:
            check_subnet(device, subnet)
        calibrated = time.perf_counter()
        texts = _texts(metadata)
        # All, whatever is asked for: the report states the size of each, and a render takes milliseconds.
        # But for QONNX, which few read: its weights are float32, and it has a proof of its own.
        files = {
            "encodings.json": encodings(subnet),
            "model.onnx": self._exporter.render(subnet, texts),
            "model.safetensors": save_subnet(subnet, texts),
        }
        integers, integer_accuracy = None, self._integer_accuracy(configuration, metadata)
        if self._integers is not None:
            integers = self._integers.fold(subnet)
            own = {key: integer_accuracy[key] for key in _PREDICTED if key in integer_accuracy}
            files[INTEGER] = self._integers.render(integers, _texts({**metadata, **own}))
        if QONNX in artifacts or (device is not None and device.file == QONNX):
            files[QONNX] = self._exporter.render_qonnx(subnet, texts)
        if device is not None:
            check_files(device, files)
        exported = time.perf_counter()
        logits = simulate(build_module(subnet), self._images)
        check_extraction(self._supernet, logits[:_EXTRACTED], self._images[:_EXTRACTED])
        proofs: dict[str, Proof | IntegerProof] = {
            "model.onnx": prove(files["model.onnx"], subnet, self._images, expected=logits)
        }
        if self._integers is not None and integers is not None:
            proofs[INTEGER] = prove_integer(
                files[INTEGER], integers, self._integers.plan, self._images, logits
            )
        if QONNX in files:
            proofs[QONNX] = prove(
                runnable(files[QONNX]), subnet, self._images, expected=logits, inspect=check_quants
            )
        proved = time.perf_counter()
        files["report.json"] = report(
            subnet,
            integers=integers,
            integer_accuracy=integer_accuracy,
            proofs=proofs,
            sizes={name: len(content) for name, content in files.items()},
            cost=self._costs.of(configuration).to_json(),
            metadata=metadata,
            device=device,
        )
        return Build(
            files={name: files[name] for name in artifacts},
            report=json.loads(files["report.json"]),
            timings={
                "calibrate": calibrated - started,
                "export": exported - calibrated,
                "prove": proved - exported,
            },
        )

    def _statistics(self, configuration: SubnetConfiguration) -> Statistics:
        """Calibrated with the bundle's own images where it has some, else predicted."""
        if not self._calibration:
            return self._predicted.predict(configuration, self._bundle.space)
        self._supernet.activate(configuration)
        return calibrate_batch_norm(self._supernet, self._calibration)

    def _integer_accuracy(
        self, configuration: SubnetConfiguration, metadata: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Predicted for `model.integer.onnx`: the prediction less what the flavour costs on average, if it
        costs anything: that rounding once more gains anything is luck of the images it was measured on."""
        measured = self._bundle.document.get("integer", {})
        band = cost_band((*configuration.weight_bits, *configuration.activation_bits))
        cost = measured.get("cost", {}).get(band)
        predicted = metadata.get("predicted_accuracy")
        if cost is None or not isinstance(predicted, float):
            return {}
        lost = max(cost, 0.0)
        return {
            "predicted_accuracy": max(predicted - lost, 0.0),
            "prediction_interval": [max(end - lost, 0.0) for end in metadata["prediction_interval"]],
            "exact_predicted_accuracy": predicted,
            "mean_cost": cost,
            "measured_on": {"images": measured["images"], "average_bits": band},
        }


def _texts(metadata: Mapping[str, Any]) -> dict[str, str]:
    """As files hold it: JSON, but for what is text already."""
    return {
        key: value if isinstance(value, str) else json.dumps(value, separators=(",", ":"), sort_keys=True)
        for key, value in metadata.items()
    }


def trace(bundle: Bundle) -> FloatGraph:
    """The float graph of the bundle's architecture: seconds, and 250 MB of modules that stay loaded.

    Raises:
        BundleError: an architecture that this version does not have.
    """
    with _for_this_version(bundle):
        return trace_float_graph(bundle.architecture, bundle.input.shape, len(bundle.classes))


@contextmanager
def _for_this_version(bundle: Bundle) -> Iterator[None]:
    try:
        yield
    except (InvalidConfigurationError, AttributeError) as error:
        raise BundleError(f"bundle {bundle.name} is not for this version: {error}") from error


def _stored_graph(bundle: Bundle) -> FloatGraph | None:
    """The graph that the bundle holds.

    Raises:
        BundleError: it is of another network.
    """
    if not bundle.has_graph:
        return None
    try:
        graph = FloatGraph.from_bytes(bundle.read(GRAPH))
    except ArtifactError as error:
        raise BundleError(f"bundle {bundle.name}: {GRAPH}: {error}: write the bundle again") from error
    if graph.layers != {layer.name for layer in bundle.space.layers}:
        raise BundleError(f"bundle {bundle.name}: {GRAPH} is of another network: write the bundle again")
    return graph


def proof_images(macs: int) -> int:
    """How many images a proof of a network of `macs` multiply-accumulates per image sees: 2 to 32."""
    return max(2, min(PROOF_IMAGES, _PROOF_MACS // max(macs, 1)))
