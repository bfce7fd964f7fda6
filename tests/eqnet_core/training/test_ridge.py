from __future__ import annotations

import numpy as np

from eqnet_core.training.ridge import bit_basis, encoding_basis, fit_ridge


def test_leave_one_out_errors_are_those_of_fits_without_the_row() -> None:
    generator = np.random.default_rng(0)
    features = generator.normal(size=(40, 6))
    targets = features @ generator.normal(size=(6, 2)) + generator.normal(size=(40, 2))
    fitted = fit_ridge(features, targets)
    for row in (0, 17, 39):
        others = np.delete(np.arange(40), row)
        x = features[others] - features[others].mean(axis=0)
        y = targets[others] - targets[others].mean(axis=0)
        weights = np.linalg.solve(x.T @ x + fitted.penalty * np.eye(6), x.T @ y)
        predicted = targets[others].mean(axis=0) + (features[row] - features[others].mean(axis=0)) @ weights
        np.testing.assert_allclose(fitted.errors[row], targets[row] - predicted, rtol=1e-8)


def test_noise_is_shrunk_away_and_signal_kept() -> None:
    generator = np.random.default_rng(1)
    features = generator.normal(size=(60, 50))
    noise = fit_ridge(features, generator.normal(size=(60, 1)))
    signal = fit_ridge(features, features[:, :1] + 0.01 * generator.normal(size=(60, 1)))
    assert np.abs(noise.weights).max() < 0.1
    assert signal.weights[0, 0] > 0.9


def test_a_bit_width_never_seen_is_filled_in_by_its_neighbours() -> None:
    seen = np.array([0, 1, 2, 4, 5, 6])
    effect = 2.0 ** -np.arange(7)
    basis = bit_basis()
    fitted = fit_ridge(np.tile(basis[seen], (5, 1)), np.tile(effect[seen], 5)[:, None])
    predicted = (basis @ fitted.weights + fitted.offset)[:, 0]
    assert abs(predicted[3] - effect[3]) < 0.03


def test_the_basis_keeps_what_an_encoding_tells() -> None:
    features = np.zeros((5, 7 + 2 * 7))
    features[:, [0, 3, 4]] = 1
    features[np.arange(5), [7, 8, 10, 12, 13]] = 1
    features[np.arange(5), [14, 20, 19, 16, 14]] = 1
    basis = encoding_basis(21)
    np.testing.assert_allclose(features @ basis @ np.linalg.inv(basis), features, atol=1e-6)
    np.testing.assert_array_equal((features @ basis)[:, :7], features[:, :7])
