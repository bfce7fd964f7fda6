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

from eqnet_core.bundle import Bundle, add_ranges, write_bundle
from eqnet_core.errors import EqnetError, TrainingError
from eqnet_core.models import ARCHITECTURES
from eqnet_core.predictor import AccuracyPredictor
from eqnet_core.ranges import TensorRanges
from eqnet_core.space import FORMS, Symmetry
from eqnet_core.statistics import StatisticsPredictor
from eqnet_core.supernet import Supernet
from eqnet_core.training.ablations import VARIANTS, run_ablations
from eqnet_core.training.accuracies import AccuracySettings, measure_accuracies
from eqnet_core.training.batches import ImageSizes
from eqnet_core.training.card import card_page
from eqnet_core.training.data import ImageData, load_data
from eqnet_core.training.fitting import fit_predictor, fit_statistics
from eqnet_core.training.moments import quantized_weights
from eqnet_core.training.plots import ablation_table, plot_ablations, plot_training, plot_weights
from eqnet_core.training.pretrain import PretrainSettings, pretrain
from eqnet_core.training.ranges import RangeSettings, load_ranges, measure_ranges
from eqnet_core.training.run import write_atomically
from eqnet_core.training.samples import Samples
from eqnet_core.training.sampling import SamplingSettings, sample_subnets
from eqnet_core.training.trained import load_trained
from eqnet_core.training.trainer import SupernetSettings, train_supernet

ASYMMETRIC_WEIGHTS = [form.index for form in FORMS if form.weight_symmetry is Symmetry.ASYMMETRIC]


def image_sizes(text: str) -> ImageSizes:
    """Parse `16x10,24x6`: 10 epochs at 16 pixels, then 6 at 24, the rest at full size."""
    try:
        stages = tuple(
            (int(side), int(epochs)) for side, epochs in (part.split("x") for part in text.split(",") if part)
        )
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: write SIDExEPOCHS,… such as 16x10,24x6") from error
    return ImageSizes(stages=stages)


