"""Turns a float network into a supernet and activates the subnets in it."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from eqnet_core.errors import BundleError
from eqnet_core.layers import ElasticConv2d, ElasticLayer, ElasticLinear, layer_setting
from eqnet_core.models import build_model
from eqnet_core.space import DEPTHWISE, FIXED_BITS, LayerSpec, SearchSpace, SubnetConfiguration
from eqnet_core.subnet import BatchNorm, InputSpec, Subnet

if TYPE_CHECKING:
    from eqnet_core.bundle import Bundle

Statistics = Mapping[str, tuple[NDArray[np.float32], NDArray[np.float32]]]
"""BatchNorm module name -> (mean [C], variance [C])."""


class Supernet(nn.Module):
    """All subnets of one network in shared weights; `activate` chooses which one `forward` computes.

    Args:
        architecture: a name of `models.ARCHITECTURES`.
        space: its quantised layers in execution order (`trace_layers` finds them).
        input: shape and normalisation of one image.
        classes: names of the outputs, in order.
        float_model: trained weights to share; random ones without it.

    Raises:
        BundleError: layers of `space` are not those of the network.

    `forward` maps normalised float32 [N, C, H, W] to logits [N, classes]. In training mode BatchNorm uses
    batch statistics; evaluation needs calibrated ones (`calibration`, or `set_statistics`).
    """

    def __init__(
        self,
        *,
        architecture: str,
        space: SearchSpace,
        input: InputSpec,
        classes: tuple[str, ...],
        float_model: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.architecture = architecture
        self.space = space
        self.input = input
        self.classes = classes
        self.model = float_model if float_model is not None else build_model(architecture, len(classes))
        self._elastic: list[ElasticLayer] = []
        for spec in space.layers:
            parent_name, _, child = spec.name.rpartition(".")
            parent = self.model.get_submodule(parent_name)
            layer = parent.get_submodule(child)
            elastic: ElasticLayer
            if isinstance(layer, nn.Conv2d):
                elastic = ElasticConv2d(layer, spec)
            elif isinstance(layer, nn.Linear):
                elastic = ElasticLinear(layer, spec)
            else:
                raise BundleError(f"{spec.name} of {architecture} is neither a convolution nor linear")
            figures = (layer.weight.numel(), len(layer.weight))
            if figures != (spec.weights, spec.output_channels):
                raise BundleError(
                    f"{spec.name} of {architecture} has {figures[0]} weights in {figures[1]} channels, not "
                    f"{spec.weights} in {spec.output_channels}: write the bundle again"
                )
            setattr(parent, child, elastic)
            self._elastic.append(elastic)
        self.configuration = space.uniform(self._elastic[0].setting.form, FIXED_BITS)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x)
        return logits

    @property
    def layers(self) -> tuple[ElasticLayer, ...]:
        """The elastic layers in execution order."""
        return tuple(self._elastic)

    def batch_norms(self) -> dict[str, nn.BatchNorm2d]:
        """BatchNorm modules by name, in module order: the order of every statistics table."""
        return {n: m for n, m in self.model.named_modules() if isinstance(m, nn.BatchNorm2d)}

    def activate(self, configuration: SubnetConfiguration) -> None:
        """Make `configuration` the one that `forward` computes; first and last layer stay at 8/8 bits.

        Raises:
            InvalidConfigurationError: not one entry per searchable layer, or bits that the network lacks.
        """
        self.space.check(configuration)
        bits = iter(zip(configuration.weight_bits, configuration.activation_bits, strict=True))
        for layer in self._elastic:
            weight_bits, activation_bits = next(bits) if layer.spec.searchable else (FIXED_BITS, FIXED_BITS)
            layer.set(
                layer_setting(
                    layer.spec,
                    configuration.form,
                    weight_bits,
                    activation_bits,
                    narrow_range=configuration.narrow_range,
                    signed=configuration.signed,
                )
            )
        self.configuration = configuration

    def statistics(self) -> dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]]:
        """The running statistics that BatchNorm has now."""
        found = {}
        for name, module in self.batch_norms().items():
            assert module.running_mean is not None
            assert module.running_var is not None
            found[name] = (module.running_mean.cpu().numpy().copy(), module.running_var.cpu().numpy().copy())
        return found

    @torch.no_grad()
    def set_statistics(self, statistics: Statistics) -> None:
        """Set BatchNorm's running statistics, one (mean [C], variance [C]) per module."""
        for name, module in self.batch_norms().items():
            mean, variance = statistics[name]
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.copy_(torch.from_numpy(np.asarray(mean)))
            module.running_var.copy_(torch.from_numpy(np.asarray(variance)))

    def extract(self, configuration: SubnetConfiguration, statistics: Statistics) -> Subnet:
        """Activate `configuration` and return it as integers, scales and zero-points, with `statistics`."""
        self.activate(configuration)
        self.set_statistics(statistics)
        return Subnet(
            architecture=self.architecture,
            input=self.input,
            classes=self.classes,
            space=self.space,
            configuration=configuration,
            layers=tuple(layer.extract() for layer in self._elastic),
            batch_norms={
                name: BatchNorm(
                    scale=module.weight.detach().cpu().numpy().copy(),
                    shift=module.bias.detach().cpu().numpy().copy(),
                    mean=np.asarray(statistics[name][0], dtype=np.float32),
                    variance=np.asarray(statistics[name][1], dtype=np.float32),
                    epsilon=module.eps,
                )
                for name, module in self.batch_norms().items()
            },
        )

    def tensors(self) -> dict[str, NDArray[np.float32]]:
        """Everything that was trained, by name: what a bundle stores. No running statistics."""
        return {
            name: value.detach().cpu().numpy().copy()
            for name, value in self.model.state_dict().items()
            if not name.endswith(("running_mean", "running_var", "num_batches_tracked"))
        }

    def load_tensors(self, tensors: Mapping[str, NDArray[np.float32]]) -> None:
        """Load what `tensors` returned.

        Raises:
            BundleError: a tensor is missing, unknown, of another shape or not of finite float32 values.
        """
        expected = self.tensors()
        wrong = sorted(
            {*expected, *tensors}
            - {n for n in expected if n in tensors and tensors[n].shape == expected[n].shape}
        )
        if wrong:
            raise BundleError(
                f"the tensors do not fit {self.architecture}: {', '.join(wrong[:5])} missing, unknown or of "
                "another shape"
            )
        broken = sorted(n for n, v in tensors.items() if v.dtype != np.float32 or not np.isfinite(v).all())
        if broken:
            raise BundleError(
                f"the tensors of this {self.architecture} are broken: {', '.join(broken[:5])} must be finite "
                "float32"
            )
        self.model.load_state_dict({n: torch.from_numpy(v.copy()) for n, v in tensors.items()}, strict=False)

    @classmethod
    def from_bundle(cls, bundle: Bundle) -> Supernet:
        """The trained supernet of a bundle, in evaluation mode."""
        supernet = cls(
            architecture=bundle.architecture, space=bundle.space, input=bundle.input, classes=bundle.classes
        )
        supernet.load_tensors(bundle.supernet_tensors())
        return supernet.eval()


