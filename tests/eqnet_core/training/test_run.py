from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from eqnet_core.errors import TrainingError
from eqnet_core.training.panel import Panel
from eqnet_core.training.run import load_tensors, save_tensors, write_atomically


def test_shards_that_write_the_same_file_at_once_do_not_lose_it(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    contents = [bytes([letter]) * 10_000 for letter in b"abcd"]
    with ThreadPoolExecutor(4) as shards:
        for content in [shards.submit(write_atomically, path, content) for content in contents * 10]:
            content.result()
    assert path.read_bytes() in contents
    assert list(tmp_path.iterdir()) == [path]


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
