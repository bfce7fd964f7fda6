"""Which subnets a training step and the accuracy samples draw."""

from __future__ import annotations

from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from eqnet_core.cost import CostModel
from eqnet_core.errors import TrainingError
from eqnet_core.profile import Budget, DeviceProfile, SearchSettings
from eqnet_core.search import AccuracyPredicting, search
from eqnet_core.space import FORMS, QuantizationForm, SearchSpace, SubnetConfiguration, Symmetry

NARROW_RANGE_SHARE = 0.2
"""Part of the subnets with symmetric weights that go without the lowest weight code, as LiteRT wants it."""


class RandomBits(StrEnum):
    """How the bits of a training step's random subnet are drawn."""

    INDEPENDENT = "independent"
    """Each layer's by itself, as EQ-Net does: nearly all averages are then near 5."""
    SPREAD = "spread"
    """Averages spread evenly over all that the network has (`spread_bits`)."""
    SEARCHED = "searched"
    """Every other one as spread, the others by a search (`searched_configuration`): what will be handed out
    is trained most, as in AttentiveNAS (Wang et al. 2021, arXiv:2011.09011)."""


def sandwich(
    space: SearchSpace,
    generator: np.random.Generator,
    random_bits: RandomBits = RandomBits.INDEPENDENT,
    predictor: AccuracyPredicting | None = None,
) -> tuple[SubnetConfiguration, SubnetConfiguration, SubnetConfiguration]:
    """Highest, random and lowest bits (the sandwich rule), each with a whole-network form of its own.

    A form is drawn for the network as a whole because that is how a device has it. `predictor` is what
    `RandomBits.SEARCHED` searches with.

    Raises:
        TrainingError: a search without a predictor.
    """
    count, widths = len(space.searchable), space.bit_widths

    def draw(weight_bits: NDArray[np.int64], activation_bits: NDArray[np.int64]) -> SubnetConfiguration:
        form = FORMS[generator.integers(len(FORMS))]
        return SubnetConfiguration(
            form=form,
            weight_bits=tuple(weight_bits.tolist()),
            activation_bits=tuple(activation_bits.tolist()),
            narrow_range=_draw_narrow_range(form, generator),
        )

    highest = np.full(count, widths[-1])
    lowest = np.full(count, widths[0])
    if random_bits is RandomBits.SEARCHED and generator.random() < 0.5:
        if predictor is None:
            raise TrainingError("random bits can only be searched with an accuracy predictor")
        random = searched_configuration(space, predictor, int(generator.integers(len(FORMS))), generator)
    elif random_bits is RandomBits.INDEPENDENT:
        bits = generator.integers(widths[0], widths[-1] + 1, size=(2, count))
        random = draw(bits[0], bits[1])
    else:
        random = draw(spread_bits(space, generator), spread_bits(space, generator))
    return draw(highest, highest), random, draw(lowest, lowest)


def spread_bits(space: SearchSpace, generator: np.random.Generator) -> NDArray[np.int64]:
    """Bits of one side [L], whose average is spread evenly over the network's bit-widths from draw to draw.

    Independent uniform bits would all average near 5. Each layer is drawn around a target average, with a
    spread of its own, and single layers are then moved by one bit until the average meets the target.
    """
    count, lowest, highest = len(space.searchable), space.bit_widths[0], space.bit_widths[-1]
    target = generator.uniform(lowest, highest)
    spread = generator.uniform(0.0, 2.5)
    bits = np.clip(np.rint(generator.normal(target, spread, count)), lowest, highest)
    for _ in range(6 * count):
        gap = target * count - bits.sum()
        if abs(gap) < 1:
            break
        movable = np.flatnonzero(bits < highest if gap > 0 else bits > lowest)
        bits[generator.choice(movable)] += np.sign(gap)
    return bits.astype(np.int64)


def first_mixed(space: SearchSpace) -> int:
    """From this index on, `sample_configuration` gives mixed ones; before come every form at every uniform
    bit-width, 8 x 7 where the network has 2..8."""
    return len(FORMS) * len(space.bit_widths)


def sample_configuration(
    space: SearchSpace, index: int, generator: np.random.Generator
) -> SubnetConfiguration:
    """The `index`-th configuration to measure: forms in turn, the uniform nets first, then spread averages.

    One in five of those behind `first_mixed` with symmetric weights has narrow range.
    """
    form = FORMS[index % len(FORMS)]
    if index < first_mixed(space):
        return space.uniform(form, space.bit_widths[index // len(FORMS)])
    return SubnetConfiguration(
        form=form,
        weight_bits=tuple(spread_bits(space, generator).tolist()),
        activation_bits=tuple(spread_bits(space, generator).tolist()),
        narrow_range=_draw_narrow_range(form, generator),
    )


def spread_encodings(space: SearchSpace, count: int, generator: np.random.Generator) -> NDArray[np.float32]:
    """Encodings [N, encoding_size] of about `count` subnets, drawn much as samples are, but at once."""
    layers, lowest, highest = len(space.searchable), space.bit_widths[0], space.bit_widths[-1]
    parts = []
    for form in FORMS:
        for narrow_range in (False, True) if form.weight_symmetry is Symmetry.SYMMETRIC else (False,):
            share = NARROW_RANGE_SHARE if narrow_range else 1.0
            rows = max(1, round(share * count / (len(FORMS) * (1 + NARROW_RANGE_SHARE / 2))))
            target = generator.uniform(lowest - 0.4, highest + 0.4, (2, rows, 1))
            width = generator.uniform(0, 3, (2, rows, 1))
            drawn = np.rint(target + width * generator.standard_normal((2, rows, layers)))
            bits = np.clip(drawn, lowest, highest).astype(np.int64)
            parts.append(space.encode_population(form, bits[0], bits[1], narrow_range=narrow_range))
    return np.concatenate(parts)


def searched_configuration(
    space: SearchSpace, predictor: AccuracyPredicting, index: int, generator: np.random.Generator
) -> SubnetConfiguration:
    """The `index`-th configuration that `predictor` would have a device take: forms in turn, random budgets.

    A search finds the subnets that a predictor overrates, which random ones hardly ever tell. Some searches
    are short, so that what they find is not always the same. Budgets are low more often than high: there the
    choice of bits matters most.
    """
    form = FORMS[index % len(FORMS)]
    narrow_range = _draw_narrow_range(form, generator)
    averages = space.bit_widths[0] + 0.2 + 4.3 * generator.beta(1.0, 1.7, size=2)
    if generator.random() < 0.5:
        averages[1] = averages[0]
    profile = DeviceProfile(
        weight_bits=space.bit_widths,
        weight_granularity=form.weight_granularity,
        weight_symmetry=form.weight_symmetry,
        narrow_range=narrow_range,
        activation_bits=space.bit_widths,
        activation_symmetry=form.activation_symmetry,
    )
    return search(
        space=space,
        predictor=predictor,
        costs=CostModel(space),
        profile=profile,
        budget=Budget(weight_bits=float(averages[0]), activation_bits=float(averages[1])),
        settings=SearchSettings(
            population=int(generator.integers(20, 60)),
            generations=int(generator.integers(10, 120)),
            seed=int(generator.integers(2**31)),
        ),
    ).configuration


def _draw_narrow_range(form: QuantizationForm, generator: np.random.Generator) -> bool:
    return form.weight_symmetry is Symmetry.SYMMETRIC and bool(generator.random() < NARROW_RANGE_SHARE)
