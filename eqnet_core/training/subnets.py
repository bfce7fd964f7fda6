"""Which subnets a training step and the accuracy samples draw."""

from __future__ import annotations

from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from eqnet_core.cost import CostModel
from eqnet_core.errors import TrainingError
from eqnet_core.profile import Budget, DeviceProfile, SearchSettings
from eqnet_core.search import AccuracyPredicting, search
from eqnet_core.space import BIT_WIDTHS, FORMS, QuantizationForm, SearchSpace, SubnetConfiguration, Symmetry

NARROW_RANGE_SHARE = 0.2
"""Part of the subnets with symmetric weights that go without the lowest weight code, as LiteRT wants it."""


class RandomBits(StrEnum):
    """How the bits of a training step's random subnet are drawn."""

    INDEPENDENT = "independent"
    """Each layer's by itself, as EQ-Net does: nearly all averages are then near 5."""
    SPREAD = "spread"
    """Averages spread evenly over 2..8 (`spread_bits`)."""
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
    if random_bits is RandomBits.SEARCHED and generator.random() < 0.5:
        if predictor is None:
            raise TrainingError("random bits can only be searched with an accuracy predictor")
        random = searched_configuration(space, predictor, int(generator.integers(len(FORMS))), generator)
    elif random_bits is RandomBits.INDEPENDENT:
        bits = generator.integers(BIT_WIDTHS[0], BIT_WIDTHS[-1] + 1, size=(2, count))
        random = draw(bits[0], bits[1])
    else:
        random = draw(spread_bits(count, generator), spread_bits(count, generator))
    return draw(highest, highest), random, draw(lowest, lowest)


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

    The first 8 x 7 are every form at every uniform bit-width; one in five of the others with
    symmetric weights has narrow range.
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


def spread_encodings(space: SearchSpace, count: int, generator: np.random.Generator) -> NDArray[np.float32]:
    """Encodings [N, encoding_size] of about `count` subnets, drawn much as samples are, but at once."""
    layers, parts = len(space.searchable), []
    for form in FORMS:
        for narrow_range in (False, True) if form.weight_symmetry is Symmetry.SYMMETRIC else (False,):
            share = NARROW_RANGE_SHARE if narrow_range else 1.0
            rows = max(1, round(share * count / (len(FORMS) * (1 + NARROW_RANGE_SHARE / 2))))
            target, width = generator.uniform(1.6, 8.4, (2, rows, 1)), generator.uniform(0, 3, (2, rows, 1))
            drawn = np.rint(target + width * generator.standard_normal((2, rows, layers)))
            bits = np.clip(drawn, BIT_WIDTHS[0], BIT_WIDTHS[-1]).astype(np.int64)
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
    averages = 2.2 + 4.3 * generator.beta(1.0, 1.7, size=2)
    if generator.random() < 0.5:
        averages[1] = averages[0]
    profile = DeviceProfile(
        weight_bits=BIT_WIDTHS,
        weight_granularity=form.weight_granularity,
        weight_symmetry=form.weight_symmetry,
        narrow_range=narrow_range,
        activation_bits=BIT_WIDTHS,
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
