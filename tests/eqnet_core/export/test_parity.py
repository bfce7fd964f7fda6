"""Every layer type x bits 2 to 8 x form x flavour: ONNX Runtime computes what torch simulates.

One small network has every type of layer, so that one subnet is a whole row of the matrix. Both proofs
compare layer by layer in lock-step, with ONNX Runtime's optimiser off and at its default: `exact` to float32
rounding, `integer` to one step of a layer's output.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from eqnet_core.calibration import calibrate_batch_norm, initialise_quantizers
from eqnet_core.cost import CostModel
from eqnet_core.export.integer_proof import IntegerTolerance, prove_integer
from eqnet_core.export.module import build_module
from eqnet_core.export.onnx_exact import ExactExporter
from eqnet_core.export.onnx_integer import IntegerExporter
from eqnet_core.export.plan import plan_integers
from eqnet_core.export.proof import Tolerance, natural_images, prove, simulate
from eqnet_core.export.template import trace_float_graph
from eqnet_core.models import registry
from eqnet_core.space import BIT_WIDTHS, DEPTHWISE, FORMS, SearchSpace, Symmetry
from eqnet_core.subnet import InputSpec
from eqnet_core.supernet import Supernet, trace_layers
from eqnet_core.training.ranges import fit_ranges, tensor_samples

INPUT = InputSpec(shape=(3, 14, 14), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))

TYPES: Mapping[str, str] = {
    "conv": "plain",
    "depthwise": "depthwise",
    "grouped": "grouped",
    "1x1": "pointwise",
    "strided": "strided",
    "strided 1x1": "shortcut",
    "padded, dilated, with bias": "dilated",
    "linear": "hidden",
}
"""Layer type -> its layer in `LayerZoo`."""


class LayerZoo(nn.Module):
    """Every layer type once, ReLU, ReLU6 and neither, a sum, two poolings, a layer without BatchNorm."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn_stem = nn.BatchNorm2d(8)
        self.plain = nn.Conv2d(8, 8, 3, bias=False)
        self.bn_plain = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.bn_depthwise = nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 12, 3, padding=1, groups=4, bias=False)
        self.bn_grouped = nn.BatchNorm2d(12)
        self.pointwise = nn.Conv2d(12, 16, 1, bias=False)
        self.bn_pointwise = nn.BatchNorm2d(16)
        self.strided = nn.Conv2d(16, 16, 3, stride=2, padding=1, bias=False)
        self.bn_strided = nn.BatchNorm2d(16)
        self.shortcut = nn.Conv2d(16, 16, 1, stride=2, bias=False)
        self.bn_shortcut = nn.BatchNorm2d(16)
        self.dilated = nn.Conv2d(16, 16, 3, padding=2, dilation=2)
        self.hidden = nn.Linear(16, 12)
        self.fc = nn.Linear(12, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.bn_stem(self.stem(x)))
        x = functional.relu(self.bn_plain(self.plain(x)))
        x = functional.relu6(self.bn_depthwise(self.depthwise(x)))
        x = self.bn_grouped(self.grouped(x))
        x = functional.relu(self.bn_pointwise(self.pointwise(x)))
        x = functional.relu(self.bn_strided(self.strided(x)) + self.bn_shortcut(self.shortcut(x)))
        x = functional.max_pool2d(functional.relu(self.dilated(x)), 2)
        x = functional.relu(self.hidden(x.mean((2, 3))))
        logits: Tensor = self.fc(x)
        return logits


@dataclass(frozen=True, kw_only=True)
class Zoo:
    supernet: Supernet
    images: NDArray[np.float32]
    exact: ExactExporter
    integer: IntegerExporter


