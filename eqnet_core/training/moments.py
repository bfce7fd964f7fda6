"""What a layer's quantised weights alone say about the mean and variance of its output.

The output of a convolution is a weighted sum over a patch of its input, so its mean is w . E[x] and its
variance w' Cov(x) w, with x the patch and w the weights as quantised: exactly. The mean and covariance of
patches are much the same in every subnet, as they come out of a BatchNorm; the weights of every form and
bit-width are known. So a few subnets, run once, tell most of what any bits and form of a layer do to it, and
only what the layers before it and the rounding of its input change is left to be fitted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from eqnet_core.calibration import calibrate_batch_norm
from eqnet_core.layers import ElasticConv2d
from eqnet_core.space import FORMS, SubnetConfiguration, Symmetry
from eqnet_core.statistics import WEIGHT_ROWS, table_rows
from eqnet_core.supernet import Supernet
from eqnet_core.training.statistics_fitting import OutputTables

_IMAGES = 64
"""Of each batch: patches of one image are many and alike."""


@dataclass(frozen=True, kw_only=True)
class PatchMoments:
    """Of a layer's quantised input patches of K elements, zeros of the padding included.

    `mean` float64 [K]; `covariance` float64 [K, K].
    """

    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]

    def output(self, weight: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean and variance >= 0 of the output for `weight` [C, K], float64 [C] each."""
        rows = weight.astype(np.float64)
        variance = np.einsum("ck,ck->c", rows @ self.covariance, rows)
        return rows @ self.mean, np.maximum(variance, 0.0)


@torch.no_grad()
def measure_moments(
    supernet: Supernet, configurations: Sequence[SubnetConfiguration], batches: Sequence[Tensor]
) -> dict[str, PatchMoments]:
    """Patch moments of every convolution, averaged over `configurations`; leaves another subnet active.

    Args:
        configurations: at least one, best spread over forms and bit-widths.
        batches: one batch of normalised, augmented float32 [N, C, H, W] for each.

    Grouped convolutions are left out: their output channels do not share their inputs.
    """
    layers = [
        layer
        for layer in supernet.layers
        if isinstance(layer, ElasticConv2d) and layer.geometry["groups"] == 1
    ]
    sums = {
        layer.spec.name: (
            torch.zeros(size, dtype=torch.float64),
            torch.zeros(size, size, dtype=torch.float64),
        )
        for layer in layers
        for size in [layer.weight[0].numel()]
    }

    def add(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        assert isinstance(module, ElasticConv2d)
        patches = functional.unfold(
            module.quantized_input(arguments[0][:_IMAGES]),
            module.weight.shape[2:],
            **{key: value for key, value in module.geometry.items() if key != "groups"},
        )
        columns = patches.transpose(0, 1).flatten(1)
        first, second = sums[module.spec.name]
        first += columns.mean(1).to(first)
        second += (columns @ columns.T / columns.shape[1]).to(second)

    for configuration, images in zip(configurations, batches, strict=True):
        supernet.activate(configuration)
        calibrate_batch_norm(supernet, [images])
        handles = [layer.register_forward_pre_hook(add) for layer in layers]
        try:
            supernet(images)
        finally:
            for handle in handles:
                handle.remove()
    count = len(configurations)
    found = {}
    for name, (first, second) in sums.items():
        mean = (first / count).numpy()
        found[name] = PatchMoments(mean=mean, covariance=(second / count).numpy() - np.outer(mean, mean))
    return found


@torch.no_grad()
def output_tables(supernet: Supernet, moments: Mapping[str, PatchMoments]) -> OutputTables:
    """What the weights of every form, bit-width and narrow range make of each layer of `moments`.

    Leaves another subnet active. A fixed layer is at 8 bits whatever is asked for; the rows of its other
    bit-widths stay zero, as do those of asymmetric weights with narrow range, which there are not.

    One weight is held at a time: those of all rows together would take 10 GB for a ResNet-50.
    """
    space = supernet.space
    layers = [
        (position, layer) for position, layer in enumerate(supernet.layers) if layer.spec.name in moments
    ]
    found = {
        layer.spec.name: (np.zeros(shape), np.zeros(shape))
        for _, layer in layers
        for shape in [(WEIGHT_ROWS, len(layer.weight))]
    }
    done = set()
    for form, bits, narrow_range in product(FORMS, space.bit_widths, (False, True)):
        if narrow_range and form.weight_symmetry is Symmetry.ASYMMETRIC:
            continue
        configuration = space.uniform(form, bits, narrow_range=narrow_range)
        supernet.activate(configuration)
        rows = table_rows([configuration], space)[0, :, 0]
        for position, layer in layers:
            name, row = layer.spec.name, int(rows[position])
            if (name, row) in done:
                continue
            done.add((name, row))
            mean, variance = found[name]
            mean[row], variance[row] = moments[name].output(layer.quantized_weight().flatten(1).cpu().numpy())
    return found
