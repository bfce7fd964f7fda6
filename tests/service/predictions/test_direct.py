"""The direct way of GET /predict-accuracy answers as FastAPI's does."""

import httpx
import pytest

AXES = "weight_granularity=per_channel&weight_symmetry=symmetric&activation_symmetry=asymmetric"
LIST = "%2C".join("2345678234567823456")


@pytest.mark.parametrize(
    "query",
    [
        "device=fpga-mixed&weight_bits=3&activation_bits=5",
        "device=fpga-mixed&weight_bits=3,4&activation_bits=5",
        f"{AXES}&weight_bits=3&activation_bits=8",
        f"{AXES}&weight_bits={LIST}&activation_bits=8",
        "weight_bits=3&activation_bits=5",
        "device=&weight_bits=3&activation_bits=5",
        "device=%ff%00&weight_bits=3&activation_bits=5",
        f"device={'x' * 300}&weight_bits=3&activation_bits=5",
        "device=fpga-mixed&weight_bits=9&activation_bits=5",
        "device=fpga-mixed&weight_bits=&activation_bits=5",
        "device=fpga-mixed&weight_symmetry=symmetric&weight_bits=3&activation_bits=5",
        "supernet=nothing&device=fpga-mixed&weight_bits=3&activation_bits=5",
        f"{AXES.replace('per_channel', 'per_group')}&weight_bits=3&activation_bits=8",
    ],
)
def test_both_ways_answer_the_same(client: httpx.Client, query: str) -> None:
    direct = client.get(f"/predict-accuracy?{query}")
    again = client.get(f"/predict-accuracy?{query}")
    other = client.get(f"/predict-accuracy?{query}{'+' * 1000}")  # spaces, that make it unusually long
    assert direct.status_code == other.status_code
    assert direct.content == again.content == other.content
    assert direct.headers["content-type"] == other.headers["content-type"]
