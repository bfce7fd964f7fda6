"""Reads the catalogue and checks every entry against the schema below. Adding a device is adding a file.

An entry is `entries/<name>.toml`; the file's name is the device's name. Every key is required:

    title              what a person calls it
    exchange           format that its toolchain takes, e.g. "ONNX + encodings"
    flavour            flavour of ONNX that fits it: "exact" or "integer" (export.md)
    confidence         "documented": every fact is in the source; else "partly documented"
    source             list: where the facts come from
    date               year and month in which they were looked up, "2026-11"
    verified_on_device whether an artifact of ours has run on the hardware
    unverified         list: what the source does not settle, each starting with "?"
    notes              list: what a user should know
    [weight]           bits            bit-widths that the search may pick for it
                       containers      what each of them is held in: "native" or "held in int8"
                       granularities   what it accepts; the first is what subnets for it use
                       symmetries      likewise
                       narrow_range    whether the lowest code must not be used
    [activation]       bits, containers, symmetries as above
                       signed          whether it lacks unsigned activations
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, overload

from eqnet_core.errors import InvalidProfileError, UnknownDeviceError, Violation
from eqnet_core.profile import DeviceProfile
from eqnet_core.space import Granularity, Symmetry

CONTAINERS = ("native", "held in int8")
FLAVOURS = ("exact", "integer")
CONFIDENCES = ("documented", "partly documented")

_SHIPPED = Path(__file__).parent / "entries"
_Default = TypeVar("_Default")


@dataclass(frozen=True, kw_only=True)
class Device:
    """One entry. `weight_containers` and `activation_containers` say what each accepted bit-width is held
    in."""

    name: str
    title: str
    profile: DeviceProfile
    weight_containers: Mapping[int, str]
    activation_containers: Mapping[int, str]
    weight_granularities: tuple[Granularity, ...]
    weight_symmetries: tuple[Symmetry, ...]
    activation_symmetries: tuple[Symmetry, ...]
    exchange: str
    flavour: str
    source: tuple[str, ...]
    date: str
    confidence: str
    verified_on_device: bool
    unverified: tuple[str, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The object that `GET /devices/{name}` answers."""
        return {
            "name": self.name,
            "title": self.title,
            "profile": self.profile.to_json(),
            "containers": {
                "weight": {str(bits): held for bits, held in self.weight_containers.items()},
                "activation": {str(bits): held for bits, held in self.activation_containers.items()},
            },
            "accepts": {
                "weight": {
                    "granularity": [str(value) for value in self.weight_granularities],
                    "symmetry": [str(value) for value in self.weight_symmetries],
                },
                "activation": {"symmetry": [str(value) for value in self.activation_symmetries]},
            },
            "exchange": self.exchange,
            "flavour": self.flavour,
            "source": list(self.source),
            "date": self.date,
            "confidence": self.confidence,
            "verified_on_device": self.verified_on_device,
            "unverified": list(self.unverified),
            "notes": list(self.notes),
        }


class Catalogue(Mapping[str, Device]):
    """Devices by name, in alphabetical order; looking up an unknown one raises UnknownDeviceError."""

    def __init__(self, devices: Mapping[str, Device]) -> None:
        self._devices = dict(sorted(devices.items()))

    def __getitem__(self, name: str) -> Device:
        device = self._devices.get(name)
        if device is None:
            raise UnknownDeviceError(f"no device {name!r}: use one of {', '.join(self._devices)}")
        return device

    def __contains__(self, name: object) -> bool:
        return name in self._devices

    def __iter__(self) -> Iterator[str]:
        return iter(self._devices)

    def __len__(self) -> int:
        return len(self._devices)

    @overload
    def get(self, key: str, /) -> Device | None: ...
    @overload
    def get(self, key: str, default: Device | _Default, /) -> Device | _Default: ...
    def get(self, key: str, default: object = None, /) -> object:
        return self._devices.get(key, default)


def load_catalogue(folder: Path | None = None) -> Catalogue:
    """Every entry of `folder`, by default those that ship.

    Raises:
        InvalidProfileError: an entry that does not follow the schema; names the file and every fault.
    """
    paths = sorted((folder or _SHIPPED).glob("*.toml"))
    return Catalogue({path.stem: _read(path) for path in paths})


_TOP: dict[str, type] = {
    "title": str,
    "exchange": str,
    "flavour": str,
    "confidence": str,
    "source": list,
    "date": str,
    "verified_on_device": bool,
    "unverified": list,
    "notes": list,
    "weight": dict,
    "activation": dict,
}
_ACTIVATION: dict[str, type] = {"bits": list, "containers": dict, "symmetries": list, "signed": bool}
_WEIGHT: dict[str, type] = {
    "bits": list,
    "containers": dict,
    "granularities": list,
    "symmetries": list,
    "narrow_range": bool,
}


