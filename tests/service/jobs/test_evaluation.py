"""`verify`, with images of the operator's own, on a real server."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from eqnet_core.errors import EqnetError
from service.jobs.evaluation import EvaluationSet

REQUEST = {"device": "fpga-mixed", "search": {"population": 10, "generations": 5}, "verify": True}
MEAN, STD = (
    np.array(v, dtype=np.float32)[:, None, None] for v in ((0.491, 0.482, 0.447), (0.247, 0.243, 0.262))
)


def _images(count: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 256, size=(count, 3, 4, 4), dtype=np.uint8)
    return coarse.repeat(8, axis=2).repeat(8, axis=3)


def test_verify_measures_the_subnet_that_is_handed_out(serve: Callable[..., Any], tmp_path: Path) -> None:
    images = _images(40)
    path = tmp_path / "evaluation.npz"
    np.savez(path, x_test=images, y_test=np.arange(40) % 10)
    server = serve(evaluation_data=path)
    with server.client() as client:
        record = client.post("/subnets", json=REQUEST, headers={"Prefer": "wait=500"}).json()
        plain = client.post(
            "/subnets", json=REQUEST | {"verify": False}, headers={"Prefer": "wait=500"}
        ).json()
        model = client.get(f"/subnets/{record['id']}/artifacts/model.onnx").content
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    inputs = (images.astype(np.float32) / 255 - MEAN) / STD
    (logits,) = session.run(["logits"], {"image": inputs.astype(np.float32)})
    top1 = np.mean(logits.argmax(1) == np.arange(40) % 10)
    assert record["measured_accuracy"] == pytest.approx(top1, abs=1.5 / 40)
    assert "verify" in record["timings"]
    assert plain["measured_accuracy"] is None
    assert plain["id"] != record["id"]


@pytest.mark.parametrize(
    "arrays",
    [
        {"x_test": np.zeros((4, 3, 8, 8), np.uint8)},
        {"x_test": np.zeros((4, 3, 8, 8), np.float32), "y_test": np.zeros(4, np.int64)},
        {"x_test": np.zeros((4, 3, 8, 8), np.uint8), "y_test": np.zeros(3, np.int64)},
        {"x_test": np.zeros((4, 192), np.uint8), "y_test": np.zeros(4, np.int64)},
    ],
)
def test_other_files_are_told(tmp_path: Path, arrays: dict[str, Any]) -> None:
    np.savez(tmp_path / "data.npz", **arrays)
    with pytest.raises(EqnetError, match="EQNET_EVALUATION_DATA"):
        EvaluationSet.open(tmp_path / "data.npz", limit=10)
