"""Stage 4: subnets and their accuracy as delivered, with predicted BatchNorm statistics, to fit CQAP to."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
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
from eqnet_core.space import FORMS, SearchSpace, SubnetConfiguration
from eqnet_core.training.augmentation import VIEWS, view
from eqnet_core.training.batches import seeded
from eqnet_core.training.calibrating import load_statistics
from eqnet_core.training.collecting import Shard, Wanted, collect
from eqnet_core.training.data import ImageData, LabelledImages, normalise
from eqnet_core.training.panel import LEAST_IMAGES, Panel, choose_panel
from eqnet_core.training.pool import ImagePool
from eqnet_core.training.run import Run, check_origins, tensors_digest
from eqnet_core.training.samples import SPREAD, Samples
from eqnet_core.training.subnets import first_mixed, sample_configuration, searched_configuration
from eqnet_core.training.trained import load_trained, supernet_digest

_PILOT = 24
"""Subnets that are measured on all held-out images to choose the panel."""

_POOL_PILOT = 4
"""Of these, the uniform ones that say how easy each training image is."""

_POOL_DRAWS = 8
"""Draws that fit into the pool. A larger one would need more forwards for what it says of its images."""

_PILOT_SEED = 1_000_003
"""Far from the seeds of samples: the panel must not be chosen by the subnets it measures."""

_BATCH = 100

USUAL_VIEWS = 0.8
"""`SamplingSettings.views` to take: subnets of a ResNet-20 for CIFAR-10 differ on no more of them."""


@dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """`samples` subnets spread over the space and `searched` ones that a predictor thinks best, each measured
    on a panel of `images` held-out images, to judge predictors by, and on `drawn` training images, others for
    each subnet, to fit them to. Without drawn images, for a few hundred samples on a slow machine, the panel
    serves for both: less work and less noise, but a search finds what that one panel happens to like.

    `views` x `images` mirrored and shifted views of held-out images judge besides, chosen where subnets
    disagree: an image that happens to be right or wrong then counts less. 0 as in folders of older versions.
    """

    samples: int = 2000
    searched: int = 0
    images: int = 5000
    views: float = 0.0
    drawn: int = 5000
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
        held-out or training images or views than asked for, or other settings, another supernet or
        other predicted statistics before.
    """
    if settings.images > len(data.held_out):
        raise TrainingError(
            f"{settings.images} images asked for, {len(data.held_out)} are held out: "
            "lower --images or raise --held-out"
        )
    if settings.searched and predictor is None:
        raise TrainingError("searched samples need an accuracy predictor: run the fit stage first")
    if settings.images < LEAST_IMAGES:
        raise TrainingError(f"{settings.images} images tell nothing: ask for at least {LEAST_IMAGES}")
    least, most = LEAST_IMAGES / settings.images, VIEWS * len(data.held_out) / settings.images
    if not (settings.views == 0 or least <= settings.views <= most):
        raise TrainingError(
            f"{settings.views} views for each of {settings.images} images: ask for 0, or {least:.2g} "
            f"to {most:g}, with --views"
        )
    supernet = load_trained(supernet_folder, data).to(device)
    origins = {"data": data.digest, "supernet": supernet_digest(supernet)}
    check_origins(statistics_folder, origins)
    statistics = load_statistics(statistics_folder)
    origins["statistics"] = tensors_digest(statistics.to_tensors())
    if not 0 <= settings.drawn <= len(data.train):
        raise TrainingError(
            f"{settings.drawn} images to be drawn of {len(data.train)} training images: change --drawn"
        )
    run = Run(folder, settings, growing=("samples", "searched", "compile"), origins=origins)
    space = supernet.space
    forward: Callable[[Tensor], Tensor] = (
        torch.compile(supernet, dynamic=False) if settings.compile else supernet
    )
    train, held_out = data.train.to(device), data.held_out.to(device)

    def measure_margins(configuration: SubnetConfiguration, images: LabelledImages) -> NDArray[np.float32]:
        supernet.activate(configuration)
        supernet.set_statistics(statistics.predict(configuration, space))
        parts = []
        for start in range(0, len(images), _BATCH):
            inputs = normalise(images.images[start : start + _BATCH], data.mean, data.std)
            # a sixth faster than channels first on a CPU (913 against 787 images/s on a core without VNNI)
            inputs = inputs.contiguous(memory_format=torch.channels_last)
            labels = images.labels[start : start + _BATCH]
            parts.append(margins(supernet, inputs, labels, batch_size=_BATCH, forward=forward))
        return np.asarray(torch.cat(parts).cpu().numpy())

    def chosen(images: LabelledImages, indices: NDArray[np.int64]) -> LabelledImages:
        return images.subset(torch.from_numpy(indices).to(device))

    pilots = pilot_configurations(space)
    panel_path, views_path, pool_path = (folder / f"{name}.npz" for name in ("panel", "views", "pool"))
    if not panel_path.exists() or (settings.views and not views_path.exists()):
        panel, panel_of_views = _choose_panels(
            settings, held_out, pilots, measure_margins, mirror=data.mirror
        )
        panel.save(panel_path)
        if panel_of_views is not None:
            panel_of_views.save(views_path)
    if settings.drawn and not pool_path.exists():
        size = min(_POOL_DRAWS * settings.drawn, len(train))
        print(f"finding out how easy {size} training images are by {_POOL_PILOT} subnets")
        first = chosen(train, np.arange(size))
        pilot = np.stack([measure_margins(one, first) for one in pilots[:_POOL_PILOT]])
        ImagePool.of_pilots(pilot, settings.drawn).save(pool_path)
    panel = Panel.load(panel_path)
    pool = ImagePool.load(pool_path, settings.drawn) if settings.drawn else None
    judges = chosen(held_out, panel.images)
    panel_of_views = Panel.load(views_path) if settings.views else None
    if panel_of_views is not None:
        of_view, image = np.divmod(panel_of_views.images, len(held_out))
        others = [
            _view(chosen(held_out, image[of_view == index]), index, mirror=data.mirror)
            for index in np.unique(of_view).tolist()
        ]
    view_count = 0 if panel_of_views is None else len(panel_of_views.images)

    def measure(one: Wanted) -> dict[str, Any]:
        judged = measure_margins(one.configuration, judges)
        plain = panel.accuracies(judged)
        half, smooth = plain, panel.smooth_accuracy(judged)
        if panel_of_views is not None:
            judged = np.concatenate([measure_margins(one.configuration, each) for each in others])
            half = (plain + VIEWS * panel_of_views.accuracies(judged)) / (1 + VIEWS)
            smooth = (smooth + VIEWS * panel_of_views.smooth_accuracy(judged)) / (1 + VIEWS)
        if pool is not None:
            drawn = pool.draw(seeded(settings.seed, "draws", one.draw + one.index))
            smooth = pool.accuracy(drawn, measure_margins(one.configuration, chosen(train, drawn)))
        return {"half_accuracy": half, "plain_accuracy": plain.mean(), "smooth_accuracy": smooth}

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
        shared={"space": space, "images": len(panel.images), "views": view_count},
        images=len(panel.images) + view_count + settings.drawn,
        shard=shard,
    )


