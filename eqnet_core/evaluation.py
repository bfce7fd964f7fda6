"""Top-1 accuracy of a network, supernet or exported subnet alike."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


@torch.inference_mode()
def correct(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    batch_size: int = 100,
    forward: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Which images are classified right.

    Args:
        model: maps float32 [N, C, H, W] to logits [N, classes]; put into evaluation mode here.
        images: normalised float32 [N, C, H, W].
        labels: int64 [N].
        forward: what runs `model`, itself unless given, such as `torch.compile(model)`.

    Returns:
        bool [N].
    """
    model.eval()
    run = model if forward is None else forward
    parts = [
        run(images[start : start + batch_size]).argmax(1) == labels[start : start + batch_size]
        for start in range(0, len(images), batch_size)
    ]
    return torch.cat(parts)


def top1(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    batch_size: int = 100,
    forward: Callable[[Tensor], Tensor] | None = None,
) -> float:
    """The fraction of images classified right, in [0, 1]. Arguments as in `correct`."""
    return float(correct(model, images, labels, batch_size=batch_size, forward=forward).float().mean())


@torch.inference_mode()
def margins(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    batch_size: int = 100,
    forward: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """The right class's logit minus the largest other, float32 [N]. Arguments as in `correct`."""
    model.eval()
    run = model if forward is None else forward
    parts = []
    for start in range(0, len(images), batch_size):
        logits, truth = run(images[start : start + batch_size]), labels[start : start + batch_size, None]
        others = logits.scatter(1, truth, -torch.inf).amax(1)
        parts.append(logits.gather(1, truth)[:, 0] - others)
    return torch.cat(parts)
