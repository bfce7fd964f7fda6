from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eqnet_core.bundle import Bundle, shipped_bundles
from eqnet_core.bundle_writer import add_ranges, write_bundle
from eqnet_core.errors import BundleError
from eqnet_core.predictor import AccuracyPredictor
from eqnet_core.ranges import TensorRanges
from eqnet_core.space import FORMS, LayerSpec, SearchSpace
from eqnet_core.statistics import NO_LAYER, TABLE_ROWS, StatisticsPredictor
from eqnet_core.subnet import InputSpec

SPACE = SearchSpace(
    tuple(
        LayerSpec(
            name=name,
            kind="conv",
            searchable=name in ("a.conv1", "b.conv1"),
            output_channels=3,
            weights=27,
            inputs=48,
            macs=432,
            nonnegative=name != "conv1",
            float_parameters=6,
        )
        for name in ("conv1", "a.conv1", "b.conv1", "fc")
    )
)


def make_predictor(space: SearchSpace) -> AccuracyPredictor:
    generator = np.random.default_rng(0)
    return AccuracyPredictor.rounded(
        first=generator.normal(size=(space.encoding_size, 9)),
        first_bias=generator.normal(size=9),
        second=generator.normal(size=(2, 4, 4)),
        second_bias=generator.normal(size=(2, 1, 4)),
        third=generator.normal(size=(2, 4)),
        third_bias=0.5,
        centre=2.3,
        spread=0.1,
        interval_accuracy=np.array([0.9]),
        interval_half_width=np.array([0.01]),
    )


def make_statistics(space: SearchSpace) -> StatisticsPredictor:
    generator = np.random.default_rng(1)
    return StatisticsPredictor(
        batch_norms=(("bn1", 3), ("a.bn1", 3)),
        owners=np.array([0, NO_LAYER], dtype=np.int32),
        table=generator.normal(size=(TABLE_ROWS, 12)).astype(np.float16),
        shared=generator.normal(size=(space.encoding_size, 12)).astype(np.float16),
        centre=np.zeros(12, dtype=np.float32),
        spread=np.ones(12, dtype=np.float32),
        low=np.full(12, -2, dtype=np.float32),
        high=np.full(12, 2, dtype=np.float32),
        floor=np.full(6, 0.2, dtype=np.float32),
    )


def write(folder: Path, **changes: Any) -> Bundle:
    parts: dict[str, Any] = {
        "name": "toy",
        "architecture": "toynet",
        "classes": ("cat", "dög"),
        "input": InputSpec(shape=(3, 4, 4), mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.25)),
        "space": SPACE,
        "float_accuracy": 0.9166,
        "accuracy": {"uniform": {"8": 0.915}},
        "predictor_quality": {"kendall": 0.9},
        "statistics_quality": {"mean_error": 0.01},
        "card": {"epochs": 20},
        "supernet": {"conv1.weight": np.arange(6, dtype=np.float32).reshape(2, 3)[:, ::-1]},
        "predictor": make_predictor(SPACE),
        "statistics": make_statistics(SPACE),
    }
    return write_bundle(folder, **{**parts, **changes})


def rewrite(folder: Path, change: Any) -> None:
    path = folder / "bundle.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    change(document)
    path.write_text(json.dumps(document), encoding="utf-8")


