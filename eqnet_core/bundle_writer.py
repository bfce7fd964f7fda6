"""Writing a bundle: the last stage of training, and ranges that are added later."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from eqnet_core.bundle import (
    CALIBRATION,
    DOCUMENT,
    GRAPH,
    PREDICTOR,
    RANGES,
    SCHEMA,
    STATISTICS,
    SUPERNET,
    Bundle,
    document_digest,
)
from eqnet_core.errors import BundleError
from eqnet_core.predictor import AccuracyPredictor
from eqnet_core.ranges import TensorRanges
from eqnet_core.space import SearchSpace
from eqnet_core.statistics import StatisticsPredictor
from eqnet_core.subnet import InputSpec


def write_bundle(
    folder: str | Path,
    *,
    name: str,
    architecture: str,
    classes: tuple[str, ...],
    input: InputSpec,
    space: SearchSpace,
    float_accuracy: float,
    accuracy: Mapping[str, Any],
    predictor_quality: Mapping[str, Any],
    statistics_quality: Mapping[str, Any],
    card: Mapping[str, Any],
    supernet: Mapping[str, NDArray[Any]],
    predictor: AccuracyPredictor,
    statistics: StatisticsPredictor,
    ranges: TensorRanges | None = None,
    integer_quality: Mapping[str, Any] | None = None,
    calibration: NDArray[np.uint8] | None = None,
    graph: bytes | None = None,
    overwrite: bool = False,
) -> Bundle:
    """Write a bundle and open it. The folder appears complete or not at all; equal arguments, equal bytes.

    `accuracy` (measured top-1 of some subnets) and `card` (data, commands, epochs) are free-form JSON.
    Without `ranges` the bundle has no `integer` flavour; `integer_quality` is what that one was measured to
    cost (`training.ranges`). With `calibration` images subnets are calibrated rather than predicted. `graph`
    is the float network's (`FloatGraph.to_bytes`); without it every builder traces one as it starts.

    Raises:
        BundleError: the parts do not fit together, or `folder` holds another bundle and `overwrite` is not
        set, or it holds what is no bundle.
    """
    folder = Path(folder)
    files = {
        SUPERNET: _save(supernet),
        PREDICTOR: _save(predictor.to_tensors()),
        STATISTICS: _save(statistics.to_tensors()),
    }
    if ranges is not None:
        files[RANGES] = _save(ranges.to_tensors())
    if graph is not None:
        files[GRAPH] = graph
    if calibration is not None:
        files[CALIBRATION] = _save({"images": calibration})
    document = {
        "schema": SCHEMA,
        "name": name,
        "architecture": architecture,
        "classes": list(classes),
        "input": asdict(input),
        "layers": [asdict(layer) for layer in space.layers],
        "float_accuracy": float_accuracy,
        "accuracy": dict(accuracy),
        "predictor": dict(predictor_quality),
        "statistics": dict(statistics_quality),
        **({} if integer_quality is None else {"integer": dict(integer_quality)}),
        "card": dict(card),
        "files": {file: _entry(content) for file, content in files.items()},
    }
    _store(folder, files, document, overwrite=overwrite)
    return Bundle.open(folder)


def add_ranges(folder: str | Path, ranges: TensorRanges, quality: Mapping[str, Any]) -> Bundle:
    """Give an existing bundle ranges, or others than it had; everything else stays, bit for bit.

    Raises:
        BundleError: no bundle in `folder`, or a damaged one.
    """
    before = Bundle.open(folder)
    content = _save(ranges.to_tensors())
    document = {
        **before.document,
        "integer": dict(quality),
        "files": {**before.document["files"], RANGES: _entry(content)},
    }
    files = {name: before.read(name) for name in before.document["files"]}
    _store(Path(folder), {**files, RANGES: content}, document, overwrite=True)
    return Bundle.open(folder)


def _store(folder: Path, files: Mapping[str, bytes], document: Mapping[str, Any], *, overwrite: bool) -> None:
    try:
        text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise BundleError(f"accuracies, qualities and card must be plain JSON: {error}") from error
    taken = any(folder.iterdir()) if folder.is_dir() else folder.exists()
    if taken and not (folder / DOCUMENT).exists():
        raise BundleError(f"{folder.name} exists and is no bundle: choose another folder")
    if taken and _same(folder, json.loads(text)):
        return
    if taken and not overwrite:
        raise BundleError(
            f"{folder.name} exists and is another bundle: choose another folder, or overwrite it"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.new")
    staging.mkdir()
    try:
        for file, content in {**files, DOCUMENT: text.encode()}.items():
            _write(staging / file, content)
        bundle = Bundle.open(staging)
        bundle.predictor()
        bundle.statistics()
        bundle.calibration_images()
        if bundle.has_ranges:
            bundle.ranges()
        _replace(folder, staging)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _save(tensors: Mapping[str, NDArray[Any]]) -> bytes:
    return save({name: np.ascontiguousarray(value) for name, value in sorted(tensors.items())})


def _entry(content: bytes) -> dict[str, Any]:
    return {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}


def _same(folder: Path, document: Mapping[str, Any]) -> bool:
    try:
        return Bundle.open(folder).digest == document_digest(document)
    except BundleError:
        return False


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _replace(folder: Path, staging: Path) -> None:
    """A non-empty folder cannot be renamed over: the old one steps aside first, and back if that fails."""
    if not folder.exists():
        staging.rename(folder)
        return
    aside = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.old")
    folder.rename(aside)
    try:
        staging.rename(folder)
    except OSError:
        aside.rename(folder)
        raise
    shutil.rmtree(aside, ignore_errors=True)
