"""The library's front door: open a bundle, search it, predict, build subnets and save them.

    factory = Factory.open("resnet20-cifar10")
    found = factory.search(profile, Budget(weight_bits=3.0, activation_bits=3.0))
    build = factory.build(found.configuration)
    save(build, "my-subnet")

Only `warm` and `build` import torch.
"""

from __future__ import annotations

import json
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eqnet_core.bundle import GRAPH, Bundle, shipped_bundles
from eqnet_core.cost import Cost, CostModel
from eqnet_core.devices.device import Device
from eqnet_core.devices.rules import check_subnet
from eqnet_core.errors import (
    ArtifactError,
    BundleError,
    InvalidConfigurationError,
    UnsupportedTargetError,
    Violation,
)
from eqnet_core.predictor import AccuracyPredictor
from eqnet_core.profile import Budget, DeviceProfile, LayerPin, SearchSettings
from eqnet_core.ranges import cost_band
from eqnet_core.search import SearchResult, search
from eqnet_core.space import SubnetConfiguration
from eqnet_core.statistics import StatisticsPredictor

if TYPE_CHECKING:
    from eqnet_core.export.onnx_exact import ExactExporter
    from eqnet_core.export.onnx_integer import IntegerExporter
    from eqnet_core.export.template import FloatGraph
    from eqnet_core.supernet import Statistics, Supernet

INTEGER = "model.integer.onnx"

ARTIFACTS: tuple[str, ...] = (
    "encodings.json", INTEGER, "model.onnx", "model.safetensors", "report.json",
)  # fmt: skip
"""Every file that `Factory.build` can make; bundles without tensor ranges have no `model.integer.onnx`."""

PROOF_IMAGES = 32
"""Images that each build compares ONNX Runtime and the simulation on, fewer where one takes long."""

_PROOF_MACS = 4_000_000_000
"""Multiply-accumulates that the images of a proof may need, each run once: two images of a ResNet-18."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Predicted accuracies, and the ends of their 90 % intervals: float64 [N] each, fractions."""

    accuracy: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Build:
    """`files` by artifact name; `report` is report.json as an object; `timings` in seconds, by stage."""

    files: Mapping[str, bytes]
    report: Mapping[str, Any]
    timings: Mapping[str, float]


