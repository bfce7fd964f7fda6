"""Every stage on digits, broken off and gone on with: the result is that of an unbroken run."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from eqnet_core.calibration import calibrate_batch_norm
from eqnet_core.errors import TrainingError
from eqnet_core.evaluation import margins, top1
from eqnet_core.predictor import AccuracyPredictor
from eqnet_core.space import BIT_WIDTHS, FORMS, QuantizationForm, SearchSpace
from eqnet_core.training.augmentation import VIEWS, view
from eqnet_core.training.batches import Batches, calibration_batches, seeded
from eqnet_core.training.calibrating import CalibrationSettings, calibrate_subnets, load_statistics
from eqnet_core.training.collecting import Shard
from eqnet_core.training.data import ImageData, normalise
from eqnet_core.training.ensemble import EnsembleSettings, fit_ensemble
from eqnet_core.training.panel import Panel
from eqnet_core.training.pool import ImagePool
from eqnet_core.training.pretrain import PretrainSettings, pretrain
from eqnet_core.training.ranges import RangeSettings, load_ranges, measure_ranges
from eqnet_core.training.run import Run, save_tensors
from eqnet_core.training.samples import SPREAD, Samples
from eqnet_core.training.sampling import SamplingSettings, sample_subnets
from eqnet_core.training.statistics_fitting import MINIMUM_CALIBRATIONS
from eqnet_core.training.subnets import RandomBits
from eqnet_core.training.supernet_settings import SupernetSettings
from eqnet_core.training.trained import load_trained, save_trained, supernet_digest
from eqnet_core.training.trainer import train_supernet
from tests.support.brief_training import trained_run

CPU = torch.device("cpu")
WHOLE = Shard()
FLOAT = PretrainSettings(epochs=2, batch_size=48, compile=False, checkpoint_seconds=0)
SUPERNET = SupernetSettings(epochs=2, batch_size=48, compile=False, warmup_steps=1, checkpoint_seconds=0)


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


@pytest.fixture(scope="module")
def trained(digits: ImageData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unbroken run of the first two stages."""
    return trained_run(digits, tmp_path_factory.mktemp("run"), FLOAT, SUPERNET)


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


@pytest.fixture(scope="module")
def calibrated(digits: ImageData, trained: Path) -> Path:
    """The statistics stage, broken off once."""
    settings = CalibrationSettings(samples=20, images=32, compile=False)
    folder = trained / "statistics"
    with pytest.raises(TrainingError, match="calibrate at least 60"):
        calibrate_subnets(digits, trained / "supernet", folder, settings, CPU, WHOLE)
    settings = replace(settings, samples=MINIMUM_CALIBRATIONS)
    calibrate_subnets(digits, trained / "supernet", folder, settings, CPU, WHOLE)
    return folder


def test_statistics_are_those_of_calibration(digits: ImageData, trained: Path, calibrated: Path) -> None:
    supernet = load_trained(trained / "supernet")
    configuration = supernet.space.uniform(FORMS[5], 4)
    supernet.activate(configuration)
    batches = calibration_batches(digits, images=64, seed=9, index=0, device=CPU)
    expected = calibrate_batch_norm(supernet, batches)
    predicted = load_statistics(calibrated).predict(configuration, supernet.space)
    errors = [
        np.abs(predicted[name][0] - mean) / np.sqrt(variance) for name, (mean, variance) in expected.items()
    ]
    assert np.concatenate(errors).mean() < 0.15


