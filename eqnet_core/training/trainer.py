"""Stage 2: the supernet, trained from a float network or from where another training ended."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from eqnet_core.errors import TrainingError
from eqnet_core.space import BIT_WIDTHS, FIXED_BITS, FORMS, SearchSpace, SubnetConfiguration
from eqnet_core.supernet import Supernet
from eqnet_core.training.batches import Batches
from eqnet_core.training.data import ImageData
from eqnet_core.training.held_out import held_out_accuracies
from eqnet_core.training.losses import check_finite
from eqnet_core.training.run import Run, check_origins, tensors_digest
from eqnet_core.training.starting import (
    NO_START,
    check_split,
    float_digest,
    float_network,
    load_searcher,
    load_start,
    start_supernet,
)
from eqnet_core.training.subnets import RandomBits
from eqnet_core.training.supernet_settings import SupernetSettings
from eqnet_core.training.supernet_steps import SupernetSteps
from eqnet_core.training.teacher import load_teacher
from eqnet_core.training.trained import TENSORS, save_trained


def train_supernet(
    data: ImageData,
    float_weights: Path,
    folder: Path,
    settings: SupernetSettings,
    device: torch.device,
    *,
    start_run: Path | None = None,
    teacher_runs: Sequence[Path] = (),
) -> Path:
    """Train until done and write `supernet.safetensors`; goes on where a killed run stopped.

    With more epochs than the folder's run had, it goes on from the end of that run's plateau, and ends as if
    it had been given them at first. With `start_run`, another run's folder or a bundle, it begins with the
    supernet trained there instead of quantisers fitted to the float network, and searches with its accuracy
    predictor. With `teacher_runs`, folders of other runs or this one's, the mean of the logits of the float
    networks trained there guides the highest subnet.

    Returns:
        The path of the tensors (`Supernet.tensors`). The log has a line per epoch: losses and training
        accuracies of the highest, random and lowest subnets, WDR, held-out accuracies, images/s.

    Raises:
        TrainingError: no float weights, or the folder holds a run with other settings, or with fewer epochs
            whose rates had begun to fall without a plateau; or a loss is not finite; or `start_run` or one of
            `teacher_runs` lacks what is taken from it.
    """
    # The highest bits are as good as the float network lets them be: what it saw must not be held out here.
    check_origins(float_weights.parent, {"data": data.digest})
    started = predictor = None
    if start_run is not None:
        started, described = load_start(start_run)
        settings = replace(settings, start=described)
    elif settings.start_share:
        raise TrainingError(NO_START)
    if settings.random_bits is RandomBits.SEARCHED:
        predictor = load_searcher(start_run, started)
        # Fitted anew between a kill and its going on, it would search for other subnets.
        digest = tensors_digest(predictor.to_tensors())
        settings = replace(settings, start={**(settings.start or {}), "predictor": digest})
    supernet = start_supernet(data, float_weights, settings.architecture, device, started)
    check_split(settings.start or {}, data)
    origins = {"data": data.digest, "float": float_digest(float_weights)}
    teacher = None
    if teacher_runs:
        teacher, described = load_teacher(teacher_runs, data, settings.architecture)
        teacher = teacher.to(device)
        own = described.get("float") == origins["float"]
        settings = replace(settings, float_teacher=True, teacher=None if own else described)
    elif settings.float_teacher:
        teacher = float_network(data, float_weights, settings.architecture).to(device)
    run = Run(folder, settings, growing=("epochs",), origins=origins)
    extend(run, settings)
    batches = Batches(
        data,
        batch_size=settings.batch_size,
        seed=settings.seed,
        device=device,
        sizes=settings.sizes,
        mixed=settings.cutmix,
    )
    steps = SupernetSteps(
        supernet, settings, settings.epochs * batches.steps_per_epoch, teacher=teacher, predictor=predictor
    )
    start = 0
    if (state := run.resume()) is not None:
        steps.load(state)
        start = state["step"]
        if start == steps.plateau_end:  # killed before it was kept
            run.keep_plateau()
    totals = torch.zeros(7, dtype=torch.float64, device=device)
    seen, began = 0, time.perf_counter()
    progress = tqdm(range(start, steps.total), initial=start, total=steps.total, desc="supernet", unit="step")
    for step in progress:
        totals += steps.take(step, *batches.at(step))
        seen += 1
        epoch_ends = (step + 1) % batches.steps_per_epoch == 0
        due = run.checkpoint_due(settings.checkpoint_seconds) or step + 1 in (steps.plateau_end, steps.total)
        if epoch_ends or due:
            check_finite(totals, step)
        if epoch_ends:
            means = [round(float(value), 4) for value in totals.cpu() / seen]
            speed = seen * settings.batch_size / (time.perf_counter() - began)
            accuracies = held_out_accuracies(
                steps.result,
                data,
                watched(supernet.space),
                seed=settings.seed,
                device=device,
                limit=1000,
            )
            run.log(
                epoch=(step + 1) // batches.steps_per_epoch,
                loss={"H": means[0], "R": means[2], "L": means[4], "WDR": means[6]},
                accuracy={"H": means[1], "R": means[3], "L": means[5]},
                held_out=accuracies,
                images_per_s=round(speed, 1),
            )
            progress.set_postfix(H=means[1], R=means[3], L=means[5])
            totals.zero_()
            seen, began = 0, time.perf_counter()
        if due:
            run.checkpoint({**steps.state(), "step": step + 1})
        if step + 1 == steps.plateau_end:
            run.keep_plateau()
    result = steps.result
    if started is not None and settings.start_share:
        before, after, share = started.tensors(), result.tensors(), settings.start_share
        result.load_tensors(
            {name: np.float32(share) * before[name] + np.float32(1 - share) * after[name] for name in after}
        )
    set_untrained_steps(result)
    return save_trained(folder, result)


def watched(space: SearchSpace) -> list[SubnetConfiguration]:
    """Whose held-out accuracy is logged every epoch: some per channel, and the hardest."""
    lowest = space.bit_widths[0]
    return [space.uniform(FORMS[form], bits) for form, bits in ((4, lowest), (4, 4), (4, 8), (0, lowest))]


@torch.no_grad()
def set_untrained_steps(supernet: Supernet) -> None:
    """Give the first and last layer their steps for signed activations: training only has them at 8 bits.

    A signed runtime has 7 bits for an input that is never negative: the same range in half as many codes, so
    twice the step size and half the zero-point.
    """
    full, signed = BIT_WIDTHS.index(FIXED_BITS), BIT_WIDTHS.index(FIXED_BITS - 1)
    for layer in supernet.layers:
        if not layer.spec.searchable and layer.spec.nonnegative:
            quantizer = layer.activation_quantizer
            quantizer.log_step[:, signed] = quantizer.log_step[:, full] + math.log(2)
            quantizer.zero_point[:, signed] = quantizer.zero_point[:, full] / 2


def extend(run: Run, settings: SupernetSettings) -> None:
    """Give the folder's run the epochs of `settings`, where it had fewer.

    Raises:
        TrainingError: it had more, or it has no plateau to go on from.
    """
    if (before := run.before["epochs"]) == settings.epochs:
        return
    if before > settings.epochs or not run.plateau_path.exists():
        raise TrainingError(
            f"{run.folder} holds a run of {before} epochs: repeat that to go on, or choose another folder. "
            "More epochs can be added to a run with --cooldown below 1, once its plateau is over"
        )
    # Those of the shorter run are not what the settings will say.
    (run.folder / TENSORS).unlink(missing_ok=True)
    run.extend()
