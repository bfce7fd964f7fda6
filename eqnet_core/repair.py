"""Bring bits back inside the budget, and spend what is left of it, for a whole population at once.

Both work on *arranged* codes: layers in a random order, the same for the whole population. The earliest
layers step first, so the order decides who gives way. A prefix sum over the layers decides for all of them in
one pass who steps; nothing loops over individuals, and every loop ends after as many rounds as a gene has
steps.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from eqnet_core.genome import Codes, Genome


def shrink(
    codes: Codes,
    genome: Genome,
    *,
    limits: NDArray[np.int64],
    operations_limits: NDArray[np.int64] | None,
    macs: NDArray[np.int64],
    weights_first: NDArray[np.bool_],
) -> None:
    """Lower codes [N, 2, L] in place, step by step, until each meets its `limits` [N, 2] and
    `operations_limits` [N].

    `macs` [L] in the same order as the layers of `codes`; `weights_first` [N, L]: which side of a layer gives
    way first when bit operations are too many. The budget must be feasible.
    """
    for _ in range(genome.most_steps):
        excess = genome.size.take(codes).sum(axis=2) - limits
        if excess.max() <= 0:
            break
        saving = genome.down.take(codes)
        before = saving.cumsum(axis=2)
        before -= saving
        codes -= (before < excess[:, :, None]) & (saving > 0)
    if operations_limits is None:
        return
    for _ in range(2 * genome.most_steps):
        bits = genome.effective.take(codes)
        excess = (bits[:, 0] * bits[:, 1]) @ macs - operations_limits
        if excess.max() <= 0:
            break
        savings = genome.down_bits.take(codes) * bits[:, ::-1] * macs
        # One side per layer and round: steps on both sides of a layer would not add up.
        weights = (weights_first & (savings[:, 0] > 0)) | (savings[:, 1] == 0)
        saving = np.where(weights, savings[:, 0], savings[:, 1])
        before = saving.cumsum(axis=1)
        before -= saving
        stepping = (before < excess[:, None]) & (saving > 0)
        codes[:, 0] -= stepping & weights
        codes[:, 1] -= stepping & ~weights


def grow(
    codes: Codes,
    genome: Genome,
    *,
    limits: NDArray[np.int64],
    operations_limits: NDArray[np.int64] | None,
    macs: NDArray[np.int64],
    weights_first: NDArray[np.bool_],
    rounds: int,
) -> None:
    """Raise feasible codes [N, 2, L] in place by up to `rounds` steps each, staying within the limits.

    The order of the layers alternates between rounds, so that one large layer does not block the rest.
    Arguments as for `shrink`.
    """
    for turn in range(rounds):
        if turn % 2 == 1:
            codes, macs, weights_first = codes[:, :, ::-1], macs[::-1], weights_first[:, ::-1]
        slack = (limits - genome.size.take(codes).sum(axis=2))[:, :, None]
        need = genome.up.take(codes)
        stepping = need <= slack
        if operations_limits is None:
            need *= stepping
            stepping &= need.cumsum(axis=2) <= slack
        else:
            bits = genome.effective.take(codes)
            operations_slack = (operations_limits - (bits[:, 0] * bits[:, 1]) @ macs)[:, None]
            operations_need = genome.up_bits.take(codes) * bits[:, ::-1] * macs
            stepping &= operations_need <= operations_slack[:, :, None]
            stepping[:, 0] &= weights_first | ~stepping[:, 1]
            stepping[:, 1] &= ~stepping[:, 0]
            need *= stepping
            operations_need *= stepping
            stepping &= need.cumsum(axis=2) <= slack
            stepping &= (operations_need.sum(axis=1).cumsum(axis=1) <= operations_slack)[:, None]
        if not stepping.any():
            return
        codes += stepping
