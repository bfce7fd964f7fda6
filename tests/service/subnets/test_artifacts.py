import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.subnets import artifacts
from service.subnets.artifacts import ArtifactStore, StoredFile
from service.subnets.checked_file import BLOCK, DamagedArtifactError
from tests.support.servers import free_port

SUBNET = "0123456789abcdef" * 2


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A bucket of a server that speaks S3, by its URL."""
    s3fs = pytest.importorskip("s3fs", reason="the extra `s3` is not installed")
    pytest.importorskip("moto", reason="there is no S3 server to test against")
    port = free_port()
    with (tmp_path_factory.mktemp("s3") / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-p", str(port)], stdout=log, stderr=log
        )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.1)
    settings = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        s3fs.S3FileSystem().mkdir("eqnet")
        yield "s3://eqnet"
        s3fs.S3FileSystem.clear_instance_cache()
    process.kill()
    process.wait()


@pytest.fixture(params=["file", "memory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ArtifactStore:
    """A local folder, fsspec's in-memory file system, and a bucket."""
    if request.param == "file":
        return ArtifactStore((tmp_path / "store").as_uri())
    if request.param == "memory":
        return ArtifactStore(f"memory://{tmp_path.name}")
    return ArtifactStore(f"{request.getfixturevalue('bucket')}/{tmp_path.name}")


def _read(store: ArtifactStore, file: StoredFile) -> bytes:
    with store.open(SUBNET, file) as content:
        return b"".join(content.blocks(0, content.size))


def test_what_was_saved_is_read(store: ArtifactStore) -> None:
    model, report = store.save(SUBNET, {"model.onnx": b"model", "report.json": b"{}"})
    assert (model.name, model.bytes, len(model.sha256)) == ("model.onnx", 5, 64)
    assert _read(store, model) == b"model"
    assert _read(store, report) == b"{}"


