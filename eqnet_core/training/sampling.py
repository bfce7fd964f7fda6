"""Stage 4: subnets and their accuracy as delivered, with predicted BatchNorm statistics, to fit CQAP to."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eqnet_core.errors import TrainingError
from eqnet_core.evaluation import margins
from eqnet_core.predictor import AccuracyPredictor
from eqnet_core.space import BIT_WIDTHS, FORMS, SearchSpace, SubnetConfiguration
from eqnet_core.training.batches import seeded
from eqnet_core.training.calibrating import load_statistics
from eqnet_core.training.collecting import Shard, Wanted, collect
from eqnet_core.training.data import ImageData, normalise
from eqnet_core.training.panel import Panel, choose_panel
from eqnet_core.training.run import Run, check_supernet
from eqnet_core.training.samples import SPREAD, Samples
from eqnet_core.training.subnets import sample_configuration, searched_configuration
from eqnet_core.training.trained import load_trained, supernet_digest

_PILOT = 24
"""Subnets that are measured on all held-out images to choose the panel."""

_PILOT_SEED = 1_000_003
"""Far from the seeds of samples: the panel must not be chosen by the subnets it measures."""

_BATCH = 100


@dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """`samples` subnets spread over the space and `searched` ones that a predictor thinks best, each measured
    on a panel of `images` held-out images."""

    samples: int = 2000
    searched: int = 0
    images: int = 1200
    seed: int = 0
    compile: bool = True


def sample_subnets(
    data: ImageData,
    supernet_folder: Path,
    statistics_folder: Path,
    folder: Path,
    settings: SamplingSettings,
    device: torch.device,
    shard: Shard,
    *,
    predictor: AccuracyPredictor | None = None,
) -> Samples:
    """Measure until all are there; goes on where a killed run stopped. Returns what is there of all shards.

    Every spread sample depends on the seed and its number alone, every searched one also on `predictor`:
    another one leads the search elsewhere, and its samples add to those before.

    Raises:
        TrainingError: no trained supernet, no statistics predictor, no predictor to search with, fewer
        held-out images than asked for, or other settings or another supernet before.
    """
    if settings.images > len(data.held_out):
        raise TrainingError(
            f"{settings.images} images asked for, {len(data.held_out)} are held out: "
            "lower --images or raise --held-out"
        )
    if settings.searched and predictor is None:
        raise TrainingError("searched samples need an accuracy predictor: run the fit stage first")
    supernet = load_trained(supernet_folder).to(device)
    digest = supernet_digest(supernet)
    check_supernet(statistics_folder, digest)
    run = Run(folder, settings, growing=("samples", "searched", "compile"), supernet=digest)
    statistics = load_statistics(statistics_folder)
    space = supernet.space
    forward: Callable[[Tensor], Tensor] = (
        torch.compile(supernet, dynamic=False) if settings.compile else supernet
    )
    # a sixth faster than channels first on a CPU (913 against 787 images/s on a core without VNNI)
    images = normalise(data.held_out.images, data.mean, data.std).to(
        device, memory_format=torch.channels_last
    )
    labels = data.held_out.labels.to(device)

    def measure_margins(configuration: SubnetConfiguration, images: Tensor, labels: Tensor) -> NDArray[Any]:
        supernet.activate(configuration)
        supernet.set_statistics(statistics.predict(configuration, space))
        return margins(supernet, images, labels, batch_size=_BATCH, forward=forward).cpu().numpy()

    path = folder / "panel.npz"
    if not path.exists():
        print(f"choosing {settings.images} of {len(labels)} images by {_PILOT} subnets")
        pilot = np.stack([measure_margins(c, images, labels) for c in pilot_configurations(space)])
        generator = seeded(settings.seed, "order", 0)
        choose_panel(pilot, settings.images, generator).save(path)
    panel = Panel.load(path)
    chosen = torch.from_numpy(panel.images).to(device)
    images, labels = images[chosen], labels[chosen]

    def measure(one: Wanted) -> dict[str, Any]:
        halves, smooth = panel.accuracies(measure_margins(one.configuration, images, labels))
        return {"half_accuracy": halves, "smooth_accuracy": smooth}

    wanted = [
        Wanted(draw=SPREAD, index=index, configuration=sample_configuration(space, index, generator))
        for index in range(settings.samples)
        for generator in [seeded(settings.seed, "configurations", index)]
    ]
    if predictor is not None:
        draw = _draw(predictor)
        wanted += [
            Wanted(
                draw=draw,
                index=index,
                configuration=searched_configuration(
                    space, predictor, index, seeded(settings.seed, "searches", index)
                ),
            )
            for index in range(settings.searched)
        ]
    return collect(
        run,
        Samples,
        wanted,
        measure,
        shared={"space": space, "images": len(panel.images)},
        images=len(panel.images),
        shard=shard,
    )


def pilot_configurations(space: SearchSpace) -> list[SubnetConfiguration]:
    """The subnets that choose the panel: some uniform ones, the rest spread."""
    uniform = [space.uniform(FORMS[3 * k % len(FORMS)], bits) for k, bits in enumerate((*BIT_WIDTHS[:4], 8))]
    first = len(FORMS) * len(BIT_WIDTHS)  # the uniform ones come before
    spread = [
        sample_configuration(space, index, seeded(_PILOT_SEED, "configurations", index))
        for index in range(first, first + _PILOT - len(uniform))
    ]
    return [*uniform, *spread]


def _draw(predictor: AccuracyPredictor) -> int:
    """A number for the searches that this predictor leads."""
    digest = hashlib.sha256()
    for _, tensor in sorted(predictor.to_tensors().items()):
        digest.update(tensor.tobytes())
    return 1 + int.from_bytes(digest.digest()[:3], "big")