def test_what_is_written_is_read(tmp_path: Path) -> None:
    written = write(tmp_path / "toy")
    bundle = Bundle.open(str(tmp_path / "toy"))
    assert bundle == written
    assert bundle.space == SPACE
    assert bundle.input == InputSpec(shape=(3, 4, 4), mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.25))
    assert (bundle.name, bundle.architecture, bundle.classes) == ("toy", "toynet", ("cat", "dög"))
    assert bundle.float_accuracy == 0.9166
    assert bundle.document["predictor"] == {"kendall": 0.9}
    assert bundle.document["card"] == {"epochs": 20}
    tensors = bundle.supernet_tensors()
    np.testing.assert_array_equal(tensors["conv1.weight"], [[2, 1, 0], [5, 4, 3]])
    configuration = SPACE.uniform(FORMS[3], 4)
    features = SPACE.encode([configuration])
    np.testing.assert_array_equal(
        bundle.predictor().predict(features), make_predictor(SPACE).predict(features)
    )
    expected = make_statistics(SPACE).predict(configuration, SPACE)
    for name, (mean, variance) in bundle.statistics().predict(configuration, SPACE).items():
        np.testing.assert_array_equal(mean, expected[name][0])
        np.testing.assert_array_equal(variance, expected[name][1])
        assert (variance >= np.float32(0.2)).all()


def test_the_digest_stands_for_every_part(tmp_path: Path) -> None:
    digest = write(tmp_path / "one").digest
    assert digest.startswith("sha256:")
    assert write(tmp_path / "two").digest == digest
    files = [{path.name: path.read_bytes() for path in (tmp_path / n).iterdir()} for n in ("one", "two")]
    assert files[0] == files[1]
    assert write(tmp_path / "three", supernet={"conv1.weight": np.zeros((2, 3))}).digest != digest
    assert write(tmp_path / "four", card={"epochs": 21}).digest != digest
    rewrite(tmp_path / "two", lambda document: document.update(accuracy={}))
    assert Bundle.open(tmp_path / "two").digest != digest


def test_ranges_are_an_optional_part(tmp_path: Path) -> None:
    before = write(tmp_path / "toy")
    assert not before.has_ranges
    with pytest.raises(BundleError, match=r"no tensor ranges.*`ranges` stage"):
        before.ranges()
    ranges = TensorRanges(
        names=("conv1.output", "add.0"),
        low=np.array([-1.5, 0.0], np.float32),
        high=np.array([2.0, 3.0], np.float32),
    )
    bundle = add_ranges(tmp_path / "toy", ranges, {"images": 10})
    assert bundle.digest != before.digest
    assert bundle.document["integer"] == {"images": 10}
    assert bundle.ranges().of("conv1.output") == (-1.5, 2.0)
    with pytest.raises(BundleError, match=r"no range for the tensor add\.1"):
        bundle.ranges().of("add.1")
    # everything else is what it was, and doing it again changes nothing
    assert {**bundle.document["files"]}.pop("supernet.safetensors") == before.document["files"][
        "supernet.safetensors"
    ]
    assert add_ranges(tmp_path / "toy", ranges, {"images": 10}) == bundle
    assert write(tmp_path / "whole", ranges=ranges, integer_quality={"images": 10}).digest == bundle.digest
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("low", "high"), [(0.5, 1.0), (-1.0, -0.5), (0.0, 0.0), (float("nan"), 1.0), (-1.0, float("inf"))]
)
def test_ranges_that_make_no_sense_are_refused(low: float, high: float) -> None:
    with pytest.raises(BundleError, match=r"measure them again|leaves out 0"):
        TensorRanges(names=("a",), low=np.array([low], np.float32), high=np.array([high], np.float32))


def test_ranges_of_another_version_say_so() -> None:
    ranges = TensorRanges(names=("a",), low=np.zeros(1, np.float32), high=np.ones(1, np.float32))
    tensors = ranges.to_tensors()
    header = tensors["header"].tobytes().replace(b'"version": 1', b'"version": 2')
    with pytest.raises(BundleError, match="upgrade eqnet-serve"):
        TensorRanges.from_tensors({**tensors, "header": np.frombuffer(header, np.uint8)})
    with pytest.raises(BundleError, match="not tensor ranges"):
        TensorRanges.from_tensors({"low": tensors["low"]})


