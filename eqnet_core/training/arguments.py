"""What the training commands accept on the command line."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import torch

from eqnet_core.errors import TrainingError
from eqnet_core.models import ARCHITECTURES
from eqnet_core.training.ablations import VARIANTS
from eqnet_core.training.batches import ImageSizes
from eqnet_core.training.calibrating import CalibrationSettings
from eqnet_core.training.collecting import Shard
from eqnet_core.training.forward import Precision
from eqnet_core.training.pretrain import PretrainSettings
from eqnet_core.training.ranges import RangeSettings
from eqnet_core.training.sampling import USUAL_VIEWS, SamplingSettings
from eqnet_core.training.subnets import RandomBits
from eqnet_core.training.supernet_settings import SupernetSettings

DESCRIPTION = """The training commands, one per stage: `python -m eqnet_core.training STAGE --data … --run …`.

Every stage writes into its own folder below `--run` and goes on where it stopped when it is called again."""


Number = TypeVar("Number", int, float)


def _number(kind: type[Number], fits: Callable[[Number], bool], wanted: str) -> Callable[[str], Number]:
    def parse(text: str) -> Number:
        with suppress(ValueError):
            if fits(value := kind(text)):
                return value
        raise argparse.ArgumentTypeError(f"{text!r}: write {wanted}")

    return parse


_count = _number(int, lambda value: value >= 1, "a whole number, at least 1")
_count_or_0 = _number(int, lambda value: value >= 0, "a whole number, at least 0")
_rate = _number(float, lambda value: 0 < value < math.inf, "a number above 0")
_rate_or_0 = _number(float, lambda value: 0 <= value < math.inf, "a number, at least 0")


def image_sizes(text: str) -> ImageSizes:
    """Parse `16x10,24x6`: 10 epochs at 16 pixels, then 6 at 24, the rest at full size."""
    try:
        stages = tuple(
            (_count(side), _count(epochs))
            for side, epochs in (part.split("x") for part in text.split(",") if part)
        )
    except (ValueError, argparse.ArgumentTypeError) as error:
        raise argparse.ArgumentTypeError(f"{text!r}: write SIDExEPOCHS,… such as 16x10,24x6") from error
    return ImageSizes(stages=stages)


def build_parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    parser = argparse.ArgumentParser(prog="python -m eqnet_core.training", description=DESCRIPTION)
    stages = parser.add_subparsers(dest="stage", required=True)

    def stage(name: str, text: str, *, data: bool = True) -> argparse.ArgumentParser:
        command = stages.add_parser(
            name, help=text, description=text, formatter_class=argparse.ArgumentDefaultsHelpFormatter
        )
        command.add_argument("--run", type=_folder, required=True, help="folder of this training run")
        if data:
            command.add_argument(
                "--data", type=Path, required=True, help=".npz, torchvision CIFAR-10 or ImageFolder"
            )
            if name in ("pretrain", "supernet", "ablations"):  # the others measure a supernet, which has one
                command.add_argument("--architecture", default="resnet20", choices=sorted(ARCHITECTURES))
            _add_split(command)
            command.add_argument(
                "--device",
                type=_device,
                default="cuda" if torch.cuda.is_available() else "cpu",
                help="torch device",
            )
        command.add_argument("--seed", type=_count_or_0, default=0)
        return command

    for name, text, settings in (
        ("pretrain", "train the float network", PretrainSettings()),
        ("supernet", "train the supernet from the float network", SupernetSettings()),
    ):
        command = stage(name, text)
        command.add_argument("--epochs", type=_count, default=settings.epochs)
        command.add_argument("--batch-size", type=_count, default=settings.batch_size)
        command.add_argument("--learning-rate", type=_rate, default=settings.learning_rate)
        command.add_argument(
            "--sizes", type=image_sizes, default=ImageSizes(), help="smaller images first, e.g. 16x10,24x6"
        )
        command.add_argument("--no-compile", action="store_true", help="do not use torch.compile")
        command.add_argument(
            "--precision",
            type=Precision,
            default=settings.precision,
            choices=list(Precision),
            help="of convolutions and linear layers; bfloat16 is faster where the processor has it",
        )
        command.add_argument(
            "--start", type=Path, help="folder of a run, or a bundle, whose trained weights to begin with"
        )
        command.add_argument(
            "--teacher",
            type=Path,
            nargs="+",
            default=(),
            metavar="RUN",
            help="runs whose float networks, of any architecture, guide the training by their mean logits",
        )
        command.add_argument(
            "--guidance",
            type=float,
            default=settings.guidance,
            help="share of a teacher's or the next wider subnet's logits in a loss; the rest are labels",
        )
        command.add_argument(
            "--temperature", type=float, default=settings.temperature, help="of all guidance: softens logits"
        )
        command.add_argument(
            "--start-share",
            type=float,
            default=settings.start_share,
            help="of what it began with in the result: tensors are interpolated after training",
        )
        command.add_argument(
            "--cutmix", type=float, default=settings.cutmix, help="share of the batches mixed by CutMix"
        )
        if isinstance(settings, SupernetSettings):
            command.add_argument(
                "--step-size-learning-rate",
                type=_rate_or_0,
                default=settings.step_size_learning_rate,
                help="of Adam, on the logarithms",
            )
            command.add_argument(
                "--zero-point-learning-rate", type=_rate_or_0, default=settings.zero_point_learning_rate
            )
            command.add_argument(
                "--subnet-weights",
                type=float,
                nargs=3,
                default=settings.subnet_weights,
                metavar=("HIGHEST", "RANDOM", "LOWEST"),
                help="of the losses of a step's three subnets: which bit-widths matter more",
            )
            command.add_argument(
                "--sharpness",
                type=float,
                default=settings.sharpness,
                help="radius of sharpness-aware minimisation, 0 for none, such as 0.5",
            )
            command.add_argument(
                "--averaging",
                type=float,
                default=settings.averaging,
                help="decay of the moving average, 0 for none",
            )
            command.add_argument(
                "--cooldown",
                type=float,
                default=settings.cooldown,
                help="share of the steps over which the rate falls; below 1, epochs can be added later",
            )
            command.add_argument(
                "--random-bits",
                type=RandomBits,
                default=settings.random_bits,
                choices=list(RandomBits),
                help="of a step's random subnet: each layer's by itself, averages spread evenly, or half of "
                "them searched with the accuracy predictor of --start",
            )
    command = stage("report", "how good the accuracy predictor is: table and scatter plot", data=False)
    command.add_argument(
        "--out", type=_folder, required=True, help="folder of prediction.md and prediction.png"
    )
    command = stage("ablations", "what each part of supernet training is worth: table and plot")
    command.add_argument("--epochs", type=_count, default=4, help="of every variant")
    command.add_argument("--sizes", type=image_sizes, default=ImageSizes(), help="as for supernet")
    command.add_argument("--no-compile", action="store_true", help="do not use torch.compile")
    command.add_argument("--images", type=_count, help="held-out images to measure with (default: all)")
    command.add_argument(
        "--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS), metavar="NAME"
    )
    command.add_argument(
        "--out", type=_folder, required=True, help="folder of ablations.md and ablations.png"
    )
    command = stage("plots", "draw training and weight distributions of a run", data=False)
    command.add_argument("--out", type=_folder, required=True, help="folder of training.png and weights.png")
    command.add_argument("--layers", nargs="+", help="whose weights (default: three searchable ones)")
    command = stage("statistics", "calibrate random subnets and learn to predict BatchNorm statistics")
    command.add_argument("--samples", type=_count, default=CalibrationSettings().samples, help="subnets")
    command.add_argument(
        "--images",
        type=_count,
        default=CalibrationSettings().images,
        help="augmented training images for each, in batches of 128",
    )
    _add_sharing(command)
    command = stage("sample", "measure subnets as delivered, for the accuracy predictor")
    command.add_argument(
        "--samples", type=_count_or_0, default=SamplingSettings().samples, help="random subnets"
    )
    command.add_argument(
        "--searched",
        type=_count_or_0,
        default=SamplingSettings().searched,
        help="subnets besides that the accuracy predictor of the last fit finds best",
    )
    command.add_argument(
        "--images", type=_count, default=SamplingSettings().images, help="held-out images that judge"
    )
    command.add_argument(
        "--views",
        type=float,
        default=USUAL_VIEWS,
        help="for each of these, views of held-out images, mirrored and shifted, that judge with them",
    )
    command.add_argument(
        "--drawn",
        type=_count_or_0,
        default=SamplingSettings().drawn,
        help="training images, others for each subnet, that the predictor is fitted by; 0: those that judge",
    )
    _add_sharing(command)
    command = stage("accuracies", "measure the float network and the uniform subnets on the test images")
    command.add_argument("--no-compile", action="store_true", help="do not use torch.compile")
    stage("fit", "fit the accuracy predictor to the samples", data=False)
    command = stage("unpack", "begin a run from a bundle, to measure its supernet anew", data=False)
    command.add_argument("--bundle", type=Path, required=True, help="folder of the bundle")
    command = stage("ranges", "measure what model.integer.onnx adds: ranges of sums and pooled tensors")
    command.add_argument("--subnets", type=_count, default=RangeSettings().subnets)
    command.add_argument("--images", type=_count, default=RangeSettings().images)
    command.add_argument("--bundle", type=Path, help="also add them to this bundle of the same supernet")
    command = stage("bundle", "write the bundle that serving needs", data=False)
    command.add_argument(
        "--out", type=_folder, required=True, help="folder of the bundle; its name is the bundle's"
    )
    command.add_argument("--data-description", required=True, help="one line for the card: which images")
    command.add_argument("--overwrite", action="store_true", help="replace another bundle in the same folder")
    command.add_argument("--page", type=Path, help="also write the card as a Markdown page")
    command.add_argument(
        "--calibration-images",
        type=_count_or_0,
        default=0,
        help="augmented training images to put into the bundle, to calibrate each subnet with them",
    )
    command.add_argument("--data", type=Path, help="where those images are")
    _add_split(command)
    return parser


def _add_split(command: argparse.ArgumentParser) -> None:
    """What every stage with images must be given alike."""
    command.add_argument(
        "--held-out", type=_count, default=5000, help="training images kept for choices and samples"
    )
    command.add_argument(
        "--no-mirror",
        action="store_true",
        help="never mirror images: for digits, signs, … that show another class in a mirror, or none",
    )


def _add_sharing(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--shard", type=_shard, help="RANK/COUNT: one of several processes (default: as torchrun says)"
    )
    command.add_argument("--no-compile", action="store_true", help="do not use torch.compile")


def _folder(text: str) -> Path:
    path = Path(text)
    there = next(folder for folder in (path, *path.parents) if folder.exists())
    if not there.is_dir():
        raise argparse.ArgumentTypeError(f"{there} is a file: choose another folder")
    return path


def _device(text: str) -> torch.device:
    try:
        torch.zeros((), device=text).item()
    except (AssertionError, ImportError, RuntimeError) as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no device that torch can compute with here: choose another, such as cpu"
        ) from error
    return torch.device(text)


def _shard(text: str) -> Shard:
    try:
        rank, count = (int(part) for part in text.split("/"))
        return Shard(rank, count)
    except (ValueError, TrainingError) as error:
        raise argparse.ArgumentTypeError(f"{text!r}: write RANK/COUNT, such as 0/2") from error
