"""Fits the ensemble of MLPs of CQAP, all members at once, in torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import logit
from torch import Tensor

from eqnet_core.predictor import AccuracyPredictor
from eqnet_core.training.ridge import encoding_basis, fit_ridge


@dataclass(frozen=True, kw_only=True)
class EnsembleSettings:
    """`weight_decay` is AdamW's; every member sees all samples, in its own order and from its own start.

    A step draws `samples / 16` samples within `batch`, for `epochs` passes within `steps`.
    """

    members: int = 4
    hidden: int = 48
    weight_decay: float = 0.05
    rate: float = 3e-3
    epochs: int = 20
    batch: tuple[int, int] = (64, 256)
    steps: tuple[int, int] = (800, 2000)


def fit_ensemble(
    features: NDArray[np.float32],
    accuracy: NDArray[np.float64],
    settings: EnsembleSettings,
    generator: torch.Generator,
) -> AccuracyPredictor:
    """CQAP for `accuracy` [N] of configurations encoded as `features` [N, E]; its interval is a dummy.

    A ridge regression in `bit_basis` takes the additive part, the MLPs learn what is left of it: layers
    that make each other worse, forms, saturation. Both work on standardised logits, where effects add up
    better.
    """
    logits = accuracy_logits(accuracy)
    centre, spread = float(logits.mean()), float(max(logits.std(), 1e-3))
    basis = encoding_basis(features.shape[1])
    inputs = features.astype(np.float64) @ basis
    mean = inputs.mean(axis=0)
    targets = (logits - centre) / spread
    additive = fit_ridge(inputs - mean, targets[:, None])
    remainder = targets - (inputs - mean) @ additive.weights[:, 0] - additive.offset[0]
    first, first_bias, second, second_bias, third, third_bias = (
        parameter.detach().double().numpy()
        for parameter in _train(
            torch.from_numpy(inputs - mean).float(), torch.from_numpy(remainder).float(), settings, generator
        )
    )
    columns = first.transpose(1, 0, 2).reshape(len(mean), -1)
    columns = np.concatenate([columns, additive.weights], axis=1)
    biases = np.concatenate([first_bias.reshape(-1), additive.offset])
    return AccuracyPredictor.rounded(
        first=basis @ columns,
        first_bias=biases - mean @ columns,
        second=second,
        second_bias=second_bias,
        third=third[:, :, 0],
        third_bias=float(third_bias.mean()),
        centre=centre,
        spread=spread,
        interval_accuracy=np.array([0.5]),
        interval_half_width=np.array([1.0]),
    )


def accuracy_logits(accuracy: NDArray[np.float64]) -> NDArray[np.float64]:
    """Logits [N] of accuracies in [0, 1], finite: 0 and 1 count as 0.001 and 0.999."""
    return np.asarray(logit(np.clip(accuracy, 1e-3, 1.0 - 1e-3)), dtype=np.float64)


def _train(
    inputs: Tensor, targets: Tensor, settings: EnsembleSettings, generator: torch.Generator
) -> tuple[Tensor, ...]:
    """Weights and biases of the three layers, with the members in front; inputs [N, E], targets [N]."""
    count, size = inputs.shape
    members, hidden = settings.members, settings.hidden

    def normal(*shape: int, scale: float) -> Tensor:
        return (torch.randn(*shape, generator=generator) * scale).requires_grad_()

    # one feature per one-hot group is alive at a time, hence the fan-in of size / 7
    weights = [
        normal(members, size, hidden, scale=0.5 * (7 / size) ** 0.5),
        normal(members, hidden, hidden, scale=hidden**-0.5),
        normal(members, hidden, 1, scale=0.1 * hidden**-0.5),
    ]
    biases = [
        normal(members, 1, hidden, scale=0.5),
        normal(members, 1, hidden, scale=0.0),
        normal(members, 1, 1, scale=0.0),
    ]
    batch = min(max(count // 16, settings.batch[0]), settings.batch[1], count)
    steps = min(max(settings.epochs * count // batch, settings.steps[0]), settings.steps[1])
    optimiser = torch.optim.AdamW(
        [
            {"params": weights, "weight_decay": settings.weight_decay},
            {"params": biases, "weight_decay": 0.0},
        ],
        lr=settings.rate,
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, settings.rate, total_steps=steps, pct_start=0.1)
    for _ in range(steps):
        rows = torch.randint(0, count, (members, batch), generator=generator)
        units = torch.relu(torch.baddbmm(biases[0], inputs[rows], weights[0]))
        units = torch.relu(torch.baddbmm(biases[1], units, weights[1]))
        outputs = torch.baddbmm(biases[2], units, weights[2])[:, :, 0]
        loss = ((outputs - targets[rows]) ** 2).mean(dim=1).sum()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
    return tuple(tensor for pair in zip(weights, biases, strict=True) for tensor in pair)