def test_another_bundle_is_not_overwritten_unless_asked(tmp_path: Path) -> None:
    folder = tmp_path / "toy"
    first = write(folder)
    assert write(folder) == first
    with pytest.raises(BundleError, match="another bundle"):
        write(folder, card={"epochs": 40})
    assert Bundle.open(folder) == first
    second = write(folder, card={"epochs": 40}, overwrite=True)
    assert second.digest != first.digest
    assert Bundle.open(folder) == second
    assert [path.name for path in tmp_path.iterdir()] == ["toy"]


def test_a_replacement_that_was_killed_between_its_renames_tells_where_the_old_one_is(tmp_path: Path) -> None:
    first = write(tmp_path / "toy[1]")
    first.path.rename(tmp_path / ".toy[1].0123abcd.old")
    with pytest.raises(BundleError, match=r"rename \.toy\[1\]\.0123abcd\.old, .* to toy\[1\]"):
        Bundle.open(first.path)


def test_what_is_no_bundle_is_never_overwritten(tmp_path: Path) -> None:
    bundles = tmp_path / "bundles"
    inside = write(bundles / "mine")
    file = tmp_path / "file"
    file.write_text("notes")
    for taken in (bundles, file):
        for overwrite in (False, True):
            with pytest.raises(BundleError, match=f"{taken.name} exists and is no bundle"):
                write(taken, overwrite=overwrite)
    assert Bundle.open(inside.path) == inside
    assert file.read_text() == "notes"
    (tmp_path / "empty").mkdir()
    assert write(tmp_path / "empty").digest == inside.digest
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundles", "empty", "file"]


def test_a_bundle_that_would_not_open_is_not_written(tmp_path: Path) -> None:
    smaller = SearchSpace((SPACE.layers[0], SPACE.layers[1], SPACE.layers[3]))
    for changes, complaint in (
        ({"space": smaller}, "another supernet"),
        ({"name": "../toy"}, "name"),
        ({"classes": ("cat",)}, "fewer than two classes"),
        ({"float_accuracy": 91.66}, "float accuracy"),
        ({"card": {"loss": float("nan")}}, "plain JSON"),
    ):
        with pytest.raises(BundleError, match=complaint):
            write(tmp_path / "toy", **changes)
        assert list(tmp_path.iterdir()) == []


def test_one_flipped_bit_is_noticed(tmp_path: Path) -> None:
    folder = write(tmp_path / "toy").path
    for name in ("supernet.safetensors", "predictor.safetensors", "statistics.safetensors"):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(BundleError, match=f"{name} is damaged"):
            Bundle.open(folder)
        (folder / name).unlink()
        with pytest.raises(BundleError, match=f"cannot read {name}"):
            Bundle.open(folder)
        (folder / name).write_bytes(content)
    Bundle.open(folder)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda d: d.update(schema=2), "schema 2.*upgrade"),
        (lambda d: d.update(schema=0), "schema 0.*write the bundle again"),
        (lambda d: d.pop("schema"), "no schema"),
        (lambda d: d.pop("layers"), "layers"),
        (lambda d: d["layers"][0].pop("macs"), "macs"),
        (lambda d: d["layers"][1].update(name="conv1"), "one name"),
        (lambda d: d["layers"][1].update(weights=0), "no weights"),
        (lambda d: [layer.update(searchable=False) for layer in d["layers"]], "no searchable layer"),
        (lambda d: d["input"].update(std=[0.1, 0.0, 0.1]), "normalisation"),
        (lambda d: d["input"].update(shape=[3, 4]), "not a bundle's"),
        (lambda d: d["input"].update(shape=[1e999, 4, 4]), "not a bundle's"),
        (lambda d: d.update(integer=[1]), "not a bundle's"),
        (lambda d: d.update(integer={"cost": {"a": "much"}, "images": 9}), "must be numbers"),
        (lambda d: d.update(integer={"cost": {"a": 0.1}}), "images"),
        (lambda d: d["files"].pop("predictor.safetensors"), "lacks"),
        (lambda d: d["files"].update({"../secret": {"sha256": "", "bytes": 0}}), "lists no file"),
        (lambda d: d.update(files=[]), "not a bundle's"),
        (lambda d: d.update(files=list(d["files"])), "not a bundle's"),
        (lambda d: d["files"].update({"predictor.safetensors": "sha"}), "not a bundle's"),
        (lambda d: d["files"]["predictor.safetensors"].pop("sha256"), "not a bundle's"),
        (lambda d: d["files"]["predictor.safetensors"].update(sha256=7), "must be a text"),
        (lambda d: d["layers"][1].update(weights="many"), "not a bundle's"),
        (lambda d: d.update(layers={"conv1": {}}), "not a bundle's"),
    ],
)
def test_a_document_that_makes_no_sense_says_why(tmp_path: Path, change: Any, complaint: str) -> None:
    folder = write(tmp_path / "toy").path
    rewrite(folder, change)
    with pytest.raises(BundleError, match=complaint):
        Bundle.open(folder)


