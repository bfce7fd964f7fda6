"""The two losses of EQ-Net: weight distribution regularisation and group progressive guidance."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

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


def guided_loss(
    logits: Tensor,
    labels: Tensor,
    teacher_logits: Tensor | None,
    guidance: float = 0.5,
    *,
    label_smoothing: float = 0.0,
) -> Tensor:
    """One term of GPG (Eq. 7): k * KL(teacher || student) + (1 - k) * cross entropy, at temperature 1.

    Args:
        logits: [N, classes] of the student.
        labels: int64 [N].
        teacher_logits: [N, classes] of the next wider subnet, detached; None for cross entropy alone.
        guidance: k in [0, 1].
        label_smoothing: of the cross entropy, [0, 1).
    """
    hard = functional.cross_entropy(logits, labels, label_smoothing=label_smoothing)
    if teacher_logits is None or guidance == 0:
        return hard
    divergence = functional.kl_div(
        functional.log_softmax(logits, 1),
        functional.log_softmax(teacher_logits, 1),
        reduction="batchmean",
        log_target=True,
    )
    return guidance * divergence + (1 - guidance) * hard
