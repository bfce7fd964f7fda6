"""The images that the operator lets top-1 be measured on."""

from __future__ import annotations

import hashlib
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eqnet_core.errors import EqnetError
from eqnet_core.subnet import InputSpec

_BATCH = 100

_UNREADABLE = (
    OSError, EOFError, LookupError, TypeError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error
)  # fmt: skip
"""What reading a file raises that is empty, cut off, damaged, of another format or of other arrays."""


def evaluation_digest(path: Path | str, *, limit: int) -> str:
    """Identity of an evaluation set: hexadecimal SHA-256 of the file, and how many images are used.

    Raises:
        OSError: there is no such file.
    """
    with Path(path).open("rb") as file:
        return f"{hashlib.file_digest(file, 'sha256').hexdigest()}-{limit}"


@dataclass(frozen=True, kw_only=True)
class EvaluationImages:
    """What a request is checked against: `shape` (C, H, W) of the images, `labels` lowest and highest."""

    digest: str
    shape: tuple[int, ...]
    labels: tuple[int, int]

    def mismatch(self, input: InputSpec, classes: int) -> str | None:
        """Why they measure nothing of a network with this input and so many classes, if so."""
        if self.shape != input.shape:
            return f"are {self.shape}, the network takes {input.shape}"
        if not 0 <= self.labels[0] <= self.labels[1] < classes:
            return f"have labels from {self.labels[0]} to {self.labels[1]}, the network has {classes} classes"
        return None


@dataclass(frozen=True, kw_only=True)
class EvaluationSet:
    """`images` uint8 [N, C, H, W], `labels` int64 [N]."""

    digest: str
    images: NDArray[np.uint8]
    labels: NDArray[Any]

    @classmethod
    def open(cls, path: Path | str, *, limit: int) -> EvaluationSet:
        """The first `limit` images of an .npz with `x_test` and `y_test`.

        Raises:
            EqnetError: the file is not what the setting describes.
        """
        try:
            digest = evaluation_digest(path, limit=limit)
            # Opened here: numpy leaves a file open that it cannot read.
            with Path(path).open("rb") as file, np.load(file, allow_pickle=False) as data:
                images, labels = data["x_test"][:limit], data["y_test"][:limit]
        except _UNREADABLE as error:
            raise EqnetError(
                f"EQNET_EVALUATION_DATA ({path}) is not an .npz with x_test and y_test: {error}"
            ) from error
        shaped = images.ndim == 4 and labels.shape == images.shape[:1]
        if not shaped or images.dtype != np.uint8 or labels.dtype.kind not in "iu":
            raise EqnetError(
                f"EQNET_EVALUATION_DATA ({path}): x_test must be uint8 [N, C, H, W] and y_test N integers"
            )
        if len(images) == 0:
            raise EqnetError(f"EQNET_EVALUATION_DATA ({path}): there are no images in x_test: give it some")
        return cls(digest=digest, images=images, labels=labels)

    @property
    def described(self) -> EvaluationImages:
        lowest, highest = int(self.labels.min()), int(self.labels.max())
        return EvaluationImages(digest=self.digest, shape=self.images.shape[1:], labels=(lowest, highest))

    def top1(self, state_dict: bytes) -> float:
        """Fraction, in [0, 1], of the images that a `model.safetensors` classifies as their label."""
        import torch

        from eqnet_core.export.state_dict import load_subnet

        with tempfile.TemporaryDirectory(prefix="eqnet-") as folder:
            path = Path(folder) / "model.safetensors"
            path.write_bytes(state_dict)
            model = load_subnet(path)
        model.eval()

        @torch.inference_mode()
        def logits(images: NDArray[np.float32]) -> NDArray[np.float32]:
            found: NDArray[np.float32] = model(torch.from_numpy(images)).numpy()
            return found

        return self._top1(logits, model.subnet.input)

    def top1_onnx(self, file: bytes, input: InputSpec) -> float:
        """The same of an ONNX file for normalised images, in ONNX Runtime on one thread."""
        from eqnet_core.export.sessions import open_session, run_batch

        session = open_session(file, True, 1)
        return self._top1(lambda images: run_batch(session, images, ["logits"])[0], input)

    def _top1(self, logits: Callable[[NDArray[np.float32]], NDArray[np.float32]], input: InputSpec) -> float:
        mean, std = (
            np.array(values, dtype=np.float32).reshape(-1, 1, 1) for values in (input.mean, input.std)
        )
        right = 0
        # In parts: ten thousand images in float32 are more memory than the builder itself has.
        for start in range(0, len(self.images), _BATCH):
            pixels = self.images[start : start + _BATCH].astype(np.float32) / 255
            classes = logits(np.asarray((pixels - mean) / std, np.float32)).argmax(1)
            right += int((classes == self.labels[start : start + _BATCH]).sum())
        return right / len(self.images)
