"""Networks other than ResNet-20, from float to both files: layers, cost, export, proof, state-dict."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch.nn import Dropout
from torchvision.ops import StochasticDepth

from eqnet_core.calibration import calibrate_batch_norm
from eqnet_core.cost import CostModel
from eqnet_core.errors import InvalidConfigurationError, ProofError, UnsupportedTargetError
from eqnet_core.export.folding import IntegerSubnet
from eqnet_core.export.integer_inspection import check_integer_file
from eqnet_core.export.integer_proof import IntegerTolerance, prove_integer
from eqnet_core.export.module import build_module
from eqnet_core.export.onnx_exact import ExactExporter
from eqnet_core.export.onnx_integer import IntegerExporter
from eqnet_core.export.plan import IntegerPlan, plan_integers
from eqnet_core.export.proof import Tolerance, natural_images, prove, simulate
from eqnet_core.export.qonnx import check_quants, runnable
from eqnet_core.export.state_dict import load_subnet, save_subnet
from eqnet_core.export.template import FloatGraph, trace_float_graph
from eqnet_core.models import ARCHITECTURES, build_model
from eqnet_core.space import BIT_WIDTHS, FORMS, SearchSpace
from eqnet_core.subnet import InputSpec
from eqnet_core.supernet import Supernet, trace_layers
from eqnet_core.training.ranges import fit_ranges, tensor_samples

INPUT = InputSpec(shape=(3, 32, 32), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
CLASSES = tuple("abcdefghij")


def make_supernet(architecture: str, images: torch.Tensor) -> Supernet:
    """Random weights; step sizes from the largest weight, which is enough to prove exports on."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_model(architecture, len(CLASSES))
    model.train()(images)
    model.eval()
    space = SearchSpace(trace_layers(model, images))
    supernet = Supernet(
        architecture=architecture, space=space, input=INPUT, classes=CLASSES, float_model=model
    ).eval()
    with torch.no_grad():
        for layer in supernet.layers:
            weight = layer.weight.flatten(1).abs().amax(1)
            for bit, bits in enumerate(BIT_WIDTHS):
                half = 2 ** (bits - 1)
                layer.weight_quantizer.log_step_per_channel[:, bit] = torch.log(weight / half + 1e-8)
                layer.weight_quantizer.log_step_per_tensor[:, bit] = torch.log(weight.max() / half)
                levels = 2 * half - 1 if layer.spec.nonnegative else half
                reach = 7 if bits >= 7 else 3  # beyond ReLU6's bound, where codes are fine enough
                layer.activation_quantizer.log_step[:, bit] = float(np.log(reach / levels))
    return supernet


@pytest.mark.parametrize(
    ("architecture", "layers", "weights", "macs"),
    # parameters of convolutions and classifier, and multiply-accumulates, as torchvision documents them;
    # airbench94's by hand (24 x 12, 9 x (24 x 64 + 64 x 64 + 64 x 256 + 3 x 256 x 256), 256 x 1000), so 95's
    [
        ("airbench94", 8, 2_223_904, 1.18e8),
        ("airbench95", 8, 4_983_072, 3.01e8),
        ("resnet18", 21, 11_678_912, 1.814e9),
        ("resnet50", 54, 25_502_912, 4.089e9),
        ("mobilenet_v2", 53, 3_469_760, 0.301e9),
        ("efficientnet_b0", 82, 5_236_192, 0.386e9),
    ],
)
def test_space_and_cost_are_the_networks(architecture: str, layers: int, weights: int, macs: float) -> None:
    shape = ARCHITECTURES[architecture].input_shape
    model = build_model(architecture, 1000).eval()
    with torch.no_grad():
        space = SearchSpace(trace_layers(model, torch.zeros(1, *shape)))
    assert len(space.layers) == layers
    assert sum(layer.weights for layer in space.layers) == weights
    assert sum(layer.macs for layer in space.layers) == pytest.approx(macs, rel=0.01)
    assert not space.layers[0].searchable
    assert not space.layers[-1].searchable
    cost = CostModel(space).of(space.uniform(FORMS[4], 4))
    assert cost.weight_bits == 4
    # per-channel parameters weigh more where layers are small
    assert 5 < cost.compression < 8


@pytest.mark.parametrize("architecture", ["mobilenet_v2", "efficientnet_b0"])
def test_a_network_is_trained_without_dropout(architecture: str) -> None:
    """A teacher is in training mode, for BatchNorm, and the subnets of a step guide each other."""
    modules = list(build_model(architecture, 4).modules())
    dropping = [module.p for module in modules if isinstance(module, Dropout | StochasticDepth)]
    assert set(dropping) == {0.0}


def test_mobilenets_activations_are_capped_or_have_a_sign() -> None:
    graph = trace_float_graph("mobilenet_v2", INPUT.shape, len(CLASSES))
    plan = plan_integers(graph)
    assert "Reshape" not in {node.op_type for node in graph.nodes}
    capped = [tensor for tensor in plan.tensors.values() if tensor.cap is not None]
    assert len(capped) == 35
    assert all(tensor.cap == 6 and tensor.relu and tensor.nonnegative for tensor in capped)
    assert not plan.tensors["features.2.conv.2.output"].nonnegative  # a linear bottleneck


