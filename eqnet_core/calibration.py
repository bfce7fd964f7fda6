"""Fitting a supernet to data without training: first step sizes and zero-points, BatchNorm statistics."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from eqnet_core.quantizers import ActivationQuantizer
from eqnet_core.space import BIT_WIDTHS, FORMS, Granularity, Symmetry
from eqnet_core.subnet import InputSpec
from eqnet_core.supernet import Supernet

_COARSE = torch.logspace(math.log10(0.15), 0, 8)
"""Clipping ranges as fractions of the whole range; 2-bit optima lie from 0.2 to 0.5, 8-bit ones near 1."""

_FINE = (_COARSE[0] / _COARSE[1]) ** torch.linspace(-0.6, 0.6, 4)
"""What the best coarse range is multiplied by next: four places between its neighbours."""

_REFINEMENTS = 2
"""Passes that fit the step size to the codes by least squares, which no grid is fine enough for."""

_BATCH = 128
"""Images that BatchNorm statistics are averaged over at a time, as in training."""

_ACTIVATION_SAMPLE = 16384
"""Elements of a layer's input that its activation quantisers are fitted on."""


@torch.no_grad()
def initialise_quantizers(supernet: Supernet, images: Tensor) -> None:
    """Set every step size and zero-point to the one with the least squared quantisation error.

    Weights are compared channel by channel (or as a whole for per-tensor forms), activations on the inputs
    that `images` cause in the unquantised network, with BatchNorm's present statistics.

    Args:
        supernet: changed in place.
        images: normalised float32 [N, C, H, W]; 256 are plenty.
    """
    inputs = _float_inputs(supernet, images)
    for layer in supernet.layers:
        _initialise_activations(layer.activation_quantizer, inputs[layer.spec.name], layer.spec.nonnegative)
        weight = layer.weight.flatten(1)
        quantizer = layer.weight_quantizer
        half = len(FORMS) // 2
        for granularity, rows, steps, zeros in (
            (
                Granularity.PER_CHANNEL,
                weight,
                quantizer.log_step_per_channel,
                quantizer.zero_point_per_channel,
            ),
            (
                Granularity.PER_TENSOR,
                weight.reshape(1, -1),
                quantizer.log_step_per_tensor,
                quantizer.zero_point_per_tensor,
            ),
        ):
            for symmetry in Symmetry:
                forms = [
                    index % half
                    for index, form in enumerate(FORMS)
                    if form.weight_granularity is granularity and form.weight_symmetry is symmetry
                ]
                for bit, bits in enumerate(BIT_WIDTHS):
                    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
                    step, zero = least_error(rows, low, high, symmetry)
                    for form in forms:
                        # A per-tensor table has no channel axis: its one row is the value.
                        steps[form, bit] = step.log().reshape(steps[form, bit].shape)
                        zeros[form, bit] = zero.reshape(zeros[form, bit].shape)


def least_error(rows: Tensor, low: int, high: int, symmetry: Symmetry) -> tuple[Tensor, Tensor]:
    """The step size and integer zero-point of each row with (nearly) the least squared quantisation error.

    A coarse and a fine grid of clipping ranges, then the least-squares step size for the codes that result:
    within 2 % of the error of 46 evenly spaced ranges (less at 2 bits), in a third of the time.

    Args:
        rows: float32 [R, K], each row with its own step size.
        low, high: the range of codes.
        symmetry: with `SYMMETRIC` the zero-point is 0.

    Returns:
        Step sizes [R] > 0 and zero-points [R].
    """
    ratios = _COARSE.to(rows)[:, None].expand(-1, len(rows))
    errors = _clipped(rows, ratios, low, high, symmetry)[2]
    best = ratios.gather(0, errors.argmin(0, keepdim=True))
    ratios = torch.cat([best, best * _FINE.to(rows)[:, None]])
    steps, zeros, errors = _clipped(rows, ratios, low, high, symmetry)
    winners = errors.argmin(0, keepdim=True)
    step, zero = steps.gather(0, winners)[0], zeros.gather(0, winners)[0]
    for _ in range(_REFINEMENTS):
        codes = torch.round(rows / step[:, None])
        codes = torch.clamp(codes, low - zero[:, None], high - zero[:, None])
        fitted = (rows * codes).sum(1) / codes.square().sum(1)
        # A row of zeros has no codes to fit.
        step = torch.where(fitted > 0, fitted, step)
    return step, zero


