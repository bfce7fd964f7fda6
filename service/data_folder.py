"""The service's data folder: one server at a time."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

from filelock import FileLock, Timeout


class DataFolderError(Exception):
    """The folder cannot be used; the message says what to do."""


class DataFolder:
    """Holds the folder's lock while entered. The lock ends with the process, however that ends.

    Raises:
        DataFolderError: another server uses the folder, or it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self._lock = FileLock(self.path / "server.lock", timeout=0)

    def __enter__(self) -> DataFolder:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
        except Timeout as error:
            raise DataFolderError(
                f"another server uses the data folder {self.path}: stop it, "
                "or set EQNET_DATA_DIR to another folder"
            ) from error
        except OSError as error:
            raise DataFolderError(
                f"the data folder {self.path} cannot be used ({error.strerror}): "
                "set EQNET_DATA_DIR to a folder that this user can write"
            ) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()
