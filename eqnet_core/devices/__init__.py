"""The device catalogue: one TOML file per device in `entries/`, read and checked by `catalogue.py`."""

from eqnet_core.devices.catalogue import Catalogue, Device, load_catalogue

__all__ = ["Catalogue", "Device", "load_catalogue"]