def _choose_panels(
    settings: SamplingSettings,
    held_out: LabelledImages,
    pilots: Sequence[SubnetConfiguration],
    measure_margins: Callable[[SubnetConfiguration, LabelledImages], NDArray[np.float32]],
    *,
    mirror: bool,
) -> tuple[Panel, Panel | None]:
    """That of the images, and that of their views if any are asked for: the k-th of N images has the index
    v x N + k in its v-th view."""
    print(f"choosing {settings.images} of {len(held_out)} images by {len(pilots)} subnets")
    pilot = np.stack([measure_margins(one, held_out) for one in pilots])
    panel = choose_panel(pilot, settings.images, seeded(settings.seed, "order", 0))
    if not settings.views:
        return panel, None
    count = round(settings.views * settings.images)
    print(f"choosing {count} of {VIEWS * len(held_out)} views")
    shown = [
        np.stack([measure_margins(one, _view(held_out, index, mirror=mirror)) for one in pilots])
        for index in range(VIEWS)
    ]
    panel_of_views = choose_panel(
        np.concatenate(shown, axis=1),
        count,
        seeded(settings.seed, "views", 0),
        halves=np.tile(panel.halves(len(held_out)), VIEWS),
        level=float((pilot > 0).mean()),
    )
    return panel, panel_of_views


def _view(images: LabelledImages, index: int, *, mirror: bool) -> LabelledImages:
    return LabelledImages(images=view(images.images, index, mirror=mirror), labels=images.labels)


def pilot_configurations(space: SearchSpace) -> list[SubnetConfiguration]:
    """The subnets that choose the panel: some uniform ones, the rest spread."""
    widths = space.bit_widths
    uniform = [
        space.uniform(FORMS[3 * k % len(FORMS)], bits) for k, bits in enumerate((*widths[:4], widths[-1]))
    ]
    first = first_mixed(space)
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
