"""What training hands to serving: one folder with a trained supernet and its predictors. NumPy only.

    bundle.json               schema, name, architecture, classes, input, layers, accuracies, card, digests
    supernet.safetensors      weights, BatchNorm parameters, step sizes and zero-points
    predictor.safetensors     `AccuracyPredictor`
    statistics.safetensors    `StatisticsPredictor`
    ranges.safetensors        `TensorRanges`, which only the `integer` flavour needs: older bundles have none
    graph.onnx                `FloatGraph`, without weights: a builder that has it need not trace the network
    calibration.safetensors   images to calibrate each subnet with, in bundles that may carry images

`bundle.json` holds the SHA-256 of every other file, so that the digest of its canonical form stands for all
of it.
"""

from __future__ import annotations

import glob
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load

from eqnet_core.errors import BundleError
from eqnet_core.predictor import AccuracyPredictor
from eqnet_core.ranges import TensorRanges
from eqnet_core.space import LayerSpec, SearchSpace
from eqnet_core.statistics import StatisticsPredictor
from eqnet_core.subnet import InputSpec

SCHEMA = 1
"""Raised when a reader of the old schema would misread the new one."""

SUPERNET, PREDICTOR, STATISTICS = "supernet.safetensors", "predictor.safetensors", "statistics.safetensors"
RANGES, GRAPH, CALIBRATION = "ranges.safetensors", "graph.onnx", "calibration.safetensors"

DOCUMENT = "bundle.json"

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_FILE = re.compile(r"[a-z0-9_]+\.[a-z0-9]+")


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """An opened bundle whose files are as they were written.

    `digest` is "sha256:" and the hex SHA-256 of the canonical `document` (bundle.json). `float_accuracy` is
    the top-1 of the network it was trained from, a fraction.
    """

    path: Path
    name: str
    digest: str
    architecture: str
    classes: tuple[str, ...]
    input: InputSpec
    space: SearchSpace
    float_accuracy: float
    document: Mapping[str, Any]

    @classmethod
    def open(cls, path: str | Path) -> Bundle:
        """Read bundle.json and check every file against its digest.

        Raises:
            BundleError: no bundle there, a damaged one, or one that a newer version wrote.
        """
        folder = Path(path)
        document = _read_document(folder)
        try:
            bundle = cls(
                path=folder.resolve(),
                name=str(document["name"]),
                digest=document_digest(document),
                architecture=str(document["architecture"]),
                classes=tuple(str(name) for name in document["classes"]),
                input=_input(document["input"]),
                space=_space(document["layers"]),
                float_accuracy=float(document["float_accuracy"]),
                document=document,
            )
            bundle._check()
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
            raise BundleError(
                f"{folder.name}/{DOCUMENT} is not a bundle's ({error!r}): write the bundle again"
            ) from error
        for name in document["files"]:
            bundle.read(name)
        return bundle

    def read(self, name: str) -> bytes:
        """The bytes of one of the bundle's files.

        Raises:
            BundleError: it is not listed, missing, or not what was written.
        """
        entry = self.document["files"].get(name)
        if entry is None or not _FILE.fullmatch(name):
            raise BundleError(f"bundle {self.name} lists no file {name}")
        try:
            content = (self.path / name).read_bytes()
        except OSError as error:
            raise BundleError(f"bundle {self.name}: cannot read {name}: {error.strerror}") from error
        if _sha256(content) != entry["sha256"]:
            raise BundleError(
                f"bundle {self.name}: {name} is damaged (its SHA-256 is not the one in {DOCUMENT}): "
                "copy or download the bundle again"
            )
        return content

    def supernet_tensors(self) -> dict[str, NDArray[np.float32]]:
        """What `Supernet.load_tensors` takes."""
        return self._tensors(SUPERNET)

    def predictor(self) -> AccuracyPredictor:
        """CQAP of this supernet.

        Raises:
            BundleError: it does not fit the bundle's layers.
        """
        predictor = AccuracyPredictor.from_tensors(self._tensors(PREDICTOR))
        if predictor.encoding_size != self.space.encoding_size:
            raise BundleError(f"bundle {self.name}: its accuracy predictor is of another supernet")
        return predictor

    def statistics(self) -> StatisticsPredictor:
        """The BatchNorm statistics predictor of this supernet.

        Raises:
            BundleError: it does not fit the bundle's layers.
        """
        statistics = StatisticsPredictor.from_tensors(self._tensors(STATISTICS))
        if statistics.shared.shape[0] != self.space.encoding_size:
            raise BundleError(f"bundle {self.name}: its statistics predictor is of another supernet")
        return statistics

    def calibration_images(self) -> NDArray[np.uint8] | None:
        """Augmented training images uint8 [N, C, H, W], or None: then BatchNorm statistics are predicted."""
        if CALIBRATION not in self.document["files"]:
            return None
        images = self._tensors(CALIBRATION).get("images")
        if (
            images is None
            or images.dtype != np.uint8
            or images.shape[1:] != self.input.shape
            or not len(images)
        ):
            raise BundleError(f"bundle {self.name}: its calibration images do not fit its network")
        return images

    @property
    def has_graph(self) -> bool:
        """Whether it holds the float graph (`Bundle.read(GRAPH)`), as bundles of older versions do not."""
        return GRAPH in self.document["files"]

    @property
    def has_ranges(self) -> bool:
        """Whether `model.integer.onnx` can be built from this bundle."""
        return RANGES in self.document["files"]

    def ranges(self) -> TensorRanges:
        """The ranges of the tensors that only the `integer` flavour quantises.

        Raises:
            BundleError: the bundle has none, or they are of another version.
        """
        if not self.has_ranges:
            raise BundleError(
                f"bundle {self.name} has no tensor ranges, which model.integer.onnx needs: "
                "measure them with the `ranges` stage of training, or ask for model.onnx"
            )
        return TensorRanges.from_tensors(self._tensors(RANGES))

    def _tensors(self, name: str) -> dict[str, NDArray[Any]]:
        try:
            return load(self.read(name))
        except (SafetensorError, KeyError) as error:  # a type that NumPy does not have is a KeyError
            raise BundleError(
                f"bundle {self.name}: {name} is not a safetensors file of NumPy's types: {error}"
            ) from error

    def _check(self) -> None:
        layers, files = self.space.layers, self.document["files"]
        shape, mean, std = self.input.shape, self.input.mean, self.input.std
        if not all(isinstance(entry["sha256"], str) for entry in files.values()):
            raise TypeError("a file's sha256 must be a text")
        integer = self.document.get("integer", {})
        costs = [cost for cost in integer.get("cost", {}).values() if cost is not None]
        if costs and not all(isinstance(value, int | float) for value in (*costs, integer["images"])):
            raise TypeError("what the integer flavour costs must be numbers")
        problems = {
            f"its name {self.name!r} is not of a-z, 0-9, '.', '_' and '-'": not _NAME.fullmatch(self.name),
            "it has fewer than two classes": len(self.classes) < 2,
            "its input is not an image": min(shape) < 1,
            "its normalisation does not fit the channels": {len(mean), len(std)} != {shape[0]}
            or min(std) <= 0,
            "it has no searchable layer": not self.space.searchable,
            "two of its layers have one name": len({layer.name for layer in layers}) != len(layers),
            "a layer has no weights or inputs": any(min(la.weights, la.inputs, la.macs) < 1 for la in layers),
            "its float accuracy is no fraction": not 0.0 <= self.float_accuracy <= 1.0,
            f"it lacks {SUPERNET}, {PREDICTOR} or {STATISTICS}": not {SUPERNET, PREDICTOR, STATISTICS}
            <= set(files),
        }
        if wrong := [text for text, found in problems.items() if found]:
            raise BundleError(f"bundle {self.path.name} makes no sense: {'; '.join(wrong)}")


