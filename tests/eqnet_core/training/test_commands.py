from __future__ import annotations

from pathlib import Path

import pytest

from eqnet_core.training.commands import main


def test_a_stage_without_the_one_before_says_so_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["bundle", "--run", str(tmp_path), "--out", str(tmp_path / "b"), "--data-description", "none"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.splitlines() == [
        f"error: no trained supernet in {tmp_path / 'supernet'}: run the supernet stage first"
    ]
