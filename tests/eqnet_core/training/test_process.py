from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from eqnet_core.space import SearchSpace
from eqnet_core.training.process import Process, fit_process
from eqnet_core.training.subnets import spread_encodings
from tests.support.convolutions import make_space


@pytest.fixture(scope="module")
def encodings(resnet20_space: SearchSpace) -> NDArray[np.float32]:
    drawn = spread_encodings(resnet20_space, 400, np.random.default_rng(0))
    return np.random.default_rng(1).permutation(np.unique(drawn, axis=0))


def truth(encodings: NDArray[np.float32]) -> NDArray[np.float64]:
    """Noise of few layers matters, it multiplies, and more so with asymmetric weights."""
    bits = 2 + encodings[:, 7:].reshape(len(encodings), -1, 7).argmax(axis=2)
    noise = 0.5 ** (bits[:, [0, 3, 20, 30]] - 2)
    damage = noise.sum(axis=1) * (1.0 + 0.5 * encodings[:, 3]) + 1.5 * noise[:, 0] * noise[:, 2]
    return np.asarray(2.0 - damage, dtype=np.float64)


@pytest.fixture(scope="module")
def process(encodings: NDArray[np.float32]) -> Process:
    noisy = truth(encodings[:200]) + np.random.default_rng(2).normal(0, 0.05, 200)
    return fit_process(encodings[:200], noisy, np.random.default_rng(3))


def test_it_tells_subnets_it_never_saw(encodings: NDArray[np.float32], process: Process) -> None:
    fresh, expected = encodings[200:], truth(encodings[200:])
    error = process.predict(fresh) - expected
    assert np.sqrt((error**2).mean()) < 0.35 * expected.std()
    np.testing.assert_allclose(process.predict(fresh, batch=7), process.predict(fresh), rtol=1e-9)


def test_layers_that_matter_are_found(process: Process) -> None:
    assert set(np.argsort(process.kernel.relevance)[-4:]) >= {0, 3, 20}


def test_a_narrow_range_matters_as_much_as_the_bits_let_it() -> None:
    """It takes one of four levels from weights of 2 bits, and next to nothing from those of 8."""
    layers = make_space("stem", *(f"{letter}.0" for letter in "abcdef"), "fc")
    generator = np.random.default_rng(0)
    drawn = np.unique(spread_encodings(layers, 3000, generator), axis=0)
    narrow = drawn[:, 6] == 1
    drawn = generator.permutation(np.concatenate([drawn[narrow], drawn[~narrow][: narrow.sum()]]))
    bits = 2 + drawn[:, 7:].reshape(len(drawn), -1, 7).argmax(axis=2)
    damage = (0.5 ** (bits - 2.0)).sum(axis=1)
    at_2_bits = (bits[:, : bits.shape[1] // 2] == 2).sum(axis=1)
    process = fit_process(drawn, -damage - drawn[:, 6] * at_2_bits, np.random.default_rng(1))
    wide, without = drawn.copy(), drawn.copy()
    wide[:, 6], without[:, 6] = 0, 1
    change = process.predict(without) - process.predict(wide)
    assert np.corrcoef(change, -at_2_bits)[0, 1] > 0.9
