"""Stage 2: the supernet. Three subnets a step (sandwich rule), guided from wide to narrow."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from eqnet_core.calibration import calibrate_batch_norm, initialise_quantizers
from eqnet_core.errors import TrainingError
from eqnet_core.evaluation import top1
from eqnet_core.models import ARCHITECTURES, build_model
from eqnet_core.space import FORMS, SearchSpace, SubnetConfiguration
from eqnet_core.subnet import InputSpec
from eqnet_core.supernet import Supernet, trace_layers
from eqnet_core.training.batches import Batches, ImageSizes, calibration_batches, seeded
from eqnet_core.training.data import ImageData, normalise
from eqnet_core.training.losses import guided_loss, weight_distribution_loss
from eqnet_core.training.run import Run
from eqnet_core.training.subnets import sandwich
from eqnet_core.training.trained import save_trained

INITIALISATION_IMAGES = 256

WATCHED = ((4, 2), (4, 4), (4, 8), (0, 2))
"""Form index and uniform bits whose held-out accuracy is logged every epoch: per channel, and the hardest."""


@dataclass(frozen=True, kw_only=True)
class SupernetSettings:
    """Adam with a learning rate of its own for step sizes and zero-points; warm-up, then cosine to 0."""

    architecture: str = "resnet20"
    epochs: int = 30
    batch_size: int = 128
    learning_rate: float = 1e-3
    quantizer_learning_rate: float = 2e-3
    warmup_steps: int = 100
    guidance: float = 0.5
    skewness_weight: float = 1.0
    kurtosis_weight: float = 0.015
    sizes: ImageSizes = field(default_factory=ImageSizes)
    seed: int = 0
    compile: bool = True
    checkpoint_seconds: float = 60.0


def start_supernet(data: ImageData, float_weights: Path, architecture: str, device: torch.device) -> Supernet:
    """The supernet of a float network, with quantisers fitted to its weights and 256 training images."""
    model = build_model(architecture, len(data.classes))
    try:
        model.load_state_dict(load_file(float_weights))
    except (OSError, RuntimeError) as error:
        raise TrainingError(
            f"{float_weights} does not hold the weights of {architecture}: {error}"
        ) from error
    model = model.to(device)
    images = normalise(data.train.images[:INITIALISATION_IMAGES], data.mean, data.std).to(device)
    supernet = Supernet(
        architecture=architecture,
        space=SearchSpace(trace_layers(model, images)),
        input=input_spec(data, architecture),
        classes=data.classes,
        float_model=model,
    ).to(device)
    initialise_quantizers(supernet, images)
    return supernet


def input_spec(data: ImageData, architecture: str) -> InputSpec:
    """What one image must look like, with the data set's normalisation."""
    return InputSpec(shape=ARCHITECTURES[architecture].input_shape, mean=data.mean, std=data.std)


def train_supernet(
    data: ImageData, float_weights: Path, folder: Path, settings: SupernetSettings, device: torch.device
) -> Path:
    """Train until done and write `supernet.safetensors`; goes on where a killed run stopped.

    Returns:
        The path of the tensors (`Supernet.tensors`). The log has a line per epoch: losses and training
        accuracies of the highest, random and lowest subnets, WDR, held-out accuracies, images/s.

    Raises:
        TrainingError: no float weights, or the folder holds a run with other settings.
    """
    run = Run(folder, settings)
    supernet = start_supernet(data, float_weights, settings.architecture, device)
    step_sizes = [p for n, p in supernet.named_parameters() if "_quantizer." in n]
    others = [p for n, p in supernet.named_parameters() if "_quantizer." not in n]
    optimizer = torch.optim.Adam(
        [{"params": others}, {"params": step_sizes}], lr=settings.learning_rate, fused=True
    )
    batches = Batches(
        data, batch_size=settings.batch_size, seed=settings.seed, device=device, sizes=settings.sizes
    )
    total = settings.epochs * batches.steps_per_epoch
    start = 0
    if (state := run.resume()) is not None:
        supernet.load_state_dict(state["supernet"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]
    forward = torch.compile(supernet.model, dynamic=False) if settings.compile else supernet.model
    totals = torch.zeros(7, dtype=torch.float64)
    steps_seen, began = 0, time.perf_counter()
    progress = tqdm(range(start, total), initial=start, total=total, desc="supernet", unit="step")
    for step in progress:
        factor = warmup_cosine(step, total, settings.warmup_steps)
        optimizer.param_groups[0]["lr"] = settings.learning_rate * factor
        optimizer.param_groups[1]["lr"] = settings.quantizer_learning_rate * factor
        images, labels = batches.at(step)
        subnets = sandwich(supernet.space, seeded(settings.seed, "subnets", step))
        supernet.train()
        optimizer.zero_grad(set_to_none=True)
        measured = []
        teacher: Tensor | None = None
        # Backward after each forward: only one subnet's activations are alive, and `activate` may then
        # change the tables that this backward needed.
        for subnet in subnets:
            supernet.activate(subnet)
            logits = forward(images)
            loss = (
                functional.cross_entropy(logits, labels)
                if teacher is None
                else guided_loss(logits, labels, teacher, settings.guidance)
            )
            torch.autograd.backward(loss)
            teacher = logits.detach()
            measured += [loss.detach(), (teacher.argmax(1) == labels).float().mean()]
        regularisation = weight_distribution_loss(
            [layer.weight for layer in supernet.layers],
            skewness_weight=settings.skewness_weight,
            kurtosis_weight=settings.kurtosis_weight,
        )
        torch.autograd.backward(regularisation)
        optimizer.step()
        totals += torch.stack([*measured, regularisation.detach()]).double().cpu()
        steps_seen += 1
        if (step + 1) % batches.steps_per_epoch == 0:
            means = [round(float(value), 4) for value in totals / steps_seen]
            speed = steps_seen * settings.batch_size / (time.perf_counter() - began)
            accuracies = held_out_accuracies(
                supernet,
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
        if run.checkpoint_due(settings.checkpoint_seconds) or step + 1 == total:
            run.checkpoint(
                {"supernet": supernet.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            )
    return save_trained(folder, supernet)


def warmup_cosine(step: int, total: int, warmup: int) -> float:
    """Factor on the peak learning rate: linear to 1 over `warmup` steps, then half a cosine to 0."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


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
