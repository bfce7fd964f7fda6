"""A run folder: its settings, its log and its checkpoint. Killed at any moment, the same command goes on."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import time
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from eqnet_core.errors import TrainingError
from eqnet_core.files import write_atomically

_ORIGINS = {
    "data": "other images, or another split of them, or (not) mirrored (--data, --held-out, --no-mirror)",
    "float": "another float network",
    "supernet": "another supernet",
    "statistics": "other predicted statistics",
}
"""What a stage may have been made from, recorded by its digest, and how a wrong one is called."""


class Run:
    """One stage's folder: `settings.json`, `log.jsonl` (one object a line), `checkpoint.pt`, results.

    A checkpoint is written to a temporary file, flushed and renamed, so that it is whole or not there.
    The log is cut back to the checkpoint when a run goes on: no line appears twice. Settings named in
    `growing` (such as how many samples) may differ from those of the run that goes on. A stage records in its
    settings what it was made from (`origins`: digests of the `data`, the `float` network, the `supernet`, the
    predictor of BatchNorm `statistics`). `before` are the settings of the run that goes on. Make it once all
    else that was asked for is known to be right: what is refused must not leave settings behind.

    Raises:
        TrainingError: the folder holds a run with other settings, or of another origin.
    """

    def __init__(
        self,
        folder: Path,
        settings: Any,
        *,
        growing: Sequence[str] = (),
        origins: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        document = json.loads(json.dumps({"stage": type(settings).__name__, **asdict(settings)}, default=str))
        document |= origins or {}
        path = folder / "settings.json"
        self._settings = document
        self.before: dict[str, Any] = document
        if path.exists():
            self.before = before = json.loads(path.read_text())
            free = {*growing, *_ORIGINS}
            # A setting that did not exist when the run began had what is now its default.
            before = {**_defaults(settings), **before}
            changed = sorted(
                key for key in {*before, *document} - free if before.get(key) != document.get(key)
            )
            if changed:
                raise TrainingError(
                    f"{folder} holds a run with other settings ({', '.join(changed)}): "
                    "repeat its settings to go on, or choose another folder"
                )
            check_origins(folder, origins or {})
        else:
            write_atomically(path, json.dumps(document, indent=2).encode())
        self._last_checkpoint = time.monotonic()

    @property
    def checkpoint_path(self) -> Path:
        return self.folder / "checkpoint.pt"

    @property
    def plateau_path(self) -> Path:
        return self.folder / "plateau.pt"

    @property
    def log_path(self) -> Path:
        return self.folder / "log.jsonl"

    def resume(self) -> dict[str, Any] | None:
        """The checkpoint's state, or None for a fresh run. Tensors and plain values only (`weights_only`).

        Raises:
            TrainingError: the checkpoint is damaged.
        """
        if not self.checkpoint_path.exists():
            self.log_path.write_text("")
            return None
        try:
            checkpoint: dict[str, Any] = torch.load(
                self.checkpoint_path, map_location="cpu", weights_only=True
            )
            state: dict[str, Any] = checkpoint["state"]
            size: int = checkpoint["log_bytes"]
        except (OSError, EOFError, KeyError, RuntimeError, pickle.UnpicklingError) as error:
            raise TrainingError(
                f"{self.checkpoint_path} is damaged: delete {self.folder} and train it again"
            ) from error
        with self.log_path.open("ab") as log:  # also where somebody tidied the log away
            log.truncate(min(size, log.tell()))
        return state

    def log(self, **values: Any) -> None:
        """Append one line to the log."""
        with self.log_path.open("a") as log:
            log.write(json.dumps({"time": round(time.time(), 1), **values}) + "\n")

    def checkpoint(self, state: Mapping[str, Any]) -> None:
        """Replace the checkpoint by `state`."""
        size = self.log_path.stat().st_size if self.log_path.exists() else 0
        temporary = self.checkpoint_path.with_suffix(".tmp")
        with temporary.open("wb") as file:
            torch.save({"state": dict(state), "log_bytes": size}, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.checkpoint_path)
        self._last_checkpoint = time.monotonic()

    def keep_plateau(self) -> None:
        """Keep the checkpoint of this moment, so that `extend` can come back to it."""
        write_atomically(self.plateau_path, self.checkpoint_path.read_bytes())

    def extend(self) -> None:
        """Make the kept plateau the checkpoint, and the present settings those of the folder."""
        # In this order: killed in between, the folder is the shorter run again, part of the way through.
        write_atomically(self.checkpoint_path, self.plateau_path.read_bytes())
        write_atomically(self.folder / "settings.json", json.dumps(self._settings, indent=2).encode())

    def checkpoint_due(self, seconds: float) -> bool:
        """Whether the last checkpoint of this process is more than `seconds` old."""
        return time.monotonic() - self._last_checkpoint > seconds


def _defaults(settings: Any) -> dict[str, Any]:
    defaults = {field.name: field.default for field in fields(settings) if field.default is not MISSING}
    document: dict[str, Any] = json.loads(json.dumps(defaults, default=str))
    return document


def read_origins(folder: Path) -> dict[str, str]:
    """Digests of what the stage in `folder` measured; without those that it does not state (older runs)."""
    try:
        settings = json.loads((folder / "settings.json").read_text())
    except FileNotFoundError:
        return {}
    return {name: str(settings[name]) for name in _ORIGINS if settings.get(name) is not None}


def check_origins(folder: Path, origins: Mapping[str, str]) -> None:
    """Refuse a stage's results if they say that they are of others than `origins`, digests by name.

    Raises:
        TrainingError: they are.
    """
    stated = read_origins(folder)
    for name, digest in origins.items():
        if stated.get(name, digest) != digest:
            raise TrainingError(
                f"{folder} was made with {_ORIGINS[name]}: repeat what it was made with, or delete it or "
                "move it away, and run the stages from there on again"
            )


def read_json(path: Path, *, stage: str) -> dict[str, Any]:
    """Read an object that `stage` wrote.

    Raises:
        TrainingError: it has not yet.
    """
    try:
        document: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise TrainingError(f"{path} is missing: run the {stage} stage first") from error
    return document


def tensors_digest(tensors: Mapping[str, NDArray[Any]], *, kind: str = "") -> str:
    """`sha256:…` of arrays with their names and shapes, and of the `kind` of thing they make up."""
    digest = hashlib.sha256(kind.encode())
    for name, value in sorted(tensors.items()):
        digest.update(f"\n{name} {value.shape}\n".encode())
        digest.update(value.tobytes())
    return f"sha256:{digest.hexdigest()}"


def save_tensors(path: Path, tensors: Mapping[str, NDArray[Any]]) -> None:
    """Write named arrays as one `.npz`, whole or not at all."""
    buffer = io.BytesIO()
    np.savez(buffer, **dict(tensors))  # type: ignore[arg-type]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, buffer.getvalue())


def load_tensors(path: Path, *, stage: str) -> dict[str, NDArray[Any]]:
    """Read what `save_tensors` wrote.

    Raises:
        TrainingError: `stage` has not written it yet, or it is damaged.
    """
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as archive:
            return dict(archive)
    except FileNotFoundError as error:
        raise TrainingError(f"{path} is missing: run the {stage} stage first") from error
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise TrainingError(f"{path} is damaged: run the {stage} stage again") from error
