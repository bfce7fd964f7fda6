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


@pytest.mark.parametrize(("side", "step"), [(8, 1), (64, 2), (224, 4)])
def test_training_shows_all_views(side: int, step: int) -> None:
    """Shifts of 4 pixels at most, and of a pixel at least."""
    image = torch.randint(1, 256, (1, 1, side, side), generator=torch.Generator().manual_seed(0)).byte()
    assert torch.equal(view(image, 1)[..., step:], image[..., :-step])
    trained = crop_and_flip(image.expand(2000, 1, side, side), torch.Generator().manual_seed(0))
    for index in range(VIEWS):
        assert (trained == view(image, index)).flatten(1).all(1).any()
