"""`/devices` of a real server."""

import httpx
import pytest


def test_every_listed_device_can_be_looked_at(client: httpx.Client) -> None:
    listed = client.get("/devices").json()["devices"]
    assert {"tensorrt", "qualcomm-htp-v66", "litert-int8", "fpga-mixed"} <= {d["name"] for d in listed}
    for device in listed:
        assert client.get(f"/devices/{device['name']}").json() == device
        assert device["source"]


@pytest.mark.parametrize("name", ["toaster", "..%2ftensorrt", "%F0%9F%92%A9", "a" * 5000])
def test_an_unknown_device_is_404(client: httpx.Client, name: str) -> None:
    response = client.get(f"/devices/{name}")
    assert response.status_code == 404
    assert response.headers["content-type"] == "application/problem+json"
    assert len(response.content) < 2000
