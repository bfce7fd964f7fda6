"""Values that make no sense are told before anything is read or written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from eqnet_core.training.arguments import build_parser

REQUIRED = {
    "bundle": ("--out", "b", "--data-description", "none"),
    "fit": (),
    "ablations": ("--data", "d", "--out", "o"),
}


def parse(stage: str, *options: str) -> dict[str, object]:
    required = REQUIRED.get(stage, ("--data", "d"))
    return vars(build_parser().parse_args([stage, "--run", "r", *required, *options]))


@pytest.mark.parametrize(
    ("stage", "option", "values", "problem"),
    [
        ("pretrain", "--epochs", "-1 0 1.5 ten", "a whole number, at least 1"),
        ("supernet", "--epochs", "0", "a whole number, at least 1"),
        ("ablations", "--epochs", "0", "a whole number, at least 1"),
        ("pretrain", "--batch-size", "-5 0", "a whole number, at least 1"),
        ("pretrain", "--held-out", "-5 0", "a whole number, at least 1"),
        ("pretrain", "--learning-rate", "-1 0 nan inf high", "a number above 0"),
        ("supernet", "--step-size-learning-rate", "-1 nan inf", "a number, at least 0"),
        ("supernet", "--zero-point-learning-rate", "-1 nan inf", "a number, at least 0"),
        ("pretrain", "--sizes", "0x1 16x1,-4x1 16x0 16x-1 16", "write SIDExEPOCHS"),
        ("fit", "--seed", "-1", "a whole number, at least 0"),
        ("ablations", "--images", "0", "a whole number, at least 1"),
        ("statistics", "--images", "-3 0", "a whole number, at least 1"),
        ("statistics", "--samples", "-3 0", "a whole number, at least 1"),
        ("sample", "--images", "0", "a whole number, at least 1"),
        ("sample", "--samples", "-1", "a whole number, at least 0"),
        ("sample", "--searched", "-1", "a whole number, at least 0"),
        ("sample", "--drawn", "-1", "a whole number, at least 0"),
        ("ranges", "--images", "-3 0", "a whole number, at least 1"),
        ("ranges", "--subnets", "-3 0", "a whole number, at least 1"),
        ("bundle", "--calibration-images", "-1", "a whole number, at least 0"),
        ("accuracies", "--device", "foo meta cuda:99", "is no device that torch can compute with here"),
        ("sample", "--shard", "2/2 0", "write RANK/COUNT"),
    ],
)
def test_impossible_values_are_refused(
    capsys: pytest.CaptureFixture[str], stage: str, option: str, values: str, problem: str
) -> None:
    for value in values.split():
        with pytest.raises(SystemExit) as stopped:
            parse(stage, option, value)
        assert stopped.value.code == 2
        last = capsys.readouterr().err.splitlines()[-1]
        assert f"argument {option}: {value!r}" in last
        assert problem in last


@pytest.mark.parametrize("option", ["--run", "--out"])
def test_a_folder_cannot_be_in_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    file = tmp_path / "file"
    file.touch()
    for path in (file, file / "x" / "y"):
        with pytest.raises(SystemExit):
            parse("bundle", option, str(path))
        said = capsys.readouterr().err.splitlines()[-1]
        assert f"argument {option}: {file} is a file: choose another folder" in said
    assert parse("bundle", option, str(tmp_path / "new" / "x"))["stage"] == "bundle"


def test_0_is_a_number_where_it_means_none() -> None:
    sample = parse("sample", "--samples", "0", "--searched", "0", "--drawn", "0", "--views", "0")
    assert [sample[name] for name in ("samples", "searched", "drawn", "views")] == [0, 0, 0, 0]
    assert parse("bundle", "--calibration-images", "0")["calibration_images"] == 0
    supernet = parse("supernet", "--step-size-learning-rate", "0", "--zero-point-learning-rate", "0")
    assert supernet["step_size_learning_rate"] == supernet["zero_point_learning_rate"] == 0
    assert parse("accuracies", "--device", "cpu")["device"] == torch.device("cpu")
