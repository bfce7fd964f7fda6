"""`eqnet keys` and the rule about addresses, as an operator meets them."""

from pathlib import Path

import pytest

from service.cli import main
from service.security.keys import ApiKey, KeyRing
from service.settings import Settings


@pytest.fixture(autouse=True)
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("EQNET_API_KEYS", "EQNET_API_KEYS_FILE", "EQNET_ALLOW_ANONYMOUS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("EQNET_DATA_DIR", str(tmp_path / "data"))
    return tmp_path / "data"


def test_a_key_is_printed_once_and_lets_in(data_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", "add", "ci", "--scope", "build", "--rate", "20"]) == 0
    key = capsys.readouterr().out.strip()
    assert key not in (data_dir / "api-keys").read_text()
    found = Settings().keys.ring().find(key.encode())
    assert found is not None
    assert (found.name, found.scope, found.rate) == ("ci", "build", 20.0)
    assert main(["keys", "list"]) == 0
    listed = capsys.readouterr().out
    assert listed == "ci\tbuild\t20/s\n"
    assert main(["keys", "revoke", "ci"]) == 0
    assert Settings().keys.ring().find(key.encode()) is None


def test_an_entry_for_the_environment(data_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", "add", "ci", "--print-entry"]) == 0
    key, entry = capsys.readouterr().out.split()
    assert KeyRing.parse(entry).find(key.encode()) == ApiKey.from_entry(entry)
    assert not data_dir.exists()


def test_mistakes_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", "add", "no spaces"]) == 1
    assert main(["keys", "revoke", "nobody"]) == 1
    assert main(["keys", "add", "slow", "--rate", "0.0167"]) == 1
    messages = capsys.readouterr().err
    assert messages.count("eqnet: ") == len(messages.splitlines()) == 3


def test_an_open_service_refuses_to_start(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--host", "0.0.0.0"]) == 1
    assert "eqnet keys add" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "value"), [("EQNET_API_KEYS", "nonsense"), ("EQNET_API_KEYS_FILE", "nowhere/keys")]
)
def test_keys_that_cannot_be_used_are_told(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(name, value)
    assert main(["serve", "--host", "0.0.0.0"]) != 0
    assert name in capsys.readouterr().err
