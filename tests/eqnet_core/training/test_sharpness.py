"""Where the loss rises most, and back."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from eqnet_core.training.sharpness import uphill

WEIGHTS = ((3.0, -0.5, 0.0), (2.0,))
RADIUS = 0.01


def parameters() -> list[nn.Parameter]:
    return [nn.Parameter(torch.tensor(values)) for values in WEIGHTS]


def loss(weights: list[nn.Parameter]) -> torch.Tensor:
    first, second = weights
    return (first * torch.tensor([1.0, -4.0, 2.0])).sum() + second.square().sum()


def test_no_place_as_near_has_a_higher_loss() -> None:
    weights = parameters()
    before = [weight.detach().clone() for weight in weights]
    torch.autograd.backward(loss(weights))
    with uphill(weights, RADIUS):
        highest = loss(weights).item()
        moves = torch.cat([w.detach() - b for w, b in zip(weights, before, strict=True)])
    sizes = torch.cat(before).abs() + 0.01
    assert (moves / sizes).norm().item() == pytest.approx(RADIUS, rel=1e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        direction = torch.randn(4, generator=generator)
        step = RADIUS * sizes * direction / direction.norm()
        with torch.no_grad():
            elsewhere = [nn.Parameter(b + s) for b, s in zip(before, step.split([3, 1]), strict=True)]
        assert loss(elsewhere).item() <= highest + 1e-4


def test_weights_return_to_the_bit_with_the_gradients_of_the_other_place() -> None:
    weights = parameters()
    before = [weight.detach().clone() for weight in weights]
    torch.autograd.backward(loss(weights))
    with uphill(weights, RADIUS):
        weights[1].grad = None
        there = weights[1].item()
        torch.autograd.backward(loss(weights))
    assert all(torch.equal(weight, value) for weight, value in zip(weights, before, strict=True))
    assert there > 2.0
    assert weights[1].grad is not None
    assert weights[1].grad.item() == 2 * there


def test_weights_return_after_an_error() -> None:
    weights = parameters()
    torch.autograd.backward(loss(weights))
    with pytest.raises(KeyboardInterrupt), uphill(weights, RADIUS):
        raise KeyboardInterrupt
    assert weights[0].tolist() == list(WEIGHTS[0])


def test_flat_places_stay_where_they_are() -> None:
    weights = parameters()
    for weight in weights:
        weight.grad = torch.zeros_like(weight)
    with uphill(weights, RADIUS):
        assert [weight.tolist() for weight in weights] == [list(values) for values in WEIGHTS]
