"""Bundles that are added, replaced or taken away while the service runs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from service.supernets.catalogue import SupernetCatalogue, fingerprint

logger = logging.getLogger("eqnet.supernets")


async def follow_bundles(
    bundles: Sequence[str],
    *,
    interval: float,
    current: SupernetCatalogue,
    changed: Callable[[SupernetCatalogue], Awaitable[None]],
) -> None:
    """Look at the folders every `interval` seconds; tell `changed` when other bundles are to be served, or
    one has been damaged or repaired.

    Requests under way go on with the supernets that they began with.
    """
    seen: tuple[object, ...] | None = None
    while True:
        try:
            now = await asyncio.to_thread(fingerprint, bundles)
            if seen is not None and now != seen:
                opened = await asyncio.to_thread(SupernetCatalogue.open, bundles, previous=current)
                if _shown(opened) != _shown(current):
                    await changed(opened)
                    current = opened
                    logger.info("supernets served now: %s", opened.digests or "none")
            seen = now
        except Exception:  # a folder that cannot be read today may be tomorrow
            logger.exception("the bundle folders cannot be followed")
        await asyncio.sleep(interval)


def _shown(catalogue: SupernetCatalogue) -> tuple[object, ...]:
    return catalogue.digests, catalogue.paths, catalogue.failures, catalogue.stale
