"""From a request's `device` or `profile` to the profile that it means."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from eqnet_core.devices import Catalogue, Device, load_catalogue
from eqnet_core.errors import InvalidProfileError, UnknownDeviceError, UnsupportedTargetError
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
        ProblemError: 422, a device as `named_device`, or a profile that makes no sense.
    """
    if profile is not None:
        try:
            return DeviceProfile.from_json(profile)
        except InvalidProfileError as error:
            raise problem_of(error, prefix="/profile") from error
    return named_device(str(device), pointer=pointer).profile


def named_device(name: str, *, pointer: str = "/device") -> Device:
    """The device of the catalogue that a request names at `pointer`.

    Raises:
        ProblemError: 422, an unknown device, or one that no subnet can be made for.
    """
    known = catalogue()
    if name in known:
        return known[name]
    names = ", ".join(known)
    if name in known.unsupported:
        because = known.unsupported[name].because
        raise ProblemError(
            422,
            UnsupportedTargetError.code,
            f"no subnet can be made for {name}: {because}. Use one of {names}, or a `profile`",
            errors=[(pointer, f"is listed, but not supported: {because}")],
        )
    raise ProblemError(
        422,
        UnknownDeviceError.code,
        f"no device {name[:100]!r}: use one of {names}, or describe yours as a `profile`",
        errors=[(pointer, f"use one of {names}")],
    )
