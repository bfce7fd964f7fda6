"""The first two stages on few images, for tests of what comes after them."""

from pathlib import Path

import torch

from eqnet_core.training.data import ImageData
from eqnet_core.training.pretrain import PretrainSettings, pretrain
from eqnet_core.training.supernet_settings import SupernetSettings
from eqnet_core.training.trainer import train_supernet


def trained_run(
    data: ImageData, folder: Path, float_settings: PretrainSettings, settings: SupernetSettings
) -> Path:
    """`folder`, with `float` and `supernet` in it, trained on the CPU without a break."""
    cpu = torch.device("cpu")
    weights = pretrain(data, folder / "float", float_settings, cpu)
    train_supernet(data, weights, folder / "supernet", settings, cpu)
    return folder
