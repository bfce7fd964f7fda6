"""The front door on a real, if untrained, bundle: searching, predicting, saving, refusing."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from eqnet_core.calibration import calibrate_batch_norm
from eqnet_core.devices import load_catalogue
from eqnet_core.errors import (
    BundleError,
    InfeasibleBudgetError,
    InvalidConfigurationError,
    UnsupportedTargetError,
)
from eqnet_core.factory import ARTIFACTS, INTEGER, Build, Factory, save
from eqnet_core.profile import Budget, DeviceProfile, SearchSettings
from eqnet_core.space import FORMS, Granularity, Symmetry
from eqnet_core.supernet import Supernet
from eqnet_core.training.subnets import sample_configuration

PROFILE = DeviceProfile(
    weight_bits=(2, 3, 4, 8),
    weight_granularity=Granularity.PER_CHANNEL,
    weight_symmetry=Symmetry.SYMMETRIC,
    activation_bits=(4, 8),
    activation_symmetry=Symmetry.ASYMMETRIC,
)
SETTINGS = SearchSettings(population=20, generations=10, seed=1)


def test_a_search_stays_within_budget_and_device(factory: Factory) -> None:
    found = factory.search(PROFILE, Budget(weight_bits=3.0, activation_bits=5.0), SETTINGS)
    assert set(found.configuration.weight_bits) <= {2, 3, 4, 8}
    assert set(found.configuration.activation_bits) <= {4, 8}
    assert found.cost == factory.cost(found.configuration)
    assert found.cost.weight_bits <= 3.0
    assert found.cost.activation_bits <= 5.0
    predicted = factory.predict([found.configuration])
    assert predicted.accuracy[0] == found.predicted_accuracy
    assert (predicted.low[0], predicted.high[0]) == found.prediction_interval
    with pytest.raises(InfeasibleBudgetError):
        factory.search(PROFILE, Budget(activation_bits=3.0), SETTINGS)


def test_no_configurations_have_no_predictions(factory: Factory) -> None:
    predicted = factory.predict([])
    assert len(predicted.accuracy) == len(predicted.low) == len(predicted.high) == 0


def test_searching_and_predicting_load_no_torch(untrained_bundle: Path) -> None:
    program = """
import sys
from eqnet_core.factory import Factory
from eqnet_core.profile import Budget, DeviceProfile, SearchSettings
from eqnet_core.space import Granularity, Symmetry
factory = Factory.open(sys.argv[1])
profile = DeviceProfile(weight_bits=(2, 4), weight_granularity=Granularity.PER_CHANNEL, activation_bits=(8,),
                        weight_symmetry=Symmetry.SYMMETRIC, activation_symmetry=Symmetry.SYMMETRIC)
found = factory.search(profile, Budget(weight_bits=3.0), SearchSettings(population=10, generations=3))
factory.predict([found.configuration])
factory.cost(found.configuration)
factory.statistics.predict(found.configuration, factory.bundle.space)
print(sorted({"torch", "onnx", "onnxruntime", "scipy"} & set(sys.modules)))
"""
    ran = subprocess.run(
        [sys.executable, "-c", program, str(untrained_bundle)],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert ran.stdout == "[]\n"


def test_predicted_statistics_beat_those_of_another_subnet(
    factory: Factory, images: torch.Tensor, supernet: Supernet
) -> None:
    space = supernet.space
    generator = np.random.default_rng(11)
    ours, theirs = [], []
    supernet.activate(space.uniform(FORMS[0], 8))
    others = calibrate_batch_norm(supernet, [images[:16]])
    for index in range(100, 106):
        configuration = sample_configuration(space, index, generator)
        supernet.activate(configuration)
        real = calibrate_batch_norm(supernet, [images[:16]])
        predicted = factory.statistics.predict(configuration, space)
        for name, (mean, variance) in real.items():
            deviation = np.sqrt(variance + 1e-5)
            ours.append(np.abs((predicted[name][0] - mean) / deviation).mean())
            theirs.append(np.abs((others[name][0] - mean) / deviation).mean())
    assert np.mean(ours) < 0.5 * np.mean(theirs)


def test_a_bundle_without_ranges_says_what_to_do(factory: Factory, tmp_path: Path) -> None:
    folder = tmp_path / "old"
    shutil.copytree(factory.bundle.path, folder)
    document = json.loads((folder / "bundle.json").read_text())
    del document["integer"], document["files"]["ranges.safetensors"]
    (folder / "bundle.json").write_text(json.dumps(document))
    old = Factory.open(folder)
    configuration = old.bundle.space.uniform(FORMS[0], 4)
    with pytest.raises(UnsupportedTargetError, match=r"`ranges` stage.*choose from.*model\.onnx") as refused:
        old.build(configuration, artifacts=["model.onnx", INTEGER])
    assert [violation.pointer for violation in refused.value.violations] == ["/artifacts/1"]
    with pytest.raises(BundleError, match="`ranges` stage"):
        old.bundle.ranges()
    assert set(old.artifacts) == {*ARTIFACTS} - {INTEGER}
    device = load_catalogue()["onnxruntime-cpu"]
    stated = old.build(old.bundle.space.uniform(device.profile.form, 8), device=device).report["device"]
    assert stated["file"] == "model.onnx"
    assert "model.integer.onnx" in stated["unverified"][-1]


def test_saving_replaces_files_and_leaves_nothing_else(build: Build, tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    save(replace(build, files={"model.onnx": b"old", "mine.txt": b"kept"}), folder)
    assert save(build, folder) == folder
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        **build.files,
        "mine.txt": b"kept",
    }


def test_what_cannot_be_built_is_named(factory: Factory) -> None:
    configuration = factory.bundle.space.uniform(FORMS[0], 4)
    with pytest.raises(UnsupportedTargetError, match=r"model\.tflite.*choose from") as refused:
        factory.build(configuration, artifacts=["model.onnx", "model.tflite"])
    assert [violation.pointer for violation in refused.value.violations] == ["/artifacts/1"]
    short = replace(configuration, weight_bits=(4,), activation_bits=(4,))
    with pytest.raises(InvalidConfigurationError, match="searchable"):
        factory.build(short)
