"""The samples file: <configuration, accuracy, BatchNorm statistics> of many subnets, as one `.npz`."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eqnet_core.errors import TrainingError
from eqnet_core.space import BIT_WIDTHS, FORMS, LayerSpec, SearchSpace, SubnetConfiguration
from eqnet_core.training.run import write_atomically

_ROWS = ("form", "narrow_range", "weight_bits", "activation_bits", "correct", "means", "variances")


@dataclass(frozen=True, kw_only=True)
class Samples:
    """N measured subnets of one supernet with L searchable layers and C BatchNorm channels.

    `form` int8 [N], an index into `FORMS`; `narrow_range` bool [N]; `weight_bits`, `activation_bits` int8
    [N, L], as effective on runtimes with unsigned activations. `correct` int32 [N, 2]: correctly classified
    images of two disjoint halves of the held-out images, out of `evaluated` int32 [2]. `means`, `variances`
    float32 [N, C]: the calibrated statistics of `batch_norms` (name, channels), one after the other in
    module order.

    Raises:
        TrainingError: arrays that do not fit together or hold impossible values.
    """

    space: SearchSpace
    form: NDArray[np.int8]
    narrow_range: NDArray[np.bool_]
    weight_bits: NDArray[np.int8]
    activation_bits: NDArray[np.int8]
    correct: NDArray[np.int32]
    evaluated: NDArray[np.int32]
    means: NDArray[np.float32]
    variances: NDArray[np.float32]
    batch_norms: tuple[tuple[str, int], ...]

    def __post_init__(self) -> None:
        count, layers = len(self.form), len(self.space.searchable)
        channels = sum(size for _, size in self.batch_norms)
        shapes = {
            "form": (count,),
            "narrow_range": (count,),
            "weight_bits": (count, layers),
            "activation_bits": (count, layers),
            "correct": (count, 2),
            "evaluated": (2,),
            "means": (count, channels),
            "variances": (count, channels),
        }
        for name, shape in shapes.items():
            found = getattr(self, name).shape
            if found != shape:
                raise TrainingError(f"samples: {name} has shape {found}, expected {shape}")
        bits = (self.weight_bits, self.activation_bits)
        problems = {
            "evaluated must be positive": (self.evaluated <= 0).any(),
            "correct must be between 0 and evaluated": (
                (self.correct < 0) | (self.correct > self.evaluated)
            ).any(),
            f"form must be 0..{len(FORMS) - 1}": ((self.form < 0) | (self.form >= len(FORMS))).any(),
            "bit-widths must be 2..8": any(not np.isin(values, BIT_WIDTHS).all() for values in bits),
            "means and variances must be finite": not (
                np.isfinite(self.means).all() and np.isfinite(self.variances).all()
            ),
            "variances must not be negative": (self.variances < 0).any(),
        }
        wrong = [text for text, found in problems.items() if found]
        if wrong:
            raise TrainingError(f"samples: {'; '.join(wrong)}")

    def __len__(self) -> int:
        return len(self.form)

    @property
    def accuracy(self) -> NDArray[np.float64]:
        """Share of all held-out images classified correctly, [N]."""
        total: NDArray[np.float64] = self.correct.sum(axis=1) / self.evaluated.sum()
        return total

    @property
    def half_accuracy(self) -> NDArray[np.float64]:
        """The same on each of the two halves, [N, 2]."""
        halves: NDArray[np.float64] = self.correct / self.evaluated
        return halves

    def configuration(self, row: int) -> SubnetConfiguration:
        """The configuration of one sample."""
        return SubnetConfiguration(
            form=FORMS[self.form[row]],
            weight_bits=tuple(int(bits) for bits in self.weight_bits[row]),
            activation_bits=tuple(int(bits) for bits in self.activation_bits[row]),
            narrow_range=bool(self.narrow_range[row]),
        )

    def features(self) -> NDArray[np.float32]:
        """`SearchSpace.encode` of all samples, [N, encoding_size]."""
        return self.space.encode([self.configuration(row) for row in range(len(self))])

    def select(self, rows: NDArray[Any]) -> Samples:
        """The samples at `rows`: indices or a mask."""
        changed = {name: getattr(self, name)[rows] for name in _ROWS}
        kept = {field.name: getattr(self, field.name) for field in fields(self)}
        return Samples(**{**kept, **changed})

    def save(self, path: Path) -> None:
        """Write the file; a reader finds the old one or all of the new one."""
        buffer = io.BytesIO()
        np.savez(
            buffer,
            space=np.array(json.dumps([asdict(layer) for layer in self.space.layers])),
            batch_norms=np.array(json.dumps([list(entry) for entry in self.batch_norms])),
            evaluated=self.evaluated,
            **{name: getattr(self, name) for name in _ROWS},
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, buffer.getvalue())

    @classmethod
    def load(cls, path: Path) -> Samples:
        """Read a samples file.

        Raises:
            TrainingError: no such file, or it is damaged or not a samples file.
        """
        try:
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as archive:
                layers = json.loads(str(archive["space"]))
                return cls(
                    space=SearchSpace(tuple(LayerSpec(**layer) for layer in layers)),
                    batch_norms=tuple(
                        (str(name), int(channels))
                        for name, channels in json.loads(str(archive["batch_norms"]))
                    ),
                    evaluated=archive["evaluated"],
                    **{name: archive[name] for name in _ROWS},
                )
        except FileNotFoundError as error:
            raise TrainingError(f"no samples at {path}: run the sampling stage first") from error
        except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
            raise TrainingError(f"{path} is not a samples file: {error}") from error


def concatenate(parts: Sequence[Samples]) -> Samples:
    """All samples of `parts`, in order.

    Raises:
        TrainingError: nothing to concatenate, or parts of different supernets or held-out images.
    """
    if not parts:
        raise TrainingError("no samples to put together")
    first = parts[0]
    for other in parts[1:]:
        same = (
            other.space == first.space
            and other.batch_norms == first.batch_norms
            and np.array_equal(other.evaluated, first.evaluated)
        )
        if not same:
            raise TrainingError("samples of different supernets or held-out images cannot be put together")
    rows = {name: np.concatenate([getattr(part, name) for part in parts]) for name in _ROWS}
    return Samples(space=first.space, batch_norms=first.batch_norms, evaluated=first.evaluated, **rows)


def append(path: Path, batch: Samples) -> Samples:
    """Add `batch` to the file at `path` (made if missing) and return all samples in it. Atomic.

    The whole file is written anew, so append some tens of samples at a time.

    Raises:
        TrainingError: the file is damaged, or holds samples of another supernet or other held-out images.
    """
    samples = concatenate([Samples.load(path), batch]) if path.exists() else batch
    samples.save(path)
    return samples
