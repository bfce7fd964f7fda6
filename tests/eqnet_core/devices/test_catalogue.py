from __future__ import annotations

import json
from pathlib import Path

import pytest

from eqnet_core import devices
from eqnet_core.devices import load_catalogue
from eqnet_core.errors import InvalidProfileError, UnknownDeviceError, UnsupportedTargetError
from eqnet_core.space import Granularity, Symmetry

ENTRIES = Path(devices.__file__).parent / "entries"
CATALOGUE = load_catalogue()

NATIVE_WEIGHTS = {
    "apple-coreml": {4, 8},
    "arm-ethos-u": {8},
    "cmsis-nn": {4, 8},
    "fpga-mixed": {2, 3, 4, 5, 6, 7, 8},
    "litert-int8": {8},
    "onnxruntime-cpu": {8},
    "openvino-cpu": {8},
    "openvino-gpu": {8},
    "openvino-npu": {8},
    "qualcomm-htp-v66": {4, 8},
    "qualcomm-htp-v68": {4, 8},
    "qualcomm-htp-v69": {4, 8},
    "qualcomm-htp-v73": {4, 8},
    "qualcomm-htp-v75": {4, 8},
    "qualcomm-htp-v79": {4, 8},
    "qualcomm-htp-v81": {4, 8},
    "rockchip-rknn": {8},
    "tensorrt": {8},
    "ti-tidl": {8},
    "ti-tidl-tda4vm": {8},
}
"""Every supported target of the design and the weight bit-widths that its hardware has a home for."""


def test_every_target_is_there_and_says_what_it_holds_bits_in() -> None:
    native = {
        name: {
            int(bits) for bits, held in device.to_json()["containers"]["weight"].items() if held == "native"
        }
        for name, device in CATALOGUE.items()
    }
    assert native == NATIVE_WEIGHTS
    for device in CATALOGUE.values():
        assert tuple(device.weight.containers) == device.profile.weight_bits
        assert tuple(device.activation.containers) == device.profile.activation_bits
        assert {device.weight.held(bits) for bits in device.profile.weight_bits} <= {"native", "held in int8"}
        assert device.activation.held(8) == "native"
        if device.name != "fpga-mixed":
            assert {device.activation.held(bits) for bits in range(2, 8)} == {"held in int8"}


def test_devices_are_in_alphabetical_order_under_their_own_names() -> None:
    assert list(CATALOGUE) == sorted(CATALOGUE)
    assert [device.name for device in CATALOGUE.values()] == list(CATALOGUE)
    assert [entry.name for entry in CATALOGUE.entries] == sorted([*CATALOGUE, *CATALOGUE.unsupported])


def test_an_unknown_device_is_answered_with_the_known_ones() -> None:
    with pytest.raises(UnknownDeviceError, match="litert-int8, onnxruntime-cpu"):
        CATALOGUE["tpu"]
    assert "tpu" not in CATALOGUE
    assert CATALOGUE.get("tpu") is None
    assert CATALOGUE.get("tensorrt") is CATALOGUE["tensorrt"]


def test_a_target_of_powers_of_two_is_listed_with_the_reason_and_not_offered() -> None:
    assert "vitis-ai-dpu" not in CATALOGUE
    with pytest.raises(UnsupportedTargetError, match="powers of two"):
        CATALOGUE["vitis-ai-dpu"]
    document = CATALOGUE.unsupported["vitis-ai-dpu"].to_json()
    assert not document["supported"]
    assert "powers of two" in document["unsupported_because"]
    assert document["profile"] is document["containers"] is document["file"] is None
    assert set(document) == set(CATALOGUE["tensorrt"].to_json())


def test_forms_and_ranges_are_those_of_the_sources() -> None:
    profiles = {name: device.profile for name, device in CATALOGUE.items()}
    assert [name for name, profile in profiles.items() if profile.signed] == ["tensorrt"]
    assert {name for name, profile in profiles.items() if profile.narrow_range} == {
        *("litert-int8", "cmsis-nn", "arm-ethos-u", "apple-coreml"),
        *("openvino-cpu", "openvino-gpu", "openvino-npu"),
    }
    assert {
        name for name, profile in profiles.items() if profile.weight_granularity is Granularity.PER_TENSOR
    } == {"qualcomm-htp-v66", "qualcomm-htp-v68"}
    assert {
        name for name, device in CATALOGUE.items() if device.activation.symmetries == (Symmetry.SYMMETRIC,)
    } == {"tensorrt", "fpga-mixed", "apple-coreml", "ti-tidl", "ti-tidl-tda4vm"}
    assert {profile.weight_symmetry for profile in profiles.values()} == {Symmetry.SYMMETRIC}


