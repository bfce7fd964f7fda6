"""Keys at the real application; what needs no supernet is asked for, so nothing has to be started."""

from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import httpx
import pytest

from service.app import create_app
from service.security.keys import ApiKey, Scope
from service.settings import Settings

READ, READ_KEY = ApiKey.make(name="reader", scope=Scope.READ)
BUILD, BUILD_KEY = ApiKey.make(name="builder", scope=Scope.BUILD)
SLOW, SLOW_KEY = ApiKey.make(name="slow", scope=Scope.READ, rate=0.01)
ENTRIES = ",".join(key.to_entry() for key in (READ, BUILD, SLOW))
DEVICES = "/devices/tensorrt"


class App:
    """Requests to `create_app`, one event loop each."""

    def __init__(self, settings: Settings) -> None:
        # The lifespan is not run; what answers here needs none of it.
        self.transport = httpx.ASGITransport(app=create_app(settings), raise_app_exceptions=False)

    def request(self, method: str, path: str, **options: object) -> httpx.Response:
        async def send() -> httpx.Response:
            async with httpx.AsyncClient(transport=self.transport, base_url="http://localhost") as client:
                return await client.request(method, path, **options)  # type: ignore[arg-type]

        return anyio.run(send)

    def get(self, path: str, **headers: str) -> httpx.Response:
        return self.request("GET", path, headers=headers)


@pytest.fixture
def guarded(tmp_path: Path) -> App:
    return App(Settings(data_dir=tmp_path, api_keys=ENTRIES))


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.mark.parametrize(
    "headers", [bearer(READ_KEY), {"X-API-Key": READ_KEY}, {"authorization": f"bearer {READ_KEY}"}]
)
def test_a_key_lets_in(guarded: App, headers: dict[str, str]) -> None:
    assert guarded.request("GET", DEVICES, headers=headers).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        bearer(""),
        bearer(READ.sha256),
        bearer(READ_KEY[:-1]),
        bearer(READ_KEY + "A"),
        bearer("A" * 100_000),
        {"Authorization": f"Basic {READ_KEY}"},
        {"X-API-Key": "reader"},
        {"X-API-Key": READ_KEY, **bearer("another")},
    ],
)
def test_anything_else_does_not(guarded: App, headers: dict[str, str]) -> None:
    response = guarded.request("GET", DEVICES, headers=headers)
    assert response.status_code == 401
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["www-authenticate"].startswith("Bearer")
    assert response.json()["type"] == "urn:eqnet:problem:unauthorized"


@pytest.mark.parametrize(
    ("headers", "told"),
    [
        ({}, "needs an API key"),
        (bearer(""), "needs an API key"),
        ({"Authorization": f"Basic {READ_KEY}"}, "needs an API key"),
        (bearer(READ_KEY + "A"), "not known here, or no longer"),
        ({"X-API-Key": "A" * 300}, "not known here, or no longer"),
        ({"X-API-Key": READ_KEY, **bearer("another")}, "different API keys"),
    ],
)
def test_a_wrong_key_is_told_from_none(guarded: App, headers: dict[str, str], told: str) -> None:
    assert told in guarded.request("GET", DEVICES, headers=headers).json()["detail"]


def test_a_reading_key_neither_builds_nor_deletes(guarded: App) -> None:
    for method, path in (("POST", "/subnets"), ("DELETE", f"/subnets/{'0' * 32}"), ("PUT", "/nowhere")):
        refused = guarded.request(method, path, json={}, headers=bearer(READ_KEY))
        assert (refused.status_code, refused.json()["type"]) == (403, "urn:eqnet:problem:forbidden")
        assert guarded.request(method, path, json={}, headers=bearer(BUILD_KEY)).status_code != 403
    # Predictions change nothing, however they are asked for.
    said = guarded.request("POST", "/predict-accuracy", json=[], headers=bearer(READ_KEY))
    assert said.status_code not in (401, 403)


def test_probes_pages_and_the_contract_need_no_key(guarded: App) -> None:
    for path in (
        "/",
        "/docs",
        "/openapi.json",
        "/health/live",
        "/web/page.js",
        "/docs/swagger/swagger-ui.css",
    ):
        assert guarded.get(path).status_code == 200, path