@pytest.fixture(scope="module")
def zoo() -> Iterator[Zoo]:
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        architecture = registry.Architecture(build=LayerZoo, input_shape=INPUT.shape)
        patch.setattr(registry, "ARCHITECTURES", {"zoo": architecture})
        torch.manual_seed(3)
        images = natural_images(INPUT, 16, seed=1)
        model = LayerZoo(10)
        for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
            nn.init.normal_(norm.weight, 0.9, 0.5)  # some are negative: the folded sign must be right
            nn.init.normal_(norm.bias, 0.2, 0.3)
        tensors = torch.from_numpy(images)
        model.train()(tensors)
        layers = trace_layers(model, tensors)
        assert {layer.name for layer in layers if layer.kind == DEPTHWISE} == {"depthwise"}
        # Without their kinds the depthwise kernel is proven at 2 bits too, which no such network has.
        supernet = Supernet(
            architecture="zoo",
            space=SearchSpace(tuple(replace(layer, kind="any") for layer in layers)),
            input=INPUT,
            classes=tuple("abcdefghij"),
            float_model=model,
        ).eval()
        initialise_quantizers(supernet, tensors)
        supernet.activate(supernet.space.uniform(FORMS[4], 8))
        calibrate_batch_norm(supernet, [tensors])
        graph = trace_float_graph("zoo", INPUT.shape, 10)
        plan = plan_integers(graph)
        samples = {k: [v] for k, v in tensor_samples(supernet, plan, tensors, 4096).items()}
        yield Zoo(
            supernet=supernet,
            images=images,
            exact=ExactExporter("zoo", INPUT, supernet.classes, graph=graph),
            integer=IntegerExporter(graph, fit_ranges(samples, plan)),
        )


def test_the_space_describes_every_layer_type(zoo: Zoo) -> None:
    specs = {spec.name: spec for spec in zoo.supernet.space.layers}
    assert set(TYPES.values()) == {name for name, spec in specs.items() if spec.searchable}
    # products per image: outputs x kernel x inputs of one group
    assert specs["plain"].macs == 8 * 12 * 12 * 9 * 8
    assert specs["depthwise"].macs == 8 * 12 * 12 * 9
    assert specs["grouped"].macs == 12 * 12 * 12 * 9 * 2
    assert specs["strided"].macs == 16 * 6 * 6 * 9 * 16
    assert specs["shortcut"].inputs == specs["strided"].inputs == 16 * 12 * 12
    assert specs["dilated"].macs == 16 * 6 * 6 * 9 * 16
    assert specs["hidden"].macs == 16 * 12
    assert specs["dilated"].float_parameters == 16
    assert [name for name, spec in specs.items() if not spec.nonnegative] == ["stem", "pointwise"]
    costs = CostModel(zoo.supernet.space)
    assert costs.of(zoo.supernet.space.uniform(FORMS[0], 2)).weight_bits == 2


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
@pytest.mark.parametrize("bits", BIT_WIDTHS)
def test_onnx_runtime_computes_what_is_simulated(zoo: Zoo, bits: int, form: object) -> None:
    index = FORMS.index(form)  # type: ignore[arg-type]
    configuration = zoo.supernet.space.uniform(
        FORMS[index],
        bits,
        # weights and activations meet at different bits too, and each profile flag at every form
        (bits + index) % 7 + 2 if index % 2 else bits,
        signed=(bits + index) % 3 == 0,
        narrow_range=bits % 2 == 1 and FORMS[index].weight_symmetry is Symmetry.SYMMETRIC,
    )
    supernet, images = zoo.supernet, zoo.images
    supernet.activate(configuration)
    subnet = supernet.extract(configuration, calibrate_batch_norm(supernet, [torch.from_numpy(images)]))
    module = build_module(subnet)
    assert set(TYPES.values()) < set(module.quantized_layers())
    logits = simulate(module, images)
    with torch.no_grad():
        elastic = supernet(torch.from_numpy(images)).numpy()
    # a rounding that falls the other way moves single images
    assert np.median(np.abs(logits - elastic).max(1)) < 1e-3 * logits.std()

    # The lock-step is the test; a random network carries single steps on to its logits unchecked.
    exact = prove(
        zoo.exact.render(subnet, {}),
        subnet,
        images,
        expected=logits,
        tolerance=Tolerance(top1=0, mean=np.inf),
    )
    integers = zoo.integer.fold(subnet)
    integer = prove_integer(
        zoo.integer.render(integers, {}),
        integers,
        zoo.integer.plan,
        images,
        logits,
        tolerance=IntegerTolerance(steps=1, top1=0, mean=np.inf, range_error=np.inf),
    )
    assert exact.optimizer_default.layer_difference <= 2e-5
    assert max(integer.optimizer_off.steps, integer.optimizer_default.steps) <= 1
