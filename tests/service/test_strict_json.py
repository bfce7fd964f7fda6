import json

import pytest

from service.strict_json import _loads


def test_json_is_read() -> None:
    assert _loads(b'{"a": [1, 2.5, null, "\\u00e9"]}') == {"a": [1, 2.5, None, "é"]}


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
        (b"{", "Expecting"),
        (b"", "Expecting"),
    ],
)
def test_what_other_readers_would_take_differently_is_refused(body: bytes, reason: str) -> None:
    with pytest.raises(json.JSONDecodeError, match=reason):
        _loads(body)
