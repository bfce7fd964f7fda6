"""How fast `model.integer.onnx` runs and how long a subnet's artifacts take to build, beside ONNX Runtime's.

    python benchmarks/artifacts.py [--threads 2] [--rounds 30] [--calibration-images 100]

ResNet-18 at 224 x 224 with random weights (speed does not depend on them) and the bundle that ships. Prints
tables: latency of one image, of float32, of `onnxruntime.quantization.quantize_static`'s files and of ours at
8 and at 4 bits, interleaved in one process, with the median of the ratios to float32 and the ratio of the
best times and of CPU times (hardly moved by a busy machine); the time to build, on one thread; the size of
the files.

`quantize_static` is shown with its defaults (int8/int8), with uint8 activations and int8 weights, its
fastest, whose 16-bit sums saturate on x86 without VNNI, and with uint8 for both, which is right there.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

from eqnet_core.builder import proof_images
from eqnet_core.calibration import calibrate_batch_norm, initialise_quantizers
from eqnet_core.export.folding import IntegerSubnet
from eqnet_core.export.integer_proof import IntegerTolerance, prove_integer
from eqnet_core.export.module import build_module
from eqnet_core.export.onnx_exact import ExactExporter
from eqnet_core.export.onnx_integer import IntegerExporter
from eqnet_core.export.plan import plan_integers
from eqnet_core.export.proof import Tolerance, natural_images, prove, simulate
from eqnet_core.export.template import trace_float_graph
from eqnet_core.factory import Factory
from eqnet_core.models import build_model
from eqnet_core.ranges import TensorRanges
from eqnet_core.space import FORMS, SearchSpace
from eqnet_core.subnet import InputSpec
from eqnet_core.supernet import Supernet, trace_layers
from eqnet_core.training.ranges import fit_ranges, tensor_samples

SPEC = InputSpec(shape=(3, 224, 224), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
CLASSES = tuple(f"class {k}" for k in range(1000))
UINT8, INT8 = QuantType.QUInt8, QuantType.QInt8
FILES = ("model.onnx", "(weights)", "integer", "(weights)")
STATIC: dict[str, dict[str, Any]] = {
    "quantize_static, defaults": {},
    "quantize_static, U8S8": {"activation_type": UINT8, "weight_type": INT8, "per_channel": True},
    "quantize_static, U8U8": {"activation_type": UINT8, "weight_type": UINT8, "per_channel": True},
}


class Clock:
    """CPU and wall seconds since it was made."""

    def __init__(self) -> None:
        self._cpu, self._wall = time.process_time(), time.perf_counter()

    def read(self) -> tuple[float, float]:
        return time.process_time() - self._cpu, time.perf_counter() - self._wall


class Images(CalibrationDataReader):  # type: ignore[misc]
    """`count` images, one by one, as `quantize_static` wants them."""

    def __init__(self, count: int) -> None:
        self._images = iter(natural_images(SPEC, count, seed=2))

    def get_next(self) -> dict[str, Any] | None:
        image = next(self._images, None)
        return None if image is None else {"image": image[None]}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--calibration-images", type=int, default=100)
    options = parser.parse_args()
    torch.set_num_threads(1)  # builds run on one thread each, as the service's builders do
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        resnet18(Path(folder), options)
    resnet20(options)


def resnet18(folder: Path, options: argparse.Namespace) -> None:
    torch.manual_seed(0)
    model = build_model("resnet18", len(CLASSES)).eval()
    images = torch.from_numpy(natural_images(SPEC, 4, seed=1))
    model.train()(images)
    model.eval()
    float_file = folder / "float.onnx"
    torch.onnx.export(
        model, (images[:1],), float_file, dynamo=True, opset_version=21, input_names=["image"],
        output_names=["logits"], verbose=False, external_data=False,
    )  # fmt: skip
    static_seconds = {}
    files = {"float32": float_file}
    for name, settings in STATIC.items():
        files[name] = folder / f"{len(files)}.onnx"
        clock = Clock()
        quantize_static(float_file, files[name], Images(options.calibration_images), **settings)
        static_seconds[name] = clock.read()
    space = SearchSpace(trace_layers(model, images))
    supernet = Supernet(
        architecture="resnet18", space=space, input=SPEC, classes=CLASSES, float_model=model
    ).eval()
    initialise_quantizers(supernet, images)
    graph = trace_float_graph("resnet18", SPEC.shape, len(CLASSES))
    exact = ExactExporter("resnet18", SPEC, CLASSES, graph=graph)
    supernet.activate(space.uniform(FORMS[4], 8))
    statistics = calibrate_batch_norm(supernet, [images])
    integer = IntegerExporter(graph, measured_ranges(supernet, graph, images))
    proven_on = natural_images(SPEC, proof_images(sum(layer.macs for layer in space.layers)), seed=0)
    ours_seconds = []
    for bits in (8, 4):
        files[f"model.integer.onnx, {bits}/{bits} bits"] = folder / f"ours{bits}.onnx"
        clock = Clock()
        subnet = supernet.extract(space.uniform(FORMS[4], bits), statistics)
        rendered = exact.render(subnet, {})
        integers: IntegerSubnet = integer.fold(subnet)
        ours = integer.render(integers, {})
        logits = simulate(build_module(subnet), proven_on)
        # Whatever a random network says about two images, its classes are near ties.
        random = Tolerance(top1=0), IntegerTolerance(top1=0)
        prove(rendered, subnet, proven_on, expected=logits, tolerance=random[0])
        proof = prove_integer(
            ours,
            integers,
            integer.plan,
            proven_on,
            logits,
            tolerance=random[1],
        )
        ours_seconds.append(clock.read())
        assert proof.optimizer_default.steps <= 1
        (folder / f"ours{bits}.onnx").write_bytes(ours)
    print(f"ResNet-18, 224 x 224, one image, {options.threads} threads, {options.rounds} rounds\n")
    latencies(folder, files, options)
    print(f"\nBuilding ResNet-18, CPU and wall seconds ({options.calibration_images} calibration images)\n")
    cpu, wall = (median(taken) for taken in zip(*ours_seconds, strict=True))
    print(f"  {f'ours, both flavours, proofs on {len(proven_on)} images':42s} {cpu:6.2f} {wall:6.2f}")
    for name, (their_cpu, their_wall) in static_seconds.items():
        print(
            f"  {name:42s} {their_cpu:6.2f} {their_wall:6.2f}   ours is {cpu / their_cpu:.2f} of its CPU time"
        )


def measured_ranges(supernet: Supernet, graph: Any, images: torch.Tensor) -> TensorRanges:
    plan = plan_integers(graph)
    samples = tensor_samples(supernet, plan, images, 16384)
    return fit_ranges({name: [values] for name, values in samples.items()}, plan)


def latencies(folder: Path, files: dict[str, Path], options: argparse.Namespace) -> None:
    runs: dict[str, Callable[[], Any]] = {}
    operators: dict[str, Counter[str]] = {}
    image = natural_images(SPEC, 1, seed=3)
    for name, path in files.items():
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = options.threads
        settings.log_severity_level = 4
        # Threads that wait for more would otherwise take the cores from the session that runs next.
        settings.add_session_config_entry("session.force_spinning_stop", "1")
        settings.optimized_model_filepath = str(folder / "optimized.onnx")
        session = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
        operators[name] = Counter(n.op_type for n in onnx.load(folder / "optimized.onnx").graph.node)
        runs[name] = lambda session=session: session.run(None, {"image": image})
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    cpu: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(options.rounds):
        for name, run in runs.items():
            clock = Clock()
            run()
            cpu_seconds, wall_seconds = clock.read()
            seconds[name].append(wall_seconds)
            cpu[name].append(cpu_seconds)
    base = np.array(seconds["float32"])
    print(f"{'':38s} {'ms':>7s}  float32 / this: median, best, CPU   convolutions: integer, float    MB")
    for name, taken in seconds.items():
        found = operators[name]
        integer = found["QLinearConv"] + found["QLinearConvNhwc"] + found["ConvInteger"]
        ratios = f"{median(base / np.array(taken)):22.2f} {base.min() / min(taken):5.2f}"
        ratios += f" {median(cpu['float32']) / median(cpu[name]):4.2f}"
        floats = found["Conv"] + found["FusedConv"]
        size = files[name].stat().st_size / 1e6
        print(f"{name:38s} {1e3 * median(taken):7.1f}  {ratios}   {integer:20d}, {floats:5d}  {size:6.2f}")


def resnet20(options: argparse.Namespace) -> None:
    factory = Factory.open("resnet20-cifar10")
    started = time.perf_counter()
    factory.warm()
    warm = time.perf_counter() - started
    print("\nResNet-20 from the bundle that ships: seconds to build all artifacts, bytes\n")
    print(f"once per bundle (load, trace the graph): {warm:.1f} s\n")
    columns = ("bits", "wall", "CPU", "statistics", "export", "prove", *FILES, "true bits")
    print("  ".join(f"{name:>10s}" for name in columns))
    for bits in (2, 3, 4, 6, 8):
        configuration = factory.bundle.space.uniform(FORMS[4], bits)
        taken = []
        for _ in range(3):
            clock = Clock()
            build = factory.build(configuration)
            taken.append(clock.read())
        files, weights = build.report["files"], build.report["weight_bytes"]
        cpu, wall = (median(seconds) for seconds in zip(*taken, strict=True))
        numbers = (
            f"{wall:.2f}",
            f"{cpu:.2f}",
            *(f"{build.timings[stage]:.3f}" for stage in ("calibrate", "export", "prove")),
            f"{files['model.onnx']['bytes']:,d}",
            f"{weights['containers']:,d}",
            f"{files['model.integer.onnx']['bytes']:,d}",
            f"{weights['integer']:,d}",
            f"{weights['true_bits']:,d}",
        )
        print("  ".join(f"{number:>10s}" for number in (str(bits), *numbers)))


if __name__ == "__main__":
    main()
