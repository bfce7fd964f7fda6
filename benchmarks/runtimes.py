"""The same files in other runtimes: agreement with ONNX Runtime, in which every build is proven.

    .venv/bin/python benchmarks/runtimes.py --data cifar10.npz --page docs/runtimes.md

Needs the extra `runtimes` (OpenVINO, qonnx). Without `--data` (an `.npz` with `x_test`, uint8 [N, 3, H, W])
the images are random ones with the statistics of photographs. `--page` writes the page instead of printing
it.
"""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import openvino
from numpy.typing import NDArray
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.core.onnx_exec import execute_onnx
from qonnx.util.cleanup import cleanup_model

from eqnet_core.export.proof import natural_images
from eqnet_core.factory import Factory
from eqnet_core.space import FORMS, QuantizationForm, SubnetConfiguration, Symmetry

BATCH = 50
Images = NDArray[np.float32]
Runtime = Callable[[bytes, Images], Images]

INTRODUCTION = """# The artifacts in other runtimes

Measured by `benchmarks/runtimes.py`, which also wrote this page: {images}, {versions},
on {processor}. OpenVINO and qonnx come with the extra `runtimes`.

Every build is proven against the simulation in ONNX Runtime (`report.json`). Here the same files run
elsewhere, and the logits are compared with ONNX Runtime's: share of images with the same class, and mean
absolute difference of the logits in their standard deviations. Two correct float32 runtimes differ by
about 0.01:
sums in another order round an activation the other way here and there.

"""

EXPLANATION = """
- **reference evaluator**: `onnx.reference`, which defines the operators in NumPy, on {few} images.
- **qonnx**: the package of that dialect, which FINN and hls4ml build on, on {few} images, beside `model.onnx`
  in ONNX Runtime.
- **OpenVINO**: the file as it is. {verdict}
- **OpenVINO on AVX2**: the same kernels as on a processor without VNNI (`ONEDNN_MAX_CPU_ISA=AVX2`).
- **OpenVINO on AVX2, 7-bit weights**: with the int8 weights of `model.onnx` cut to [-64, 63], in
  ONNX Runtime too (hence its top-1): pairs of products with uint8 activations then fit into 16 bits.
- **OpenVINO, float kernels**: low-precision transformations off (`LP_TRANSFORMS_MODE`, an internal
  property): the integers are dequantised and computed with in float32.

What to take from it

- Read as ONNX, both files say the same everywhere: reference evaluator and float kernels agree. So does
  qonnx with `model.qonnx.onnx`.
- OpenVINO runs the layers that `model.onnx` holds in int8 on 8-bit kernels, those in int4 in float32; with
  VNNI its classes are those of ONNX Runtime.
- `model.onnx` is not for OpenVINO on x86 without VNNI: its 8-bit kernels add pairs of uint8 x int8
  products in 16 bits, which saturates for large weights, and 8-bit layers have them; with 7-bit weights they
  agree. (ONNX Runtime swaps such weights for other kernels when it loads the file.)
- `model.integer.onnx`, which the catalogue names for OpenVINO, keeps its weight codes so small that nothing
  saturates (`eqnet_core/export/folding.py`). OpenVINO then runs every layer on 8-bit kernels. It fuses
  residual additions into the convolution in front without rounding that one's result to 8 bits first: a
  fifth of the sums come out one 8-bit step off, which 2-bit layers carry on. The top-1 column says what that
  costs.
- OpenVINO 2026.4 failed to compile `model.integer.onnx` of some random networks with asymmetric activations
  in our tests (`ConvolutionTransformation`, shapes that do not broadcast), and of none of 32 random subnets
  of an earlier supernet.
"""

