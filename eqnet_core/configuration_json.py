"""Subnet configurations as JSON: the `configuration` object of the HTTP contract and of every artifact."""

from __future__ import annotations

from collections.abc import Mapping
from operator import index
from typing import Any

from eqnet_core.errors import InvalidConfigurationError, Violation
from eqnet_core.space import Granularity, QuantizationForm, SearchSpace, SubnetConfiguration, Symmetry

_MEMBERS = frozenset(
    {"granularity", "weight_symmetry", "activation_symmetry", "narrow_range", "signed", "layers"}
)


def configuration_to_json(configuration: SubnetConfiguration, space: SearchSpace) -> dict[str, Any]:
    """The `configuration` object of one subnet.

    Raises:
        InvalidConfigurationError: it is of another space.
    """
    space.check(configuration)
    return {
        "granularity": str(configuration.form.weight_granularity),
        "weight_symmetry": str(configuration.form.weight_symmetry),
        "activation_symmetry": str(configuration.form.activation_symmetry),
        "narrow_range": configuration.narrow_range,
        "signed": configuration.signed,
        "layers": [
            {"name": layer.name, "weight_bits": weight, "activation_bits": activation}
            for layer, weight, activation in zip(
                space.searchable, configuration.weight_bits, configuration.activation_bits, strict=True
            )
        ],
    }


def configuration_from_json(document: Mapping[str, Any], space: SearchSpace) -> SubnetConfiguration:
    """Inverse of `configuration_to_json`; layers may come in any order, each exactly once.

    Raises:
        InvalidConfigurationError: a missing, unknown or repeated layer or member, or a value outside the
            space.
    """
    try:
        if unknown := sorted(set(document) - _MEMBERS):
            raise ValueError(f"{unknown[0]!r} is not known here: use {', '.join(sorted(_MEMBERS))}")
        form = QuantizationForm(
            weight_granularity=Granularity(document["granularity"]),
            weight_symmetry=Symmetry(document["weight_symmetry"]),
            activation_symmetry=Symmetry(document["activation_symmetry"]),
        )
        entries = [
            (str(e["name"]), index(e["weight_bits"]), index(e["activation_bits"])) for e in document["layers"]
        ]
        narrow_range, signed = (document.get(flag, False) for flag in ("narrow_range", "signed"))
        if not (isinstance(narrow_range, bool) and isinstance(signed, bool)):
            raise TypeError("narrow_range and signed must be true or false")
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidConfigurationError(f"not a subnet configuration: {error}") from error
    expected = [layer.name for layer in space.searchable]
    wanted, violations = set(expected), []
    for position, (name, _, _) in enumerate(entries):
        if name not in wanted:
            reason = f"{name!r} is not a searchable layer, or is given twice"
            violations.append(Violation(f"/layers/{position}/name", reason))
        wanted.discard(name)
    violations += [
        Violation(f"/layers/{position}/{which}", space.bits_advice)
        for position, (_, *bits) in enumerate(entries)
        for which, value in zip(("weight_bits", "activation_bits"), bits, strict=True)
        if value not in space.bit_widths
    ]
    if wanted:
        missing = ", ".join(name for name in expected if name in wanted)
        violations.append(Violation("/layers", f"no bits for {missing}"))
    if violations:
        raise InvalidConfigurationError(
            "the configuration does not give every searchable layer its bits exactly once: "
            + "; ".join(f"{violation.pointer} {violation.detail}" for violation in violations[:3]),
            violations=violations,
        )
    ordered = sorted(entries, key=lambda entry: expected.index(entry[0]))
    return SubnetConfiguration(
        form=form,
        weight_bits=tuple(weight for _, weight, _ in ordered),
        activation_bits=tuple(activation for _, _, activation in ordered),
        narrow_range=narrow_range,
        signed=signed,
    )
