from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from eqnet_core.supernet import Supernet
from eqnet_core.training import commands
from eqnet_core.training.batches import ImageSizes
from eqnet_core.training.commands import main
from eqnet_core.training.forward import Precision
from eqnet_core.training.pretrain import PretrainSettings
from eqnet_core.training.subnets import RandomBits
from eqnet_core.training.supernet_settings import SupernetSettings
from eqnet_core.training.trained import load_trained, save_trained, supernet_digest


def test_a_stage_without_the_one_before_says_so_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["bundle", "--run", str(tmp_path), "--out", str(tmp_path / "b"), "--data-description", "none"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.splitlines() == [
        f"error: no trained supernet in {tmp_path / 'supernet'}: run the supernet stage first"
    ]


def test_a_bundle_names_the_stage_to_run_first_as_it_is_called(
    tmp_path: Path, supernet: Supernet, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("float", "supernet", "statistics", "samples"):
        (tmp_path / folder).mkdir()
    save_trained(tmp_path / "supernet", supernet)
    asked = ["bundle", "--run", str(tmp_path), "--out", str(tmp_path / "b"), "--data-description", "none"]
    for folder, stage in (
        ("float", "pretrain"),
        ("supernet",) * 2,
        ("statistics",) * 2,
        ("samples", "sample"),
    ):
        missing = tmp_path / folder / "settings.json"
        with pytest.raises(SystemExit):
            main(asked)
        said = f"error: {missing} is missing: run the {stage} stage first\n"
        assert capsys.readouterr().err == said
        missing.write_text("{}")


@pytest.mark.parametrize("stage", ["statistics", "samples", "prediction", "accuracies", "ranges"])
def test_a_bundle_is_not_made_of_measurements_of_another_supernet(
    tmp_path: Path, supernet: Supernet, stage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("supernet", stage):
        (tmp_path / folder).mkdir()
    save_trained(tmp_path / "supernet", supernet)
    digest = supernet_digest(load_trained(tmp_path / "supernet"))
    asked = ["bundle", "--run", str(tmp_path), "--out", str(tmp_path / "b"), "--data-description", "none"]
    for measured, problem in (
        ("sha256:other", f"{tmp_path / stage} was made with another supernet: "),
        (digest, " is missing: run the "),
    ):
        (tmp_path / stage / "settings.json").write_text(json.dumps({"supernet": measured}))
        with pytest.raises(SystemExit):
            main(asked)
        assert problem in capsys.readouterr().err


def test_a_search_for_samples_needs_a_predictor_of_this_supernet(
    tmp_path: Path, supernet: Supernet, digits_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("supernet", "prediction"):
        (tmp_path / folder).mkdir()
    save_trained(tmp_path / "supernet", supernet)
    (tmp_path / "prediction" / "settings.json").write_text(json.dumps({"supernet": "sha256:other"}))
    asked = ["sample", "--run", str(tmp_path), "--data", str(digits_file), "--held-out", "64"]
    with pytest.raises(SystemExit):
        main([*asked, "--searched", "5"])
    assert f"{tmp_path / 'prediction'} was made with another supernet" in capsys.readouterr().err


def test_a_fit_that_is_killed_leaves_no_quality_of_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fit itself is left out: it takes long, and only the order of its files matters here."""
    quality = tmp_path / "prediction" / "quality.json"
    quality.parent.mkdir()
    quality.write_text("{}")
    fitted = SimpleNamespace(to_tensors=dict), {"new": 1}, SimpleNamespace()
    monkeypatch.setattr(commands, "gather", lambda *_: SimpleNamespace(space=None))
    monkeypatch.setattr(commands, "fit_predictor", lambda *_, **__: fitted)
    with monkeypatch.context() as killed:
        killed.setattr(commands, "save_tensors", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            commands._fit(tmp_path, 0)
    assert not quality.exists()
    commands._fit(tmp_path, 0)
    assert json.loads(quality.read_text()) == {"new": 1}


SHARED = {
    "architecture": "airbench94",
    "epochs": 3,
    "batch_size": 16,
    "learning_rate": 0.125,
    "guidance": 0.75,
    "temperature": 2.0,
    "start_share": 0.25,
    "cutmix": 0.375,
    "seed": 7,
    "precision": Precision.BFLOAT16,
}
OWN = {
    "step_size_learning_rate": 0.0625,
    "zero_point_learning_rate": 0.03125,
    "averaging": 0.5,
    "cooldown": 0.875,
    "random_bits": RandomBits.SPREAD,
}


@pytest.mark.parametrize(
    ("stage", "function", "expected"),
    [
        (
            "pretrain",
            "pretrain",
            PretrainSettings(**SHARED, sizes=ImageSizes(stages=((16, 2),)), compile=False),
        ),
        (
            "supernet",
            "train_supernet",
            SupernetSettings(
                **SHARED,
                **OWN,
                subnet_weights=(2, 1, 0.5),
                sizes=ImageSizes(stages=((16, 2),)),
                compile=False,
            ),
        ),
    ],
)
def test_every_option_of_a_training_is_used(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    digits_file: Path,
    stage: str,
    function: str,
    expected: PretrainSettings | SupernetSettings,
) -> None:
    called: list[tuple[Any, ...]] = []

    def train(*arguments: Any, **named: Any) -> Path:
        called.append((*arguments, named))
        return tmp_path

    monkeypatch.setattr(commands, function, train)
    values = SHARED | (OWN if stage == "supernet" else {})
    options = [part for name, value in values.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    if stage == "supernet":
        options += ["--subnet-weights", "2", "1", "0.5"]
    asked = [stage, "--run", str(tmp_path), "--data", str(digits_file), "--held-out", "64", *options]
    main([*asked, "--no-compile", "--sizes", "16x2", "--start", "begun", "--teacher", "one", "two"])
    main([*asked, "--no-mirror"])
    ((data, *_, given, _, named), (unmirrored, *_)) = called
    assert given == expected
    assert named == {"start_run": Path("begun"), "teacher_runs": [Path("one"), Path("two")]}
    assert len(data.held_out.labels) == 64
    assert (data.mirror, unmirrored.mirror) == (True, False)
