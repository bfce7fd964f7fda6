"""The network in training: in bfloat16 it computes nearly the same, and its weights stay what they are."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.numpy import load_file

from eqnet_core.models import build_model
from eqnet_core.training.batches import ImageSizes
from eqnet_core.training.data import ImageData
from eqnet_core.training.forward import Precision, training_forward
from eqnet_core.training.pretrain import PretrainSettings
from eqnet_core.training.supernet_settings import SupernetSettings
from eqnet_core.training.trained import load_trained
from tests.support.brief_training import trained_run

SMALL = ImageSizes(stages=((16, 1),))
FLOAT = PretrainSettings(epochs=1, batch_size=48, compile=False, sizes=SMALL)
SUPERNET = SupernetSettings(epochs=1, batch_size=96, compile=False, warmup_steps=1, sizes=SMALL)


def test_bfloat16_gives_float32_logits_and_gradients_near_those_of_float32() -> None:
    torch.manual_seed(0)
    model = build_model("resnet20", 10).train()
    images = torch.randn(16, 3, 16, 16)
    found = {}
    for precision in Precision:
        model.zero_grad()
        logits = training_forward(model, compiled=False, precision=precision)(images)
        assert logits.dtype is torch.float32
        torch.autograd.backward(logits.square().sum())
        gradient = model.get_parameter("layer2.0.conv1.weight").grad
        assert gradient is not None
        assert gradient.dtype is torch.float32
        found[precision] = (logits.detach(), gradient.clone())
    for whole, low in zip(found[Precision.FLOAT32], found[Precision.BFLOAT16], strict=True):
        assert 0 < (low - whole).norm() < 0.4 * whole.norm()


@pytest.mark.parametrize("precision", Precision)
def test_both_stages_train_in_either(precision: Precision, digits: ImageData, tmp_path: Path) -> None:
    run = trained_run(
        digits, tmp_path, replace(FLOAT, precision=precision), replace(SUPERNET, precision=precision)
    )
    for stage in ("float", "supernet"):
        assert json.loads((run / stage / "settings.json").read_text())["precision"] == precision.value
    weights = load_file(run / "float" / "float.safetensors")
    moved = load_trained(run / "supernet").tensors()
    name = "layer3.2.conv2.weight"
    assert moved[name].shape == weights[name].shape
    assert 0 < abs(moved[name] - weights[name]).max() < 0.1
