import logging
import stat
from pathlib import Path

import pytest

import service.security.key_file as key_file
from service.security.key_file import KeyFile, KeyFileError, KeysInForce
from service.security.keys import ApiKey, KeyRing, Scope

NOTHING = KeyRing(())


def add(file: KeyFile, name: str) -> str:
    entry, key = ApiKey.make(name=name, scope=Scope.READ)
    file.add(entry)
    return key


def test_keys_are_added_and_revoked(tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "new" / "api-keys")
    assert file.read().keys == ()
    first, second = add(file, "first"), add(file, "second")
    text = file.path.read_text()
    assert first not in text
    assert second not in text
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    file.revoke("first")
    assert file.read().find(first.encode()) is None
    found = file.read().find(second.encode())
    assert found is not None
    assert found.name == "second"
    assert [path.name for path in file.path.parent.iterdir() if "lock" not in path.name] == ["api-keys"]


def test_mistakes_are_told(tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "api-keys")
    add(file, "ci")
    with pytest.raises(KeyFileError, match="already"):
        add(file, "ci")
    with pytest.raises(KeyFileError, match="there are ci"):
        file.revoke("cd")
    file.path.write_text("nonsense\n")
    with pytest.raises(KeyFileError, match="entry 1"):
        file.read()
    with pytest.raises(KeyFileError, match="cannot be changed"):
        add(KeyFile(file.path / "below-a-file"), "x")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks at the file at every request."""
    monkeypatch.setattr(key_file, "_LOOK_INTERVAL", 0.0)


@pytest.mark.usefixtures("impatient")
def test_a_running_service_follows_the_file(tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "api-keys")
    keys = KeysInForce(fixed=NOTHING, file=file)
    assert keys.ring().keys == ()
    assert not keys.required
    first = add(file, "first")
    assert keys.ring().find(first.encode()) is not None
    assert keys.required
    file.revoke("first")
    assert keys.ring().find(first.encode()) is None
    assert keys.required  # the last key is revoked: nobody may in, rather than everybody


@pytest.mark.usefixtures("impatient")
def test_a_damaged_or_missing_file_changes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = KeyFile(tmp_path / "api-keys")
    key = add(file, "first").encode()
    keys = KeysInForce(fixed=NOTHING, file=file)
    with caplog.at_level(logging.ERROR):
        file.path.write_text("nonsense\n")
        assert keys.ring().find(key) is not None
        file.path.unlink()
        assert keys.ring().find(key) is not None
    assert keys.required
    assert len(caplog.records) == 2


def test_fixed_keys_and_the_file_count_together(tmp_path: Path) -> None:
    fixed, key = ApiKey.make(name="fixed", scope=Scope.BUILD)
    file = KeyFile(tmp_path / "api-keys")
    listed = add(file, "listed")
    ring = KeysInForce(fixed=KeyRing([fixed]), file=file).ring()
    assert ring.find(key.encode()) == fixed
    assert ring.find(listed.encode()) is not None
