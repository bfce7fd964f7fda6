"""Float networks of other runs whose logits guide a training (Hinton et al. 2015, arXiv:1503.02531)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from eqnet_core.errors import TrainingError
from eqnet_core.models import ARCHITECTURES
from eqnet_core.training.data import ImageData
from eqnet_core.training.run import check_origins
from eqnet_core.training.starting import WEIGHTS, float_digest, float_network, read_settings


class MeanLogits(nn.Module):
    """Several networks as one: the mean of their logits."""

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [N, classes] for images [N, C, H, W]."""
        return torch.stack([member(images) for member in self.members]).mean(0)


def load_teacher(
    runs: Sequence[Path], data: ImageData, architecture: str
) -> tuple[nn.Module, dict[str, Any]]:
    """The float networks of `runs`, at least one, of any architectures, to guide one of `architecture`.

    Returns:
        Their mean logits, in training mode, so that BatchNorm fits images of any size; and the digest of the
        weights with the settings they were trained with, or a list of these as "members" for several.

    Raises:
        TrainingError: there is none, or it takes images of another shape, or it was trained on others than
            `data`: what is held out here would reach the student through it. Or a run is named twice.
    """
    if len({run.resolve() for run in runs}) < len(runs):
        raise TrainingError("a teacher is named twice: it would only count twice in the mean of their logits")
    models, described = zip(*(_load_member(run, data, architecture) for run in runs), strict=True)
    if len(models) == 1:
        return models[0], described[0]
    return MeanLogits(models), {"members": list(described)}


def _load_member(run: Path, data: ImageData, architecture: str) -> tuple[nn.Module, dict[str, Any]]:
    folder = run / "float"
    settings = read_settings(folder)
    if (theirs := ARCHITECTURES.get(settings.get("architecture", ""))) is None:
        raise TrainingError(
            f"{folder} holds no float network of this version's architectures: choose another"
        )
    if theirs.input_shape != (ours := ARCHITECTURES[architecture].input_shape):
        raise TrainingError(
            f"the teacher, {settings['architecture']}, takes images {theirs.input_shape}, "
            f"{architecture} takes {ours}: choose another"
        )
    check_origins(folder, {"data": data.digest})
    digest = float_digest(folder / WEIGHTS)
    model = float_network(data, folder / WEIGHTS, settings["architecture"])
    return model, {**settings, "float": digest}
