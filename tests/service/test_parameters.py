"""Query parameters of a real server."""

import httpx
import pytest

BITS = "device=fpga-mixed&weight_bits=3&activation_bits=5"


@pytest.mark.parametrize(
    ("path", "pointer", "advice"),
    [
        (f"/predict-accuracy?{BITS}&weight_bits=4", "/weight_bits", "given twice: give it once"),
        (
            f"/predict-accuracy?{BITS}&narow_range=true",
            "/narow_range",
            "use weight_bits, activation_bits, super",
        ),
        ("/predict-accuracy?weigth_bits=3", "/weigth_bits", "not known here"),
        ("/pareto?weight_bits=4&weight_bits=8", "/weight_bits", "given twice"),
        ("/pareto?device=fpga-mixed&seed=1&seed=1", "/seed", "given twice"),
        ("/subnets?limt=1", "/limt", "use limit, cursor"),
        ("/subnets?a/b~c=", "/a~1b~0c", "not known here"),
        ("/devices?limit=1", "/limit", "leave it out"),
        ("/devices/fpga-mixed?x", "/x", "leave it out"),
        ("/supernets?x=1", "/x", "leave it out"),
        ("/supernets/random-resnet20?x=1", "/x", "leave it out"),
    ],
)
def test_what_would_be_ignored_is_refused(client: httpx.Client, path: str, pointer: str, advice: str) -> None:
    response = client.get(path)
    assert response.status_code == 422, response.text
    (error,) = response.json()["errors"]
    assert error["pointer"] == pointer
    assert advice in error["detail"]


def test_probes_may_add_what_they_like(client: httpx.Client) -> None:
    assert client.get("/health/live?x=1&x=2").status_code == 200
