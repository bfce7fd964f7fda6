"""How good the search's answers are, beside a longer search, random search, pymoo's GA and the front.

    scripts/install dev,benchmarks
    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/search_quality.py [--bundle NAME] [--seeds 3] [--form 5]

One row per budget (the same bound on average weight and activation bits), predicted accuracy in percent: what
the worst of `--seeds` searches finds, then how far the others are above (+) or below (-) it, in points. All
but the search ten times as long and the front, which shares its predictions out among its points, have
`population x generations` predictions to spend; pymoo's GA is the one
for whole numbers of its documentation (Blank & Deb 2020), constraints handled by feasibility first. Where the
search and pymoo find the same optimum the difference is 0. The exit status says whether neither the longer
search nor the front nor the best seed is more than 0.05 points better, and neither random search nor pymoo
better at all.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pymoo.algorithms.soo.nonconvex.ga import GA
from pymoo.core.problem import Problem
from pymoo.operators.crossover.sbx import SBX
from pymoo.operators.mutation.pm import PM
from pymoo.operators.repair.rounding import RoundingRepair
from pymoo.operators.sampling.rnd import IntegerRandomSampling
from pymoo.optimize import minimize

from eqnet_core.bundle import Bundle, shipped_bundles
from eqnet_core.cost import CostModel
from eqnet_core.pareto import front
from eqnet_core.profile import Budget, DeviceProfile, SearchSettings
from eqnet_core.search import search
from eqnet_core.space import BIT_WIDTHS, FORMS, QuantizationForm, SearchSpace

BUDGETS = (2.5, 3.0, 3.5, 4.0, 5.0, 6.0)
SETTINGS = SearchSettings()
TOLERANCE = 0.05
"""Points that a search ten times as long may find beyond a search."""

Objective = Callable[[NDArray[np.int64]], NDArray[np.float64]]
"""What is maximised, [N], of bits [N, 2, L]."""

Within = Callable[[NDArray[np.int64]], NDArray[np.float64]]
"""Average weight and activation bits [N, 2] of bits [N, 2, L]."""


class Allocation(Problem):  # type: ignore[misc]
    """Bits of every gene as whole numbers, for pymoo."""

    def __init__(self, objective: Objective, averages: Within, space: SearchSpace, bound: float) -> None:
        genes, (lowest, *_, highest) = 2 * len(space.searchable), space.bit_widths
        super().__init__(n_var=genes, n_obj=1, n_ieq_constr=2, xl=lowest, xu=highest, vtype=int)
        self._objective, self._averages, self._bound = objective, averages, bound

    def _evaluate(self, x: NDArray[Any], out: dict[str, Any], *_: Any, **__: Any) -> None:
        bits = x.astype(np.int64).reshape(len(x), 2, -1)
        out["F"] = -self._objective(bits)
        out["G"] = self._averages(bits) - self._bound


def best_of_pymoo(problem: Allocation, *, population: int, evaluations: int, seed: int) -> float:
    """The best that pymoo's GA finds; -inf where nothing is feasible."""
    algorithm = GA(
        pop_size=population,
        sampling=IntegerRandomSampling(),
        crossover=SBX(prob=1.0, eta=3.0, vtype=float, repair=RoundingRepair()),
        mutation=PM(prob=1.0, eta=3.0, vtype=float, repair=RoundingRepair()),
        eliminate_duplicates=True,
    )
    found = minimize(problem, algorithm, ("n_eval", evaluations), seed=seed, verbose=False)
    return -np.inf if found.F is None else -float(found.F[0])


def best_of_random(
    objective: Objective, averages: Within, space: SearchSpace, bound: float, count: int
) -> float:
    """The best of `count` random subnets within the budget, drawn around it."""
    generator = np.random.default_rng(0)
    shape, (lowest, *_, highest) = (5000, 2, len(space.searchable)), space.bit_widths
    best, found = -np.inf, 0
    for _ in range(10_000):
        centre = generator.uniform(bound - 1.0, bound, size=(5000, 2, 1))
        bits = np.clip(np.rint(centre + generator.normal(size=shape)), lowest, highest).astype(np.int64)
        bits = bits[(averages(bits) <= bound).all(axis=1)][: count - found]
        if len(bits):
            best = max(best, float(objective(bits).max()))
        found += len(bits)
        if found == count:
            break
    return best


def compare(bundle: Bundle, form: QuantizationForm, seeds: int) -> bool:
    """Print the table; whether the search is good enough at every budget."""
    space: SearchSpace = bundle.space
    predictor, costs = bundle.predictor(), CostModel(bundle.space)
    profile = DeviceProfile(
        weight_bits=BIT_WIDTHS,
        weight_granularity=form.weight_granularity,
        weight_symmetry=form.weight_symmetry,
        activation_bits=BIT_WIDTHS,
        activation_symmetry=form.activation_symmetry,
    )
    evaluations = SETTINGS.population * SETTINGS.generations

    def objective(bits: NDArray[np.int64]) -> NDArray[np.float64]:
        return predictor.predict(space.encode_population(form, bits[:, 0], bits[:, 1]))

    def averages(bits: NDArray[np.int64]) -> NDArray[np.float64]:
        columns = costs.evaluate(form, bits[:, 0], bits[:, 1])
        return np.stack([columns["weight_bits"], columns["activation_bits"]], axis=1)

    def searched(bound: float, generations: int, seed: int) -> float:
        found = search(
            space=space,
            predictor=predictor,
            costs=costs,
            profile=profile,
            budget=Budget(weight_bits=bound, activation_bits=bound),
            settings=SearchSettings(generations=generations, seed=seed),
        )
        return found.predicted_accuracy

    points = {
        point.budget.weight_bits: point.predicted_accuracy
        for point in front(
            space=space,
            predictor=predictor,
            costs=costs,
            profile=profile,
            points=4 * (space.bit_widths[-1] - space.bit_widths[0]) + 1,
        )
    }
    print(f"{bundle.name}, {form.name}, {evaluations} predictions")
    print(f"{'budget':<8}{'search':>9}{'best seed':>11}{'10 x':>9}{'front':>9}{'random':>9}{'pymoo':>9}")
    good = True
    for bound in (bound for bound in BUDGETS if bound >= space.bit_widths[0]):
        found = [searched(bound, SETTINGS.generations, seed) for seed in range(seeds)]
        others = {
            "best": max(found),
            "long": searched(bound, 10 * SETTINGS.generations, seeds),
            "front": points[bound],
            "random": best_of_random(objective, averages, space, bound, evaluations),
            "pymoo": best_of_pymoo(
                Allocation(objective, averages, space, bound),
                population=SETTINGS.population,
                evaluations=evaluations,
                seed=1,
            ),
        }
        beyond = {name: 100 * (other - min(found)) for name, other in others.items()}
        good &= max(beyond.values()) <= TOLERANCE and max(beyond["random"], beyond["pymoo"]) <= 0
        columns = "".join(
            f"{value:>+{width}.3f}" for value, width in zip(beyond.values(), (11, 9, 9, 9, 9), strict=True)
        )
        print(f"{bound:<8}{100 * min(found):>9.3f}{columns}", flush=True)
    return good


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", default="resnet20-cifar10", help="a shipped bundle's name, or a folder")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--form", type=int, default=5, help="index of FORMS, 0 to 7")
    arguments = parser.parse_args()
    bundle = Bundle.open(shipped_bundles().get(arguments.bundle, arguments.bundle))
    sys.exit(0 if compare(bundle, FORMS[arguments.form], arguments.seeds) else 1)


if __name__ == "__main__":
    main()
