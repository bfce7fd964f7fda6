import base64
import hashlib

import pytest

from service.errors import ProblemError
from service.subnets.content import file_response

CONTENT = bytes(range(100))
SHA256 = hashlib.sha256(CONTENT).hexdigest()


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
