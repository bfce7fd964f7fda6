"""The bundles that this process serves, opened once at start. NumPy only: builders hold the torch side."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from eqnet_core.bundle import shipped_bundles
from eqnet_core.errors import BundleError
from eqnet_core.factory import Factory
from service.errors import ProblemError, not_found, unavailable

logger = logging.getLogger("eqnet.supernets")


@dataclass(frozen=True, kw_only=True)
class SupernetCatalogue:
    """`factories` by supernet name; `failures` says why a configured bundle could not be opened; those
    in `late` came while the service ran, which stays ready. `stale` says of those that are served as they
    were why they cannot be opened any more: a builder that starts now lacks them.
    """

    factories: Mapping[str, Factory]
    paths: Mapping[str, Path]
    failures: Mapping[str, str]
    late: frozenset[str] = frozenset()
    stale: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def open(cls, bundles: Sequence[str], *, previous: SupernetCatalogue | None = None) -> SupernetCatalogue:
        """Open `bundles` (folders, folders of bundles, or names of shipped ones), or all that ship when there
        are none. One that cannot be opened stays as it was in `previous`, if it was there.
        """
        factories: dict[str, Factory] = {}
        paths: dict[str, Path] = {}
        failures: dict[str, str] = {}
        stale: dict[str, str] = {}
        kept = {} if previous is None else {path: name for name, path in previous.paths.items()}
        for entry, path in _paths(bundles):
            try:
                factory = Factory.open(path)
                factory.predictor  # noqa: B018  read now, so that the first request does not pay for it
            except BundleError as error:
                if previous is not None and path in kept and path.exists():
                    logger.error("bundle %s stays as it was: %s", entry, error)
                    factories[kept[path]] = previous.factories[kept[path]]
                    paths[kept[path]] = path
                    stale[kept[path]] = str(error)
                    continue
                logger.error("bundle %s is not served: %s", entry, error)
                failures[Path(entry).name] = str(error)
                continue
            if factory.bundle.name in factories:
                failures[str(entry)] = f"another bundle is called {factory.bundle.name} too"
                continue
            factories[factory.bundle.name] = factory
            paths[factory.bundle.name] = path
        late = set(failures) if previous is not None else set()
        if previous is not None:
            late -= previous.failures.keys() - previous.late
        return cls(factories=factories, paths=paths, failures=failures, late=frozenset(late), stale=stale)

    def needs_builders(self, previous: SupernetCatalogue) -> bool:
        """Whether builders that were started for `previous` lack something of this."""
        repaired = previous.stale.keys() - self.stale.keys()
        return bool(repaired) or (self.digests, self.paths) != (previous.digests, previous.paths)

    @property
    def digests(self) -> dict[str, str]:
        return {name: factory.bundle.digest for name, factory in self.factories.items()}

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


def fingerprint(bundles: Sequence[str]) -> tuple[object, ...]:
    """What changes when a bundle is added, replaced or taken away; reads nothing but folders."""
    found: list[object] = []
    for _, path in _paths(bundles):
        for file in sorted(path.glob("*")) if path.is_dir() else []:
            with suppress(OSError):
                status = file.stat()
                found.append((str(file), status.st_mtime_ns, status.st_size, status.st_ino))
    return tuple(found)


def _paths(bundles: Sequence[str]) -> list[tuple[str, Path]]:
    """Each bundle's name in messages, and its folder."""
    shipped = shipped_bundles()
    found: list[tuple[str, Path]] = []
    for entry in bundles or tuple(shipped):
        path = shipped.get(entry, Path(entry))
        inner = sorted(file.parent for file in path.glob("*/bundle.json"))
        # A folder of bundles; hidden ones are still being copied.
        if inner and not (path / "bundle.json").exists():
            found += [(str(bundle), bundle) for bundle in inner if not bundle.name.startswith(".")]
        else:
            found.append((entry, path))
    return found
