import os
import stat
from pathlib import Path

import pytest

from service.data_folder import DataFolder, DataFolderError


def test_a_second_server_is_told_to_use_another_folder(tmp_path: Path) -> None:
    with DataFolder(tmp_path / "data"), pytest.raises(DataFolderError, match="EQNET_DATA_DIR"):
        DataFolder(tmp_path / "data").__enter__()


def test_the_folder_is_free_again_after_the_first_server(tmp_path: Path) -> None:
    with DataFolder(tmp_path / "data"):
        pass
    with DataFolder(tmp_path / "data") as folder:
        assert folder.path.is_dir()


def test_a_folder_that_is_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    with pytest.raises(DataFolderError, match="cannot be used"):
        DataFolder(tmp_path / "data").__enter__()


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes to read-only folders")
def test_a_folder_without_rights_is_told(tmp_path: Path) -> None:
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(DataFolderError, match="cannot be used"):
        DataFolder(tmp_path / "data").__enter__()
