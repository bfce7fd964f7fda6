from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eqnet_core.errors import TrainingError
from eqnet_core.space import LayerSpec, SearchSpace
from eqnet_core.training.samples import Calibrations, Samples, Subnets, append, concatenate, gather


def make_subnets(count: int, layers: int) -> dict[str, Any]:
    generator = np.random.default_rng(layers)
    names = ["stem", *(f"block.{k}" for k in range(layers)), "head"]
    space = SearchSpace(
        tuple(
            LayerSpec(
                name=name,
                kind="conv",
                searchable="." in name,
                output_channels=4,
                weights=16,
                inputs=64,
                macs=1024,
                nonnegative=True,
                float_parameters=8,
            )
            for name in names
        )
    )
    form = generator.integers(0, 8, count).astype(np.int8)
    symmetric = np.isin(form, [0, 1, 4, 5])
    return {
        "space": space,
        "draw": np.zeros(count, dtype=np.int32),
        "index": np.arange(count, dtype=np.int32),
        "form": form,
        "narrow_range": symmetric & (generator.random(count) < 0.2),
        "weight_bits": generator.integers(2, 9, (count, layers)).astype(np.int8),
        "activation_bits": generator.integers(2, 9, (count, layers)).astype(np.int8),
    }


def make_samples(count: int, layers: int) -> Samples:
    accuracies = np.random.default_rng(1).uniform(0.84, 0.92, (count, 3))
    return Samples(
        **make_subnets(count, layers),
        half_accuracy=accuracies[:, :2],
        plain_accuracy=accuracies[:, 0],
        smooth_accuracy=accuracies[:, 2],
        images=5000,
        views=4000,
    )


def make_calibrations(count: int, layers: int) -> Calibrations:
    generator = np.random.default_rng(2)
    return Calibrations(
        **make_subnets(count, layers),
        means=generator.normal(size=(count, 4 * layers)).astype(np.float32),
        variances=generator.gamma(2.0, size=(count, 4 * layers)).astype(np.float32),
        batch_norms=tuple((f"norm.{k}", 4) for k in range(layers)),
    )


@pytest.fixture(scope="module")
def samples() -> Samples:
    return make_samples(70, 3)


def assert_equal(one: Subnets, other: Subnets) -> None:
    assert type(one) is type(other)
    for field in fields(one):
        np.testing.assert_array_equal(getattr(one, field.name), getattr(other, field.name))


def test_a_saved_file_is_read_back(samples: Samples, tmp_path: Path) -> None:
    samples.save(tmp_path / "run" / "samples.npz")
    assert_equal(Samples.load(tmp_path / "run" / "samples.npz"), samples)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["samples.npz"]
    calibrations = make_calibrations(5, 3)
    calibrations.save(tmp_path / "calibrations.npz")
    assert_equal(Calibrations.load(tmp_path / "calibrations.npz"), calibrations)
    with pytest.raises(TrainingError, match="not a samples file"):
        Samples.load(tmp_path / "calibrations.npz")


def test_shards_are_gathered_in_order_and_once(samples: Samples, tmp_path: Path) -> None:
    assert gather(tmp_path, Samples) is None
    samples.select(np.arange(0, 70, 2)).save(tmp_path / "samples-0.npz")
    samples.select([3, 1, 2, *range(5, 70, 2)]).save(tmp_path / "samples-1.npz")
    together = gather(tmp_path, Samples)
    assert together is not None
    assert_equal(together, samples)


def test_batches_are_appended_in_order(samples: Samples, tmp_path: Path) -> None:
    path = tmp_path / "samples.npz"
    for rows in np.array_split(np.arange(70), 3):
        together = append(path, samples.select(rows))
    assert_equal(together, samples)
    assert_equal(Samples.load(path), samples)


def test_samples_of_another_supernet_are_not_mixed_in(samples: Samples, tmp_path: Path) -> None:
    path = tmp_path / "samples.npz"
    samples.save(path)
    before = path.read_bytes()
    with pytest.raises(TrainingError, match="different supernets"):
        append(path, make_samples(3, 2))
    with pytest.raises(TrainingError, match="held-out images"):
        append(path, replace(samples, images=4000))
    assert path.read_bytes() == before
    with pytest.raises(TrainingError, match="no samples"):
        concatenate([])


def test_files_of_before_there_were_views_are_of_the_images_as_they_are(
    samples: Samples, tmp_path: Path
) -> None:
    samples.save(tmp_path / "new.npz")
    with np.load(tmp_path / "new.npz") as archive:
        old = {name: archive[name] for name in archive if name not in ("plain_accuracy", "views")}
    np.savez(tmp_path / "old.npz", **old)
    loaded = Samples.load(tmp_path / "old.npz")
    assert loaded.views == 0
    np.testing.assert_array_equal(loaded.plain_accuracy, loaded.accuracy)
    with pytest.raises(TrainingError, match="different supernets or held-out images"):
        concatenate([loaded, samples])


def test_configurations_and_accuracies_come_out_as_they_went_in(
    samples: Samples,
) -> None:
    configuration = samples.configuration(60)
    assert configuration.form.index == samples.form[60]
    assert configuration.weight_bits == tuple(samples.weight_bits[60])
    np.testing.assert_array_equal(samples.features()[60], samples.space.encode([configuration])[0])
    np.testing.assert_allclose(samples.half_accuracy.mean(axis=1), samples.accuracy)
    assert 0.84 <= samples.accuracy.min() < samples.accuracy.max() <= 0.92


@pytest.mark.parametrize(
    ("name", "row", "value", "complaint"),
    [
        ("form", 3, 8, "form must be"),
        ("weight_bits", 3, 9, "bit-widths"),
        ("activation_bits", 3, 1, "bit-widths"),
        ("half_accuracy", 3, 1.01, "accuracies must be 0..1"),
        ("plain_accuracy", 3, -0.01, "accuracies must be 0..1"),
        ("smooth_accuracy", 3, np.nan, "accuracies must be 0..1"),
        ("means", 3, np.nan, "finite"),
        ("variances", 3, -1.0, "negative"),
    ],
)
def test_impossible_values_are_named(
    samples: Samples, name: str, row: int, value: float, complaint: str
) -> None:
    changed: Subnets = samples if hasattr(samples, name) else make_calibrations(70, 3)
    array = getattr(changed, name).copy()
    array[row] = value
    with pytest.raises(TrainingError, match=complaint):
        replace(changed, **{name: array})


def test_arrays_of_different_length_are_named(samples: Samples) -> None:
    with pytest.raises(TrainingError, match=r"half_accuracy has shape \(69, 2\), expected \(70, 2\)"):
        replace(samples, half_accuracy=samples.half_accuracy[1:])
    calibrations = make_calibrations(70, 3)
    with pytest.raises(TrainingError, match=r"means has shape \(69, 12\), expected \(70, 12\)"):
        replace(calibrations, means=calibrations.means[1:])


@pytest.mark.parametrize("damage", ["truncated", "text", "missing"])
def test_a_file_that_is_none_is_a_clear_error(samples: Samples, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "samples.npz"
    if damage == "text":
        path.write_text("no archive")
    elif damage == "truncated":
        samples.save(path)
        path.write_bytes(path.read_bytes()[:-600])
    with pytest.raises(TrainingError, match="no samples at" if damage == "missing" else "not a samples file"):
        Samples.load(path)