VERDICTS = {True: "This processor has VNNI.", False: "This processor has no VNNI."}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path)
    parser.add_argument("--bundle", default="resnet20-cifar10")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--few", type=int, default=50, help="images for the reference evaluator and qonnx")
    parser.add_argument("--bits", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--forms", type=int, nargs="+", default=[0, 4, 5, 7], help="indices of FORMS, 0 to 7")
    parser.add_argument("--page", type=Path)
    options = parser.parse_args()
    factory = Factory.open(options.bundle)
    images = _images(options.data, factory, options.images)
    labels = _labels(options.data, options.images)
    # qonnx runs node by node, in models of the newest IR version that onnx has, which ONNX Runtime may not.
    vars(onnx)["IR_VERSION"] = 10
    forms = [FORMS[i] for i in options.forms]
    # oneDNN reads its environment once: AVX2 needs a process of its own.
    with ProcessPoolExecutor(1, get_context("spawn"), initializer=_use_avx2) as avx2:
        lines = list(_table(factory, images, labels, options.few, forms, options.bits, avx2))
    vnni = _has_vnni()
    page = INTRODUCTION.format(
        images=f"{len(images)} {'test' if options.data else 'random'} images",
        versions=f"onnx {onnx.__version__}, onnxruntime {onnxruntime.__version__}, openvino "
        f"{openvino.__version__.split('-')[0]} and qonnx {version('qonnx')}",
        processor=f"{platform.machine()} {'with' if vnni else 'without'} VNNI",
    )
    page += "\n".join(lines) + "\n" + EXPLANATION.format(few=options.few, verdict=VERDICTS[vnni])
    if options.page:
        options.page.write_text(page, encoding="utf-8")
    else:
        print(page)


def _use_avx2() -> None:
    os.environ["ONEDNN_MAX_CPU_ISA"] = "AVX2"


def _images(data: Path | None, factory: Factory, count: int) -> Images:
    spec = factory.bundle.input
    if data is None:
        return natural_images(spec, count, seed=1)
    with np.load(data, allow_pickle=False) as arrays:
        pixels = arrays["x_test"][:count].astype(np.float32) / 255
    mean, std = (np.array(values, np.float32)[:, None, None] for values in (spec.mean, spec.std))
    return np.asarray((pixels - mean) / std, np.float32)


def _labels(data: Path | None, count: int) -> NDArray[np.int64] | None:
    if data is None:
        return None
    with np.load(data, allow_pickle=False) as arrays:
        return np.asarray(arrays["y_test"][:count], np.int64)


def _table(
    factory: Factory,
    images: Images,
    labels: NDArray[np.int64] | None,
    few: int,
    forms: Sequence[QuantizationForm],
    bits: Sequence[int],
    avx2: Executor,
) -> Iterator[str]:
    yield (
        "| form | bits | file | runtime | 8-bit layers | same class | mean difference | top-1 there "
        "| in ONNX Runtime |"
    )
    yield "|---|---|---|---|---|---|---|---|---|"
    for form in forms:
        symmetric = form.weight_symmetry is form.activation_symmetry is Symmetry.SYMMETRIC
        files = ["model.onnx", "model.integer.onnx", *(["model.qonnx.onnx"] if symmetric else [])]
        for configuration, label in _configurations(factory, form, bits):
            built = factory.build(configuration, artifacts=files).files
            for file in files:
                for name, (theirs, layers), ours in _runs(file, built, images, few, avx2):
                    same = 100 * (theirs.argmax(1) == ours.argmax(1)).mean()
                    apart = np.abs(theirs - ours).mean() / ours.std()
                    right = ["-" if labels is None else _top1(logits, labels) for logits in (theirs, ours)]
                    row = (
                        form.name,
                        label,
                        f"`{file}`",
                        name,
                        layers,
                        f"{same:.1f} %",
                        f"{apart:.4f}",
                        *right,
                    )
                    print(" ".join(row), flush=True)
                    yield f"| {' | '.join(row)} |"


def _top1(logits: Images, labels: NDArray[np.int64]) -> str:
    return f"{100 * (logits.argmax(1) == labels[: len(logits)]).mean():.1f} %"


def _configurations(
    factory: Factory, form: QuantizationForm, bits: Sequence[int]
) -> Iterator[tuple[SubnetConfiguration, str]]:
    space = factory.bundle.space
    for width in bits:
        yield space.uniform(form, width), str(width)
    mixed = tuple(np.resize(np.array(space.bit_widths), len(space.searchable)).tolist())
    yield (
        SubnetConfiguration(
            form=form,
            weight_bits=mixed,
            activation_bits=mixed[::-1],
            narrow_range=form.weight_symmetry is Symmetry.SYMMETRIC,
        ),
        f"{min(mixed)} to {max(mixed)} mixed",
    )


def _runs(
    file: str, built: Mapping[str, bytes], images: Images, few: int, avx2: Executor
) -> Iterator[tuple[str, tuple[Images, str], Images]]:
    """For every runtime its name, logits and 8-bit layers there, and logits in ONNX Runtime."""
    content = built[file]
    if file == "model.qonnx.onnx":
        ours = run_onnxruntime(built["model.onnx"], images[:few])
        yield "qonnx", (run_qonnx(content, images[:few]), "-"), ours
        return
    ours = run_onnxruntime(content, images)
    yield "reference evaluator", (run_reference(content, images[:few]), "-"), ours[:few]
    yield "OpenVINO", run_openvino(content, images), ours
    yield "OpenVINO on AVX2", avx2.submit(run_openvino, content, images).result(), ours
    if file == "model.onnx":
        cut = cut_weights(content)
        theirs = avx2.submit(run_openvino, cut, images).result()
        yield "OpenVINO on AVX2, 7-bit weights", theirs, run_onnxruntime(cut, images)
    yield "OpenVINO, float kernels", run_openvino(content, images, LP_TRANSFORMS_MODE="NO"), ours


def run_onnxruntime(content: bytes, images: Images) -> Images:
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(["logits"], {"image": part})[0] for part in _batches(images)])


