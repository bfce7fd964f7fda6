from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from eqnet_core.errors import TrainingError
from eqnet_core.space import LayerSpec, SearchSpace
from eqnet_core.training.samples import Samples, append, concatenate


def make_samples(count: int, layers: int) -> Samples:
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
    return Samples(
        space=space,
        form=form,
        narrow_range=symmetric & (generator.random(count) < 0.2),
        weight_bits=generator.integers(2, 9, (count, layers)).astype(np.int8),
        activation_bits=generator.integers(2, 9, (count, layers)).astype(np.int8),
        correct=generator.integers(2100, 2301, (count, 2)).astype(np.int32),
        evaluated=np.array([2500, 2500], dtype=np.int32),
        means=generator.normal(size=(count, 4 * layers)).astype(np.float32),
        variances=generator.gamma(2.0, size=(count, 4 * layers)).astype(np.float32),
        batch_norms=tuple((f"norm.{k}", 4) for k in range(layers)),
    )


@pytest.fixture(scope="module")
def samples() -> Samples:
    return make_samples(70, 3)


def assert_equal(one: Samples, other: Samples) -> None:
    assert (one.space, one.batch_norms) == (other.space, other.batch_norms)
    for name in ("form", "narrow_range", "weight_bits", "activation_bits", "correct", "means", "variances"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_a_saved_file_is_read_back(samples: Samples, tmp_path: Path) -> None:
    samples.save(tmp_path / "run" / "samples.npz")
    assert_equal(Samples.load(tmp_path / "run" / "samples.npz"), samples)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["samples.npz"]


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
        append(path, replace(samples, evaluated=np.array([2500, 2600], dtype=np.int32)))
    assert path.read_bytes() == before
    with pytest.raises(TrainingError, match="no samples"):
        concatenate([])


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
        ("correct", 3, 2501, "between 0 and evaluated"),
        ("correct", 3, -1, "between 0 and evaluated"),
        ("means", 3, np.nan, "finite"),
        ("variances", 3, -1.0, "negative"),
    ],
)
def test_impossible_values_are_named(
    samples: Samples, name: str, row: int, value: float, complaint: str
) -> None:
    array = getattr(samples, name).copy()
    array[row] = value
    with pytest.raises(TrainingError, match=complaint):
        replace(samples, **{name: array})


def test_arrays_of_different_length_are_named(samples: Samples) -> None:
    with pytest.raises(TrainingError, match=r"means has shape \(69, 12\), expected \(70, 12\)"):
        replace(samples, means=samples.means[1:])


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
