"""What a training can begin with: the weights of another run, or of a bundle."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from eqnet_core.bundle import Bundle, shipped_bundles
from eqnet_core.bundle_writer import write_bundle
from eqnet_core.errors import TrainingError
from eqnet_core.space import SearchSpace
from eqnet_core.training.batches import ImageSizes, calibration_batches
from eqnet_core.training.data import ImageData
from eqnet_core.training.pretrain import PretrainSettings, pretrain
from eqnet_core.training.starting import float_digest, float_network, start_supernet
from eqnet_core.training.subnets import RandomBits
from eqnet_core.training.supernet_settings import SupernetSettings
from eqnet_core.training.trained import load_trained, supernet_digest
from eqnet_core.training.trainer import train_supernet
from tests.support.brief_training import trained_run

CPU = torch.device("cpu")
SMALL = ImageSizes(stages=((16, 1),))
FLOAT = PretrainSettings(epochs=1, batch_size=48, compile=False, sizes=SMALL)
SUPERNET = SupernetSettings(epochs=1, batch_size=96, compile=False, warmup_steps=1, sizes=SMALL)
STILL = replace(SUPERNET, learning_rate=0.0, step_size_learning_rate=0.0, zero_point_learning_rate=0.0)
SHIPPED = shipped_bundles()["resnet20-cifar10"]


@pytest.fixture(scope="module")
def trained(digits: ImageData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the first two stages."""
    return trained_run(digits, tmp_path_factory.mktemp("run"), FLOAT, SUPERNET)


