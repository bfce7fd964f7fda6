"""The device catalogue: one TOML file per device in `entries/`, read and checked by `entry.py`."""

from eqnet_core.devices.catalogue import Catalogue, load_catalogue
from eqnet_core.devices.device import Device, UnsupportedDevice

__all__ = ["Catalogue", "Device", "UnsupportedDevice", "load_catalogue"]
