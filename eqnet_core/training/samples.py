"""The samples files: configurations with what was measured of them, as `.npz`."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from eqnet_core.errors import TrainingError
from eqnet_core.files import write_atomically
from eqnet_core.space import BIT_WIDTHS, FORMS, LayerSpec, SearchSpace, SubnetConfiguration

SPREAD = 0
"""`Subnets.draw` of configurations that are spread over the space, rather than found by a search."""

_SHARED = ("space", "batch_norms", "images", "views")


@dataclass(frozen=True, kw_only=True)
class Subnets:
    """N configurations of one supernet with L searchable layers.

    `draw` int32 [N] and `index` int32 [N] say which: the `index`-th of the random ones (`draw` `SPREAD`) or
    of those that one predictor led a search to (any other). `form` int8 [N], an index into `FORMS`;
    `narrow_range` bool [N]; `weight_bits`, `activation_bits` int8 [N, L], as effective on runtimes with
    unsigned activations.

    Raises:
        TrainingError: arrays that do not fit together or hold impossible values.
    """

    space: SearchSpace
    draw: NDArray[np.int32]
    index: NDArray[np.int32]
    form: NDArray[np.int8]
    narrow_range: NDArray[np.bool_]
    weight_bits: NDArray[np.int8]
    activation_bits: NDArray[np.int8]

    def __post_init__(self) -> None:
        for name, shape in self._shapes().items():
            found = getattr(self, name).shape
            if found != shape:
                raise TrainingError(f"samples: {name} has shape {found}, expected {shape}")
        wrong = [text for text, found in self._problems().items() if found]
        if wrong:
            raise TrainingError(f"samples: {'; '.join(wrong)}")

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        count, layers = len(self.form), len(self.space.searchable)
        one = dict.fromkeys(("draw", "index", "form", "narrow_range"), (count,))
        return {**one, "weight_bits": (count, layers), "activation_bits": (count, layers)}

    def _problems(self) -> dict[str, bool]:
        bits = (self.weight_bits, self.activation_bits)
        return {
            f"form must be 0..{len(FORMS) - 1}": bool(((self.form < 0) | (self.form >= len(FORMS))).any()),
            "bit-widths must be 2..8": any(not np.isin(values, BIT_WIDTHS).all() for values in bits),
        }

    def __len__(self) -> int:
        return len(self.form)

    def configuration(self, row: int) -> SubnetConfiguration:
        """The configuration of one sample."""
        return SubnetConfiguration(
            form=FORMS[self.form[row]],
            weight_bits=tuple(int(bits) for bits in self.weight_bits[row]),
            activation_bits=tuple(int(bits) for bits in self.activation_bits[row]),
            narrow_range=bool(self.narrow_range[row]),
        )

    def configurations(self) -> list[SubnetConfiguration]:
        """All of them, in order."""
        return [self.configuration(row) for row in range(len(self))]

    def features(self) -> NDArray[np.float32]:
        """`SearchSpace.encode` of all samples, [N, encoding_size]."""
        return self.space.encode(self.configurations())

    def select(self, rows: NDArray[Any]) -> Self:
        """The samples at `rows`: indices or a mask."""
        return type(self)(
            **{
                field.name: value if field.name in _SHARED else value[rows]
                for field in fields(self)
                for value in [getattr(self, field.name)]
            }
        )

    def save(self, path: Path) -> None:
        """Write the file; a reader finds the old one or all of the new one."""
        buffer = io.BytesIO()
        arrays = {field.name: getattr(self, field.name) for field in fields(self)}
        arrays["space"] = np.array(json.dumps([asdict(layer) for layer in self.space.layers]))
        if "batch_norms" in arrays:
            arrays["batch_norms"] = np.array(json.dumps(arrays["batch_norms"]))
        np.savez(buffer, **arrays)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, buffer.getvalue())

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a samples file.

        Raises:
            TrainingError: no such file, or it is damaged or not a samples file.
        """
        try:
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as archive:
                values: dict[str, Any] = {
                    field.name: archive[field.name] for field in fields(cls) if field.name in archive
                }
            layers = json.loads(str(values["space"]))
            values["space"] = SearchSpace(tuple(LayerSpec(**layer) for layer in layers))
            if "batch_norms" in values:
                entries = json.loads(str(values["batch_norms"]))
                values["batch_norms"] = tuple((str(name), int(channels)) for name, channels in entries)
            if "images" in values:
                # older versions knew no views
                values.setdefault("plain_accuracy", values["half_accuracy"].mean(axis=1))
                values |= {name: int(values.get(name, 0)) for name in ("images", "views")}
            return cls(**values)
        except FileNotFoundError as error:
            raise TrainingError(f"no samples at {path}: run the stage that measures them first") from error
        except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
            raise TrainingError(f"{path} is not a samples file: {error}") from error


