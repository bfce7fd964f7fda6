"""Stage 1: the float network that the supernet starts from (He et al. 2016, with a one-cycle schedule)."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch.optim.swa_utils import update_bn
from tqdm import tqdm

from eqnet_core.errors import TrainingError
from eqnet_core.files import write_atomically
from eqnet_core.models import build_model
from eqnet_core.training.batches import Batches, ImageSizes, calibration_batches, check_mixed
from eqnet_core.training.data import ImageData
from eqnet_core.training.forward import Precision, training_forward
from eqnet_core.training.held_out import held_out_top1
from eqnet_core.training.losses import check_finite, check_guidance, guided_loss
from eqnet_core.training.run import Run
from eqnet_core.training.starting import NO_START, WEIGHTS, check_start_share, load_start_weights
from eqnet_core.training.teacher import load_teacher


@dataclass(frozen=True, kw_only=True)
class PretrainSettings:
    """SGD with Nesterov momentum; the rate rises linearly for `warmup` of the steps, then falls to 0.

    Attributes:
        teacher: what guides: the settings that a float network was trained with, or a list of those as
            "members"; None for labels alone.
        guidance: share of the teacher's logits in the loss, [0, 1]; the rest are labels.
        temperature: of the teacher's and the student's logits, as in `guided_loss`.
        cutmix: share of the batches that are mixed, [0, 1]. BatchNorm's statistics are then estimated anew
            in the end, from 4,096 augmented training images that are whole. The log has those of mixed ones.
        start: which network's weights it began with, and that one's settings; None for random ones.
        start_share: share of those weights in the result, [0, 1): they are interpolated once training has
            ended (WiSE-FT, Wortsman et al. 2022, arXiv:2109.01903), and BatchNorm's statistics estimated anew
            too. The log has the rest alone.
        precision: of convolutions and linear layers, the teacher's too; accuracies are those of float32.
    """

    architecture: str = "resnet20"
    epochs: int = 40
    batch_size: int = 128
    learning_rate: float = 0.2
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup: float = 0.2
    sizes: ImageSizes = field(default_factory=ImageSizes)
    teacher: Mapping[str, Any] | None = None
    guidance: float = 0.5
    temperature: float = 4.0
    cutmix: float = 0.0
    start: Mapping[str, Any] | None = None
    start_share: float = 0.0
    seed: int = 0
    compile: bool = True
    precision: Precision = Precision.FLOAT32
    checkpoint_seconds: float = 60.0

    def __post_init__(self) -> None:
        check_guidance(self.guidance, self.temperature)
        check_mixed(self.cutmix)
        check_start_share(self.start_share)


def pretrain(
    data: ImageData,
    folder: Path,
    settings: PretrainSettings,
    device: torch.device,
    *,
    start_run: Path | None = None,
    teacher_runs: Sequence[Path] = (),
) -> Path:
    """Train until done and write `float.safetensors`; goes on where a killed run stopped.

    With `start_run`, another run's folder or a bundle, it begins with those weights instead of random ones.
    With `teacher_runs`, folders of other runs, the float networks trained there guide this one: the mean of
    their logits.

    Returns:
        The path of the weights. The log has a line per epoch: loss, held-out accuracy, images/s.

    Raises:
        TrainingError: the folder holds a run with other settings; or the loss is not finite; or one of
            `teacher_runs` has no float network for these images; or `start_run` no network of this
            architecture; or a start share has nothing that the training began with.
    """
    teacher = None
    if teacher_runs:
        teacher, described = load_teacher(teacher_runs, data, settings.architecture)
        teacher = teacher.to(device)
        settings = replace(settings, teacher=described)
    torch.manual_seed(settings.seed)
    model = build_model(settings.architecture, len(data.classes))
    if start_run is not None:
        settings = replace(settings, start=load_start_weights(start_run, model, data, settings.architecture))
    elif settings.start_share:
        raise TrainingError(NO_START)
    started = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    model = model.to(device)
    run = Run(folder, settings, origins={"data": data.digest})
    result = folder / WEIGHTS
    # Weight decay on BatchNorm and biases only shrinks what has no scale to lose (Goyal et al. 2017).
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.SGD(
        [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=settings.learning_rate,
        momentum=settings.momentum,
        nesterov=True,
    )
    batches = Batches(
        data,
        batch_size=settings.batch_size,
        seed=settings.seed,
        device=device,
        sizes=settings.sizes,
        mixed=settings.cutmix,
    )
    total = settings.epochs * batches.steps_per_epoch
    start = 0
    if (state := run.resume()) is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]
    compute = partial(training_forward, compiled=settings.compile, precision=settings.precision)
    forward = compute(model)
    teach = None if teacher is None else compute(teacher)
    loss_sum, seen, began = 0.0, 0, time.perf_counter()
    progress = tqdm(range(start, total), initial=start, total=total, desc="float", unit="step")
    for step in progress:
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * one_cycle(step / total, settings.warmup)
        images, labels = batches.at(step)
        model.train()
        with torch.no_grad():
            taught = None if teach is None else teach(images)
        loss = guided_loss(
            forward(images), labels, taught, settings.guidance, temperature=settings.temperature
        )
        check_finite(loss, step)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()
        loss_sum, seen = loss_sum + loss.item() * len(labels), seen + len(labels)
        if (step + 1) % batches.steps_per_epoch == 0:
            epoch = (step + 1) // batches.steps_per_epoch
            speed = seen / (time.perf_counter() - began)
            accuracy = held_out_top1(model, data, device)
            run.log(
                epoch=epoch, loss=round(loss_sum / seen, 4), held_out=accuracy, images_per_s=round(speed, 1)
            )
            progress.set_postfix(epoch=epoch, loss=f"{loss_sum / seen:.3f}", held_out=f"{accuracy:.4f}")
            loss_sum, seen, began = 0.0, 0, time.perf_counter()
        if run.checkpoint_due(settings.checkpoint_seconds) or step + 1 == total:
            run.checkpoint(
                {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            )
    if settings.start_share:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.lerp_(started[name].to(device), settings.start_share)
    if settings.start_share or settings.cutmix:
        # Of mixed weights, BatchNorm's statistics are no mixture; and a bundle, to begin with, has none.
        # Mixed images have other ones than the whole images that are to be classified.
        update_bn(calibration_batches(data, images=4096, seed=settings.seed, index=0, device=device), model)
    write_atomically(result, save({k: v.contiguous().cpu() for k, v in model.state_dict().items()}))
    return result


def one_cycle(progress: float, warmup: float) -> float:
    """Factor on the peak learning rate at `progress` in [0, 1): up over `warmup`, down to 0 at 1."""
    return progress / warmup if progress < warmup else (1 - progress) / (1 - warmup)
