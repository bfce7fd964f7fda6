from __future__ import annotations

import json
from pathlib import Path

import pytest

from eqnet_core import devices
from eqnet_core.devices import load_catalogue
from eqnet_core.errors import InvalidProfileError, UnknownDeviceError
from eqnet_core.space import Granularity, Symmetry

ENTRIES = Path(devices.__file__).parent / "entries"
KNOWN = ["fpga-mixed", "litert-int8", "onnxruntime-cpu", "qualcomm-htp-v66", "qualcomm-htp-v73", "tensorrt"]


def test_the_catalogue_has_the_first_six_devices() -> None:
    catalogue = load_catalogue()
    assert set(KNOWN) <= set(catalogue)
    assert list(catalogue) == sorted(catalogue)
    assert [device.name for device in catalogue.values()] == list(catalogue)


def test_an_unknown_device_is_answered_with_the_known_ones() -> None:
    catalogue = load_catalogue()
    with pytest.raises(UnknownDeviceError, match="litert-int8, onnxruntime-cpu"):
        catalogue["tpu"]
    assert "tpu" not in catalogue
    assert catalogue.get("tpu") is None
    assert catalogue.get("tensorrt") is catalogue["tensorrt"]


def test_forms_and_ranges_are_those_of_the_sources() -> None:
    catalogue = load_catalogue()
    profiles = {name: device.profile for name, device in catalogue.items()}
    assert profiles["tensorrt"].signed
    assert profiles["tensorrt"].activation_symmetry is Symmetry.SYMMETRIC
    assert profiles["litert-int8"].narrow_range
    assert not profiles["tensorrt"].narrow_range
    assert profiles["qualcomm-htp-v66"].weight_granularity is Granularity.PER_TENSOR
    assert profiles["qualcomm-htp-v73"].weight_granularity is Granularity.PER_CHANNEL
    assert {profile.weight_symmetry for profile in profiles.values()} == {Symmetry.SYMMETRIC}


def test_every_accepted_bit_width_says_what_it_is_held_in() -> None:
    catalogue = load_catalogue()
    for device in catalogue.values():
        assert tuple(device.weight_containers) == device.profile.weight_bits
        assert tuple(device.activation_containers) == device.profile.activation_bits
        assert device.weight_containers[8] == device.activation_containers[8] == "native"
    native = {
        name: [bits for bits, held in device.weight_containers.items() if held == "native"]
        for name, device in catalogue.items()
    }
    assert native["tensorrt"] == native["litert-int8"] == native["onnxruntime-cpu"] == [8]
    assert native["qualcomm-htp-v66"] == native["qualcomm-htp-v73"] == [4, 8]
    assert native["fpga-mixed"] == [2, 3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize("name", KNOWN)
def test_the_json_is_complete_and_plain(name: str) -> None:
    device = load_catalogue()[name]
    document = json.loads(json.dumps(device.to_json()))
    assert document == device.to_json()
    assert document["profile"] == device.profile.to_json()
    assert document["source"]
    assert document["date"]
    assert document["confidence"]
    assert document["containers"]["weight"]["8"] == "native"


def test_adding_a_device_is_adding_a_file(tmp_path: Path) -> None:
    (tmp_path / "my-board.toml").write_text((ENTRIES / "fpga-mixed.toml").read_text())
    assert list(load_catalogue(tmp_path)) == ["my-board"]


@pytest.mark.parametrize(
    ("old", "new", "pointer"),
    [
        ('flavour = "exact"', 'flavour = "quick"', "/flavour"),
        ('date = "2026-11"', 'date = "2026-13"', "/date"),
        ('confidence = "partly documented"', 'confidence = "documented"', "/confidence"),
        ('confidence = "partly documented"', "confidence = 3", "/confidence"),
        ("verified_on_device = false\n", "", "/verified_on_device"),
        ("narrow_range = true", 'narrow_range = true\ncolour = "red"', "/weight/colour"),
        ('8 = "native"', '8 = "somehow"', "/weight/containers/8"),
        ("bits = [2, 3, 4, 5, 6, 7, 8]", "bits = [2, 3, 4, 5, 6, 8]", "/weight/containers"),
        ('symmetries = ["symmetric"]', "symmetries = []", "/weight/symmetries"),
        ('"? activations', '"activations', "/unverified"),
        ("signed = false", "signed = 0", "/activation/signed"),
    ],
)
def test_an_entry_that_breaks_the_schema_is_refused_where_it_does(
    tmp_path: Path, old: str, new: str, pointer: str
) -> None:
    text = (ENTRIES / "litert-int8.toml").read_text()
    assert old in text
    (tmp_path / "broken.toml").write_text(text.replace(old, new, 1))
    with pytest.raises(InvalidProfileError, match=r"broken\.toml") as error:
        load_catalogue(tmp_path)
    assert pointer in [violation.pointer for violation in error.value.violations]


def test_bits_outside_the_space_and_broken_files_are_refused(tmp_path: Path) -> None:
    text = (ENTRIES / "litert-int8.toml").read_text()
    (tmp_path / "wide.toml").write_text(text.replace("7, 8]", "7, 16]").replace("8 =", "16 ="))
    with pytest.raises(InvalidProfileError, match=r"wide\.toml"):
        load_catalogue(tmp_path)
    (tmp_path / "wide.toml").write_text("title = ")
    with pytest.raises(InvalidProfileError, match="cannot be read"):
        load_catalogue(tmp_path)
