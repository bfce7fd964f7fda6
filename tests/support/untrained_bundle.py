"""A bundle of an untrained supernet, made the way training makes one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from eqnet_core.bundle_writer import add_ranges, write_bundle
from eqnet_core.calibration import calibrate_batch_norm
from eqnet_core.export.plan import plan_integers
from eqnet_core.export.template import trace_float_graph
from eqnet_core.factory import INTEGER, Factory
from eqnet_core.space import FORMS
from eqnet_core.supernet import Supernet
from eqnet_core.training.ensemble import EnsembleSettings
from eqnet_core.training.fitting import MINIMUM_SAMPLES, fit_predictor
from eqnet_core.training.ranges import fit_ranges, tensor_samples
from eqnet_core.training.samples import Calibrations, Samples, configuration_columns
from eqnet_core.training.statistics_fitting import fit_statistics
from eqnet_core.training.subnets import sample_configuration


def write_untrained_bundle(folder: Path, supernet: Supernet, images: torch.Tensor) -> Path:
    """Sample, fit and write `supernet` the way training does it, in seconds."""
    samples, calibrations = measure(supernet, images[:32], MINIMUM_SAMPLES + 4)
    predictor, predictor_quality, _ = fit_predictor(
        samples, supernet.space, 0, settings=EnsembleSettings(members=2, hidden=8, steps=(30, 30))
    )
    statistics, statistics_quality = fit_statistics(calibrations, supernet.space)
    write_bundle(
        folder,
        name="untrained",
        architecture=supernet.architecture,
        classes=supernet.classes,
        input=supernet.input,
        space=supernet.space,
        float_accuracy=1.0,
        accuracy={},
        predictor_quality=predictor_quality,
        statistics_quality=statistics_quality,
        card={"data": "artificial images"},
        supernet=supernet.tensors(),
        predictor=predictor,
        statistics=statistics,
    )
    assert INTEGER not in Factory.open(folder).artifacts
    plan = plan_integers(trace_float_graph("resnet20", supernet.input.shape, 10))
    supernet.activate(supernet.space.uniform(FORMS[5], 4))
    calibrate_batch_norm(supernet, [images[:32]])
    samples_of = {k: [v] for k, v in tensor_samples(supernet, plan, images[:32], 4096).items()}
    quality = {"images": 500, "subnets": [], "cost": {"below 4 bits": 0.01, "4 bits and above": 0.002}}
    add_ranges(folder, fit_ranges(samples_of, plan), quality)
    return folder


@torch.no_grad()
def measure(supernet: Supernet, images: torch.Tensor, count: int) -> tuple[Samples, Calibrations]:
    """Subnets with calibrated statistics; what the 8/8 bit subnet says counts as right."""
    generator = np.random.default_rng(0)
    # 8 uniform nets, and mixed ones
    configurations = [sample_configuration(supernet.space, 48 + i, generator) for i in range(count)]
    supernet.activate(supernet.space.uniform(FORMS[4], 8))
    calibrate_batch_norm(supernet, [images[:16]])
    expected = supernet(images).argmax(1)
    correct, means, variances = [], [], []
    for configuration in configurations:
        supernet.activate(configuration)
        statistics = calibrate_batch_norm(supernet, [images[:16]])
        correct.append((supernet(images).argmax(1) == expected).reshape(2, -1).double().mean(1).numpy())
        means.append(np.concatenate([mean for mean, _ in statistics.values()]))
        variances.append(np.concatenate([variance for _, variance in statistics.values()]))
    subnets: dict[str, Any] = {
        "space": supernet.space,
        "draw": np.zeros(count, dtype=np.int32),
        "index": np.arange(count, dtype=np.int32),
        **configuration_columns(configurations),
    }
    accuracy = np.array(correct)
    samples = Samples(
        **subnets,
        half_accuracy=accuracy,
        plain_accuracy=accuracy.mean(axis=1),
        smooth_accuracy=accuracy.mean(axis=1),
        images=len(images),
        views=0,
    )
    calibrations = Calibrations(
        **subnets,
        means=np.array(means),
        variances=np.array(variances),
        batch_norms=tuple((name, module.num_features) for name, module in supernet.batch_norms().items()),
    )
    return samples, calibrations