@pytest.mark.parametrize(
    "path",
    [
        "/devices",
        "/metrics",
        "/subnets",
        "/supernets",
        "/nowhere",
        "//",
        "/docs%2f..%2fdevices",
        "/web",
        "/Docs",
        "/health/live/",
        "/health/live%00",
        "/web/../devices",
        "/web/%2e%2e/devices",
        "/docs/../devices",
    ],
)
def test_no_spelling_of_a_path_gets_around_the_keys(guarded: App, path: str) -> None:
    async def send() -> httpx.Response:
        async with httpx.AsyncClient(transport=guarded.transport) as client:
            url = httpx.URL("http://localhost").copy_with(raw_path=path.encode())
            return await client.send(client.build_request("GET", url))

    response = anyio.run(send)
    assert response.status_code in (401, 404)
    assert b"tensorrt" not in response.content


def test_each_key_has_its_rate(guarded: App) -> None:
    answers = [guarded.get(DEVICES, **bearer(SLOW_KEY)) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, 429, 429, 429]
    assert 1 < int(answers[-1].headers["retry-after"]) <= 100
    assert answers[-1].json()["type"] == "urn:eqnet:problem:rate-limited"
    assert guarded.get(DEVICES, **bearer(READ_KEY)).status_code == 200


def test_without_keys_each_address_has_the_rate_of_the_service(tmp_path: Path) -> None:
    app = App(Settings(data_dir=tmp_path, rate_limit=0.01))
    assert [app.get(DEVICES).status_code for _ in range(3)] == [200, 429, 429]
    assert app.get("/health/live").status_code == 200


def test_without_keys_it_is_asked_as_this_machine_only(tmp_path: Path) -> None:
    """A page from anywhere could have its name mean this machine, and would then be asking as that name."""
    app = App(Settings(data_dir=tmp_path))
    for host in ("localhost:8000", "[::1]", ""):
        assert app.get(DEVICES, Host=host).status_code == 200
    refused = app.get(DEVICES, Host="evil.example")
    assert (refused.status_code, refused.json()["type"]) == (421, "urn:eqnet:problem:unknown-host")
    assert "EQNET_ALLOW_ANONYMOUS" in refused.json()["detail"]
    assert "eqnet keys add" in refused.json()["detail"]
    assert app.get("/health/live", Host="evil.example").status_code == 200


def test_with_a_key_or_where_everybody_may_ask_names_do_not_matter(guarded: App, tmp_path: Path) -> None:
    assert guarded.get(DEVICES, Host="eqnet.example", **bearer(READ_KEY)).status_code == 200
    anybody = App(Settings(data_dir=tmp_path, allow_anonymous=True))
    assert anybody.get(DEVICES, Host="eqnet.example").status_code == 200


@pytest.mark.parametrize("path", ["/", "/docs", "/web/page.js", "/devices"])
def test_a_405_names_every_method_that_works(tmp_path: Path, path: str) -> None:
    app = App(Settings(data_dir=tmp_path))
    refused = app.request("PUT", path)
    assert (refused.status_code, refused.headers["allow"]) == (405, "GET, HEAD")
    assert app.request("HEAD", path).status_code == 200


def test_a_body_that_does_not_arrive_is_given_up(tmp_path: Path) -> None:
    async def trickle() -> AsyncIterator[bytes]:
        while True:
            yield b" "
            await anyio.sleep(0.01)

    app = App(Settings(data_dir=tmp_path, body_timeout=0.1))
    headers = {"Content-Type": "application/json"}
    response = app.request("POST", "/subnets", content=trickle(), headers=headers)
    assert (response.status_code, response.json()["type"]) == (408, "urn:eqnet:problem:body-timeout")


def test_the_contract_asks_for_keys_where_they_are_in_force(guarded: App, tmp_path: Path) -> None:
    operations = guarded.get("/openapi.json").json()["paths"]
    assert operations["/subnets"]["post"]["security"] == [{"bearer": []}, {"header": []}]
    assert "`build`" in operations["/subnets"]["post"]["description"]
    assert "security" not in operations["/health/live"]["get"]
    open_paths = App(Settings(data_dir=tmp_path)).get("/openapi.json").json()["paths"]
    assert not any("security" in operation for path in open_paths.values() for operation in path.values())


def test_every_answer_forbids_what_a_browser_could_do_with_it(guarded: App) -> None:
    for path in ("/", "/docs", "/devices", "/nowhere", "/health/live", "/health/ready"):
        headers = guarded.get(path).headers
        assert headers["x-content-type-options"] == "nosniff", path
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "script-src 'unsafe" not in policy
