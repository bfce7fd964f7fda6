"""One build: order -> factory -> artifacts -> what the record says. Runs in a builder process."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from eqnet_core.configuration_json import configuration_from_json, configuration_to_json
from eqnet_core.errors import EqnetError, InfeasibleBudgetError
from eqnet_core.factory import INTEGER, Factory
from eqnet_core.space import SubnetConfiguration
from service.devices.resolve import catalogue
from service.jobs.evaluation import EvaluationSet
from service.subnets.artifacts import ArtifactStore
from service.subnets.order import SearchOrder, SubnetOrder

_SEARCHED = 0.4
"""Fraction of a build that is done when its search is, by the times of a default search and an export."""


class OtherEvaluationError(EqnetError):
    """This builder has other evaluation images than whoever took the request, or none."""

    code = "other-evaluation-data"


def build(
    subnet: str,
    order: SubnetOrder,
    *,
    factory: Factory,
    artifacts: ArtifactStore,
    evaluation: EvaluationSet | None,
    progress: Callable[[str, float], None],
) -> dict[str, Any]:
    """The members that a ready record has beyond the order's. Its files are then stored, not committed.

    Raises:
        EqnetError: the order cannot be built.
        OSError: the artifacts cannot be stored.
    """
    images = _images(order, evaluation)
    timings: dict[str, float] = {}
    space = factory.bundle.space
    configuration: SubnetConfiguration
    device = None
    if isinstance(order.what, SearchOrder):
        if order.what.device is not None:
            device = catalogue()[order.what.device]
        progress("search", 0.0)
        started = time.perf_counter()
        found = factory.search(
            order.what.profile,
            order.what.budget,
            order.what.search,
            order.what.pins,
            progress=lambda done: progress("search", _SEARCHED * done),
        )
        configuration = found.configuration
        timings["search"] = round(time.perf_counter() - started, 4)
    else:
        configuration = configuration_from_json(order.what, space)
    prediction = factory.predict([configuration])
    predicted = float(prediction.accuracy[0])
    interval = [float(prediction.low[0]), float(prediction.high[0])]

    progress("build", _SEARCHED)
    # What is measured is the state-dict, so that it is made even where nobody asked to keep it.
    wanted = {*order.artifacts, *(("model.safetensors",) if order.evaluation else ())}
    built = factory.build(
        configuration, artifacts=sorted(wanted), provenance={"subnet": subnet}, device=device
    )
    timings.update({stage: round(float(seconds), 4) for stage, seconds in built.timings.items()})

    measured = measured_integer = None
    if images is not None:
        progress("verify", 0.7)
        started = time.perf_counter()
        measured = images.top1(built.files["model.safetensors"])
        if INTEGER in built.files:
            measured_integer = images.top1_onnx(built.files[INTEGER], factory.bundle.input)
        timings["verify"] = round(time.perf_counter() - started, 4)

    progress("store", 0.95)
    stored = artifacts.save(subnet, {name: built.files[name] for name in order.artifacts})
    return {
        "configuration": configuration_to_json(configuration, space),
        "predicted_accuracy": predicted,
        "prediction_interval": interval,
        "measured_accuracy": measured,
        "measured_integer_accuracy": measured_integer,
        "containers": None if device is None else _containers(built.report["layers"]),
        "cost": factory.cost(configuration).to_json(),
        "artifacts": [file.to_json() for file in stored],
        "timings": timings,
    }


def _images(order: SubnetOrder, evaluation: EvaluationSet | None) -> EvaluationSet | None:
    """What to measure on, if anything. Asked first: a search takes long, and this is not mended meanwhile."""
    if order.evaluation is None:
        return None
    if evaluation is None or evaluation.digest != order.evaluation:
        raise OtherEvaluationError(
            "the builder has other evaluation images than the service, or none: leave out `verify`, or have "
            "the operator restart the service and its workers with the same EQNET_EVALUATION_DATA"
        )
    return evaluation


def _containers(layers: list[dict[str, Any]]) -> list[dict[str, str]]:
    """What the device holds each layer in, from the layers of a report."""
    return [
        {
            "name": layer["name"],
            "weight": layer["weight"]["on_device"],
            "activation": layer["activation"]["on_device"],
        }
        for layer in layers
    ]


def problem_document(error: Exception) -> dict[str, Any]:
    """What crosses the process boundary when a build fails; the web process makes a problem of it."""
    if isinstance(error, EqnetError):
        document: dict[str, Any] = {
            "code": error.code,
            "detail": str(error),
            "errors": [{"pointer": v.pointer, "detail": v.detail} for v in error.violations],
        }
        if isinstance(error, InfeasibleBudgetError):
            document["nearest"] = error.nearest
        return document
    if isinstance(error, OSError):
        return {"code": "storage", "detail": f"the artifacts cannot be stored: {error.strerror or error}"}
    return {"code": "build-failed", "detail": "the build failed; the service's log tells more"}
