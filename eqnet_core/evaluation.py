"""Top-1 accuracy of a network, supernet or exported subnet alike."""

from __future__ import annotations

import torch
from torch import Tensor, nn


@torch.inference_mode()
def correct(model: nn.Module, images: Tensor, labels: Tensor, *, batch_size: int = 100) -> Tensor:
    """Which images are classified right.

    Args:
        model: maps float32 [N, C, H, W] to logits [N, classes]; put into evaluation mode here.
        images: normalised float32 [N, C, H, W].
        labels: int64 [N].

    Returns:
        bool [N].
    """
    model.eval()
    parts = [
        model(images[start : start + batch_size]).argmax(1) == labels[start : start + batch_size]
        for start in range(0, len(images), batch_size)
    ]
    return torch.cat(parts)


def top1(model: nn.Module, images: Tensor, labels: Tensor, *, batch_size: int = 100) -> float:
    """The fraction of images classified right, in [0, 1]. Arguments as in `correct`."""
    return float(correct(model, images, labels, batch_size=batch_size).float().mean())
