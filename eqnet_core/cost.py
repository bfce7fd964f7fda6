"""What a subnet costs: average bits, packed bytes, bit operations, compression.

Every budgeted quantity is linear in the weight bits, linear in the activation bits, or (bit operations) in
their product per layer, and is an integer until the last division: a subnet that meets a budget meets it
exactly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eqnet_core.space import (
    FIXED_BITS,
    FORMS,
    Granularity,
    QuantizationForm,
    SearchSpace,
    SubnetConfiguration,
    Symmetry,
)

STEP_SIZE_BYTES = 4
"""A step size is stored as float32."""

ZERO_POINT_BYTES = 1
"""A zero-point lies within the codes' own range, hence fits one byte; symmetric quantisers store none."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one subnet costs; `CostModel` says how each is counted.

    `weight_bits`, `activation_bits`: averages over the searchable layers. `model_bytes`: bytes.
    `bit_operations`: MACs x weight bits x activation bits for one image. `compression`: bytes of the float32
    model over `model_bytes`.
    """

    weight_bits: float
    activation_bits: float
    model_bytes: int
    bit_operations: float
    compression: float

    def to_json(self) -> dict[str, float | int]:
        """The `cost` object of the HTTP contract."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


class CostModel:
    """Costs of every subnet of one search space.

    - averages (docs/method.md section 4): sum of elements x bits over sum of elements, searchable layers;
    - model bytes: all weights at their true bits packed end to end (first and last layer at 8 bits), rounded
      up to a byte, plus float32 for every parameter that stays in floating point, 4 bytes per step size (one
      or one per output channel for weights, one for activations) and 1 byte per zero-point of an asymmetric
      quantiser;
    - bit operations: sum over all layers of MACs x weight bits x activation bits;
    - activation bits are those that the codes really use: at most 7 for non-negative inputs where the runtime
      is signed (`SearchSpace.effective_activation_bits`).

    Raises:
        ValueError: a space without searchable layers, or a layer without weights or inputs.
    """

    def __init__(self, space: SearchSpace) -> None:
        searchable = space.searchable
        if not searchable or any(layer.weights <= 0 or layer.inputs <= 0 for layer in searchable):
            raise ValueError("costs need at least one searchable layer, each with weights and inputs")
        fixed = [layer for layer in space.layers if not layer.searchable]
        self.space = space
        self.weights: NDArray[np.int64] = np.array([layer.weights for layer in searchable], dtype=np.int64)
        self.inputs: NDArray[np.int64] = np.array([layer.inputs for layer in searchable], dtype=np.int64)
        self.macs: NDArray[np.int64] = np.array([layer.macs for layer in searchable], dtype=np.int64)
        self.fixed_weight_bits = FIXED_BITS * sum(layer.weights for layer in fixed)
        self.float_bytes = 4 * sum(layer.weights + layer.float_parameters for layer in space.layers)
        self._fixed = fixed
        self._all_weights, self._all_inputs = int(self.weights.sum()), int(self.inputs.sum())
        self._overhead_bytes = {form: self._count_overhead(form) for form in FORMS}

    def fixed_bit_operations(self, *, signed: bool) -> int:
        """Bit operations of the first and the last layer."""
        return sum(
            layer.macs * FIXED_BITS * (FIXED_BITS - 1 if signed and layer.nonnegative else FIXED_BITS)
            for layer in self._fixed
        )

    def overhead_bytes(self, form: QuantizationForm) -> int:
        """Bytes besides the packed weights: float32 parameters, step sizes and zero-points."""
        return self._overhead_bytes[form]

    def _count_overhead(self, form: QuantizationForm) -> int:
        layers = self.space.layers
        per_channel = form.weight_granularity is Granularity.PER_CHANNEL
        weight_steps = sum(layer.output_channels if per_channel else 1 for layer in layers)
        weight_zeros = weight_steps if form.weight_symmetry is Symmetry.ASYMMETRIC else 0
        activation_zeros = len(layers) if form.activation_symmetry is Symmetry.ASYMMETRIC else 0
        return (
            4 * sum(layer.float_parameters for layer in layers)
            + STEP_SIZE_BYTES * (weight_steps + len(layers))
            + ZERO_POINT_BYTES * (weight_zeros + activation_zeros)
        )

    def evaluate(
        self,
        form: QuantizationForm,
        weight_bits: NDArray[Any],
        activation_bits: NDArray[Any],
        *,
        signed: bool = False,
    ) -> Mapping[str, NDArray[Any]]:
        """The fields of `Cost` as arrays [N], for bits [N, L] of N subnets that share one form."""
        weights = weight_bits.astype(np.int64, copy=False)
        effective = self.space.effective_activation_bits(activation_bits, signed=signed)
        activations = effective.astype(np.int64, copy=False)
        packed_bits = weights @ self.weights
        model_bytes = (packed_bits + self.fixed_weight_bits + 7) // 8 + self.overhead_bytes(form)
        operations = (weights * activations) @ self.macs + self.fixed_bit_operations(signed=signed)
        return {
            "weight_bits": packed_bits / self._all_weights,
            "activation_bits": (activations @ self.inputs) / self._all_inputs,
            "model_bytes": model_bytes,
            "bit_operations": operations.astype(np.float64),
            "compression": self.float_bytes / model_bytes,
        }

    def of_all(self, configurations: Sequence[SubnetConfiguration]) -> list[Cost]:
        """`of` for many subnets, in order, a few microseconds each.

        Raises:
            InvalidConfigurationError: as `of`.
        """
        alike: dict[tuple[QuantizationForm, bool], list[int]] = {}
        for position, configuration in enumerate(configurations):
            self.space.check(configuration)
            alike.setdefault((configuration.form, configuration.signed), []).append(position)
        costs: dict[int, Cost] = {}
        for (form, signed), positions in alike.items():
            columns = self.evaluate(
                form,
                np.array([configurations[position].weight_bits for position in positions]),
                np.array([configurations[position].activation_bits for position in positions]),
                signed=signed,
            )
            rows = zip(*(column.tolist() for column in columns.values()), strict=True)
            for position, values in zip(positions, rows, strict=True):
                costs[position] = Cost(**dict(zip(columns, values, strict=True)))
        return [costs[position] for position in range(len(configurations))]

    def of(self, configuration: SubnetConfiguration) -> Cost:
        """The cost of one subnet.

        Raises:
            InvalidConfigurationError: not one bit-width per searchable layer.
        """
        return self.of_all([configuration])[0]
