"""Stage 2: the supernet. Three subnets a step (sandwich rule), guided from wide to narrow."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from threadpoolctl import ThreadpoolController
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from eqnet_core.errors import TrainingError
from eqnet_core.predictor import AccuracyPredictor
from eqnet_core.space import BIT_WIDTHS, FIXED_BITS, FORMS, SubnetConfiguration
from eqnet_core.supernet import Supernet
from eqnet_core.training.batches import Batches, ImageSizes, check_mixed, seeded
from eqnet_core.training.data import ImageData
from eqnet_core.training.forward import Precision, training_forward
from eqnet_core.training.held_out import held_out_accuracies
from eqnet_core.training.losses import check_temperature, guided_loss, weight_distribution_loss
from eqnet_core.training.run import Run, check_origins, tensors_digest
from eqnet_core.training.starting import (
    NO_START,
    check_split,
    check_start_share,
    float_digest,
    float_network,
    load_searcher,
    load_start,
    start_supernet,
)
from eqnet_core.training.subnets import RandomBits, sandwich
from eqnet_core.training.teacher import load_teacher
from eqnet_core.training.trained import TENSORS, save_trained

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
        float_teacher: a float network guides the highest subnet, as that guides the others.
        teacher: which float network of another run, and the settings it was trained with, or a list of those
            as "members"; None for the one that the supernet is made from.
        temperature: of all guidance, as in `guided_loss`: one for all, as it decides how much each subnet's
            gradient weighs in the weights that they share.
        subnet_weights: of the losses of the highest, the random and the lowest subnet, at least 0 and not all
            of them 0. They decide which bit-widths the shared weights suit; the regularisation of weights is
            not among them, so keep their sum near 3.
        cutmix: share of the batches that are mixed, [0, 1]; their accuracy is that of the larger part.
        averaging: decay of the exponential moving average that becomes the result, [0, 1); 0 takes the last.
        random_bits: how the bits of a step's random subnet are drawn.
        start: which trained supernet it began with, and that one's settings; None for the float network.
        start_share: share of what it began with in the result, [0, 1): all tensors are interpolated once
            training has ended (WiSE-FT, Wortsman et al. 2022, arXiv:2109.01903). The log has the rest alone.
        precision: of convolutions and linear layers, the teacher's too; accuracies are those of float32.
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
    teacher: Mapping[str, Any] | None = None
    temperature: float = 1.0
    subnet_weights: tuple[float, float, float] = (1.0, 1.0, 1.0)
    cutmix: float = 0.0
    averaging: float = 0.0
    random_bits: RandomBits = RandomBits.INDEPENDENT
    start: Mapping[str, Any] | None = None
    start_share: float = 0.0
    skewness_weight: float = 1.0
    kurtosis_weight: float = 0.015
    sizes: ImageSizes = field(default_factory=ImageSizes)
    seed: int = 0
    compile: bool = True
    precision: Precision = Precision.FLOAT32
    checkpoint_seconds: float = 60.0

    def __post_init__(self) -> None:
        if not 0 < self.cooldown <= 1:
            raise TrainingError(f"cooldown {self.cooldown} is a share of the steps: above 0, at most 1")
        if not 0 <= self.averaging < 1:
            raise TrainingError(f"averaging {self.averaging} is a decay: 0 for none, below 1, such as 0.998")
        check_start_share(self.start_share)
        check_temperature(self.temperature)
        check_mixed(self.cutmix)
        if min(self.subnet_weights) < 0 or not 0 < sum(self.subnet_weights) < math.inf:
            raise TrainingError(
                f"subnet weights {self.subnet_weights} are of the losses of the highest, the random and the "
                "lowest subnet: at least 0, and one of them above"
            )


def train_supernet(
    data: ImageData,
    float_weights: Path,
    folder: Path,
    settings: SupernetSettings,
    device: torch.device,
    *,
    start_run: Path | None = None,
    teacher_runs: Sequence[Path] = (),
) -> Path:
    """Train until done and write `supernet.safetensors`; goes on where a killed run stopped.

    With more epochs than the folder's run had, it goes on from the end of that run's plateau, and ends as if
    it had been given them at first. With `start_run`, another run's folder or a bundle, it begins with the
    supernet trained there instead of quantisers fitted to the float network, and searches with its accuracy
    predictor. With `teacher_runs`, folders of other runs or this one's, the mean of the logits of the float
    networks trained there guides the highest subnet.

    Returns:
        The path of the tensors (`Supernet.tensors`). The log has a line per epoch: losses and training
        accuracies of the highest, random and lowest subnets, WDR, held-out accuracies, images/s.

    Raises:
        TrainingError: no float weights, or the folder holds a run with other settings, or with fewer epochs
            whose rates had begun to fall without a plateau; or `start_run` or one of `teacher_runs` lacks
            what is taken from it.
    """
    # The highest bits are as good as the float network lets them be: what it saw must not be held out here.
    check_origins(float_weights.parent, {"data": data.digest})
    started = predictor = None
    if start_run is not None:
        started, described = load_start(start_run)
        settings = replace(settings, start=described)
    elif settings.start_share:
        raise TrainingError(NO_START)
    if settings.random_bits is RandomBits.SEARCHED:
        predictor = load_searcher(start_run, started)
        # Fitted anew between a kill and its going on, it would search for other subnets.
        digest = tensors_digest(predictor.to_tensors())
        settings = replace(settings, start={**(settings.start or {}), "predictor": digest})
    supernet = start_supernet(data, float_weights, settings.architecture, device, started)
    check_split(settings.start or {}, data)
    origins = {"data": data.digest, "float": float_digest(float_weights)}
    teacher = None
    if teacher_runs:
        teacher, described = load_teacher(teacher_runs, data, settings.architecture)
        teacher = teacher.to(device)
        own = described.get("float") == origins["float"]
        settings = replace(settings, float_teacher=True, teacher=None if own else described)
    elif settings.float_teacher:
        teacher = float_network(data, float_weights, settings.architecture).to(device)
    run = Run(folder, settings, growing=("epochs",), origins=origins)
    extend(run, settings)
    batches = Batches(
        data,
        batch_size=settings.batch_size,
        seed=settings.seed,
        device=device,
        sizes=settings.sizes,
        mixed=settings.cutmix,
    )
    steps = SupernetSteps(
        supernet, settings, settings.epochs * batches.steps_per_epoch, teacher=teacher, predictor=predictor
    )
    start = 0
    if (state := run.resume()) is not None:
        steps.load(state)
        start = state["step"]
        if start == steps.plateau_end:  # killed before it was kept
            run.keep_plateau()
    totals = torch.zeros(7, dtype=torch.float64, device=device)
    seen, began = 0, time.perf_counter()
    progress = tqdm(range(start, steps.total), initial=start, total=steps.total, desc="supernet", unit="step")
    for step in progress:
        totals += steps.take(step, *batches.at(step))
        seen += 1
        if (step + 1) % batches.steps_per_epoch == 0:
            means = [round(float(value), 4) for value in totals.cpu() / seen]
            speed = seen * settings.batch_size / (time.perf_counter() - began)
            accuracies = held_out_accuracies(
                steps.result,
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
            seen, began = 0, time.perf_counter()
        if run.checkpoint_due(settings.checkpoint_seconds) or step + 1 in (steps.plateau_end, steps.total):
            run.checkpoint({**steps.state(), "step": step + 1})
        if step + 1 == steps.plateau_end:
            run.keep_plateau()
    result = steps.result
    if started is not None and settings.start_share:
        before, after, share = started.tensors(), result.tensors(), settings.start_share
        result.load_tensors(
            {name: np.float32(share) * before[name] + np.float32(1 - share) * after[name] for name in after}
        )
    set_untrained_steps(result)
    return save_trained(folder, result)


@torch.no_grad()
def set_untrained_steps(supernet: Supernet) -> None:
    """Give the first and last layer their steps for signed activations: training only has them at 8 bits.

    A signed runtime has 7 bits for an input that is never negative: the same range in half as many codes, so
    twice the step size and half the zero-point.
    """
    full, signed = BIT_WIDTHS.index(FIXED_BITS), BIT_WIDTHS.index(FIXED_BITS - 1)
    for layer in supernet.layers:
        if not layer.spec.searchable and layer.spec.nonnegative:
            quantizer = layer.activation_quantizer
            quantizer.log_step[:, signed] = quantizer.log_step[:, full] + math.log(2)
            quantizer.zero_point[:, signed] = quantizer.zero_point[:, full] / 2


class SupernetSteps:
    """A supernet in training: its optimiser and moving average, and what one step does to them."""

    def __init__(
        self,
        supernet: Supernet,
        settings: SupernetSettings,
        total: int,
        *,
        teacher: nn.Module | None = None,
        predictor: AccuracyPredictor | None = None,
    ) -> None:
        """Nothing has been taken yet of `total` steps.

        Args:
            supernet: whose parameters are trained, in place.
            settings: rates, losses and averaging.
            total: number of steps, over which the rates rise, stay and fall.
            teacher: guides the highest subnet, if there is one.
            predictor: what random subnets are searched with, if they are.
        """
        self.total = total
        self.plateau_end = total - round(settings.cooldown * total)
        self._supernet = supernet
        self._settings = settings
        self._predictor = predictor
        self._optimizer = supernet_optimizer(supernet, settings)
        self._peaks = [group["lr"] for group in self._optimizer.param_groups]
        moving_average = get_ema_multi_avg_fn(settings.averaging)  # type: ignore[no-untyped-call]
        self._averaged = AveragedModel(supernet, multi_avg_fn=moving_average)
        # The small products of a search wait for each other on two kinds of threads: torch's still spin.
        self._blas = ThreadpoolController()
        compute = partial(training_forward, compiled=settings.compile, precision=settings.precision)
        self._forward = compute(supernet.model)
        self._teacher = None if teacher is None else compute(teacher)

    @property
    def result(self) -> Supernet:
        """What the training so far has made: the moving average, or the last weights without one."""
        return cast(Supernet, self._averaged.module) if self._settings.averaging else self._supernet

    def state(self) -> dict[str, Any]:
        """Everything that `load` needs to go on from here."""
        return {
            "supernet": self._supernet.state_dict(),
            "averaged": self._averaged.state_dict(),
            "optimizer": self._optimizer.state_dict(),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned."""
        self._supernet.load_state_dict(state["supernet"])
        self._averaged.load_state_dict(state["averaged"])
        self._optimizer.load_state_dict(state["optimizer"])

    def take(self, step: int, images: Tensor, labels: Tensor) -> Tensor:
        """Train on a batch: float32 [N, C, H, W] normalised, labels as of `Batches`.

        Returns:
            float64 [7]: as `backward_through`, of the highest, a random and the lowest subnet.
        """
        settings = self._settings
        factor = rate_factor(step, self.total, warmup=settings.warmup_steps, plateau_end=self.plateau_end)
        for group, peak in zip(self._optimizer.param_groups, self._peaks, strict=True):
            group["lr"] = peak * factor
        generator = seeded(settings.seed, "subnets", step)
        with self._blas.limit(limits=1, user_api="blas"):
            subnets = sandwich(self._supernet.space, generator, settings.random_bits, self._predictor)
        self._supernet.train()
        with torch.no_grad():
            guidance = None if self._teacher is None else self._teacher(images)
        self._optimizer.zero_grad(set_to_none=True)
        measured = backward_through(
            self._supernet, self._forward, images, labels, subnets, guidance, settings
        )
        self._optimizer.step()
        if settings.averaging:
            self._averaged.update_parameters(self._supernet)
        return measured


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
        labels: int64 [N], or float32 [N, classes]: shares of mixed images.
        subnets: from wide to narrow.
        guidance: logits [N, classes] for the first subnet, or None for labels alone.
        settings: weights of the losses, of as many subnets.

    Returns:
        float64 [2 S + 1]: loss and accuracy of each of the S subnets, then the regularisation.
    """
    measured = []
    largest = labels if labels.ndim == 1 else labels.argmax(1)
    # Backward after each forward: only one subnet's activations are alive, and `activate` may then
    # change the tables that this backward needed.
    for subnet, weight in zip(subnets, settings.subnet_weights, strict=True):
        supernet.activate(subnet)
        logits = forward(images)
        loss = guided_loss(
            logits,
            labels,
            guidance,
            settings.guidance,
            label_smoothing=settings.label_smoothing,
            temperature=settings.temperature,
        )
        torch.autograd.backward(weight * loss)
        guidance = logits.detach()
        measured += [loss.detach(), (guidance.argmax(1) == largest).float().mean()]
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
    (run.folder / TENSORS).unlink(
        missing_ok=True
    )  # those of the shorter run are not what the settings will say
    run.extend()


def rate_factor(step: int, total: int, *, warmup: int, plateau_end: int) -> float:
    """Factor on the peak learning rate: linear to 1 over `warmup` steps, 1 to `plateau_end`, cosine to 0."""
    if step < warmup:
        return (step + 1) / warmup
    falling_from = max(warmup, plateau_end)
    return 0.5 * (1 + math.cos(math.pi * max(0, step - falling_from) / max(1, total - falling_from)))
