"""Random but sensible subnets of a randomly initialised ResNet-20, and one exporter for the whole session."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from eqnet_core.export.module import build_module
from eqnet_core.export.onnx_exact import ExactExporter
from eqnet_core.export.onnx_integer import IntegerExporter
from eqnet_core.export.plan import plan_integers
from eqnet_core.export.plan_run import run_plan
from eqnet_core.export.proof import natural_images
from eqnet_core.models import build_model
from eqnet_core.ranges import TensorRanges
from eqnet_core.space import (
    FIXED_BITS,
    FORMS,
    Granularity,
    LayerSpec,
    SearchSpace,
    SubnetConfiguration,
    Symmetry,
)
from eqnet_core.subnet import BatchNorm, InputSpec, QuantizedLayer, Quantizer, Subnet

INPUT = InputSpec(shape=(3, 32, 32), mean=(0.491, 0.482, 0.447), std=(0.247, 0.243, 0.262))
CLASSES = tuple(f"class {k}" for k in range(10))


@dataclass(frozen=True, kw_only=True)
class FloatNetwork:
    """A float ResNet-20, its layers, and the largest and smallest input of each on a few images."""

    module: nn.Module
    space: SearchSpace
    ranges: dict[str, tuple[float, float]]


@pytest.fixture(scope="session")
def pictures() -> NDArray[np.float32]:
    return natural_images(INPUT, 32, seed=1)


@pytest.fixture(scope="session")
def exporter() -> ExactExporter:
    return ExactExporter("resnet20", INPUT, CLASSES)


@pytest.fixture(scope="session")
def network(pictures: NDArray[np.float32]) -> FloatNetwork:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        module = build_model("resnet20", len(CLASSES))
        for norm in (m for m in module.modules() if isinstance(m, nn.BatchNorm2d)):
            # a negative gamma here and there: nothing may rely on the sign
            nn.init.normal_(norm.weight, 0.9, 0.4)
            nn.init.normal_(norm.bias, 0.0, 0.2)
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}
    targets = {n: m for n, m in module.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}

    def keep(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(_: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
            inputs[name], outputs[name] = arguments[0], output

        return hook

    handles = [target.register_forward_hook(keep(name)) for name, target in targets.items()]
    with torch.no_grad():
        logits = module.train()(torch.from_numpy(pictures))
        # a random network prefers one class whatever it sees; without its preference top-1 says something
        bias = module.get_parameter("fc.bias")
        bias -= logits.mean(0)
    for handle in handles:
        handle.remove()
    layers = []
    for position, (name, target) in enumerate(targets.items()):
        weight = target.weight
        assert isinstance(weight, Tensor)
        is_conv = isinstance(target, nn.Conv2d)
        pixels = int(np.prod(outputs[name].shape[2:])) if is_conv else 1
        layers.append(
            LayerSpec(
                name=name,
                kind="conv" if is_conv else "linear",
                searchable=0 < position < len(targets) - 1,
                output_channels=weight.shape[0],
                weights=weight.numel(),
                inputs=inputs[name][0].numel(),
                macs=weight.numel() * pixels,
                nonnegative=position > 0,
                float_parameters=2 * weight.shape[0] if is_conv else weight.shape[0],
            )
        )
    ranges = {name: (float(x.amin()), float(x.amax())) for name, x in inputs.items()}
    return FloatNetwork(module=module, space=SearchSpace(tuple(layers)), ranges=ranges)


@pytest.fixture(scope="session")
def integer_exporter(
    exporter: ExactExporter, network: FloatNetwork, pictures: NDArray[np.float32]
) -> IntegerExporter:
    """With the ranges that the float network's tensors really have."""
    plan = plan_integers(exporter.graph)
    limits: dict[str, tuple[float, float]] = {}

    def observe(name: str, x: Tensor) -> None:
        limits[name] = (min(float(x.amin()), 0.0), float(x.amax()))

    run_plan(network.module, plan, torch.from_numpy(pictures), observe)
    low, high = np.array([limits[name] for name in plan.ranged], np.float32).T
    return IntegerExporter(exporter.graph, TensorRanges(names=plan.ranged, low=low, high=high))


@pytest.fixture(scope="session")
def make_subnet(
    network: FloatNetwork, pictures: NDArray[np.float32]
) -> Callable[[SubnetConfiguration], Subnet]:
    """`make_subnet(configuration)`: quantised weights, and BatchNorm statistics of the quantised network."""

    def make(configuration: SubnetConfiguration) -> Subnet:
        return quantize_network(network, configuration, pictures)

    return make


@pytest.fixture(scope="session")
def space(network: FloatNetwork) -> SearchSpace:
    return network.space


@pytest.fixture(scope="session")
def subnets(make_subnet: Callable[[SubnetConfiguration], Subnet]) -> list[Subnet]:
    """One subnet per form, each with every bit-width, in different order."""
    generator = np.random.default_rng(3)
    made = []
    for form in FORMS:
        bits = [
            tuple(int(b) for b in generator.permutation(np.resize(np.arange(2, 9), 18))) for _ in range(2)
        ]
        made.append(
            make_subnet(
                SubnetConfiguration(
                    form=form,
                    weight_bits=bits[0],
                    activation_bits=bits[1],
                    narrow_range=form.index % 2 == 1 and form.weight_symmetry is Symmetry.SYMMETRIC,
                    signed=form.index in (2, 7),
                )
            )
        )
    return made


