import json
import logging
from collections.abc import Iterator

import pytest

from service.logs import configure_logging, request_id, subnet_id


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in (None, "eqnet", "uvicorn")]
    kept = [(logger, logger.handlers[:], logger.level, logger.propagate) for logger in loggers]
    yield
    for logger, handlers, level, propagate in kept:
        logger.handlers[:] = handlers
        logger.setLevel(level)
        logger.propagate = propagate


def test_a_json_line_says_which_request_and_subnet(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(form="json", level="info")
    tokens = request_id.set("r-1"), subnet_id.set("ab" * 16)
    try:
        logging.getLogger("eqnet.test").info("built %s", "it", extra={"timings": {"search": 0.5}})
    finally:
        request_id.reset(tokens[0])
        subnet_id.reset(tokens[1])
    line = json.loads(capsys.readouterr().err)
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "info",
        "logger": "eqnet.test",
        "message": "built it",
        "request": "r-1",
        "subnet": "ab" * 16,
        "timings": {"search": 0.5},
    }


@pytest.mark.parametrize("form", ["text", "json"])
def test_nobody_forges_an_entry(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(form=form, level="info")  # type: ignore[arg-type]
    logging.getLogger("eqnet.test").info("asked for %s", "a\r\n2026-01-01 INFO eqnet: forged")
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_traceback_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(form="json", level="info")
    try:
        raise ValueError("wrong")
    except ValueError:
        logging.getLogger("eqnet.test").exception("it failed")
    assert "ValueError: wrong" in json.loads(capsys.readouterr().err)["traceback"]


def test_the_level_is_ours(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(form="text", level="error")
    logging.getLogger("eqnet.test").warning("quiet")
    logging.getLogger("somebody.else").info("quiet")
    assert capsys.readouterr().err == ""


def test_what_came_with_a_request_forges_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(form="text", level="info")
    logging.getLogger("eqnet.test").info("said\n1", extra={"path": "/a\n2026 INFO forged\x1b[2J\u2028"})
    told = capsys.readouterr().err
    assert told.endswith("said\\n1 [path=/a\\n2026 INFO forged\\x1b[2J\\x2028]\n")
    assert len(told.splitlines()) == 1
