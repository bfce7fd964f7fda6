"""Which float architectures there are, by the name a bundle records."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

from torch import nn

from eqnet_core.errors import InvalidConfigurationError
from eqnet_core.models.fast_cifar import FastCifarNet
from eqnet_core.models.resnet_cifar import CifarResNet


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """`build(classes)` makes the float network; `input_shape` is its (channels, height, width)."""

    build: Callable[[int], nn.Module]
    input_shape: tuple[int, int, int]


def _airbench(widths: tuple[int, int, int]) -> Architecture:
    return Architecture(build=partial(FastCifarNet, widths=widths), input_shape=(3, 32, 32))


def _torchvision(name: str) -> Architecture:
    """A classification network of torchvision for 224 x 224 images, without dropout of activations or whole
    blocks: a teacher and the subnets that it guides see the same network.
    """

    def build(classes: int) -> nn.Module:
        try:
            # Only here: whoever loads a subnet of a ResNet-20 need not have torchvision.
            from torchvision.models import get_model
            from torchvision.ops import StochasticDepth
        except ImportError as error:
            raise InvalidConfigurationError(f"{name} is torchvision's: install torchvision") from error
        model: nn.Module = get_model(name, weights=None, num_classes=classes)
        for module in model.modules():
            if isinstance(module, nn.Dropout | StochasticDepth):
                module.p = 0.0
        return model

    return Architecture(build=build, input_shape=(3, 224, 224))


ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {
        "resnet20": Architecture(build=lambda classes: CifarResNet(3, classes), input_shape=(3, 32, 32)),
        "airbench94": _airbench((64, 256, 256)),
        "airbench95": _airbench((128, 384, 384)),
        **{n: _torchvision(n) for n in ("resnet18", "resnet50", "mobilenet_v2", "efficientnet_b0")},
    }
)


def build_model(architecture: str, classes: int) -> nn.Module:
    """A randomly initialised float network with `classes` outputs.

    Raises:
        InvalidConfigurationError: an architecture that is not registered.
    """
    if architecture not in ARCHITECTURES:
        raise InvalidConfigurationError(
            f"no architecture {architecture!r}: this version has {', '.join(sorted(ARCHITECTURES))}"
        )
    return ARCHITECTURES[architecture].build(classes)
