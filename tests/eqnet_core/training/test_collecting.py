"""Measuring in shards and chunks, broken off and gone on with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from convolutions import make_space

from eqnet_core.training.collecting import CHUNK, Shard, Wanted, collect
from eqnet_core.training.run import Run
from eqnet_core.training.samples import SPREAD, Samples
from eqnet_core.training.sampling import SamplingSettings
from eqnet_core.training.subnets import sample_configuration

SPACE = make_space("stem", "a.0", "b.0", "fc")


class KilledError(Exception):
    """Stands for the power cut."""


def collected(folder: Path, count: int, shard: Shard, *, killed_at: int = -1) -> tuple[int, list[int]]:
    """How many samples are there in the end, and which were measured by this call."""
    measured: list[int] = []

    def measure(one: Wanted) -> dict[str, Any]:
        if one.index == killed_at:
            raise KilledError
        measured.append(one.index)
        return {"half_accuracy": np.full(2, 0.9), "plain_accuracy": 0.9, "smooth_accuracy": 0.9}

    generator = np.random.default_rng(0)
    wanted = [
        Wanted(draw=SPREAD, index=index, configuration=sample_configuration(SPACE, index, generator))
        for index in range(count)
    ]
    run = Run(folder, SamplingSettings(samples=count), growing=("samples",))
    shared = {"space": SPACE, "images": 100, "views": 0}
    samples = collect(run, Samples, wanted, measure, shared=shared, images=100, shard=shard)
    return len(samples), measured


def test_nothing_is_measured_twice(tmp_path: Path) -> None:
    with pytest.raises(KilledError):
        collected(tmp_path, 40, Shard(), killed_at=CHUNK + 3)
    assert collected(tmp_path, 40, Shard()) == (40, list(range(CHUNK, 40)))
    assert collected(tmp_path, 40, Shard()) == (40, [])
    assert collected(tmp_path, 46, Shard(1, 2)) == (43, [41, 43, 45])
    assert collected(tmp_path, 46, Shard(0, 3)) == (44, [42])
    assert collected(tmp_path, 46, Shard()) == (46, [40, 44])
