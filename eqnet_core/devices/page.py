"""The catalogue as a Markdown page, from the entries alone: `python -m eqnet_core.devices`."""

from __future__ import annotations

from eqnet_core.devices.catalogue import Catalogue
from eqnet_core.devices.device import Device, Side, UnsupportedDevice
from eqnet_core.profile import DeviceProfile

_HEAD = """# Device catalogue

Made from `eqnet_core/devices/entries/` by `python -m eqnet_core.devices > docs/devices.md`; change the
entries, not this page. Adding a device is adding a file there, and `eqnet_core/devices/entry.py` says
what it holds.

**Native** bit-widths are those that the hardware or its kernels have a home for; every other one is
*held in int8*, where it costs as much memory and time as 8 bits: only its accuracy is that of fewer
bits. The first and the last layer always have 8 bits. **File** is the artifact that the device, or the
converter of its toolchain, is given. What a source does not settle starts with "?", and *partly
documented* says that there is such a thing. Every entry's rules are checked on every build for that
device, on the subnet and on the file; a layer that breaks one is a 422 that names it.
"""

_FOOT = """
## A device that is not here

Send its own `profile` instead of `device` (`POST /subnets`): bits, granularity, symmetry, narrow range
and signedness. Symmetric per-channel weights with per-tensor activations run almost everywhere;
asymmetric per-channel weights almost nowhere. Bit-serial and other custom accelerators that take 2 to 8
bits are described that way.
"""


def devices_page(catalogue: Catalogue) -> str:
    """The page; equal catalogues give equal pages."""
    lines = [
        _HEAD,
        "| device | native: weights | native: activations | weights | activations | file | confidence |",
        "|---|---|---|---|---|---|---|",
        *(_row(device) for device in catalogue.values()),
        "",
        "Listed, but not supported:",
        "",
        *(
            f"- **{entry.name}** ({entry.origin.title}): {entry.because}."
            for entry in catalogue.unsupported.values()
        ),
    ]
    for entry in catalogue.entries:
        lines += ["", *_section(entry)]
    return "\n".join(lines) + "\n" + _FOOT


def _row(device: Device) -> str:
    cells = (
        f"[{device.name}](#{device.name})",
        _native(device.weight),
        _native(device.activation),
        _weights(device.profile),
        _activations(device.profile),
        f"`{device.file}`",
        device.origin.confidence,
    )
    return f"| {' | '.join(cells)} |"


def _native(side: Side) -> str:
    return ", ".join(str(bits) for bits in side.containers if side.held(bits) == "native")


def _weights(profile: DeviceProfile) -> str:
    narrow = ", without the lowest code" if profile.narrow_range else ""
    return f"{_words(profile.weight_granularity)}, {profile.weight_symmetry}{narrow}"


def _activations(profile: DeviceProfile) -> str:
    return f"{profile.activation_symmetry}{', signed only' if profile.signed else ''}"


def _words(value: str) -> str:
    return value.replace("_", " ")


def _section(entry: Device | UnsupportedDevice) -> list[str]:
    origin = entry.origin
    lines = [f"## {entry.name}", "", f"{origin.title}. Takes {origin.exchange}."]
    if isinstance(entry, Device):
        lines[-1] += (
            f" Accepts weights {' or '.join(_words(value) for value in entry.granularities)},"
            f" {' or '.join(entry.weight.symmetries)}; activations per tensor,"
            f" {' or '.join(entry.activation.symmetries)}. Codes in the file: weights"
            f" {' or '.join(entry.weight.file_types)},"
            f" activations {' or '.join(entry.activation.file_types)}."
            f" {'Our files have run on it.' if entry.verified_on_device else 'Not tried on the hardware.'}"
        )
    else:
        lines[-1] += f" Not supported: {entry.because}."
    lines += [""] + [f"- {text}" for text in (*origin.notes, *origin.unverified)]
    return [*lines, "", f"Sources ({origin.date}, {origin.confidence}): {'; '.join(origin.source)}."]
