"""Runs mixed up: other images, another split, another network. Told at once, and nothing is left behind."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from eqnet_core.errors import TrainingError
from eqnet_core.space import FORMS
from eqnet_core.training.accuracies import AccuracySettings, load_accuracies, measure_accuracies
from eqnet_core.training.calibrating import CalibrationSettings, calibrate_subnets, moment_subnets
from eqnet_core.training.collecting import Shard
from eqnet_core.training.commands import main
from eqnet_core.training.data import ImageData, load_data
from eqnet_core.training.pretrain import PretrainSettings, pretrain
from eqnet_core.training.sampling import SamplingSettings, sample_subnets
from eqnet_core.training.starting import WEIGHTS
from eqnet_core.training.supernet_settings import SupernetSettings
from eqnet_core.training.trainer import train_supernet
from tests.support.brief_training import trained_run

CPU = torch.device("cpu")
FLOAT = PretrainSettings(epochs=1, batch_size=96, compile=False)
SUPERNET = SupernetSettings(epochs=1, batch_size=96, compile=False, warmup_steps=1)


@pytest.fixture(scope="module")
def run(digits: ImageData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_run(digits, tmp_path_factory.mktemp("run"), FLOAT, SUPERNET)


@pytest.fixture(scope="module")
def other_split(digits_file: Path) -> ImageData:
    return load_data(digits_file, input_shape=(3, 32, 32), held_out=32, seed=0)


def test_training_does_not_go_on_with_other_images(other_split: ImageData, run: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"float was made with other images.*--data, --held-out"):
        pretrain(other_split, run / "float", FLOAT, CPU)
    with pytest.raises(TrainingError, match="float was made with other images"):
        train_supernet(other_split, run / "float" / WEIGHTS, tmp_path / "new", SUPERNET, CPU)
    assert not (tmp_path / "new").exists()
    weights = pretrain(other_split, tmp_path / "float", FLOAT, CPU)
    with pytest.raises(TrainingError, match="supernet was made with other images"):
        train_supernet(other_split, weights, run / "supernet", SUPERNET, CPU)


def test_a_bundle_takes_no_images_of_another_split_to_calibrate_with(
    digits_file: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["bundle", "--run", str(run), "--out", str(tmp_path / "b"), "--data-description", "digits"]
    asked += ["--data", str(digits_file)]
    for held_out, count, problem in (
        ("32", "8", "another split of them"),
        ("64", "97", "97 calibration images asked for: there are 96 to take"),
        ("64", "96", "is missing: run the statistics stage first"),  # these are taken
    ):
        with pytest.raises(SystemExit):
            main([*asked, "--held-out", held_out, "--calibration-images", count])
        assert problem in capsys.readouterr().err


def test_a_supernet_is_not_taken_for_that_of_another_float_network(
    digits: ImageData, run: Path, tmp_path: Path
) -> None:
    weights = pretrain(digits, tmp_path / "float", replace(FLOAT, seed=1), CPU)
    with pytest.raises(TrainingError, match="made with another float network"):
        train_supernet(digits, weights, run / "supernet", SUPERNET, CPU)


def test_no_stage_measures_with_images_of_another_split(
    other_split: ImageData, run: Path, tmp_path: Path
) -> None:
    supernet = run / "supernet"
    stages = (
        lambda: calibrate_subnets(other_split, supernet, tmp_path, CalibrationSettings(), CPU, Shard()),
        lambda: sample_subnets(
            other_split, supernet, run / "statistics", tmp_path, SamplingSettings(images=32), CPU, Shard()
        ),
        lambda: measure_accuracies(
            other_split, run / "float" / WEIGHTS, supernet, tmp_path, AccuracySettings(), CPU
        ),
    )
    for stage in stages:
        with pytest.raises(TrainingError, match="trained on other images, or another split"):
            stage()
    assert not list(tmp_path.iterdir())


def test_later_stages_take_the_network_of_the_supernet(
    digits_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not that of a forgotten --architecture, whose images may be of another size."""
    for stage in ("statistics", "sample", "accuracies", "ranges"):
        with pytest.raises(SystemExit):
            main([stage, "--run", str(tmp_path), "--data", str(digits_file)])
        assert "run the supernet stage first" in capsys.readouterr().err


def test_what_is_refused_leaves_no_settings_behind(digits: ImageData, run: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="does not hold the weights"):
        train_supernet(digits, tmp_path / "none", tmp_path / "supernet", SUPERNET, CPU)
    few = SamplingSettings(images=4)
    with pytest.raises(TrainingError, match="at least 8"):
        sample_subnets(digits, run / "supernet", run / "statistics", tmp_path / "samples", few, CPU, Shard())
    many = CalibrationSettings(images=97)
    with pytest.raises(TrainingError, match="97 images asked for, there are 96 training images"):
        calibrate_subnets(digits, run / "supernet", tmp_path / "statistics", many, CPU, Shard())
    assert not list(tmp_path.iterdir())


def test_accuracies_that_were_stopped_are_not_handed_out(
    digits: ImageData, run: Path, tmp_path: Path
) -> None:
    settings = AccuracySettings(bits=(8,), calibration_images=1000, compile=False)  # of which there are 96
    weights, supernet = run / "float" / WEIGHTS, run / "supernet"
    path = measure_accuracies(digits, weights, supernet, tmp_path, settings, CPU)
    whole = path.read_text()
    assert load_accuracies(tmp_path)["uniform"].keys() == {form.name for form in FORMS}
    assert json.loads((tmp_path / "settings.json").read_text())["calibration_images"] == 96
    path.write_text(whole.replace(FORMS[-1].name, "not there yet"))
    with pytest.raises(TrainingError, match="not complete"):
        load_accuracies(tmp_path)


@pytest.mark.parametrize("samples", [320, 500, 512, 1000, 1024, 8000])
def test_moments_are_of_subnets_of_all_forms(samples: int) -> None:
    chosen = moment_subnets(samples)
    assert len(chosen) <= 16
    assert {number % len(FORMS) for number in chosen} == set(range(len(FORMS)))
