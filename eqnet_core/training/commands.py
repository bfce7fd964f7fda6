"""The training commands, one per stage: `python -m eqnet_core.training STAGE --data … --run …`.

Every stage writes into its own folder below `--run` and goes on where it stopped when it is called again.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from eqnet_core.bundle import Bundle
from eqnet_core.bundle_writer import add_ranges
from eqnet_core.errors import EqnetError, TrainingError
from eqnet_core.files import write_atomically
from eqnet_core.models import ARCHITECTURES
from eqnet_core.training.ablations import run_ablations
from eqnet_core.training.accuracies import AccuracySettings, measure_accuracies
from eqnet_core.training.arguments import build_parser
from eqnet_core.training.bundling import bundle_run, calibration_images, same_supernet
from eqnet_core.training.calibrating import CalibrationSettings, calibrate_subnets
from eqnet_core.training.card import card_page
from eqnet_core.training.collecting import Shard
from eqnet_core.training.data import ImageData, load_data
from eqnet_core.training.fitting import fit_predictor
from eqnet_core.training.plots import ablation_table, plot_ablations, plot_training, plot_weights
from eqnet_core.training.prediction_report import LEFT_OUT, write_report
from eqnet_core.training.pretrain import PretrainSettings, pretrain
from eqnet_core.training.ranges import RangeSettings, measure_ranges
from eqnet_core.training.run import (
    check_origins,
    read_origins,
    save_tensors,
)
from eqnet_core.training.samples import Samples, gather
from eqnet_core.training.sampling import SamplingSettings, sample_subnets
from eqnet_core.training.starting import WEIGHTS, load_predictor
from eqnet_core.training.supernet_settings import SupernetSettings
from eqnet_core.training.trained import TENSORS, load_trained, supernet_digest, trained_architecture
from eqnet_core.training.trainer import train_supernet
from eqnet_core.training.unpacking import unpack


def main(arguments: list[str] | None = None) -> None:
    """Run one stage; errors of the user's making end with one line and exit status 2."""
    options = build_parser().parse_args(arguments)
    try:
        _run(options)
    except EqnetError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on from the last checkpoint")


def _run(options: argparse.Namespace) -> None:
    run: Path = options.run
    if options.stage == "fit":
        _fit(run, options.seed)
        return
    if options.stage == "bundle":
        _bundle(run, options)
        return
    if options.stage == "unpack":
        unpack(Bundle.open(options.bundle), run)
        print(f"wrote {run}")
        return
    if options.stage == "plots":
        print(f"wrote {plot_training(run, options.out / 'training.png')}")
        print(f"wrote {plot_weights(run, options.out / 'weights.png', options.layers)}")
        return
    if options.stage == "report":
        print(f"wrote {write_report(run / 'prediction', options.out)}")
        return
    device: torch.device = options.device
    data = load_data(
        options.data,
        input_shape=ARCHITECTURES[_architecture(options)].input_shape,
        held_out=options.held_out,
        # The split must be the same in every stage, whatever seed a stage is given.
        seed=0,
        mirror=not options.no_mirror,
    )
    float_weights = run / "float" / WEIGHTS
    if options.stage in ("pretrain", "supernet"):
        shared: dict[str, Any] = {
            "architecture": options.architecture,
            "epochs": options.epochs,
            "batch_size": options.batch_size,
            "learning_rate": options.learning_rate,
            "sizes": options.sizes,
            "guidance": options.guidance,
            "temperature": options.temperature,
            "cutmix": options.cutmix,
            "start_share": options.start_share,
            "seed": options.seed,
            "compile": not options.no_compile,
            "precision": options.precision,
        }
        if options.stage == "pretrain":
            pretraining = PretrainSettings(**shared)
            written = pretrain(
                data,
                run / "float",
                pretraining,
                device,
                start_run=options.start,
                teacher_runs=options.teacher,
            )
        else:
            settings = SupernetSettings(
                **shared,
                step_size_learning_rate=options.step_size_learning_rate,
                zero_point_learning_rate=options.zero_point_learning_rate,
                subnet_weights=tuple(options.subnet_weights),
                sharpness=options.sharpness,
                averaging=options.averaging,
                cooldown=options.cooldown,
                random_bits=options.random_bits,
            )
            written = train_supernet(
                data,
                float_weights,
                run / "supernet",
                settings,
                device,
                start_run=options.start,
                teacher_runs=options.teacher,
            )
    elif options.stage == "ablations":
        written = _ablations(run, data, float_weights, options, device)
    elif options.stage == "statistics":
        written = calibrate_subnets(
            data,
            run / "supernet",
            run / "statistics",
            CalibrationSettings(
                samples=options.samples,
                images=options.images,
                seed=options.seed,
                compile=not options.no_compile,
            ),
            device,
            options.shard or Shard.from_environment(),
        )
    elif options.stage == "ranges":
        written = _ranges(run, data, options, device)
    elif options.stage == "sample":
        written = _sample(run, data, options, device)
    else:
        written = measure_accuracies(
            data,
            float_weights,
            run / "supernet",
            run / "accuracies",
            AccuracySettings(seed=options.seed, compile=not options.no_compile),
            device,
        )
    print(f"wrote {written}; data: {_describe(data)}")


