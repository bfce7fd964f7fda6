"""A service behind a proxy: rates are those of the addresses that the proxy names."""

from collections.abc import Callable
from typing import Any

import pytest


@pytest.mark.parametrize(("trusted", "expected"), [("*", [200, 429, 200]), ("10.0.0.1", [200, 429, 429])])
def test_rates_are_of_who_asked_the_proxy(
    serve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, trusted: str, expected: list[int]
) -> None:
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", trusted)
    with serve(rate_limit=0.001).client() as client:
        asked = [
            client.get("/devices", headers={"X-Forwarded-For": address}).status_code
            for address in ("203.0.113.1", "203.0.113.1", "203.0.113.2")
        ]
    assert asked == expected
