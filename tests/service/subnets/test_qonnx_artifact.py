"""`model.qonnx.onnx` over HTTP: unasked for a device that takes it, else where it is named."""

from __future__ import annotations

from typing import Any

import httpx
import numpy as np
import onnxruntime

from eqnet_core.export.proof import natural_images
from eqnet_core.export.qonnx import runnable
from eqnet_core.subnet import InputSpec

WAIT = {"Prefer": "wait=500"}


def test_an_fpga_gets_it_unasked(client: httpx.Client, wanted: dict[str, Any]) -> None:
    request = {"device": "fpga-mixed", "budget": wanted["budget"], "search": wanted["search"]}
    record = client.post("/subnets", json=request, headers=WAIT).json()
    files = {file["name"]: client.get(file["url"]) for file in record["artifacts"]}
    report = files["report.json"].json()
    assert report["device"]["file"] == "model.qonnx.onnx"
    assert report["files"]["model.qonnx.onnx"]["bytes"] == len(files["model.qonnx.onnx"].content)
    assert report["proofs"]["model.qonnx.onnx"]["optimizer_default"]["layer_difference"] < 2e-5
    shown = client.get(f"/supernets/{record['supernet']['name']}").json()["input"]
    spec = InputSpec(shape=tuple(shown["shape"]), mean=tuple(shown["mean"]), std=tuple(shown["std"]))
    images = natural_images(spec, 32, seed=9)
    classes = []
    for content in (files["model.onnx"].content, runnable(files["model.qonnx.onnx"].content)):
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        classes.append(session.run(["logits"], {"image": images})[0].argmax(1))
    assert np.mean(classes[0] == classes[1]) >= 0.9


def test_others_get_it_where_they_name_it(client: httpx.Client, wanted: dict[str, Any]) -> None:
    weight = wanted["profile"]["weight"]
    activation = {"bits": weight["bits"], "symmetry": "symmetric"}
    request = wanted | {"profile": {"weight": weight, "activation": activation}}
    record = client.post("/subnets", json=request, headers=WAIT).json()
    assert "model.qonnx.onnx" not in {file["name"] for file in record["artifacts"]}
    named = client.post("/subnets", json=request | {"artifacts": ["model.qonnx.onnx"]}, headers=WAIT).json()
    assert [file["name"] for file in named["artifacts"]] == ["model.qonnx.onnx"]
    assert named["configuration"] == record["configuration"]


def test_asymmetric_forms_are_refused_at_once(client: httpx.Client, wanted: dict[str, Any]) -> None:
    response = client.post("/subnets", json=wanted | {"artifacts": ["model.onnx", "model.qonnx.onnx"]})
    assert response.status_code == 422
    problem = response.json()
    assert [error["pointer"] for error in problem["errors"]] == ["/artifacts/1"]
    assert "symmetric weights and activations" in problem["detail"]
