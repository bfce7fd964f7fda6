"""What the catalogue knows of one device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from eqnet_core.profile import DeviceProfile
from eqnet_core.space import Granularity, Symmetry


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where an entry comes from, and what it leaves open."""

    title: str
    exchange: str
    source: tuple[str, ...]
    date: str
    confidence: str
    unverified: tuple[str, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {key: list(value) if isinstance(value, tuple) else value for key, value in vars(self).items()}


@dataclass(frozen=True, kw_only=True)
class Side:
    """Weights or activations: the integer type that the device holds each accepted bit-width in, the types
    that their codes may have in a file, and the symmetries it accepts.
    """

    containers: Mapping[int, str]
    file_types: tuple[str, ...]
    symmetries: tuple[Symmetry, ...]

    def held(self, bits: int) -> str:
        """`native`, or `held in int8` and the like, for one of the accepted bit-widths."""
        container = self.containers[bits]
        return "native" if container == f"int{bits}" else f"held in {container}"


@dataclass(frozen=True, kw_only=True)
class Device:
    """One entry that subnets can be made for; `profile` has the first of everything that it accepts."""

    name: str
    profile: DeviceProfile
    weight: Side
    granularities: tuple[Granularity, ...]
    activation: Side
    flavour: str
    verified_on_device: bool
    origin: Source

    @property
    def file(self) -> str:
        """The artifact that the device or its converter is given."""
        return "model.onnx" if self.flavour == "exact" else f"model.{self.flavour}.onnx"

    def to_json(self) -> dict[str, Any]:
        """The object that `GET /devices/{name}` answers."""
        sides = {"weight": self.weight, "activation": self.activation}
        return {
            "name": self.name,
            "supported": True,
            "unsupported_because": None,
            "profile": self.profile.to_json(),
            "containers": {
                name: {str(bits): side.held(bits) for bits in side.containers} for name, side in sides.items()
            },
            "accepts": {
                "weight": {
                    "granularity": [str(value) for value in self.granularities],
                    "symmetry": [str(value) for value in self.weight.symmetries],
                    "file_types": list(self.weight.file_types),
                },
                "activation": {
                    "symmetry": [str(value) for value in self.activation.symmetries],
                    "file_types": list(self.activation.file_types),
                },
            },
            "flavour": self.flavour,
            "file": self.file,
            "verified_on_device": self.verified_on_device,
            **self.origin.to_json(),
        }


@dataclass(frozen=True, kw_only=True)
class UnsupportedDevice:
    """One entry that no subnet can be made for; `because` says why."""

    name: str
    because: str
    origin: Source

    def to_json(self) -> dict[str, Any]:
        """As `Device.to_json`, with nothing where there is nothing to say."""
        nothing = dict.fromkeys(("profile", "containers", "accepts", "flavour", "file"))
        return {
            "name": self.name,
            "supported": False,
            "unsupported_because": self.because,
            **nothing,
            "verified_on_device": False,
            **self.origin.to_json(),
        }