def test_samples_go_on_and_in_shards_to_the_same(
    digits: ImageData, trained: Path, calibrated: Path, tmp_path: Path
) -> None:
    settings = SamplingSettings(samples=6, images=64, views=0.8, drawn=48, compile=False)

    def sample(folder: str, shard: Shard = WHOLE, **changes: float) -> Samples:
        changed = replace(settings, **changes)
        return sample_subnets(
            digits, trained / "supernet", calibrated, tmp_path / folder, changed, CPU, shard
        )

    whole = sample("a")
    sample("b", samples=3)
    sample("b", Shard(1, 2))
    parts = sample("b")
    for field in fields(whole):
        np.testing.assert_array_equal(getattr(whole, field.name), getattr(parts, field.name))
    assert len(whole) == 6
    supernet = load_trained(trained / "supernet")
    configuration = whole.configuration(2)
    statistics = load_statistics(calibrated).predict(configuration, supernet.space)
    supernet.activate(configuration)
    supernet.set_statistics(statistics)
    images = normalise(digits.held_out.images, digits.mean, digits.std)
    assert abs(top1(supernet, images, digits.held_out.labels) - whole.plain_accuracy[2]) < 0.03
    pool = ImagePool.load(tmp_path / "a" / "pool.npz", 48)
    drawn = pool.draw(seeded(0, "draws", 2))
    images = normalise(digits.train.images[drawn], digits.mean, digits.std)
    expected = pool.accuracy(drawn, margins(supernet, images, digits.train.labels[drawn]).numpy())
    assert abs(expected - whole.smooth_accuracy[2]) < 0.03
    judged = sample("e", samples=3, drawn=0)
    np.testing.assert_array_equal(judged.half_accuracy, whole.half_accuracy[:3])
    panel, views_panel = (Panel.load(tmp_path / "e" / f"{name}.npz") for name in ("panel", "views"))
    shown = torch.cat([view(digits.held_out.images, index) for index in range(VIEWS)])
    seen = {"as it is": digits.held_out.images, "views": shown}
    right = {
        name: margins(
            supernet,
            normalise(pictures, digits.mean, digits.std)[one.images],
            digits.held_out.labels.repeat(3)[one.images],
        ).numpy()
        for one, (name, pictures) in zip((panel, views_panel), seen.items(), strict=True)
    }
    for of, expected in (
        (Panel.accuracies, judged.half_accuracy[2]),
        (Panel.smooth_accuracy, judged.smooth_accuracy[2]),
    ):
        together = (of(panel, right["as it is"]) + 3 * of(views_panel, right["views"])) / 4
        np.testing.assert_allclose(together, expected, atol=0.004)
    assert judged.views == len(views_panel.images)
    alone = sample("f", samples=3, views=0)
    np.testing.assert_array_equal(alone.accuracy, whole.plain_accuracy[:3])
    np.testing.assert_array_equal(alone.smooth_accuracy, whole.smooth_accuracy[:3])
    for wrong in (-1.0, 0.05, 3.1, float("nan")):
        with pytest.raises(TrainingError, match=r"ask for 0, or 0\.12 to 3, with --views"):
            sample("c", views=wrong)
    with pytest.raises(TrainingError, match="held out"):
        sample("c", images=65)
    for wrong in (97, -1):
        with pytest.raises(TrainingError, match=f"{wrong} images to be drawn"):
            sample("d", drawn=wrong)
    with pytest.raises(TrainingError, match="run the fit stage first"):
        sample("c", searched=2)


def test_no_stage_goes_on_with_measurements_of_another_supernet(
    digits: ImageData, trained: Path, calibrated: Path, tmp_path: Path
) -> None:
    changed = load_trained(trained / "supernet")
    with torch.no_grad():
        changed.layers[3].weight[0] += 1e-3
    other = tmp_path / "supernet"
    other.mkdir()
    save_trained(other, changed)
    sampling = SamplingSettings(samples=2, images=64, drawn=48, compile=False)
    settings = RangeSettings(subnets=1, images=32, calibration_images=32)
    digest = supernet_digest(load_trained(trained / "supernet"))
    Run(tmp_path / "samples", sampling, origins={"supernet": digest})
    Run(tmp_path / "ranges", settings, origins={"supernet": digest})
    statistics = tmp_path / "statistics"
    shutil.copytree(calibrated, statistics)
    calibration = CalibrationSettings(samples=MINIMUM_CALIBRATIONS, images=32, compile=False)
    for again in (
        lambda: calibrate_subnets(digits, other, statistics, calibration, CPU, WHOLE),
        lambda: sample_subnets(digits, other, statistics, tmp_path / "new", sampling, CPU, WHOLE),
        lambda: measure_ranges(digits, changed, tmp_path / "ranges", settings, CPU),
    ):
        with pytest.raises(TrainingError, match="was made with another supernet"):
            again()
    # a folder of an older version does not say
    document = json.loads((statistics / "settings.json").read_text())
    document.pop("supernet")
    (statistics / "settings.json").write_text(json.dumps(document))
    with pytest.raises(TrainingError, match="samples was made with another supernet"):
        sample_subnets(digits, other, statistics, tmp_path / "samples", sampling, CPU, WHOLE)


def small_predictor(space: SearchSpace, seed: int = 0) -> AccuracyPredictor:
    """One that has seen the uniform nets for a moment."""
    uniform = [space.uniform(form, bits) for form in FORMS for bits in BIT_WIDTHS]
    accuracy = np.array([0.9 - 0.2 ** c.weight_bits[0] - 0.2 ** c.activation_bits[0] for c in uniform])
    return fit_ensemble(
        space.encode(uniform),
        accuracy,
        EnsembleSettings(members=1, hidden=4, steps=(5, 5)),
        torch.Generator().manual_seed(seed),
    )


def test_searched_samples_are_added(
    digits: ImageData, trained: Path, calibrated: Path, tmp_path: Path
) -> None:
    settings = SamplingSettings(samples=2, searched=3, images=64, drawn=48, compile=False)
    predictor = small_predictor(load_trained(trained / "supernet").space)
    found = sample_subnets(
        digits, trained / "supernet", calibrated, tmp_path, settings, CPU, WHOLE, predictor=predictor
    )
    assert (found.draw != SPREAD).tolist() == [False] * 2 + [True] * 3
    assert (found.weight_bits[2:].mean(axis=1) < 7).all()


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
