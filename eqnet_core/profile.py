"""What a caller asks for: the device's profile, a budget, pinned layers and the search's settings.

Every class validates itself, reads the objects of the HTTP contract with `from_json` and writes them,
normalised, with `to_json`: two requests that mean the same have the same JSON, hence the same identity. JSON
pointers in the errors are relative to the object that is read (`/weight/bits` in a profile).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from numbers import Integral, Real
from typing import Any, TypeVar

from eqnet_core.errors import InvalidProfileError, Violation
from eqnet_core.space import BIT_WIDTHS, NARROW_RANGE_ADVICE, Granularity, QuantizationForm, Symmetry

MAX_POPULATION = 2_000
MAX_GENERATIONS = 10_000
MAX_SEED = 2**53 - 1
"""Seeds stay below this so that every JSON reader sees the same number."""

MAX_PREDICTIONS = 4_000_000
"""Of one search, which remembers each of them: about 200 bytes."""

LARGEST_BOUND = 1e30
"""Budgets stay below this: no network comes near, and larger numbers are a slip of the pen."""

_Choice = TypeVar("_Choice", bound=StrEnum)


@dataclass(frozen=True, kw_only=True)
class DeviceProfile:
    """The `profile` object of the HTTP contract: what a device accepts, and the form its hardware fixes.

    Bits are stored sorted and without repetition. `signed`: the runtime has no unsigned activations.
    `narrow_range`: the lowest weight code is not used; only with symmetric weights. Texts such as
    "per_channel" become members of the enumerations.

    Raises:
        InvalidProfileError: no bits at all, bits outside 2..8, a granularity or symmetry that there is not, a
            flag that is no bool, or narrow range with asymmetric weights.
    """

    weight_bits: tuple[int, ...]
    weight_granularity: Granularity
    weight_symmetry: Symmetry
    narrow_range: bool = False
    activation_bits: tuple[int, ...]
    activation_symmetry: Symmetry
    signed: bool = False

    def __post_init__(self) -> None:
        violations: list[Violation] = []
        normalised: dict[str, Any] = {
            "weight_bits": _bits(self.weight_bits, "/weight/bits", violations),
            "weight_granularity": _choice(
                self.weight_granularity, Granularity, "/weight/granularity", violations
            ),
            "weight_symmetry": _choice(self.weight_symmetry, Symmetry, "/weight/symmetry", violations),
            "narrow_range": _flag(self.narrow_range, "/weight/narrow_range", violations),
            "activation_bits": _bits(self.activation_bits, "/activation/bits", violations),
            "activation_symmetry": _choice(
                self.activation_symmetry, Symmetry, "/activation/symmetry", violations
            ),
            "signed": _flag(self.signed, "/activation/signed", violations),
        }
        if self.narrow_range and self.weight_symmetry == Symmetry.ASYMMETRIC:
            violations.append(
                Violation(
                    "/weight/narrow_range", f"does not go with asymmetric weights: {NARROW_RANGE_ADVICE}"
                )
            )
        _raise_if(violations, "the device profile")
        for name, value in normalised.items():
            object.__setattr__(self, name, value)

    @property
    def form(self) -> QuantizationForm:
        """The form that every subnet for this device has."""
        return QuantizationForm(
            weight_granularity=self.weight_granularity,
            weight_symmetry=self.weight_symmetry,
            activation_symmetry=self.activation_symmetry,
        )

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> DeviceProfile:
        """Read the `profile` object; `narrow_range` and `signed` default to false, the rest is required.

        Raises:
            InvalidProfileError: with one violation per missing, unknown or senseless entry.
        """
        violations = _unknown_keys(document, ("weight", "activation"), "")
        weight = _section(document, "weight", violations)
        activation = _section(document, "activation", violations)
        violations += _unknown_keys(weight, ("bits", "granularity", "symmetry", "narrow_range"), "/weight")
        violations += _unknown_keys(activation, ("bits", "symmetry", "signed"), "/activation")
        _raise_if(violations, "the device profile")
        given: dict[str, Any] = {
            "weight_bits": weight.get("bits"),
            "weight_granularity": weight.get("granularity"),
            "weight_symmetry": weight.get("symmetry"),
            "narrow_range": weight.get("narrow_range", False),
            "activation_bits": activation.get("bits"),
            "activation_symmetry": activation.get("symmetry"),
            "signed": activation.get("signed", False),
        }
        return cls(**given)

    def to_json(self) -> dict[str, Any]:
        """The normalised `profile` object."""
        return {
            "weight": {
                "bits": list(self.weight_bits),
                "granularity": str(self.weight_granularity),
                "symmetry": str(self.weight_symmetry),
                "narrow_range": self.narrow_range,
            },
            "activation": {
                "bits": list(self.activation_bits),
                "symmetry": str(self.activation_symmetry),
                "signed": self.signed,
            },
        }


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Upper bounds on a subnet's `Cost`; None leaves a bound out.

    `weight_bits` and `activation_bits` bound the averages over the searchable layers, `model_bytes` the
    packed model, `bit_operations` the sum of MACs x weight bits x activation bits for one image. A budget
    that a subnet cannot meet is valid here; the search answers it with the nearest feasible one.

    Raises:
        InvalidProfileError: a bound that is not a positive number below 1e30, or bytes that are not whole.
    """

    weight_bits: float | None = None
    activation_bits: float | None = None
    model_bytes: int | None = None
    bit_operations: float | None = None

    def __post_init__(self) -> None:
        violations = []
        for name, value in self._items():
            if not _is_number(value) or not 0 < value < LARGEST_BOUND:
                violations.append(Violation(f"/{name}", "must be a positive number, or null for no bound"))
            elif name == "model_bytes" and value != int(value):
                violations.append(Violation(f"/{name}", "must be a whole number of bytes"))
        _raise_if(violations, "the budget")
        for name, value in self._items():
            normalised = int(value) if name == "model_bytes" else float(value)
            object.__setattr__(self, name, normalised)

    def _items(self) -> list[tuple[str, float]]:
        pairs = [(field.name, getattr(self, field.name)) for field in fields(self)]
        return [(name, value) for name, value in pairs if value is not None]

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Budget:
        """Read the `budget` object; absent and null entries are no bound."""
        names = [field.name for field in fields(cls)]
        _raise_if(_unknown_keys(document, names, ""), "the budget")
        return cls(**document)

    def to_json(self) -> dict[str, float | int | None]:
        """The normalised `budget` object, every bound named."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True, kw_only=True)
class LayerPin:
    """Bits that one layer must have; None leaves that side to the search."""

    weight_bits: int | None = None
    activation_bits: int | None = None

    def __post_init__(self) -> None:
        violations = [
            Violation(f"/{name}", f"must be one of {_listed(BIT_WIDTHS)}, or null")
            for name, value in self.to_json().items()
            if value is not None and not _is_bits(value)
        ]
        _raise_if(violations, "the pinned layer")
        for name, value in self.to_json().items():
            object.__setattr__(self, name, None if value is None else int(value))

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> LayerPin:
        """Read one entry of the `pinned` object."""
        _raise_if(_unknown_keys(document, ("weight_bits", "activation_bits"), ""), "the pinned layer")
        return cls(**document)

    def to_json(self) -> dict[str, int | None]:
        return {"weight_bits": self.weight_bits, "activation_bits": self.activation_bits}


@dataclass(frozen=True, kw_only=True)
class SearchSettings:
    """How long to search: at most `population` x `generations` predictions, reproducible in `seed`.

    Raises:
        InvalidProfileError: population outside 2..2000, generations outside 1..10000, more than 4,000,000
            predictions, seed outside 0..2^53-1.
    """

    population: int = 100
    generations: int = 500
    seed: int = 0

    def __post_init__(self) -> None:
        bounds = {
            "population": (2, MAX_POPULATION),
            "generations": (1, MAX_GENERATIONS),
            "seed": (0, MAX_SEED),
        }
        violations = [
            Violation(f"/{name}", f"must be a whole number in {low}..{high}")
            for name, (low, high) in bounds.items()
            if not _is_whole(getattr(self, name)) or not low <= getattr(self, name) <= high
        ]
        if not violations and self.population * self.generations > MAX_PREDICTIONS:
            violations = [
                Violation(f"/{name}", f"population x generations must be at most {MAX_PREDICTIONS:,}")
                for name in ("population", "generations")
            ]
        _raise_if(violations, "the search settings")
        for name, value in self.to_json().items():
            object.__setattr__(self, name, int(value))

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> SearchSettings:
        """Read the `search` object; every entry has a default."""
        names = [field.name for field in fields(cls)]
        _raise_if(_unknown_keys(document, names, ""), "the search settings")
        return cls(**document)

    def to_json(self) -> dict[str, int]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


def _is_whole(value: object) -> bool:
    """NumPy's too; what passes becomes Python's own, which JSON knows."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_bits(value: object) -> bool:
    return _is_whole(value) and value in BIT_WIDTHS