def run_reference(content: bytes, images: Images) -> Images:
    logits: Images = ReferenceEvaluator(onnx.load_from_string(content)).run(None, {"image": images})[0]
    return logits


def run_qonnx(content: bytes, images: Images) -> Images:
    model = cleanup_model(ModelWrapper(onnx.load_from_string(content)))
    image, logits = model.graph.input[0].name, model.graph.output[0].name
    return np.concatenate([execute_onnx(model, {image: one[None]})[logits] for one in images])


def run_openvino(content: bytes, images: Images, **properties: str) -> tuple[Images, str]:
    """Logits, and how many of the convolutions and matrix products OpenVINO computes with bytes."""
    core = openvino.Core()
    # bfloat16, the default where the processor has it, would hide what is to be seen
    settings = {"INFERENCE_PRECISION_HINT": "f32", **properties}
    compiled = core.compile_model(core.read_model(content), "CPU", settings)
    executed = [operation.get_rt_info() for operation in compiled.get_runtime_model().get_ops()]
    precisions = [
        str(info["runtimePrecision"].astype(str))
        for info in executed
        if str(info["layerType"].astype(str)) in ("Convolution", "FullyConnected", "MatMul")
    ]
    layers = f"{sum(precision in ('u8', 'i8') for precision in precisions)} of {len(precisions)}"
    return np.concatenate([np.array(compiled(part)[0]) for part in _batches(images)]), layers


def cut_weights(content: bytes) -> bytes:
    """The file with every int8 weight in [-64, 63]."""
    model = onnx.load_from_string(content)
    for tensor in model.graph.initializer:
        if tensor.name.endswith(".weight.codes") and tensor.data_type == onnx.TensorProto.INT8:
            codes = np.clip(numpy_helper.to_array(tensor), -64, 63)
            tensor.CopyFrom(numpy_helper.from_array(codes, tensor.name))
    return bytes(model.SerializeToString())


def _batches(images: Images) -> Iterator[Images]:
    for start in range(0, len(images), BATCH):
        yield images[start : start + BATCH]


def _has_vnni() -> bool:
    """Whether the processor multiplies and adds bytes into 32 bits; only Linux says."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    return any(flag in text.split() for flag in ("avx512_vnni", "avx_vnni", "amx_int8", "asimddp"))


if __name__ == "__main__":
    main()
