"""`model.qonnx.onnx`: what its own package reads in it, what it computes, and faults that the proof finds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx_faults import Fault, bypass, change

from eqnet_core.devices import load_catalogue
from eqnet_core.errors import ProofError, UnsupportedTargetError
from eqnet_core.export.conformance import check_qonnx
from eqnet_core.export.module import build_module
from eqnet_core.export.onnx_exact import ExactExporter
from eqnet_core.export.proof import prove, simulate
from eqnet_core.export.qonnx import check_quants, find_quants, runnable
from eqnet_core.space import BIT_WIDTHS, FORMS, SearchSpace, SubnetConfiguration, Symmetry
from eqnet_core.subnet import Subnet

PER_TENSOR, PER_CHANNEL = (
    form for form in FORMS if Symmetry.ASYMMETRIC not in (form.weight_symmetry, form.activation_symmetry)
)
FPGA = load_catalogue()["fpga-mixed"]
LAYER = "layer2.1.conv1"
Images = NDArray[np.float32]


@pytest.fixture(scope="module", params=["per_tensor", "per_channel", "narrow", "signed"])
def subnet(
    request: pytest.FixtureRequest, make_subnet: Callable[[SubnetConfiguration], Subnet], space: SearchSpace
) -> Subnet:
    """Every bit-width, in every kind of code range that there is."""
    bits = np.resize(np.array(BIT_WIDTHS), len(space.searchable))
    return make_subnet(
        SubnetConfiguration(
            form=PER_TENSOR if request.param == "per_tensor" else PER_CHANNEL,
            weight_bits=tuple(bits.tolist()),
            activation_bits=tuple(bits[::-1].tolist()),
            narrow_range=request.param == "narrow",
            signed=request.param == "signed",
        )
    )


@pytest.fixture(scope="module")
def four_bits(make_subnet: Callable[[SubnetConfiguration], Subnet], space: SearchSpace) -> Subnet:
    return make_subnet(space.uniform(PER_CHANNEL, 4))


def faulty(fault: Fault, subnet: Subnet, exporter: ExactExporter) -> bytes:
    model = onnx.load_from_string(exporter.render_qonnx(subnet, {}))
    fault(model)
    return bytes(model.SerializeToString())


def proven(content: bytes, subnet: Subnet, images: Images) -> None:
    found = prove(runnable(content), subnet, images[:8], inspect=check_quants)
    for agreement in (found.optimizer_off, found.optimizer_default):
        assert agreement.layer_difference < found.tolerance.layer / 5
        assert agreement.top1 >= 6 / 8


def test_it_computes_what_is_simulated(subnet: Subnet, exporter: ExactExporter, pictures: Images) -> None:
    content = exporter.render_qonnx(subnet, {})
    assert content == exporter.render_qonnx(subnet, {})
    proven(content, subnet, pictures)
    check_qonnx(FPGA, content)


def test_every_quantiser_has_its_true_bits(subnet: Subnet, exporter: ExactExporter) -> None:
    """Written down once more: the type that each layer's codes need, and no more."""
    model = onnx.load_from_string(exporter.render_qonnx(subnet, {}))
    found = find_quants(model, [layer.name for layer in subnet.layers])
    for layer in subnet.layers:
        activation, weight, _ = found[layer.name]
        assert weight.type == f"int{layer.weight.bits}"
        assert weight.scale.shape == (
            (len(layer.codes), *(1,) * (layer.codes.ndim - 1)) if layer.weight.per_channel else ()
        )
        if layer.name == "conv1":  # pixels have both signs
            assert activation.type == "int8"
        elif subnet.configuration.signed:
            assert activation.type == f"uint{min(layer.activation.bits, 7)}"
        else:
            assert activation.type == f"uint{layer.activation.bits}"
        narrow = weight.codes[0] == -weight.codes[1]
        assert narrow == subnet.configuration.narrow_range


