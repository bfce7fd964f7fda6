"""Both training stages on digits, broken off and gone on with: the result is that of an unbroken run."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from eqnet_core.errors import TrainingError
from eqnet_core.space import FORMS, QuantizationForm
from eqnet_core.training.batches import Batches
from eqnet_core.training.data import ImageData
from eqnet_core.training.pretrain import pretrain
from eqnet_core.training.run import Run, save_tensors
from eqnet_core.training.subnets import RandomBits
from eqnet_core.training.trained import load_trained, supernet_digest
from eqnet_core.training.trainer import train_supernet
from tests.support.brief_training import FLOAT, SUPERNET, small_predictor

CPU = torch.device("cpu")


class KilledError(Exception):
    """Stands for the power cut."""


@contextmanager
def broken_off(monkeypatch: pytest.MonkeyPatch, at_step: int) -> Iterator[None]:
    """Training in this block gets as far as `at_step`."""
    real = Batches.at

    def at(self: Batches, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        if step == at_step:
            raise KilledError
        return real(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(Batches, "at", at)
        with pytest.raises(KilledError):
            yield


def assert_same_tensors(one: Path, other: Path) -> None:
    left, right = load_file(one), load_file(other)
    assert left.keys() == right.keys()
    for name, value in left.items():
        np.testing.assert_allclose(value, right[name], rtol=1e-4, atol=1e-5, err_msg=name)


def test_float_training_goes_on_to_the_same_weights(
    digits: ImageData, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with broken_off(monkeypatch, at_step=3):
        pretrain(digits, tmp_path, FLOAT, CPU)
    result = pretrain(digits, tmp_path, FLOAT, CPU)
    assert_same_tensors(result, trained / "float" / "float.safetensors")
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]


@pytest.mark.parametrize("form", [FORMS[4], FORMS[7]])
def test_signed_runtimes_have_the_range_that_the_classifier_was_trained_with(
    trained: Path, form: QuantizationForm
) -> None:
    supernet = load_trained(trained / "supernet")
    inputs = []
    for signed in (False, True):
        supernet.activate(supernet.space.uniform(form, 4, signed=signed))
        inputs.append(supernet.layers[-1].extract().activation)
    assert [(quantizer.low, quantizer.high) for quantizer in inputs] == [(0, 255), (0, 127)]
    assert float(inputs[1].scale) == pytest.approx(2 * float(inputs[0].scale), rel=1e-6)
    assert abs(2 * int(inputs[1].zero_point) - int(inputs[0].zero_point)) <= 1


def test_supernet_training_goes_on_to_the_same_supernet(
    digits: ImageData, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = trained / "float" / "float.safetensors"
    with broken_off(monkeypatch, at_step=3):
        train_supernet(digits, weights, tmp_path, SUPERNET, CPU)
    result = train_supernet(digits, weights, tmp_path, SUPERNET, CPU)
    assert_same_tensors(result, trained / "supernet" / "supernet.safetensors")
    last = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])
    assert last["epoch"] == 2
    assert set(last["loss"]) == {"H", "R", "L", "WDR"}


def test_a_supernet_given_more_epochs_ends_as_if_it_had_them_at_first(
    digits: ImageData, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = trained / "float" / "float.safetensors"
    short = replace(SUPERNET, cooldown=0.5, averaging=0.5)
    longer = replace(short, epochs=3)
    shorter_result = load_file(train_supernet(digits, weights, tmp_path / "extended", short, CPU))
    with broken_off(monkeypatch, at_step=4):
        train_supernet(digits, weights, tmp_path / "extended", longer, CPU)
    extended = train_supernet(digits, weights, tmp_path / "extended", longer, CPU)
    assert_same_tensors(extended, train_supernet(digits, weights, tmp_path / "whole", longer, CPU))
    assert any(
        np.abs(value - shorter_result[name]).max() > 1e-4 for name, value in load_file(extended).items()
    )
    assert json.loads((tmp_path / "extended" / "settings.json").read_text())["epochs"] == 3
    epochs = [
        json.loads(line)["epoch"] for line in (tmp_path / "extended" / "log.jsonl").read_text().splitlines()
    ]
    assert epochs == [1, 2, 3]
    with pytest.raises(TrainingError, match="run of 3 epochs"):
        train_supernet(digits, weights, tmp_path / "extended", short, CPU)


def test_a_plateau_that_was_not_kept_is_kept_by_going_on(
    digits: ImageData, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = trained / "float" / "float.safetensors"
    short = replace(SUPERNET, cooldown=0.5)

    def killed(self: Run) -> None:
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(Run, "keep_plateau", killed)
        with pytest.raises(KilledError):
            train_supernet(digits, weights, tmp_path, short, CPU)
    result = train_supernet(digits, weights, tmp_path, short, CPU)
    assert result.exists()
    # until it ends, the folder holds nothing that the settings of the longer run do not describe
    with broken_off(monkeypatch, at_step=3):
        train_supernet(digits, weights, tmp_path, replace(short, epochs=3), CPU)
    with pytest.raises(TrainingError, match="run the supernet stage first"):
        load_trained(tmp_path)


def test_a_supernet_without_a_plateau_cannot_be_given_more_epochs(
    digits: ImageData, trained: Path, tmp_path: Path
) -> None:
    weights = trained / "float" / "float.safetensors"
    shutil.copytree(trained / "supernet", tmp_path / "run")
    with pytest.raises(TrainingError, match="--cooldown"):
        train_supernet(digits, weights, tmp_path / "run", replace(SUPERNET, epochs=3), CPU)


def test_a_supernet_can_begin_with_that_of_another_run(
    digits: ImageData, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = trained / "float" / "float.safetensors"
    still = replace(
        SUPERNET,
        epochs=1,
        random_bits=RandomBits.SPREAD,
        learning_rate=0.0,
        step_size_learning_rate=0.0,
        zero_point_learning_rate=0.0,
    )
    with broken_off(monkeypatch, at_step=1):
        train_supernet(digits, weights, tmp_path / "next", still, CPU, start_run=trained)
    result = train_supernet(digits, weights, tmp_path / "next", still, CPU, start_run=trained)
    assert_same_tensors(result, trained / "supernet" / "supernet.safetensors")
    start = json.loads((tmp_path / "next" / "settings.json").read_text())["start"]
    assert start["supernet"] == supernet_digest(load_trained(trained / "supernet"))
    assert start["epochs"] == SUPERNET.epochs
    with pytest.raises(TrainingError, match="start"):
        train_supernet(digits, weights, tmp_path / "next", still, CPU)


def test_random_bits_are_not_searched_without_a_predictor(
    digits: ImageData, trained: Path, tmp_path: Path
) -> None:
    weights = trained / "float" / "float.safetensors"
    searched = replace(SUPERNET, random_bits=RandomBits.SEARCHED)
    with pytest.raises(TrainingError, match="--start"):
        train_supernet(digits, weights, tmp_path / "next", searched, CPU)
    with pytest.raises(TrainingError, match="run the fit stage first"):
        train_supernet(digits, weights, tmp_path / "next", searched, CPU, start_run=trained)
    assert not (tmp_path / "next").exists()


def test_a_supernet_trained_on_searched_subnets_keeps_to_its_predictor(
    digits: ImageData, trained: Path, tmp_path: Path
) -> None:
    weights = trained / "float" / "float.safetensors"
    searched = replace(SUPERNET, epochs=1, random_bits=RandomBits.SEARCHED)
    start = tmp_path / "start"
    shutil.copytree(trained / "supernet", start / "supernet")
    space = load_trained(start / "supernet").space

    def train(seed: int) -> Path:
        tensors = small_predictor(space, seed).to_tensors()
        save_tensors(start / "prediction" / "predictor.npz", tensors)
        return train_supernet(digits, weights, tmp_path / "next", searched, CPU, start_run=start)

    assert load_trained(train(seed=0).parent).space == space
    with pytest.raises(TrainingError, match=r"other settings \(start\)"):
        train(seed=1)


def test_training_moves_weights_step_sizes_and_zero_points(digits: ImageData, trained: Path) -> None:
    before = load_file(trained / "float" / "float.safetensors")
    after = load_trained(trained / "supernet").tensors()
    assert np.abs(before["layer1.0.conv1.weight"] - after["layer1.0.conv1.weight"]).max() > 1e-4
    layer = "layer2.0.conv1.weight_quantizer."
    assert after[layer + "zero_point_per_channel"].any()
    assert not np.array_equal(
        after[layer + "log_step_per_channel"][0, 0], after[layer + "log_step_per_channel"][1, 0]
    )


def test_another_setting_in_the_same_folder_is_refused(digits: ImageData, trained: Path) -> None:
    with pytest.raises(TrainingError, match="epochs"):
        pretrain(digits, trained / "float", replace(FLOAT, epochs=3), CPU)
