"""The devices that can be named instead of described. Adding one is adding a file, as `entry.py` says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypeVar, overload

from eqnet_core.devices.device import Device, UnsupportedDevice
from eqnet_core.devices.entry import read_entry
from eqnet_core.errors import UnknownDeviceError, UnsupportedTargetError

_SHIPPED = Path(__file__).parent / "entries"
_Default = TypeVar("_Default")


class Catalogue(Mapping[str, Device]):
    """The supported devices by name, in alphabetical order, and beside them the `unsupported` ones."""

    def __init__(
        self, devices: Mapping[str, Device], unsupported: Mapping[str, UnsupportedDevice] | None = None
    ) -> None:
        self._devices = dict(sorted(devices.items()))
        self.unsupported: Mapping[str, UnsupportedDevice] = dict(sorted((unsupported or {}).items()))

    def __getitem__(self, name: str) -> Device:
        """The device called `name`.

        Raises:
            UnsupportedTargetError: it is listed, but no subnet can be made for it.
            UnknownDeviceError: it is not listed.
        """
        if (device := self._devices.get(name)) is not None:
            return device
        known = ", ".join(self._devices)
        if name in self.unsupported:
            raise UnsupportedTargetError(
                f"no subnet can be made for {name}: {self.unsupported[name].because}. Use one of {known}, "
                "or describe a device as a profile"
            )
        raise UnknownDeviceError(f"no device {name!r}: use one of {known}")

    def __contains__(self, name: object) -> bool:
        return name in self._devices

    def __iter__(self) -> Iterator[str]:
        return iter(self._devices)

    def __len__(self) -> int:
        return len(self._devices)

    @overload
    def get(self, key: str, /) -> Device | None: ...
    @overload
    def get(self, key: str, default: Device | _Default, /) -> Device | _Default: ...
    def get(self, key: str, default: object = None, /) -> object:
        return self._devices.get(key, default)

    @property
    def entries(self) -> tuple[Device | UnsupportedDevice, ...]:
        """Supported and unsupported ones, in alphabetical order."""
        return tuple(
            sorted((*self._devices.values(), *self.unsupported.values()), key=lambda entry: entry.name)
        )


def load_catalogue(folder: Path | None = None) -> Catalogue:
    """Every entry of `folder`, by default those that ship.

    Raises:
        InvalidProfileError: an entry that does not follow the schema; names the file and every fault.
    """
    entries = [read_entry(path) for path in sorted((folder or _SHIPPED).glob("*.toml"))]
    return Catalogue(
        {entry.name: entry for entry in entries if isinstance(entry, Device)},
        {entry.name: entry for entry in entries if isinstance(entry, UnsupportedDevice)},
    )
