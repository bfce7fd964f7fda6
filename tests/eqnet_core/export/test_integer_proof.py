"""Right integer exports pass; every kind of broken one fails, and the error says where."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper
from onnx_faults import Fault, bypass, change, tensor

from eqnet_core.errors import ProofError
from eqnet_core.export import integer_proof
from eqnet_core.export.folding import IntegerSubnet
from eqnet_core.export.integer_proof import IntegerProof, prove_integer
from eqnet_core.export.module import build_module
from eqnet_core.export.onnx_integer import IntegerExporter
from eqnet_core.export.proof import natural_images, simulate
from eqnet_core.space import FORMS, SearchSpace, SubnetConfiguration
from eqnet_core.subnet import Subnet

LAYER = "layer2.1.conv1"


@dataclass(frozen=True, kw_only=True)
class Case:
    """A right file and what it is proven against."""

    exporter: IntegerExporter
    integers: IntegerSubnet
    images: NDArray[np.float32]
    exact: NDArray[np.float32]

    def file(self) -> onnx.ModelProto:
        return onnx.load_from_string(self.exporter.render(self.integers, {}))

    def prove(self, model: onnx.ModelProto) -> IntegerProof:
        return prove_integer(
            model.SerializeToString(), self.integers, self.exporter.plan, self.images, self.exact
        )


@pytest.fixture(scope="module")
def case(
    make_subnet: Callable[[SubnetConfiguration], Subnet],
    space: SearchSpace,
    integer_exporter: IntegerExporter,
) -> Case:
    return make_case(make_subnet(space.uniform(FORMS[7], 4)), integer_exporter)


def make_case(subnet: Subnet, exporter: IntegerExporter) -> Case:
    images = natural_images(subnet.input, 8, seed=5)
    return Case(
        exporter=exporter,
        integers=exporter.fold(subnet),
        images=images,
        exact=simulate(build_module(subnet), images),
    )


@pytest.mark.parametrize("form", range(8))
def test_right_exports_differ_by_one_step_at_most(
    form: int, subnets: list[Subnet], integer_exporter: IntegerExporter
) -> None:
    case = make_case(subnets[form], integer_exporter)
    found = case.prove(case.file())
    for agreement in (found.optimizer_off, found.optimizer_default):
        assert agreement.steps <= 1
        assert agreement.share < found.tolerance.share / 2
        assert agreement.top1 >= 7 / 8
    assert found.lock_step_images == found.images == 8
    document = found.to_json()
    assert document["optimizer_default"]["steps"] == found.optimizer_default.steps
    assert 0 <= document["exact_top1"] <= 1
    assert 0 < document["range_error"] < 0.02


def float_bias(model: onnx.ModelProto) -> None:
    """Right by the standard; ONNX Runtime would round it where it fuses."""
    codes, scale = (
        numpy_helper.to_array(tensor(model, f"{LAYER}.bias.{part}")) for part in ("codes", "scale")
    )
    node = next(node for node in model.graph.node if node.name == f"{LAYER}.bias.dequantize")
    model.graph.node.remove(node)
    value = (codes * scale).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(value, f"{LAYER}.bias"))


def other_branch(model: onnx.ModelProto) -> None:
    """The sum reads another block's tensor of the same shape."""
    add = next(node for node in model.graph.node if node.output[0] == "relu.8.computed")
    add.input[0] = add.input[1]


def at(index: int, delta: float) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    return lambda array: array + delta * (np.arange(array.size).reshape(array.shape) == index)


OUTPUT = f"{LAYER}.output"
FAULTS: dict[str, Fault] = {
    "flipped activation zero-point": change(f"{OUTPUT}.zero_point", lambda a: a + 1),
    "flipped weight zero-point": change(f"{LAYER}.weight.zero_point", at(3, 1)),
    "clip one bit too wide": change(f"{OUTPUT}.high", lambda a: 2 * a + 1),
    "clip one bit too narrow": change(f"{OUTPUT}.high", lambda a: a // 2),
    "no ReLU": change(f"{OUTPUT}.low", lambda a: 0 * a),
    "no clip": bypass(f"{OUTPUT}.clip"),
    "activation scale off by 1 %": change(f"{OUTPUT}.scale", lambda a: a * 1.01),
    "one channel's scale off by 10 %": change(f"{LAYER}.weight.scale", lambda a: a * (1 + at(3, 0.1)(0 * a))),
    "one code": change(f"{LAYER}.weight.codes", at(700, 32)),
    "one channel's bias": change(f"{LAYER}.bias.codes", at(3, 300)),
    "float bias": float_bias,
    "another branch": other_branch,
    "no bias": bypass(f"{LAYER}.bias.dequantize"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_broken_export_fails(name: str, case: Case) -> None:
    model = case.file()
    FAULTS[name](model)
    with pytest.raises(ProofError):
        case.prove(model)


ONLY_INSPECTED = ("float bias", "no bias", "no clip")


@pytest.mark.parametrize("name", [name for name in FAULTS if name not in ONLY_INSPECTED])
def test_running_alone_finds_it_too(name: str, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock-step does not lean on the comparison of integers, and names the tensor."""
    monkeypatch.setattr(integer_proof, "check_integer_file", lambda *_: None)
    model = case.file()
    FAULTS[name](model)
    with pytest.raises(ProofError, match=r"optimiser off.*(layer2\.1|add\.)"):
        case.prove(model)


@pytest.mark.parametrize(
    ("change", "problem"),
    [(lambda logits: logits[:, ::-1], "of the classes agree"), (lambda logits: 2 * logits, "on average")],
    ids=["classes", "logits"],
)
def test_whole_runs_are_compared_too(
    case: Case,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[NDArray[np.float32]], NDArray[np.float32]],
    problem: str,
) -> None:
    """Of a file that is right in lock-step: what it is compared with is what is wrong here."""
    run = integer_proof.run_batch

    def changed(session: Any, images: NDArray[np.float32], names: list[str]) -> list[NDArray[Any]]:
        *found, logits = run(session, images, names)
        return [*found, change(logits)]

    monkeypatch.setattr(integer_proof, "run_batch", changed)
    with pytest.raises(ProofError, match=problem):
        case.prove(case.file())


def test_a_right_file_of_ranges_that_do_not_fit_fails(case: Case) -> None:
    """File and simulation agree to the last code, but the flavour is worth nothing."""
    ranges = case.exporter.ranges
    cut = np.where(np.array(ranges.names) == "add.3", 0.05, 1.0).astype(np.float32)
    exporter = IntegerExporter(
        case.exporter.graph, replace(ranges, low=ranges.low * cut, high=ranges.high * cut)
    )
    broken = replace(case, exporter=exporter, integers=exporter.fold(case.integers.subnet))
    with pytest.raises(ProofError, match=r"range of add\.3 does not fit.* the `ranges` stage again"):
        broken.prove(broken.file())


def test_another_subnets_file_or_none_fails(
    case: Case, subnets: list[Subnet], integer_exporter: IntegerExporter
) -> None:
    other = integer_exporter.render(integer_exporter.fold(subnets[0]), {})
    with pytest.raises(ProofError, match="not the folded subnet's"):
        case.prove(onnx.load_from_string(other))
    with pytest.raises(ProofError, match="not a valid ONNX file"):
        prove_integer(b"not ONNX", case.integers, case.exporter.plan, case.images, case.exact)
