from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from eqnet_core.errors import ArtifactError
from eqnet_core.export.module import InputQuantizer, build_module
from eqnet_core.subnet import Quantizer, Subnet


def test_rounds_half_to_even_and_saturates_at_the_codes() -> None:
    quantizer = Quantizer(
        bits=3, low=0, high=7, scale=np.array(0.5, np.float32), zero_point=np.array(2, np.int32)
    )
    x = torch.tensor([-9.0, -0.75, 0.0, 0.25, 0.75, 2.4, 9.0])
    assert InputQuantizer(quantizer)(x).tolist() == [-1.0, -1.0, 0.0, 0.0, 1.0, 2.5, 2.5]


def test_divides_instead_of_multiplying_by_the_reciprocal() -> None:
    scale = np.float32(0.041)
    x = np.random.default_rng(0).uniform(0, 10, 4_000_000).astype(np.float32)
    # the elements next to a half are where the two disagree
    halves = ((np.floor(x / scale) + 0.5) * scale).astype(np.float32)
    quantizer = Quantizer(bits=8, low=0, high=255, scale=np.array(scale), zero_point=np.array(0, np.int32))
    ours = InputQuantizer(quantizer)(torch.from_numpy(halves)).numpy()
    divided = (np.clip(np.round(halves / scale), 0, 255) * scale).astype(np.float32)
    assert np.array_equal(ours, divided)
    multiplied = (np.clip(np.round(halves * (np.float32(1) / scale)), 0, 255) * scale).astype(np.float32)
    assert not np.array_equal(ours, multiplied)


def test_module_refuses_what_is_not_its_architecture(subnets: list[Subnet]) -> None:
    subnet = subnets[0]
    with pytest.raises(ArtifactError, match="missing: conv1"):
        build_module(replace(subnet, layers=subnet.layers[1:]))
    first = replace(subnet.layers[0], codes=subnet.layers[0].codes[:, :, :2])
    with pytest.raises(ArtifactError, match="shape"):
        build_module(replace(subnet, layers=(first, *subnet.layers[1:])))
    with pytest.raises(ArtifactError, match="no architecture"):
        build_module(replace(subnet, architecture="alexnet"))
    norms = {name: norm for name, norm in subnet.batch_norms.items() if name != "bn1"}
    with pytest.raises(ArtifactError, match=r"BatchNorms.*bn1"):
        build_module(replace(subnet, batch_norms=norms))


def test_module_is_for_inference(subnets: list[Subnet]) -> None:
    module = build_module(subnets[0])
    assert not module.training
    assert not any(parameter.requires_grad for parameter in module.parameters())
    assert list(module.quantized_layers()) == [layer.name for layer in subnets[0].layers]
