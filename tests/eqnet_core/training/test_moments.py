from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch

from eqnet_core.calibration import calibrate_batch_norm
from eqnet_core.space import DEPTHWISE, FORMS, SearchSpace
from eqnet_core.statistics import WEIGHT_ROWS, table_rows
from eqnet_core.supernet import Supernet
from eqnet_core.training.moments import PatchMoments, measure_moments, output_tables


def unit_moments(supernet: Supernet) -> dict[str, PatchMoments]:
    """Inputs with a mean of 1 that are independent of each other, for the first layers and a larger one."""
    sizes = {layer.spec.name: layer.weight[0].numel() for layer in supernet.layers}
    return {
        name: PatchMoments(mean=np.ones(sizes[name]), covariance=np.eye(sizes[name]))
        for name in ("conv1", "layer1.0.conv1", "layer2.0.conv2")
    }


def test_every_row_is_of_the_weight_that_a_subnet_of_it_has(supernet: Supernet) -> None:
    moments = unit_moments(supernet)
    tables = output_tables(supernet, moments)
    assert set(tables) == set(moments)
    for configuration in (
        supernet.space.uniform(FORMS[5], 3, narrow_range=True),
        supernet.space.uniform(FORMS[2], 8),
    ):
        supernet.activate(configuration)
        rows = table_rows([configuration], supernet.space)[0, :, 0]
        for layer, row in zip(supernet.layers, rows, strict=True):
            if layer.spec.name not in moments:
                continue
            weight = layer.quantized_weight().detach().flatten(1).numpy().astype(np.float64)
            mean, variance = tables[layer.spec.name]
            np.testing.assert_allclose(mean[row], weight.sum(axis=1), rtol=1e-9, atol=1e-12)
            np.testing.assert_allclose(variance[row], (weight**2).sum(axis=1), rtol=1e-9)
    stem = tables["conv1"][1].any(axis=1)
    assert stem.sum() == 12  # the first layer is at 8 bits: 8 forms, and 4 of them with a narrow range too


def test_bits_that_a_network_does_not_have_are_not_made(
    supernet: Supernet, monkeypatch: pytest.MonkeyPatch
) -> None:
    stem, first, *others = supernet.space.layers
    rows = {
        bits: table_rows([supernet.space.uniform(FORMS[4], bits)], supernet.space)[0, 1, 0] for bits in (2, 3)
    }
    whole = output_tables(supernet, unit_moments(supernet))[first.name][0]
    depthwise = SearchSpace((stem, replace(first, kind=DEPTHWISE), *others))
    monkeypatch.setattr(supernet, "space", depthwise)
    found = output_tables(supernet, unit_moments(supernet))[first.name][0]
    assert whole[rows[2]].any()
    assert not found[rows[2]].any()
    np.testing.assert_array_equal(found[rows[3]], whole[rows[3]])


def test_the_weights_of_all_rows_are_not_held_at_once(supernet: Supernet) -> None:
    moments = unit_moments(supernet)
    largest = max(layer.weight.numel() * 8 for layer in supernet.layers if layer.spec.name in moments)
    tracemalloc.start()
    try:
        tables = output_tables(supernet, moments)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    results = sum(mean.nbytes + variance.nbytes for mean, variance in tables.values())
    assert peak < results + 8 * largest


def test_the_moments_of_a_weighted_sum_follow_from_those_of_its_terms() -> None:
    generator = np.random.default_rng(0)
    patches = generator.normal(size=(5000, 12)) @ generator.normal(size=(12, 12)) + generator.normal(size=12)
    weight = generator.normal(size=(3, 12)).astype(np.float32)
    weight[1] = 0
    moments = PatchMoments(mean=patches.mean(axis=0), covariance=np.cov(patches.T, bias=True))
    mean, variance = moments.output(weight)
    outputs = patches @ weight.T.astype(np.float64)
    np.testing.assert_allclose(mean, outputs.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(variance, outputs.var(axis=0), rtol=1e-6)
    assert mean[1] == variance[1] == 0


def test_moments_of_one_subnet_tell_what_other_weights_do_to_a_real_layer(
    supernet: Supernet, images: torch.Tensor
) -> None:
    """The inputs of the first layers are all but the same in every subnet, so this is all but exact."""
    seen = supernet.space.uniform(FORMS[0], 8)
    moments = measure_moments(supernet, [seen, seen], [images[:32], images[:32]])
    assert set(moments) == {layer.name for layer in supernet.space.layers if layer.kind == "conv"}
    first = {"layer1.0.conv1": moments["layer1.0.conv1"]}
    mean, variance = output_tables(supernet, first)["layer1.0.conv1"]
    assert mean.shape == (WEIGHT_ROWS, 16)
    for form in FORMS[::3]:
        configuration = supernet.space.uniform(form, 2, 8)
        supernet.activate(configuration)
        expected_mean, expected_variance = calibrate_batch_norm(supernet, [images[:32]])["layer1.0.bn1"]
        row = table_rows([configuration], supernet.space)[0, 1, 0]
        deviation = np.sqrt(expected_variance)
        assert np.abs((mean[row] - expected_mean) / deviation).max() < 0.05
        assert np.abs(np.log(variance[row] / expected_variance)).max() < 0.1
