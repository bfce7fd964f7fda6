"""From the bits of a request to predicted accuracies; NumPy, blocking."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from eqnet_core.configuration_json import configuration_to_json
from eqnet_core.errors import InvalidConfigurationError
from eqnet_core.factory import Factory
from eqnet_core.pareto import FrontAxis, front
from eqnet_core.profile import DeviceProfile
from eqnet_core.space import (
    BIT_WIDTHS,
    NARROW_RANGE_ADVICE,
    Granularity,
    QuantizationForm,
    SearchSpace,
    SubnetConfiguration,
    Symmetry,
)
from service.devices.resolve import resolve_profile
from service.errors import ProblemError, invalid_request, problem_of
from service.predictions.schemas import MAX_LAYERS, PredictionQuery
from service.supernets.catalogue import SupernetCatalogue

_BITS = {str(bits): bits for bits in BIT_WIDTHS}
_AXES = ("weight_granularity", "weight_symmetry", "activation_symmetry")


def predict(
    queries: Sequence[PredictionQuery], supernets: SupernetCatalogue, *, position: int | None = None
) -> list[dict[str, Any]]:
    """One `Prediction` per query, in order. `position`: of the first in the list that they are a part of;
    pointers lead with it.

    Raises:
        ProblemError: an unknown supernet or device, a form that is not complete, the wrong number of bits.
    """
    wanted: list[tuple[Factory, SubnetConfiguration]] = []
    for number, query in enumerate(queries):
        prefix = "" if position is None else f"/{position + number}"
        factory = supernets.in_request(query.supernet, pointer=f"{prefix}/supernet")
        wanted.append((factory, _configuration(query, factory.bundle.space, prefix)))
    answers: list[dict[str, Any]] = [{} for _ in wanted]
    for factory in {id(factory): factory for factory, _ in wanted}.values():
        numbers = [number for number, (other, _) in enumerate(wanted) if other is factory]
        configurations = [wanted[number][1] for number in numbers]
        for number, answer in zip(numbers, predictions(factory, configurations), strict=True):
            answers[number] = answer
    return answers


def predictions(factory: Factory, configurations: Sequence[SubnetConfiguration]) -> list[dict[str, Any]]:
    """The `Prediction` documents of configurations of one supernet."""
    predicted = factory.predict(configurations)
    return [
        {
            "predicted_accuracy": float(accuracy),
            "prediction_interval": [float(low), float(high)],
            "cost": cost.to_json(),
            "configuration": configuration_to_json(configuration, factory.bundle.space),
        }
        for configuration, cost, accuracy, low, high in zip(
            configurations,
            factory.cost_all(configurations),
            predicted.accuracy,
            predicted.low,
            predicted.high,
            strict=True,
        )
    ]


def resolve_query(query: PredictionQuery, *, bits_given: Sequence[str]) -> DeviceProfile:
    """The profile of a query whose bits are those that the device accepts, unless the catalogue says them.

    `bits_given`: which of them the request has, rather than their defaults.
    """
    if query.device is not None:
        if bits_given:
            raise _invalid(f"/{bits_given[0]}", "leave it out: the device says it")
        _form(query, "")
        return resolve_profile(query.device, None)
    form, narrow_range, signed = _form(query, "")
    assert isinstance(query.weight_bits, list)
    assert isinstance(query.activation_bits, list)
    return DeviceProfile(
        weight_bits=tuple(query.weight_bits),
        weight_granularity=form.weight_granularity,
        weight_symmetry=form.weight_symmetry,
        narrow_range=narrow_range,
        activation_bits=tuple(query.activation_bits),
        activation_symmetry=form.activation_symmetry,
        signed=signed,
    )


def pareto(
    factory: Factory, profile: DeviceProfile, *, axis: FrontAxis, points: int, seed: int
) -> dict[str, Any]:
    """The `Pareto` document: the best predicted accuracy for each of `points` budgets, tightest first.

    Raises:
        ProblemError: no bits that both the profile and the supernet have.
    """
    for side in ("weight_bits", "activation_bits"):
        if not set(getattr(profile, side)) & set(factory.bundle.space.bit_widths):
            advice = factory.bundle.space.bits_advice
            raise _invalid(f"/{side}", f"this supernet has none of these bits: {advice}")
    found = front(
        space=factory.bundle.space,
        predictor=factory.predictor,
        costs=factory.costs,
        profile=profile,
        axis=axis,
        points=points,
        seed=seed,
    )
    return {
        "supernet": factory.bundle.name,
        "profile": profile.to_json(),
        "points": [
            {
                "budget": point.budget.to_json(),
                "predicted_accuracy": point.predicted_accuracy,
                "prediction_interval": list(point.prediction_interval),
                "cost": point.cost.to_json(),
                "configuration": configuration_to_json(point.configuration, factory.bundle.space),
            }
            for point in found
        ],
    }


def _configuration(query: PredictionQuery, space: SearchSpace, prefix: str) -> SubnetConfiguration:
    form, narrow_range, signed = _form(query, prefix)
    try:
        return SubnetConfiguration(
            form=form,
            weight_bits=_bits(query.weight_bits, space, f"{prefix}/weight_bits"),
            activation_bits=_bits(query.activation_bits, space, f"{prefix}/activation_bits"),
            narrow_range=narrow_range,
            signed=signed,
        )
    except InvalidConfigurationError as error:
        raise problem_of(error, prefix=prefix) from error


def _form(query: PredictionQuery, prefix: str) -> tuple[QuantizationForm, bool, bool]:
    if query.device is not None:
        surplus = [name for name in (*_AXES, "narrow_range", "signed") if getattr(query, name) is not None]
        if surplus:
            raise _invalid(f"{prefix}/{surplus[0]}", "leave it out: the device says it")
        profile = resolve_profile(query.device, None, pointer=f"{prefix}/device")
        return profile.form, profile.narrow_range, profile.signed
    missing = [name for name in _AXES if getattr(query, name) is None]
    if missing:
        raise _invalid(f"{prefix}/{missing[0]}", f"give {' and '.join(missing)}, or a device")
    form = QuantizationForm(
        weight_granularity=Granularity(str(query.weight_granularity)),
        weight_symmetry=Symmetry(str(query.weight_symmetry)),
        activation_symmetry=Symmetry(str(query.activation_symmetry)),
    )
    if query.narrow_range and form.weight_symmetry is Symmetry.ASYMMETRIC:
        raise _invalid(f"{prefix}/narrow_range", NARROW_RANGE_ADVICE)
    return form, bool(query.narrow_range), bool(query.signed)


def _bits(value: int | list[int], space: SearchSpace, pointer: str) -> tuple[int, ...]:
    count = len(space.searchable)
    bits = (value,) * count if isinstance(value, int) else tuple(value)
    if len(bits) != count:
        raise _invalid(
            pointer, f"has {len(bits)} entries: give one number, or {count}, one per searchable layer"
        )
    if not set(bits).issubset(space.bit_widths):
        raise _invalid(pointer, f"this supernet does not have these bits: {space.bits_advice}")
    return bits


def _invalid(pointer: str, detail: str) -> ProblemError:
    return invalid_request([(pointer, detail)])


def read_bits(text: str, pointer: str) -> int | list[int]:
    """Of a query: one number, or a comma-separated list.

    Raises:
        ProblemError: something else.
    """
    try:
        bits = [_BITS[part.strip()] for part in text.split(",")]
    except KeyError:
        raise _invalid(pointer, "must be a number in 2..8, or a comma-separated list of them") from None
    if len(bits) > MAX_LAYERS:
        raise _invalid(pointer, f"has {len(bits)} entries: give at most {MAX_LAYERS}")
    return bits[0] if len(bits) == 1 else bits
