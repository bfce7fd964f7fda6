"""Which float architectures there are, by the name a bundle records."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from torch import nn

from eqnet_core.errors import InvalidConfigurationError
from eqnet_core.models.resnet_cifar import CifarResNet


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """`build(classes)` makes the float network; `input_shape` is its (channels, height, width)."""

    build: Callable[[int], nn.Module]
    input_shape: tuple[int, int, int]


ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {"resnet20": Architecture(build=lambda classes: CifarResNet(3, classes), input_shape=(3, 32, 32))}
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
