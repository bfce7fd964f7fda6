"""The search's view of one request: which bits each layer may take, and what each choice costs.

A *code* is one choice of bits for one gene, where gene [0, l] is the weight side and gene [1, l] the
activation side of searchable layer l. Codes of a gene are consecutive and ascend in bits, so a step down or
up is -1 or +1 and every property of a choice is one table look-up, for a whole population of codes [..., 2,
L] at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from eqnet_core.cost import Cost, CostModel
from eqnet_core.errors import InfeasibleBudgetError, InvalidProfileError, Violation
from eqnet_core.profile import Budget, DeviceProfile, LayerPin, escape_pointer
from eqnet_core.space import FIXED_BITS, LayerSpec, SearchSpace, SubnetConfiguration

Codes = NDArray[np.int64]
"""Choices of bits: [..., 2, L], or a table indexed by one."""

NEVER = np.int64(2**62)
"""What a step costs that cannot be taken."""


@dataclass(frozen=True, kw_only=True)
class Genome:
    """Tables over codes, and the budget as integers.

    `emitted`: the bits that the configuration names; `effective`: the bits that the codes really use; `size`:
    elements x effective bits; `down`/`up` (`down_bits`/`up_bits`): what `size` (`effective`) loses or gains
    by the next step, 0 or `NEVER` (0) where there is none. `lowest`, `highest` [2, L]: the codes of each
    gene. `limits` [2]: upper bounds on the sums of `size` over each side; `operations_limit`: upper bound on
    MACs x weight x activation bits over the searchable layers, or None where it can never be reached.
    """

    space: SearchSpace
    profile: DeviceProfile
    emitted: Codes
    effective: Codes
    size: Codes
    down: Codes
    up: Codes
    down_bits: Codes
    up_bits: Codes
    lowest: Codes
    highest: Codes
    macs: NDArray[np.int64]
    limits: NDArray[np.int64]
    operations_limit: int | None

    @property
    def choices(self) -> int:
        """How many combinations of codes there are, within the budget or not."""
        product = 1
        for count in (self.highest - self.lowest + 1).ravel().tolist():
            product *= count
        return product

    @property
    def most_steps(self) -> int:
        """The most steps that any gene can take from its highest code to its lowest."""
        return int((self.highest - self.lowest).max())

    def operations(self, codes: Codes) -> NDArray[np.int64]:
        """Bit operations of the searchable layers, [...]."""
        bits = self.effective.take(codes)
        return (bits[..., 0, :] * bits[..., 1, :]) @ self.macs

    def feasible(self, codes: Codes) -> NDArray[np.bool_]:
        """Which of [..., 2, L] meet the budget, [...]."""
        within: NDArray[np.bool_] = (self.size.take(codes).sum(axis=-1) <= self.limits).all(axis=-1)
        if self.operations_limit is not None:
            within &= self.operations(codes) <= self.operations_limit
        return within

    def at_most(self, bits: NDArray[np.int64]) -> Codes:
        """The highest codes of at most `bits` [..., 2, L] effective bits, or the lowest where there are
        none."""
        codes = np.broadcast_to(self.lowest, bits.shape).copy()
        for _ in range(self.most_steps):
            above = codes + 1
            codes += (codes < self.highest) & (self.effective.take(above, mode="clip") <= bits)
        return codes

    def features(self, codes: Codes) -> NDArray[np.float32]:
        """Predictor input [N, encoding_size] of codes [N, 2, L]."""
        features = np.empty((len(codes), self.space.encoding_size), dtype=np.float32)
        features[:] = self._encoded_head
        rows = np.arange(0, features.size, features.shape[1])
        features.ravel()[self._columns.take(codes) + rows[:, None, None]] = 1.0
        return features

    @cached_property
    def _encoded_head(self) -> NDArray[np.float32]:
        """What all subnets of the request share, [encoding_size]: no bits are set."""
        head: NDArray[np.float32] = self._encoded(self.lowest[None])[0]
        head[self._columns.take(self.lowest)] = 0.0
        return head

    @cached_property
    def _columns(self) -> Codes:
        """The column of the encoding that each code sets, found by setting it."""
        columns = np.empty(len(self.emitted), dtype=np.int64)
        for step in range(self.most_steps + 1):
            codes = np.minimum(self.lowest + step, self.highest)
            # One column is set per gene, in order, behind what all subnets share.
            columns[codes.ravel()] = self._encoded(codes[None])[0].nonzero()[0][-codes.size :]
        return columns

    def _encoded(self, codes: Codes) -> NDArray[np.float32]:
        bits = self.emitted.take(codes)
        return self.space.encode_population(
            self.profile.form,
            bits[:, 0],
            bits[:, 1],
            narrow_range=self.profile.narrow_range,
            signed=self.profile.signed,
        )

    def configuration(self, codes: Codes) -> SubnetConfiguration:
        """The subnet that codes [2, L] stand for."""
        bits = self.emitted.take(codes)
        return SubnetConfiguration(
            form=self.profile.form,
            weight_bits=tuple(bits[0].tolist()),
            activation_bits=tuple(bits[1].tolist()),
            narrow_range=self.profile.narrow_range,
            signed=self.profile.signed,
        )


def build_genome(
    *,
    costs: CostModel,
    profile: DeviceProfile,
    budget: Budget,
    pins: Mapping[str, LayerPin],
    fix_unbounded: bool = True,
) -> Genome:
    """The genome of one request. `fix_unbounded`: a side that the budget says nothing about stays at its
    highest bits.

    Raises:
        InvalidProfileError: a pinned layer that does not exist, or bits that the device does not accept or
            the network does not have.
        InfeasibleBudgetError: no subnet meets the budget; says which one is nearest.
    """
    _check_pins(costs.space, profile, pins)
    profile = _shared(costs.space, profile)
    options = _options(costs.space, profile, pins)
    free = _tables(costs, profile, options)
    _check_feasible(free, costs, budget, pinned=bool(pins))
    if fix_unbounded:
        # Even a bound that nothing can exceed asks for the best within it, as every looser or tighter one.
        kept = [
            side if bounded else [choices[-1:] for choices in side]
            for side, bounded in zip(options, _bounded_sides(budget), strict=True)
        ]
        free = _tables(costs, profile, kept)
    return limit_genome(free, costs, budget)


def _bounded_sides(budget: Budget) -> tuple[bool, bool]:
    """Whether a bound is given that weights, and that activations, add to."""
    both = budget.bit_operations is not None
    weights = both or budget.weight_bits is not None or budget.model_bytes is not None
    return weights, both or budget.activation_bits is not None


def limit_genome(genome: Genome, costs: CostModel, budget: Budget) -> Genome:
    """The same choices under another budget, which must be feasible."""
    limits = genome.size.take(genome.highest).sum(axis=1)
    if budget.weight_bits is not None:
        limits[0] = min(limits[0], _largest_sum(budget.weight_bits, int(costs.weights.sum()), int(limits[0])))
    if budget.activation_bits is not None:
        limits[1] = min(
            limits[1], _largest_sum(budget.activation_bits, int(costs.inputs.sum()), int(limits[1]))
        )
    if budget.model_bytes is not None:
        packed_bytes = budget.model_bytes - costs.overhead_bytes(genome.profile.form)
        limits[0] = min(int(limits[0]), 8 * packed_bytes - costs.fixed_weight_bits)
    operations_limit = None
    if budget.bit_operations is not None:
        available = int(budget.bit_operations) - costs.fixed_bit_operations(signed=genome.profile.signed)
        if available < int(genome.operations(genome.highest)):
            operations_limit = available
    return replace(genome, limits=limits, operations_limit=operations_limit)


def _shared(space: SearchSpace, profile: DeviceProfile) -> DeviceProfile:
    """The profile with the bits that the network has too."""
    weight_bits, activation_bits = (
        tuple(value for value in bits if value in space.bit_widths)
        for bits in (profile.weight_bits, profile.activation_bits)
    )
    violations = [
        Violation(f"/profile/{side}/bits", f"this supernet has none of them: {space.bits_advice}")
        for side, bits in (("weight", weight_bits), ("activation", activation_bits))
        if not bits
    ]
    if violations:
        reasons = "; ".join(f"{v.pointer} {v.detail}" for v in violations)
        raise InvalidProfileError(f"no subnet is for this device: {reasons}", violations=violations)
    return replace(profile, weight_bits=weight_bits, activation_bits=activation_bits)


_Options = list[list[list[tuple[int, int]]]]  # side, layer -> (emitted, effective) bits, ascending


def _options(space: SearchSpace, profile: DeviceProfile, pins: Mapping[str, LayerPin]) -> _Options:
    sides: _Options = [[], []]
    for layer in space.searchable:
        pin = pins.get(layer.name, LayerPin())
        weight_bits = profile.weight_bits if pin.weight_bits is None else (pin.weight_bits,)
        activation_bits = profile.activation_bits if pin.activation_bits is None else (pin.activation_bits,)
        sides[0].append([(bits, bits) for bits in weight_bits])
        sides[1].append(_distinct(activation_bits, layer, profile))
    return sides


def _distinct(bits: Iterable[int], layer: LayerSpec, profile: DeviceProfile) -> list[tuple[int, int]]:
    # On a signed runtime 7 and 8 bits of a non-negative input are the same codes: one choice, named by the
    # higher.
    most = FIXED_BITS - 1 if profile.signed and layer.nonnegative else FIXED_BITS
    by_effective = {min(value, most): value for value in sorted(bits)}
    return [(emitted, effective) for effective, emitted in sorted(by_effective.items())]


def _check_pins(space: SearchSpace, profile: DeviceProfile, pins: Mapping[str, LayerPin]) -> None:
    layers = {layer.name: layer for layer in space.layers}
    violations = []
    for name, pin in pins.items():
        pointer = f"/pinned/{escape_pointer(name)}"
        if name not in layers:
            violations.append(Violation(pointer, f"no such layer: use one of {', '.join(layers)}"))
            continue
        for key, value in pin.to_json().items():
            accepted: dict[str, tuple[int, ...]] = {"the first and the last layer always have": (FIXED_BITS,)}
            if layers[name].searchable:
                accepted = {
                    "the device accepts": getattr(profile, key),
                    "this supernet has": space.bit_widths,
                }
            violations += [
                Violation(f"{pointer}/{key}", f"is {value}, but {who} {', '.join(map(str, bits))} bits")
                for who, bits in accepted.items()
                if value is not None and value not in bits
            ]
    if violations:
        reasons = "; ".join(f"{v.pointer} {v.detail}" for v in violations)
        raise InvalidProfileError(f"layers cannot be pinned like this: {reasons}", violations=violations)


def _tables(costs: CostModel, profile: DeviceProfile, options: _Options) -> Genome:
    elements = np.stack([costs.weights, costs.inputs])
    emitted: list[int] = []
    effective: list[int] = []
    sizes: list[int] = []
    lowest = np.zeros(elements.shape, dtype=np.int64)
    highest = np.zeros(elements.shape, dtype=np.int64)
    for side, layers in enumerate(options):
        for layer, choices in enumerate(layers):
            lowest[side, layer] = len(emitted)
            highest[side, layer] = len(emitted) + len(choices) - 1
            emitted += [value for value, _ in choices]
            effective += [value for _, value in choices]
            sizes += [int(elements[side, layer]) * value for _, value in choices]
    size, bits = np.array(sizes, dtype=np.int64), np.array(effective, dtype=np.int64)
    rising = np.ones(len(size), dtype=bool)
    rising[highest] = False
    falling = np.ones(len(size), dtype=bool)
    falling[lowest] = False
    return Genome(
        space=costs.space,
        profile=profile,
        emitted=np.array(emitted, dtype=np.int64),
        effective=bits,
        size=size,
        down=np.where(falling, size - np.roll(size, 1), 0),
        up=np.where(rising, np.roll(size, -1) - size, NEVER),
        down_bits=np.where(falling, bits - np.roll(bits, 1), 0),
        up_bits=np.where(rising, np.roll(bits, -1) - bits, 0),
        lowest=lowest,
        highest=highest,
        macs=costs.macs,
        limits=size.take(highest).sum(axis=1),
        operations_limit=None,
    )


def _largest_sum(average: float, elements: int, most: int) -> int:
    """The largest whole sum up to `most` whose average, as floating point reports it, stays within
    `average`."""
    if most / elements <= average:
        return most
    total = int(average * elements) + 1
    while total / elements > average:
        total -= 1  # at most a few times: the product above is off by rounding only
    return total


def _check_feasible(genome: Genome, costs: CostModel, budget: Budget, *, pinned: bool) -> None:
    # Every cost rises with every bit, so the subnet of lowest bits has the least of each cost at once: it
    # decides feasibility, and raising each violated bound to its cost gives the nearest feasible budget.
    least: Cost = costs.of(genome.configuration(genome.lowest))
    asked = {name: value for name, value in budget.to_json().items() if value is not None}
    minima = {name: getattr(least, name) for name in asked}
    who = "the device, the supernet and the pinned layers" if pinned else "the device and the supernet"
    violations = [
        Violation(f"/budget/{name}", f"is {value}, but the least that {who} allow is {minima[name]}")
        for name, value in asked.items()
        if value < minima[name]
    ]
    if violations:
        reasons = "; ".join(f"{v.pointer} {v.detail}" for v in violations)
        raise InfeasibleBudgetError(
            f"no subnet meets this budget: {reasons}",
            nearest={name: max(value, minima[name]) for name, value in asked.items()},
            violations=violations,
        )
