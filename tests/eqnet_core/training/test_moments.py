from __future__ import annotations

import numpy as np
import torch

from eqnet_core.calibration import calibrate_batch_norm
from eqnet_core.space import FORMS
from eqnet_core.statistics import WEIGHT_ROWS, table_rows
from eqnet_core.supernet import Supernet
from eqnet_core.training.moments import PatchMoments, measure_moments, quantized_weights


def test_every_row_holds_the_weight_that_a_subnet_of_it_has(supernet: Supernet) -> None:
    weights = quantized_weights(supernet)
    assert set(weights) == {layer.name for layer in supernet.space.layers if layer.kind == "conv"}
    configuration = supernet.space.uniform(FORMS[5], 3, narrow_range=True)
    supernet.activate(configuration)
    rows = table_rows([configuration], supernet.space)[0, :, 0]
    for layer, row in zip(supernet.layers[:-1], rows, strict=False):
        expected = layer.quantized_weight().detach().flatten(1).numpy()
        np.testing.assert_array_equal(weights[layer.spec.name][row], expected)


def test_the_moments_of_a_weighted_sum_follow_from_those_of_its_terms() -> None:
    generator = np.random.default_rng(0)
    patches = generator.normal(size=(5000, 12)) @ generator.normal(size=(12, 12)) + generator.normal(size=12)
    weights = generator.normal(size=(WEIGHT_ROWS, 3, 12)).astype(np.float32)
    weights[7, 1] = 0
    moments = PatchMoments(mean=patches.mean(axis=0), covariance=np.cov(patches.T, bias=True))
    mean, variance = moments.table(weights)
    outputs = patches @ weights[4].T.astype(np.float64)
    np.testing.assert_allclose(mean[4], outputs.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(variance[4], outputs.var(axis=0), rtol=1e-6)
    assert mean[7, 1] == variance[7, 1] == 0


def test_moments_of_one_subnet_tell_what_other_weights_do_to_a_real_layer(
    supernet: Supernet, images: torch.Tensor
) -> None:
    """The inputs of the first layers are all but the same in every subnet, so this is all but exact."""
    seen = supernet.space.uniform(FORMS[0], 8)
    moments = measure_moments(supernet, [seen, seen], [images[:32], images[:32]])
    assert set(moments) == {layer.name for layer in supernet.space.layers if layer.kind == "conv"}
    mean, variance = moments["layer1.0.conv1"].table(quantized_weights(supernet)["layer1.0.conv1"])
    for form in FORMS[::3]:
        configuration = supernet.space.uniform(form, 2, 8)
        supernet.activate(configuration)
        expected_mean, expected_variance = calibrate_batch_norm(supernet, [images[:32]])["layer1.0.bn1"]
        row = table_rows([configuration], supernet.space)[0, 1, 0]
        deviation = np.sqrt(expected_variance)
        assert np.abs((mean[row] - expected_mean) / deviation).max() < 0.05
        assert np.abs(np.log(variance[row] / expected_variance)).max() < 0.1
