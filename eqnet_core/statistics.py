"""BatchNorm statistics from a configuration, without images. NumPy only; see
`training.statistics_fitting`.

Each channel's mean and log-variance, standardised, is the sum of

- a table of the bits and form of the layer in front of the BatchNorm, which rounds exactly the weights that
  make it;
- a linear function of the bits of all layers before it, for what reaches it through its input.

The table starts from what the quantised weights alone say (`training.moments`); the rest of both comes from
one ridge regression. Variances have a floor: a channel whose weights all round to one value is constant, and
dividing by almost nothing would turn the slightest error of its mean into a large activation.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eqnet_core.errors import BundleError
from eqnet_core.space import BIT_WIDTHS, FIXED_BITS, FORMS, SearchSpace, SubnetConfiguration

_NARROW = 2
WEIGHT_ROWS = len(BIT_WIDTHS) * len(FORMS) * _NARROW
"""The first rows of a layer's table: weight bits x form x narrow range."""

TABLE_ROWS = WEIGHT_ROWS + len(BIT_WIDTHS) * len(FORMS)
"""All rows: after those for the weights, activation bits x form.

The whole form, although activations have no granularity: step sizes are learned for each form by itself.
"""

NO_LAYER = -1
"""Stands for the layer in front of a BatchNorm where there is none; such a BatchNorm has no table."""


@dataclass(frozen=True, kw_only=True)
class StatisticsPredictor:
    """B BatchNorms, C channels in all, E = encoding size. Column c is a mean, C + c its log-variance.

    `batch_norms`: (module name, channels) in module order. `owners` int32 [B]: the layer in front of each,
    an index into `space.layers`, or `NO_LAYER`. `table` float16 [TABLE_ROWS, 2C]; `shared` float16 [E, 2C];
    `centre` and `spread` float32 [2C] undo the standardisation; `low` and `high` float32 [2C] bound the
    standardised values to what was seen; `floor` float32 [C] is the least variance.

    Raises:
        BundleError: shapes do not fit together.
    """

    batch_norms: tuple[tuple[str, int], ...]
    owners: NDArray[np.int32]
    table: NDArray[np.float16]
    shared: NDArray[np.float16]
    centre: NDArray[np.float32]
    spread: NDArray[np.float32]
    low: NDArray[np.float32]
    high: NDArray[np.float32]
    floor: NDArray[np.float32]

    def __post_init__(self) -> None:
        channels = sum(count for _, count in self.batch_norms)
        fits = (
            self.owners.shape == (len(self.batch_norms),)
            and np.issubdtype(self.owners.dtype, np.integer)
            and self.table.shape == (TABLE_ROWS, 2 * channels)
            and self.shared.ndim == 2
            and self.shared.shape[1] == 2 * channels
            and all(v.shape == (2 * channels,) for v in (self.centre, self.spread, self.low, self.high))
            and self.floor.shape == (channels,)
        )
        if not fits:
            raise BundleError("the statistics predictor's tensors do not fit together: fit it again")

    def predict(
        self, configuration: SubnetConfiguration, space: SearchSpace
    ) -> dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]]:
        """BatchNorm module name -> (mean [C_b], variance [C_b] > 0), float32, of one subnet.

        Raises:
            InvalidConfigurationError: not one entry per searchable layer, or bits that the network lacks.
            BundleError: fitted for another space.
        """
        encoding = space.encode([configuration])[0]
        if self.shared.shape[0] != len(encoding) or self.owners.max(initial=NO_LAYER) >= len(space.layers):
            raise BundleError("the statistics predictor was fitted for another supernet: fit it again")
        values = self.shared[np.flatnonzero(encoding)].sum(axis=0, dtype=np.float32)
        rows = table_rows([configuration], space)[0]
        channels = self.floor.size
        begin = 0
        for (_, count), owner in zip(self.batch_norms, self.owners, strict=True):
            if owner != NO_LAYER:
                for columns in (
                    slice(begin, begin + count),
                    slice(channels + begin, channels + begin + count),
                ):
                    values[columns] += self.table[rows[owner], columns].sum(axis=0, dtype=np.float32)
            begin += count
        values = np.clip(values, self.low, self.high) * self.spread + self.centre
        # In float64, so that every processor rounds to the same float32.
        exponentials = np.exp(values[channels:].astype(np.float64)).astype(np.float32)
        means, variances = values[:channels], np.maximum(exponentials, self.floor)
        ends = np.cumsum([count for _, count in self.batch_norms])[:-1]
        return {
            name: (mean, variance)
            for (name, _), mean, variance in zip(
                self.batch_norms, np.split(means, ends), np.split(variances, ends), strict=True
            )
        }

    def to_tensors(self) -> dict[str, NDArray[Any]]:
        """Everything `from_tensors` needs, by name."""
        names = json.dumps([list(entry) for entry in self.batch_norms]).encode()
        return {
            "batch_norms": np.frombuffer(names, dtype=np.uint8).copy(),
            "owners": self.owners,
            "table": self.table,
            "shared": self.shared,
            "centre": self.centre,
            "spread": self.spread,
            "low": self.low,
            "high": self.high,
            "floor": self.floor,
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, NDArray[Any]]) -> StatisticsPredictor:
        """Inverse of `to_tensors`.

        Raises:
            BundleError: a tensor is missing or does not fit.
        """
        try:
            names = json.loads(tensors["batch_norms"].tobytes())
            return cls(
                batch_norms=tuple((str(name), int(count)) for name, count in names),
                owners=tensors["owners"],
                table=tensors["table"],
                shared=tensors["shared"],
                centre=tensors["centre"],
                spread=tensors["spread"],
                low=tensors["low"],
                high=tensors["high"],
                floor=tensors["floor"],
            )
        except (KeyError, ValueError, TypeError) as error:
            raise BundleError(f"not a statistics predictor: {error}") from error


def table_rows(configurations: list[SubnetConfiguration], space: SearchSpace) -> NDArray[np.int64]:
    """The two table rows that each configuration selects for each of `space.layers`, int64 [N, layers, 2]."""
    searchable = np.array([layer.searchable for layer in space.layers])
    bits = np.full((2, len(configurations), len(space.layers)), FIXED_BITS)
    for row, configuration in enumerate(configurations):
        bits[0, row, searchable] = configuration.weight_bits
        bits[1, row, searchable] = space.effective_activation_bits(
            np.array(configuration.activation_bits), signed=configuration.signed
        )
    form = np.array([c.form.index for c in configurations])[:, None]
    narrow = np.array([c.narrow_range for c in configurations])[:, None]
    weight, activation = (bits - BIT_WIDTHS[0]) * len(FORMS) + form
    return np.stack([weight * _NARROW + narrow, WEIGHT_ROWS + activation], axis=2)


def find_owners(batch_norms: tuple[tuple[str, int], ...], space: SearchSpace) -> NDArray[np.int32]:
    """The layer in front of each BatchNorm, an index into `space.layers` or `NO_LAYER`, int32 [B].

    Networks name the pair alike: `layer1.0.conv1` and `layer1.0.bn1`, or one after the other in a Sequential.
    """
    positions = {layer.name: position for position, layer in enumerate(space.layers)}
    owners = []
    for name, channels in batch_norms:
        parent, _, last = name.rpartition(".")
        names = [parent + "." * bool(parent) + last.replace("bn", "conv")]
        if last.isdigit():
            names = [f"{parent}.{int(last) - 1}"]
        found = [positions[candidate] for candidate in names if candidate in positions]
        fits = found and space.layers[found[0]].output_channels == channels
        owners.append(found[0] if fits else NO_LAYER)
    return np.array(owners, dtype=np.int32)
