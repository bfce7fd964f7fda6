"""What the tests of `/subnets` ask for, and a subnet that is there."""

from typing import Any

import httpx
import pytest

BITS = [2, 3, 4, 5, 6, 7, 8]


@pytest.fixture
def wanted() -> dict[str, Any]:
    """A request with everything in it, for a search that is over at once."""
    return {
        "profile": {
            "weight": {"bits": BITS, "granularity": "per_channel", "symmetry": "symmetric"},
            "activation": {"bits": BITS, "symmetry": "asymmetric"},
        },
        "budget": {"weight_bits": 3.0, "activation_bits": 3.0},
        "search": {"population": 10, "generations": 10},
    }


@pytest.fixture
def record(client: httpx.Client, wanted: dict[str, Any]) -> dict[str, Any]:
    """That of `wanted`; built by whoever asks for it first."""
    response = client.post("/subnets", json=wanted, headers={"Prefer": "wait=500"})
    assert response.status_code in (200, 201), response.text
    ready: dict[str, Any] = response.json()
    return ready
