"""Every request leaves a name, a count, a log line and, where wanted, a span."""

import asyncio
import json
import logging
import sys
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from fastapi import FastAPI
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from starlette.requests import ClientDisconnect
from starlette.types import Message

from service.app import create_app
from service.settings import Settings
from service.tracing import TracingError, build_span, record_stages

TRACE = "0af7651916cd43dd8448eb211c80319c"


def get(app: Any, path: str, **headers: str) -> httpx.Response:
    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.get(path, headers=headers)

    return anyio.run(send)


@pytest.fixture
def app(tmp_path: Path) -> FastAPI:
    return create_app(Settings(data_dir=tmp_path))


def test_a_request_keeps_its_name(app: FastAPI) -> None:
    assert get(app, "/devices", **{"X-Request-Id": "abc-1.2_3"}).headers["x-request-id"] == "abc-1.2_3"


@pytest.mark.parametrize("name", ["", "a b", "a" * 65, "a;b", "{0}", "${x}", "%s"])
def test_odd_names_are_replaced(app: FastAPI, name: str) -> None:
    given = get(app, "/devices", **{"X-Request-Id": name}).headers["x-request-id"]
    assert given != name
    assert len(given) == 16


@pytest.fixture(scope="module")
def spans() -> InMemorySpanExporter:
    """All spans of this process: OpenTelemetry lets its provider be set once."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return exporter


@pytest.fixture
def broken(app: FastAPI) -> FastAPI:
    """Our application with an endpoint that has a defect."""

    @app.get("/break/{thing}")
    async def endpoint(thing: str) -> None:
        raise RuntimeError(thing)

    return app


def test_a_defect_is_a_problem_with_headers_and_a_log_entry(
    broken: FastAPI, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        response = get(broken, "/break/secret")
    assert response.status_code == 500
    assert response.headers["content-type"] == "application/problem+json"
    assert "secret" not in response.text
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["x-request-id"]
    assert any(record.exc_info for record in caplog.records)


def test_what_the_end_of_the_server_cuts_short_is_told_to_ask_again(
    app: FastAPI, caplog: pytest.LogCaptureFixture
) -> None:
    sent: list[Message] = []

    async def main() -> None:
        begun = asyncio.Event()

        @app.get("/wait")
        async def endpoint() -> None:
            begun.set()
            await asyncio.Event().wait()

        async def receive() -> Message:
            return {"type": "http.request"}

        async def send(message: Message) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "GET", "path": "/wait", "query_string": b"", "headers": []}
        asking = asyncio.create_task(app(scope, receive, send))
        await begun.wait()
        asking.cancel()
        await asking

    with caplog.at_level(logging.INFO):
        asyncio.run(main())
    start, body = sent
    assert (start["status"], json.loads(body["body"])["type"]) == (503, "urn:eqnet:problem:ending")
    assert {b"retry-after", b"x-request-id"} <= dict(start["headers"]).keys()
    assert [bool(record.exc_info) for record in caplog.records] == [False]


def test_who_hung_up_before_an_answer_is_counted_as_such(app: FastAPI) -> None:
    @app.get("/gone")
    async def endpoint() -> None:
        raise ClientDisconnect

    with pytest.raises(AssertionError):  # httpx: no answer came
        get(app, "/gone")
    metrics = app.user_middleware[0].kwargs["metrics"]
    assert 'route="/gone",status="499"' in metrics.exposition(queued=0, restarts=0).decode()


def test_a_span_is_part_of_the_callers_trace(broken: FastAPI, spans: InMemorySpanExporter) -> None:
    spans.clear()
    get(broken, "/break/it", traceparent=f"00-{TRACE}-b7ad6b7169203331-01")
    get(broken, "/health/live")
    (span,) = spans.get_finished_spans()
    assert span.name == "GET /break/{thing}"
    assert span.context is not None
    assert f"{span.context.trace_id:032x}" == TRACE
    assert span.attributes is not None
    assert span.attributes["http.response.status_code"] == 500


def test_stages_of_a_build_follow_each_other(spans: InMemorySpanExporter) -> None:
    spans.clear()
    with build_span("ab" * 16):
        record_stages({"search": 1.0, "export": 0.5}, end=1000.0)
    search, export, build = spans.get_finished_spans()
    assert [span.name for span in (search, export, build)] == ["search", "export", "build"]
    assert search.start_time == int(998.5e9)
    assert search.end_time == export.start_time
    assert search.parent is not None
    assert build.context is not None
    assert search.parent.span_id == build.context.span_id


def test_traces_that_cannot_be_sent_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter", None)
    with pytest.raises(TracingError, match="scripts/install serve,tracing"):
        create_app(Settings(data_dir=tmp_path))


def test_only_what_is_worth_it_is_logged_at_info(app: FastAPI, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="eqnet.requests"):
        get(app, "/devices")
    assert not caplog.records
    with caplog.at_level(logging.DEBUG, logger="eqnet.requests"):
        get(app, "/devices/%0Aforged")
    (entry,) = caplog.records
    assert "\n" not in entry.getMessage()
    assert (vars(entry)["status"], vars(entry)["method"]) == (404, "GET")


def test_a_build_is_told_in_one_line_of_json(serve: Any) -> None:
    server = serve(log_format="json")
    with server.client(headers={"X-Request-Id": "the-request"}) as client:
        record = client.post(
            "/subnets",
            json={"device": "fpga-mixed", "search": {"population": 10, "generations": 2}},
            headers={"Prefer": "wait=500"},
        ).json()
        metrics = client.get("/metrics").text
    assert server.stop() in (0, -15)
    entries = [json.loads(line) for line in server.log().splitlines()]
    (built,) = [entry for entry in entries if entry["message"].startswith("built ")]
    assert (built["subnet"], built["request"]) == (record["id"], "the-request")
    assert built["timings"] == record["timings"]
    (asked,) = [entry for entry in entries if entry["logger"] == "eqnet.requests"]
    assert (asked["status"], asked["subnet"], asked["request"]) == (201, record["id"], "the-request")
    for stage in record["timings"]:
        assert f'eqnet_build_stage_seconds_count{{stage="{stage}"}} 1.0' in metrics
    assert 'eqnet_supernet_info{digest="sha256:' in metrics
    assert "process_resident_memory_bytes" in metrics
