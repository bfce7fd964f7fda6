"""From a request's `device` or `profile` to the profile that it means."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from eqnet_core.devices import Catalogue, load_catalogue
from eqnet_core.errors import InvalidProfileError
from eqnet_core.profile import DeviceProfile
from service.errors import ProblemError, problem_of


@cache
def catalogue() -> Catalogue:
    """The shipped catalogue, read once."""
    return load_catalogue()


def resolve_profile(
    device: str | None, profile: Mapping[str, Any] | None, *, pointer: str = "/device"
) -> DeviceProfile:
    """Exactly one of the two is given; `pointer` is where the request names the device.

    Raises:
        ProblemError: 422, an unknown device or a profile that makes no sense.
    """
    if profile is not None:
        try:
            return DeviceProfile.from_json(profile)
        except InvalidProfileError as error:
            raise problem_of(error, prefix="/profile") from error
    known = catalogue()
    if device is None or device not in known:
        names = ", ".join(known)
        raise ProblemError(
            422,
            "unknown-device",
            f"no device {str(device)[:100]!r}: use one of {names}, or describe yours as a `profile`",
            errors=[(pointer, f"use one of {names}")],
        )
    return known[device].profile