@dataclass(frozen=True, kw_only=True)
class Samples(Subnets):
    """Subnets and their accuracy as delivered, that is, with predicted BatchNorm statistics.

    `half_accuracy` float64 [N, 2]: top-1 on the held-out images, as two disjoint halves of a panel of
    `images` of them tell it (see `training.panel`), as they are and in other views, of which a panel has
    `views` (see `training.augmentation`; 0: as they are alone). `plain_accuracy` float64 [N]: on the images
    as they are.
    `smooth_accuracy` float64 [N]: on training images drawn for each subnet alone, where an image on the verge
    counts half (see `training.pool`); on both panels where none were drawn.
    """

    half_accuracy: NDArray[np.float64]
    plain_accuracy: NDArray[np.float64]
    smooth_accuracy: NDArray[np.float64]
    images: int
    views: int

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        one = dict.fromkeys(("plain_accuracy", "smooth_accuracy"), (len(self),))
        return {**super()._shapes(), "half_accuracy": (len(self), 2), **one}

    def _problems(self) -> dict[str, bool]:
        # not a number is no fraction either
        every = np.column_stack([self.half_accuracy, self.plain_accuracy, self.smooth_accuracy])
        fractions = (every >= 0) & (every <= 1)
        return {
            **super()._problems(),
            "accuracies must be 0..1": not fractions.all(),
            "images must be positive": self.images <= 0,
            "views must not be negative": self.views < 0,
        }

    @property
    def accuracy(self) -> NDArray[np.float64]:
        """Top-1 on both halves, in all views, [N]."""
        both: NDArray[np.float64] = self.half_accuracy.mean(axis=1)
        return both


@dataclass(frozen=True, kw_only=True)
class Calibrations(Subnets):
    """Subnets and their calibrated BatchNorm statistics, C channels in all.

    `means`, `variances` float32 [N, C]: those of `batch_norms` (name, channels), one after the other in
    module order.
    """

    means: NDArray[np.float32]
    variances: NDArray[np.float32]
    batch_norms: tuple[tuple[str, int], ...]

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        channels = sum(size for _, size in self.batch_norms)
        return {**super()._shapes(), "means": (len(self), channels), "variances": (len(self), channels)}

    def _problems(self) -> dict[str, bool]:
        finite = np.isfinite(self.means).all() and np.isfinite(self.variances).all()
        return {
            **super()._problems(),
            "means and variances must be finite": not finite,
            "variances must not be negative": bool((self.variances < 0).any()),
        }


Kind = TypeVar("Kind", bound=Subnets)


def concatenate(parts: Sequence[Kind]) -> Kind:
    """All samples of `parts`, in order.

    Raises:
        TrainingError: nothing to concatenate, or parts of different supernets or held-out images.
    """
    if not parts:
        raise TrainingError("no samples to put together")
    first = parts[0]
    shared = [field.name for field in fields(first) if field.name in _SHARED]
    rows = [field.name for field in fields(first) if field.name not in _SHARED]
    for other in parts[1:]:
        if any(getattr(other, name) != getattr(first, name) for name in shared):
            raise TrainingError("samples of different supernets or held-out images cannot be put together")
    columns: dict[str, Any] = {name: np.concatenate([getattr(part, name) for part in parts]) for name in rows}
    return type(first)(**columns, **{name: getattr(first, name) for name in shared})


def append(path: Path, batch: Kind) -> Kind:
    """Add `batch` to the file at `path` (made if missing) and return all samples in it. Atomic.

    The whole file is written anew, so append some tens of samples at a time.

    Raises:
        TrainingError: the file is damaged, or holds samples of another supernet or other held-out images.
    """
    samples = concatenate([type(batch).load(path), batch]) if path.exists() else batch
    samples.save(path)
    return samples


def gather(folder: Path, kind: type[Kind]) -> Kind | None:
    """The samples of all shards in `folder`, by draw and index, each once; None if there is no file."""
    paths = sorted(folder.glob("samples-*.npz"))
    if not paths:
        return None
    together = concatenate([kind.load(path) for path in paths])
    _, first = np.unique(np.stack([together.draw, together.index]), axis=1, return_index=True)
    return together.select(first)


def configuration_columns(
    configurations: Sequence[SubnetConfiguration],
) -> dict[str, NDArray[Any]]:
    """The columns of `Subnets` that describe `configurations`."""
    return {
        "form": np.array([c.form.index for c in configurations], dtype=np.int8),
        "narrow_range": np.array([c.narrow_range for c in configurations]),
        "weight_bits": np.array([c.weight_bits for c in configurations], dtype=np.int8),
        "activation_bits": np.array([c.activation_bits for c in configurations], dtype=np.int8),
    }