def test_an_efficientnet_s_exact_files_are_proven_and_its_integer_file_refused() -> None:
    """SiLU and squeeze-excitation: activations with a sign, sigmoids and products between layers."""
    images = natural_images(INPUT, 2, seed=1)
    tensors = torch.from_numpy(images)
    supernet = make_supernet("efficientnet_b0", tensors)
    graph = trace_float_graph("efficientnet_b0", INPUT.shape, len(CLASSES))
    exact = ExactExporter("efficientnet_b0", INPUT, CLASSES, graph=graph)
    loose = Tolerance(top1=0, mean=np.inf)  # random weights: the lock-step is what counts
    for form, bits in ((4, 8), (7, 3)):
        configuration = supernet.space.uniform(FORMS[form], bits)
        supernet.activate(configuration)
        subnet = supernet.extract(configuration, calibrate_batch_norm(supernet, [tensors]))
        logits = simulate(build_module(subnet), images)
        prove(exact.render(subnet, {}), subnet, images, expected=logits, tolerance=loose)
        if form == 4:
            dialect = runnable(exact.render_qonnx(subnet, {}))
            prove(dialect, subnet, images, expected=logits, tolerance=loose, inspect=check_quants)
    with pytest.raises(
        UnsupportedTargetError, match=r"Sigmoid has no integer form here; ask for model\.onnx"
    ):
        plan_integers(graph)


@pytest.mark.parametrize("architecture", ["airbench94", "mobilenet_v2"])
def test_files_and_state_dict_are_proven(architecture: str, tmp_path: Path) -> None:
    """One without residuals, and the deepest, with depthwise layers and ReLU6, which ends the codes in use.

    `benchmarks/artifacts.py` proves ResNet-18's.
    """
    images = natural_images(INPUT, 4, seed=1)
    tensors = torch.from_numpy(images)
    supernet = make_supernet(architecture, tensors)
    graph: FloatGraph = trace_float_graph(architecture, INPUT.shape, len(CLASSES))
    plan = plan_integers(graph)
    exact = ExactExporter(architecture, INPUT, CLASSES, graph=graph)
    for form, bits, signed in ((4, 8, True), (7, 3, False)):
        configuration = supernet.space.uniform(FORMS[form], bits, signed=signed)
        supernet.activate(configuration)
        statistics = calibrate_batch_norm(supernet, [tensors])
        samples = {k: [v] for k, v in tensor_samples(supernet, plan, tensors, 4096).items()}
        integer = IntegerExporter(graph, fit_ranges(samples, plan))
        subnet = supernet.extract(configuration, statistics)
        logits = simulate(build_module(subnet), images[:2])
        # random weights: near ties between classes, single steps carried on; the lock-step is what counts
        loose = Tolerance(top1=0, mean=np.inf), IntegerTolerance(top1=0, mean=np.inf, range_error=0.2)
        prove(exact.render(subnet, {}), subnet, images[:2], expected=logits, tolerance=loose[0])
        if form == 4:
            dialect = runnable(exact.render_qonnx(subnet, {}))
            prove(dialect, subnet, images[:2], expected=logits, tolerance=loose[0], inspect=check_quants)
        integers = integer.fold(subnet)
        file = integer.render(integers, {})
        prove_integer(file, integers, plan, images[:2], logits, tolerance=loose[1])
        clipped = {
            node.input[0].rpartition(".")[2]
            for node in onnx.load_from_string(file).graph.node
            if node.op_type == "Clip"
        }
        if signed:  # such runtimes take none between the pair
            assert clipped == ({"computed"} if architecture == "mobilenet_v2" else set())
            assert_other_caps_are_noticed(file, integers, plan)
        else:
            assert clipped == {"unclipped"}
    path = tmp_path / "model.safetensors"
    path.write_bytes(save_subnet(subnet, {}))
    np.testing.assert_array_equal(load_subnet(path)(tensors[:2]).numpy(), logits)


def assert_other_caps_are_noticed(file: bytes, integers: IntegerSubnet, plan: IntegerPlan) -> None:
    model = onnx.load_from_string(file)
    caps = [tensor for tensor in model.graph.initializer if tensor.name.endswith(".cap")]
    assert bool(caps) == any(tensor.cap is not None for tensor in plan.tensors.values())
    for cap in caps[:1]:
        cap.CopyFrom(onnx.numpy_helper.from_array(np.float32(5), cap.name))
        with pytest.raises(ProofError, match="the codes are clipped to"):
            check_integer_file(model, integers, plan)


def test_an_unknown_architecture_lists_those_there_are() -> None:
    with pytest.raises(
        InvalidConfigurationError, match="efficientnet_b0, mobilenet_v2, resnet18, resnet20, resnet50"
    ):
        build_model("resnet9000", 10)
