"""What BatchNorm statistics without images cost: predicted ones against calibration with images.

    .venv/bin/python benchmarks/calibration.py --data cifar10.npz

64 random configurations down to an average of 3 bits, all forms. Each is measured on the same test images
with statistics from 4,096 augmented training images, from another draw of 1,024, and as predicted. What
needs images is kept in `--reference`: another predictor of the same supernet is compared with it in a
fraction of the time.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eqnet_core.bundle import STATISTICS, Bundle, shipped_bundles
from eqnet_core.calibration import calibrate_batch_norm
from eqnet_core.evaluation import correct
from eqnet_core.space import FORMS, SearchSpace, SubnetConfiguration
from eqnet_core.supernet import Statistics, Supernet
from eqnet_core.training.batches import calibration_batches, seeded
from eqnet_core.training.data import ImageData, load_data, normalise
from eqnet_core.training.run import save_tensors, tensors_digest
from eqnet_core.training.subnets import first_mixed, sample_configuration

SEED = 40_000
"""Far from any seed that samples were drawn with."""

DRAWS = {"4,096 images": (4096, 0), "1,024 others": (1024, 1)}
"""Name -> how many images, which draw."""


def configurations(space: SearchSpace, count: int) -> list[SubnetConfiguration]:
    """`count` random subnets whose weights and activations have 3 bits or more on average, forms in turn."""
    found: list[SubnetConfiguration] = []
    index = first_mixed(space)
    while len(found) < count:
        drawn = sample_configuration(space, index, seeded(SEED, "configurations", index))
        if min(np.mean(drawn.weight_bits), np.mean(drawn.activation_bits)) >= 3:
            found.append(drawn)
            index += 1
        else:
            index += len(FORMS)
    return found


class Bench:
    """The supernet, compiled once, and the images it is measured on."""

    def __init__(self, bundle: Bundle, data: ImageData, images: int) -> None:
        self.supernet = Supernet.from_bundle(bundle)
        self.forward: Callable[[Tensor], Tensor] = torch.compile(self.supernet, dynamic=False)
        self.data = data
        self.images = normalise(data.test.images[:images], data.mean, data.std)
        self.labels = data.test.labels[:images]

    def hits(self, configuration: SubnetConfiguration, statistics: Statistics) -> NDArray[np.bool_]:
        self.supernet.activate(configuration)
        self.supernet.set_statistics(statistics)
        return correct(self.supernet, self.images, self.labels, forward=self.forward).numpy()

    def calibrate(self, configuration: SubnetConfiguration, images: int, draw: int) -> Statistics:
        self.supernet.activate(configuration)
        batches = calibration_batches(
            self.data, images=images, seed=SEED, index=draw, device=torch.device("cpu")
        )
        return calibrate_batch_norm(self.supernet, batches, forward=self.forward)


def measure_reference(bench: Bench, chosen: list[SubnetConfiguration], path: Path) -> dict[str, NDArray]:
    """Hits [configurations, images] of each draw, statistics of the first; goes on where it stopped.

    Begins anew where the file is of another supernet or of another number of images.
    """
    found: dict[str, list] = {name: [] for name in (*DRAWS, "means", "variances")}
    digest = tensors_digest(bench.supernet.tensors())
    measured = f"{digest}, {len(bench.images)} test images of {bench.data.digest}"
    if path.exists():
        with np.load(path) as archive:
            if str(archive.get("measured")) == measured:
                found = {name: list(archive[name])[: len(chosen)] for name in found}
            else:
                print(f"{path} is of another supernet or other images: measuring anew", flush=True)
    for position in range(len(found["means"]), len(chosen)):
        for name, (images, draw) in DRAWS.items():
            statistics = bench.calibrate(chosen[position], images, draw)
            found[name].append(bench.hits(chosen[position], statistics))
            if draw == 0:
                found["means"].append(np.concatenate([mean for mean, _ in statistics.values()]))
                found["variances"].append(np.concatenate([variance for _, variance in statistics.values()]))
        arrays = {name: np.array(values) for name, values in found.items()}
        save_tensors(path, {"measured": np.array(measured), **arrays})
        print(f"reference {position + 1} of {len(chosen)}", flush=True)
    return {name: np.array(values) for name, values in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--held-out", type=int, default=5000, help="as in training: not used to calibrate")
    parser.add_argument("--bundle", type=Path, default=next(iter(shipped_bundles().values())))
    parser.add_argument("--configurations", type=int, default=64)
    parser.add_argument("--images", type=int, default=2000, help="test images to measure on")
    parser.add_argument("--reference", type=Path, default=Path("runs/statistics-reference.npz"))
    options = parser.parse_args()
    bundle = Bundle.open(options.bundle)
    data = load_data(options.data, input_shape=bundle.input.shape, held_out=options.held_out, seed=0)
    chosen = configurations(bundle.space, options.configurations)
    bench = Bench(bundle, data, options.images)
    reference = measure_reference(bench, chosen, options.reference)
    predictor = bundle.statistics()
    hits, seconds = [], []
    for configuration in chosen:
        started = time.perf_counter()
        statistics = predictor.predict(configuration, bundle.space)
        seconds.append(time.perf_counter() - started)
        hits.append(bench.hits(configuration, statistics))
    found = {**{name: reference[name] for name in DRAWS}, "predicted": np.array(hits)}
    base = found.pop("4,096 images").astype(float)
    print(
        f"{len(chosen)} configurations, {base.shape[1]} test images; 4,096 images: {100 * base.mean():.2f} %"
    )
    print("statistics      top-1   cost: mean   standard error   worst")
    for name, right in found.items():
        cost = 100 * (base - right)  # [configurations, images]
        # All configurations are measured on the same images: those, not the configurations, are the sample.
        error = cost.mean(axis=0).std(ddof=1) / np.sqrt(cost.shape[1])
        worst = cost.mean(axis=1).max()
        print(f"{name:14} {100 * right.mean():6.2f}  {cost.mean():11.2f} {error:16.2f} {worst:7.2f}")
    size = bundle.document["files"][STATISTICS]["bytes"]
    print(f"{1000 * np.median(seconds):.2f} ms per subnet, {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
