"""The Celery application, as both sides of the broker see it."""

from __future__ import annotations

from typing import Any

from celery import Celery
from kombu.connection import Connection
from kombu.entity import Queue

TASK = "eqnet.build"
"""Takes one argument, the subnet's id: everything else is in the store, where nobody can forge it."""

_QUEUE = "eqnet"


_RECONNECT = 2.0
"""Seconds between attempts to reach a broker that is away."""


class _Connection(Connection):
    """kombu's own waits up to 30 s between attempts: builds would start as much later than they could."""

    def ensure_connection(self, *arguments: Any, **options: Any) -> Any:
        intervals = {"interval_start": _RECONNECT, "interval_step": 0, "interval_max": _RECONNECT}
        return super().ensure_connection(*arguments, **(intervals | options))  # type: ignore[no-untyped-call]


def make_celery(broker_url: str, *, build_timeout: float) -> Celery:
    """`build_timeout` in seconds. Nothing is sent before it is used."""
    app = Celery("eqnet", broker=broker_url, set_as_current=False)
    app.conf.update(
        accept_content=["json"],
        task_serializer="json",
        task_ignore_result=True,
        task_queues=[Queue(_QUEUE)],  # type: ignore[no-untyped-call]
        task_default_queue=_QUEUE,
        # A message is acknowledged when its build has ended, and given to somebody else if its worker ends.
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        worker_prefetch_multiplier=1,
        task_publish_retry=False,  # the caretaker sends what could not be sent
        broker_connection_timeout=2,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={
            "global_keyprefix": "eqnet:broker:",
            "socket_connect_timeout": 2,
            "socket_timeout": 5,
            # Redis only. It is the lease that brings back a dead worker's build; this only outlasts builds.
            "visibility_timeout": int(max(3600, 2 * build_timeout)),
        },
        worker_hijack_root_logger=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_send_task_events=False,
        worker_enable_remote_control=False,
    )
    app.amqp.Connection = _Connection
    return app


def messages(app: Celery) -> int:
    """How many the broker holds that no worker has taken; raises OSError or kombu's OperationalError."""
    with app.connection_for_read() as connection:
        connection.ensure_connection(max_retries=1, interval_start=0, interval_step=0)
        # Declared as Celery does, not `passive`: kombu looks for a passive queue without the key prefix.
        declared = connection.default_channel.queue_declare(_QUEUE, durable=True, auto_delete=False)
        return int(declared.message_count)
