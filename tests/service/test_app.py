"""The application as a whole: its document, its page, what it imports."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from typing import Any

import httpx
import pytest

from service.predictions.schemas import Pareto, Prediction
from service.subnets.schemas import SubnetPage, SubnetRecord, SubnetRequest


def test_the_web_process_never_imports_torch() -> None:
    code = (
        "import sys; from service.app import create_app; from service.settings import Settings;"
        "create_app(Settings());"
        "print(sorted({'torch', 'torchvision', 'onnx', 'onnxruntime'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.fixture(scope="module")
def document(client: httpx.Client) -> dict[str, Any]:
    found: dict[str, Any] = client.get("/openapi.json").json()
    return found


def test_the_document_names_every_endpoint(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1")
    assert set(document["paths"]) == {
        "/subnets",
        "/subnets/{subnet}",
        "/subnets/{subnet}/artifacts/{name}",
        "/subnets/{subnet}/events",
        "/predict-accuracy",
        "/pareto",
        "/supernets",
        "/supernets/{name}",
        "/devices",
        "/devices/{name}",
        "/health/live",
        "/health/ready",
        "/metrics",
    }


def test_every_documented_error_is_a_problem(document: dict[str, Any]) -> None:
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            for status, response in operation["responses"].items():
                if status >= "400":
                    assert list(response["content"]) == ["application/problem+json"], (path, method, status)


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    references = set(re.findall(r'"#/components/schemas/(\w+)"', str(document).replace("'", '"')))
    assert references
    assert references <= set(schemas)


def test_the_document_says_what_the_numbers_mean(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    assert "count as 7" in schemas["Cost"]["description"]
    assert "signed" in schemas["BudgetSchema"]["description"]
    assert (
        "highest bits that the device accepts"
        in schemas["SubnetRequest"]["properties"]["budget"]["description"]
    )
    for name in ("SubnetRecord", "Prediction", "ParetoPoint"):
        assert "held-out images" in schemas[name]["properties"]["prediction_interval"]["description"]


def test_the_examples_are_valid_requests(client: httpx.Client, document: dict[str, Any]) -> None:
    examples = document["components"]["schemas"]["SubnetRequest"]["examples"]
    assert examples
    known = {device["name"] for device in client.get("/devices").json()["devices"]}
    for example in examples:
        request = SubnetRequest.model_validate(example)
        assert request.device is None or request.device in known
    body = document["paths"]["/predict-accuracy"]["post"]["requestBody"]["content"]["application/json"]
    assert body["schema"]["examples"]
    for query in body["schema"]["examples"]:
        assert client.post("/predict-accuracy", json=query).status_code == 200


def test_answers_are_as_documented(client: httpx.Client) -> None:
    request = {"device": "fpga-mixed", "search": {"population": 10, "generations": 5}}
    record = client.post("/subnets", json=request, headers={"Prefer": "wait=500"}).json()
    strict = {"extra": "forbid"}
    SubnetRecord.model_validate(record, **strict)
    SubnetPage.model_validate(client.get("/subnets").json(), **strict)
    query = "device=fpga-mixed&weight_bits=3&activation_bits=3"
    Prediction.model_validate(client.get(f"/predict-accuracy?{query}").json(), **strict)
    Pareto.model_validate(client.get("/pareto?device=fpga-mixed&points=2").json(), **strict)
    assert record["cost"]["weight_bits"] == record["cost"]["activation_bits"] == 8.0  # an empty budget


class _Resources(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.urls: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.urls += [value or "" for name, value in attrs if name in ("src", "href")]


@pytest.mark.parametrize(("path", "script"), [("/", "/web/page.js"), ("/docs", "/web/docs.js")])
def test_pages_and_everything_they_load_come_from_here(client: httpx.Client, path: str, script: str) -> None:
    page = client.get(path)
    assert page.status_code == 200
    assert "script-src 'self'" in page.headers["content-security-policy"]
    assert re.search(r"<script[^>]*>[^<]|<style| style=", page.text) is None  # the policy would stop them
    resources = _Resources()
    resources.feed(page.text)
    assert script in resources.urls
    for url in resources.urls:
        if url != "data:,":
            assert url.startswith("/")
            assert client.get(url).status_code == 200, url


def test_every_answer_forbids_sniffing(client: httpx.Client) -> None:
    for path in ("/", "/devices", "/nowhere", "/health/live"):
        headers = client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "server" not in headers


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE"])
def test_other_methods_are_405(client: httpx.Client, method: str) -> None:
    response = client.request(method, "/subnets", json={})
    assert response.status_code == 405
    assert response.headers["content-type"] == "application/problem+json"
    assert "allow" in response.headers
