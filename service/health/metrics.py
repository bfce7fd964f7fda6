"""What Prometheus reads."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

_ANSWER_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_BUILD_BUCKETS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0)


class Metrics:
    """One registry per application, so that two in one process do not share counters."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        self._requests = Counter(
            "eqnet_requests_total",
            "Requests answered; status 499 where the client hung up first",
            ["method", "route", "status"],
            registry=self._registry,
        )
        self._request_seconds = Histogram(
            "eqnet_request_seconds",
            "Time to answer, waiting for builds included",
            ["route"],
            buckets=_ANSWER_BUCKETS,
            registry=self._registry,
        )
        self._answered: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}
        self.refused = Counter(
            "eqnet_refused_requests_total",
            "Requests refused for their key or Host: unauthorized, forbidden, rate-limited, unknown-host",
            ["reason"],
            registry=self._registry,
        )
        self.subnets = Counter(
            "eqnet_subnet_requests_total",
            "POST /subnets by how it was answered: hit, built, or shared with a build under way",
            ["outcome"],
            registry=self._registry,
        )
        self.builds = Counter(
            "eqnet_builds_total",
            "Builds ended: ready, failed, cancelled, lost to another replica",
            ["outcome"],
            registry=self._registry,
        )
        self.build_seconds = Histogram(
            "eqnet_build_seconds",
            "Time from claim to record",
            buckets=_BUILD_BUCKETS,
            registry=self._registry,
        )
        self._stage_seconds = Histogram(
            "eqnet_build_stage_seconds",
            "Time that each stage of a build took",
            ["stage"],
            buckets=_BUILD_BUCKETS,
            registry=self._registry,
        )
        self._queue = Gauge("eqnet_queued_builds", "Builds that wait for a builder", registry=self._registry)
        self._builders = Gauge("eqnet_builders", "Builder processes that run", registry=self._registry)
        self._workers: Gauge | None = None
        self._restarts = Gauge("eqnet_builder_restarts", "Builders replaced", registry=self._registry)
        self._supernets = Gauge(
            "eqnet_supernet_info", "The supernets served", ["name", "digest"], registry=self._registry
        )

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        kept = self._answered.get((method, route, status))
        if kept is None:  # found once: finding them again takes as long as counting
            kept = self._requests.labels(method, route, status), self._request_seconds.labels(route)
            self._answered[method, route, status] = kept
        requests, request_seconds = kept
        requests.inc()
        request_seconds.observe(seconds)

    def stages(self, seconds: Mapping[str, float]) -> None:
        """The stages of a build that has ended."""
        for stage, duration in seconds.items():
            self._stage_seconds.labels(stage).observe(duration)

    def exposition(
        self,
        *,
        queued: int,
        restarts: int,
        builders: int = 0,
        workers: int | None = None,
        supernets: Mapping[str, str] | None = None,
    ) -> bytes:
        """The text format, with the present numbers; `supernets` are digests by name, `workers` None where
        nobody needs any: then there is no such metric that somebody could be woken for.
        """
        self._queue.set(queued)
        self._restarts.set(restarts)
        self._builders.set(builders)
        if workers is not None:
            if self._workers is None:
                self._workers = Gauge(
                    "eqnet_workers",
                    "Workers that take builds, as all replicas see them",
                    registry=self._registry,
                )
            self._workers.set(workers)
        self._supernets.clear()
        for name, digest in (supernets or {}).items():
            self._supernets.labels(name, digest).set(1)
        return generate_latest(self._registry)
