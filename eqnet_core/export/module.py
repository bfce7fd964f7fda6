"""The torch simulation of one subnet: what every exported file is measured against."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from eqnet_core.errors import ArtifactError, InvalidConfigurationError
from eqnet_core.models import build_model
from eqnet_core.subnet import BatchNorm, QuantizedLayer, Quantizer, Subnet


class InputQuantizer(nn.Module):
    """Rounds a tensor to one layer's activation codes and back to float32 (`eqnet_core.subnet.Quantizer`).

    Divides by the step size, as QuantizeLinear does: multiplying by its reciprocal differs in the last bit.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self, quantizer: Quantizer) -> None:
        super().__init__()
        self.low, self.high = quantizer.low, quantizer.high
        self.register_buffer("scale", torch.tensor(float(quantizer.scale), dtype=torch.float32))
        self.register_buffer("zero_point", torch.tensor(float(quantizer.zero_point), dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        codes = torch.clamp(torch.round(x / self.scale) + self.zero_point, self.low, self.high)
        return (codes - self.zero_point) * self.scale


class QuantizedConv2d(nn.Module):
    """A convolution of the dequantised input with the dequantised weight; padding is a real 0."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, layer: QuantizedLayer, conv: nn.Conv2d) -> None:
        super().__init__()
        self.name = layer.name
        self.input = InputQuantizer(layer.activation)
        self.register_buffer("weight", torch.from_numpy(layer.dequantized_weight()))
        self.register_buffer("bias", None if layer.bias is None else _tensor(layer.bias))
        self.stride, self.padding, self.dilation, self.groups = (
            conv.stride,
            conv.padding,
            conv.dilation,
            conv.groups,
        )

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv2d(
            self.input(x), self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups
        )


class QuantizedLinear(nn.Module):
    """A linear layer on dequantised input and weight, with a float bias."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, layer: QuantizedLayer) -> None:
        super().__init__()
        self.name = layer.name
        self.input = InputQuantizer(layer.activation)
        self.register_buffer("weight", torch.from_numpy(layer.dequantized_weight()))
        self.register_buffer("bias", None if layer.bias is None else _tensor(layer.bias))

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(self.input(x), self.weight, self.bias)


class SubnetModule(nn.Module):
    """A subnet that runs in torch: normalised float32 images [N, C, H, W] to logits [N, classes].

    `subnet` holds the integers, the configuration, the class names and the normalisation of the input.
    Inference only: it has buffers, no parameters.
    """

    def __init__(self, subnet: Subnet, network: nn.Module) -> None:
        super().__init__()
        self.subnet = subnet
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images)
        return logits

    def quantized_layers(self) -> dict[str, QuantizedConv2d | QuantizedLinear]:
        """The quantised layers by name, in module order."""
        return {m.name: m for m in self.modules() if isinstance(m, QuantizedConv2d | QuantizedLinear)}


class _NoRandomNumbers(TorchFunctionMode):
    """Weights that are all replaced need neither memory nor random numbers. Without memory alone, torch would
    load its symbolic shapes, 200 MB, to check what it does not draw.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func in (Tensor.normal_, Tensor.uniform_):
            return args[0]
        return func(*args, **(kwargs or {}))


def build_module(subnet: Subnet) -> SubnetModule:
    """The simulation of `subnet`, in evaluation mode on the CPU.

    Raises:
        ArtifactError: layers, BatchNorms or shapes are not those of the architecture.
    """
    try:
        with torch.device("meta"), _NoRandomNumbers():
            network = build_model(subnet.architecture, len(subnet.classes))
    except InvalidConfigurationError as error:
        raise ArtifactError(f"cannot build this subnet: {error}") from error
    layers = {layer.name: layer for layer in subnet.layers}
    targets = {name: m for name, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    norms = {name: m for name, m in network.named_modules() if isinstance(m, nn.BatchNorm2d)}
    _check_names("quantised layers", set(targets), set(layers))
    _check_names("BatchNorms", set(norms), set(subnet.batch_norms))
    for name, module in targets.items():
        _replace(network, name, _quantized(layers[name], module))
    for name, norm in norms.items():
        _replace(network, name, _batch_norm(name, subnet.batch_norms, norm))
    left = [name for name, tensor in network.state_dict().items() if tensor.is_meta]
    if left:
        raise ArtifactError(f"{subnet.architecture} has parameters that no subnet has: {', '.join(left[:5])}")
    return SubnetModule(subnet, network).eval().requires_grad_(False)


def _quantized(layer: QuantizedLayer, module: nn.Conv2d | nn.Linear) -> nn.Module:
    if layer.codes.shape != tuple(module.weight.shape):
        raise ArtifactError(
            f"{layer.name} has weights of shape {layer.codes.shape}, "
            f"the architecture needs {tuple(module.weight.shape)}"
        )
    if isinstance(module, nn.Linear):
        return QuantizedLinear(layer)
    if module.padding_mode != "zeros":
        raise ArtifactError(
            f"{layer.name} pads with {module.padding_mode}; only zeros are exact in every runtime"
        )
    return QuantizedConv2d(layer, module)


def _batch_norm(name: str, norms: Mapping[str, BatchNorm], module: nn.BatchNorm2d) -> nn.BatchNorm2d:
    norm = norms[name]
    if norm.scale.shape != (module.num_features,):
        raise ArtifactError(
            f"{name} has {norm.scale.size} channels, the architecture needs {module.num_features}"
        )
    result = nn.BatchNorm2d(module.num_features, eps=norm.epsilon)
    result.load_state_dict(
        {
            "weight": _tensor(norm.scale),
            "bias": _tensor(norm.shift),
            "running_mean": _tensor(norm.mean),
            "running_var": _tensor(norm.variance),
            "num_batches_tracked": torch.tensor(0),
        }
    )
    return result


def _tensor(array: NDArray[np.float32]) -> Tensor:
    return torch.tensor(array, dtype=torch.float32)


def _replace(root: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(root.get_submodule(parent), child, module)


def _check_names(what: str, expected: set[str], given: set[str]) -> None:
    if expected != given:
        raise ArtifactError(
            f"the {what} are not those of the architecture; "
            f"missing: {', '.join(sorted(expected - given)) or 'none'}; "
            f"unknown: {', '.join(sorted(given - expected)) or 'none'}"
        )
