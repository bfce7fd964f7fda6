"""How a network computes its logits while it is trained: compiled or not, in which precision."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import cast

import torch
from torch import Tensor, nn


class Precision(StrEnum):
    """What convolutions and linear layers compute in; weights, losses and optimisers stay in float32."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


def training_forward(
    model: nn.Module, *, compiled: bool = True, precision: Precision = Precision.FLOAT32
) -> Callable[[Tensor], Tensor]:
    """What maps float32 images [N, C, H, W] to float32 logits [N, classes].

    In bfloat16, images and the model's weights are channels last: that is what its kernels are written for.
    """
    if precision is Precision.BFLOAT16:
        model.to(memory_format=torch.channels_last)
    network = cast(Callable[[Tensor], Tensor], torch.compile(model, dynamic=False) if compiled else model)
    if precision is Precision.FLOAT32:
        return network

    def forward(images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, torch.bfloat16):
            return network(images.contiguous(memory_format=torch.channels_last)).float()

    return forward
