"""A small supernet with random weights and real quantisers, and its bundle, each built once."""

from pathlib import Path

import pytest
import torch
from untrained_bundle import write_untrained_bundle

from eqnet_core.calibration import initialise_quantizers
from eqnet_core.factory import Build, Factory
from eqnet_core.models import build_model
from eqnet_core.space import FORMS, SearchSpace
from eqnet_core.subnet import InputSpec
from eqnet_core.supernet import Supernet, trace_layers


@pytest.fixture(scope="session")
def images() -> torch.Tensor:
    """Smooth random images [64, 3, 32, 32]: neighbouring pixels agree, as in photographs."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(64, 3, 8, 8, generator=generator)
    return torch.nn.functional.interpolate(coarse, size=(32, 32), mode="bilinear")


@pytest.fixture(scope="session")
def supernet(images: torch.Tensor) -> Supernet:
    """ResNet-20 with seeded random weights; tests that change its state put it back through `activate`."""
    torch.manual_seed(0)
    model = build_model("resnet20", 10)
    model.train()
    model(images)  # sane BatchNorm statistics
    model.eval()
    built = Supernet(
        architecture="resnet20",
        space=SearchSpace(trace_layers(model, images)),
        input=InputSpec(shape=(3, 32, 32), mean=(0.0,) * 3, std=(1.0,) * 3),
        classes=tuple("abcdefghij"),
        float_model=model,
    )
    initialise_quantizers(built, images)
    return built.eval()


@pytest.fixture(scope="session")
def untrained_bundle(
    tmp_path_factory: pytest.TempPathFactory, supernet: Supernet, images: torch.Tensor
) -> Path:
    """Folder of a bundle of `supernet`, with tensor ranges and without its float graph."""
    return write_untrained_bundle(tmp_path_factory.mktemp("bundles") / "untrained", supernet, images)


@pytest.fixture(scope="session")
def factory(untrained_bundle: Path) -> Factory:
    """Of `untrained_bundle`."""
    return Factory.open(untrained_bundle)


@pytest.fixture(scope="session")
def build(factory: Factory) -> Build:
    """Every artifact of a subnet of 4 bits."""
    return factory.build(factory.bundle.space.uniform(FORMS[5], 4), provenance={"subnet": "0123"})
