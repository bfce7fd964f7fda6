"""Stage 2: the supernet. Three subnets a step (sandwich rule), guided from wide to narrow."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from eqnet_core.calibration import calibrate_batch_norm, initialise_quantizers
from eqnet_core.errors import TrainingError
from eqnet_core.evaluation import top1
from eqnet_core.models import ARCHITECTURES, build_model
from eqnet_core.predictor import AccuracyPredictor
from eqnet_core.space import FORMS, SearchSpace, SubnetConfiguration
from eqnet_core.subnet import InputSpec
from eqnet_core.supernet import Supernet, trace_layers
from eqnet_core.training.batches import Batches, ImageSizes, calibration_batches, seeded
from eqnet_core.training.data import ImageData, normalise
from eqnet_core.training.losses import guided_loss, weight_distribution_loss
from eqnet_core.training.run import Run, check_origins, load_tensors, tensors_digest
from eqnet_core.training.subnets import RandomBits, sandwich
from eqnet_core.training.trained import load_trained, save_trained, supernet_digest

INITIALISATION_IMAGES = 256

WATCHED = ((4, 2), (4, 4), (4, 8), (0, 2))
"""Form index and uniform bits whose held-out accuracy is logged every epoch: per channel, and the hardest."""


@dataclass(frozen=True, kw_only=True)
class SupernetSettings:
    """Adam with learning rates of their own for step sizes and zero-points; warm-up, plateau, cosine to 0.

    Attributes:
        epochs: over the training images, all sizes together. A run with a plateau can be given more later.
        cooldown: share of the steps, the last ones, over which the rates fall to 0, (0, 1]. Below 1 there is
            a plateau before them (Hägele et al. 2024, arXiv:2405.18392).
        guidance: share of the next wider subnet's logits in a subnet's loss, [0, 1]; the rest are labels.
        label_smoothing: of the cross entropy, [0, 1).
        float_teacher: the float network guides the highest subnet, as that guides the others.
        averaging: decay of the exponential moving average that becomes the result, [0, 1); 0 takes the last.
        random_bits: how the bits of a step's random subnet are drawn.
        start: which trained supernet it began with, and that one's settings; None for the float network.
    """

    architecture: str = "resnet20"
    epochs: int = 30
    batch_size: int = 128
    learning_rate: float = 1e-3
    step_size_learning_rate: float = 2e-3
    zero_point_learning_rate: float = 2e-3
    warmup_steps: int = 100
    cooldown: float = 1.0
    guidance: float = 0.5
    label_smoothing: float = 0.0
    float_teacher: bool = False
    averaging: float = 0.0
    random_bits: RandomBits = RandomBits.INDEPENDENT
    start: Mapping[str, Any] | None = None
    skewness_weight: float = 1.0
    kurtosis_weight: float = 0.015
    sizes: ImageSizes = field(default_factory=ImageSizes)
    seed: int = 0
    compile: bool = True
    checkpoint_seconds: float = 60.0

    def __post_init__(self) -> None:
        if not 0 < self.cooldown <= 1:
            raise TrainingError(f"cooldown {self.cooldown} is a share of the steps: above 0, at most 1")
        if not 0 <= self.averaging < 1:
            raise TrainingError(f"averaging {self.averaging} is a decay: 0 for none, below 1, such as 0.998")


def start_supernet(
    data: ImageData,
    float_weights: Path,
    architecture: str,
    device: torch.device,
    started: Supernet | None = None,
) -> Supernet:
    """The supernet of a float network, with quantisers fitted to its weights and 256 training images.

    With `started`, its weights and quantisers instead, in a supernet of its own.

    Raises:
        TrainingError: the float weights, or `started`, are of another network.
    """
    model = float_network(data, float_weights, architecture)
    model = model.to(device)
    images = normalise(data.train.images[:INITIALISATION_IMAGES], data.mean, data.std).to(device)
    supernet = Supernet(
        architecture=architecture,
        space=SearchSpace(trace_layers(model, images)),
        input=input_spec(data, architecture),
        classes=data.classes,
        float_model=model,
    ).to(device)
    if started is None:
        initialise_quantizers(supernet, images)
    elif (started.space, started.classes) != (supernet.space, supernet.classes):
        raise TrainingError("the supernet to begin with has other layers or classes: choose another run")
    else:
        supernet.load_tensors(started.tensors())
    return supernet


def describe_start(run: Path, supernet: Supernet) -> dict[str, Any]:
    """Digest of the supernet trained in `run`, and the settings it was trained with.

    Raises:
        TrainingError: the folder does not say how it was trained.
    """
    path = run / "supernet" / "settings.json"
    try:
        settings = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise TrainingError(f"{path} does not say how the supernet there was trained: {error}") from error
    return {"supernet": supernet_digest(supernet), **settings}


def load_searcher(run: Path | None, supernet: Supernet | None) -> AccuracyPredictor:
    """The accuracy predictor of `run`, fitted to samples of its `supernet`.

    Raises:
        TrainingError: no run, no predictor in it, or one of another supernet.
    """
    if run is None or supernet is None:
        raise TrainingError(
            "random bits can only be searched with an accuracy predictor: --start a run with one"
        )
    check_origins(run / "prediction", {"supernet": supernet_digest(supernet)})
    tensors = load_tensors(run / "prediction" / "predictor.npz", stage="fit")
    return AccuracyPredictor.from_tensors(tensors)


def input_spec(data: ImageData, architecture: str) -> InputSpec:
    """What one image must look like, with the data set's normalisation."""
    return InputSpec(shape=ARCHITECTURES[architecture].input_shape, mean=data.mean, std=data.std)