def build_parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    parser = argparse.ArgumentParser(prog="python -m eqnet_core.training", description=__doc__)
    stages = parser.add_subparsers(dest="stage", required=True)

    def stage(name: str, text: str, *, data: bool = True) -> argparse.ArgumentParser:
        command = stages.add_parser(
            name, help=text, description=text, formatter_class=argparse.ArgumentDefaultsHelpFormatter
        )
        command.add_argument("--run", type=Path, required=True, help="folder of this training run")
        if data:
            command.add_argument(
                "--data", type=Path, required=True, help=".npz, torchvision CIFAR-10 or ImageFolder"
            )
            command.add_argument("--architecture", default="resnet20", choices=sorted(ARCHITECTURES))
            command.add_argument(
                "--held-out", type=int, default=5000, help="training images kept for choices and samples"
            )
            command.add_argument(
                "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="torch device"
            )
        command.add_argument("--seed", type=int, default=0)
        return command

    for name, text, settings in (
        ("pretrain", "train the float network", PretrainSettings()),
        ("supernet", "train the supernet from the float network", SupernetSettings()),
    ):
        command = stage(name, text)
        command.add_argument("--epochs", type=int, default=settings.epochs)
        command.add_argument("--batch-size", type=int, default=settings.batch_size)
        command.add_argument("--learning-rate", type=float, default=settings.learning_rate)
        command.add_argument(
            "--sizes", type=image_sizes, default=ImageSizes(), help="smaller images first, e.g. 16x10,24x6"
        )
        command.add_argument("--no-compile", action="store_true", help="do not use torch.compile")
        if name == "supernet":
            command.add_argument(
                "--float-teacher", action="store_true", help="the float network guides the highest subnet"
            )
            command.add_argument(
                "--averaging",
                type=float,
                default=0.0,
                help="decay of the moving average, 0 for none",
            )
    command = stage("ablations", "what each part of supernet training is worth: table and plot")
    command.add_argument("--epochs", type=int, default=4, help="of every variant")
    command.add_argument("--sizes", type=image_sizes, default=ImageSizes(), help="as for supernet")
    command.add_argument("--no-compile", action="store_true", help="do not use torch.compile")
    command.add_argument("--images", type=int, help="held-out images to measure with (default: all)")
    command.add_argument(
        "--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS), metavar="NAME"
    )
    command.add_argument("--out", type=Path, required=True, help="folder of ablations.md and ablations.png")
    command = stage("plots", "draw training and weight distributions of a run", data=False)
    command.add_argument("--out", type=Path, required=True, help="folder of training.png and weights.png")
    command.add_argument("--layers", nargs="+", help="whose weights (default: three searchable ones)")
    command = stage("sample", "measure subnets for the predictors")
    command.add_argument("--samples", type=int, default=SamplingSettings().samples)
    command.add_argument("--images", type=int, default=SamplingSettings().images)
    command.add_argument("--calibration-images", type=int, default=SamplingSettings().calibration_images)
    stage("accuracies", "measure the float network and the uniform subnets on the test images")
    stage("fit", "fit the accuracy and the statistics predictor to the samples", data=False)
    command = stage("ranges", "measure what model.integer.onnx adds: ranges of sums and pooled tensors")
    command.add_argument("--subnets", type=int, default=RangeSettings().subnets)
    command.add_argument("--images", type=int, default=RangeSettings().images)
    command.add_argument("--bundle", type=Path, help="also add them to this bundle of the same supernet")
    command = stage("bundle", "write the bundle that serving needs", data=False)
    command.add_argument(
        "--out", type=Path, required=True, help="folder of the bundle; its name is the bundle's"
    )
    command.add_argument("--data-description", required=True, help="one line for the card: which images")
    command.add_argument("--overwrite", action="store_true", help="replace another bundle in the same folder")
    command.add_argument("--page", type=Path, help="also write the card as a Markdown page")
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Run one stage; errors of the user's making end with one line and exit status 2."""
    options = build_parser().parse_args(arguments)
    try:
        _run(options)
    except EqnetError as error:
        sys.exit(f"error: {error}")
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
    if options.stage == "plots":
        print(f"wrote {plot_training(run, options.out / 'training.png')}")
        print(f"wrote {plot_weights(run, options.out / 'weights.png', options.layers)}")
        return
    device = torch.device(options.device)
    data = load_data(
        options.data,
        input_shape=ARCHITECTURES[options.architecture].input_shape,
        held_out=options.held_out,
        # The split must be the same in every stage, whatever seed a stage is given.
        seed=0,
    )
    float_weights = run / "float" / "float.safetensors"
    if options.stage in ("pretrain", "supernet"):
        shared: dict[str, Any] = {
            "architecture": options.architecture,
            "epochs": options.epochs,
            "batch_size": options.batch_size,
            "learning_rate": options.learning_rate,
            "sizes": options.sizes,
            "seed": options.seed,
            "compile": not options.no_compile,
        }
        if options.stage == "pretrain":
            written = pretrain(data, run / "float", PretrainSettings(**shared), device)
        else:
            settings = SupernetSettings(
                **shared, float_teacher=options.float_teacher, averaging=options.averaging
            )
            written = train_supernet(data, float_weights, run / "supernet", settings, device)
    elif options.stage == "ablations":
        written = _ablations(run, data, float_weights, options, device)
    elif options.stage == "sample":
        written = sample_subnets(
            data,
            run / "supernet",
            run / "samples",
            SamplingSettings(
                samples=options.samples,
                images=options.images,
                calibration_images=options.calibration_images,
                seed=options.seed,
            ),
            device,
        )
    elif options.stage == "ranges":
        written = _ranges(run, data, options, device)
    else:
        written = measure_accuracies(
            data,
            float_weights,
            run / "supernet",
            run / "accuracies",
            AccuracySettings(seed=options.seed),
            device,
        )
    print(f"wrote {written}; data: {_describe(data)}")


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
    images = len(data.held_out.labels[: options.images])
    sides = ", ".join(f"{epochs} at {side} pixels" for side, epochs in settings.sizes.stages) or "full size"
    write_atomically(
        page,
        "\n".join(
            (
                "# What each part of the training is worth",
                "",
                "Written by the `ablations` stage of training. Top-1 in % on "
                f"{images} held-out training images, mean of the symmetric and the asymmetric form, uniform "
                f"bits for weights and activations; {options.epochs} epochs each "
                f"({sides}), one seed ({options.seed}).",
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


def _fit(run: Path, seed: int) -> None:
    samples = Samples.load(run / "samples" / "samples.npz")
    # Earlier versions sampled these; they are no subnets any more (see `SubnetConfiguration`).
    offered = ~(samples.narrow_range & np.isin(samples.form, ASYMMETRIC_WEIGHTS))
    if not offered.all():
        print(f"left out {(~offered).sum()} samples with narrow range and asymmetric weights: not offered")
        samples = samples.select(offered)
    predictor, predictor_quality = fit_predictor(samples, samples.space, seed, report=print)
    weights = quantized_weights(load_trained(run / "supernet"))
    statistics, statistics_quality = fit_statistics(samples, samples.space, weights=weights, report=print)
    folder = run / "prediction"
    folder.mkdir(parents=True, exist_ok=True)
    for name, tensors in (("predictor", predictor.to_tensors()), ("statistics", statistics.to_tensors())):
        with (folder / f".{name}.tmp").open("wb") as file:
            np.savez(file, **tensors)  # type: ignore[arg-type]
        (folder / f".{name}.tmp").replace(folder / f"{name}.npz")
    quality = {"predictor": predictor_quality, "statistics": statistics_quality}
    write_atomically(folder / "quality.json", json.dumps(quality, indent=2).encode())
    print(f"wrote {folder}")


def _ranges(run: Path, data: ImageData, options: argparse.Namespace, device: torch.device) -> Path:
    settings = RangeSettings(subnets=options.subnets, images=options.images, seed=options.seed)
    supernet = load_trained(run / "supernet")
    folder = run / "ranges"
    if options.bundle is not None and not _same_supernet(Bundle.open(options.bundle), supernet):
        raise TrainingError(
            f"{options.bundle} holds another supernet than {run}: choose the run it came from"
        )
    ranges, quality = measure_ranges(data, supernet, folder, settings, device)
    if options.bundle is not None:
        print(f"added to {options.bundle}, {add_ranges(options.bundle, ranges, quality).digest}")
    return folder


def _same_supernet(bundle: Bundle, supernet: Supernet) -> bool:
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
    if not before.has_ranges or not _same_supernet(before, supernet):
        return None, None
    return before.ranges(), dict(before.document["integer"])


def _bundle(run: Path, options: argparse.Namespace) -> None:
    supernet = load_trained(run / "supernet")
    accuracies = _read_json(run / "accuracies" / "accuracies.json", "accuracies")
    quality = _read_json(run / "prediction" / "quality.json", "fit")
    tensors = {}
    for name in ("predictor", "statistics"):
        with np.load(run / "prediction" / f"{name}.npz", allow_pickle=False) as archive:
            tensors[name] = dict(archive)
    ranges, integer_quality = _known_ranges(run, options.out, supernet)
    bundle = write_bundle(
        options.out,
        name=options.out.name,
        architecture=supernet.architecture,
        classes=supernet.classes,
        input=supernet.input,
        space=supernet.space,
        float_accuracy=accuracies["float"],
        accuracy=accuracies,
        predictor_quality=quality["predictor"],
        statistics_quality=quality["statistics"],
        card={
            "data": options.data_description,
            "stages": {
                stage: _read_json(run / stage / "settings.json", stage)
                for stage in ("float", "supernet", "samples", "accuracies")
            },
        },
        supernet=supernet.tensors(),
        predictor=AccuracyPredictor.from_tensors(tensors["predictor"]),
        statistics=StatisticsPredictor.from_tensors(tensors["statistics"]),
        ranges=ranges,
        integer_quality=integer_quality,
        overwrite=options.overwrite,
    )
    if options.page:
        write_atomically(options.page, card_page(bundle).encode())
    print(f"wrote {options.out}, {bundle.digest}")


def _read_json(path: Path, stage: str) -> dict[str, Any]:
    try:
        document: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise TrainingError(f"{path} is missing: run the {stage} stage first") from error
    return document
