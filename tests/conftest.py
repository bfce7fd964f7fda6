"""Search spaces without tensors, and a real (if untrained) predictor for them."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from eqnet_core.space import LayerSpec, SearchSpace


class RandomMlp:
    """A multi-layer perceptron with random weights that fears coarse bits, like a trained predictor does.

    The first layer adds up the quantisation noise of every choice of bits (3^-bits, random per layer); a
    little weight noise makes the outcome not quite monotone. `batches` counts rows per call.
    """

    def __init__(
        self, space: SearchSpace, *, seed: int = 0, hidden: int = 128, wildness: float = 0.05
    ) -> None:
        generator = np.random.default_rng(seed)
        genes = 2 * len(space.searchable)
        sensitivity = generator.lognormal(size=(genes, 1, 1)) * generator.gamma(1.0, size=(genes, 1, hidden))
        noise = 3.0 ** -np.arange(7)[None, :, None]
        first = np.zeros((space.encoding_size, hidden))
        first[-7 * genes :] = (sensitivity * noise / genes).reshape(-1, hidden)
        first += generator.normal(scale=wildness / np.sqrt(genes), size=first.shape)
        second = np.abs(generator.normal(size=(hidden, hidden))) / hidden
        second += generator.normal(scale=wildness / np.sqrt(hidden), size=second.shape)
        self.first = first.astype(np.float32)
        self.second = second.astype(np.float32)
        self.last = (np.abs(generator.normal(size=hidden)) / hidden).astype(np.float32)
        self.batches: list[int] = []
        self.rows: list[NDArray[np.float32]] | None = None  # set to [] to keep every row that is asked for

    def predict(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        self.batches.append(len(features))
        if self.rows is not None:
            self.rows.append(features)
        hidden = np.maximum(features @ self.first, 0)
        hidden = np.maximum(hidden @ self.second, 0)
        return (0.92 - 0.06 * np.tanh(hidden @ self.last)).astype(np.float64)

    def interval(self, accuracy: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        return accuracy - 0.004, accuracy + 0.003


def convolution(
    name: str, inputs: int, outputs: int, size: int, stride: int = 1, *, searchable: bool = True
) -> LayerSpec:
    weights = 9 * inputs * outputs
    return LayerSpec(
        name=name,
        kind="conv",
        searchable=searchable,
        output_channels=outputs,
        weights=weights,
        inputs=inputs * size**2,
        macs=weights * (size // stride) ** 2,
        nonnegative=searchable,
        float_parameters=2 * outputs,
    )


@pytest.fixture(scope="session")
def resnet20_space() -> SearchSpace:
    """The real sizes of ResNet-20 for 32 x 32 images, without building it."""
    layers = [convolution("conv1", 3, 16, 32, searchable=False)]
    channels, size = 16, 32
    for stage, outputs in enumerate((16, 32, 64), start=1):
        for block in range(3):
            stride = 2 if stage > 1 and block == 0 else 1
            name = f"layer{stage}.{block}"
            layers.append(convolution(f"{name}.conv1", channels, outputs, size, stride))
            channels, size = outputs, size // stride
            layers.append(convolution(f"{name}.conv2", outputs, outputs, size))
    layers.append(
        LayerSpec(
            name="fc",
            kind="linear",
            searchable=False,
            output_channels=10,
            weights=640,
            inputs=64,
            macs=640,
            nonnegative=True,
            float_parameters=10,
        )
    )
    return SearchSpace(tuple(layers))


@pytest.fixture
def resnet20_mlp(resnet20_space: SearchSpace) -> RandomMlp:
    return RandomMlp(resnet20_space)


@pytest.fixture(scope="session")
def tiny_space() -> SearchSpace:
    """Three searchable layers with awkward sizes: few enough subnets to look at every one."""
    layers = [
        LayerSpec(
            name=name,
            kind="conv",
            searchable=searchable,
            output_channels=channels,
            weights=weights,
            inputs=inputs,
            macs=macs,
            nonnegative=nonnegative,
            float_parameters=2 * channels,
        )
        for name, searchable, channels, weights, inputs, macs, nonnegative in (
            ("stem", False, 4, 101, 48, 1000, False),
            ("a", True, 4, 37, 64, 700, True),
            ("b", True, 6, 53, 21, 900, False),
            ("c", True, 5, 211, 16, 1300, True),
            ("head", False, 10, 50, 5, 50, True),
        )
    ]
    return SearchSpace(tuple(layers))


@pytest.fixture
def tiny_mlp(tiny_space: SearchSpace) -> RandomMlp:
    return RandomMlp(tiny_space, hidden=16, wildness=0.4)
