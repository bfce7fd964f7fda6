from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from eqnet_core.errors import TrainingError
from eqnet_core.training.panel import Panel, choose_panel


def make_margins(subnets: int, images: int, seed: int) -> NDArray[np.float32]:
    """Margins as real subnets have them: most images are easy for all, and subnets differ in quality."""
    generator = np.random.default_rng(seed)
    ease = np.random.default_rng(0).normal(6.0, 5.0, images)
    quality = generator.normal(0.0, 0.5, (subnets, 1))
    return (ease + quality + generator.normal(0.0, 1.0, (subnets, images))).astype(np.float32)


PILOT, FRESH = make_margins(20, 4000, 1), make_margins(60, 4000, 2)


def errors(panel: Panel) -> NDArray[np.float64]:
    measured = np.array([panel.accuracies(row[panel.images]).mean() for row in FRESH])
    return measured - (FRESH > 0).mean(axis=1)


def test_a_panel_tells_subnets_apart_better_than_as_many_random_images() -> None:
    panel = choose_panel(PILOT, 800, np.random.default_rng(0))
    assert abs(len(panel.images) - 800) <= 12
    assert len(np.unique(panel.images)) == len(panel.images)
    np.testing.assert_allclose(panel.weights.sum(axis=1), 1.0)
    assert not (panel.weights > 0).all(axis=0).any(), "the halves share no image"
    random = np.random.default_rng(1).permutation(4000)[: len(panel.images)]
    simple = (FRESH[:, random] > 0).mean(axis=1) - (FRESH > 0).mean(axis=1)
    assert errors(panel).std() < 0.7 * simple.std()
    # what all subnets have in common is known from the pilot
    assert abs(errors(panel).mean()) < 0.3 * simple.std()


def test_all_images_give_the_accuracy_itself() -> None:
    panel = choose_panel(PILOT, 4000, np.random.default_rng(0))
    assert np.abs(errors(panel)).max() < 1e-4
    assert panel.accuracies(FRESH[0][panel.images]).shape == (2,)


def test_the_smooth_accuracy_follows_the_accuracy_with_less_luck() -> None:
    panel = choose_panel(PILOT, 400, np.random.default_rng(0))
    truth = (FRESH > 0).mean(axis=1)
    accuracies = np.array([panel.accuracies(row[panel.images]).mean() for row in FRESH])
    smooth = np.array([panel.smooth_accuracy(row[panel.images]) for row in FRESH])
    assert np.corrcoef(smooth, truth)[0, 1] > np.corrcoef(accuracies, truth)[0, 1]
    assert panel.smooth_accuracy(np.zeros(len(panel.images), dtype=np.float32)) == pytest.approx(0.5)


def test_a_saved_panel_measures_the_same(tmp_path: Path) -> None:
    panel = choose_panel(PILOT, 400, np.random.default_rng(0))
    panel.save(tmp_path / "panel.npz")
    again = Panel.load(tmp_path / "panel.npz")
    for row in FRESH[:3]:
        one, other = (p.accuracies(row[p.images]) for p in (panel, again))
        np.testing.assert_array_equal(one, other)
    (tmp_path / "panel.npz").write_text("none")
    with pytest.raises(TrainingError, match="delete it"):
        Panel.load(tmp_path / "panel.npz")


def test_views_of_an_image_are_in_its_half_and_on_the_level_of_the_images() -> None:
    panel = choose_panel(PILOT, 4000, np.random.default_rng(0))
    halves = panel.halves(4000)
    assert set(np.flatnonzero(halves == 0)) == set(panel.images[panel.weights[0] > 0])
    few = choose_panel(PILOT, 400, np.random.default_rng(0))
    np.testing.assert_array_equal(few.halves(4000)[few.images], few.weights[1] > 0)
    assert 1500 < few.halves(4000).sum() < 2500
    # harder than the images themselves, as shifted ones are
    harder = np.concatenate([make_margins(80, 4000, 3 + seed) - 0.3 for seed in range(3)], axis=1)
    pilot, fresh = harder[:20], harder[20:]
    views = choose_panel(
        pilot,
        3200,
        np.random.default_rng(1),
        halves=np.tile(halves, 3),
        level=float((PILOT > 0).mean()),
    )
    for half in (0, 1):
        chosen = views.images[views.weights[half] > 0]
        assert len(chosen) > 1500
        assert (halves[chosen % 4000] == half).all()
    np.testing.assert_allclose(views.weights.sum(axis=1), 1.0)
    measured = np.array([views.accuracies(row[views.images]) for row in fresh])
    truth = (fresh > 0).mean(axis=1) + (PILOT > 0).mean() - (pilot > 0).mean()
    assert np.abs(measured.mean(axis=1) - truth).max() < 0.01
    assert abs(measured.mean() - truth.mean()) < 0.001
    with pytest.raises(TrainingError, match="hold more images out"):
        choose_panel(PILOT, 800, np.random.default_rng(0), halves=np.zeros(4000, dtype=np.int8))


@pytest.mark.parametrize("count", [4, 4001])
def test_too_few_and_too_many_images_are_refused(count: int) -> None:
    with pytest.raises(TrainingError, match="choose 8 to 4000"):
        choose_panel(PILOT, count, np.random.default_rng(0))
