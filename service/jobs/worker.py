"""The builder process: a job per line in, progress and outcome lines out; ends when its input ends."""

from __future__ import annotations

import argparse
import json
import logging
import os
import queue
import sys
import threading
import time
from typing import Any, TextIO

from eqnet_core.errors import EqnetError
from eqnet_core.factory import Factory
from service.jobs.apart import run_apart
from service.jobs.evaluation import EvaluationSet
from service.logs import configure_logging, subnet_id
from service.subnets.artifacts import ArtifactStore
from service.subnets.builder import build, problem_document
from service.subnets.order import SubnetOrder

logger = logging.getLogger("eqnet.builder")


_PROGRESS_INTERVAL = 0.1
"""Seconds; a search has thousands of generations and nobody reads as fast."""


_TRACE_SECONDS = 120.0
"""Where it takes 3: a busy machine."""


class NotLoadedError(EqnetError):
    """The bundle of an order was replaced since it was given."""

    code = "not-loaded"


class Worker:
    """What one builder process keeps between builds."""

    def __init__(self, bundles: list[str], artifacts_url: str, evaluation: EvaluationSet | None) -> None:
        self._paths = bundles
        self._factories: dict[str, Factory] = {}
        self._failures: dict[str, str] = {}
        self._unopened: list[str] = []
        self._artifacts = ArtifactStore(artifacts_url)
        self._evaluation = evaluation

    def warm(self) -> None:
        """Open every bundle and load its supernet, so that the first build does not wait for it.

        One that cannot be loaded fails the builds that need it, and no others.
        """
        opened: list[Factory] = []
        for path in self._paths:
            try:
                opened.append(Factory.open(path))
            except EqnetError as error:
                logger.error("nothing is built from %s: %s", path, error)
                self._unopened.append(str(error))
        # Apart: what traces a graph is a quarter of a builder's memory, and never needed again. All of them
        # before any supernet is loaded: that computes with several threads, after which no fork works. A
        # graph that cannot be made there is made here, which then says why. Most bundles hold theirs.
        graphs = [
            None if factory.bundle.has_graph else run_apart(factory.trace, seconds=_TRACE_SECONDS)
            for factory in opened
        ]
        for factory, graph in zip(opened, graphs, strict=True):
            try:
                factory.warm(graph)
            except EqnetError as error:
                logger.error("nothing is built from %s: %s", factory.bundle.name, error)
                self._failures[factory.bundle.digest] = str(error)
            else:
                self._factories[factory.bundle.digest] = factory

    def _factory(self, order: SubnetOrder) -> Factory:
        try:
            return self._factories[order.bundle_digest]
        except KeyError:
            unknown = "; ".join(self._unopened) or "it was replaced, ask again"
            reason = self._failures.get(order.bundle_digest, unknown)
            raise NotLoadedError(f"supernet {order.supernet} is not loaded: {reason}") from None

    def run(self, job: dict[str, Any], answers: TextIO) -> None:
        told = ("", 0.0)  # stage, and when

        def progress(stage: str, fraction: float) -> None:
            nonlocal told
            if stage != told[0] or time.monotonic() - told[1] >= _PROGRESS_INTERVAL:
                told = (stage, time.monotonic())
                _say(answers, {"stage": stage, "fraction": round(fraction, 3)})

        try:
            subnet_id.set(job["id"])
            order = SubnetOrder.from_json(job["order"])
            outcome: dict[str, Any] = {
                "built": build(
                    job["id"],
                    order,
                    factory=self._factory(order),
                    artifacts=self._artifacts,
                    evaluation=self._evaluation,
                    progress=progress,
                )
            }
        except Exception as error:  # one build's failure is that build's answer; the process goes on
            expected = isinstance(error, EqnetError | OSError)
            logger.error("build of %s failed: %s", job["id"], error, exc_info=None if expected else error)
            outcome = {"failed": problem_document(error)}
        _say(answers, {"outcome": outcome})


def _say(answers: TextIO, message: dict[str, Any]) -> None:
    answers.write(json.dumps(message) + "\n")
    answers.flush()


def _read_jobs(jobs: queue.SimpleQueue[dict[str, Any]]) -> None:
    for line in sys.stdin:
        jobs.put(json.loads(line))
    # The web process is gone, whatever it wanted of us: stop at once, in mid-build too.
    os._exit(0)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m service.jobs.worker")
    parser.add_argument("--artifacts-url", required=True)
    parser.add_argument("--evaluation-data")
    parser.add_argument("--evaluation-limit", type=int, default=10_000)
    parser.add_argument("--log-format", default=os.environ.get("EQNET_LOG_FORMAT", "text"))
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("bundles", nargs="+")
    options = parser.parse_args()
    configure_logging(form="json" if options.log_format == "json" else "text", level="info")

    # Answers keep the real standard output to themselves: whatever a library prints goes to standard error.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    jobs: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=_read_jobs, args=(jobs,), daemon=True).start()

    import torch  # only now: an ended input must be noticed while this takes its seconds

    torch.set_num_threads(options.threads)
    evaluation = None
    if options.evaluation_data:
        try:
            evaluation = EvaluationSet.open(options.evaluation_data, limit=options.evaluation_limit)
        except EqnetError as error:  # moved since the service started: most builds do without it
            logger.error("nothing is verified here: %s", error)
    worker = Worker(options.bundles, options.artifacts_url, evaluation)
    worker.warm()
    while True:
        worker.run(jobs.get(), answers)


if __name__ == "__main__":
    main()