class Factory:
    """Makes subnets from one bundle. Safe to share between threads; builds run one after the other."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self._lock = threading.Lock()
        self._graph: FloatGraph | None = None
        self._workshop: _Workshop | None = None

    @classmethod
    def open(cls, path_or_name: str | Path) -> Factory:
        """Open a bundle's folder, or a shipped bundle by its name.

        Raises:
            BundleError: there is none, it is damaged, or a newer version wrote it.
        """
        folder = Path(path_or_name)
        if not folder.is_dir():
            folder = shipped_bundles().get(str(path_or_name), folder)
        return cls(Bundle.open(folder))

    @cached_property
    def predictor(self) -> AccuracyPredictor:
        """CQAP of this bundle."""
        return self.bundle.predictor()

    @cached_property
    def statistics(self) -> StatisticsPredictor:
        """The BatchNorm statistics predictor of this bundle."""
        return self.bundle.statistics()

    @cached_property
    def costs(self) -> CostModel:
        """Costs of this bundle's subnets."""
        return CostModel(self.bundle.space)

    @property
    def artifacts(self) -> tuple[str, ...]:
        """Those of `ARTIFACTS` that this bundle has all for."""
        return ARTIFACTS if self.bundle.has_ranges else tuple(n for n in ARTIFACTS if n != INTEGER)

    def search(
        self,
        profile: DeviceProfile,
        budget: Budget | None = None,
        settings: SearchSettings | None = None,
        pins: Mapping[str, LayerPin] | None = None,
        progress: Callable[[float], None] | None = None,
    ) -> SearchResult:
        """The subnet with the highest predicted accuracy that the device and the budget allow.

        `progress` is told the fraction of the search that is done.

        Raises:
            InvalidProfileError: pins that the device or the network does not have.
            InfeasibleBudgetError: no subnet meets the budget.
        """
        return search(
            space=self.bundle.space,
            predictor=self.predictor,
            costs=self.costs,
            profile=profile,
            budget=budget or Budget(),
            settings=settings or SearchSettings(),
            pins=pins,
            progress=progress,
        )

    def predict(self, configurations: Sequence[SubnetConfiguration]) -> Prediction:
        """Accuracies of `configurations` as delivered: with predicted BatchNorm statistics, unless the
        bundle carries images.

        Raises:
            InvalidConfigurationError: not one entry per searchable layer.
        """
        if not configurations:
            return Prediction(accuracy=np.empty(0), low=np.empty(0), high=np.empty(0))
        accuracy = self.predictor.predict(self.bundle.space.encode(configurations))
        low, high = self.predictor.interval(accuracy)
        return Prediction(accuracy=accuracy, low=low, high=high)

    def cost(self, configuration: SubnetConfiguration) -> Cost:
        """What `configuration` costs.

        Raises:
            InvalidConfigurationError: not one entry per searchable layer.
        """
        return self.costs.of(configuration)

    def cost_all(self, configurations: Sequence[SubnetConfiguration]) -> list[Cost]:
        """What each of `configurations` costs, much faster than one by one.

        Raises:
            InvalidConfigurationError: not one entry per searchable layer.
        """
        return self.costs.of_all(configurations)

    def trace(self) -> FloatGraph:
        """The float graph that `warm` makes unless it is given one, or the bundle holds it: seconds, and
        250 MB of modules that stay loaded, which a process of its own can have instead.

        Raises:
            BundleError: an architecture that this version does not have.
        """
        from eqnet_core.export.template import trace_float_graph

        bundle = self.bundle
        with _for_this_version(bundle):
            return trace_float_graph(bundle.architecture, bundle.input.shape, len(bundle.classes))

    def warm(self, graph: FloatGraph | None = None) -> None:
        """Load the supernet and prepare the export now: seconds that the first `build` then does not take.

        `graph` is what `trace` of a factory of the same bundle returned.

        Raises:
            BundleError: an architecture that this version does not have, or tensors that do not fit it.
        """
        with self._lock:
            self._graph = graph
            self._prepare()

    def build(
        self,
        configuration: SubnetConfiguration,
        *,
        artifacts: Sequence[str] | None = None,
        provenance: Mapping[str, Any] | None = None,
        device: Device | None = None,
    ) -> Build:
        """The subnet of `configuration` as files, proven to compute what the supernet simulates.

        The same bundle, configuration, provenance and device give the same bytes, whichever `artifacts` are
        asked for (all that the bundle has, unless told). `provenance` (JSON values, such as a request's id)
        is stored in the files beside the bundle's name and digest and the predicted accuracy. With a
        `device`, subnet and files are checked against every rule of its entry, and the report says what it
        holds each layer in.

        Raises:
            InvalidConfigurationError: not one entry per searchable layer.
            UnsupportedTargetError: an artifact that there is not, or a layer that `device` does not take.
            ProofError: the export differs from the simulation.
            BundleError: as `warm`.
        """
        artifacts = self.artifacts if artifacts is None else artifacts
        self.check_artifacts(artifacts)
        self.bundle.space.check(configuration)
        metadata = {**self._provenance(configuration), **(provenance or {})}
        with self._lock:
            return self._prepare().build(configuration, artifacts, metadata, device)

    def check_artifacts(self, artifacts: Sequence[str]) -> None:
        """Raise UnsupportedTargetError if this bundle cannot give one of `artifacts`; the error says why."""
        unknown = [(position, name) for position, name in enumerate(artifacts) if name not in self.artifacts]
        if unknown:
            reason = (
                f" (the bundle {self.bundle.name} has no tensor ranges: its owner runs the `ranges` stage)"
                if any(name == INTEGER for _, name in unknown)
                else ""
            )
            raise UnsupportedTargetError(
                f"cannot build {', '.join(name for _, name in unknown)}{reason}: "
                f"choose from {', '.join(self.artifacts)}",
                violations=[Violation(f"/artifacts/{i}", f"{name!r} is not built") for i, name in unknown],
            )

    def _provenance(self, configuration: SubnetConfiguration) -> dict[str, Any]:
        predicted = self.predict([configuration])
        return {
            "supernet": self.bundle.name,
            "bundle_digest": self.bundle.digest,
            "predicted_accuracy": float(predicted.accuracy[0]),
            "prediction_interval": [float(predicted.low[0]), float(predicted.high[0])],
        }

    def _prepare(self) -> _Workshop:
        if self._workshop is None:
            self._workshop = _Workshop(self, self._graph)
        return self._workshop


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
    from eqnet_core.export.template import FloatGraph

    if not bundle.has_graph:
        return None
    try:
        graph = FloatGraph.from_bytes(bundle.read(GRAPH))
    except ArtifactError as error:
        raise BundleError(f"bundle {bundle.name}: {GRAPH}: {error}: write the bundle again") from error
    if graph.layers != {layer.name for layer in bundle.space.layers}:
        raise BundleError(f"bundle {bundle.name}: {GRAPH} is of another network: write the bundle again")
    return graph


