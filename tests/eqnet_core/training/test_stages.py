"""Every stage on digits, broken off and gone on with: the result is that of an unbroken run."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from eqnet_core.errors import TrainingError
from eqnet_core.training.batches import Batches
from eqnet_core.training.data import ImageData
from eqnet_core.training.pretrain import PretrainSettings, pretrain
from eqnet_core.training.ranges import RangeSettings, load_ranges, measure_ranges
from eqnet_core.training.samples import Samples
from eqnet_core.training.sampling import SamplingSettings, sample_subnets
from eqnet_core.training.trained import load_trained
from eqnet_core.training.trainer import SupernetSettings, train_supernet

CPU = torch.device("cpu")
FLOAT = PretrainSettings(epochs=2, batch_size=48, compile=False, checkpoint_seconds=0)
SUPERNET = SupernetSettings(epochs=2, batch_size=48, compile=False, warmup_steps=1, checkpoint_seconds=0)


class KilledError(Exception):
    """Stands for the power cut."""


def break_off(monkeypatch: pytest.MonkeyPatch, at_step: int) -> None:
    real = Batches.at

    def at(self: Batches, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        if step == at_step:
            raise KilledError
        return real(self, step)

    monkeypatch.setattr(Batches, "at", at)


@pytest.fixture(scope="module")
def trained(digits: ImageData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unbroken run of the first two stages."""
    run = tmp_path_factory.mktemp("run")
    weights = pretrain(digits, run / "float", FLOAT, CPU)
    train_supernet(digits, weights, run / "supernet", SUPERNET, CPU)
    return run


def assert_same_tensors(one: Path, other: Path) -> None:
    left, right = load_file(one), load_file(other)
    assert left.keys() == right.keys()
    for name, value in left.items():
        np.testing.assert_allclose(value, right[name], rtol=1e-4, atol=1e-5, err_msg=name)


def test_float_training_goes_on_to_the_same_weights(
    digits: ImageData, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        break_off(patch, at_step=3)
        with pytest.raises(KilledError):
            pretrain(digits, tmp_path, FLOAT, CPU)
    result = pretrain(digits, tmp_path, FLOAT, CPU)
    assert_same_tensors(result, trained / "float" / "float.safetensors")
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]


def test_supernet_training_goes_on_to_the_same_supernet(
    digits: ImageData, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = trained / "float" / "float.safetensors"
    with monkeypatch.context() as patch:
        break_off(patch, at_step=3)
        with pytest.raises(KilledError):
            train_supernet(digits, weights, tmp_path, SUPERNET, CPU)
    result = train_supernet(digits, weights, tmp_path, SUPERNET, CPU)
    assert_same_tensors(result, trained / "supernet" / "supernet.safetensors")
    last = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])
    assert last["epoch"] == 2
    assert set(last["loss"]) == {"H", "R", "L", "WDR"}


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


def test_samples_go_on_to_the_same_file(digits: ImageData, trained: Path, tmp_path: Path) -> None:
    settings = SamplingSettings(samples=8, images=64, calibration_images=32)
    whole = Samples.load(sample_subnets(digits, trained / "supernet", tmp_path / "a", settings, CPU))
    sample_subnets(digits, trained / "supernet", tmp_path / "b", replace(settings, samples=3), CPU)
    parts = Samples.load(sample_subnets(digits, trained / "supernet", tmp_path / "b", settings, CPU))
    assert len(whole) == len(parts) == 8
    np.testing.assert_array_equal(whole.weight_bits, parts.weight_bits)
    np.testing.assert_array_equal(whole.correct, parts.correct)
    np.testing.assert_allclose(whole.means, parts.means, rtol=1e-4, atol=1e-5)
    with pytest.raises(TrainingError, match="held out"):
        sample_subnets(digits, trained / "supernet", tmp_path / "c", replace(settings, images=65), CPU)


def test_ranges_are_measured_once(digits: ImageData, trained: Path, tmp_path: Path) -> None:
    settings = RangeSettings(subnets=3, images=32, calibration_images=32)
    ranges, quality = measure_ranges(digits, load_trained(trained / "supernet"), tmp_path, settings, CPU)
    # 9 sums, the stem, and the 9 branches that are added
    assert len(ranges.names) == 19
    assert ranges.of("add.8")[0] == 0
    assert ranges.of("layer1.0.conv2.output")[0] < 0
    assert len(quality["subnets"]) == 3
    assert quality["images"] == 32
    lost = [row["exact"] - row["integer"] for row in quality["subnets"]]
    assert np.mean(list(quality["cost"].values())) == pytest.approx(np.mean(lost), abs=0.1)
    again = load_ranges(tmp_path)
    assert again is not None
    assert again[1] == quality
    np.testing.assert_array_equal(again[0].high, ranges.high)
    assert measure_ranges(digits, load_trained(trained / "supernet"), tmp_path, settings, CPU)[1] == quality
    with pytest.raises(TrainingError, match="held out"):
        measure_ranges(
            digits, load_trained(trained / "supernet"), tmp_path, replace(settings, images=65), CPU
        )
    assert load_ranges(tmp_path / "elsewhere") is None
