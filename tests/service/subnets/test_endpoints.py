"""`/subnets` of a real server, with real builders."""

import base64
import hashlib
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnxruntime
import pytest
import torch

from eqnet_core.export.proof import natural_images
from eqnet_core.export.state_dict import load_subnet
from eqnet_core.subnet import InputSpec

QUICK = {"population": 10, "generations": 10}
ENDLESS = {"population": 400, "generations": 10000}
"""A search that outlasts every test: only a cancelled build ends."""


def ask(client: httpx.Client, request: dict[str, Any], **headers: str) -> httpx.Response:
    return client.post("/subnets", json=request, headers=headers)


def finished(client: httpx.Client, subnet: str) -> dict[str, Any]:
    deadline = time.monotonic() + 500
    while time.monotonic() < deadline:
        record: dict[str, Any] = client.get(f"/subnets/{subnet}").json()
        if record["status"] in ("ready", "failed"):
            return record
        time.sleep(0.1)
    pytest.fail(f"{subnet} does not get ready")


def builds(client: httpx.Client) -> float:
    lines = client.get("/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("eqnet_builds_total"))


def test_a_subnet_is_built_and_then_there(client: httpx.Client, wanted: dict[str, Any]) -> None:
    request = wanted | {"search": QUICK | {"seed": 7}}
    first = ask(client, request, Prefer="wait=500")
    assert first.status_code == 201, first.text
    record = first.json()
    assert first.headers["location"] == f"/subnets/{record['id']}"
    assert first.headers["preference-applied"] == "wait=500"
    assert record["status"] == "ready"
    assert record["cost"]["weight_bits"] <= 3.0
    assert record["cost"]["activation_bits"] <= 3.0
    low, high = record["prediction_interval"]
    assert 0 <= low <= record["predicted_accuracy"] <= high <= 1
    assert record["measured_accuracy"] is None
    assert {"search", "calibrate", "export"} <= record["timings"].keys()

    second = ask(client, request)
    assert second.status_code == 200
    assert second.headers["cache-status"] == "eqnet; hit"
    assert second.json() == record == client.get(first.headers["location"]).json()


def test_requests_that_mean_the_same_are_one_subnet(
    client: httpx.Client, record: dict[str, Any], wanted: dict[str, Any]
) -> None:
    same = {
        "supernet": "random-resnet20",
        "profile": {
            "weight": wanted["profile"]["weight"] | {"bits": [8.0, 7, 6, 5, 4, 3, 2], "narrow_range": False},
            "activation": wanted["profile"]["activation"] | {"signed": False},
        },
        "budget": {"weight_bits": 3, "activation_bits": 3, "model_bytes": None},
        "pinned": {"layer1.0.conv1": {"weight_bits": None}},
        "search": QUICK | {"seed": 0},
        "artifacts": ["report.json", "model.onnx", "model.safetensors", "encodings.json", "model.onnx"],
        "verify": False,
    }
    response = ask(client, same)
    assert (response.status_code, response.json()["id"]) == (200, record["id"])


def test_pins_are_kept_and_only_what_was_asked_for_is_stored(
    client: httpx.Client, wanted: dict[str, Any]
) -> None:
    pinned = {
        "layer1.0.conv1": {"weight_bits": 8, "activation_bits": 2},
        "layer2.1.conv1": {"weight_bits": 7},
    }
    response = ask(client, wanted | {"pinned": pinned, "artifacts": ["report.json"]}, Prefer="wait=500")
    layers = {layer["name"]: layer for layer in response.json()["configuration"]["layers"]}
    for name, pin in pinned.items():
        assert pin.items() <= layers[name].items()
    assert [file["name"] for file in response.json()["artifacts"]] == ["report.json"]


def test_the_files_are_those_of_the_record_and_compute_the_same(
    client: httpx.Client, record: dict[str, Any], tmp_path: Path
) -> None:
    for file in record["artifacts"]:
        response = client.get(file["url"])
        digest = hashlib.sha256(response.content)
        assert response.status_code == 200
        assert (len(response.content), digest.hexdigest()) == (file["bytes"], file["sha256"])
        encoded = base64.b64encode(digest.digest()).decode()
        assert response.headers["content-digest"] == f"sha-256=:{encoded}:"
        (tmp_path / file["name"]).write_bytes(response.content)
    images = natural_images(InputSpec(shape=(3, 32, 32), mean=(0.5,) * 3, std=(0.25,) * 3), 32, seed=5)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"image": images})
    with torch.inference_mode():
        simulated = load_subnet(tmp_path / "model.safetensors")(torch.from_numpy(images)).numpy()
    assert np.mean(logits.argmax(1) == simulated.argmax(1)) >= 0.95
    assert json.loads((tmp_path / "report.json").read_text())


def test_files_by_parts_and_by_validator(client: httpx.Client, record: dict[str, Any]) -> None:
    url = f"/subnets/{record['id']}/artifacts/model.onnx"
    whole = client.get(url)
    part = client.get(url, headers={"Range": "bytes=100-199"})
    assert (part.status_code, part.content) == (206, whole.content[100:200])
    assert client.get(url, headers={"If-None-Match": whole.headers["etag"]}).status_code == 304
    head = client.head(url)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(whole.content))
    assert client.head(url, headers={"Range": "bytes=100-199"}).status_code == 200
    assert client.get(url, headers={"Range": "bytes=99999999-"}).status_code == 416


def test_a_configuration_is_built_as_it_is(client: httpx.Client, record: dict[str, Any]) -> None:
    configuration = record["configuration"]
    built = ask(client, {"configuration": configuration}, Prefer="wait=500")
    assert built.status_code == 201, built.text
    assert built.json()["configuration"] == configuration
    assert built.json()["predicted_accuracy"] == record["predicted_accuracy"]
    assert built.json()["profile"] is None
    reordered = configuration | {"layers": configuration["layers"][::-1]}
    again = ask(client, {"configuration": reordered})
    assert (again.status_code, again.json()["id"]) == (200, built.json()["id"])


