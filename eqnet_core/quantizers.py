"""Learned quantisers: a step size and zero-point for every form and bit-width, straight-through rounding.

Selecting a form or a bit-width only changes the values of small tensors, never a Python branch, so that a
compiled network serves all of them without recompilation.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from eqnet_core.space import BIT_WIDTHS, FORMS


class FakeQuantize(torch.autograd.Function):
    """x_hat = scale * (clip(round(x / scale) + zero_point, low, high) - zero_point) (EQ-Net Eq. 1).

    Rounds half to even and divides by the step size, as ONNX does. Gradients are written by hand: step size
    as in LSQ (Esser et al. 2020, Eq. 3), zero-point as in LSQ+ (Bhalgat et al. 2020, Eq. 7), with the end
    levels counted as inside. `torch.clamp` would give them no gradient, and at 2 bits they are half of all.
    """

    @staticmethod
    def forward(x: Tensor, scale: Tensor, zero_point: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """`scale` and `zero_point` are [] or [C, 1, ...]; `low` and `high` are [] integers as floats."""
        # In place on the first result: without compilation the passes over memory are what takes the time.
        codes = (x / scale).round_().add_(zero_point).clamp_(low, high)
        return codes.sub_(zero_point).mul_(scale)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        x, scale, zero_point, low, high = ctx.saved_tensors
        ratio = x / scale
        unclipped = torch.round(ratio) + zero_point
        codes = torch.clamp(unclipped, low, high)
        inside = unclipped == codes
        of_x = torch.where(inside, gradient, 0.0)
        of_scale = gradient * (codes - zero_point - torch.where(inside, ratio, 0.0))
        of_zero_point = torch.where(inside, 0.0, -scale * gradient)
        return of_x, _sum_to(of_scale, scale), _sum_to(of_zero_point, zero_point), None, None


def _sum_to(gradient: Tensor, parameter: Tensor) -> Tensor:
    if parameter.ndim == 0:
        return gradient.sum()
    return gradient.sum(dim=tuple(range(1, gradient.ndim)), keepdim=True)


class _RoundStraightThrough(torch.autograd.Function):
    """Round and keep within [low, high]; the gradient passes, but never pushes a value further outside."""

    @staticmethod
    def forward(value: Tensor, low: Tensor, high: Tensor) -> Tensor:
        return torch.clamp(torch.round(value), low, high)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        value, low, high = ctx.saved_tensors
        outwards = ((value <= low) & (gradient > 0)) | ((value >= high) & (gradient < 0))
        return torch.where(outwards, 0.0, gradient), None, None


class _ScaleGradient(torch.autograd.Function):
    """Identity whose gradient is multiplied by `factor` []."""

    @staticmethod
    def forward(value: Tensor, factor: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (factor,) = ctx.saved_tensors
        return gradient * factor, None


def fake_quantize(x: Tensor, scale: Tensor, zero_point: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """`FakeQuantize` with its types."""
    result: Tensor = FakeQuantize.apply(x, scale, zero_point, low, high)
    return result


def _learned(
    log_step: Tensor, zero_point: Tensor, asymmetric: Tensor, low: Tensor, high: Tensor, elements: int
) -> tuple[Tensor, Tensor]:
    """Step size and integer zero-point with their gradient scale 1 / sqrt(high * n) (LSQ, section 2.2)."""
    factor = torch.rsqrt(high * elements)
    # Rounded from float64, the step is the same to the last bit on every processor; exp in float32 is not.
    step = torch.exp(_ScaleGradient.apply(log_step, factor).double()).to(log_step.dtype)
    shifted = _RoundStraightThrough.apply(
        _ScaleGradient.apply(zero_point, factor),
        low,
        high,
    )
    return step, torch.where(asymmetric, shifted, 0.0)


class ActivationQuantizer(nn.Module):
    """Per-tensor step sizes and zero-points, [8 forms, 7 bit-widths]; step sizes are kept as logarithms.

    A step size stored as its logarithm can neither reach 0 nor change sign.
    """

    def __init__(self) -> None:
        super().__init__()
        self.log_step = nn.Parameter(torch.zeros(len(FORMS), len(BIT_WIDTHS)))
        self.zero_point = nn.Parameter(torch.zeros(len(FORMS), len(BIT_WIDTHS)))

    def select(
        self, row: Tensor, asymmetric: Tensor, low: Tensor, high: Tensor, elements: int
    ) -> tuple[Tensor, Tensor]:
        """Step size [] and zero-point [].

        Args:
            row: int64 [1], form index * 7 + bit-width index.
            asymmetric: bool [].
            low, high: [] floats, the range of codes.
            elements: how many elements share the step size, for the gradient scale.
        """
        step, zero_point = _learned(
            self.log_step.flatten().index_select(0, row),
            self.zero_point.flatten().index_select(0, row),
            asymmetric,
            low,
            high,
            elements,
        )
        return step.squeeze(0), zero_point.squeeze(0)

    def forward(self, x: Tensor, row: Tensor, asymmetric: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """Fake-quantise activations [N, ...]; the gradient scale counts the elements of one image."""
        step, zero_point = self.select(row, asymmetric, low, high, x[0].numel())
        return fake_quantize(x, step, zero_point, low, high)


class WeightQuantizer(nn.Module):
    """Step sizes and zero-points of a weight with C output channels.

    Per-tensor forms have tables [4, 7], per-channel forms [4, 7, C], in the order of `FORMS`. Per-tensor
    values are learned on their own, not derived from per-channel ones (EQ-Net, Table 4).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        half, bits = len(FORMS) // 2, len(BIT_WIDTHS)
        self.log_step_per_tensor = nn.Parameter(torch.zeros(half, bits))
        self.log_step_per_channel = nn.Parameter(torch.zeros(half, bits, channels))
        self.zero_point_per_tensor = nn.Parameter(torch.zeros(half, bits))
        self.zero_point_per_channel = nn.Parameter(torch.zeros(half, bits, channels))

    def select(
        self,
        row: Tensor,
        per_channel: Tensor,
        asymmetric: Tensor,
        low: Tensor,
        high: Tensor,
        elements: int,
    ) -> tuple[Tensor, Tensor]:
        """Step sizes [C] and zero-points [C]; a per-tensor form repeats its one value.

        Args:
            row: int64 [1], index of the form within its granularity * 7 + bit-width index.
            per_channel, asymmetric: bool [].
            low, high: [] floats, the range of codes.
            elements: size of the whole weight, for the gradient scale.
        """
        channels = self.log_step_per_channel.shape[2]
        # Both granularities are computed and one is kept: the tables are tiny, and a branch would recompile.
        tensor_step, tensor_zero = _learned(
            self.log_step_per_tensor.flatten().index_select(0, row),
            self.zero_point_per_tensor.flatten().index_select(0, row),
            asymmetric,
            low,
            high,
            elements,
        )
        channel_step, channel_zero = _learned(
            self.log_step_per_channel.flatten(0, 1).index_select(0, row).squeeze(0),
            self.zero_point_per_channel.flatten(0, 1).index_select(0, row).squeeze(0),
            asymmetric,
            low,
            high,
            elements // channels,
        )
        step = torch.where(per_channel, channel_step, tensor_step)
        return step, torch.where(per_channel, channel_zero, tensor_zero)

    def forward(
        self,
        weight: Tensor,
        row: Tensor,
        per_channel: Tensor,
        asymmetric: Tensor,
        low: Tensor,
        high: Tensor,
    ) -> Tensor:
        """Fake-quantise a weight [C, ...]."""
        step, zero_point = self.select(row, per_channel, asymmetric, low, high, weight.numel())
        shape = (-1,) + (1,) * (weight.ndim - 1)
        return fake_quantize(weight, step.view(shape), zero_point.view(shape), low, high)
