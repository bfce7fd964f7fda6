"""Training augmentation: random crop and flip (He et al. 2016), CutMix (Yun et al. 2019)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.transforms.v2 import CutMix

VIEWS = 3
"""How many other ways `view` shows an image in."""

_PADDING = 4


def crop_and_flip(
    images: Tensor, generator: torch.Generator, *, padding: int = _PADDING, mirror: bool = True
) -> Tensor:
    """Shift each image by up to `padding` pixels (zeros come in) and `mirror` half of them.

    Args:
        images: uint8 [N, C, H, W].
        generator: a CPU generator, so that every device draws the same.
        mirror: whether a mirror image shows the same class, as of digits or signs it does not.

    Returns:
        uint8 [N, C, H, W] on the same device.
    """
    count, channels, height, width = images.shape
    top, left = (
        torch.randint(0, 2 * padding + 1, (count, 1), generator=generator).to(images.device) for _ in range(2)
    )
    padded = functional.pad(images, (padding,) * 4)
    rows = top + torch.arange(height, device=images.device)
    forwards = torch.arange(width, device=images.device)
    if mirror:
        mirrored = torch.randint(0, 2, (count, 1), generator=generator).bool().to(images.device)
        columns = left + torch.where(mirrored, width - 1 - forwards, forwards)
    else:
        columns = left + forwards
    image = torch.arange(count, device=images.device)
    # One gather for the whole batch; [N, 1, H, 1] x [N, 1, 1, W] indices broadcast over the channels.
    return padded[
        image[:, None, None, None],
        torch.arange(channels, device=images.device)[None, :, None, None],
        rows[:, None, :, None],
        columns[:, None, None, :],
    ]


def view(images: Tensor, index: int, *, mirror: bool = True) -> Tensor:
    """The same images in another way that training shows them in: 0 mirrored, 1 shifted to the right, 2
    mirrored and shifted down, by a 32nd of their side, 1 to 4 pixels (zeros come in).

    Args:
        images: uint8 [N, C, H, W].
        index: 0 to `VIEWS` - 1.
        mirror: whether training mirrors images; where it does not, 0 is shifted to the left.

    Returns:
        uint8 [N, C, H, W] on the same device.
    """
    step = min(max(images.shape[-1] // 32, 1), _PADDING)
    if index == 1:
        return functional.pad(images[..., :-step], (step, 0, 0, 0))
    if index == 0:
        return images.flip(3) if mirror else functional.pad(images[..., step:], (0, step, 0, 0))
    seen = images.flip(3) if mirror else images
    return functional.pad(seen[..., :-step, :], (0, 0, step, 0))


def cutmix(images: Tensor, labels: Tensor, classes: int, seed: int) -> tuple[Tensor, Tensor]:
    """Paste one rectangle of an image, of a random size, over the same place of the next (arXiv:1905.04899).

    Args:
        images: float32 [N, C, H, W].
        labels: int64 [N].
        classes: how many there are.
        seed: of the rectangle, whichever device the images are on.

    Returns:
        The images, and as float32 [N, classes] which share of each is of which class.
    """
    with torch.random.fork_rng(devices=[]):  # torchvision draws from torch's own CPU generator
        torch.manual_seed(seed)
        mixed, shares = CutMix(num_classes=classes)(images, labels)
    return mixed, shares
