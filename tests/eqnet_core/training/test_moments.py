from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from eqnet_core.calibration import calibrate_batch_norm
from eqnet_core.space import FORMS
from eqnet_core.statistics import WEIGHT_ROWS, table_rows
from eqnet_core.supernet import Supernet
from eqnet_core.training.moments import fit_moments, quantized_weights


def test_every_row_holds_the_weight_that_a_subnet_of_it_has(supernet: Supernet) -> None:
    weights = quantized_weights(supernet)
    assert set(weights) == {layer.name for layer in supernet.space.layers if layer.kind == "conv"}
    configuration = replace(supernet.space.uniform(FORMS[5], 3), narrow_range=True)
    supernet.activate(configuration)
    rows = table_rows([configuration], supernet.space)[0, :, 0]
    for layer, row in zip(supernet.layers[:-1], rows, strict=False):
        expected = layer.quantized_weight().detach().numpy()
        np.testing.assert_array_equal(
            weights[layer.spec.name][row], expected.reshape(*expected.shape[:2], -1)
        )


def test_moments_hold_for_rows_that_no_sample_had() -> None:
    """Inputs that are alike over a kernel: mean and variance of the output follow exactly."""
    generator = np.random.default_rng(0)
    weights = generator.normal(size=(WEIGHT_ROWS, 8, 5, 9)).astype(np.float32)
    means, variances = generator.uniform(0, 1, 5), generator.uniform(0.5, 2, 5)
    sums = weights.astype(np.float64).sum(axis=3)
    expected_mean, expected_variance = sums @ means, sums**2 @ variances
    rows = np.repeat(np.arange(20), 3)
    mean, log_variance = fit_moments(weights, rows, expected_mean[rows], expected_variance[rows])
    np.testing.assert_allclose(mean[20:], expected_mean[20:], atol=0.05 * expected_mean.std())
    typical = np.median(expected_variance)
    np.testing.assert_allclose(np.exp(log_variance)[20:], expected_variance[20:], atol=0.02 * typical)


def test_channels_without_weights_have_a_finite_variance() -> None:
    generator = np.random.default_rng(1)
    weights = generator.normal(size=(WEIGHT_ROWS, 4, 3, 9)).astype(np.float32)
    weights[7, 2] = 0
    sums = weights.astype(np.float64).sum(axis=3)
    rows = np.arange(WEIGHT_ROWS)
    mean, log_variance = fit_moments(weights, rows, sums @ np.ones(3), np.maximum(sums**2 @ np.ones(3), 1e-9))
    assert np.isfinite(log_variance).all()
    assert abs(mean[7, 2]) < 1e-9


def test_they_tell_most_of_a_real_layer(supernet: Supernet, images: torch.Tensor) -> None:
    """Fitted on some forms at 3 and 8 bits, right about other forms at 2 bits."""
    weights = quantized_weights(supernet)
    measured = []
    for form, bits in [(form, bits) for form in FORMS[::2] for bits in (8, 3)] + [
        (f, 2) for f in FORMS[1::2]
    ]:
        configuration = supernet.space.uniform(form, bits, 8)
        supernet.activate(configuration)
        row = table_rows([configuration], supernet.space)[0, 1, 0]
        mean, variance = calibrate_batch_norm(supernet, [images[:16]])["layer1.0.bn1"]
        measured.append((row, mean, variance))
    rows = np.array([row for row, _, _ in measured])
    means, variances = (np.array([entry[k] for entry in measured], dtype=np.float64) for k in (1, 2))
    fitted, _ = fit_moments(weights["layer1.0.conv1"], rows[:8], means[:8], variances[:8])
    deviations = np.sqrt(variances[8:])
    error = np.abs((fitted[rows[8:]] - means[8:]) / deviations).mean()
    without = np.abs((means[:8].mean(axis=0) - means[8:]) / deviations).mean()
    assert error < 0.5 * without