def test_a_device_is_told_what_it_holds_each_layer_in(client: httpx.Client) -> None:
    pinned = {"layer1.0.conv1": {"weight_bits": 4}, "layer1.0.conv2": {"weight_bits": 3}}
    request = {"device": "qualcomm-htp-v73", "pinned": pinned, "search": QUICK}
    response = ask(client, request, Prefer="wait=500")
    assert response.status_code == 201, response.text
    record = response.json()
    assert record["device"] == "qualcomm-htp-v73"
    held = {layer["name"]: layer["weight"] for layer in record["containers"]}
    assert held["layer1.0.conv1"] == held["conv1"] == held["fc"] == "native"
    assert held["layer1.0.conv2"] == "held in int8"
    report = client.get(f"/subnets/{record['id']}/artifacts/report.json").json()
    assert report["device"]["name"] == "qualcomm-htp-v73"
    assert {layer["name"]: layer["weight"]["on_device"] for layer in report["layers"]} == held


def test_respond_async_answers_at_once_and_the_record_tells_the_progress(
    client: httpx.Client, wanted: dict[str, Any]
) -> None:
    response = ask(client, wanted | {"search": QUICK | {"seed": 11}}, Prefer="respond-async")
    assert response.status_code == 202
    assert int(response.headers["retry-after"]) > 0
    pending = response.json()
    assert pending["status"] in ("queued", "building")
    assert 0 <= pending["progress"]["fraction"] <= 1
    assert finished(client, pending["id"])["status"] == "ready"


def test_a_running_build_blocks_nobody_and_is_cancelled_by_delete(
    client: httpx.Client, wanted: dict[str, Any]
) -> None:
    response = ask(client, wanted | {"search": ENDLESS}, Prefer="wait=1")
    assert response.status_code == 202
    location = response.headers["location"]
    early = client.get(f"{location}/artifacts/model.onnx")
    assert (early.status_code, early.json()["type"]) == (409, "urn:eqnet:problem:not-ready")
    assert client.get("/health/ready").status_code == 200
    assert client.get("/predict-accuracy?device=tensorrt&weight_bits=8&activation_bits=8").status_code == 200
    assert ask(client, wanted | {"search": ENDLESS}, Prefer="wait=0").json()["id"] in location

    assert client.delete(location).status_code == 204
    assert client.get(location).status_code == 404
    after = ask(client, wanted | {"search": QUICK | {"seed": 12}}, Prefer="wait=500")
    assert after.status_code == 201, after.text


def test_many_identical_requests_build_once(client: httpx.Client, wanted: dict[str, Any]) -> None:
    before = builds(client)
    request = wanted | {"search": QUICK | {"seed": 13}}
    with ThreadPoolExecutor(30) as threads:
        answers = list(threads.map(lambda _: ask(client, request, Prefer="wait=500"), range(30)))
    statuses = sorted(answer.status_code for answer in answers)
    assert statuses == [200] * 29 + [201]
    assert len({answer.content for answer in answers}) == 1
    assert builds(client) == before + 1


def test_deleting_forgets_and_the_same_request_gives_the_same_bytes(
    client: httpx.Client, wanted: dict[str, Any]
) -> None:
    request = wanted | {"search": QUICK | {"seed": 14}}
    first = ask(client, request, Prefer="wait=500").json()
    assert client.delete(f"/subnets/{first['id']}").status_code == 204
    assert client.get(f"/subnets/{first['id']}").status_code == 404
    assert client.get(first["artifacts"][0]["url"]).status_code == 404
    again = ask(client, request, Prefer="wait=500")
    assert again.status_code == 201
    assert again.json()["artifacts"] == first["artifacts"]


def test_a_failed_build_is_a_record_and_asking_again_tries_again(
    client: httpx.Client, server: Any, wanted: dict[str, Any]
) -> None:
    request = wanted | {"search": QUICK | {"seed": 15}}
    record = ask(client, request, Prefer="wait=500").json()
    client.delete(f"/subnets/{record['id']}")
    # A folder where the file is to go: the builder cannot store it.
    obstacle = server.data / "artifacts" / record["id"] / record["artifacts"][0]["sha256"]
    obstacle.mkdir(parents=True)
    failed = ask(client, request, Prefer="wait=500")
    assert (failed.status_code, failed.headers["content-type"]) == (503, "application/problem+json")
    assert failed.json()["type"] == "urn:eqnet:problem:storage"
    kept = client.get(failed.headers["location"])
    assert (kept.status_code, kept.json()["status"]) == (200, "failed")
    assert kept.json()["problem"]["type"] == "urn:eqnet:problem:storage"
    early = client.get(record["artifacts"][0]["url"])
    assert early.status_code == 409

    assert not obstacle.parent.exists()  # what a failed build stored is of no use
    again = ask(client, request, Prefer="wait=500")
    assert again.status_code == 201, again.text
    assert again.json()["artifacts"] == record["artifacts"]


def test_the_list_is_newest_first_and_paged(client: httpx.Client, record: dict[str, Any]) -> None:
    seen: list[str] = []
    created: list[str] = []
    cursor: str | None = None
    for _ in range(100):
        query = {"limit": 2} | ({"cursor": cursor} if cursor else {})
        page = client.get("/subnets", params=query).json()
        assert len(page["subnets"]) <= 2
        seen += [entry["id"] for entry in page["subnets"]]
        created += [entry["created_at"] for entry in page["subnets"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert record["id"] in seen
    assert len(seen) == len(set(seen))
    assert created == sorted(created, reverse=True)
