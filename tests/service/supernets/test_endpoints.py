"""`/supernets` of a real server."""

from pathlib import Path

import httpx

from eqnet_core.bundle import Bundle


def test_the_loaded_supernet_is_the_bundle(client: httpx.Client, bundle: Path) -> None:
    (listed,) = client.get("/supernets").json()["supernets"]
    assert listed == client.get("/supernets/random-resnet20").json()
    opened = Bundle.open(bundle)
    assert listed["digest"] == opened.digest
    assert [layer["name"] for layer in listed["layers"]] == [layer.name for layer in opened.space.layers]
    assert listed["layers"][0]["bits"] == [8]
    assert listed["layers"][1]["bits"] == [2, 3, 4, 5, 6, 7, 8]
    assert listed["input"]["shape"] == [3, 32, 32]
    assert len(listed["forms"]) == 8
    assert len(listed["classes"]) == 10


def test_an_unknown_supernet_is_404_and_names_what_there_is(client: httpx.Client) -> None:
    response = client.get("/supernets/resnet1000")
    assert response.status_code == 404
    assert "random-resnet20" in response.json()["detail"]
