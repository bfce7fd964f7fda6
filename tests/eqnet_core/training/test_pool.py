from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from eqnet_core.errors import TrainingError
from eqnet_core.training.panel import Panel
from eqnet_core.training.pool import ImagePool


def make_margins(subnets: int, images: int, seed: int) -> NDArray[np.float32]:
    """Margins as real subnets have them: most images are easy for all, and subnets differ in quality."""
    generator = np.random.default_rng(seed)
    ease = np.random.default_rng(0).normal(6.0, 5.0, images)
    quality = generator.normal(0.0, 0.5, (subnets, 1))
    return (ease + quality + generator.normal(0.0, 1.0, (subnets, images))).astype(np.float32)


PILOT, FRESH = make_margins(4, 8000, 1), make_margins(100, 8000, 2)


def measured(pool: ImagePool) -> NDArray[np.float64]:
    draws = [pool.draw(np.random.default_rng(seed)) for seed in range(len(FRESH))]
    return np.array([pool.accuracy(draw, row[draw]) for draw, row in zip(draws, FRESH, strict=True)])


def test_a_draw_tells_the_accuracy_on_all_better_than_its_mean_does() -> None:
    everything = ImagePool(reference=np.full(8000, 0.9), count=8000)  # says nothing of the images
    expected = np.array([everything.accuracy(np.arange(8000), row) for row in FRESH])
    errors = measured(ImagePool.of_pilots(PILOT, 1000)) - expected
    assert errors.std() < 0.7 * (measured(replace(everything, count=1000)) - expected).std()
    assert abs(errors.mean()) < 0.001
    assert np.corrcoef(expected, (FRESH > 0).mean(axis=1))[0, 1] > 0.95


def test_errors_of_different_subnets_have_nothing_in_common() -> None:
    """Were all measured on one draw, what that draw likes would be in every sample."""
    pool = ImagePool.of_pilots(PILOT, 1000)
    draws = [pool.draw(np.random.default_rng(seed)) for seed in range(20)]
    shared = [len(np.intersect1d(draws[0], draw)) for draw in draws[1:]]
    assert abs(np.mean(shared) - 1000 / 8) < 15
    assert all(len(np.unique(draw)) == 1000 for draw in draws)


def test_a_saved_pool_measures_the_same(tmp_path: Path) -> None:
    pool = ImagePool.of_pilots(PILOT, 500)
    pool.save(tmp_path / "pool.npz")
    again = ImagePool.load(tmp_path / "pool.npz", 500)
    np.testing.assert_array_equal(measured(pool), measured(again))
    with pytest.raises(TrainingError, match="draw 1 to 8000"):
        ImagePool.load(tmp_path / "pool.npz", 8001)
    (tmp_path / "pool.npz").write_text("none")
    with pytest.raises(TrainingError, match="delete it"):
        ImagePool.load(tmp_path / "pool.npz", 500)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pool.npz"
    path.touch()
    with pytest.raises(TrainingError, match="delete it"):
        ImagePool.load(path, 1)
    with pytest.raises(TrainingError, match="delete it"):
        Panel.load(path)
