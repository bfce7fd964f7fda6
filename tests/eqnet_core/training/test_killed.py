"""Training in a process of its own, killed with SIGKILL wherever it happens to be."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from eqnet_core.training.data import ImageData
from eqnet_core.training.pretrain import PretrainSettings, pretrain
from eqnet_core.training.supernet_settings import SupernetSettings
from eqnet_core.training.trainer import train_supernet

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
EPOCHS = 4
KILLS = 3
SHARED: dict[str, Any] = {"epochs": EPOCHS, "batch_size": 24, "compile": False, "checkpoint_seconds": 0}
GUIDED: dict[str, Any] = {**SHARED, "warmup_steps": 1, "averaging": 0.9}
FLOAT = PretrainSettings(**SHARED)
SUPERNET = SupernetSettings(**GUIDED)

PROGRAM = f"""
import sys
from pathlib import Path
import torch
from eqnet_core.training.batches import ImageSizes
from eqnet_core.training.data import load_data
from eqnet_core.training.pretrain import PretrainSettings, pretrain
from eqnet_core.training.supernet_settings import SupernetSettings
from eqnet_core.training.trainer import train_supernet

torch.set_num_threads(1)
file, stage, weights, folder = sys.argv[1:]
data = load_data(Path(file), input_shape=(3, 32, 32), held_out=64, seed=0)
if stage == "pretrain":
    pretrain(data, Path(folder), PretrainSettings(**{SHARED}), torch.device("cpu"))
else:
    train_supernet(data, Path(weights), Path(folder), SupernetSettings(**{GUIDED}), torch.device("cpu"))
"""


@pytest.fixture(scope="module")
def weights(digits: ImageData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The float network of an unbroken run."""
    return pretrain(digits, tmp_path_factory.mktemp("float"), FLOAT, CPU)


@pytest.mark.parametrize("stage", ["pretrain", "supernet"])
def test_killed_again_and_again_it_ends_where_an_unbroken_run_does(
    stage: str, digits: ImageData, digits_file: Path, weights: Path, tmp_path: Path
) -> None:
    unbroken = weights
    if stage == "supernet":
        unbroken = train_supernet(digits, weights, tmp_path / "unbroken", SUPERNET, CPU)
    folder = tmp_path / "killed"
    command = [sys.executable, "-c", PROGRAM, str(digits_file), stage, str(weights), str(folder)]
    checkpoint = folder / "checkpoint.pt"
    generator = np.random.default_rng(0)
    for _ in range(KILLS):
        before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
            for _ in range(6000):  # until it has gone on from where the last one was killed
                if checkpoint.exists() and checkpoint.stat().st_mtime_ns > before:
                    break
                assert process.poll() is None, "it ended before it could be killed"
                time.sleep(0.01)
            time.sleep(generator.uniform(0.0, 0.3))
            assert process.poll() is None, "it ended before it could be killed"
            process.kill()
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL, timeout=300)
    left, right = load_file(unbroken), load_file(folder / unbroken.name)
    assert left.keys() == right.keys()
    for name, value in left.items():
        np.testing.assert_allclose(value, right[name], rtol=1e-4, atol=1e-5, err_msg=name)
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == list(range(1, EPOCHS + 1))
