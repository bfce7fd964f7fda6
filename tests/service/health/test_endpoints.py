"""`/health` and `/metrics` of a real server; of one that is not ready, see tests/service/faults/."""

import httpx


def test_live_and_ready(client: httpx.Client) -> None:
    assert client.get("/health/live").json() == {"status": "live"}
    ready = client.get("/health/ready").json()
    assert ready["status"] == "ready"
    assert ready["supernets"] == ["random-resnet20"]


def test_metrics_count_requests_by_route(client: httpx.Client) -> None:
    def count() -> float:
        text = client.get("/metrics").text
        line = 'eqnet_requests_total{method="GET",route="/subnets/{subnet}",status="404"}'
        return sum(float(entry.split()[-1]) for entry in text.splitlines() if entry.startswith(line))

    before = count()
    client.get("/subnets/" + "0" * 32)
    client.get("/subnets/" + "1" * 32)
    assert count() == before + 2
