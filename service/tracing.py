"""OpenTelemetry spans of requests and builds, where the extra `tracing` is there and OTEL_* says where to.

Everything else about it (exporter, sampling, resource) is set by OpenTelemetry's own environment variables.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from starlette.types import Scope

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


class TracingError(Exception):
    """Traces are wanted but cannot be had; the message says what to install."""


class RequestSpan(Protocol):
    def end(self, *, route: str, status: int) -> None:
        """What is known only once the request is answered."""


class Tracing:
    """Without a `tracer` nothing happens, at no cost."""

    def __init__(self, tracer: Any = None, stop: Any = None) -> None:
        self._tracer = tracer
        self._stop = stop

    @classmethod
    def from_environment(cls, version: str) -> Tracing:
        """Traces to OTEL_EXPORTER_OTLP_ENDPOINT, or none where that is not set.

        Raises:
            TracingError: it is set, but the exporter is not installed.
        """
        if not any(os.environ.get(name) for name in _ENDPOINTS):
            return cls()
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            raise TracingError(
                "OTEL_EXPORTER_OTLP_ENDPOINT asks for traces: install them with `pip install "
                "'eqnet-serve[tracing]'`, or unset it"
            ) from error
        resource = Resource.create({"service.name": os.environ.get("OTEL_SERVICE_NAME", "eqnet-serve")})
        provider = TracerProvider(resource=resource)
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        return cls(provider.get_tracer("eqnet", version), provider.shutdown)

    @contextmanager
    def request(self, scope: Scope) -> Iterator[RequestSpan]:
        """One request, as a part of the trace that its `traceparent` names."""
        if self._tracer is None:
            yield _NOTHING
            return
        from opentelemetry.propagate import extract
        from opentelemetry.trace import SpanKind

        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        attributes = {"http.request.method": scope["method"], "url.path": scope["path"][:200]}
        with self._tracer.start_as_current_span(
            scope["method"], context=extract(headers), kind=SpanKind.SERVER, attributes=attributes
        ) as span:
            yield _Span(span, scope["method"])

    @contextmanager
    def build(self, subnet: str) -> Iterator[None]:
        """One build; a part of the request that asked for it first."""
        if self._tracer is None:
            yield
            return
        with self._tracer.start_as_current_span("build", attributes={"eqnet.subnet": subnet}):
            yield

    def stages(self, seconds: Mapping[str, float], *, end: float) -> None:
        """The stages of the build that just ended, at `end` in seconds since 1970, back to back."""
        if self._tracer is None:
            return
        at = end - sum(seconds.values())
        for stage, duration in seconds.items():
            span = self._tracer.start_span(stage, start_time=int(at * 1e9))
            at += duration
            span.end(end_time=int(at * 1e9))

    def stop(self) -> None:
        """Send what is left."""
        if self._stop is not None:
            self._stop()


class _Span:
    def __init__(self, span: Any, method: str) -> None:
        self._span = span
        self._method = method

    def end(self, *, route: str, status: int) -> None:
        from opentelemetry.trace import StatusCode

        self._span.update_name(f"{self._method} {route}")
        self._span.set_attribute("http.route", route)
        self._span.set_attribute("http.response.status_code", status)
        if status >= 500:
            self._span.set_status(StatusCode.ERROR)


class _Nothing:
    def end(self, *, route: str, status: int) -> None:
        pass


_NOTHING = _Nothing()
