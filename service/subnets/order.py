"""What is to be built, normalised: the same order is the same subnet, on every replica and for ever."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from eqnet_core.profile import Budget, DeviceProfile, LayerPin, SearchSettings
from eqnet_core.search import SEARCH_VERSION

EXPORTER_VERSION = 12
"""Raise this when the same configuration comes to give other bytes: every id changes with it."""

_ID = re.compile(r"[0-9a-f]{32}")


def is_subnet_id(text: str) -> bool:
    return _ID.fullmatch(text) is not None


@dataclass(frozen=True, kw_only=True)
class SearchOrder:
    """Find the best subnet for a device within a budget. `device` is its name where the catalogue has it:
    the build then checks its rules, and the report says what it holds each layer in.
    """

    profile: DeviceProfile
    budget: Budget
    search: SearchSettings
    pins: Mapping[str, LayerPin]
    device: str | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "device": self.device,
            "profile": self.profile.to_json(),
            "budget": self.budget.to_json(),
            "search": self.search.to_json(),
            "pinned": {name: pin.to_json() for name, pin in sorted(self.pins.items())},
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> SearchOrder:
        return cls(
            profile=DeviceProfile.from_json(document["profile"]),
            budget=Budget.from_json(document["budget"]),
            search=SearchSettings.from_json(document["search"]),
            pins={name: LayerPin.from_json(pin) for name, pin in document["pinned"].items()},
            device=document.get("device"),
        )


@dataclass(frozen=True, kw_only=True)
class SubnetOrder:
    """`what` is a search, or the `configuration` document itself. `evaluation` is the digest of the images
    that top-1 is to be measured on, if it is.
    """

    supernet: str
    bundle_digest: str
    what: SearchOrder | Mapping[str, Any]
    artifacts: tuple[str, ...]
    evaluation: str | None = None

    def to_json(self) -> dict[str, Any]:
        what = self.what.to_json() if isinstance(self.what, SearchOrder) else {"configuration": self.what}
        return {
            "supernet": {"name": self.supernet, "digest": self.bundle_digest},
            "artifacts": list(self.artifacts),
            "evaluation": self.evaluation,
            **what,
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> SubnetOrder:
        configuration = document.get("configuration")
        return cls(
            supernet=document["supernet"]["name"],
            bundle_digest=document["supernet"]["digest"],
            what=SearchOrder.from_json(document) if configuration is None else configuration,
            artifacts=tuple(document["artifacts"]),
            evaluation=document["evaluation"],
        )

    @property
    def id(self) -> str:
        """32 hexadecimal digits of the SHA-256 over everything that determines the result."""
        identity = self.to_json()
        # The digest alone says which bundle; a bundle that is merely renamed gives the same subnets.
        identity["supernet"] = self.bundle_digest
        identity["exporter"] = EXPORTER_VERSION
        if isinstance(self.what, SearchOrder):
            identity["searcher"] = SEARCH_VERSION
        text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:32]
