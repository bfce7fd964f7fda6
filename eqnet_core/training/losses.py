"""The two losses of EQ-Net: weight distribution regularisation and group progressive guidance."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from eqnet_core.errors import TrainingError

UNIFORM_KURTOSIS = 1.8
"""Kurtosis of a uniform distribution, the one that loses least to uniform quantisation."""


def skewness_and_kurtosis(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Third and fourth standardised moments [] of all elements of `weight` (EQ-Net Eq. 4, 5)."""
    centred = weight.flatten() - weight.mean()
    squared = centred.square()
    variance = squared.mean()
    skewness = (squared * centred).mean() / variance.pow(1.5)
    return skewness, squared.square().mean() / variance.square()


def weight_distribution_loss(
    weights: Sequence[Tensor], *, skewness_weight: float = 1.0, kurtosis_weight: float = 0.015
) -> Tensor:
    """WDR (Eq. 6): mean over layers of c_s * skew^2 + c_k * (kurt - 1.8)^2. Scalar."""
    terms = []
    for weight in weights:
        skewness, kurtosis = skewness_and_kurtosis(weight)
        terms.append(
            skewness_weight * skewness.square() + kurtosis_weight * (kurtosis - UNIFORM_KURTOSIS).square()
        )
    return torch.stack(terms).mean()


def check_guidance(guidance: float, temperature: float) -> None:
    """Refuse what `guided_loss` cannot weigh or divide with.

    Raises:
        TrainingError: guidance outside [0, 1]; a temperature that is not above 0, or not finite.
    """
    if not 0 <= guidance <= 1:
        raise TrainingError(f"guidance {guidance} is a share of the loss: in [0, 1], such as 0.5")
    if not 0 < temperature < math.inf:
        raise TrainingError(f"temperature {temperature} divides logits: above 0, such as 4")


def check_finite(losses: Tensor, step: int) -> None:
    """Refuse to go on, or to keep anything, once a loss is infinite or no number: it stays so.

    Args:
        losses: of any shape, such as sums since the last look.
        step: of which they are the latest.

    Raises:
        TrainingError: one is not finite.
    """
    if not losses.isfinite().all():
        raise TrainingError(
            f"the loss is not finite at step {step}: begin again in another run, with a lower --learning-rate"
        )


def guided_loss(
    logits: Tensor,
    labels: Tensor,
    teacher_logits: Tensor | None,
    guidance: float = 0.5,
    *,
    label_smoothing: float = 0.0,
    temperature: float = 1.0,
) -> Tensor:
    """One term of GPG (Eq. 7): k * T^2 * KL(teacher || student) + (1 - k) * cross entropy.

    Args:
        logits: [N, classes] of the student.
        labels: int64 [N], or float32 [N, classes]: the share of each class in an image.
        teacher_logits: [N, classes] of the next wider subnet, detached; None for cross entropy alone.
        guidance: k in [0, 1].
        label_smoothing: of the cross entropy, [0, 1).
        temperature: T that both logits are divided by before KL, above 0. EQ-Net has 1; a network that is
            nearly certain of what it was trained on teaches more at 4. T^2 keeps the size of the gradients
            (Hinton et al. 2015).
    """
    hard = functional.cross_entropy(logits, labels, label_smoothing=label_smoothing)
    if teacher_logits is None or guidance == 0:
        return hard
    divergence = functional.kl_div(
        functional.log_softmax(logits / temperature, 1),
        functional.log_softmax(teacher_logits / temperature, 1),
        reduction="batchmean",
        log_target=True,
    )
    return guidance * temperature**2 * divergence + (1 - guidance) * hard
