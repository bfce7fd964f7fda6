"""The bundles that this process serves, opened once at start. NumPy only: builders hold the torch side."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from eqnet_core.bundle import shipped_bundles
from eqnet_core.errors import BundleError
from eqnet_core.factory import Factory
from service.errors import ProblemError, not_found, unavailable

logger = logging.getLogger("eqnet.supernets")


@dataclass(frozen=True, kw_only=True)
class SupernetCatalogue:
    """`factories` by supernet name; `failures` says why a configured bundle could not be opened."""

    factories: Mapping[str, Factory]
    paths: Mapping[str, Path]
    failures: Mapping[str, str]

    @classmethod
    def open(cls, bundles: Sequence[str]) -> SupernetCatalogue:
        """Open `bundles` (folders, or names of shipped ones), or all that ship when there are none."""
        shipped = shipped_bundles()
        factories: dict[str, Factory] = {}
        paths: dict[str, Path] = {}
        failures: dict[str, str] = {}
        for entry in bundles or tuple(shipped):
            path = shipped.get(entry, Path(entry))
            try:
                factory = Factory.open(path)
                factory.predictor  # noqa: B018  read now, so that the first request does not pay for it
            except BundleError as error:
                logger.error("bundle %s is not served: %s", entry, error)
                failures[Path(entry).name] = str(error)
                continue
            if factory.bundle.name in factories:
                failures[str(entry)] = f"another bundle is called {factory.bundle.name} too"
                continue
            factories[factory.bundle.name] = factory
            paths[factory.bundle.name] = path
        return cls(factories=factories, paths=paths, failures=failures)

    def in_path(self, name: str) -> Factory:
        """For a name in the URL: 404 where there is none, 503 where it could not be opened."""
        if name in self.factories:
            return self.factories[name]
        if name in self.failures:
            raise unavailable(f"supernet {name} is not loaded: {self.failures[name]}", code="not-loaded")
        raise not_found("supernet", name, sorted(self.factories))

    def in_request(self, name: str | None, *, pointer: str = "/supernet") -> Factory:
        """For a name in a body or query, which may be left out where only one is loaded."""
        if not self.factories:
            reasons = (
                "; ".join(f"{n}: {reason}" for n, reason in self.failures.items()) or "none is configured"
            )
            raise unavailable(f"no supernet is loaded: {reasons}", code="not-loaded", retry_after=30)
        if name is None and len(self.factories) == 1:
            return next(iter(self.factories.values()))
        if name is not None and name in self.factories:
            return self.factories[name]
        if name is not None and name in self.failures:
            raise unavailable(f"supernet {name} is not loaded: {self.failures[name]}", code="not-loaded")
        known = ", ".join(sorted(self.factories))
        detail = f"no supernet {name[:100]!r}" if name is not None else "more than one supernet is loaded"
        raise ProblemError(
            422,
            "unknown-supernet",
            f"{detail}: use one of {known}",
            errors=[(pointer, f"use one of {known}")],
        )
