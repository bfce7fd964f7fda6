"""Training images in memory, from any of the three layouts people have them in."""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
import torch
from numpy.lib.npyio import NpzFile
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from eqnet_core.errors import TrainingError
from eqnet_core.training.run import tensors_digest

CIFAR10_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip

_DAMAGED = (EOFError, OSError, RuntimeError, TokenError, ValueError, zipfile.BadZipFile, zlib.error)
"""What NumPy raises at `.npz` files with bytes changed or missing: of each, one was seen."""


@dataclass(frozen=True, kw_only=True)
class LabelledImages:
    """`images` uint8 [N, C, H, W]; `labels` int64 [N], each in 0..classes-1."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: Tensor) -> LabelledImages:
        """The images at `indices` (int64 [M]), in that order."""
        return LabelledImages(images=self.images[indices], labels=self.labels[indices])

    def to(self, device: torch.device) -> LabelledImages:
        """The same images on `device`."""
        return LabelledImages(images=self.images.to(device), labels=self.labels.to(device))


@dataclass(frozen=True, kw_only=True)
class ImageData:
    """Images to train on, images held out of them for every choice, and test images for reports.

    `mirror`: whether the mirror image of each shows the same class, so that augmentation may show it.
    """

    train: LabelledImages
    held_out: LabelledImages
    test: LabelledImages
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    mirror: bool = True

    @cached_property
    def digest(self) -> str:
        """`sha256:…` of the images and labels of every part: the same data, split alike, and shown alike."""
        parts = {"train": self.train, "held_out": self.held_out, "test": self.test}
        tensors = {
            f"{name}.{what}": getattr(part, what).numpy()
            for name, part in parts.items()
            for what in ("images", "labels")
        }
        return tensors_digest(tensors) if self.mirror else tensors_digest(tensors, kind="not mirrored")


def load_data(
    path: Path, *, input_shape: tuple[int, int, int], held_out: int, seed: int, mirror: bool = True
) -> ImageData:
    """Read a data set and hold `held_out` training images out, drawn with `seed`, the same for every stage.

    `path` is one of
    - an `.npz` file with `x_train, y_train, x_test, y_test` (uint8 [N, C, H, W] and integer labels [N]),
      optionally `classes`, their names in UTF-8 or Unicode ("0", "1", … without);
    - a folder in which torchvision's `CIFAR10` class finds its download (`cifar-10-batches-py`);
    - a folder with `train/` and `test/` (or `val/`), each a torchvision `ImageFolder`; images are resized
      to `input_shape` and kept in memory.

    `mean` and `std` are those of the training images, per channel, of pixels in [0, 1].

    Raises:
        TrainingError: nothing of the three is at `path`, an image cannot be read or has more than 8 bits a
            channel, or shapes, labels and names of classes do not fit.
    """
    if path.suffix == ".npz" and path.is_file():
        try:
            train, test, classes = _read_npz(path)
        except _DAMAGED as error:
            raise TrainingError(f"{path} is not an .npz file of arrays, or is damaged: {error}") from error
    elif (path / "cifar-10-batches-py").is_dir() or (path / "train").is_dir():
        try:
            if (path / "train").is_dir():
                train, test, classes = _read_image_folder(path, input_shape)
            else:
                train, test, classes = _read_torchvision_cifar10(path)
        except (OSError, RuntimeError, EOFError) as error:  # torchvision's and Pillow's
            raise TrainingError(f"the images at {path} cannot be read: {error}") from error
    else:
        raise TrainingError(
            f"no data at {path}: expected an .npz file, a folder holding cifar-10-batches-py, "
            "or a folder holding train/ and test/ with one folder per class"
        )
    for part in (train, test):
        if tuple(part.images.shape[1:]) != input_shape:
            raise TrainingError(
                f"images at {path} are {tuple(part.images.shape[1:])}, the network takes {input_shape}"
            )
        if len(part) == 0:
            raise TrainingError(
                f"images at {path}: there must be at least one to train on and one to test on"
            )
        if int(part.labels.min()) < 0 or int(part.labels.max()) >= len(classes):
            raise TrainingError(f"labels at {path} must be 0..{len(classes) - 1}")
    if not 0 < held_out < len(train):
        raise TrainingError(f"cannot hold {held_out} of {len(train)} training images out: choose fewer")
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(train)))
    kept = train.subset(order[held_out:])
    # Moments from the integer histogram: exact, and the whole set in float would be four times its size.
    levels = torch.arange(256, dtype=torch.float64) / 255
    histograms = torch.stack(
        [torch.bincount(kept.images[:, c].reshape(-1), minlength=256) for c in range(input_shape[0])]
    ).double()
    mean = (histograms * levels).sum(1) / histograms.sum(1)
    variance = (histograms * levels.square()).sum(1) / histograms.sum(1) - mean.square()
    std = tuple(round(float(value) ** 0.5, 4) for value in variance)
    if min(std) == 0:
        raise TrainingError(
            f"a channel of the training images at {path} is the same everywhere, or nearly: "
            "they cannot be normalised"
        )
    return ImageData(
        train=kept,
        held_out=train.subset(order[:held_out]),
        test=test,
        classes=classes,
        mean=tuple(round(float(value), 4) for value in mean),
        std=std,
        mirror=mirror,
    )


def normalise(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """uint8 [N, C, H, W] to float32: (x / 255 - mean) / std per channel."""
    shape = (1, -1, 1, 1)
    means = torch.tensor(mean, device=images.device).view(shape)
    deviations = torch.tensor(std, device=images.device).view(shape)
    return (images.float() / 255 - means) / deviations


def _read_npz(path: Path) -> tuple[LabelledImages, LabelledImages, tuple[str, ...]]:
    with path.open("rb") as file:
        arrays = np.load(file, allow_pickle=False)
        if not isinstance(arrays, NpzFile):
            raise ValueError("it holds one array without a name")
        missing = {"x_train", "y_train", "x_test", "y_test"} - set(arrays.files)
        if missing:
            raise TrainingError(f"{path} has no {', '.join(sorted(missing))}")
        parts = []
        for part in ("train", "test"):
            images, labels = arrays[f"x_{part}"], arrays[f"y_{part}"]
            whole = np.issubdtype(labels.dtype, np.integer)
            if images.dtype != np.uint8 or images.ndim != 4 or not whole or labels.shape != images.shape[:1]:
                raise TrainingError(
                    f"x_{part} in {path} must be uint8 [N, C, H, W] and y_{part} integers [N], "
                    f"not {images.dtype} {images.shape} and {labels.dtype} {labels.shape}"
                )
            parts.append(
                LabelledImages(
                    images=torch.from_numpy(images), labels=torch.from_numpy(labels.astype(np.int64))
                )
            )
        if "classes" in arrays.files:
            classes = _class_names(arrays["classes"], path)
        else:
            count = max(parts[0].labels.tolist(), default=-1) + 1
            classes = tuple(str(index) for index in range(count))
    return parts[0], parts[1], classes


def _class_names(names: NDArray[Any], path: Path) -> tuple[str, ...]:
    if names.dtype.kind == "S":
        names = np.char.decode(names, "utf-8")
    classes = tuple(str(name) for name in names.flat)
    if names.ndim != 1 or not all(classes) or len(set(classes)) < len(classes):
        raise TrainingError(f"classes in {path} must be a list of names, none of them empty and none twice")
    return classes


def _read_torchvision_cifar10(path: Path) -> tuple[LabelledImages, LabelledImages, tuple[str, ...]]:
    from torchvision.datasets import CIFAR10

    parts = []
    for train in (True, False):
        data = CIFAR10(str(path), train=train, download=False)
        images = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous()
        parts.append(LabelledImages(images=images, labels=torch.tensor(data.targets)))
    return parts[0], parts[1], CIFAR10_CLASSES


def _read_image_folder(
    path: Path, input_shape: tuple[int, int, int]
) -> tuple[LabelledImages, LabelledImages, tuple[str, ...]]:
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    _, height, width = input_shape
    transform = v2.Compose([v2.Resize(min(height, width)), v2.CenterCrop((height, width)), v2.PILToTensor()])
    second = "test" if (path / "test").is_dir() else "val"
    parts, names = [], []
    for part in ("train", second):
        if not (path / part).is_dir():
            raise TrainingError(f"{path} has train/ but neither test/ nor val/")
        folder = ImageFolder(str(path / part), transform=transform, loader=_read_image)
        names.append(tuple(folder.classes))
        images = torch.stack([folder[index][0] for index in range(len(folder))])
        parts.append(LabelledImages(images=images, labels=torch.tensor(folder.targets)))
    if names[0] != names[1]:
        raise TrainingError(f"train/ and {second}/ in {path} hold different classes")
    return parts[0], parts[1], names[0]


def _read_image(path: str) -> Image.Image:
    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):  # of which `convert` would make nearly white ones
                raise TrainingError(f"the image {path} has more than 8 bits a channel: convert it to 8")
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # Pillow's, if damaged
        raise TrainingError(f"the image {path} cannot be read: {error}") from error