def quantize_network(
    network: FloatNetwork, configuration: SubnetConfiguration, pictures: NDArray[np.float32]
) -> Subnet:
    searchable = iter(zip(configuration.weight_bits, configuration.activation_bits, strict=True))
    layers = []
    for spec in network.space.layers:
        weight_bits, activation_bits = next(searchable) if spec.searchable else (FIXED_BITS, FIXED_BITS)
        target = network.module.get_submodule(spec.name)
        assert isinstance(target, nn.Conv2d | nn.Linear)
        weight = target.weight.detach().numpy()
        quantizer = weight_quantizer(weight, weight_bits, configuration)
        shape = (-1, *(1,) * (weight.ndim - 1)) if quantizer.per_channel else ()
        codes = np.round(weight / quantizer.scale.reshape(shape)) + quantizer.zero_point.reshape(shape)
        layers.append(
            QuantizedLayer(
                name=spec.name,
                codes=np.clip(codes, quantizer.low, quantizer.high).astype(np.int8),
                weight=quantizer,
                activation=activation_quantizer(
                    network.ranges[spec.name], activation_bits, configuration, spec.nonnegative
                ),
                bias=None if target.bias is None else target.bias.detach().numpy(),
            )
        )
    norms = {n: m for n, m in network.module.named_modules() if isinstance(m, nn.BatchNorm2d)}
    subnet = Subnet(
        architecture="resnet20",
        input=INPUT,
        classes=CLASSES,
        space=network.space,
        configuration=configuration,
        layers=tuple(layers),
        batch_norms={name: batch_norm(norm) for name, norm in norms.items()},
    )
    # Statistics of the float network would leave a 2-bit one with dead channels: take its own.
    module = build_module(subnet)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.reset_running_stats()
            norm.momentum = None
            norm.train()
    with torch.no_grad():
        module(torch.from_numpy(pictures))
    calibrated = {n: m for n, m in module.network.named_modules() if isinstance(m, nn.BatchNorm2d)}
    return Subnet(
        architecture=subnet.architecture,
        input=subnet.input,
        classes=subnet.classes,
        space=subnet.space,
        configuration=configuration,
        layers=subnet.layers,
        batch_norms={name: batch_norm(norm) for name, norm in calibrated.items()},
    )


def weight_quantizer(weight: NDArray[np.float32], bits: int, configuration: SubnetConfiguration) -> Quantizer:
    form = configuration.form
    low, high = -(2 ** (bits - 1)) + configuration.narrow_range, 2 ** (bits - 1) - 1
    rows = weight.reshape(weight.shape[0] if form.weight_granularity is Granularity.PER_CHANNEL else 1, -1)
    spread = np.float32(1.2 if bits == 2 else 1.0 - 0.05 * (8 - bits))
    if form.weight_symmetry is Symmetry.SYMMETRIC:
        scale = np.abs(rows).max(1) * spread / max(high, 1.5)
        zero_point = np.zeros(len(rows))
    else:
        scale = (rows.max(1) - rows.min(1)) * spread / (high - low)
        zero_point = np.clip(np.round(low - rows.min(1) * spread / scale), low, high)
    shape = (len(rows),) if form.weight_granularity is Granularity.PER_CHANNEL else ()
    return Quantizer(
        bits=bits,
        low=low,
        high=high,
        scale=scale.astype(np.float32).reshape(shape),
        zero_point=zero_point.astype(np.int32).reshape(shape),
    )


def activation_quantizer(
    limits: tuple[float, float], bits: int, configuration: SubnetConfiguration, nonnegative: bool
) -> Quantizer:
    """Ranges cut at a few steps above the largest value at few bits, with zero-points off the ends if
    asymmetric.
    """
    if nonnegative:
        used = min(bits, 7) if configuration.signed else bits
        low, high = 0, 2**used - 1
    else:
        low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    asymmetric = configuration.form.activation_symmetry is Symmetry.ASYMMETRIC
    zero_point = low + (high - low) // 6 if asymmetric and nonnegative else 3 if asymmetric else 0
    top = limits[1] * (0.4 + 0.07 * bits) if nonnegative else max(abs(limits[0]), abs(limits[1]))
    return Quantizer(
        bits=bits,
        low=low,
        high=high,
        scale=np.array(top / (high - zero_point), dtype=np.float32),
        zero_point=np.array(zero_point, dtype=np.int32),
    )


def batch_norm(module: nn.BatchNorm2d) -> BatchNorm:
    assert module.running_mean is not None
    assert module.running_var is not None
    return BatchNorm(
        scale=module.weight.detach().numpy().copy(),
        shift=module.bias.detach().numpy().copy(),
        mean=module.running_mean.numpy().copy(),
        variance=np.maximum(module.running_var.numpy(), 1e-6),
        epsilon=module.eps,
    )
