"""Quantiser initialisation and BatchNorm re-calibration."""

import pytest
import torch

from eqnet_core.calibration import calibrate_batch_norm, least_error
from eqnet_core.space import FORMS, Symmetry
from eqnet_core.supernet import Supernet


def error(rows: torch.Tensor, step: torch.Tensor, zero: torch.Tensor, low: int, high: int) -> torch.Tensor:
    step, zero = step[:, None], zero[:, None]
    codes = torch.clamp(torch.round(rows / step) + zero, low, high) - zero
    return (codes * step - rows).square().sum(1)


@pytest.mark.parametrize("symmetry", Symmetry)
@pytest.mark.parametrize(("low", "high"), [(-2, 1), (-8, 7), (0, 3), (-128, 127)])
def test_initial_step_sizes_beat_the_whole_range(symmetry: Symmetry, low: int, high: int) -> None:
    rows = torch.randn(6, 500, generator=torch.Generator().manual_seed(0))
    rows = rows.abs() if low == 0 else rows + 0.3
    step, zero = least_error(rows, low, high, symmetry)
    assert (step > 0).all()
    assert ((zero >= low) & (zero <= high) & (zero == zero.round())).all()
    if symmetry is Symmetry.SYMMETRIC:
        assert not zero.any()
        whole_range = rows.abs().amax(1) / high
        assert (error(rows, step, zero, low, high) <= error(rows, whole_range, zero, low, high)).all()
    else:
        symmetric = least_error(rows, low, high, Symmetry.SYMMETRIC)
        assert error(rows, step, zero, low, high).sum() < 1.01 * error(rows, *symmetric, low, high).sum()


def test_constant_rows_get_a_usable_step() -> None:
    step, zero = least_error(torch.zeros(2, 9), -2, 1, Symmetry.ASYMMETRIC)
    assert (step > 0).all()
    assert torch.isfinite(zero).all()


def test_batch_norm_gets_the_average_of_all_batches(supernet: Supernet, images: torch.Tensor) -> None:
    supernet.activate(supernet.space.uniform(FORMS[0], 4))
    halves = [calibrate_batch_norm(supernet, [half])["bn1"] for half in (images[:32], images[32:])]
    both = calibrate_batch_norm(supernet, [images[:32], images[32:]])["bn1"]
    for part in (0, 1):
        torch.testing.assert_close(
            torch.from_numpy(both[part]), torch.from_numpy((halves[0][part] + halves[1][part]) / 2)
        )
    assert not any(module.training for module in supernet.modules())
    assert all(module.momentum == 0.1 for module in supernet.batch_norms().values())