def _listed(values: Iterable[object]) -> str:
    return ", ".join(str(value) for value in values)


def _raise_if(violations: list[Violation], subject: str) -> None:
    if violations:
        reasons = "; ".join(f"{v.pointer or '/'} {v.detail}" for v in violations)
        raise InvalidProfileError(f"{subject} cannot be used: {reasons}", violations=violations)


def _unknown_keys(document: object, known: Iterable[str], pointer: str) -> list[Violation]:
    if not isinstance(document, Mapping):
        return [Violation(pointer, "must be an object")]
    known = tuple(known)
    return [
        Violation(f"{pointer}/{escape_pointer(str(key))}", f"is not known here: use {_listed(known)}")
        for key in document
        if key not in known
    ]


def escape_pointer(token: str) -> str:
    """One reference token of a JSON pointer (RFC 6901, section 3)."""
    return token.replace("~", "~0").replace("/", "~1")


def _section(document: object, key: str, violations: list[Violation]) -> Mapping[str, Any]:
    section = document.get(key) if isinstance(document, Mapping) else None
    if isinstance(section, Mapping):
        return section
    violations.append(Violation(f"/{key}", "is required and must be an object"))
    return {}


def _bits(values: object, pointer: str, violations: list[Violation]) -> tuple[int, ...]:
    """Bit-widths, sorted and each once."""
    if not isinstance(values, Iterable) or isinstance(values, str | Mapping):
        violations.append(Violation(pointer, f"is required: a list of {_listed(BIT_WIDTHS)}"))
        return ()
    values = tuple(values)
    if not values:
        violations.append(Violation(pointer, f"must name at least one of {_listed(BIT_WIDTHS)}"))
    wrong = [
        Violation(f"{pointer}/{position}", f"must be one of {_listed(BIT_WIDTHS)}")
        for position, value in enumerate(values)
        if not _is_bits(value)
    ]
    violations += wrong
    return () if wrong else tuple(sorted({int(value) for value in values}))


def _choice(
    value: object, choices: type[_Choice], pointer: str, violations: list[Violation]
) -> _Choice | None:
    """The member that `value` is or names."""
    for choice in choices:
        if value == choice.value:
            return choice
    violations.append(Violation(pointer, f"is required: one of {_listed(choices)}"))
    return None


def _flag(value: object, pointer: str, violations: list[Violation]) -> bool:
    if not isinstance(value, bool):
        violations.append(Violation(pointer, "must be true or false"))
    return bool(value)
