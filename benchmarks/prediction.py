"""What predictions cost: `python benchmarks/prediction.py [bundle]` prints a table of medians, in ms.

Rounds are interleaved, so that a busy machine slows all rows alike.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import numpy as np

from eqnet_core.bundle import shipped_bundles
from eqnet_core.factory import Factory
from eqnet_core.space import FORMS

ROUNDS = 30


def main() -> None:
    factory = Factory.open(sys.argv[1] if len(sys.argv) > 1 else next(iter(shipped_bundles().values())))
    space, predictor = factory.bundle.space, factory.predictor
    generator, widths = np.random.default_rng(0), space.bit_widths
    bits = generator.choice(widths, size=(2, 100, len(space.searchable)))
    population = space.encode_population(FORMS[4], bits[0], bits[1])
    one = space.uniform(FORMS[4], 3)
    thousand = [space.uniform(FORMS[k % 8], widths[k % len(widths)]) for k in range(1000)]
    rows: dict[str, Callable[[], object]] = {
        "predict a population of 100, encoded": lambda: predictor.predict(population),
        "predict 1 configuration": lambda: factory.predict([one]),
        "predict 1,000 configurations": lambda: factory.predict(thousand),
        "cost of 1 configuration": lambda: factory.cost(one),
        "BatchNorm statistics of 1 configuration": lambda: factory.statistics.predict(one, space),
        "open the bundle": lambda: Factory.open(factory.bundle.path),
    }
    seconds: dict[str, list[float]] = {name: [] for name in rows}
    for _ in range(ROUNDS):
        for name, run in rows.items():
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    for name, measured in seconds.items():
        print(f"{name:42} {1000 * statistics.median(measured):9.3f} ms")


if __name__ == "__main__":
    main()
