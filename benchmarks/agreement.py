"""Do both flavours compute what was simulated, and what does `integer` cost? On images, many configurations.

    python benchmarks/agreement.py --data cifar10.npz [--images 1000] [--configurations 24] [--least-bits 4]

`--data` is an `.npz` with `x_test` (uint8 [N, 3, H, W]) and `y_test`, images that training never saw. Prints
a row per configuration: top-1 agreement of ONNX Runtime, at its default, with the torch simulation, for both
files, their top-1, and what `model.integer.onnx` loses. BatchNorm statistics are predicted, as in serving.
Uniform bits first, then mixed ones, every form in turn.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from eqnet_core.bundle import Bundle, shipped_bundles
from eqnet_core.export.integer_module import IntegerModule
from eqnet_core.export.module import build_module
from eqnet_core.export.onnx_exact import ExactExporter
from eqnet_core.export.onnx_integer import IntegerExporter
from eqnet_core.export.proof import simulate
from eqnet_core.export.template import trace_float_graph
from eqnet_core.space import FORMS, SearchSpace, SubnetConfiguration
from eqnet_core.supernet import Supernet
from eqnet_core.training.subnets import first_mixed, sample_configuration

BATCH = 100


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--bundle", type=Path, default=shipped_bundles().get("resnet20-cifar10"))
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--configurations", type=int, default=24)
    parser.add_argument("--least-bits", type=int, default=2, help="of any layer")
    parser.add_argument("--without-simulation", action="store_true", help="only the accuracies, much faster")
    options = parser.parse_args()
    bundle = Bundle.open(options.bundle)
    with np.load(options.data, allow_pickle=False) as arrays:
        pixels, labels = arrays["x_test"][: options.images], arrays["y_test"][: options.images]
    mean, std = (np.array(v, np.float32)[:, None, None] for v in (bundle.input.mean, bundle.input.std))
    images = (pixels.astype(np.float32) / 255 - mean) / std
    supernet, statistics = Supernet.from_bundle(bundle), bundle.statistics()
    graph = trace_float_graph(bundle.architecture, bundle.input.shape, len(bundle.classes))
    exact = ExactExporter(bundle.architecture, bundle.input, bundle.classes, graph=graph)
    integer = IntegerExporter(graph, bundle.ranges())
    print(f"{len(labels)} images; agreement with the simulation and top-1 in %, cost in points\n")
    print(f"{'configuration':52s} agree: exact  integer   top-1: exact  integer   cost")
    rows = []
    for name, configuration in configurations(bundle.space, options.configurations, options.least_bits):
        subnet = supernet.extract(configuration, statistics.predict(configuration, bundle.space))
        integers = integer.fold(subnet)
        ran = [run(file, images) for file in (exact.render(subnet, {}), integer.render(integers, {}))]
        agreement = [np.nan, np.nan]
        if not options.without_simulation:
            with torch.inference_mode():
                simulated = [
                    simulate(module, images).argmax(1)
                    for module in (build_module(subnet), IntegerModule(integers, integer.plan))
                ]
            agreement = [float((a == b).mean()) for a, b in zip(ran, simulated, strict=True)]
        top1 = [float((classes == labels).mean()) for classes in ran]
        rows.append((configuration, *agreement, *top1))
        numbers = [100 * value for value in (*agreement, *top1, top1[0] - top1[1])]
        agreed = f"{numbers[0]:12.2f} {numbers[1]:8.2f}"
        print(f"{name:52s} {agreed} {numbers[2]:14.2f} {numbers[3]:8.2f} {numbers[4]:+6.2f}", flush=True)
    summary(rows)


def configurations(space: SearchSpace, count: int, least_bits: int) -> list[tuple[str, SubnetConfiguration]]:
    """Half of them uniform (8, 6, 5, 4, 3, 2 bits in turn), the others mixed; `least_bits` in every layer."""
    least_bits = max(least_bits, space.bit_widths[0])
    widths = [bits for bits in (8, 4, 3, 6, 2, 5) if bits >= least_bits]
    found = []
    generator = np.random.default_rng(0)
    for index in range(count):
        form = FORMS[index % len(FORMS)]
        if index < count // 2:
            bits = widths[index % len(widths)]
            found.append((f"{form.name} {bits}/{bits}", space.uniform(form, bits)))
        else:
            drawn = sample_configuration(space, first_mixed(space) + index, generator)
            configuration = replace(
                drawn,
                weight_bits=tuple(max(bits, least_bits) for bits in drawn.weight_bits),
                activation_bits=tuple(max(bits, least_bits) for bits in drawn.activation_bits),
            )
            averages = np.mean(configuration.weight_bits), np.mean(configuration.activation_bits)
            name = f"{configuration.form.name} {averages[0]:.1f}/{averages[1]:.1f} mixed"
            found.append((name, configuration))
    return found


def run(file: bytes, images: NDArray[np.float32]) -> NDArray[np.int64]:
    """The classes that ONNX Runtime finds."""
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    parts = [
        session.run(["logits"], {"image": images[start : start + BATCH]})[0].argmax(1)
        for start in range(0, len(images), BATCH)
    ]
    return np.concatenate(parts)


def summary(rows: list[tuple[SubnetConfiguration, float, float, float, float]]) -> None:
    least = [100 * min(row[column] for row in rows) for column in (1, 2)]
    print(f"\nleast agreement: exact {least[0]:.2f} %, integer {least[1]:.2f} %")
    for text, wanted in (("all at least 4 bits", True), ("others", False)):
        costs = [
            100 * (row[3] - row[4])
            for row in rows
            if (min(*row[0].weight_bits, *row[0].activation_bits) >= 4) is wanted
        ]
        if costs:
            print(f"integer costs, {text}: mean {np.mean(costs):+.2f}, worst {max(costs):+.2f} points")


if __name__ == "__main__":
    main()