@torch.no_grad()
def trace_layers(model: nn.Module, images: Tensor) -> tuple[LayerSpec, ...]:
    """Run `images` (normalised float32 [N, C, H, W]) through a float network and describe what is quantised.

    Layers come in execution order; the first and the last are not searchable. Whether an input is ever
    negative is seen from these images, so use a batch of real ones (256 are plenty).
    """
    calls: list[tuple[str, nn.Module, Tensor, Tensor]] = []
    handles = []

    def record(name: str, module: nn.Module) -> None:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            calls.append((name, module, inputs[0], output))

        handles.append(module.register_forward_hook(hook))

    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d):
            record(name, module)
    training = model.training
    model.eval()
    try:
        model(images)
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    followers = {id(a[1]): b[1] for a, b in pairwise(calls)}
    quantised = [call for call in calls if not isinstance(call[1], nn.BatchNorm2d)]
    specs = []
    for position, (name, module, x, output) in enumerate(quantised):
        assert isinstance(module, nn.Conv2d | nn.Linear)
        weight = module.weight
        batch_norm = isinstance(followers.get(id(module)), nn.BatchNorm2d)
        channels = weight.shape[0]
        specs.append(
            LayerSpec(
                name=name,
                kind=_kind(module),
                searchable=0 < position < len(quantised) - 1,
                output_channels=channels,
                weights=weight.numel(),
                inputs=x[0].numel(),
                macs=weight[0].numel() * output[0].numel(),
                nonnegative=bool(x.min() >= 0),
                float_parameters=channels * ((module.bias is not None) + 2 * batch_norm),
            )
        )
    return tuple(specs)


def _kind(module: nn.Conv2d | nn.Linear) -> str:
    if isinstance(module, nn.Linear):
        return "linear"
    return DEPTHWISE if 1 < module.groups == module.in_channels else "conv"