def shipped_bundles() -> dict[str, Path]:
    """The bundles that come with the package, by name."""
    found = sorted((Path(__file__).parent / "bundles").glob(f"*/{DOCUMENT}"))
    return {path.parent.name: path.parent for path in found}


def _read_document(folder: Path) -> dict[str, Any]:
    try:
        text = (folder / DOCUMENT).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        aside = sorted(folder.parent.glob(f".{glob.escape(folder.name)}.*.old"))
        if aside and not folder.exists():
            raise BundleError(
                f"no bundle in {folder}: replacing it was cut short; "
                f"rename {aside[-1].name}, the one before, to {folder.name}"
            ) from error
        raise BundleError(
            f"no bundle in {folder}: a bundle is a folder with a {DOCUMENT}, or one of the shipped ones "
            f"({', '.join(shipped_bundles()) or 'there are none'})"
        ) from error
    except (OSError, ValueError) as error:  # not UTF-8, or no path at all
        raise BundleError(f"cannot read {folder.name}/{DOCUMENT}: {error}") from error
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{folder.name}/{DOCUMENT} is not JSON ({error}): it is damaged") from error
    schema = document.get("schema") if isinstance(document, dict) else None
    if not isinstance(schema, int):
        raise BundleError(f"{folder.name}/{DOCUMENT} has no schema: it is not a bundle's")
    if schema != SCHEMA:
        advice = "upgrade eqnet-serve" if schema > SCHEMA else "write the bundle again"
        raise BundleError(
            f"bundle {folder.name} has schema {schema}, this version reads schema {SCHEMA}: {advice}"
        )
    return dict(document)


def _input(document: Mapping[str, Any]) -> InputSpec:
    channels, height, width = (int(size) for size in document["shape"])
    return InputSpec(
        shape=(channels, height, width),
        mean=tuple(float(value) for value in document["mean"]),
        std=tuple(float(value) for value in document["std"]),
    )


def _space(layers: list[Mapping[str, Any]]) -> SearchSpace:
    # known fields only: a later version may describe layers in more detail without another schema
    names = [field.name for field in fields(LayerSpec)]
    return SearchSpace(tuple(LayerSpec(**{name: layer[name] for name in names}) for layer in layers))


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def document_digest(document: Mapping[str, Any]) -> str:
    """What identifies a bundle: "sha256:" and the hex SHA-256 of its document in canonical form."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return "sha256:" + _sha256(text.encode())
