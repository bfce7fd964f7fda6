"""Which subnets a training step and the accuracy samples draw."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from eqnet_core.space import BIT_WIDTHS, FORMS, QuantizationForm, SearchSpace, SubnetConfiguration, Symmetry

NARROW_RANGE_SHARE = 0.2
"""Part of the subnets with symmetric weights that go without the lowest weight code, as LiteRT wants it."""


def sandwich(
    space: SearchSpace, generator: np.random.Generator
) -> tuple[SubnetConfiguration, SubnetConfiguration, SubnetConfiguration]:
    """Highest, random and lowest bits (the sandwich rule), each with a whole-network form of its own.

    A form is drawn for the network as a whole because that is how a device has it.
    """
    count = len(space.searchable)

    def draw(weight_bits: NDArray[np.int64], activation_bits: NDArray[np.int64]) -> SubnetConfiguration:
        form = FORMS[generator.integers(len(FORMS))]
        return SubnetConfiguration(
            form=form,
            weight_bits=tuple(weight_bits.tolist()),
            activation_bits=tuple(activation_bits.tolist()),
            narrow_range=_draw_narrow_range(form, generator),
        )

    highest = np.full(count, BIT_WIDTHS[-1])
    lowest = np.full(count, BIT_WIDTHS[0])
    random = generator.integers(BIT_WIDTHS[0], BIT_WIDTHS[-1] + 1, size=(2, count))
    return draw(highest, highest), draw(random[0], random[1]), draw(lowest, lowest)


def spread_bits(count: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """Bit-widths [count] whose average is spread evenly over 2..8 from draw to draw.

    Independent uniform bits would all average near 5. Each layer is drawn around a target average, with a
    spread of its own, and single layers are then moved by one bit until the average meets the target.
    """
    target = generator.uniform(BIT_WIDTHS[0], BIT_WIDTHS[-1])
    spread = generator.uniform(0.0, 2.5)
    bits = np.clip(np.rint(generator.normal(target, spread, count)), BIT_WIDTHS[0], BIT_WIDTHS[-1])
    for _ in range(6 * count):
        gap = target * count - bits.sum()
        if abs(gap) < 1:
            break
        movable = np.flatnonzero(bits < BIT_WIDTHS[-1] if gap > 0 else bits > BIT_WIDTHS[0])
        bits[generator.choice(movable)] += np.sign(gap)
    return bits.astype(np.int64)


def sample_configuration(
    space: SearchSpace, index: int, generator: np.random.Generator
) -> SubnetConfiguration:
    """The `index`-th configuration to measure: forms in turn, the uniform nets first, then spread averages.

    The first 8 x 7 are every form at every uniform bit-width; one in five of the others has narrow range.
    """
    form = FORMS[index % len(FORMS)]
    if index < len(FORMS) * len(BIT_WIDTHS):
        return space.uniform(form, BIT_WIDTHS[index // len(FORMS)])
    count = len(space.searchable)
    return SubnetConfiguration(
        form=form,
        weight_bits=tuple(spread_bits(count, generator).tolist()),
        activation_bits=tuple(spread_bits(count, generator).tolist()),
        narrow_range=_draw_narrow_range(form, generator),
    )


def _draw_narrow_range(form: QuantizationForm, generator: np.random.Generator) -> bool:
    return form.weight_symmetry is Symmetry.SYMMETRIC and bool(generator.random() < NARROW_RANGE_SHARE)
