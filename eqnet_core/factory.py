"""The library's front door: open a bundle, search it, predict, build subnets and save them.

    factory = Factory.open("resnet20-cifar10")
    found = factory.search(profile, Budget(weight_bits=3.0, activation_bits=3.0))
    build = factory.build(found.configuration)
    save(build, "my-subnet")

Only `warm` and `build` import torch.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eqnet_core.build import ARTIFACTS, INTEGER, QONNX, Build, save
from eqnet_core.bundle import DOCUMENT, Bundle, shipped_bundles
from eqnet_core.cost import Cost, CostModel
from eqnet_core.devices.device import Device
from eqnet_core.errors import UnsupportedTargetError, Violation
from eqnet_core.predictor import AccuracyPredictor
from eqnet_core.profile import Budget, DeviceProfile, LayerPin, SearchSettings
from eqnet_core.search import SearchResult, search
from eqnet_core.space import QuantizationForm, SubnetConfiguration, Symmetry
from eqnet_core.statistics import StatisticsPredictor

if TYPE_CHECKING:
    from eqnet_core.builder import SubnetBuilder
    from eqnet_core.export.template import FloatGraph

__all__ = ["ARTIFACTS", "INTEGER", "QONNX", "Build", "Factory", "Prediction", "save"]


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Predicted accuracies, and the ends of their 90 % intervals: float64 [N] each, fractions."""

    accuracy: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


class Factory:
    """Makes subnets from one bundle. Safe to share between threads; builds run one after the other."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self._lock = threading.Lock()
        self._graph: FloatGraph | None = None
        self._builder: SubnetBuilder | None = None

    @classmethod
    def open(cls, path_or_name: str | Path) -> Factory:
        """Open a bundle's folder, or a shipped bundle by its name.

        Raises:
            BundleError: there is none, it is damaged, or a newer version wrote it.
        """
        folder = Path(path_or_name)
        if not (folder / DOCUMENT).exists():
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

    def usual_artifacts(self, device: Device | None = None) -> tuple[str, ...]:
        """What `build` makes unless told: all, but `model.qonnx.onnx` only for devices that take it."""
        takes_qonnx = device is not None and device.file == QONNX
        return tuple(name for name in self.artifacts if name != QONNX or takes_qonnx)

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
            InvalidProfileError: pins or bits that the device or the network does not have.
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
        """Accuracies of `configurations` with predicted BatchNorm statistics, which the predictor is fitted
        with: as delivered, unless the bundle carries images, which then calibrate what is delivered.

        Raises:
            InvalidConfigurationError: not one entry per searchable layer, or bits that the network lacks.
        """
        if not configurations:
            return Prediction(accuracy=np.empty(0), low=np.empty(0), high=np.empty(0))
        accuracy = self.predictor.predict(self.bundle.space.encode(configurations))
        low, high = self.predictor.interval(accuracy)
        return Prediction(accuracy=accuracy, low=low, high=high)

    def cost(self, configuration: SubnetConfiguration) -> Cost:
        """What `configuration` costs.

        Raises:
            InvalidConfigurationError: not one entry per searchable layer, or bits that the network lacks.
        """
        return self.costs.of(configuration)

    def cost_all(self, configurations: Sequence[SubnetConfiguration]) -> list[Cost]:
        """What each of `configurations` costs, much faster than one by one.

        Raises:
            InvalidConfigurationError: not one entry per searchable layer, or bits that the network lacks.
        """
        return self.costs.of_all(configurations)

    def trace(self) -> FloatGraph:
        """The float graph that `warm` makes unless it is given one, or the bundle holds it: seconds, and
        250 MB of modules that stay loaded, which a process of its own can have instead.

        Raises:
            BundleError: an architecture that this version does not have.
        """
        from eqnet_core.builder import trace

        return trace(self.bundle)

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

        The same bundle, configuration, provenance and device give the same bytes (but for what `report.json`
        measures, where rounding differs from processor to processor), whichever `artifacts` are
        asked for (`usual_artifacts` unless told); but `report.json` has the size and the proof of a
        `model.qonnx.onnx` only where it is made, for a device that takes it or because it is asked for.
        `provenance` (JSON values, such as a request's id) is stored in the files beside the bundle's name and
        digest and the predicted accuracy. With a `device`, subnet and files are checked against every rule of
        its entry, and the report says what it holds each layer in.

        Raises:
            InvalidConfigurationError: not one entry per searchable layer, or bits that the network lacks.
            UnsupportedTargetError: an artifact that there is not, or a layer that `device` does not take.
            ProofError: the export differs from the simulation.
            BundleError: as `warm`.
        """
        if artifacts is None:
            artifacts = self.usual_artifacts(device)
        else:
            self.check_artifacts(artifacts, configuration.form)
        self.bundle.space.check(configuration)
        metadata = {**self._provenance(configuration), **(provenance or {})}
        with self._lock:
            return self._prepare().build(configuration, artifacts, metadata, device)

    def check_artifacts(self, artifacts: Sequence[str], form: QuantizationForm) -> None:
        """Raise UnsupportedTargetError, which says why, if subnets of `form` cannot be had as `artifacts`."""
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
        if QONNX in artifacts and Symmetry.ASYMMETRIC in (form.weight_symmetry, form.activation_symmetry):
            raise UnsupportedTargetError(
                f"{QONNX} needs symmetric weights and activations, since what reads it takes zero-points of 0"
                ": ask for those, or for model.onnx",
                violations=[
                    Violation(f"/artifacts/{list(artifacts).index(QONNX)}", "is for symmetric forms")
                ],
            )

    def _provenance(self, configuration: SubnetConfiguration) -> dict[str, Any]:
        predicted = self.predict([configuration])
        return {
            "supernet": self.bundle.name,
            "bundle_digest": self.bundle.digest,
            "predicted_accuracy": float(predicted.accuracy[0]),
            "prediction_interval": [float(predicted.low[0]), float(predicted.high[0])],
        }

    def _prepare(self) -> SubnetBuilder:
        if self._builder is None:
            from eqnet_core.builder import SubnetBuilder

            self._builder = SubnetBuilder(
                self.bundle, statistics=self.statistics, costs=self.costs, graph=self._graph
            )
        return self._builder
