from __future__ import annotations

import pytest
import torch
from torch import Tensor

from eqnet_core.training.augmentation import VIEWS, crop_and_flip, view


@pytest.fixture
def images() -> Tensor:
    return torch.randint(1, 256, (5, 3, 64, 64), generator=torch.Generator().manual_seed(0)).byte()


def test_views_are_mirrored_and_shifted_by_a_32nd_of_the_side(images: Tensor) -> None:
    mirrored, right, down = (view(images, index) for index in range(VIEWS))
    torch.testing.assert_close(mirrored.flip(3), images)
    torch.testing.assert_close(right[..., 2:], images[..., :-2])
    assert not right[..., :2].any()
    torch.testing.assert_close(down[..., 2:, :], mirrored[..., :-2, :])
    assert not down[..., :2, :].any()
    assert {view.dtype for view in (mirrored, right, down)} == {torch.uint8}


def test_views_of_images_that_are_not_mirrored_are_shifted_three_ways(images: Tensor) -> None:
    left, right, down = (view(images, index, mirror=False) for index in range(VIEWS))
    torch.testing.assert_close(left[..., :-2], images[..., 2:])
    assert not left[..., -2:].any()
    torch.testing.assert_close(right, view(images, 1))
    torch.testing.assert_close(down[..., 2:, :], images[..., :-2, :])
    assert not down[..., :2, :].any()


@pytest.mark.parametrize("mirror", [True, False])
@pytest.mark.parametrize(("side", "step"), [(8, 1), (64, 2), (224, 4)])
def test_training_shows_all_views(side: int, step: int, mirror: bool) -> None:
    """Shifts of 4 pixels at most, and of a pixel at least."""
    image = torch.randint(1, 256, (1, 1, side, side), generator=torch.Generator().manual_seed(0)).byte()
    assert torch.equal(view(image, 1, mirror=mirror)[..., step:], image[..., :-step])
    shown = image.expand(2000, 1, side, side)
    trained = crop_and_flip(shown, torch.Generator().manual_seed(0), mirror=mirror)
    seen = [view(image, index, mirror=mirror) for index in range(VIEWS)]
    for one in (image, *seen):
        assert (trained == one).flatten(1).all(1).any()
    assert len({one.numpy().tobytes() for one in (image, *seen)}) == 1 + VIEWS
