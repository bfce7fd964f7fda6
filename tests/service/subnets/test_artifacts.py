from pathlib import Path

import pytest

from service.subnets.artifacts import ArtifactStore, DamagedArtifactError

SUBNET = "0123456789abcdef" * 2


@pytest.fixture(params=["file", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ArtifactStore:
    """A local folder, and fsspec's in-memory stand-in for object stores."""
    url = (tmp_path / "store").as_uri() if request.param == "file" else f"memory://{tmp_path.name}"
    return ArtifactStore(url)


def test_what_was_saved_is_read(store: ArtifactStore) -> None:
    model, report = store.save(SUBNET, {"model.onnx": b"model", "report.json": b"{}"})
    assert (model.name, model.bytes, len(model.sha256)) == ("model.onnx", 5, 64)
    assert store.read(SUBNET, model) == b"model"
    assert store.read(SUBNET, report) == b"{}"


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
        store.read(SUBNET, file)


def test_an_empty_store_has_no_subnets(store: ArtifactStore) -> None:
    assert list(store.subnets()) == []


@pytest.mark.parametrize("content", [b"mode", b"modem", b""])
def test_altered_and_truncated_files_are_noticed(tmp_path: Path, content: bytes) -> None:
    store = ArtifactStore(tmp_path.as_uri())
    (file,) = store.save(SUBNET, {"model.onnx": b"model"})
    (tmp_path / SUBNET / file.sha256).write_bytes(content)
    with pytest.raises(DamagedArtifactError, match="not what was written"):
        store.read(SUBNET, file)


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
