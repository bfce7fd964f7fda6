"""Measuring many subnets, in shards; killed at any moment, no more than a chunk is lost."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from eqnet_core.errors import TrainingError
from eqnet_core.space import SubnetConfiguration
from eqnet_core.training.run import Run
from eqnet_core.training.samples import Subnets, append, concatenate, configuration_columns, gather

CHUNK = 16
"""Samples between two writes of the file: at most this many are measured again after a kill."""

Kind = TypeVar("Kind", bound=Subnets)
Item = TypeVar("Item")


@dataclass(frozen=True)
class Shard:
    """Part `rank` (from 0) of `count` processes that share the work of a stage."""

    rank: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.count:
            raise TrainingError(f"no shard {self.rank}/{self.count}: shards of N are 0/N to (N-1)/N")

    @classmethod
    def from_environment(cls) -> Shard:
        """What `torchrun` says this process is, or all of the work."""
        return cls(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))

    def of(self, items: Sequence[Item]) -> list[Item]:
        """Every `count`-th of `items`, from the `rank`-th."""
        return list(items[self.rank :: self.count])


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A subnet to measure, and which one it is (see `Subnets`)."""

    draw: int
    index: int
    configuration: SubnetConfiguration


def collect(
    run: Run,
    kind: type[Kind],
    wanted: Sequence[Wanted],
    measure: Callable[[Wanted], dict[str, Any]],
    *,
    shared: dict[str, Any],
    images: int,
    shard: Shard,
) -> Kind:
    """Measure what is not in the run's folder yet, this shard's part of it; returns all that is there.

    Args:
        measure: the columns of `kind` for one subnet, without the first axis and without its configuration.
        shared: what all samples of `kind` have in common.
        images: forwards of each measurement, for the rate in the log.

    Raises:
        TrainingError: samples of something else are in the folder.
    """
    there = gather(run.folder, kind)
    done = set() if there is None else set(zip(there.draw.tolist(), there.index.tolist(), strict=True))
    # Shards of the whole list: whatever the others do meanwhile, nothing is measured twice.
    todo = [one for one in shard.of(wanted) if (one.draw, one.index) not in done]
    path = run.folder / f"samples-{shard.rank}.npz"
    progress = tqdm(total=len(todo), desc=f"{run.folder.name} {shard.rank}/{shard.count}", unit="subnet")
    for start in range(0, len(todo), CHUNK):
        began = time.perf_counter()
        chunk = todo[start : start + CHUNK]
        rows = []
        for one in chunk:
            columns: dict[str, Any] = {name: np.asarray(value)[None] for name, value in measure(one).items()}
            rows.append(
                kind(
                    draw=np.array([one.draw], dtype=np.int32),
                    index=np.array([one.index], dtype=np.int32),
                    **(configuration_columns([one.configuration]) | columns | shared),
                )
            )
            progress.update()
        append(path, concatenate(rows))
        rate = len(chunk) * images / (time.perf_counter() - began)
        run.log(shard=shard.rank, samples=start + len(chunk), images_per_s=round(rate, 1))
    progress.close()
    together = gather(run.folder, kind)
    if together is None:
        raise TrainingError("no samples asked for: ask for at least one")
    return together
