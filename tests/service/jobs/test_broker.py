"""The Celery application against a real server of the Redis protocol, and against none."""

from typing import Any

import pytest
from kombu.exceptions import OperationalError

from service.jobs.broker import TASK, make_celery, messages


def test_messages_are_counted_and_have_nothing_but_the_id(redis: Any) -> None:
    celery = make_celery(redis.broker_url, build_timeout=900)
    assert messages(celery) == 0
    for number in range(3):
        celery.send_task(TASK, args=[f"{number:032x}"], retry=False)
    assert messages(celery) == 3
    with celery.connection_for_read() as connection:
        message = connection.SimpleQueue("eqnet").get(timeout=5)
        assert message.content_type == "application/json"
        assert message.payload[:2] == [["0" * 32], {}]
    celery.close()


def test_a_broker_that_is_away_is_told_at_once_and_tried_every_two_seconds(redis: Any) -> None:
    redis.stop()
    celery = make_celery(redis.broker_url, build_timeout=900)
    with pytest.raises((OperationalError, OSError)):
        celery.send_task(TASK, args=["0" * 32], retry=False)
    intervals: list[float] = []

    class EnoughError(Exception):
        pass

    def failed(_: Exception, interval: float) -> None:
        intervals.append(interval)
        if len(intervals) == 2:
            raise EnoughError

    with celery.connection_for_read() as connection, pytest.raises(EnoughError):
        connection.ensure_connection(failed, None)
    assert intervals == [2.0, 2.0]
    celery.close()