class _Workshop:
    """The torch side of a factory: what loads once and then builds many subnets."""

    def __init__(self, factory: Factory, graph: FloatGraph | None) -> None:
        from eqnet_core.calibration import normalised_batches
        from eqnet_core.export.onnx_exact import ExactExporter
        from eqnet_core.export.onnx_integer import IntegerExporter
        from eqnet_core.export.proof import natural_images
        from eqnet_core.supernet import Supernet

        bundle = factory.bundle
        self._factory = factory
        with _for_this_version(bundle):
            self._supernet: Supernet = Supernet.from_bundle(bundle)
        if graph is None:
            graph = _stored_graph(bundle) or factory.trace()
        self._exporter: ExactExporter = ExactExporter(
            bundle.architecture, bundle.input, bundle.classes, graph=graph
        )
        self._integers: IntegerExporter | None = None
        if bundle.has_ranges:
            self._integers = IntegerExporter(graph, bundle.ranges())
        macs = sum(layer.macs for layer in bundle.space.layers)
        self._images = natural_images(bundle.input, proof_images(macs), seed=0)
        images = bundle.calibration_images()
        self._calibration = [] if images is None else normalised_batches(images, bundle.input)

    def _statistics(self, configuration: SubnetConfiguration) -> Statistics:
        """Calibrated with the bundle's own images where it has some, else predicted."""
        from eqnet_core.calibration import calibrate_batch_norm

        if not self._calibration:
            return self._factory.statistics.predict(configuration, self._factory.bundle.space)
        self._supernet.activate(configuration)
        return calibrate_batch_norm(self._supernet, self._calibration)

    def build(
        self,
        configuration: SubnetConfiguration,
        artifacts: Sequence[str],
        metadata: Mapping[str, Any],
        device: Device | None,
    ) -> Build:
        from eqnet_core.export.conformance import check_files
        from eqnet_core.export.encodings import encodings
        from eqnet_core.export.integer_proof import IntegerProof, prove_integer
        from eqnet_core.export.module import build_module
        from eqnet_core.export.proof import Proof, prove, simulate
        from eqnet_core.export.report import report
        from eqnet_core.export.state_dict import save_subnet

        factory = self._factory
        started = time.perf_counter()
        statistics = self._statistics(configuration)
        subnet = self._supernet.extract(configuration, statistics)
        if device is not None:
            check_subnet(device, subnet)
        calibrated = time.perf_counter()
        texts = {
            key: value if isinstance(value, str) else json.dumps(value, separators=(",", ":"), sort_keys=True)
            for key, value in metadata.items()
        }
        # All, whatever is asked for: the report states the size of each, and a render takes milliseconds.
        files = {
            "encodings.json": encodings(subnet),
            "model.onnx": self._exporter.render(subnet, texts),
            "model.safetensors": save_subnet(subnet, texts),
        }
        integers = None
        if self._integers is not None:
            integers = self._integers.fold(subnet)
            files[INTEGER] = self._integers.render(integers, texts)
        if device is not None:
            check_files(device, files)
        exported = time.perf_counter()
        logits = simulate(build_module(subnet), self._images)
        proofs: dict[str, Proof | IntegerProof] = {
            "model.onnx": prove(files["model.onnx"], subnet, self._images, expected=logits)
        }
        if self._integers is not None and integers is not None:
            proofs[INTEGER] = prove_integer(
                files[INTEGER], integers, self._integers.plan, self._images, logits
            )
        proved = time.perf_counter()
        files["report.json"] = report(
            subnet,
            integers=integers,
            integer_accuracy=self._integer_accuracy(configuration, metadata),
            proofs=proofs,
            sizes={name: len(content) for name, content in files.items()},
            cost=factory.cost(configuration).to_json(),
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

    def _integer_accuracy(
        self, configuration: SubnetConfiguration, metadata: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Predicted for `model.integer.onnx`: the prediction less what the flavour costs on average, if it
        costs anything: that rounding once more gains anything is luck of the images it was measured on."""
        measured = self._factory.bundle.document.get("integer", {})
        band = cost_band((*configuration.weight_bits, *configuration.activation_bits))
        cost = measured.get("cost", {}).get(band)
        predicted = metadata.get("predicted_accuracy")
        if cost is None or not isinstance(predicted, float):
            return {}
        return {
            "predicted_accuracy": predicted - max(cost, 0.0),
            "exact_predicted_accuracy": predicted,
            "mean_cost": cost,
            "measured_on": {"images": measured["images"], "average_bits": band},
        }


def proof_images(macs: int) -> int:
    """How many images a proof of a network of `macs` multiply-accumulates per image sees: 2 to 32."""
    return max(2, min(PROOF_IMAGES, _PROOF_MACS // max(macs, 1)))


def save(build: Build, folder: str | Path) -> Path:
    """Write the files of `build` into `folder` (made if missing) and return it.

    Each file is replaced as a whole: a reader finds the old one or all of the new one.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in build.files.items():
        staging = folder / f".{name}.{secrets.token_hex(4)}.tmp"
        try:
            with staging.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            staging.replace(folder / name)
        finally:
            staging.unlink(missing_ok=True)
    return folder
