"""`verify`, with images of the operator's own, on a real server."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnxruntime
import pytest

from eqnet_core.errors import EqnetError
from service.jobs.evaluation import EvaluationSet

REQUEST = {"device": "fpga-mixed", "search": {"population": 10, "generations": 5}, "verify": True}
MEAN, STD = (
    np.array(v, dtype=np.float32)[:, None, None] for v in ((0.491, 0.482, 0.447), (0.247, 0.243, 0.262))
)


def test_verify_measures_the_subnet_that_is_handed_out(client: httpx.Client, evaluation_data: Path) -> None:
    record = client.post("/subnets", json=REQUEST, headers={"Prefer": "wait=500"}).json()
    plain = client.post("/subnets", json=REQUEST | {"verify": False}, headers={"Prefer": "wait=500"}).json()
    model = client.get(f"/subnets/{record['id']}/artifacts/model.onnx").content
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    with np.load(evaluation_data) as data:
        images, labels = data["x_test"], data["y_test"]
    (logits,) = session.run(["logits"], {"image": (images.astype(np.float32) / 255 - MEAN) / STD})
    assert record["measured_accuracy"] == pytest.approx(np.mean(logits.argmax(1) == labels), abs=1.5 / 40)
    assert "verify" in record["timings"]
    assert plain["measured_accuracy"] is None
    assert plain["id"] != record["id"]


@pytest.mark.parametrize(
    ("shape", "label", "reason"),
    [((1, 16, 16), 0, "(1, 16, 16), the network takes (3, 32, 32)"), ((3, 32, 32), 10, "10 classes")],
)
def test_images_of_another_network_are_refused(
    serve: Callable[..., Any], tmp_path: Path, shape: tuple[int, ...], label: int, reason: str
) -> None:
    np.savez(tmp_path / "data.npz", x_test=np.zeros((4, *shape), np.uint8), y_test=np.full(4, label))
    with serve(evaluation_data=tmp_path / "data.npz").client() as client:
        refused = client.post("/subnets", json=REQUEST)
    assert (refused.status_code, refused.json()["type"]) == (422, "urn:eqnet:problem:no-evaluation-data")
    assert reason in refused.json()["detail"]
    assert refused.json()["errors"][0]["pointer"] == "/verify"


@pytest.mark.parametrize(
    "arrays",
    [
        {"x_test": np.zeros((4, 3, 8, 8), np.uint8)},
        {"x_test": np.zeros((4, 3, 8, 8), np.float32), "y_test": np.zeros(4, np.int64)},
        {"x_test": np.zeros((4, 3, 8, 8), np.uint8), "y_test": np.zeros(3, np.int64)},
        {"x_test": np.zeros((4, 3, 8, 8), np.uint8), "y_test": np.array(list("abcd"))},
        {"x_test": np.zeros((4, 192), np.uint8), "y_test": np.zeros(4, np.int64)},
        {"x_test": np.zeros((0, 3, 8, 8), np.uint8), "y_test": np.zeros(0, np.int64)},
        {"x_test": np.uint8(0), "y_test": np.zeros(4, np.int64)},
    ],
)
def test_other_files_are_told(tmp_path: Path, arrays: dict[str, Any]) -> None:
    np.savez(tmp_path / "data.npz", **arrays)
    with pytest.raises(EqnetError, match="EQNET_EVALUATION_DATA"):
        EvaluationSet.open(tmp_path / "data.npz", limit=10)


def test_no_more_than_the_limit_are_measured(evaluation_data: Path) -> None:
    assert len(EvaluationSet.open(evaluation_data, limit=7).images) == 7


def test_files_that_cannot_be_read_are_told(tmp_path: Path, subtests: pytest.Subtests) -> None:
    path = tmp_path / "data.npz"
    np.savez_compressed(path, x_test=np.zeros((4, 3, 8, 8), np.uint8), y_test=np.zeros(4, np.int64))
    whole = path.read_bytes()
    np.save(tmp_path / "array.npy", np.zeros((4, 3, 8, 8), np.uint8))
    altered = bytearray(whole)
    altered[60:90] = bytes(30)
    for what, content in {
        "empty": b"",
        "cut off": whole[: len(whole) // 2],
        "altered": bytes(altered),
        "one array": (tmp_path / "array.npy").read_bytes(),
        "text": b"x_test",
    }.items():
        with subtests.test(what=what):
            path.write_bytes(content)
            with pytest.raises(EqnetError, match="EQNET_EVALUATION_DATA"):
                EvaluationSet.open(path, limit=10)
