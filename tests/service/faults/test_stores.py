"""Redis and the artifact folder break under a running server, and come back. One server lives through it all:
every test leaves it as it found it, or the next one fails.
"""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

pytestmark = pytest.mark.slow

Until = Callable[..., Any]

SEARCH = {"population": 10, "generations": 10}
LONG = {"population": 200, "generations": 2000}
"""A few seconds."""

LEASE = 4
RECOVERY = 10
"""Seconds after the end of a fault within which the service has to answer; builds themselves take longer."""


@dataclass
class Site:
    """`folder` holds the artifacts, on a file system of its own where that can be had."""

    server: Any
    client: httpx.Client
    redis: Any
    folder: Path
    mounted: bool
    launch: Callable[..., Any]

    def ask(self, prefer: str = "wait=500", **search: int) -> httpx.Response:
        request = {"device": "fpga-mixed", "budget": {"weight_bits": 4.0}, "search": search}
        return self.client.post("/subnets", json=request, headers={"Prefer": prefer}, timeout=600)

    def begin(self, until: Until, **search: int) -> str:
        """The URL of a subnet that is being searched for now."""
        location = self.ask("respond-async", **search).headers["location"]
        until("the search", lambda: self.stage(location) == "search" or self.status(location) == "ready", 60)
        assert self.status(location) != "ready", "the search is over before anybody saw it: make it longer"
        return location

    def stage(self, location: str) -> str | None:
        answer = self.client.get(location)
        return answer.json().get("progress", {}).get("stage") if answer.status_code == 200 else None

    def status(self, location: str) -> str | None:
        answer = self.client.get(location)
        return answer.json()["status"] if answer.status_code == 200 else None

    def recovered(self) -> bool:
        return self.client.get("/health/ready").status_code == 200

    def files(self, record: dict[str, Any]) -> dict[str, bytes]:
        return {file["name"]: self.client.get(file["url"]).content for file in record["artifacts"]}

    def remount(self, options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", self.folder], check=True, capture_output=True)


@pytest.fixture(scope="module")
def clock(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """The file with the seconds that Redis' clock is off by, and the environment that makes it so."""
    offset = tmp_path_factory.mktemp("clock") / "offset"
    offset.write_text("+0")
    try:
        import libfaketime
    except ImportError:
        return offset, {}
    library = Path(libfaketime.__file__).parent / "vendor/libfaketime/src/libfaketime.so.1"
    return offset, {
        "LD_PRELOAD": str(library),
        "FAKETIME_TIMESTAMP_FILE": str(offset),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }


@pytest.fixture(scope="module")
def site(
    tmp_path_factory: pytest.TempPathFactory,
    redis_server: Any,
    launch: Callable[..., Any],
    until: Until,
    clock: tuple[Path, dict[str, str]],
) -> Iterator[Site]:
    root = tmp_path_factory.mktemp("site")
    folder = root / "artifacts"
    folder.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", folder]
    mounted = os.geteuid() == 0 and subprocess.run(mounting, capture_output=True).returncode == 0
    redis = redis_server(root)
    redis.environment = clock[1]
    server = launch(
        root / "data",
        ready=False,  # there is no Redis yet
        redis_url=redis.url,
        artifacts_url=f"file://{folder}",
        lease=LEASE,
    )
    with server.client() as client:
        yield Site(server=server, client=client, redis=redis, folder=folder, mounted=mounted, launch=launch)
    server.stop()
    redis.stop()
    if mounted:
        subprocess.run(["umount", folder], check=True)


def test_started_without_redis_it_answers_what_it_can_and_all_once_there_is_one(
    site: Site, until: Until
) -> None:
    not_ready = site.client.get("/health/ready")
    assert (not_ready.status_code, site.client.get("/health/live").status_code) == (503, 200)
    assert "store" in not_ready.json()["detail"]
    query = "device=fpga-mixed&weight_bits=4&activation_bits=4"
    assert site.client.get(f"/predict-accuracy?{query}").status_code == 200
    refused = site.ask(**SEARCH)
    assert (refused.status_code, "retry-after" in refused.headers) == (503, True)

    site.redis.start()
    until("readiness", site.recovered, RECOVERY)
    assert site.ask(**SEARCH).status_code == 201


def test_redis_killed_in_mid_request_and_back_empty(site: Site, until: Until) -> None:
    kept = site.ask(**SEARCH).json()
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(site.ask, seed=1, **LONG)
        location = site.begin(until, seed=1, **LONG)
        site.redis.stop()
        assert site.client.get("/health/ready").status_code == 503
        hit = site.ask(**SEARCH)
        assert (hit.status_code, hit.json()) == (200, kept)  # the artifact store knows it
        assert site.ask(seed=2, **SEARCH).status_code == 503
        site.redis.start()
        until("readiness", site.recovered, RECOVERY)
        # Whoever waited gets the subnet: its builder never stopped, and told the new Redis of it.
        answer = waiting.result()
    assert answer.status_code in (200, 201), answer.text
    assert answer.json() == site.client.get(location).json()
    until("the list", lambda: len(site.client.get("/subnets").json()["subnets"]) == 2, RECOVERY)


def test_redis_away_while_a_build_ends(site: Site, until: Until) -> None:
    location = site.begin(until, seed=3, **LONG)
    site.redis.stop()
    # Finished while nobody could be told: it is in the artifact store, and answered from there.
    until("the build", lambda: site.status(location) == "ready")
    site.redis.start()
    until("readiness", site.recovered, RECOVERY)
    assert site.status(location) == "ready"
    assert site.ask(seed=3, **LONG).status_code == 200


def test_redis_that_hangs(site: Site, until: Until) -> None:
    kept = site.ask(**SEARCH).json()
    site.redis.process.send_signal(signal.SIGSTOP)
    try:
        hit = site.ask(**SEARCH)
        assert (hit.status_code, hit.json()) == (200, kept)
        assert site.client.get("/health/live").status_code == 200
    finally:
        site.redis.process.send_signal(signal.SIGCONT)
    until("readiness", site.recovered, RECOVERY)
    assert site.ask(seed=4, **SEARCH).status_code == 201


def test_a_client_that_hangs_up_gets_its_subnet_later(site: Site, until: Until) -> None:
    location = site.begin(until, seed=5, **LONG)
    request = {"device": "fpga-mixed", "budget": {"weight_bits": 4.0}, "search": {"seed": 5, **LONG}}
    with pytest.raises(httpx.ReadTimeout):
        site.client.post("/subnets", json=request, headers={"Prefer": "wait=500"}, timeout=0.3)
    until("the build", lambda: site.status(location) == "ready")


def test_a_full_artifact_folder_fails_builds_and_no_more(site: Site, until: Until) -> None:
    if not site.mounted:
        pytest.skip("only root can mount a small file system")
    kept = site.ask(**SEARCH).json()
    before = site.files(kept)
    filler = site.folder / ".filler"
    filled = subprocess.run(["dd", "if=/dev/zero", f"of={filler}", "bs=64k"], capture_output=True)
    assert b"No space left" in filled.stderr
    failed = site.ask(seed=6, **SEARCH)
    assert (failed.status_code, failed.json()["type"]) == (503, "urn:eqnet:problem:storage")
    assert not (site.folder / failed.json()["subnet"]).exists()  # half a subnet would fill it further
    assert site.files(site.ask(**SEARCH).json()) == before
    filler.unlink()
    until("another try", lambda: site.ask(seed=6, **SEARCH).status_code == 201, RECOVERY)


def test_a_read_only_artifact_folder(site: Site, until: Until) -> None:
    if not site.mounted:
        pytest.skip("only root can make a file system read-only for itself")
    kept = site.ask(**SEARCH).json()
    before = site.files(kept)
    site.remount("ro")
    try:
        assert "artifact" in site.client.get("/health/ready").json()["detail"]
        failed = site.ask(seed=7, **SEARCH)
        assert (failed.status_code, failed.json()["type"]) == (503, "urn:eqnet:problem:storage")
        assert site.client.delete(f"/subnets/{kept['id']}").status_code == 503
        assert site.files(site.ask(**SEARCH).json()) == before
    finally:
        site.remount("rw")
    until("readiness", site.recovered, RECOVERY)
    assert site.ask(seed=7, **SEARCH).status_code == 201


@pytest.mark.parametrize("damage", ["truncated", "altered"])
def test_a_damaged_artifact_is_built_again_to_the_same_bytes(site: Site, until: Until, damage: str) -> None:
    record = site.ask(**SEARCH).json()
    before = site.files(record)
    file = record["artifacts"][-1]
    path = site.folder / record["id"] / file["sha256"]
    content = path.read_bytes()
    path.write_bytes(content[:-1] if damage == "truncated" else content[:-1] + b"!")
    refused = site.client.get(file["url"])
    assert (refused.status_code, refused.json()["type"]) == (503, "urn:eqnet:problem:damaged-artifact")
    until("the repair", lambda: site.client.get(file["url"]).status_code == 200)
    assert site.files(record) == before


def test_an_altered_record_is_not_believed(site: Site, until: Until) -> None:
    record = site.ask(**SEARCH).json()
    path = site.folder / record["id"] / "record.json"
    accuracy = f'"predicted_accuracy":{record["predicted_accuracy"]}'.encode()
    content = path.read_bytes()
    assert accuracy in content
    path.write_bytes(content.replace(accuracy, b'"predicted_accuracy":0.99'))
    site.redis.stop()
    site.redis.start()
    until("readiness", site.recovered, RECOVERY)
    again = site.ask(**SEARCH)
    assert again.status_code == 201  # not found, so built
    same = {"id", "configuration", "predicted_accuracy", "cost", "artifacts"}
    assert {name: again.json()[name] for name in same} == {name: record[name] for name in same}


def test_clocks_that_jump(
    site: Site, until: Until, clock: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    offset, environment = clock
    if not environment:
        pytest.skip("libfaketime is not installed")
    # An hour ahead: every lease has run out at once. Its holder is alive, and goes on.
    location = site.begin(until, seed=8, **LONG)
    builders = site.server.children("service.jobs.worker")
    offset.write_text("+3600")
    until("the build", lambda: site.status(location) == "ready")
    assert site.server.children("service.jobs.worker") == builders

    # Back again, and the replica that builds dies: by Redis' clock its lease is good for an hour.
    other = site.launch(
        tmp_path / "data", redis_url=site.redis.url, artifacts_url=f"file://{site.folder}", lease=LEASE
    )
    with other.client() as client:
        request = {"device": "fpga-mixed", "budget": {"weight_bits": 4.0}, "search": {"seed": 9, **LONG}}
        location = client.post("/subnets", json=request, headers={"Prefer": "wait=0"}).headers["location"]
    assert site.status(location) in ("queued", "building")
    offset.write_text("+0")
    other.process.kill()
    other.process.wait()
    until("the build", lambda: site.status(location) == "ready", 120)
    assert site.ask(**SEARCH).status_code == 200


def test_after_all_that_every_subnet_is_what_it_says(site: Site) -> None:
    records = site.client.get("/subnets?limit=200").json()["subnets"]
    assert len(records) >= 5
    for record in records:
        assert record["status"] in ("ready", "failed"), record
        for file in record["artifacts"]:
            assert len(site.client.get(file["url"]).content) == file["bytes"]
    log = site.server.log()
    assert "Traceback" not in log, log[log.index("Traceback") :][:3000]
