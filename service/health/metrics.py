"""What Prometheus reads."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest


class Metrics:
    """One registry per application, so that two in one process do not share counters."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "eqnet_requests_total",
            "Requests answered",
            ["method", "route", "status"],
            registry=self._registry,
        )
        self.request_seconds = Histogram(
            "eqnet_request_seconds", "Time to answer", ["route"], registry=self._registry
        )
        self.refused = Counter(
            "eqnet_refused_requests_total",
            "Requests refused for their key: unauthorized, forbidden, rate-limited",
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
            "eqnet_build_seconds", "Time from claim to record", registry=self._registry
        )
        self.queue = Gauge("eqnet_queued_builds", "Builds that wait for a builder", registry=self._registry)
        self.restarts = Gauge("eqnet_builder_restarts", "Builders replaced", registry=self._registry)

    def exposition(self, *, queued: int, restarts: int) -> bytes:
        """The text format, with the pool's present numbers."""
        self.queue.set(queued)
        self.restarts.set(restarts)
        return generate_latest(self._registry)
