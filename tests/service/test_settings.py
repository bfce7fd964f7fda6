from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from service.settings import Settings, describe_settings, warn_of_misspelt


def test_every_setting_is_described() -> None:
    text = describe_settings()
    for name, field in Settings.model_fields.items():
        assert f"EQNET_{name.upper()}" in text
        assert field.description


def test_a_variable_that_is_nearly_a_setting_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    others = ("EQNET_API_KEY", "EQNET_PORT", "EQNET_SERVICE_HOST", "EQNET_REDIS_PORT", "EQNET_PORT_8000_TCP")
    given = ("EQNET_DATA", "EQNET_BUILDER", "EQNET_REDIS_URL", "HOME", *others)
    warn_of_misspelt(dict.fromkeys(given, "x"))
    assert [record.getMessage() for record in caplog.records] == [
        "there is no setting EQNET_BUILDER, so it is ignored: did you mean EQNET_BUILDERS?",
        "there is no setting EQNET_DATA, so it is ignored: did you mean EQNET_DATA_DIR?",
    ]


def test_bundles_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EQNET_BUNDLES", "one, /two ,")
    assert Settings().bundles == ("one", "/two")


def test_empty_urls_count_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EQNET_REDIS_URL", "")
    monkeypatch.setenv("EQNET_ARTIFACTS_URL", "")
    settings = Settings()
    assert settings.redis_url is None
    assert settings.artifacts_location.endswith("/data/artifacts")


def test_a_data_folder_with_odd_characters_is_a_valid_location(tmp_path: Path) -> None:
    from service.subnets.artifacts import ArtifactStore

    folder = tmp_path / "50% of #data? yes"
    settings = Settings(data_dir=folder)
    ArtifactStore(settings.artifacts_location).save("0" * 32, {"a": b"content"})
    assert len(list((folder / "artifacts" / ("0" * 32)).iterdir())) == 1


def test_zero_builders_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EQNET_BUILDERS", "0")
    with pytest.raises(ValidationError):
        Settings()


@pytest.mark.parametrize(
    "url",
    [
        "foo://x",
        "http://h/1",
        "localhost:6379",
        "://x",
        "redis://h:99999/1",
        "redis://h:secret/1",
        "redis://h:6379/eqnet",
        "redis://one:6379/1;foo://two",
        "sqla+sqlite:///broker.db",
        "memory://",
    ],
)
def test_a_broker_that_celery_cannot_use_is_refused_with_advice(url: str) -> None:
    with pytest.raises(ValidationError) as refused:
        Settings(redis_url="redis://h", broker_url=url)
    (error,) = refused.value.errors()
    assert "redis://host:6379/1" in error["msg"]
    assert "secret" not in error["msg"]


@pytest.mark.parametrize(
    "url",
    [
        "redis://h",
        "redis://:p%2Fw@h:6379/1",
        "rediss://h:6379/2?ssl_cert_reqs=none",
        "redis+socket:///run/redis.sock",
        "sentinel://one:26379;sentinel://two:26379",
        "amqp://user:word@h:5672/host",
        "amqps://h//",
    ],
)
def test_celery_s_brokers_are_accepted(url: str) -> None:
    assert Settings(redis_url="redis://h", broker_url=url).broker_url == url


@pytest.mark.parametrize(
    ("name", "value", "advice"),
    [
        ("REDIS_URL", "localhost:6379", "redis://host:6379/0"),
        ("ARTIFACTS_URL", "bogus://bucket", "s3://bucket/folder"),
    ],
)
def test_a_url_that_nobody_can_open_is_refused_with_advice(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, advice: str
) -> None:
    monkeypatch.setenv(f"EQNET_{name}", value)
    with pytest.raises(ValidationError, match=advice):
        Settings()


def test_passwords_in_urls_are_not_shown() -> None:
    url = "redis://:secret@host:6379/0"
    assert "secret" not in repr(Settings(redis_url=url, broker_url=url))


def test_answers_and_builders_take_what_is_set(serve: Callable[..., Any]) -> None:
    """EQNET_WAIT: whoever does not say how long to wait; EQNET_BUILDER_THREADS: those of each builder."""
    server = serve(wait=0, builder_threads=4)
    wanted = {"device": "fpga-mixed", "search": {"population": 10, "generations": 3}}
    with server.client() as client:
        pending = client.post("/subnets", json=wanted)
        assert (pending.status_code, pending.json()["status"] in ("queued", "building")) == (202, True)
        assert client.post("/subnets", json=wanted, headers={"Prefer": "wait=500"}).status_code == 200
        (builder,) = server.children("service.jobs.worker")
        threads = len(list(Path(f"/proc/{builder}/task").iterdir()))
    assert threads > 4, "with one to compute with it has three in all"
