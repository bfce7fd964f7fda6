"""Guided by the float network of another run: it is recorded, and refused where it does not fit."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from eqnet_core.errors import TrainingError
from eqnet_core.training.batches import ImageSizes
from eqnet_core.training.data import ImageData
from eqnet_core.training.pretrain import PretrainSettings, pretrain
from eqnet_core.training.starting import float_digest
from eqnet_core.training.supernet_settings import SupernetSettings
from eqnet_core.training.teacher import load_teacher
from eqnet_core.training.trainer import train_supernet

CPU = torch.device("cpu")
SMALL = ImageSizes(stages=((16, 1),))
FLOAT = PretrainSettings(epochs=1, batch_size=48, compile=False, sizes=SMALL)
SUPERNET = SupernetSettings(epochs=1, batch_size=96, compile=False, warmup_steps=1, sizes=SMALL)


@pytest.fixture(scope="module")
def teacher(digits: ImageData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose float network is of another architecture than the students."""
    run = tmp_path_factory.mktemp("teacher")
    pretrain(digits, run / "float", replace(FLOAT, architecture="airbench94"), CPU)
    return run


@pytest.fixture(scope="module")
def alone(digits: ImageData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose float network nobody guided."""
    run = tmp_path_factory.mktemp("alone")
    pretrain(digits, run / "float", FLOAT, CPU)
    return run


def test_a_float_network_is_guided(digits: ImageData, teacher: Path, alone: Path, tmp_path: Path) -> None:
    weights = pretrain(digits, tmp_path, FLOAT, CPU, teacher_runs=[teacher])
    assert (load_file(weights)["fc.weight"] != load_file(alone / "float" / weights.name)["fc.weight"]).any()
    recorded = json.loads((tmp_path / "settings.json").read_text())["teacher"]
    assert recorded["architecture"] == "airbench94"
    assert recorded["float"] == float_digest(teacher / "float" / weights.name)
    with pytest.raises(TrainingError, match=r"other settings \(teacher\)"):
        pretrain(digits, tmp_path, FLOAT, CPU, teacher_runs=[alone])


def test_a_supernet_is_guided_at_a_temperature(
    digits: ImageData, teacher: Path, alone: Path, tmp_path: Path
) -> None:
    weights = alone / "float" / "float.safetensors"
    name = "layer3.2.conv2.weight"

    def trained(folder: str, settings: SupernetSettings, *runs: Path) -> np.ndarray:
        path = train_supernet(digits, weights, tmp_path / folder, settings, CPU, teacher_runs=runs)
        return np.asarray(load_file(path)[name])

    results = [
        trained("other", SUPERNET, teacher),
        trained("softer", replace(SUPERNET, temperature=4.0), teacher),
        trained("own", SUPERNET, alone),
        trained("what it is made from", replace(SUPERNET, float_teacher=True)),
    ]
    for i, one in enumerate(results[:3]):
        for other in results[i + 1 : 3]:
            assert (one != other).any()
    np.testing.assert_array_equal(results[2], results[3])
    assert json.loads((tmp_path / "softer" / "settings.json").read_text())["float_teacher"] is True


def test_several_teach_by_the_mean_of_their_logits(
    digits: ImageData, teacher: Path, alone: Path, tmp_path: Path
) -> None:
    both, described = load_teacher([teacher, alone], digits, "resnet20")
    images = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        each = [load_teacher([run], digits, "resnet20")[0](images) for run in (teacher, alone)]
        assert (each[0] - each[1]).abs().max() > 0.1
        torch.testing.assert_close(both(images), (each[0] + each[1]) / 2)
    assert [member["architecture"] for member in described["members"]] == ["airbench94", "resnet20"]
    weights = alone / "float" / "float.safetensors"
    results = [
        load_file(train_supernet(digits, weights, tmp_path / str(n), SUPERNET, CPU, teacher_runs=runs))
        for n, runs in enumerate(([teacher, alone], [teacher], [alone]))
    ]
    assert json.loads((tmp_path / "0" / "settings.json").read_text())["teacher"] == described
    assert all((results[0]["fc.weight"] != other["fc.weight"]).any() for other in results[1:])
    with pytest.raises(TrainingError, match="named twice"):
        load_teacher([teacher, alone, teacher], digits, "resnet20")


def test_a_teacher_must_fit(digits: ImageData, teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"\(3, 32, 32\), resnet18 takes \(3, 224, 224\)"):
        load_teacher([teacher], digits, "resnet18")
    with pytest.raises(TrainingError, match="that stage has ended"):
        load_teacher([tmp_path], digits, "resnet20")
    unfinished = tmp_path / "unfinished"
    shutil.copytree(teacher, unfinished)
    (unfinished / "float" / "float.safetensors").unlink()
    with pytest.raises(TrainingError, match="run the pretrain stage first"):
        load_teacher([unfinished], digits, "resnet20")
    # it saw what is held out here
    split_differently = replace(digits, train=digits.held_out, held_out=digits.train)
    with pytest.raises(TrainingError, match="other images, or another split"):
        pretrain(split_differently, tmp_path / "new", FLOAT, CPU, teacher_runs=[teacher])
    assert not (tmp_path / "new").exists()