@pytest.fixture(scope="module")
def bundle(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of that run's supernet, with the predictors of another one of the same architecture."""
    folder = tmp_path_factory.mktemp("bundles") / "digits"
    supernet, other = load_trained(trained / "supernet"), Bundle.open(SHIPPED)
    settings = json.loads((trained / "supernet" / "settings.json").read_text())
    write_bundle(
        folder,
        name="digits",
        architecture=supernet.architecture,
        classes=supernet.classes,
        input=supernet.input,
        space=supernet.space,
        float_accuracy=0.5,
        accuracy={},
        predictor_quality={},
        statistics_quality={},
        card={"data": "digits", "stages": {"supernet": settings}},
        supernet=supernet.tensors(),
        predictor=other.predictor(),
        statistics=other.statistics(),
    )
    return folder


def assert_same_weights(weights: Path, expected: dict[str, np.ndarray]) -> None:
    found = load_file(weights)
    shared = [name for name in found if name.endswith((".weight", ".bias")) and name in expected]
    assert len(shared) == 59
    for name in shared:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


def test_a_supernet_begins_with_that_of_a_bundle(
    digits: ImageData, trained: Path, bundle: Path, tmp_path: Path
) -> None:
    weights = trained / "float" / "float.safetensors"
    result = train_supernet(digits, weights, tmp_path, STILL, CPU, start_run=bundle)
    supernet = load_trained(trained / "supernet")
    assert_same_weights(result, supernet.tensors())
    start = json.loads((tmp_path / "settings.json").read_text())["start"]
    assert start["supernet"] == supernet_digest(supernet)
    assert start["epochs"] == SUPERNET.epochs


def test_its_random_subnets_can_be_searched_with_the_predictor_of_the_bundle(
    digits: ImageData, trained: Path, bundle: Path, tmp_path: Path
) -> None:
    weights = trained / "float" / "float.safetensors"
    searched = replace(SUPERNET, random_bits=RandomBits.SEARCHED)
    train_supernet(digits, weights, tmp_path, searched, CPU, start_run=bundle)
    assert json.loads((tmp_path / "settings.json").read_text())["start"]["predictor"].startswith("sha256:")


def test_a_result_can_keep_a_share_of_what_it_began_with(
    digits: ImageData, trained: Path, bundle: Path, tmp_path: Path
) -> None:
    weights = trained / "float" / "float.safetensors"
    before = load_trained(trained / "supernet").tensors()
    alone = load_file(train_supernet(digits, weights, tmp_path / "a", SUPERNET, CPU, start_run=bundle))
    shared = replace(SUPERNET, start_share=0.25)
    found = load_file(train_supernet(digits, weights, tmp_path / "b", shared, CPU, start_run=bundle))
    moved = 0.0
    for name, value in found.items():
        np.testing.assert_allclose(value, 0.25 * before[name] + 0.75 * alone[name], rtol=1e-4, atol=1e-6)
        moved = max(moved, np.abs(value - alone[name]).max())
    assert moved > 1e-4
    with pytest.raises(TrainingError, match="--start"):
        train_supernet(digits, weights, tmp_path / "c", shared, CPU)
    with pytest.raises(TrainingError, match="start share"):
        replace(SUPERNET, start_share=1.0)


def test_a_float_network_can_keep_a_share_of_what_it_began_with(
    digits: ImageData, trained: Path, bundle: Path, tmp_path: Path
) -> None:
    shared = replace(FLOAT, start_share=0.25)
    images = list(calibration_batches(digits, images=4096, seed=FLOAT.seed, index=0, device=CPU))
    for start, before in (
        (trained, load_file(trained / "float" / "float.safetensors")),
        (bundle, load_trained(trained / "supernet").tensors()),
    ):
        folder = tmp_path / start.name
        alone = load_file(pretrain(digits, folder / "alone", FLOAT, CPU, start_run=start))
        path = pretrain(digits, folder / "shared", shared, CPU, start_run=start)
        model = float_network(digits, path, "resnet20")
        for name, parameter in model.named_parameters():
            expected = 0.25 * before[name] + 0.75 * alone[name]
            np.testing.assert_allclose(parameter.detach(), expected, rtol=1e-4, atol=1e-6)
        assert np.abs(load_file(path)["fc.weight"] - alone["fc.weight"]).max() > 1e-4
        # the statistics are those of the mixture, which is neither of the two, and a bundle has none
        with torch.no_grad():
            expected = torch.stack([model.conv1(batch).mean((0, 2, 3)) for batch in images]).mean(0)
        torch.testing.assert_close(model.bn1.running_mean, expected, rtol=1e-3, atol=1e-5)
    with pytest.raises(TrainingError, match="--start"):
        pretrain(digits, tmp_path / "c", shared, CPU)
    assert not (tmp_path / "c").exists()
    with pytest.raises(TrainingError, match="start share"):
        replace(FLOAT, start_share=-0.1)


def test_a_float_network_begins_with_another(
    digits: ImageData, trained: Path, bundle: Path, tmp_path: Path
) -> None:
    still = replace(FLOAT, learning_rate=0.0)
    theirs = trained / "float" / "float.safetensors"
    assert_same_weights(pretrain(digits, tmp_path / "a", still, CPU, start_run=trained), load_file(theirs))
    start = json.loads((tmp_path / "a" / "settings.json").read_text())["start"]
    assert (start["float"], start["epochs"]) == (float_digest(theirs), FLOAT.epochs)

    supernet = load_trained(trained / "supernet")
    result = pretrain(digits, tmp_path / "b", still, CPU, start_run=bundle)
    assert_same_weights(result, supernet.tensors())
    start = json.loads((tmp_path / "b" / "settings.json").read_text())["start"]
    assert start["supernet"] == supernet_digest(supernet)

    with pytest.raises(TrainingError, match=r"other settings \(start\)"):
        pretrain(digits, tmp_path / "b", still, CPU)


def test_what_it_begins_with_must_fit(digits: ImageData, trained: Path, bundle: Path, tmp_path: Path) -> None:
    weights = trained / "float" / "float.safetensors"
    other = replace(FLOAT, architecture="airbench94")
    for start in (trained, bundle):
        with pytest.raises(TrainingError, match="holds another network"):
            pretrain(digits, tmp_path / "new", other, CPU, start_run=start)
    with pytest.raises(TrainingError, match=r"tells airplane, .* apart, the images are of 0, 1, .*`classes`"):
        train_supernet(digits, weights, tmp_path / "new", SUPERNET, CPU, start_run=SHIPPED)
    shallower = load_trained(trained / "supernet")
    shallower.space = SearchSpace(shallower.space.layers[:-1])
    with pytest.raises(TrainingError, match="other layers"):
        start_supernet(digits, weights, "resnet20", CPU, shallower)
    split_differently = replace(digits, mean=(0.5, 0.5, 0.5))
    with pytest.raises(TrainingError, match="another split"):
        train_supernet(split_differently, weights, tmp_path / "new", SUPERNET, CPU, start_run=bundle)
    split_differently = replace(split_differently, train=digits.held_out, held_out=digits.train)
    for start in (trained, bundle):
        with pytest.raises(TrainingError, match="another split"):
            pretrain(split_differently, tmp_path / "new", FLOAT, CPU, start_run=start)
    same_mean = replace(digits, train=digits.held_out, held_out=digits.train)
    of_same_mean = pretrain(same_mean, tmp_path / "other" / "float", FLOAT, CPU)
    for start in (trained, bundle):
        with pytest.raises(TrainingError, match="another split"):
            pretrain(same_mean, tmp_path / "new", FLOAT, CPU, start_run=start)
        with pytest.raises(TrainingError, match="another split"):
            train_supernet(same_mean, of_same_mean, tmp_path / "new", SUPERNET, CPU, start_run=start)
    with pytest.raises(TrainingError, match="another split"):  # the float network's
        train_supernet(same_mean, weights, tmp_path / "new", SUPERNET, CPU)
    for nothing in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(TrainingError, match="run the pretrain stage first"):
            pretrain(digits, tmp_path / "new", FLOAT, CPU, start_run=nothing)
        with pytest.raises(TrainingError, match="no trained supernet"):
            train_supernet(digits, weights, tmp_path / "new", SUPERNET, CPU, start_run=nothing)
    damaged = tmp_path / "damaged" / "float"
    shutil.copytree(trained / "float", damaged)
    (damaged / "float.safetensors").write_bytes(b"half of it")
    with pytest.raises(TrainingError, match="holds another network"):
        pretrain(digits, tmp_path / "new", FLOAT, CPU, start_run=damaged.parent)
    with pytest.raises(TrainingError, match="does not hold the weights of resnet20"):
        train_supernet(digits, damaged / "float.safetensors", tmp_path / "new", SUPERNET, CPU)
    assert not (tmp_path / "new").exists()
