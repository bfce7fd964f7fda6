"""The `Prefer` header (RFC 7240), as far as it says how long to wait."""

from __future__ import annotations

import re
from collections.abc import Sequence

MAX_WAIT = 600
"""Seconds; more is cut down to this."""

_WAIT = re.compile(r'wait\s*=\s*"?(\d{1,9})"?')


def preferred_wait(headers: Sequence[str], *, default: float) -> tuple[float, str | None]:
    """Seconds to wait, and the `Preference-Applied` to answer with. Preferences not understood are ignored.

    `respond-async` alone means not to wait at all; with `wait=N` it means to wait that long first.
    """
    preferences = [part.strip().lower() for header in headers for part in header.split(",")]
    for preference in preferences:
        if match := _WAIT.fullmatch(preference.split(";")[0].strip()):
            wait = min(int(match[1]), MAX_WAIT)
            return float(wait), f"wait={wait}"
    if any(preference.split(";")[0].strip() == "respond-async" for preference in preferences):
        return 0.0, "respond-async"
    return default, None
