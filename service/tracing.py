"""OpenTelemetry traces, where the extra `tracing` is there and OTEL_EXPORTER_OTLP_ENDPOINT says where to.

FastAPI makes the spans of requests and sends them all; here are those of builds. Sampling, resource and the
rest are OpenTelemetry's own environment variables.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from fastapi.telemetry import TelemetryConfig
from opentelemetry import trace

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_UNTRACED = ("/health/", "/metrics")


class TracingError(Exception):
    """Traces are wanted but cannot be had; the message says what to install."""


def telemetry() -> TelemetryConfig:
    """What FastAPI is to trace: requests, but neither probes nor its own inner workings.

    Raises:
        TracingError: OTEL_* names an endpoint, but the exporter is not installed.
    """
    return {
        "auto_configure": _wanted(),
        "metrics": False,  # GET /metrics has them
        "logs": False,
        "operation_spans": False,
        "exclude": lambda scope: str(scope.get("path", "")).startswith(_UNTRACED),
    }


def trace_worker() -> Callable[[], None]:
    """Send the builds of a process without FastAPI; what comes back sends what is left, and ends it.

    Raises:
        TracingError: OTEL_* names an endpoint, but the exporter is not installed.
    """
    if not _wanted():
        return lambda: None
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    return provider.shutdown


@contextmanager
def build_span(subnet: str) -> Iterator[None]:
    """One build; a part of the request that asked for it first."""
    with trace.get_tracer("eqnet").start_as_current_span("build", attributes={"eqnet.subnet": subnet}):
        yield


def record_stages(seconds: Mapping[str, float], *, end: float) -> None:
    """The stages of the build that just ended, at `end` in seconds since 1970, back to back."""
    tracer = trace.get_tracer("eqnet")
    at = end - sum(seconds.values())
    for stage, duration in seconds.items():
        span = tracer.start_span(stage, start_time=int(at * 1e9))
        at += duration
        span.end(end_time=int(at * 1e9))


def _wanted() -> bool:
    name = next((name for name in _ENDPOINTS if os.environ.get(name)), None)
    if name is None:
        return False
    try:
        installed = importlib.util.find_spec("opentelemetry.exporter.otlp.proto.http") is not None
    except ImportError:
        installed = False
    if not installed:
        raise TracingError(
            f"{name} asks for traces: `scripts/install serve,tracing` in the checkout, or unset it"
        )
    os.environ.setdefault("OTEL_SERVICE_NAME", "eqnet-serve")
    return True
