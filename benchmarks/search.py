"""How long the search takes, beside the predictor's own forwards; `search_quality.py` says how good it is.

    OMP_NUM_THREADS=1 python benchmarks/search.py [--bundle resnet20-cifar10] [--repeats 5]

Prints tables. Every round runs the search and then as many predictions as it made, in batches of a
generation, in the same process: compare the ratio of their CPU times rather than wall times, which depend
on what else the machine does. With one thread, since on matrices this small a second one mostly waits, and
on a busy machine for very long. Without a bundle the predictor has random weights, with sizes as a
trained one's.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from statistics import median

import numpy as np

from eqnet_core.bundle import Bundle, shipped_bundles
from eqnet_core.cost import CostModel
from eqnet_core.pareto import front
from eqnet_core.predictor import AccuracyPredictor
from eqnet_core.profile import Budget, DeviceProfile, SearchSettings
from eqnet_core.search import AccuracyPredicting, SearchResult, search
from eqnet_core.space import BIT_WIDTHS, Granularity, LayerSpec, SearchSpace, Symmetry

PROFILE = DeviceProfile(
    weight_bits=BIT_WIDTHS,
    weight_granularity=Granularity.PER_CHANNEL,
    weight_symmetry=Symmetry.SYMMETRIC,
    activation_bits=BIT_WIDTHS,
    activation_symmetry=Symmetry.ASYMMETRIC,
)


def layer(name: str, inputs: int, outputs: int, kernel: int, size: int, stride: int = 1) -> LayerSpec:
    weights = kernel**2 * inputs * outputs
    fixed = name in ("first", "last")
    return LayerSpec(
        name=name,
        kind="conv",
        searchable=not fixed,
        output_channels=outputs,
        weights=weights,
        inputs=inputs * size**2,
        macs=weights * (size // stride) ** 2,
        nonnegative=name != "first",
        float_parameters=2 * outputs,
    )


def resnet20_layers() -> Iterator[LayerSpec]:
    yield layer("first", 3, 16, 3, 32)
    inputs, size = 16, 32
    for outputs in (16, 32, 64):
        for block in range(3):
            stride = 2 if block == 0 and outputs > 16 else 1
            yield layer(f"{outputs}.{block}.1", inputs, outputs, 3, size, stride)
            inputs, size = outputs, size // stride
            yield layer(f"{outputs}.{block}.2", outputs, outputs, 3, size)
    yield layer("last", 64, 10, 1, 1)


def resnet50_layers() -> Iterator[LayerSpec]:
    yield layer("first", 3, 64, 7, 224, 2)
    inputs, size = 64, 56
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            stride = 2 if block == 0 and width > 64 else 1
            yield layer(f"{width}.{block}.1", inputs, width, 1, size)
            yield layer(f"{width}.{block}.2", width, width, 3, size, stride)
            yield layer(f"{width}.{block}.3", width, 4 * width, 1, size // stride)
            if block == 0:
                yield layer(f"{width}.{block}.shortcut", inputs, 4 * width, 1, size, stride)
            inputs, size = 4 * width, size // stride
    yield layer("last", 2048, 1000, 1, 1)


def random_predictor(space: SearchSpace, *, members: int, hidden: int) -> AccuracyPredictor:
    """Random sensitivities to the noise of each choice of bits, and a random network on top."""
    generator = np.random.default_rng(0)
    genes, units = 2 * len(space.searchable), members * hidden
    noise = 3.0 ** -np.arange(len(BIT_WIDTHS))[None, :]
    first = generator.normal(scale=0.3 / np.sqrt(genes), size=(space.encoding_size, units + 1))
    first[:, -1] = 0.0
    first[-genes * len(BIT_WIDTHS) :, -1] = -(generator.lognormal(size=(genes, 1)) * noise).ravel() / genes
    return AccuracyPredictor.rounded(
        first=first,
        first_bias=np.zeros(units + 1),
        second=generator.normal(scale=1 / np.sqrt(hidden), size=(members, hidden, hidden)),
        second_bias=np.zeros((members, 1, hidden)),
        third=generator.normal(scale=0.5 / hidden, size=(members, hidden)),
        third_bias=0.0,
        centre=2.4,
        spread=0.5,
        interval_accuracy=np.array([0.5]),
        interval_half_width=np.array([0.003]),
    )


def measure(call: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - wall, time.process_time() - cpu


def print_speed(name: str, space: SearchSpace, predictor: AccuracyPredicting, repeats: int) -> None:
    costs = CostModel(space)
    four = costs.of(space.uniform(PROFILE.form, 4))
    budgets = {
        "weights 3, activations 3": Budget(weight_bits=3.0, activation_bits=3.0),
        "weights 3": Budget(weight_bits=3.0),
        "model bytes": Budget(model_bytes=four.model_bytes),
        "bit operations": Budget(bit_operations=four.bit_operations),
        "all four": Budget(
            weight_bits=4.0,
            activation_bits=3.5,
            model_bytes=four.model_bytes,
            bit_operations=0.7 * four.bit_operations,
        ),
    }
    settings = SearchSettings()
    features = np.repeat(space.encode([space.uniform(PROFILE.form, 4)]), settings.population, axis=0)

    print(f"\n{name}: {len(space.layers)} layers, {settings.population} x {settings.generations}")
    print(f"{'budget':<26}{'wall':>10}{'CPU':>10}{'forwards':>10}{'ratio':>8}{'predictions':>13}")
    for label, budget in budgets.items():
        results: list[SearchResult] = []

        def run(budget: Budget = budget, results: list[SearchResult] = results) -> None:
            results.append(
                search(
                    space=space,
                    predictor=predictor,
                    costs=costs,
                    profile=PROFILE,
                    budget=budget,
                    settings=settings,
                )
            )

        def forwards(results: list[SearchResult] = results) -> None:
            for start in range(0, results[-1].evaluations, settings.population):
                predictor.predict(features[: results[-1].evaluations - start])

        rounds = [(*measure(run), measure(forwards)[1]) for _ in range(repeats)]
        wall, cpu, alone = (median(column) for column in zip(*rounds, strict=True))
        ratio = median(searching / predicting for _, searching, predicting in rounds)
        evaluations = results[-1].evaluations
        print(
            f"{label:<26}{wall:>8.3f} s{cpu:>8.3f} s{alone:>8.3f} s{ratio:>8.2f}{evaluations:>13}", flush=True
        )
    fronts = [
        measure(lambda: front(space=space, predictor=predictor, costs=costs, profile=PROFILE))
        for _ in range(repeats)
    ]
    wall, cpu = (median(column) for column in zip(*fronts, strict=True))
    print(f"{'front of 25 points':<26}{wall:>8.3f} s{cpu:>8.3f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed of the search.")
    parser.add_argument("--bundle", help="a shipped bundle's name, or a folder")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    if arguments.bundle:
        bundle = Bundle.open(shipped_bundles().get(arguments.bundle, arguments.bundle))
        name, space, predictor = bundle.name, bundle.space, bundle.predictor()
    else:
        name, space = "ResNet-20, random predictor", SearchSpace(tuple(resnet20_layers()))
        predictor = random_predictor(space, members=2, hidden=64)
    print_speed(name, space, predictor, arguments.repeats)
    if not arguments.bundle:
        large = SearchSpace(tuple(resnet50_layers()))
        large_predictor = random_predictor(large, members=2, hidden=64)
        print_speed("ResNet-50, random predictor", large, large_predictor, arguments.repeats)


if __name__ == "__main__":
    main()
