"""How panels are chosen: of images that a made-up subnet is the surer of the brighter their left side is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from convolutions import make_space
from numpy.typing import NDArray

from eqnet_core.space import SubnetConfiguration
from eqnet_core.training.augmentation import VIEWS, view
from eqnet_core.training.batches import seeded
from eqnet_core.training.data import LabelledImages
from eqnet_core.training.sampling import SamplingSettings, _choose_panels, pilot_configurations
from eqnet_core.training.subnets import first_mixed, sample_configuration

SPACE = make_space("stem", "a.0", "b.0", "c.0", "fc")
COUNT = 200


def held_out() -> LabelledImages:
    """Brighter at the left, so that shifts and mirrors make them harder."""
    images = torch.randint(0, 60, (COUNT, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    images[..., 0] += 120
    return LabelledImages(images=images.to(torch.uint8), labels=torch.zeros(COUNT, dtype=torch.int64))


def measure_margins(configuration: SubnetConfiguration, images: LabelledImages) -> NDArray[np.float32]:
    quality = sum(configuration.weight_bits) + sum(configuration.activation_bits)
    left = images.images[..., 0].float().mean((1, 2)).numpy()
    return np.asarray((left - 155 + quality) / 8, dtype=np.float32)


@pytest.mark.parametrize("mirror", [True, False])
def test_views_are_in_the_half_of_their_image_and_on_the_level_of_the_images(mirror: bool) -> None:
    images, pilots = held_out(), pilot_configurations(SPACE)
    settings = SamplingSettings(images=160, views=1.5)
    panel, views = _choose_panels(settings, images, pilots, measure_margins, mirror=mirror)
    assert views is not None
    assert abs(len(panel.images) - 160) <= 12
    halves = panel.halves(COUNT)
    for half in (0, 1):
        assert (halves[views.images[views.weights[half] > 0] % COUNT] == half).all()
    shown = torch.cat([view(images.images, index, mirror=mirror) for index in range(VIEWS)])
    of_views = LabelledImages(images=shown, labels=images.labels.repeat(VIEWS))
    plain, viewed = (np.stack([measure_margins(one, x) for one in pilots]) for x in (images, of_views))
    assert (viewed > 0).mean() < (plain > 0).mean() - 0.1
    measured = [views.weights @ (row[views.images] > 0) + views.offset for row in viewed]
    np.testing.assert_allclose(np.mean(measured, axis=0), (plain > 0).mean())


def test_pilots_are_no_samples() -> None:
    """The panel would be chosen by the subnets that it measures."""
    first = first_mixed(SPACE)
    pilots = set(pilot_configurations(SPACE))
    assert len(pilots) == 24
    for index in range(first, first + 24):
        generator = seeded(SamplingSettings().seed, "configurations", index)
        assert sample_configuration(SPACE, index, generator) not in pilots
