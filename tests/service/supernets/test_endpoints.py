"""`/supernets` of a real server."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from eqnet_core.bundle import Bundle


def test_the_loaded_supernet_is_the_bundle(client: httpx.Client, bundle: Path) -> None:
    (listed,) = client.get("/supernets").json()["supernets"]
    assert listed == client.get("/supernets/random-resnet20").json()
    opened = Bundle.open(bundle)
    assert listed["digest"] == opened.digest
    assert [layer["name"] for layer in listed["layers"]] == [layer.name for layer in opened.space.layers]
    assert listed["layers"][0]["bits"] == [8]
    assert listed["layers"][1]["bits"] == [2, 3, 4, 5, 6, 7, 8]
    nonnegative = [layer["nonnegative"] for layer in listed["layers"]]
    assert nonnegative == [layer.nonnegative for layer in opened.space.layers]
    assert listed["input"]["shape"] == [3, 32, 32]
    assert len(listed["forms"]) == 8
    assert len(listed["classes"]) == 10


def test_a_supernet_with_depthwise_convolutions_has_no_two_bits(
    serve: Any, bundle: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "bundles" / "depthwise"
    shutil.copytree(bundle, folder)
    document = json.loads((folder / "bundle.json").read_text()) | {"name": "depthwise"}
    document["layers"][3]["kind"] = "depthwise_conv"
    (folder / "bundle.json").write_text(json.dumps(document))
    weight = {"bits": [2], "granularity": "per_tensor", "symmetry": "symmetric"}
    activation = {"bits": [2, 8], "symmetry": "symmetric"}
    profile = {"weight": weight, "activation": activation}
    device = {"device": "fpga-mixed"}
    bits = device | {"weight_bits": 2, "activation_bits": 8}
    axes = {f"{side}_symmetry": "symmetric" for side in ("weight", "activation")}
    axes |= {"weight_granularity": "per_tensor", "weight_bits": "2"}
    wanted = device | {"budget": {"weight_bits": 3.1}, "artifacts": ["report.json"]}
    with serve(bundles=folder.parent).client() as client:
        layers = client.get("/supernets/depthwise").json()["layers"]
        assert {tuple(layer["bits"]) for layer in layers} == {(8,), (3, 4, 5, 6, 7, 8)}
        built = client.post("/subnets", json=wanted, headers={"Prefer": "wait=500"})
        assert built.status_code == 201
        configuration = built.json()["configuration"]
        assert min(layer["weight_bits"] for layer in configuration["layers"]) == 3
        configuration["layers"][5]["weight_bits"] = 2
        pinned = {"layer1.0.conv1": {"weight_bits": 2}}
        for response, pointer in (
            (client.get("/predict-accuracy", params=bits), "/weight_bits"),
            (client.post("/predict-accuracy", json=[bits | {"weight_bits": 3}, bits]), "/1/weight_bits"),
            (client.get("/pareto", params=axes), "/weight_bits"),
            (client.post("/subnets", json={"profile": profile}), "/profile/weight/bits"),
            (
                client.post("/subnets", json={"configuration": configuration}),
                "/configuration/layers/5/weight_bits",
            ),
            (
                client.post("/subnets", json=device | {"pinned": pinned}),
                "/pinned/layer1.0.conv1/weight_bits",
            ),
        ):
            assert response.status_code == 422, response.text
            [error] = response.json()["errors"]
            assert error["pointer"] == pointer
            assert "3..8" in error["detail"] or "3, 4, 5, 6, 7, 8" in error["detail"]


def test_an_unknown_supernet_is_404_and_names_what_there_is(client: httpx.Client) -> None:
    response = client.get("/supernets/resnet1000")
    assert response.status_code == 404
    assert "random-resnet20" in response.json()["detail"]


@pytest.mark.slow
def test_bundles_are_replaced_added_and_damaged_without_downtime(
    serve: Any, bundle: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "bundles"
    shutil.copytree(bundle, folder / "first")
    server = serve(bundles=folder, bundles_interval=0.2)

    def loaded() -> dict[str, str]:
        listed = client.get("/supernets").json()["supernets"]
        return {supernet["name"]: supernet["digest"] for supernet in listed}

    def until(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 200
        while not condition():
            assert time.monotonic() < deadline
            assert client.get("/health/ready").status_code == 200
            time.sleep(0.05)

    request = {"device": "fpga-mixed", "search": {"population": 10, "generations": 2}}
    with server.client() as client:
        before = loaded()
        second = tmp_path / "second"
        shutil.copytree(bundle, second)
        document = json.loads((second / "bundle.json").read_text()) | {"name": "second"}
        (second / "bundle.json").write_text(json.dumps(document))
        second.rename(folder / "second")
        until(lambda: "second" in loaded())
        assert before.items() < loaded().items()
        answer = client.post(
            "/subnets", json=request | {"supernet": "second"}, headers={"Prefer": "wait=500"}
        )
        assert answer.status_code == 201
        assert "eqnet_builder_restarts 0.0" in client.get("/metrics").text

        # Half of a replacement is not served; what was there is.
        known = loaded()
        weights = folder / "second" / "supernet.safetensors"
        whole = weights.read_bytes()
        weights.write_bytes(whole[:-1])
        until(lambda: client.get("/health/ready").json()["status"] == "degraded")
        assert "second" in client.get("/health/ready").json()["detail"]
        assert loaded() == known
        assert client.post("/subnets", json=request | {"supernet": "second"}).status_code == 200
        weights.write_bytes(whole)
        until(lambda: client.get("/health/ready").json()["status"] == "ready")
        weights.write_bytes(whole[:-1])
        until(lambda: client.get("/health/ready").json()["status"] == "degraded")

        # A new one that is damaged is told of, and costs nobody the others.
        shutil.copytree(folder / "second", folder / "third")
        until(lambda: client.get("/supernets/third").status_code == 503)
        assert loaded() == known
        assert client.get("/health/ready").status_code == 200
