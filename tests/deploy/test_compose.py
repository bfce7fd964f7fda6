"""docker-compose.yml and the proxy in it, as far as they can be checked without Docker."""

import re
from pathlib import Path
from typing import Any

import pytest

from service.settings import Settings

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    return found


def test_two_replicas_two_workers_a_proxy_and_redis(services: dict[str, Any]) -> None:
    assert services.keys() == {"proxy", "api", "worker", "redis"}
    assert services["api"]["deploy"]["replicas"] == services["worker"]["deploy"]["replicas"] == 2
    # A fixed name or host port would forbid a second replica.
    for name in ("api", "worker"):
        assert not {"container_name", "ports"} & services[name].keys()
    assert services["worker"]["command"] == ["worker"]


def test_only_the_proxy_is_published_and_only_to_this_machine(services: dict[str, Any]) -> None:
    published = {name: service["ports"] for name, service in services.items() if "ports" in service}
    assert list(published) == ["proxy"]
    assert all(port.startswith("127.0.0.1:") for port in published["proxy"])


def test_variables_are_settings_and_shared(services: dict[str, Any]) -> None:
    known = {f"EQNET_{name.upper()}" for name in Settings.model_fields}
    for name in ("api", "worker"):
        ours = {key for key in services[name]["environment"] if key.startswith("EQNET_")}
        assert ours <= known, name
    shared = ("EQNET_REDIS_URL", "EQNET_BROKER_URL", "EQNET_ARTIFACTS_URL", "EQNET_DATA_DIR")
    for name in shared:
        assert services["api"]["environment"][name] == services["worker"]["environment"][name]
    assert services["api"]["volumes"] == services["worker"]["volumes"]


def test_a_bucket_s_credentials_reach_who_uses_it(services: dict[str, Any]) -> None:
    wanted = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL"}
    for name in ("api", "worker"):
        # Without a value: Compose then passes the variable on, if there is one.
        passed = {key for key, value in services[name]["environment"].items() if value is None}
        assert wanted <= passed, name


def test_containers_have_no_rights(services: dict[str, Any]) -> None:
    for name in services:
        assert services[name]["read_only"], name
        assert services[name]["cap_drop"] == ["ALL"], name
        assert services[name]["security_opt"] == ["no-new-privileges:true"], name


def test_the_image_has_what_the_services_import() -> None:
    installed = re.search(r"pip install \"\.\[([\w,]+)\]\"", (ROOT / "docker" / "Dockerfile").read_text())
    assert installed is not None
    assert {"serve", "workers", "s3"} <= set(installed[1].split(","))


def test_the_proxy_lets_through_what_the_service_takes(services: dict[str, Any]) -> None:
    text = (ROOT / "docker" / "nginx.conf").read_text()
    assert "./docker/nginx.conf:/etc/nginx/nginx.conf:ro" in services["proxy"]["volumes"]
    assert text.count("{") == text.count("}")
    assert "proxy_buffering off;" in text  # events
    size = re.search(r"client_max_body_size (\d+)m;", text)
    assert size is not None
    assert int(size[1]) >= 16
    wait = re.search(r"proxy_read_timeout (\d+)s;", text)
    assert wait is not None
    assert int(wait[1]) > 600
    assert "http://api:8000;" in text


def test_the_proxy_can_write_what_it_writes(services: dict[str, Any]) -> None:
    """nginx makes its pid file and folders when it starts, and ends if it cannot."""
    proxy = services["proxy"]
    assert proxy["read_only"]
    text = (ROOT / "docker" / "nginx.conf").read_text()
    written = re.findall(r"^\s*(?:pid|\w+_temp_path) (/\S+);", text, re.MULTILINE)
    assert len(written) == 6
    for path in written:
        assert any(path.startswith(f"{mount}/") for mount in proxy["tmpfs"]), path
