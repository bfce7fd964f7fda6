"""What a supernet step makes of its settings."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch.optim.swa_utils import update_bn

from eqnet_core.errors import TrainingError
from eqnet_core.training.batches import Batches, calibration_batches, seeded
from eqnet_core.training.data import ImageData
from eqnet_core.training.pretrain import PretrainSettings, pretrain
from eqnet_core.training.sharpness import uphill
from eqnet_core.training.starting import float_network
from eqnet_core.training.subnets import sandwich
from eqnet_core.training.supernet_settings import SupernetSettings
from eqnet_core.training.supernet_steps import SupernetSteps, backward_through, rate_factor
from eqnet_core.training.trained import load_trained
from eqnet_core.training.trainer import train_supernet
from tests.support.brief_training import trained_run

CPU = torch.device("cpu")
FLOAT = PretrainSettings(epochs=1, batch_size=48, compile=False)
SUPERNET = SupernetSettings(epochs=1, batch_size=48, compile=False, warmup_steps=1)


@pytest.fixture(scope="module")
def trained(digits: ImageData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the first two stages."""
    return trained_run(digits, tmp_path_factory.mktemp("run"), FLOAT, SUPERNET)


def test_the_rate_rises_stays_and_falls() -> None:
    factors = [rate_factor(step, 100, warmup=10, plateau_end=60) for step in range(101)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9:61] == [1.0] * 52
    assert np.all(np.diff(factors[60:]) < 0)
    assert factors[80] == pytest.approx(0.5)
    assert factors[100] == pytest.approx(0.0)
    whole = [rate_factor(step, 100, warmup=10, plateau_end=0) for step in range(101)]
    assert whole[10] == 1.0
    assert whole[55] == pytest.approx(0.5)


@pytest.mark.parametrize(
    "wrong",
    [
        {"cooldown": 0.0},
        {"cooldown": 1.5},
        {"averaging": 1.0},
        {"sharpness": -0.5},
        {"sharpness": float("nan")},
        {"cutmix": -0.1},
        {"cutmix": 1.1},
        {"subnet_weights": (0.0, 0.0, 0.0)},
        {"subnet_weights": (1.0, -1.0, 1.0)},
        {"subnet_weights": (1.0, float("nan"), 1.0)},
    ],
)
def test_shares_decays_and_weights_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(TrainingError, match=next(iter(wrong)).replace("_", " ")):
        SupernetSettings(**wrong)


def test_a_training_that_diverges_ends_and_keeps_nothing_of_it(
    digits: ImageData, trained: Path, tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match="lower --learning-rate"):
        pretrain(digits, tmp_path / "float", replace(FLOAT, learning_rate=1e30, epochs=3), CPU)
    diverging = replace(SUPERNET, learning_rate=1e30, epochs=3)
    with pytest.raises(TrainingError, match="lower --learning-rate"):
        train_supernet(digits, trained / "float" / "float.safetensors", tmp_path / "supernet", diverging, CPU)
    kept = {file.name for stage in ("float", "supernet") for file in (tmp_path / stage).iterdir()}
    assert not kept & {"float.safetensors", "supernet.safetensors"}


def test_mixed_batches_train_both_networks(digits: ImageData, tmp_path: Path) -> None:
    weights = pretrain(digits, tmp_path / "float", replace(FLOAT, cutmix=1.0), CPU)
    mixed = train_supernet(digits, weights, tmp_path / "mixed", replace(SUPERNET, cutmix=1.0), CPU)
    plain = train_supernet(digits, weights, tmp_path / "plain", SUPERNET, CPU)
    assert (load_file(mixed)["fc.weight"] != load_file(plain)["fc.weight"]).any()
    first = json.loads((tmp_path / "mixed" / "log.jsonl").read_text().splitlines()[0])
    assert all(0 <= accuracy <= 1 for accuracy in first["accuracy"].values())


def test_statistics_are_of_whole_images_after_training_on_mixed_ones(
    digits: ImageData, tmp_path: Path
) -> None:
    weights = pretrain(digits, tmp_path, replace(FLOAT, cutmix=1.0), CPU)
    model = float_network(digits, weights, "resnet20")
    kept = {name: buffer.clone() for name, buffer in model.named_buffers() if "running" in name}
    update_bn(calibration_batches(digits, images=4096, seed=FLOAT.seed, index=0, device=CPU), model)
    assert kept
    for name, buffer in kept.items():
        assert torch.equal(model.get_buffer(name), buffer), name


def test_subnet_weights_scale_what_each_subnet_adds_to_the_gradient(digits: ImageData, trained: Path) -> None:
    supernet = load_trained(trained / "supernet").train()
    images, labels = Batches(digits, batch_size=32, seed=0, device=CPU).at(0)
    subnets = sandwich(supernet.space, seeded(0, "subnets", 0))
    weight = supernet.layers[3].weight

    def gradient(*subnet_weights: float) -> torch.Tensor:
        supernet.zero_grad(set_to_none=True)
        settings = replace(SUPERNET, subnet_weights=subnet_weights, skewness_weight=0.0, kurtosis_weight=0.0)
        backward_through(supernet, supernet.model, images, labels, subnets, None, settings)
        assert weight.grad is not None
        return weight.grad.clone()

    highest, random, lowest = gradient(1, 0, 0), gradient(0, 1, 0), gradient(0, 0, 1)
    assert all(part.abs().max() > 0 for part in (highest, random, lowest))
    torch.testing.assert_close(gradient(2, 1, 0.5), 2 * highest + random + 0.5 * lowest, rtol=1e-3, atol=1e-6)


def test_sharpness_takes_the_gradients_where_the_highest_subnets_loss_is_highest_nearby(
    digits: ImageData, trained: Path
) -> None:
    settings = replace(SUPERNET, sharpness=0.5, averaging=0.5)
    supernet, expected = (load_trained(trained / "supernet").train() for _ in range(2))
    images, labels = Batches(digits, batch_size=32, seed=0, device=CPU).at(0)
    steps = SupernetSteps(supernet, settings, total=10)
    steps.take(0, images, labels)

    subnets = sandwich(expected.space, seeded(settings.seed, "subnets", 0))
    weights = [p for name, p in expected.named_parameters() if "_quantizer." not in name]

    def gradients() -> list[torch.Tensor | None]:
        return [None if p.grad is None else p.grad.clone() for p in expected.parameters()]

    backward_through(expected, expected.model, images, labels, subnets[:1], None, settings)
    with uphill(weights, settings.sharpness):
        # step sizes stay where they are, and get no gradient of the place before either
        expected.zero_grad(set_to_none=True)
        backward_through(expected, expected.model, images, labels, subnets, None, settings)
        there = gradients()
    for found, wanted in zip(supernet.parameters(), there, strict=True):
        assert (found.grad is None) == (wanted is None)
        if wanted is not None:
            torch.testing.assert_close(found.grad, wanted)
    expected.zero_grad(set_to_none=True)
    backward_through(expected, expected.model, images, labels, subnets, None, settings)
    here = gradients()
    assert (
        max(
            (a - b).abs().max().item()
            for a, b in zip(there, here, strict=True)
            if a is not None and b is not None
        )
        > 1e-3
    )
