"""The stages that measure a trained supernet, on digits: statistics, samples, ranges."""

import json
import shutil
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from eqnet_core.calibration import calibrate_batch_norm
from eqnet_core.errors import TrainingError
from eqnet_core.evaluation import margins
from eqnet_core.space import FORMS, SubnetConfiguration
from eqnet_core.training.augmentation import VIEWS, view
from eqnet_core.training.batches import calibration_batches, seeded
from eqnet_core.training.calibrating import CalibrationSettings, calibrate_subnets, load_statistics
from eqnet_core.training.collecting import Shard
from eqnet_core.training.data import ImageData, LabelledImages, normalise
from eqnet_core.training.panel import Panel
from eqnet_core.training.pool import ImagePool
from eqnet_core.training.ranges import RangeSettings, load_ranges, measure_ranges
from eqnet_core.training.run import Run
from eqnet_core.training.samples import SPREAD, Samples
from eqnet_core.training.sampling import SamplingSettings, sample_subnets
from eqnet_core.training.statistics_fitting import MINIMUM_CALIBRATIONS
from eqnet_core.training.trained import load_trained, save_trained, supernet_digest
from tests.support.brief_training import small_predictor

CPU = torch.device("cpu")
WHOLE = Shard()


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


def test_a_predictor_is_fitted_once_to_the_same_samples(
    digits: ImageData, trained: Path, calibrated: Path, tmp_path: Path
) -> None:
    """Fitted again it may have other last bits, and what was measured with it would be refused."""
    settings = CalibrationSettings(samples=MINIMUM_CALIBRATIONS, images=32, compile=False)
    folder = shutil.copytree(calibrated, tmp_path / "statistics")

    def calibrate(samples: int = MINIMUM_CALIBRATIONS, shard: Shard = WHOLE) -> tuple[Path, int, int]:
        changed = replace(settings, samples=samples)
        written = calibrate_subnets(digits, trained / "supernet", folder, changed, CPU, shard)
        quality = json.loads((folder / "quality.json").read_text())
        return written, (folder / "statistics.npz").stat().st_mtime_ns, quality["samples"]

    before = (folder / "statistics.npz").stat().st_mtime_ns
    assert calibrate() == (folder / "statistics.npz", before, MINIMUM_CALIBRATIONS)
    assert calibrate(MINIMUM_CALIBRATIONS - 9) == (folder / "statistics.npz", before, MINIMUM_CALIBRATIONS)
    # the first of two shards has one sample more, and leaves the fit to the other
    assert calibrate(MINIMUM_CALIBRATIONS + 2, Shard(0, 2)) == (folder, before, MINIMUM_CALIBRATIONS)
    path, after, samples = calibrate(MINIMUM_CALIBRATIONS + 2, Shard(1, 2))
    assert (path, samples) == (folder / "statistics.npz", MINIMUM_CALIBRATIONS + 2)
    assert after > before
    for lost in ("statistics.npz", "samples-1.npz"):
        (folder / lost).unlink()
        before = after
        _, after, _ = calibrate(MINIMUM_CALIBRATIONS + 2)
        assert after > before


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
    configuration = whole.configuration(2)
    right = measured_margins(digits, trained, calibrated, configuration, digits.held_out)
    assert abs((right > 0).mean() - whole.plain_accuracy[2]) < 0.03
    judged = sample("e", samples=3, drawn=0)
    np.testing.assert_array_equal(judged.half_accuracy, whole.half_accuracy[:3])
    assert_judged_in_views(digits, trained, calibrated, tmp_path / "e", judged)
    # digits show another class in a mirror: the same stages, as of an older version, which says of no images
    unmirrored, run = replace(digits, mirror=False), tmp_path / "unmirrored"
    for stage in (trained / "supernet", calibrated):
        copy = shutil.copytree(stage, run / stage.name)
        document = json.loads((copy / "settings.json").read_text())
        del document["data"]
        (copy / "settings.json").write_text(json.dumps(document))
    other = replace(settings, samples=1, drawn=0)
    folder, statistics = run / "samples", run / "statistics"
    judged = sample_subnets(unmirrored, run / "supernet", statistics, folder, other, CPU, WHOLE)
    assert_judged_in_views(unmirrored, run, statistics, folder, judged)
    mirrored, panel = (Panel.load(path / "views.npz") for path in (tmp_path / "e", folder))
    assert (mirrored.offset != panel.offset).all()
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


def images_and_views(data: ImageData) -> LabelledImages:
    """The held-out images as they are, and then in all their views."""
    images = data.held_out.images
    shown = [images, *(view(images, index, mirror=data.mirror) for index in range(VIEWS))]
    return LabelledImages(images=torch.cat(shown), labels=data.held_out.labels.repeat(1 + VIEWS))


def measured_margins(
    data: ImageData,
    run: Path,
    statistics: Path,
    configuration: SubnetConfiguration,
    images: LabelledImages,
) -> NDArray[np.float32]:
    """Of a subnet as delivered, with predicted statistics."""
    supernet = load_trained(run / "supernet")
    supernet.activate(configuration)
    supernet.set_statistics(load_statistics(statistics).predict(configuration, supernet.space))
    inputs = normalise(images.images, data.mean, data.std)
    return np.asarray(margins(supernet, inputs, images.labels).numpy())


def assert_judged_in_views(
    data: ImageData, run: Path, statistics: Path, folder: Path, judged: Samples
) -> None:
    """The last of the samples in `folder` was measured on the panels that are there."""
    panel, views_panel = (Panel.load(folder / f"{name}.npz") for name in ("panel", "views"))
    seen = measured_margins(data, run, statistics, judged.configuration(-1), images_and_views(data))
    plain, viewed = np.split(seen, [len(data.held_out)])
    for of, expected in (
        (Panel.accuracies, judged.half_accuracy[-1]),
        (Panel.smooth_accuracy, judged.smooth_accuracy[-1]),
    ):
        together = (of(panel, plain[panel.images]) + 3 * of(views_panel, viewed[views_panel.images])) / 4
        np.testing.assert_allclose(together, expected, atol=0.004)
    assert judged.views == len(views_panel.images)


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


def test_searched_samples_are_added(
    digits: ImageData, trained: Path, calibrated: Path, tmp_path: Path
) -> None:
    settings = SamplingSettings(samples=2, searched=3, images=64, drawn=48, compile=False)
    predictor = small_predictor(load_trained(trained / "supernet").space)
    found = sample_subnets(
        digits, trained / "supernet", calibrated, tmp_path, settings, CPU, WHOLE, predictor=predictor
    )
    assert (found.draw != SPREAD).tolist() == [False] * 2 + [True] * 3
    # each is fitted by training images of its own
    pool = ImagePool.load(tmp_path / "pool.npz", 48)
    chosen = [pool.draw(seeded(0, "draws", int(one))) for one in found.draw + found.index]
    assert len({tuple(images) for images in chosen}) == 5
    for row, images in enumerate(chosen):
        seen = digits.train.subset(torch.from_numpy(images))
        right = measured_margins(digits, trained, calibrated, found.configuration(row), seen)
        assert found.smooth_accuracy[row] == pytest.approx(pool.accuracy(images, right), abs=0.002)
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