@pytest.mark.parametrize("entry", CATALOGUE.entries, ids=lambda entry: entry.name)
def test_the_json_is_complete_and_plain(entry: devices.Device | devices.UnsupportedDevice) -> None:
    document = json.loads(json.dumps(entry.to_json()))
    assert document == entry.to_json()
    for key in ("title", "exchange", "source", "date", "confidence"):
        assert document[key], key
    assert (document["confidence"] == "documented") != bool(document["unverified"])


def test_adding_a_device_is_adding_a_file(tmp_path: Path) -> None:
    (tmp_path / "my-board.toml").write_text((ENTRIES / "fpga-mixed.toml").read_text())
    (tmp_path / "old-board.toml").write_text((ENTRIES / "vitis-ai-dpu.toml").read_text())
    catalogue = load_catalogue(tmp_path)
    assert list(catalogue) == ["my-board"]
    assert list(catalogue.unsupported) == ["old-board"]


@pytest.mark.parametrize(
    ("old", "new", "pointer"),
    [
        ('flavour = "exact"', 'flavour = "quick"', "/flavour"),
        ('date = "2026-11"', 'date = "2026-13"', "/date"),
        ('confidence = "partly documented"', 'confidence = "documented"', "/confidence"),
        ('confidence = "partly documented"', "confidence = 3", "/confidence"),
        ("verified_on_device = false\n", "", "/verified_on_device"),
        ("narrow_range = true", 'narrow_range = true\ncolour = "red"', "/weight/colour"),
        ('8 = "int8"', '8 = "somehow"', "/weight/containers/8"),
        ('8 = "int8"', '8 = "int4"', "/weight/containers/8"),
        ("bits = [2, 3, 4, 5, 6, 7, 8]", "bits = [2, 3, 4, 5, 6, 8]", "/weight/containers"),
        ("bits = [2, 3, 4, 5, 6, 7, 8]", "bits = [2, 3, 4, 5, 6, 7]", "/weight/bits"),
        ('file_types = ["int4", "int8"]', 'file_types = ["float16"]', "/weight/file_types"),
        ('file_types = ["int4", "int8"]\n', "", "/weight/file_types"),
        ('symmetries = ["symmetric"]', "symmetries = []", "/weight/symmetries"),
        ('symmetries = ["symmetric"]', 'symmetries = ["asymmetric"]', "/weight/narrow_range"),
        ('"? activations', '"activations', "/unverified/0"),
        ("signed = false", "signed = 0", "/activation/signed"),
        ('title = "', 'unsupported = "no"\ntitle = "', "/weight"),
        ('title = "LiteRT (TFLite) int8"', 'title = ""', "/title"),
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
    assert pointer in str(error.value)


def test_an_unsupported_target_needs_a_reason_and_a_source(tmp_path: Path) -> None:
    text = (ENTRIES / "vitis-ai-dpu.toml").read_text()
    (tmp_path / "broken.toml").write_text(text.replace('unsupported = "its', 'unsupported = ""\n# "'))
    with pytest.raises(InvalidProfileError, match="/unsupported must not be empty"):
        load_catalogue(tmp_path)


def test_bits_outside_the_space_and_broken_files_are_refused(tmp_path: Path) -> None:
    text = (ENTRIES / "litert-int8.toml").read_text()
    (tmp_path / "wide.toml").write_text(text.replace("7, 8]", "7, 8, 16]").replace("8 =", "16 = 'int8', 8 ="))
    with pytest.raises(InvalidProfileError, match=r"wide\.toml"):
        load_catalogue(tmp_path)
    (tmp_path / "wide.toml").write_text("title = ")
    with pytest.raises(InvalidProfileError, match="cannot be read"):
        load_catalogue(tmp_path)