def test_the_package_of_the_dialect_cleans_types_and_runs_it(
    subnet: Subnet, exporter: ExactExporter, pictures: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    reason = "needs the extra `runtimes`"
    core: Any = pytest.importorskip("qonnx.core.modelwrapper", reason=reason)
    from qonnx.core.onnx_exec import execute_onnx
    from qonnx.transformation.extract_quant_scale_zeropt import ExtractQuantScaleZeroPt
    from qonnx.transformation.infer_datatypes import InferDataTypes
    from qonnx.util.cleanup import cleanup_model

    # qonnx runs node by node, in models of the newest IR version that onnx has, which ONNX Runtime may not.
    monkeypatch.setattr(onnx, "IR_VERSION", 10)
    model = cleanup_model(core.ModelWrapper(onnx.load_from_string(exporter.render_qonnx(subnet, {}))))
    image, logits = model.graph.input[0].name, model.graph.output[0].name
    assert model.get_tensor_shape(image) == [1, 3, 32, 32]
    theirs = [execute_onnx(model, {image: pictures[k : k + 1]})[logits] for k in range(4)]
    ours = simulate(build_module(subnet), pictures[:4])
    assert np.abs(np.concatenate(theirs) - ours).mean() <= 0.1 * ours.std()

    typed = model.transform(ExtractQuantScaleZeroPt()).transform(InferDataTypes())
    quants = [node for node in typed.graph.node if node.op_type == "Quant"]
    types = [str(typed.get_tensor_datatype(node.output[0])) for node in quants]
    weights = [f"INT{layer.weight.bits}" for layer in subnet.layers]
    activations = [
        f"UINT{layer.activation.high.bit_length()}" if layer.activation.low == 0 else "INT8"
        for layer in subnet.layers
    ]
    assert sorted(types) == sorted(weights + activations)


FAULTS: dict[str, Fault] = {
    "activation zero-point": change(f"{LAYER}.input.zero_point", lambda a: a + 1),
    "weight zero-point": change(f"{LAYER}.weight.zero_point", lambda a: a + 1),
    "one bit more": change(f"{LAYER}.input.bits", lambda a: a + 1),
    "a weight with one bit fewer": change(f"{LAYER}.weight.bits", lambda a: a - 1),
    "activation scale off by 0.1 %": change(f"{LAYER}.input.scale", lambda a: a * 1.001),
    "weight scale off by 1 %": change(f"{LAYER}.weight.scale", lambda a: a * 1.01),
    "other weights": change(f"{LAYER}.weight.values", lambda a: a[::-1]),
    "weights between two codes": change(f"{LAYER}.weight.values", lambda a: a * 1.001),
    "half a bit more": change(f"{LAYER}.weight.bits", lambda a: a + 0.5),
    "no bits": change(f"{LAYER}.weight.bits", lambda a: 0 * a),
    "scales along another axis": change(f"{LAYER}.weight.scale", lambda a: a.reshape(1, -1, 1, 1)),
    "a variance": change("layer2.1.bn1.running_var", lambda a: a * 1.01),
    "no activation quantiser": bypass(f"{LAYER}.input.quant"),
    "no weight quantiser": bypass(f"{LAYER}.weight.quant"),
    "no ReLU": bypass("relu.9"),
}


def attribute(name: str, value: int | bytes | None) -> Fault:
    """`value` None: without it."""

    def fault(model: onnx.ModelProto) -> None:
        node = next(node for node in model.graph.node if node.name == f"{LAYER}.weight.quant")
        (stored,) = [attribute for attribute in node.attribute if attribute.name == name]
        if value is None:
            node.attribute.remove(stored)
        else:
            stored.CopyFrom(onnx.helper.make_attribute(name, value))

    return fault


FAULTS |= {
    "an unsigned weight": attribute("signed", 0),
    "a narrow weight": attribute("narrow", 1),
    "another rounding": attribute("rounding_mode", b"FLOOR"),
    "no rounding named": attribute("rounding_mode", None),
}
BEHIND_THE_LAYER = ("a variance", "no ReLU")


@pytest.mark.parametrize("name", FAULTS)
def test_a_broken_file_fails(name: str, four_bits: Subnet, exporter: ExactExporter, pictures: Images) -> None:
    content = faulty(FAULTS[name], four_bits, exporter)
    where = "a layer's input" if name in BEHIND_THE_LAYER else LAYER
    with pytest.raises(ProofError, match=where):
        prove(runnable(content), four_bits, pictures[:8], inspect=check_quants)


@pytest.mark.parametrize("name", ["one bit more", "activation scale off by 0.1 %", "weight scale off by 1 %"])
def test_running_alone_finds_it_too(
    name: str, four_bits: Subnet, exporter: ExactExporter, pictures: Images
) -> None:
    """The lock-step does not lean on the comparison of parameters."""

    def inspect(model: onnx.ModelProto, subnet: Subnet) -> dict[str, tuple[str, str]]:
        found = find_quants(model, [layer.name for layer in subnet.layers])
        return {name: (activation.value, output) for name, (activation, _, output) in found.items()}

    content = faulty(FAULTS[name], four_bits, exporter)
    with pytest.raises(ProofError, match=f"optimiser off.*{LAYER}"):
        prove(runnable(content), four_bits, pictures[:8], inspect=inspect)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (FAULTS["activation zero-point"], f"/layers/{LAYER}/activation has a zero-point other than 0"),
        (FAULTS["another rounding"], f"/layers/{LAYER}/weight is rounded by FLOOR"),
        (change(f"{LAYER}.weight.bits", lambda a: a + 5), f"/layers/{LAYER}/weight is in int9"),
        (FAULTS["scales along another axis"], f"/layers/{LAYER}/weight has not one step size per channel"),
        (
            change(f"{LAYER}.input.scale", np.negative),
            f"/layers/{LAYER}/activation has a step size that is not",
        ),
    ],
)
def test_a_file_that_breaks_a_rule_of_the_device_is_refused_by_name(
    fault: Fault, message: str, four_bits: Subnet, exporter: ExactExporter
) -> None:
    with pytest.raises(UnsupportedTargetError) as refused:
        check_qonnx(FPGA, faulty(fault, four_bits, exporter))
    assert message in str(refused.value)


def test_zero_points_are_refused_by_name(subnets: list[Subnet], exporter: ExactExporter) -> None:
    asymmetric = next(s for s in subnets if s.configuration.form.weight_symmetry is Symmetry.ASYMMETRIC)
    with pytest.raises(UnsupportedTargetError, match=r"symmetric weights and activations") as refused:
        exporter.render_qonnx(asymmetric, {})
    assert "/layers/conv1/weight" in [violation.pointer for violation in refused.value.violations]
