from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from eqnet_core.errors import TrainingError
from eqnet_core.training.panel import Panel
from eqnet_core.training.run import (
    Run,
    check_origins,
    load_tensors,
    read_origins,
    save_tensors,
    write_atomically,
)


@dataclass(frozen=True)
class Settings:
    samples: int = 4
    seed: int = 0


def test_measurements_of_another_supernet_are_not_gone_on_with(tmp_path: Path) -> None:
    Run(tmp_path, Settings(), growing=("samples",), origins={"supernet": "sha256:one"})
    Run(tmp_path, Settings(samples=8), growing=("samples",), origins={"supernet": "sha256:one"})
    assert read_origins(tmp_path) == {"supernet": "sha256:one"}
    check_origins(tmp_path, {"supernet": "sha256:one"})
    with pytest.raises(TrainingError, match="was made with another supernet: repeat"):
        Run(tmp_path, Settings(), origins={"supernet": "sha256:other"})
    with pytest.raises(TrainingError, match=r"other settings \(seed\)"):
        Run(tmp_path, Settings(seed=1), origins={"supernet": "sha256:other"})


def test_samples_are_not_gone_on_with_by_other_statistics(tmp_path: Path) -> None:
    both = {"supernet": "sha256:one", "statistics": "sha256:these"}
    Run(tmp_path, Settings(), origins=both)
    check_origins(tmp_path, {"supernet": "sha256:one"})
    with pytest.raises(TrainingError, match="was made with other predicted statistics: repeat"):
        Run(tmp_path, Settings(), origins={**both, "statistics": "sha256:those"})


def test_a_folder_that_does_not_say_which_supernet_is_gone_on_with_as_it_is(tmp_path: Path) -> None:
    before = json.dumps({"stage": "Settings", "samples": 4, "seed": 0}).encode()
    (tmp_path / "settings.json").write_bytes(before)
    Run(tmp_path, Settings(), origins={"supernet": "sha256:one"})
    check_origins(tmp_path, {"supernet": "sha256:one"})
    check_origins(tmp_path / "not begun", {"supernet": "sha256:one"})
    # other shards may still run the program that wrote it
    assert (tmp_path / "settings.json").read_bytes() == before


def test_a_setting_that_is_new_had_its_default_before(tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text(json.dumps({"stage": "Settings", "samples": 4}))
    Run(tmp_path, Settings())
    with pytest.raises(TrainingError, match=r"other settings \(seed\)"):
        Run(tmp_path, Settings(seed=1))


def test_shards_that_write_the_same_file_at_once_do_not_lose_it(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    contents = [bytes([letter]) * 10_000 for letter in b"abcd"]
    with ThreadPoolExecutor(4) as shards:
        for content in [shards.submit(write_atomically, path, content) for content in contents * 10]:
            content.result()
    assert path.read_bytes() in contents
    assert list(tmp_path.iterdir()) == [path]


def test_a_run_goes_on_without_its_log_but_not_from_a_damaged_checkpoint(tmp_path: Path) -> None:
    run = Run(tmp_path, Settings())
    run.log(step=1)
    run.checkpoint({"step": 1})
    run.log(step=2)
    assert run.resume() == {"step": 1}
    assert run.log_path.read_text().count("step") == 1
    run.log_path.unlink()
    assert run.resume() == {"step": 1}
    assert run.log_path.read_bytes() == b""
    for damaged in (run.checkpoint_path.read_bytes()[:200], b"", b"no checkpoint"):
        run.checkpoint_path.write_bytes(damaged)
        with pytest.raises(TrainingError, match="is damaged"):
            run.resume()


def test_damaged_tensors_say_which_stage_to_run_again(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "predictor.npz"
    save_tensors(path, {"x": np.arange(100)})
    assert load_tensors(path, stage="fit")["x"].sum() == 4950
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(TrainingError, match="is damaged: run the fit stage again"):
        load_tensors(path, stage="fit")
    with pytest.raises(TrainingError, match="not a panel file: delete it"):
        Panel.load(path)
    path.unlink()
    with pytest.raises(TrainingError, match="is missing: run the fit stage first"):
        load_tensors(path, stage="fit")
