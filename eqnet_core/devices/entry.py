"""Reads an entry of the catalogue and checks it against the schema below.

An entry is `entries/<name>.toml`; the file's name is the device's name. Every key is required:

    title              what a person calls it
    exchange           format that its toolchain takes, e.g. "ONNX + encodings"
    flavour            flavour of ONNX that fits it: "exact", "integer" or "qonnx" (docs/artifacts.md)
    confidence         "documented": every fact is in the source; else "partly documented"
    source             list: where the facts come from
    date               year and month in which they were looked up, "2026-11"
    verified_on_device whether an artifact of ours has run on the hardware
    unverified         list: what the source does not settle, each starting with "?"
    notes              list: what a user should know
    [weight]           bits            bit-widths that the search may pick for it; 8 among them, which the
                                       first and the last layer always have
                       containers      integer type that the device holds each of them in, "int2" to "int8"
                       file_types      integer types that the codes may have in the file it is given: ONNX's,
                                       or those of QONNX's Quant nodes
                       granularities   what it accepts; the first is what subnets for it use
                       symmetries      likewise
                       narrow_range    whether the lowest code must not be used
    [activation]       bits, containers, file_types, symmetries as above
                       signed          whether it lacks unsigned activations

A target that no subnet can be made for is listed too: its entry has `unsupported`, the reason, and of the
above only title, exchange, confidence, source, date, unverified and notes.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from eqnet_core.devices.device import Device, Side, Source, UnsupportedDevice
from eqnet_core.errors import InvalidProfileError, Violation
from eqnet_core.profile import DeviceProfile
from eqnet_core.space import BIT_WIDTHS, FIXED_BITS, Granularity, Symmetry

CONTAINERS = tuple(f"int{bits}" for bits in BIT_WIDTHS)
FILE_TYPES = (*CONTAINERS, *(f"u{container}" for container in CONTAINERS))
FLAVOURS = ("exact", "integer", "qonnx")
CONFIDENCES = ("documented", "partly documented")

_SOURCE: dict[str, type] = {
    "title": str,
    "exchange": str,
    "source": list,
    "date": str,
    "confidence": str,
    "unverified": list,
    "notes": list,
}
_SUPPORTED: dict[str, type] = _SOURCE | {
    "flavour": str,
    "verified_on_device": bool,
    "weight": dict,
    "activation": dict,
}
_UNSUPPORTED: dict[str, type] = _SOURCE | {"unsupported": str}
_SIDE: dict[str, type] = {"bits": list, "containers": dict, "file_types": list, "symmetries": list}
_SIDES: dict[str, dict[str, type]] = {
    "weight": _SIDE | {"granularities": list, "narrow_range": bool},
    "activation": _SIDE | {"signed": bool},
}


def read_entry(path: Path) -> Device | UnsupportedDevice:
    """The device that `path` describes; its name is the file's.

    Raises:
        InvalidProfileError: not such an entry; names the file, and each fault with its place.
    """
    try:
        entry = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidProfileError(f"device entry {path.name} cannot be read: {error}") from error
    violations = _violations(path.stem, entry)
    if violations:
        faults = "; ".join(f"{v.pointer or '/'} {v.detail}" for v in violations)
        raise InvalidProfileError(f"device entry {path.name}: {faults}", violations=violations)
    texts: dict[str, Any] = {
        key: tuple(entry[key]) if kind is list else entry[key] for key, kind in _SOURCE.items()
    }
    origin = Source(**texts)
    if "unsupported" in entry:
        return UnsupportedDevice(name=path.stem, because=entry["unsupported"], origin=origin)
    try:
        profile = _profile(entry)
    except InvalidProfileError as error:
        raise InvalidProfileError(
            f"device entry {path.name}: {error}", violations=error.violations
        ) from error
    return Device(
        name=path.stem,
        profile=profile,
        weight=_side(entry["weight"]),
        granularities=tuple(Granularity(value) for value in entry["weight"]["granularities"]),
        activation=_side(entry["activation"]),
        flavour=entry["flavour"],
        verified_on_device=entry["verified_on_device"],
        origin=origin,
    )


def _profile(entry: Mapping[str, Any]) -> DeviceProfile:
    weight, activation = entry["weight"], entry["activation"]
    return DeviceProfile.from_json(
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


def _side(section: Mapping[str, Any]) -> Side:
    return Side(
        containers={bits: section["containers"][str(bits)] for bits in sorted(section["bits"])},
        file_types=tuple(section["file_types"]),
        symmetries=tuple(Symmetry(value) for value in section["symmetries"]),
    )


def _violations(name: str, entry: Mapping[str, Any]) -> list[Violation]:
    supported = "unsupported" not in entry
    violations = _shape_violations(entry, _SUPPORTED if supported else _UNSUPPORTED, "")
    if supported:
        for side, schema in _SIDES.items():
            if isinstance(entry.get(side), dict):
                violations += _shape_violations(entry[side], schema, f"/{side}")
    if violations:
        return violations  # what follows relies on the shape
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
        violations.append(Violation("", "the file's name must be lower case, digits and single dashes"))
    violations += _source_violations(entry)
    if not supported:
        return violations
    violations += _choice_violations([entry["flavour"]], FLAVOURS, "/flavour")
    for side in _SIDES:
        violations += _side_violations(entry[side], f"/{side}")
    violations += _choice_violations(entry["weight"]["granularities"], Granularity, "/weight/granularities")
    return violations


def _source_violations(entry: Mapping[str, Any]) -> list[Violation]:
    violations = [
        Violation(f"/{key}", "must not be empty")
        for key in ("title", "exchange", "source", "unsupported")
        if key in entry and not entry[key]
    ]
    violations += [
        Violation(f"/{key}/{position}", "must be a text")
        for key in ("source", "unverified", "notes")
        for position, text in enumerate(entry[key])
        if not (isinstance(text, str) and text)
    ]
    violations += [
        Violation(f"/unverified/{position}", 'must start with "?"')
        for position, text in enumerate(entry["unverified"])
        if not str(text).startswith("?")
    ]
    violations += _choice_violations([entry["confidence"]], CONFIDENCES, "/confidence")
    if (entry["confidence"] == "documented") == bool(entry["unverified"]):
        violations.append(Violation("/confidence", "must be documented exactly when nothing is unverified"))
    if not re.fullmatch(r"\d{4}-(0[1-9]|1[0-2])", entry["date"]):
        violations.append(Violation("/date", "must be a month, like 2026-11"))
    return violations


def _side_violations(section: Mapping[str, Any], pointer: str) -> list[Violation]:
    violations = []
    if FIXED_BITS not in section["bits"]:
        violations.append(
            Violation(f"{pointer}/bits", f"must have {FIXED_BITS}: first and last layer are always at it")
        )
    containers = section["containers"]
    if set(containers) != {str(bits) for bits in section["bits"]}:
        violations.append(Violation(f"{pointer}/containers", "must name each of the bits, and no others"))
    for bits, container in containers.items():
        violations += _choice_violations([container], CONTAINERS, f"{pointer}/containers/{bits}")
        if container in CONTAINERS and bits.isdigit() and int(bits) > int(container[3:]):
            violations.append(
                Violation(f"{pointer}/containers/{bits}", f"does not hold {bits} bits in {container}")
            )
    violations += _choice_violations(section["file_types"], FILE_TYPES, f"{pointer}/file_types")
    return violations + _choice_violations(section["symmetries"], Symmetry, f"{pointer}/symmetries")


def _choice_violations(values: list[Any], choices: Iterable[str], pointer: str) -> list[Violation]:
    known = [str(choice) for choice in choices]
    if values and all(value in known for value in values):
        return []
    return [Violation(pointer, f"must be of {', '.join(known)}")]


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
