import asyncio
import json
import threading
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.types import Message

from service import strict_json
from service.strict_json import StrictRequest, _loads
from service.turns import Turns


def test_json_is_read() -> None:
    assert _loads(b'{"a": [1, 2.5, null, "\\u00e9"]}') == {"a": [1, 2.5, None, "é"]}


def test_a_number_without_a_fraction_is_an_integer() -> None:
    read = _loads(b"[150000.0, 1e3, -2.0, 0.5]")
    assert read == [150_000, 1000, -2, 0.5]
    assert [type(value) for value in read] == [int, int, int, float]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b'{"a": 1, "a": 2}', "given twice"),
        (b'{"a": {"b": 1, "b": 2}}', "given twice"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": -Infinity}', "Infinity"),
        (b"\xff\xfe{}", "UTF-8"),
        (b"[" * 60_000, "nested"),
        (b'{"a": ' + b"9" * 60_000 + b"}", "digits"),
        (b'"\\ud800"', "surrogate"),
        (b'{"\\uDfFf": 1}', "surrogate"),
        (b"{", "Expecting"),
        (b"", "Expecting"),
    ],
)
def test_what_other_readers_would_take_differently_is_refused(body: bytes, reason: str) -> None:
    with pytest.raises(json.JSONDecodeError, match=reason):
        _loads(body)


def test_a_pair_of_surrogates_is_a_character() -> None:
    assert _loads(b'"\\ud83d\\ude00 \\\\ud800"') == "\N{GRINNING FACE} \\ud800"


@pytest.mark.parametrize(("members", "apart"), [(10, False), (20_000, True)])
def test_long_bodies_are_read_in_a_thread_and_in_turn(
    members: int, apart: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = json.dumps(list(range(members))).encode()
    threads: list[threading.Thread] = []

    def read(body: bytes) -> Any:
        threads.append(threading.current_thread())
        return _loads(body)

    monkeypatch.setattr(strict_json, "_loads", read)

    async def receive() -> Message:
        return {"type": "http.request", "body": body}

    async def main() -> tuple[Any, bool]:
        turns = Turns(1, waiting=1)
        app = SimpleNamespace(state=SimpleNamespace(service=SimpleNamespace(turns=turns)))
        request = StrictRequest({"type": "http", "headers": [], "app": app}, receive)
        async with turns.turn(request):
            reading = asyncio.create_task(request.json())
            for _ in range(10):
                await asyncio.sleep(0)
            waited = not reading.done()
        return await reading, waited

    document, waited = asyncio.run(main())
    assert document == list(range(members))
    assert waited is apart
    assert (threads[0] is not threading.main_thread()) is apart