def test_long_files_are_read_in_blocks(store: ArtifactStore) -> None:
    saved = bytes(range(256)) * (9 * BLOCK // 512) + b"end"
    (file,) = store.save(SUBNET, {"model.onnx": saved})
    with store.open(SUBNET, file) as content:
        assert content.size == len(saved)
        assert max(len(block) for block in content.blocks(0, content.size)) == BLOCK
        assert b"".join(content.blocks(0, content.size)) == saved
        start, end = BLOCK - 7, 3 * BLOCK + 11
        assert b"".join(content.blocks(start, end)) == saved[start:end]


def test_a_subnet_exists_once_it_is_committed(store: ArtifactStore) -> None:
    store.save(SUBNET, {"model.onnx": b"model"})
    assert store.record(SUBNET) is None
    store.commit(SUBNET, {"record": {"id": SUBNET}})
    assert store.record(SUBNET) == {"record": {"id": SUBNET}}
    assert list(store.subnets()) == [SUBNET]


def test_dropping_leaves_nothing_and_may_be_repeated(store: ArtifactStore) -> None:
    (file,) = store.save(SUBNET, {"model.onnx": b"model"})
    store.commit(SUBNET, {})
    store.drop(SUBNET)
    store.drop(SUBNET)
    assert store.record(SUBNET) is None
    with pytest.raises(DamagedArtifactError, match="missing"):
        _read(store, file)


def test_an_empty_store_has_no_subnets(store: ArtifactStore) -> None:
    assert list(store.subnets()) == []
    store.check()
    assert list(store.subnets()) == []


def test_what_another_machine_stored_is_seen_at_once(bucket: str, tmp_path: Path) -> None:
    here, there = (ArtifactStore(f"{bucket}/{tmp_path.name}") for _ in range(2))
    assert list(here.subnets()) == []
    there.commit(SUBNET, {"record": {}})
    assert list(here.subnets()) == [SUBNET]
    there.drop(SUBNET)
    assert list(here.subnets()) == []
    assert here.record(SUBNET) is None


def test_a_bucket_that_is_not_there_is_an_os_error(bucket: str) -> None:
    with pytest.raises(OSError, match="does not exist"):
        ArtifactStore("s3://nowhere/eqnet").check()


def test_a_bucket_that_says_nothing_is_given_up(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs

    monkeypatch.setattr(artifacts, "_SILENCE", 0.3)
    s3fs.S3FileSystem.clear_instance_cache()
    with socket.create_server(("127.0.0.1", 0)) as mute:  # connections wait to be accepted, and are not
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{mute.getsockname()[1]}")
        store = ArtifactStore(bucket)
        with pytest.raises(TimeoutError):
            store.check()
        with pytest.raises(OSError):  # noqa: PT011  whoever of the two libraries is first
            store.record(SUBNET)
    s3fs.S3FileSystem.clear_instance_cache()


def test_a_full_or_read_only_folder_is_an_os_error_and_leaves_nothing_half(tmp_path: Path) -> None:
    mounted = tmp_path / "full"
    mounted.mkdir()
    if (
        os.name != "posix"
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", mounted], capture_output=True
        ).returncode
    ):
        pytest.skip("only root can mount a small file system")
    try:
        store = ArtifactStore(mounted.as_uri())
        (small,) = store.save(SUBNET, {"report.json": b"{}"})
        with pytest.raises(OSError, match="No space left"):
            store.save(SUBNET, {"model.onnx": bytes(100_000)})
        assert [path.name for path in (mounted / SUBNET).iterdir()] == [small.sha256]
        assert _read(store, small) == b"{}"
        subprocess.run(["mount", "-o", "remount,ro", mounted], check=True, capture_output=True)
        with pytest.raises(OSError, match="not writable"):
            store.check()
        with pytest.raises(OSError, match="Read-only"):
            store.save(SUBNET, {"model.onnx": b"model"})
        assert _read(store, small) == b"{}"
    finally:
        subprocess.run(["umount", mounted], check=True)


@pytest.mark.parametrize("content", [b"mode", b"modem", b""])
def test_altered_and_truncated_files_are_noticed(tmp_path: Path, content: bytes) -> None:
    store = ArtifactStore(tmp_path.as_uri())
    (file,) = store.save(SUBNET, {"model.onnx": b"model"})
    (tmp_path / SUBNET / file.sha256).write_bytes(content)
    with pytest.raises(DamagedArtifactError, match="not what was written"):
        _read(store, file)


@pytest.mark.parametrize("content", [b"", b'{"record": ', b"[1]", b"\xff"])
def test_a_damaged_record_counts_as_none(tmp_path: Path, content: bytes) -> None:
    store = ArtifactStore(tmp_path.as_uri())
    store.commit(SUBNET, {"record": {}})
    (tmp_path / SUBNET / "record.json").write_bytes(content)
    assert store.record(SUBNET) is None


def test_no_partial_file_is_left_behind(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path.as_uri())
    (file,) = store.save(SUBNET, {"model.onnx": b"model"})
    assert [path.name for path in (tmp_path / SUBNET).iterdir()] == [file.sha256]


def test_a_location_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(OSError, match="taken"):
        ArtifactStore((tmp_path / "taken" / "store").as_uri()).check()


def test_a_record_with_another_value_counts_as_none(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path.as_uri())
    store.commit(SUBNET, {"record": {"predicted_accuracy": 0.91}})
    path = tmp_path / SUBNET / "record.json"
    path.write_bytes(path.read_bytes().replace(b"0.91", b"0.97"))
    assert store.record(SUBNET) is None


def test_other_peoples_files_beside_it_are_no_subnets(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path.as_uri())
    store.commit(SUBNET, {"id": SUBNET})
    (tmp_path / "lost+found").mkdir(mode=0o000)
    (tmp_path / "README").write_text("not ours")
    assert list(store.subnets()) == [SUBNET]
