"""The last stage: what serving needs of a run, in one folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from eqnet_core.bundle import Bundle
from eqnet_core.bundle_writer import write_bundle
from eqnet_core.errors import TrainingError
from eqnet_core.export.template import trace_float_graph
from eqnet_core.ranges import TensorRanges
from eqnet_core.supernet import Supernet
from eqnet_core.training.accuracies import load_accuracies
from eqnet_core.training.augmentation import crop_and_flip
from eqnet_core.training.batches import seeded, torch_seeded
from eqnet_core.training.calibrating import load_statistics
from eqnet_core.training.card import STAGES, told_once
from eqnet_core.training.data import ImageData
from eqnet_core.training.ranges import load_ranges
from eqnet_core.training.run import check_origins, read_json, read_origins, tensors_digest
from eqnet_core.training.starting import WEIGHTS, float_digest, load_predictor
from eqnet_core.training.trained import load_trained, supernet_digest


def bundle_run(
    run: Path, out: Path, *, data: str, calibration: NDArray[np.uint8] | None, overwrite: bool
) -> Bundle:
    """Write the bundle of a run whose stages have all ended, into `out`, after which it is named.

    Args:
        run: folder of the run.
        out: folder of the bundle.
        data: one line for the card: which images.
        calibration: uint8 [N, C, H, W] augmented training images to calibrate each subnet with, or None.
        overwrite: replace a bundle that is there. One of the same supernet leaves its ranges to this one,
            if the run has none.

    Raises:
        TrainingError: a stage is missing, or was made with what is no longer there.
        BundleError: `out` holds another bundle, or something else.
    """
    supernet = load_trained(run / "supernet")
    origins = read_origins(run / "supernet") | {"supernet": supernet_digest(supernet)}
    if (weights := run / "float" / WEIGHTS).exists():
        check_origins(run / "supernet", {"float": float_digest(weights)})
    for measured in ("float", "statistics", "samples", "prediction", "accuracies", "ranges"):
        check_origins(run / measured, origins)
    stages = {
        folder: told_once(read_json(run / folder / "settings.json", stage=stage))
        for folder, stage in STAGES.items()
    }
    statistics = load_statistics(run / "statistics")
    origins["statistics"] = tensors_digest(statistics.to_tensors())
    for measured in ("samples", "prediction"):
        check_origins(run / measured, origins)
    accuracies = load_accuracies(run / "accuracies")
    quality = read_json(run / "prediction" / "quality.json", stage="fit")
    statistics_quality = read_json(run / "statistics" / "quality.json", stage="statistics")
    # what is there, whatever was asked for last
    searched = quality.get("searched", {}).get("held_out", 0)
    stages["samples"] |= {"samples": quality["held_out"], "searched": searched}
    stages["statistics"] |= {"samples": statistics_quality["samples"]}
    ranges, integer_quality = _known_ranges(run, out, supernet)
    return write_bundle(
        out,
        name=out.name,
        architecture=supernet.architecture,
        classes=supernet.classes,
        input=supernet.input,
        space=supernet.space,
        float_accuracy=accuracies["float"],
        accuracy=accuracies,
        predictor_quality=quality,
        statistics_quality=statistics_quality,
        card={
            "data": data,
            "stages": stages,
        },
        supernet=supernet.tensors(),
        predictor=load_predictor(run),
        statistics=statistics,
        ranges=ranges,
        integer_quality=integer_quality,
        calibration=calibration,
        graph=trace_float_graph(
            supernet.architecture, supernet.input.shape, len(supernet.classes)
        ).to_bytes(),
        overwrite=overwrite,
    )


def calibration_images(data: ImageData, count: int, seed: int) -> NDArray[np.uint8]:
    """Augmented training images uint8 [count, C, H, W] for a bundle, drawn with `seed`.

    Raises:
        TrainingError: there are not so many.
    """
    if not 0 < count <= len(data.train):
        raise TrainingError(f"{count} calibration images asked for: there are {len(data.train)} to take")
    order = seeded(seed, "calibration", 0).permutation(len(data.train))
    drawn = data.train.subset(torch.from_numpy(order[:count]))
    generator = torch_seeded(seed, "calibration", 0)
    images: NDArray[np.uint8] = crop_and_flip(drawn.images, generator, mirror=data.mirror).numpy()
    return images


def same_supernet(bundle: Bundle, supernet: Supernet) -> bool:
    """Whether the bundle holds this supernet."""
    theirs = bundle.supernet_tensors()
    return all(
        name in theirs and np.array_equal(theirs[name], value) for name, value in supernet.tensors().items()
    )


def _known_ranges(
    run: Path, folder: Path, supernet: Supernet
) -> tuple[TensorRanges, dict[str, Any]] | tuple[None, None]:
    """Those of the run, or those that the bundle to be replaced has of the same supernet."""
    found = load_ranges(run / "ranges")
    if found is not None:
        return found
    if not (folder / "bundle.json").exists():
        return None, None
    before = Bundle.open(folder)
    if not before.has_ranges or not same_supernet(before, supernet):
        return None, None
    return before.ranges(), dict(before.document["integer"])