def _read(path: Path) -> Device:
    try:
        entry = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidProfileError(f"device entry {path.name} cannot be read: {error}") from error
    violations = _schema_violations(path.stem, entry)
    if violations:
        faults = "; ".join(f"{v.pointer} {v.detail}" for v in violations)
        raise InvalidProfileError(f"device entry {path.name}: {faults}", violations=violations)
    weight, activation = entry["weight"], entry["activation"]
    try:
        profile = DeviceProfile.from_json(
            {
                "weight": {
                    "bits": weight["bits"],
                    "granularity": weight["granularities"][0],
                    "symmetry": weight["symmetries"][0],
                    "narrow_range": weight["narrow_range"],
                },
                "activation": {
                    "bits": activation["bits"],
                    "symmetry": activation["symmetries"][0],
                    "signed": activation["signed"],
                },
            }
        )
    except InvalidProfileError as error:
        raise InvalidProfileError(
            f"device entry {path.name}: {error}", violations=error.violations
        ) from error
    return Device(
        name=path.stem,
        title=entry["title"],
        profile=profile,
        weight_containers={bits: weight["containers"][str(bits)] for bits in profile.weight_bits},
        activation_containers={bits: activation["containers"][str(bits)] for bits in profile.activation_bits},
        weight_granularities=tuple(Granularity(value) for value in weight["granularities"]),
        weight_symmetries=tuple(Symmetry(value) for value in weight["symmetries"]),
        activation_symmetries=tuple(Symmetry(value) for value in activation["symmetries"]),
        exchange=entry["exchange"],
        flavour=entry["flavour"],
        source=tuple(entry["source"]),
        date=entry["date"],
        confidence=entry["confidence"],
        verified_on_device=entry["verified_on_device"],
        unverified=tuple(entry["unverified"]),
        notes=tuple(entry["notes"]),
    )


def _schema_violations(name: str, entry: Mapping[str, Any]) -> list[Violation]:
    violations = _shape_violations(entry, _TOP, "")
    for side, schema in (("weight", _WEIGHT), ("activation", _ACTIVATION)):
        if isinstance(entry.get(side), dict):
            violations += _shape_violations(entry[side], schema, f"/{side}")
    if violations:
        return violations  # what follows relies on the shape

    def require(condition: bool, pointer: str, detail: str) -> None:
        if not condition:
            violations.append(Violation(pointer, detail))

    pattern = r"[a-z0-9]+(-[a-z0-9]+)*"
    require(
        bool(re.fullmatch(pattern, name)), "", "the file's name must be lower case, digits and single dashes"
    )
    require(bool(entry["title"]), "/title", "must not be empty")
    require(bool(entry["exchange"]), "/exchange", "must not be empty")
    require(entry["flavour"] in FLAVOURS, "/flavour", f"must be one of {', '.join(FLAVOURS)}")
    require(entry["confidence"] in CONFIDENCES, "/confidence", f"must be one of {', '.join(CONFIDENCES)}")
    require(
        bool(re.fullmatch(r"\d{4}-(0[1-9]|1[0-2])", entry["date"])), "/date", "must be a month, like 2026-11"
    )
    require(bool(entry["source"]), "/source", "must name at least one source")
    for key in ("source", "unverified", "notes"):
        texts = all(isinstance(text, str) and text for text in entry[key])
        require(texts, f"/{key}", "must be a list of texts")
        if key == "unverified" and texts:
            require(
                all(text.startswith("?") for text in entry[key]), "/unverified", 'each must start with "?"'
            )
    documented = entry["confidence"] == "documented"
    require(
        documented != bool(entry["unverified"]),
        "/confidence",
        "must be documented exactly when nothing is unverified",
    )
    for side in ("weight", "activation"):
        section = entry[side]
        keys = {str(bits) for bits in section["bits"]}
        containers = section["containers"]
        require(set(containers) == keys, f"/{side}/containers", "must name each of the bits, and no others")
        for bits, held in containers.items():
            require(
                held in CONTAINERS, f"/{side}/containers/{bits}", f"must be one of {', '.join(CONTAINERS)}"
            )
        for key, choices in (("granularities", Granularity), ("symmetries", Symmetry)):
            if key in section:
                known = [choice.value for choice in choices]
                fits = bool(section[key]) and all(value in known for value in section[key])
                require(fits, f"/{side}/{key}", f"must list some of {', '.join(known)}")
    return violations


def _shape_violations(
    section: Mapping[str, Any], schema: Mapping[str, type], pointer: str
) -> list[Violation]:
    violations = [
        Violation(f"{pointer}/{key}", "is not part of the schema") for key in section if key not in schema
    ]
    for key, kind in schema.items():
        if key not in section:
            violations.append(Violation(f"{pointer}/{key}", "is missing"))
        elif type(section[key]) is not kind:
            violations.append(Violation(f"{pointer}/{key}", f"must be of type {kind.__name__}"))
    return violations
