"""What a supernet step costs against a float step: `python benchmarks/training.py` prints a table of medians.

All steps run in one process in turn, on the same generated images: a busy machine slows all rows alike.
A supernet step is three subnets with both losses and the optimiser: 3 is the least it can cost.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from torch.nn import functional

from eqnet_core.calibration import initialise_quantizers
from eqnet_core.models import ARCHITECTURES, build_model
from eqnet_core.space import SearchSpace
from eqnet_core.subnet import InputSpec
from eqnet_core.supernet import Supernet, trace_layers
from eqnet_core.training.forward import Precision, training_forward
from eqnet_core.training.starting import INITIALISATION_IMAGES
from eqnet_core.training.subnets import sandwich
from eqnet_core.training.supernet_settings import SupernetSettings
from eqnet_core.training.supernet_steps import backward_through, supernet_optimizer

CLASSES = 10


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--architecture", default="resnet20", choices=sorted(ARCHITECTURES))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    device = torch.device(options.device)
    torch.manual_seed(0)
    shape = ARCHITECTURES[options.architecture].input_shape
    images = torch.rand(max(options.batch_size, INITIALISATION_IMAGES), *shape, device=device)
    labels = torch.randint(CLASSES, (options.batch_size,), device=device)
    batch = images[: options.batch_size]

    model = build_model(options.architecture, CLASSES).to(device)
    supernet = Supernet(
        architecture=options.architecture,
        space=SearchSpace(trace_layers(model, images[:16])),
        input=InputSpec(shape=shape, mean=(0.0,) * 3, std=(1.0,) * 3),
        classes=tuple(map(str, range(CLASSES))),
        float_model=model,
    ).to(device)
    initialisations = []
    for _ in range(3):
        started = time.perf_counter()
        initialise_quantizers(supernet, images[:INITIALISATION_IMAGES])
        _wait(device)
        initialisations.append(time.perf_counter() - started)

    supernet.train()
    steps = {
        "float, eager": _float_step(options.architecture, batch, labels, compiled=False),
        "float, compiled": _float_step(options.architecture, batch, labels, compiled=True),
        "float, compiled, bfloat16": _float_step(
            options.architecture, batch, labels, compiled=True, precision=Precision.BFLOAT16
        ),
        "supernet, compiled": _supernet_step(supernet, batch, labels, Precision.FLOAT32),
        "supernet, compiled, bfloat16": _supernet_step(
            copy.deepcopy(supernet), batch, labels, Precision.BFLOAT16
        ),
    }
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():  # compilation
        step()
        step()
    for _ in range(options.rounds):
        for name, step in steps.items():
            _wait(device)
            started = time.perf_counter()
            step()
            _wait(device)
            seconds[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    fastest = min(value for name, value in medians.items() if name.startswith("float"))
    print(f"{options.architecture}, batch {options.batch_size}, {device}, {torch.get_num_threads()} threads")
    for name, value in medians.items():
        print(f"{name:42} {1000 * value:9.1f} ms {value / fastest:7.2f} x the fastest float step")
    print(f"quantisers from {INITIALISATION_IMAGES} images {statistics.median(initialisations):24.2f} s")


def _supernet_step(
    supernet: Supernet, images: torch.Tensor, labels: torch.Tensor, precision: Precision
) -> Callable[[], None]:
    settings = SupernetSettings(architecture=supernet.architecture)
    optimizer = supernet_optimizer(supernet, settings)
    forward = training_forward(supernet.model, precision=precision)
    generator = np.random.default_rng(0)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        backward_through(
            supernet, forward, images, labels, sandwich(supernet.space, generator), None, settings
        )
        optimizer.step()

    return step


def _float_step(
    architecture: str,
    images: torch.Tensor,
    labels: torch.Tensor,
    *,
    compiled: bool,
    precision: Precision = Precision.FLOAT32,
) -> Callable[[], None]:
    model = build_model(architecture, CLASSES).to(images.device).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True)
    forward = training_forward(model, compiled=compiled, precision=precision)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss = functional.cross_entropy(forward(images), labels)
        torch.autograd.backward(loss)
        optimizer.step()

    return step


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
