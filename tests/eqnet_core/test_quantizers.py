"""The hand-written gradients against their definitions, element by element."""

import math

import numpy as np
import pytest
import torch

from eqnet_core.quantizers import ActivationQuantizer, WeightQuantizer, fake_quantize


def case() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 40, generator=generator, dtype=torch.float64) * 2
    scale = torch.rand(5, 1, generator=generator, dtype=torch.float64) * 0.5 + 0.3
    zero_point = torch.tensor([[0.0], [1.0], [-1.0], [-2.0], [0.0]], dtype=torch.float64)
    low, high = torch.tensor(-2.0, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64)
    return x.requires_grad_(), scale.requires_grad_(), zero_point.requires_grad_(), low, high


def test_values_are_on_the_grid() -> None:
    x, scale, zero_point, low, high = case()
    codes = fake_quantize(x, scale, zero_point, low, high) / scale + zero_point
    torch.testing.assert_close(codes, codes.round())
    assert codes.min() == -2
    assert codes.max() == 1


def test_step_size_gradient_matches_finite_differences() -> None:
    # With the codes held, x_hat is linear in the step size but for round(x / s), whose straight-through
    # derivative is that of x / s: the smooth surrogate below has exactly the LSQ gradient.
    x, scale, zero_point, low, high = case()
    weights = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (fake_quantize(x, scale, zero_point, low, high) * weights).sum().backward()
    with torch.no_grad():
        ratio = x / scale
        inside = ((ratio.round() + zero_point) >= low) & ((ratio.round() + zero_point) <= high)
        residual = ratio.round() - ratio
        clipped = (ratio.round() + zero_point).clamp(low, high) - zero_point

        def surrogate(step: torch.Tensor) -> torch.Tensor:
            return torch.where(inside, (x / step + residual) * step, clipped * step)

        epsilon = 1e-6
        difference = (surrogate(scale + epsilon) - surrogate(scale - epsilon)) / (2 * epsilon)
    expected = (difference * weights).sum(1, keepdim=True)
    assert scale.grad is not None
    torch.testing.assert_close(scale.grad, expected, rtol=1e-6, atol=1e-6)


def test_end_levels_receive_gradient_and_clipped_values_none() -> None:
    x = torch.tensor([-5.0, -2.4, -1.0, 0.9, 1.4, 5.0], requires_grad=True)
    one, zero = torch.tensor(1.0), torch.tensor(0.0)
    fake_quantize(x, one, zero, torch.tensor(-2.0), one).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0, 1, 1, 1, 1, 0]


def test_zero_point_moves_only_by_what_is_clipped() -> None:
    x = torch.tensor([-5.0, 0.0, 5.0])
    zero_point = torch.tensor(0.0, requires_grad=True)
    scale = torch.tensor(0.5)
    fake_quantize(x, scale, zero_point, torch.tensor(-2.0), torch.tensor(1.0)).sum().backward()
    assert zero_point.grad is not None
    assert zero_point.grad.item() == -1.0  # two clipped elements, -scale each


@pytest.mark.parametrize(
    ("raw", "gradient", "passes"), [(7.3, -1.0, False), (7.3, 1.0, True), (3.2, -1.0, True)]
)
def test_zero_point_is_integer_within_its_range_and_not_pushed_further_out(
    raw: float, gradient: float, passes: bool
) -> None:
    quantizer = ActivationQuantizer()
    with torch.no_grad():
        quantizer.zero_point.fill_(raw)
    _, zero_point = quantizer.select(
        torch.tensor([9]), torch.tensor(True), torch.tensor(0.0), torch.tensor(7.0), elements=1
    )
    assert zero_point.item() == min(round(raw), 7)
    zero_point.backward(torch.tensor(gradient))
    assert quantizer.zero_point.grad is not None
    row = quantizer.zero_point.grad.flatten()
    assert (row[9] != 0) == passes
    assert (row != 0).sum() <= 1


def test_every_form_and_bit_width_has_values_of_its_own() -> None:
    quantizer = WeightQuantizer(channels=3)
    with torch.no_grad():
        quantizer.log_step_per_channel.copy_(torch.arange(4 * 7 * 3).view(4, 7, 3) / 100)
        quantizer.log_step_per_tensor.copy_(-torch.arange(4 * 7).view(4, 7) / 100)
    low, high = torch.tensor(-2.0), torch.tensor(1.0)
    seen = set()
    for per_channel in (False, True):
        for row in range(28):
            step, _ = quantizer.select(
                torch.tensor([row]), torch.tensor(per_channel), torch.tensor(False), low, high, elements=30
            )
            assert step.expand(3).unique().numel() == (3 if per_channel else 1)
            seen.add(tuple(step.expand(3).tolist()))
    assert len(seen) == 56


def test_step_sizes_are_the_nearest_numbers_to_the_exponentials() -> None:
    """On every processor, hence in every file: exp in float32 is off by a bit, by another one elsewhere."""
    quantizer = WeightQuantizer(channels=1000)
    with torch.no_grad():
        quantizer.log_step_per_channel.copy_(torch.linspace(-7, 0, 4 * 7 * 1000).view(4, 7, 1000))
    low, high, yes = torch.tensor(-8.0), torch.tensor(7.0), torch.tensor(True)
    for row in (0, 13, 27):
        step, _ = quantizer.select(torch.tensor([row]), yes, yes, low, high, elements=9000)
        logarithms = quantizer.log_step_per_channel.detach().view(28, 1000)[row].numpy()
        nearest = np.array([math.exp(value) for value in logarithms], dtype=np.float32)
        np.testing.assert_array_equal(step.detach().numpy(), nearest)


@pytest.mark.parametrize(("per_channel", "sharing"), [(True, 12), (False, 36)])
def test_weights_that_share_a_step_size_scale_its_gradient(per_channel: bool, sharing: int) -> None:
    """Three channels of 12 weights each: those of one channel, or all of them."""
    quantizer = WeightQuantizer(channels=3)
    low, high = torch.tensor(-4.0), torch.tensor(3.0)
    step, _ = quantizer.select(
        torch.tensor([0]), torch.tensor(per_channel), torch.tensor(False), low, high, elements=36
    )
    step[0].backward()
    table = quantizer.log_step_per_channel if per_channel else quantizer.log_step_per_tensor
    assert table.grad is not None
    assert table.grad.flatten()[0].item() == pytest.approx((3 * sharing) ** -0.5)


def test_step_size_gradient_is_scaled_as_in_lsq() -> None:
    quantizer = ActivationQuantizer()
    low, high = torch.tensor(0.0), torch.tensor(3.0)
    step, _ = quantizer.select(torch.tensor([0]), torch.tensor(False), low, high, elements=300)
    step.backward()
    assert quantizer.log_step.grad is not None
    # d step / d log_step = step = 1, times 1 / sqrt(3 * 300)
    assert quantizer.log_step.grad.flatten()[0].item() == pytest.approx(1 / 30)
