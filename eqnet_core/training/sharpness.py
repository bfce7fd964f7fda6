"""Adaptive sharpness-aware minimisation (Kwon et al. 2021, arXiv:2102.11600, after Foret et al. 2021)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

_OFFSET = 0.01
"""What the size of a weight is counted as at least (eta): one that is 0 may move too."""


@contextmanager
def uphill(parameters: Sequence[nn.Parameter], radius: float) -> Iterator[None]:
    """Move `parameters` to where their gradients say that the loss nearby is highest, and back on leaving.

    Gradients taken there, of flat minima, lead to weights that also suit images they were not trained on.
    Nearby is meant relative to each weight's size, since BatchNorm lets layers have any: w is moved by
    radius * t^2 * g / |t * g| with t = |w| + 0.01, a vector of length `radius` in units of t.

    Args:
        parameters: with gradients. Clear these before adding those of the other place.
        radius: above 0, such as 0.5.
    """
    with torch.no_grad():
        gradients = [p.grad for p in parameters if p.grad is not None]
        assert len(gradients) == len(parameters), "no gradient to move by"
        before = [p.detach().clone() for p in parameters]
        sizes = torch._foreach_add(torch._foreach_abs(before), _OFFSET)
        scaled = torch._foreach_mul(gradients, sizes)
        length = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(scaled)))
        moves = torch._foreach_mul(torch._foreach_mul(scaled, sizes), radius / length.clamp(min=1e-12))
        torch._foreach_add_(list(parameters), moves)
    try:
        yield
    finally:
        with torch.no_grad():
            torch._foreach_copy_(list(parameters), before)
