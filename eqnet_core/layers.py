"""Elastic convolution and linear layers: one float weight, quantised as the active subnet says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from eqnet_core.quantizers import ActivationQuantizer, WeightQuantizer
from eqnet_core.space import (
    BIT_WIDTHS,
    FIXED_BITS,
    FORMS,
    Granularity,
    LayerSpec,
    QuantizationForm,
    Symmetry,
)
from eqnet_core.subnet import QuantizedLayer, Quantizer


@dataclass(frozen=True, kw_only=True)
class LayerSetting:
    """How one layer is quantised: the form, its bit-widths and the code ranges that follow from them.

    `activation_range` may be that of fewer bits than `activation_bits`: see `layer_setting`.
    """

    form: QuantizationForm
    weight_bits: int
    activation_bits: int
    weight_range: tuple[int, int]
    activation_range: tuple[int, int]


def layer_setting(
    spec: LayerSpec,
    form: QuantizationForm,
    weight_bits: int,
    activation_bits: int,
    *,
    narrow_range: bool,
    signed: bool,
) -> LayerSetting:
    """With the code ranges of `LayerSpec.code_ranges`."""
    weight_range, activation_range = spec.code_ranges(
        weight_bits, activation_bits, narrow_range=narrow_range, signed=signed
    )
    return LayerSetting(
        form=form,
        weight_bits=weight_bits,
        activation_bits=activation_bits,
        weight_range=weight_range,
        activation_range=activation_range,
    )


class ElasticLayer(nn.Module):
    """What elastic convolutions and linear layers share: weight, quantisers and the active setting.

    With `quantizing` off the layer computes in floating point, as before conversion.
    `set` changes nothing but three small tensors: `rows` (int64 [2], which entry of the weight's and the
    activation's table), `flags` (bool [3]: per-channel, asymmetric weights, asymmetric activations) and
    `ranges` (float32 [4]: lowest and highest weight code, lowest and highest activation code).
    """

    rows: Tensor
    flags: Tensor
    ranges: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None, spec: LayerSpec) -> None:
        super().__init__()
        self.spec = spec
        self.quantizing = True
        self.weight = weight
        self.bias = bias
        self.weight_quantizer = WeightQuantizer(weight.shape[0])
        self.activation_quantizer = ActivationQuantizer()
        self.register_buffer("rows", torch.zeros(2, dtype=torch.int64), persistent=False)
        self.register_buffer("flags", torch.zeros(3, dtype=torch.bool), persistent=False)
        self.register_buffer("ranges", torch.zeros(4), persistent=False)
        self.set(layer_setting(spec, FORMS[0], FIXED_BITS, FIXED_BITS, narrow_range=False, signed=False))

    def set(self, setting: LayerSetting) -> None:
        """Make `setting` the active one; the values change in place, so compiled code stays valid."""
        self.setting = setting
        form, bits = setting.form, len(BIT_WIDTHS)
        weight_bit = BIT_WIDTHS.index(setting.weight_bits)
        lowest, highest = setting.activation_range
        # Learned for the codes that are really used, which may be those of one bit fewer.
        activation_bit = BIT_WIDTHS.index((highest - lowest + 1).bit_length() - 1)
        weight_row = form.index % (len(FORMS) // 2) * bits + weight_bit
        self.rows.copy_(torch.tensor([weight_row, form.index * bits + activation_bit]))
        self.flags.copy_(
            torch.tensor(
                [
                    form.weight_granularity is Granularity.PER_CHANNEL,
                    form.weight_symmetry is Symmetry.ASYMMETRIC,
                    form.activation_symmetry is Symmetry.ASYMMETRIC,
                ]
            )
        )
        self.ranges.copy_(torch.tensor([*setting.weight_range, *setting.activation_range]).float())

    def quantized_weight(self) -> Tensor:
        """The weight as the active subnet has it, float32, in the weight's shape."""
        if not self.quantizing:
            return self.weight
        per_channel, asymmetric, _ = self.flags.unbind()
        low, high, _, _ = self.ranges.unbind()
        quantized: Tensor = self.weight_quantizer(
            self.weight, self.rows[:1], per_channel, asymmetric, low, high
        )
        return quantized

    def quantized_input(self, x: Tensor) -> Tensor:
        """The input as the active subnet has it, in its shape."""
        if not self.quantizing:
            return x
        _, _, low, high = self.ranges.unbind()
        quantized: Tensor = self.activation_quantizer(x, self.rows[1:], self.flags[2], low, high)
        return quantized

    @torch.no_grad()
    def extract(self) -> QuantizedLayer:
        """The active subnet's integers, step sizes and zero-points, as plain arrays."""
        per_channel, weight_asymmetric, activation_asymmetric = self.flags.unbind()
        weight_low, weight_high, activation_low, activation_high = self.ranges.unbind()
        step, zero_point = self.weight_quantizer.select(
            self.rows[:1], per_channel, weight_asymmetric, weight_low, weight_high, self.weight.numel()
        )
        shape = (-1,) + (1,) * (self.weight.ndim - 1)
        codes = torch.clamp(
            torch.round(self.weight / step.view(shape)) + zero_point.view(shape), weight_low, weight_high
        )
        if self.setting.form.weight_granularity is Granularity.PER_TENSOR:
            step, zero_point = step[0], zero_point[0]
        scale, offset = self.activation_quantizer.select(
            self.rows[1:], activation_asymmetric, activation_low, activation_high, 1
        )
        return QuantizedLayer(
            name=self.spec.name,
            codes=codes.cpu().numpy().astype(np.int8),
            weight=_quantizer(self.setting.weight_bits, self.setting.weight_range, step, zero_point),
            activation=_quantizer(self.setting.activation_bits, self.setting.activation_range, scale, offset),
            bias=None if self.bias is None else self.bias.detach().cpu().numpy().copy(),
        )


class ElasticConv2d(ElasticLayer):
    """`nn.Conv2d` with elastic quantisation; padding is real zero, which integer zero-points hold."""

    def __init__(self, float_layer: nn.Conv2d, spec: LayerSpec) -> None:
        super().__init__(float_layer.weight, float_layer.bias, spec)
        if float_layer.padding_mode != "zeros" or isinstance(float_layer.padding, str):
            raise ValueError(f"{spec.name}: only numeric zero padding can be quantised")
        self.geometry: dict[str, Any] = {
            "stride": float_layer.stride,
            "padding": float_layer.padding,
            "dilation": float_layer.dilation,
            "groups": float_layer.groups,
        }

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv2d(self.quantized_input(x), self.quantized_weight(), self.bias, **self.geometry)


class ElasticLinear(ElasticLayer):
    """`nn.Linear` with elastic quantisation."""

    def __init__(self, float_layer: nn.Linear, spec: LayerSpec) -> None:
        super().__init__(float_layer.weight, float_layer.bias, spec)

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(self.quantized_input(x), self.quantized_weight(), self.bias)


def _quantizer(bits: int, codes: tuple[int, int], step: Tensor, zero_point: Tensor) -> Quantizer:
    return Quantizer(
        bits=bits,
        low=codes[0],
        high=codes[1],
        scale=step.cpu().numpy().astype(np.float32),
        zero_point=zero_point.cpu().numpy().astype(np.int32),
    )
