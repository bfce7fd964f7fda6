"""`/devices` of a real server."""

import httpx
import pytest


def test_every_listed_device_can_be_looked_at(client: httpx.Client) -> None:
    listed = client.get("/devices").json()["devices"]
    assert {"tensorrt", "qualcomm-htp-v66", "litert-int8", "fpga-mixed"} <= {d["name"] for d in listed}
    for device in listed:
        assert client.get(f"/devices/{device['name']}").json() == device
        assert device["source"]


def test_it_says_what_each_bit_width_is_held_in(client: httpx.Client) -> None:
    held = client.get("/devices/qualcomm-htp-v73").json()["containers"]
    assert [held["weight"][str(bits)] for bits in (3, 4, 8)] == ["held in int8", "native", "native"]
    assert [held["activation"][str(bits)] for bits in (4, 8)] == ["held in int8", "native"]


def test_an_unsupported_target_is_listed_and_refused_with_the_reason(client: httpx.Client) -> None:
    listed = {device["name"]: device for device in client.get("/devices").json()["devices"]}
    assert [name for name, device in listed.items() if not device["supported"]] == ["vitis-ai-dpu"]
    assert listed["vitis-ai-dpu"]["profile"] is None
    bits = {"weight_bits": 4, "activation_bits": 4}
    for response in (
        client.post("/subnets", json={"device": "vitis-ai-dpu"}),
        client.get("/predict-accuracy", params={"device": "vitis-ai-dpu"} | bits),
        client.get("/pareto", params={"device": "vitis-ai-dpu"}),
    ):
        problem = response.json()
        assert response.status_code == 422
        assert problem["type"].endswith(":unsupported-target")
        assert "powers of two" in problem["detail"]
        assert problem["errors"][0]["pointer"] == "/device"


@pytest.mark.parametrize("name", ["toaster", "..%2ftensorrt", "%F0%9F%92%A9", "a" * 5000])
def test_an_unknown_device_is_404(client: httpx.Client, name: str) -> None:
    response = client.get(f"/devices/{name}")
    assert response.status_code == 404
    assert response.headers["content-type"] == "application/problem+json"
    assert len(response.content) < 2000