def _clipped(
    rows: Tensor, ratios: Tensor, low: int, high: int, symmetry: Symmetry
) -> tuple[Tensor, Tensor, Tensor]:
    """Step sizes, zero-points, squared errors [M, R] of rows [R, K] clipped to `ratios` of their range."""
    smallest, largest = rows.amin(1).clamp(max=0), rows.amax(1).clamp(min=0)
    if symmetry is Symmetry.SYMMETRIC:
        # The range that reaches both ends; codes below zero go one further than those above.
        reach = torch.maximum(largest / max(high, 1), -smallest / max(-low, 1))
        steps = (ratios * reach).clamp(min=1e-8)
        zeros = torch.zeros_like(steps)
    else:
        steps = (ratios * (largest - smallest) / (high - low)).clamp(min=1e-8)
        zeros = torch.clamp(torch.round(low - ratios * smallest / steps), low, high)
    scaled = rows / steps[:, :, None]
    offsets = zeros[:, :, None]
    # In place: [M, R, K] is the largest tensor here, and each pass over it is what takes the time.
    codes = torch.round(scaled).clamp_(low - offsets, high - offsets)
    return steps, zeros, codes.sub_(scaled).square_().sum(2) * steps.square()


def _initialise_activations(quantizer: ActivationQuantizer, values: Tensor, nonnegative: bool) -> None:
    row = values.reshape(1, -1)
    for symmetry in Symmetry:
        forms = [index for index, form in enumerate(FORMS) if form.activation_symmetry is symmetry]
        for bit, bits in enumerate(BIT_WIDTHS):
            low, high = (0, 2**bits - 1) if nonnegative else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
            step, zero = least_error(row, low, high, symmetry)
            quantizer.log_step[forms, bit] = step.log()
            quantizer.zero_point[forms, bit] = zero


def _float_inputs(supernet: Supernet, images: Tensor) -> dict[str, Tensor]:
    """A sample [<= _ACTIVATION_SAMPLE] of every elastic layer's input, with nothing quantised."""
    found: dict[str, Tensor] = {}
    handles = []
    for layer in supernet.layers:

        def hook(module: nn.Module, arguments: tuple[Tensor, ...], name: str = layer.spec.name) -> None:
            flat = arguments[0].flatten()
            # A stride that shares no factor with the feature maps, lest one column is all that is seen.
            found[name] = flat[:: max(1, flat.numel() // _ACTIVATION_SAMPLE) | 1].clone()

        handles.append(layer.register_forward_pre_hook(hook))
    training = supernet.training
    supernet.eval()
    try:
        for layer in supernet.layers:
            layer.quantizing = False
        supernet(images)
    finally:
        for layer in supernet.layers:
            layer.quantizing = True
        supernet.train(training)
        for handle in handles:
            handle.remove()
    return found


@torch.no_grad()
def calibrate_batch_norm(
    supernet: Supernet, batches: Iterable[Tensor], *, forward: Callable[[Tensor], Tensor] | None = None
) -> dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Re-estimate BatchNorm's statistics with the active subnet (EQ-Net, docs/method.md section 3).

    Args:
        supernet: its running statistics are replaced; left in evaluation mode.
        batches: normalised float32 [N, C, H, W] images **with the training augmentation**, of equal size.
        forward: what runs `supernet`, itself unless given, such as `torch.compile(supernet)`.

    Returns:
        (mean [C], variance [C]) by BatchNorm module: the averages over all batches.

    Raises:
        ValueError: no batches.
    """
    run = supernet if forward is None else forward
    modules = list(supernet.batch_norms().values())
    momenta = [module.momentum for module in modules]
    totals = [torch.zeros(2, module.num_features, dtype=torch.float64) for module in modules]
    count = 0
    supernet.eval()
    for module in modules:
        # the running statistics are those of the last batch: with momentum None, which accumulates by
        # itself, a compiled network would be compiled again for every batch
        module.momentum = 1.0
        module.train()
    try:
        for images in batches:
            run(images)
            for module, total in zip(modules, totals, strict=True):
                total += torch.stack([_tensor(module.running_mean), _tensor(module.running_var)]).to(total)
            count += 1
    finally:
        for module, momentum in zip(modules, momenta, strict=True):
            module.momentum = momentum
        supernet.eval()
    if not count:
        raise ValueError("no images to calibrate with")
    for module, total in zip(modules, totals, strict=True):
        _tensor(module.running_mean).copy_(total[0] / count)
        _tensor(module.running_var).copy_(total[1] / count)
    return supernet.statistics()


def normalised_batches(images: NDArray[np.uint8], spec: InputSpec) -> list[Tensor]:
    """Images [N, C, H, W] as `calibrate_batch_norm` takes them: in equal batches, a rest left out."""
    mean, deviation = (np.array(values, np.float32)[:, None, None] for values in (spec.mean, spec.std))
    size = min(_BATCH, len(images))
    return [
        torch.from_numpy((images[start : start + size].astype(np.float32) / 255 - mean) / deviation)
        for start in range(0, len(images) - size + 1, size)
    ]


def _tensor(buffer: Tensor | None) -> Tensor:
    assert buffer is not None, "BatchNorm without running statistics"
    return buffer
