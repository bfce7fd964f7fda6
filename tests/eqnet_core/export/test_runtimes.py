"""The files in runtimes beside ONNX Runtime; `benchmarks/runtimes.py` measures more of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from eqnet_core.export.onnx_exact import ExactExporter
from eqnet_core.export.onnx_integer import IntegerExporter
from eqnet_core.export.proof import Tolerance
from eqnet_core.space import FORMS, SearchSpace, SubnetConfiguration
from eqnet_core.subnet import Subnet

Logits = NDArray[np.float32]

FORM_INDICES = (0, 3, 5, 6)
"""Every value of every axis twice."""


def assert_agree(theirs: Logits, ours: Logits) -> None:
    """As the proof has it: here and there an activation rounds the other way, which 2 bits carry on."""
    bounds = Tolerance()
    assert (theirs.argmax(1) == ours.argmax(1)).mean() >= bounds.top1 - 1 / len(ours)
    assert np.abs(theirs - ours).mean() <= bounds.mean * ours.std()


def run_onnxruntime(content: bytes, images: Logits) -> Logits:
    logits: Logits = onnxruntime.InferenceSession(content).run(["logits"], {"image": images})[0]
    return logits


def cut_weights(content: bytes) -> bytes:
    """int8 weights in [-64, 63]: without VNNI, OpenVINO's kernels saturate beyond (docs/runtimes.md)."""
    model = onnx.load_from_string(content)
    for tensor in model.graph.initializer:
        if tensor.name.endswith(".weight.codes") and tensor.data_type == onnx.TensorProto.INT8:
            codes = np.clip(numpy_helper.to_array(tensor), -64, 63)
            tensor.CopyFrom(numpy_helper.from_array(codes, tensor.name))
    return bytes(model.SerializeToString())


@pytest.fixture(scope="module")
def run_openvino() -> Callable[..., Logits]:
    openvino: Any = pytest.importorskip("openvino", reason="needs the extra `runtimes`")

    def run(content: bytes, images: Logits, **properties: str) -> Logits:
        core = openvino.Core()
        settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": "1", **properties}
        compiled = core.compile_model(core.read_model(content), "CPU", settings)
        return np.array(compiled(images)[0])

    return run


@pytest.fixture(scope="module")
def render(
    make_subnet: Callable[[SubnetConfiguration], Subnet],
    space: SearchSpace,
    exporter: ExactExporter,
    integer_exporter: IntegerExporter,
) -> Callable[[int, str], bytes]:
    """`render(form, flavour)`: a file with bits from 4 to 8; fewer make a random network chaotic."""
    bits = tuple(np.resize(np.arange(4, 9), len(space.searchable)).tolist())
    made: dict[int, Subnet] = {}

    def content(form: int, flavour: str) -> bytes:
        if form not in made:
            made[form] = make_subnet(
                SubnetConfiguration(form=FORMS[form], weight_bits=bits, activation_bits=bits[::-1])
            )
        if flavour == "exact":
            return exporter.render(made[form], {})
        return integer_exporter.render(integer_exporter.fold(made[form]), {})

    return content


@pytest.mark.parametrize("flavour", ["exact", "integer"])
@pytest.mark.parametrize("form", FORM_INDICES)
def test_onnx_files_mean_the_same_by_onnx_itself(
    form: int, flavour: str, render: Callable[[int, str], bytes], pictures: Logits
) -> None:
    content = render(form, flavour)
    images = pictures[:4]
    logits = ReferenceEvaluator(onnx.load_from_string(content)).run(None, {"image": images})[0]
    assert_agree(logits, run_onnxruntime(content, images))


@pytest.mark.parametrize("flavour", ["exact", "integer"])
@pytest.mark.parametrize("form", FORM_INDICES)
def test_openvino_reads_the_same(
    form: int,
    flavour: str,
    render: Callable[[int, str], bytes],
    pictures: Logits,
    run_openvino: Callable[..., Logits],
) -> None:
    """With its low-precision kernels off: what the file says, in float32."""
    content = render(form, flavour)
    logits = run_openvino(content, pictures, LP_TRANSFORMS_MODE="NO")
    assert_agree(logits, run_onnxruntime(content, pictures))


@pytest.mark.parametrize("form", FORM_INDICES)
def test_openvinos_8_bit_kernels_compute_the_exact_flavour(
    form: int, render: Callable[[int, str], bytes], pictures: Logits, run_openvino: Callable[..., Logits]
) -> None:
    content = cut_weights(render(form, "exact"))
    assert_agree(run_openvino(content, pictures), run_onnxruntime(content, pictures))


@pytest.mark.parametrize("form", [0, 4])
def test_openvinos_8_bit_kernels_compute_the_integer_flavour(
    form: int,
    make_subnet: Callable[[SubnetConfiguration], Subnet],
    space: SearchSpace,
    integer_exporter: IntegerExporter,
    pictures: Logits,
    run_openvino: Callable[..., Logits],
) -> None:
    """At 8 bits: OpenVINO rounds residual sums once where the file says twice, and fewer bits carry it on."""
    folded = integer_exporter.fold(make_subnet(space.uniform(FORMS[form], 8)))
    content = integer_exporter.render(folded, {})
    assert_agree(run_openvino(content, pictures), run_onnxruntime(content, pictures))
