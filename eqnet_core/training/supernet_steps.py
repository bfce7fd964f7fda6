"""A step of a supernet's training: three subnets (sandwich rule), guided from wide to narrow."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, cast

import torch
from threadpoolctl import ThreadpoolController
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from eqnet_core.predictor import AccuracyPredictor
from eqnet_core.space import SubnetConfiguration
from eqnet_core.supernet import Supernet
from eqnet_core.training.batches import seeded
from eqnet_core.training.forward import training_forward
from eqnet_core.training.losses import guided_loss, weight_distribution_loss
from eqnet_core.training.sharpness import uphill
from eqnet_core.training.subnets import sandwich
from eqnet_core.training.supernet_settings import SupernetSettings


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
        self._weights: list[nn.Parameter] = list(self._optimizer.param_groups[0]["params"])
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
            float64 [7]: as `backward_through`, of the highest, a random and the lowest subnet; with
            `sharpness`, where their gradients were taken.
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
        place: AbstractContextManager[None] = nullcontext()
        backward = partial(
            backward_through,
            self._supernet,
            self._forward,
            images,
            labels,
            guidance=guidance,
            settings=settings,
        )
        if settings.sharpness:
            self._optimizer.zero_grad(set_to_none=True)
            backward(subnets[:1])
            place = uphill(self._weights, settings.sharpness)
        with place:
            self._optimizer.zero_grad(set_to_none=True)
            measured = backward(subnets)
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
        subnets: from wide to narrow, at most as many as `settings` weighs.
        guidance: logits [N, classes] for the first subnet, or None for labels alone.
        settings: weights of the losses.

    Returns:
        float64 [2 S + 1]: loss and accuracy of each of the S subnets, then the regularisation.
    """
    measured = []
    largest = labels if labels.ndim == 1 else labels.argmax(1)
    # Backward after each forward: only one subnet's activations are alive, and `activate` may then
    # change the tables that this backward needed.
    for subnet, weight in zip(subnets, settings.subnet_weights, strict=False):
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


def rate_factor(step: int, total: int, *, warmup: int, plateau_end: int) -> float:
    """Factor on the peak learning rate: linear to 1 over `warmup` steps, 1 to `plateau_end`, cosine to 0."""
    if step < warmup:
        return (step + 1) / warmup
    falling_from = max(warmup, plateau_end)
    return 0.5 * (1 + math.cos(math.pi * max(0, step - falling_from) / max(1, total - falling_from)))