def train_supernet(
    data: ImageData,
    float_weights: Path,
    folder: Path,
    settings: SupernetSettings,
    device: torch.device,
    *,
    start_run: Path | None = None,
) -> Path:
    """Train until done and write `supernet.safetensors`; goes on where a killed run stopped.

    With more epochs than the folder's run had, it goes on from the end of that run's plateau, and ends as if
    it had been given them at first. With `start_run`, another run's folder, it begins with the supernet
    trained there instead of quantisers fitted to the float network, and searches with its accuracy predictor.

    Returns:
        The path of the tensors (`Supernet.tensors`). The log has a line per epoch: losses and training
        accuracies of the highest, random and lowest subnets, WDR, held-out accuracies, images/s.

    Raises:
        TrainingError: no float weights, or the folder holds a run with other settings, or with fewer epochs
            whose rates had begun to fall without a plateau; or `start_run` lacks what is taken from it.
    """
    started = predictor = None
    if start_run is not None:
        started = load_trained(start_run / "supernet")
        settings = replace(settings, start=describe_start(start_run, started))
    if settings.random_bits is RandomBits.SEARCHED:
        predictor = load_searcher(start_run, started)
        # Fitted anew between a kill and its going on, it would search for other subnets.
        digest = tensors_digest(predictor.to_tensors())
        settings = replace(settings, start={**(settings.start or {}), "predictor": digest})
    run = Run(folder, settings, growing=("epochs",))
    extend(run, settings)
    supernet = start_supernet(data, float_weights, settings.architecture, device, started)
    teacher = float_network(data, float_weights, supernet.architecture).to(device)
    moving_average = get_ema_multi_avg_fn(settings.averaging)  # type: ignore[no-untyped-call]
    averaged = AveragedModel(supernet, multi_avg_fn=moving_average)
    trained = cast(Supernet, averaged.module) if settings.averaging else supernet
    optimizer = supernet_optimizer(supernet, settings)
    peaks = [group["lr"] for group in optimizer.param_groups]
    batches = Batches(
        data, batch_size=settings.batch_size, seed=settings.seed, device=device, sizes=settings.sizes
    )
    total = settings.epochs * batches.steps_per_epoch
    plateau_end = total - round(settings.cooldown * total)
    start = 0
    if (state := run.resume()) is not None:
        supernet.load_state_dict(state["supernet"])
        averaged.load_state_dict(state["averaged"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]
    forward = torch.compile(supernet.model, dynamic=False) if settings.compile else supernet.model
    guide = torch.compile(teacher, dynamic=False) if settings.compile else teacher
    totals = torch.zeros(7, dtype=torch.float64, device=device)
    steps_seen, began = 0, time.perf_counter()
    progress = tqdm(range(start, total), initial=start, total=total, desc="supernet", unit="step")
    for step in progress:
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * rate_factor(
                step, total, warmup=settings.warmup_steps, plateau_end=plateau_end
            )
        images, labels = batches.at(step)
        generator = seeded(settings.seed, "subnets", step)
        subnets = sandwich(supernet.space, generator, settings.random_bits, predictor)
        supernet.train()
        with torch.no_grad():
            guidance = guide(images) if settings.float_teacher else None
        optimizer.zero_grad(set_to_none=True)
        totals += backward_through(supernet, forward, images, labels, subnets, guidance, settings)
        optimizer.step()
        if settings.averaging:
            averaged.update_parameters(supernet)
        steps_seen += 1
        if (step + 1) % batches.steps_per_epoch == 0:
            means = [round(float(value), 4) for value in totals.cpu() / steps_seen]
            speed = steps_seen * settings.batch_size / (time.perf_counter() - began)
            accuracies = held_out_accuracies(
                trained,
                data,
                [supernet.space.uniform(FORMS[form], bits) for form, bits in WATCHED],
                seed=settings.seed,
                device=device,
                limit=1000,
            )
            run.log(
                epoch=(step + 1) // batches.steps_per_epoch,
                loss={"H": means[0], "R": means[2], "L": means[4], "WDR": means[6]},
                accuracy={"H": means[1], "R": means[3], "L": means[5]},
                held_out=accuracies,
                images_per_s=round(speed, 1),
            )
            progress.set_postfix(H=means[1], R=means[3], L=means[5])
            totals.zero_()
            steps_seen, began = 0, time.perf_counter()
        if run.checkpoint_due(settings.checkpoint_seconds) or step + 1 in (plateau_end, total):
            run.checkpoint(
                {
                    "supernet": supernet.state_dict(),
                    "averaged": averaged.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "step": step + 1,
                }
            )
        if step + 1 == plateau_end:
            run.keep_plateau()
    return save_trained(folder, trained)


def float_network(data: ImageData, float_weights: Path, architecture: str) -> nn.Module:
    """The pre-trained network, in training mode: its BatchNorm then fits images of any size.

    Raises:
        TrainingError: the file does not hold its weights.
    """
    model = build_model(architecture, len(data.classes))
    try:
        model.load_state_dict(load_file(float_weights))
    except (OSError, RuntimeError) as error:
        raise TrainingError(
            f"{float_weights} does not hold the weights of {architecture}: {error}"
        ) from error
    return model.train()


def supernet_optimizer(supernet: Supernet, settings: SupernetSettings) -> torch.optim.Adam:
    """Adam with a group each for weights, step sizes and zero-points."""
    named = list(supernet.named_parameters())
    step_sizes = [p for n, p in named if "_quantizer.log_step" in n]
    zero_points = [p for n, p in named if "_quantizer.zero_point" in n]
    weights = [p for n, p in named if "_quantizer." not in n]
    return torch.optim.Adam(
        [
            {"params": weights, "lr": settings.learning_rate},
            {"params": step_sizes, "lr": settings.step_size_learning_rate},
            {"params": zero_points, "lr": settings.zero_point_learning_rate},
        ],
        fused=True,
    )


def backward_through(
    supernet: Supernet,
    forward: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    subnets: Sequence[SubnetConfiguration],
    guidance: Tensor | None,
    settings: SupernetSettings,
) -> Tensor:
    """Add the gradients of one step: each subnet guided by the one before it, and the weights' distribution.

    Args:
        supernet: whose parameters get the gradients.
        forward: computes its logits, compiled or not.
        images: normalised float32 [N, C, H, W].
        labels: int64 [N].
        subnets: from wide to narrow.
        guidance: logits [N, classes] for the first subnet, or None for labels alone.
        settings: weights of the losses.

    Returns:
        float64 [2 S + 1]: loss and accuracy of each of the S subnets, then the regularisation.
    """
    measured = []
    # Backward after each forward: only one subnet's activations are alive, and `activate` may then
    # change the tables that this backward needed.
    for subnet in subnets:
        supernet.activate(subnet)
        logits = forward(images)
        loss = guided_loss(
            logits, labels, guidance, settings.guidance, label_smoothing=settings.label_smoothing
        )
        torch.autograd.backward(loss)
        guidance = logits.detach()
        measured += [loss.detach(), (guidance.argmax(1) == labels).float().mean()]
    regularisation = weight_distribution_loss(
        [layer.weight for layer in supernet.layers],
        skewness_weight=settings.skewness_weight,
        kurtosis_weight=settings.kurtosis_weight,
    )
    torch.autograd.backward(regularisation)
    return torch.stack([*measured, regularisation.detach()]).double()


def extend(run: Run, settings: SupernetSettings) -> None:
    """Give the folder's run the epochs of `settings`, where it had fewer.

    Raises:
        TrainingError: it had more, or it has no plateau to go on from.
    """
    if (before := run.before["epochs"]) == settings.epochs:
        return
    if before > settings.epochs or not run.plateau_path.exists():
        raise TrainingError(
            f"{run.folder} holds a run of {before} epochs: repeat that to go on, or choose another folder. "
            "More epochs can be added to a run with --cooldown below 1, once its plateau is over"
        )
    run.extend()


def rate_factor(step: int, total: int, *, warmup: int, plateau_end: int) -> float:
    """Factor on the peak learning rate: linear to 1 over `warmup` steps, 1 to `plateau_end`, cosine to 0."""
    if step < warmup:
        return (step + 1) / warmup
    falling_from = max(warmup, plateau_end)
    return 0.5 * (1 + math.cos(math.pi * max(0, step - falling_from) / max(1, total - falling_from)))


def held_out_accuracies(
    supernet: Supernet,
    data: ImageData,
    configurations: Sequence[SubnetConfiguration],
    *,
    seed: int,
    device: torch.device,
    limit: int,
) -> dict[str, float]:
    """Top-1 on the first `limit` held-out images by "form @ average bits", BatchNorm calibrated for each.

    The supernet's BatchNorm statistics and mode are as before afterwards.
    """
    statistics = supernet.statistics()
    calibration = calibration_batches(data, images=1024, seed=seed, index=0, device=device)
    images = normalise(data.held_out.images[:limit], data.mean, data.std).to(device)
    labels = data.held_out.labels[:limit].to(device)
    found = {}
    for configuration in configurations:
        supernet.activate(configuration)
        calibrate_batch_norm(supernet, calibration)
        bits = sum(configuration.weight_bits) / len(configuration.weight_bits)
        found[f"{configuration.form.name}@{bits:g}"] = round(top1(supernet, images, labels), 4)
    supernet.set_statistics(statistics)
    return found
