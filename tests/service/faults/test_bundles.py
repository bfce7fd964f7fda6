"""Bundles that cannot be served, beside one that can."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

Serve = Callable[..., Any]


def copied(bundle: Path, folder: Path, **changes: Any) -> Path:
    """A copy with other members in bundle.json."""
    shutil.copytree(bundle, folder)
    document = json.loads((folder / "bundle.json").read_text())
    (folder / "bundle.json").write_text(json.dumps({**document, **changes}))
    return folder


def test_bundles_that_are_damaged_newer_or_of_another_architecture(
    serve: Serve, bundle: Path, tmp_path: Path
) -> None:
    damaged = copied(bundle, tmp_path / "damaged")
    content = bytearray((damaged / "supernet.safetensors").read_bytes())
    content[-1] ^= 1
    (damaged / "supernet.safetensors").write_bytes(content)
    newer = copied(bundle, tmp_path / "newer", schema=999)
    other = copied(bundle, tmp_path / "other", name="other", architecture="vgg16")
    truncated = copied(bundle, tmp_path / "truncated")
    (truncated / "bundle.json").write_bytes((bundle / "bundle.json").read_bytes()[:100])
    bundles = ",".join(str(path) for path in (damaged, newer, bundle, other, truncated))

    server = serve(ready=False, bundles=bundles)
    with server.client() as client:
        told = client.get("/health/ready").json()
        for name, reason in (("damaged", "damaged"), ("newer", "upgrade"), ("truncated", "damaged")):
            assert client.get(f"/supernets/{name}").status_code == 503
            assert reason in client.get(f"/supernets/{name}").json()["detail"]
            refused = client.post("/subnets", json={"supernet": name, "device": "fpga-mixed"})
            assert refused.status_code == 503, told
        request = {
            "device": "fpga-mixed",
            "budget": {"weight_bits": 4.0},
            "search": {"population": 10, "generations": 10},
        }
        wait = {"Prefer": "wait=500"}
        unknown = client.post("/subnets", json={"supernet": "other", **request}, headers=wait)
        assert (unknown.status_code, unknown.json()["type"]) == (503, "urn:eqnet:problem:not-loaded")
        assert "vgg16" in unknown.json()["detail"]
        built = client.post("/subnets", json={"supernet": bundle.name, **request}, headers=wait)
        assert built.status_code == 201, built.text