def test_later_versions_may_add_to_a_document(tmp_path: Path) -> None:
    folder = write(tmp_path / "toy").path
    rewrite(folder, lambda d: (d.update(author="me"), [layer.update(groups=1) for layer in d["layers"]]))
    assert Bundle.open(folder).space == SPACE


def test_tensors_of_types_that_numpy_lacks_are_refused(tmp_path: Path) -> None:
    header = json.dumps({"x": {"dtype": "BF16", "shape": [1], "data_offsets": [0, 2]}}).encode()
    content = len(header).to_bytes(8, "little") + header + b"\0\0"
    bundle = write(tmp_path / "toy")
    (bundle.path / "predictor.safetensors").write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    rewrite(bundle.path, lambda d: d["files"]["predictor.safetensors"].update(sha256=digest))
    with pytest.raises(BundleError, match="BF16"):
        Bundle.open(bundle.path).predictor()


def test_owners_of_statistics_are_whole_numbers() -> None:
    statistics = make_statistics(SPACE)
    with pytest.raises(BundleError, match="do not fit together"):
        replace(statistics, owners=statistics.owners.astype(np.float32))


def test_a_bundle_is_read_after_the_working_folder_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "toy")
    monkeypatch.chdir(tmp_path)
    bundle = Bundle.open("toy")
    monkeypatch.chdir("/")
    assert bundle.predictor().encoding_size == SPACE.encoding_size


def test_where_no_bundle_is_says_so(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no bundle in"):
        Bundle.open(tmp_path / "nowhere")
    with pytest.raises(BundleError, match="cannot read"):
        Bundle.open("a\0b")
    (tmp_path / "bundle.json").write_text("{", encoding="utf-8")
    with pytest.raises(BundleError, match="not JSON"):
        Bundle.open(tmp_path)
    (tmp_path / "bundle.json").write_text("[" * 100_000, encoding="utf-8")
    with pytest.raises(BundleError, match="not JSON"):
        Bundle.open(tmp_path)
    (tmp_path / "bundle.json").write_text("[]", encoding="utf-8")
    with pytest.raises(BundleError, match="no schema"):
        Bundle.open(tmp_path)


@pytest.mark.parametrize("name", shipped_bundles())
def test_shipped_bundles_are_whole(name: str) -> None:
    bundle = Bundle.open(shipped_bundles()[name])
    assert bundle.name == name
    configurations = [bundle.space.uniform(form, bits) for form in FORMS for bits in range(2, 9)]
    accuracy = bundle.predictor().predict(bundle.space.encode(configurations)).reshape(len(FORMS), 7)
    assert ((accuracy > 0.5) & (accuracy < 1)).all()
    assert (accuracy[:, -1] > accuracy[:, 0]).all()
    assert bundle.ranges().names
    statistics = bundle.statistics().predict(configurations[0], bundle.space)
    assert all((variance > 0).all() for _, variance in statistics.values())
