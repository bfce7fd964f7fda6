"""Whatever is sent is answered with what the document says, and never with a 5xx."""

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

CONFIGURATION = Path(__file__).parents[2] / "benchmarks" / "schemathesis.toml"

_VALID: dict[str, Any] = {"device": "fpga-mixed", "budget": {"weight_bits": 4.0}}


def body(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\x00", id="zero byte"),
        pytest.param(b"\xff\xfe\x00", id="not UTF-8"),
        pytest.param(b"\xef\xbb\xbf{}", id="byte order mark"),
        pytest.param(body('{"device": "\ud800"}'), id="half a surrogate pair, encoded"),
        pytest.param(b'{"device": "\\ud800"}', id="half a surrogate pair, escaped"),
        pytest.param(b'{"device": "fpga-mixed", "device": "tensorrt"}', id="duplicate member"),
        pytest.param(b'{"device": "fpga-mixed", "budget": {"a": 1, "a": 1}}', id="duplicate member, deep"),
        pytest.param(b'{"device": "fpga-mixed", "budget": {"weight_bits": NaN}}', id="NaN"),
        pytest.param(b'{"device": "fpga-mixed", "budget": {"weight_bits": Infinity}}', id="infinity"),
        pytest.param(b'{"device": "fpga-mixed", "budget": {"weight_bits": -Infinity}}', id="-infinity"),
        pytest.param(b'{"device": "fpga-mixed", "budget": {"weight_bits": 1e999}}', id="overflows to inf"),
        pytest.param(b'{"device": "fpga-mixed", "budget": {"weight_bits": -4}}', id="negative"),
        pytest.param(b'{"device": "fpga-mixed", "budget": {"weight_bits": 1e-320}}', id="subnormal"),
        pytest.param(b'{"device": "fpga-mixed", "budget": {"weight_bits": "4"}}', id="number as text"),
        pytest.param(b'{"device": "fpga-mixed", "budget": {"weight_bits": true}}', id="true for a number"),
        pytest.param(b'{"device": "fpga-mixed", "budget": {"model_bytes": %s}}' % (b"9" * 5000), id="digits"),
        pytest.param(b'{"device": "fpga-mixed", "search": {"seed": -1}}', id="negative seed"),
        pytest.param(b'{"device": "fpga-mixed", "search": {"seed": 1e400}}', id="huge seed"),
        pytest.param(b'{"device": "fpga-mixed", "search": {"population": 1000000000}}', id="huge search"),
        pytest.param(b"[" * 30_000, id="deep, unclosed"),
        pytest.param(b"[" * 30_000 + b"]" * 30_000, id="deep"),
        pytest.param(b'{"budget":' * 5_000 + b"1" + b"}" * 5_000, id="deep objects"),
        pytest.param(b'{"device": "' + "\u202e\U0001f600é".encode() + b'"}', id="unicode name"),
        pytest.param(b'{"device": "../../etc/passwd"}', id="path"),
        pytest.param(b'{"device": "%s%n{0.__class__}\\u0000"}', id="format string"),
        pytest.param(b'{"supernet": "\\r\\nSET x y", "device": "fpga-mixed"}', id="protocol"),
        pytest.param(b'{"pinned": {"__proto__": {"weight_bits": 2}}, "device": "fpga-mixed"}', id="proto"),
        pytest.param(b'{"artifacts": ["../record.json"], "device": "fpga-mixed"}', id="artifact path"),
    ],
)
def test_a_malformed_request_is_a_problem_that_says_what_to_change(
    client: httpx.Client, content: bytes
) -> None:
    response = client.post("/subnets", content=content, headers={"Content-Type": "application/json"})
    assert response.status_code == 422, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem["detail"]
    assert len(response.content) < 20_000  # it does not send back what it was sent
    assert "Traceback" not in response.text