def _architecture(options: argparse.Namespace) -> str:
    """What the command says; stages that measure a supernet take that one's."""
    architecture: str = getattr(options, "architecture", None) or trained_architecture(
        options.run / "supernet"
    )
    return architecture


def _ablations(
    run: Path, data: ImageData, float_weights: Path, options: argparse.Namespace, device: torch.device
) -> Path:
    settings = SupernetSettings(
        architecture=options.architecture,
        epochs=options.epochs,
        sizes=options.sizes,
        seed=options.seed,
        compile=not options.no_compile,
    )
    ablations = run_ablations(
        data,
        float_weights,
        run / "ablations",
        settings,
        device,
        names=options.variants,
        images=options.images,
    )
    plot_ablations(ablations, options.out / "ablations.png")
    page: Path = options.out / "ablations.md"
    epochs = "epoch" if options.epochs == 1 else "epochs"
    images = len(data.held_out.labels[: options.images])
    sides = ", ".join(f"{count} at {side} pixels" for side, count in settings.sizes.stages) or "full size"
    write_atomically(
        page,
        "\n".join(
            (
                "# What each part of the training is worth",
                "",
                "Written by the `ablations` stage of training. Top-1 in % on "
                f"{images} held-out training images, mean of the symmetric and the asymmetric form, uniform "
                f"bits for weights and activations; {options.epochs} {epochs} each "
                f"({sides}), one seed ({options.seed}). The images alone give a cell a standard error of up "
                f"to {50 / images**0.5:.1f} points.",
                "",
                ablation_table(ablations),
                "![accuracy against bits of every variant](ablations.png)",
                "",
            )
        ).encode(),
    )
    return page


def _describe(data: ImageData) -> str:
    return (
        f"{len(data.train)} training, {len(data.held_out)} held-out, {len(data.test)} test images, "
        f"{len(data.classes)} classes"
    )


def _sample(run: Path, data: ImageData, options: argparse.Namespace, device: torch.device) -> Path:
    settings = SamplingSettings(
        samples=options.samples,
        searched=options.searched,
        images=options.images,
        views=options.views,
        drawn=options.drawn,
        seed=options.seed,
        compile=not options.no_compile,
    )
    predictor = None
    if settings.searched:
        supernet = load_trained(run / "supernet")
        check_origins(run / "prediction", {"supernet": supernet_digest(supernet)})
        predictor = load_predictor(run)
    folder = run / "samples"
    samples = sample_subnets(
        data,
        run / "supernet",
        run / "statistics",
        folder,
        settings,
        device,
        options.shard or Shard.from_environment(),
        predictor=predictor,
    )
    print(f"{len(samples)} subnets measured so far")
    return folder


def _fit(run: Path, seed: int) -> None:
    samples = gather(run / "samples", Samples)
    if samples is None:
        raise TrainingError(f"no samples in {run / 'samples'}: run the sample stage first")
    if (run / "supernet" / TENSORS).exists():
        check_origins(run / "samples", {"supernet": supernet_digest(load_trained(run / "supernet"))})
    predictor, quality, left_out = fit_predictor(samples, samples.space, seed, report=print)
    folder = run / "prediction"
    # Written last, so that a fit killed in between is told from a whole one.
    (folder / "quality.json").unlink(missing_ok=True)
    save_tensors(folder / "predictor.npz", predictor.to_tensors())
    save_tensors(folder / LEFT_OUT, vars(left_out))
    settings = {"stage": "fit", "seed": seed, **read_origins(run / "samples")}
    write_atomically(folder / "settings.json", json.dumps(settings, indent=2).encode())
    write_atomically(folder / "quality.json", json.dumps(quality, indent=2).encode())
    print(f"wrote {folder}")


def _ranges(run: Path, data: ImageData, options: argparse.Namespace, device: torch.device) -> Path:
    settings = RangeSettings(subnets=options.subnets, images=options.images, seed=options.seed)
    supernet = load_trained(run / "supernet", data)
    folder = run / "ranges"
    if options.bundle is not None and not same_supernet(Bundle.open(options.bundle), supernet):
        raise TrainingError(
            f"{options.bundle} holds another supernet than {run}: choose the run it came from"
        )
    ranges, quality = measure_ranges(data, supernet, folder, settings, device)
    if options.bundle is not None:
        print(f"added to {options.bundle}, {add_ranges(options.bundle, ranges, quality).digest}")
    return folder


def _bundle(run: Path, options: argparse.Namespace) -> None:
    bundle = bundle_run(
        run,
        options.out,
        data=options.data_description,
        calibration=_calibration_images(run, options),
        overwrite=options.overwrite,
    )
    if options.page:
        options.page.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(options.page, card_page(bundle).encode())
    print(f"wrote {options.out}, {bundle.digest}")


def _calibration_images(run: Path, options: argparse.Namespace) -> NDArray[np.uint8] | None:
    if not options.calibration_images:
        return None
    if options.data is None:
        raise TrainingError("calibration images asked for, but no --data to take them from")
    data = load_data(
        options.data,
        input_shape=load_trained(run / "supernet").input.shape,
        held_out=options.held_out,
        seed=0,
        mirror=not options.no_mirror,
    )
    load_trained(run / "supernet", data)  # which refuses other images
    return calibration_images(data, options.calibration_images, options.seed)
