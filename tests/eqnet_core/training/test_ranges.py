from __future__ import annotations

import pytest

from eqnet_core.training.ranges import mean_costs


def test_the_cost_is_what_the_flavour_loses() -> None:
    rows = [
        {"weight_bits": bits, "activation_bits": 5.0, "exact": exact, "integer": integer}
        for bits, exact, integer in ((6.0, 0.91, 0.90), (4.5, 0.90, 0.87), (2.5, 0.80, 0.85))
    ]
    assert mean_costs(rows) == {
        "4 bits and above": pytest.approx(0.02),
        "below 4 bits": pytest.approx(-0.05),
    }
