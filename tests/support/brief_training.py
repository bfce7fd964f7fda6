"""The first two stages on few images, for tests of what comes after them."""

from pathlib import Path

import numpy as np
import torch

from eqnet_core.predictor import AccuracyPredictor
from eqnet_core.space import BIT_WIDTHS, FORMS, SearchSpace
from eqnet_core.training.data import ImageData
from eqnet_core.training.ensemble import EnsembleSettings, fit_ensemble
from eqnet_core.training.pretrain import PretrainSettings, pretrain
from eqnet_core.training.supernet_settings import SupernetSettings
from eqnet_core.training.trainer import train_supernet

FLOAT = PretrainSettings(epochs=2, batch_size=48, compile=False, checkpoint_seconds=0)
SUPERNET = SupernetSettings(epochs=2, batch_size=48, compile=False, warmup_steps=1, checkpoint_seconds=0)


def trained_run(
    data: ImageData, folder: Path, float_settings: PretrainSettings, settings: SupernetSettings
) -> Path:
    """`folder`, with `float` and `supernet` in it, trained on the CPU without a break."""
    cpu = torch.device("cpu")
    weights = pretrain(data, folder / "float", float_settings, cpu)
    train_supernet(data, weights, folder / "supernet", settings, cpu)
    return folder


def small_predictor(space: SearchSpace, seed: int = 0) -> AccuracyPredictor:
    """One that has seen the uniform nets for a moment."""
    uniform = [space.uniform(form, bits) for form in FORMS for bits in BIT_WIDTHS]
    accuracy = np.array([0.9 - 0.2 ** c.weight_bits[0] - 0.2 ** c.activation_bits[0] for c in uniform])
    return fit_ensemble(
        space.encode(uniform),
        accuracy,
        EnsembleSettings(members=1, hidden=4, steps=(5, 5)),
        torch.Generator().manual_seed(seed),
    )
