"""`model.integer.onnx` of the bundle that ships, over HTTP; the other tests' bundle has no tensor ranges."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from eqnet_core.bundle import Bundle, shipped_bundles
from eqnet_core.configuration_json import configuration_to_json
from eqnet_core.export.proof import natural_images
from eqnet_core.space import FORMS


def test_the_integer_flavour_is_delivered_measured_and_runs(
    serve: Callable[..., Any], evaluation_data: Path
) -> None:
    bundle = Bundle.open(shipped_bundles()["resnet20-cifar10"])
    server = serve(bundles=bundle.path, evaluation_data=evaluation_data)
    configuration = configuration_to_json(bundle.space.uniform(FORMS[4], 4), bundle.space)
    request = {"configuration": configuration, "verify": True}
    with server.client() as client:
        response = client.post("/subnets", json=request, headers={"Prefer": "wait=500"})
        assert response.status_code == 201, response.text
        record = response.json()
        # a bundle with tensor ranges gives it unasked
        urls = {artifact["name"]: artifact["url"] for artifact in record["artifacts"]}
        assert "model.integer.onnx" in urls
        files = {name: client.get(url) for name, url in urls.items()}
        only = client.post(
            "/subnets",
            json={**request, "artifacts": ["model.integer.onnx"]},
            headers={"Prefer": "wait=500"},
        )
        assert [artifact["name"] for artifact in only.json()["artifacts"]] == ["model.integer.onnx"]
    assert {file.status_code for file in files.values()} == {200}
    report = files["report.json"].json()
    assert report["proofs"]["model.integer.onnx"]["optimizer_default"]["steps"] <= 1
    accuracy = report["integer"]["accuracy"]
    assert abs(accuracy["predicted_accuracy"] - record["predicted_accuracy"]) < 0.01
    with np.load(evaluation_data) as data:
        pixels, labels = data["x_test"].astype(np.float32) / 255, data["y_test"]
    mean, std = (np.array(v, np.float32)[:, None, None] for v in (bundle.input.mean, bundle.input.std))
    for member, name in (
        ("measured_accuracy", "model.onnx"),
        ("measured_integer_accuracy", "model.integer.onnx"),
    ):
        session = onnxruntime.InferenceSession(files[name].content, providers=["CPUExecutionProvider"])
        (logits,) = session.run(["logits"], {"image": (pixels - mean) / std})
        assert abs(record[member] - np.mean(logits.argmax(1) == labels)) < 1.5 / len(labels), name
    images = natural_images(bundle.input, 32, seed=9)
    classes = []
    for name in ("model.onnx", "model.integer.onnx"):
        session = onnxruntime.InferenceSession(files[name].content, providers=["CPUExecutionProvider"])
        classes.append(session.run(["logits"], {"image": images})[0].argmax(1))
    assert np.mean(classes[0] == classes[1]) >= 0.7
