import base64
import hashlib
import io
from collections.abc import Mapping

import anyio
import pytest
from fastapi import Response
from starlette.datastructures import Headers
from starlette.types import Message

from service.errors import ProblemError
from service.subnets.checked_file import BLOCK, CheckedFile, DamagedArtifactError
from service.subnets.content import file_response as respond

CONTENT = bytes(range(100))
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def file_response(
    name: str, content: bytes, sha256: str, headers: Mapping[str, str] | Headers, method: str = "GET"
) -> Response:
    """Also sees to it that what was read is closed."""
    file = io.BytesIO(content)
    try:
        response = respond(name, CheckedFile(file, name=name, sha256=sha256), Headers(headers), method=method)
    finally:
        assert file.closed
    return response


def _sent(response: Response, method: str = "GET") -> list[Message]:
    messages = []

    async def receive() -> Message:
        await anyio.sleep_forever()
        raise AssertionError

    async def send(message: Message) -> None:
        messages.append(message)

    anyio.run(response, {"type": "http", "method": method}, receive, send)
    return messages


def _digest(content: bytes) -> str:
    return f"sha-256=:{base64.b64encode(hashlib.sha256(content).digest()).decode()}:"


def test_the_whole_file() -> None:
    response = file_response("model.onnx", CONTENT, SHA256, {})
    assert (response.status_code, response.body) == (200, CONTENT)
    assert response.headers["etag"] == f'"{SHA256}"'
    assert response.headers["content-digest"] == response.headers["repr-digest"] == _digest(CONTENT)
    assert response.headers["content-type"] == "application/octet-stream"


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ("bytes=0-0", (0, 1)),
        ("bytes=10-19", (10, 20)),
        ("bytes=90-", (90, 100)),
        ("bytes=-5", (95, 100)),
        ("bytes=-500", (0, 100)),
        ("bytes=50-5000", (50, 100)),
    ],
)
def test_a_part(wanted: str, expected: tuple[int, int]) -> None:
    first, end = expected
    response = file_response("report.json", CONTENT, SHA256, {"range": wanted})
    assert (response.status_code, response.body) == (206, CONTENT[first:end])
    assert response.headers["content-range"] == f"bytes {first}-{end - 1}/100"
    assert response.headers["content-digest"] == _digest(CONTENT[first:end])
    assert response.headers["repr-digest"] == _digest(CONTENT)


@pytest.mark.parametrize("wanted", ["bytes=100-", "bytes=-0", "bytes=500-600"])
def test_a_part_outside_the_file(wanted: str) -> None:
    with pytest.raises(ProblemError) as raised:
        file_response("model.onnx", CONTENT, SHA256, {"range": wanted})
    assert raised.value.status == 416
    assert raised.value.headers["Content-Range"] == "bytes */100"


@pytest.mark.parametrize("wanted", ["bytes=5-2", "bytes=-", "bytes=a-b", "lines=1-2", "bytes=0-1,5-6"])
def test_ranges_that_make_no_sense_are_ignored(wanted: str) -> None:
    assert file_response("model.onnx", CONTENT, SHA256, {"range": wanted}).status_code == 200


def test_a_range_of_another_version_gets_the_whole_file() -> None:
    response = file_response("model.onnx", CONTENT, SHA256, {"range": "bytes=0-1", "if-range": '"other"'})
    assert response.status_code == 200


@pytest.mark.parametrize("known", [f'"{SHA256}"', f'W/"{SHA256}"', f'"other", "{SHA256}"', "*"])
def test_a_known_file_is_not_sent_again(known: str) -> None:
    response = file_response("model.onnx", CONTENT, SHA256, {"if-none-match": known})
    assert (response.status_code, response.body) == (304, b"")


def test_lines_of_a_header_are_one_list() -> None:
    tags = ['"other"', f'"{SHA256}"']
    lines = Headers(raw=[(b"if-none-match", tag.encode()) for tag in tags])
    assert file_response("model.onnx", CONTENT, SHA256, lines).status_code == 304
    lines = Headers(raw=[(b"if-match", tag.encode()) for tag in tags])
    assert file_response("model.onnx", CONTENT, SHA256, lines).status_code == 200


@pytest.mark.parametrize("wanted", [f'"{SHA256}"', f'"other", "{SHA256}"', "*"])
def test_the_version_that_is_wanted(wanted: str) -> None:
    headers = {"if-match": wanted}
    assert file_response("model.onnx", CONTENT, SHA256, headers).body == CONTENT
    known = headers | {"if-none-match": f'"{SHA256}"'}
    assert file_response("model.onnx", CONTENT, SHA256, known).status_code == 304


@pytest.mark.parametrize("wanted", ['"other"', f'W/"{SHA256}"', SHA256, ""])
def test_another_version_than_is_wanted(wanted: str) -> None:
    headers = {"if-match": wanted, "if-none-match": "*", "range": "bytes=500-"}
    with pytest.raises(ProblemError) as raised:
        file_response("model.onnx", CONTENT, SHA256, headers)
    assert raised.value.status == 412
    assert raised.value.headers["ETag"] == f'"{SHA256}"'


@pytest.mark.parametrize("wanted", ["bytes=0-1", "bytes=500-"])
def test_head_has_no_ranges(wanted: str) -> None:
    response = file_response("model.onnx", CONTENT, SHA256, {"range": wanted}, "HEAD")
    assert (response.status_code, response.headers["content-length"]) == (200, "100")
    assert "content-range" not in response.headers


LONG = bytes(range(256)) * (5 * BLOCK // 512) + b"end"


def _long(file: io.BytesIO) -> CheckedFile:
    return CheckedFile(file, name="model.onnx", sha256=hashlib.sha256(LONG).hexdigest())


@pytest.mark.parametrize(("wanted", "start", "end"), [("", 0, len(LONG)), ("bytes=9-600000", 9, 600_001)])
def test_a_long_file_is_sent_in_blocks_and_closed(wanted: str, start: int, end: int) -> None:
    file = io.BytesIO(LONG)
    response = respond("model.onnx", _long(file), Headers({"range": wanted}))
    assert int(response.headers["content-length"]) == end - start
    assert response.headers["content-digest"] == _digest(LONG[start:end])
    parts = [message.get("body", b"") for message in _sent(response)]
    assert b"".join(parts) == LONG[start:end]
    assert max(map(len, parts)) <= BLOCK
    assert file.closed


def test_of_a_long_file_head_reads_nothing() -> None:
    file = io.BytesIO(LONG)
    response = respond("model.onnx", _long(file), Headers({}))
    assert [message.get("body", b"") for message in _sent(response, "HEAD")] == [b"", b""]
    assert file.closed


def test_a_file_altered_while_it_is_sent_is_not_handed_out() -> None:
    file = io.BytesIO(LONG)
    response = respond("model.onnx", _long(file), Headers({}))
    file.seek(len(LONG) - 5)
    file.write(b"x")
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        await anyio.sleep_forever()
        raise AssertionError

    with pytest.raises((DamagedArtifactError, ExceptionGroup)):
        anyio.run(response, {"type": "http", "method": "GET"}, receive, send)
    assert sum(len(message.get("body", b"")) for message in sent) < len(LONG)
    assert sent[-1]["more_body"]
    assert file.closed