@pytest.mark.parametrize(
    ("path", "content", "pointer", "advice"),
    [
        ("/subnets", b"", "", "a body is required: send JSON"),
        ("/subnets", b"{", "", "cannot be read as JSON"),
        (
            "/subnets",
            b'{"budget": {"model_bytes": %s}}' % (b"9" * 5001),
            "",
            "5001 digits: give it at most 400",
        ),
        ("/subnets", b'{"foo": 1}', "/foo", "is not known here: use supernet, device, profile, budget"),
        (
            "/subnets",
            b'{"budget": {"bits": 4}}',
            "/budget/bits",
            "use weight_bits, activation_bits, model_by",
        ),
        ("/subnets", b'{"pinned": {"a": {"bits": 4}}}', "/pinned/a/bits", "use weight_bits, activation_bits"),
        ("/predict-accuracy", b"[{}]", "/0/weight_bits", "is required"),
        ("/predict-accuracy", b'[{"{x}": 1}]', "/0/{x}", "use supernet, device, weight_granularity"),
    ],
)
def test_what_to_change_is_said(
    client: httpx.Client, path: str, content: bytes, pointer: str, advice: str
) -> None:
    response = client.post(path, content=content, headers={"Content-Type": "application/json"})
    assert response.status_code == 422
    problem = response.json()
    assert problem["errors"][0]["pointer"] == pointer
    assert advice in problem["errors"][0]["detail"]
    assert advice in problem["detail"]


def test_a_body_that_is_too_long_is_413_and_its_rest_is_not_read(client: httpx.Client) -> None:
    for content in (b" " * 70_000, iter([b" " * 40_000] * 3)):
        response = client.post("/subnets", content=content, headers={"Content-Type": "application/json"})
        assert response.status_code == 413


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "text/json", ""])
def test_only_json_is_taken(client: httpx.Client, kind: str) -> None:
    content = json.dumps(_VALID).encode()
    response = client.post("/subnets", content=content, headers={"Content-Type": kind})
    assert response.status_code == 415


def test_compressed_bodies_are_told_to_come_uncompressed(client: httpx.Client) -> None:
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    for path in ("/subnets", "/predict-accuracy"):
        response = client.post(path, content=gzip.compress(b"{}"), headers=headers)
        assert response.status_code == 415
        assert "uncompressed" in response.json()["detail"]
        assert response.headers["accept-encoding"] == "identity"


@pytest.mark.parametrize(
    "path",
    [
        "/subnets/..%2f..%2fetc%2fpasswd",
        "/subnets/*",
        "/subnets/eqnet:index",
        "/subnets/%00",
        f"/subnets/{'0' * 31}%0A",
        f"/subnets/{'0' * 32}/artifacts/..%2frecord.json",
        f"/subnets/{'0' * 32}/artifacts/{'a' * 64}",
        "/supernets/..%2f",
        "/supernets/%ff",
        "/devices/{0.__class__}",
        "/devices/%25s",
        "/web/..%2fapp.py",
        "/web/%2e%2e/settings.py",
        "/docs/swagger/..%2f__init__.py",
    ],
)
def test_no_path_leads_out(client: httpx.Client, path: str) -> None:
    response = client.get(path)
    assert response.status_code == 404
    assert b"import" not in response.content


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Prefer", "wait=-1, wait=99999999999999999999, respond-async; q="),
        ("Prefer", "wait=" + "9" * 8000),
        ("Range", "bytes=-" + "9" * 400),
        ("If-None-Match", '"' + "x" * 5000),
        ("X-Request-Id", "a\tb"),
        ("X-Forwarded-For", "127.0.0.1, ${jndi:ldap://x}"),
        ("Accept", "\xff"),
    ],
)
def test_no_header_is_repeated_or_breaks_anything(client: httpx.Client, name: str, value: str) -> None:
    headers = {name: value.encode("latin-1")}
    response = client.get("/subnets/" + "0" * 32, headers=headers)  # type: ignore[arg-type]
    assert response.status_code == 404
    assert value not in str(dict(response.headers))


def test_a_quick_round_of_schemathesis_finds_nothing(server: Any, tmp_path: Path) -> None:
    configuration = tmp_path / "schemathesis.toml"
    # Right requests to these two take long: benchmarks/fuzz.py sends them.
    slow = "".join(
        f'[[operations]]\ninclude-name = "{name}"\ngeneration.mode = "negative"\n'
        for name in ("POST /subnets", "GET /pareto")
    )
    configuration.write_text(CONFIGURATION.read_text() + slow)
    result = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(configuration)),
            *("run", f"{server.url}/openapi.json", "--phases", "coverage,fuzzing", "-n", "5"),
            *("--generation-deterministic", "--continue-on-failure", "--no-color"),
            *("--exclude-path", "/subnets/{subnet}/events"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr
    assert server.process.poll() is None
