"""What is said of builds that wait; the builds on workers are in test_celery_worker.py."""

from typing import Any

from service.jobs.remote import CeleryQueue
from service.jobs.roster import WorkerSite


def test_what_keeps_builds_waiting_and_what_fails_them() -> None:
    unused: Any = None
    queue = CeleryQueue(store=unused, waiting=unused, roster=unused, celery=unused)
    assert queue.obstacle("sha256:a") is None  # nobody has looked yet
    queue._count(())
    assert "wait until" in str(queue.obstacle("sha256:a"))
    queue._count((WorkerSite(builders=1, bundles=frozenset({"sha256:a"})),))
    assert queue.obstacle("sha256:a") is None
    lacking = str(queue.obstacle("sha256:b"))
    assert "sha256:b" in lacking
    assert "fail after half a minute" in lacking
    assert "restart workers with it" in lacking
