"""The Python client against a real server."""

from pathlib import Path
from typing import Any

import pytest

from service.client import Client, ServiceError

Server = Any

SEARCH = {"population": 10, "generations": 10, "seed": 21}


def test_the_way_of_a_deployment_tool(server: Server, tmp_path: Path) -> None:
    with Client(server.url) as client:
        record = client.subnet(device="fpga-mixed", budget={"weight_bits": 3.0}, search=SEARCH)
        assert record["status"] == "ready"
        saved = client.download(record, tmp_path)
        assert {path.name for path in saved} == {file["name"] for file in record["artifacts"]}
        assert client.record(record["id"]) == record
        client.delete(record["id"])
        with pytest.raises(ServiceError) as raised:
            client.record(record["id"])
    assert (raised.value.status, raised.value.code) == (404, "unknown-subnet")


def test_predictions_devices_supernets(server: Server) -> None:
    with Client(server.url) as client:
        assert client.devices()
        (supernet,) = client.supernets()
        count = sum(layer["searchable"] for layer in supernet["layers"])
        answer = client.predict_accuracy(device="fpga-mixed", weight_bits=[3] * count, activation_bits=4)
    assert answer["cost"]["weight_bits"] == 3.0


def test_problems_are_raised_with_their_code(server: Server) -> None:
    with Client(server.url) as client, pytest.raises(ServiceError, match="weight_bits") as raised:
        client.subnet(device="fpga-mixed", budget={"weight_bits": 1.0})
    assert raised.value.code == "infeasible-budget"
    assert raised.value.document["nearest"] == {"weight_bits": 2.0}
