"""What `Factory.build` gives back: the files of a subnet, how long each stage took, and how to save them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eqnet_core.files import write_atomically

INTEGER = "model.integer.onnx"
QONNX = "model.qonnx.onnx"

ARTIFACTS: tuple[str, ...] = (
    "encodings.json", INTEGER, "model.onnx", QONNX, "model.safetensors", "report.json",
)  # fmt: skip
"""Every file that `Factory.build` can make; bundles without tensor ranges have no `model.integer.onnx`."""


@dataclass(frozen=True, kw_only=True)
class Build:
    """`files` by artifact name; `report` is report.json as an object; `timings` in seconds, by stage."""

    files: Mapping[str, bytes]
    report: Mapping[str, Any]
    timings: Mapping[str, float]


def save(build: Build, folder: str | Path) -> Path:
    """Write the files of `build` into `folder` (made if missing) and return it.

    Each file is replaced as a whole: a reader finds the old one or all of the new one.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in build.files.items():
        write_atomically(folder / name, content)
    return folder
