"""The proof that `model.integer.onnx` computes what `IntegerModule` simulates, made for every build.

Three parts as in `proof`, and one of its own:

*The integers.* Weight codes, biases, scales, zero-points and clipped ranges in the file are the folded
subnet's, every layer reads nothing but integers, and nothing else is in the file's way.

*Tensor by tensor, in lock-step.* The codes of every tensor are exposed, which leaves ONNX Runtime's integer
kernels as they are; the simulation continues with the file's. Both sum the same integers, so that a code can
only differ where a value falls between two codes: by one step, and rarely.

*End to end.* The untouched file against the untouched simulation, and the simulation against the one of
`model.onnx`: what the flavour costs.

*The ranges.* File and simulation have the same, so that the rest holds whatever they are worth: with one sum
cut to a tenth of its range both agree, and top-1 is 14 % instead of 90. So what 8 bits leave of every tensor
that has a range is measured against the simulation of `model.onnx`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor

from eqnet_core.errors import ProofError
from eqnet_core.export.folding import IntegerSubnet
from eqnet_core.export.integer_inspection import check_integer_file
from eqnet_core.export.integer_module import IntegerModule
from eqnet_core.export.module import build_module
from eqnet_core.export.plan import IntegerPlan
from eqnet_core.export.plan_run import run_plan
from eqnet_core.export.proof import rounded, simulate
from eqnet_core.export.sessions import batches, exposed_values, load_model, open_session, run_batch

_LOCK_STEP_VALUES = 64 * 1024 * 1024
"""Codes that the lock-step may keep, which bounds how many images it sees of a large network."""


@dataclass(frozen=True, kw_only=True)
class IntegerTolerance:
    """When a proof fails.

    `steps`: largest difference of a code in lock-step. `share`: largest share of a tensor's codes that
    differ at all, three codes allowed on top for small tensors; measured: below 1e-4. `top1`: least share of
    images with the same class, one image allowed on top. `mean`: largest mean |difference| of the logits, in
    standard deviations of the simulated logits. `range_error`: largest share of a tensor's energy that is
    lost to its range, sum((x - q(x))^2) / sum(x^2). Measured on 17 subnets of the supernet that ships: up to
    0.001, whatever their bits; on an earlier one 0.015 with one range half or 16 times as wide as it should
    be, which costs nothing yet; 0.05 with a quarter, which costs 5 points; 0.3 with a tenth, which costs all.
    Not tighter, because networks that were never trained lose 0.04 at 2 bits.
    """

    steps: int = 1
    share: float = 1e-3
    top1: float = 0.9
    mean: float = 0.1
    range_error: float = 0.1


@dataclass(frozen=True, kw_only=True)
class IntegerAgreement:
    """How one way to run the file compares with the simulation.

    `steps` and `share` are the largest of the lock-step (see `IntegerTolerance`), at `worst_tensor`; `top1` a
    fraction of the images; `mean_difference` and `max_difference` are of |logits|, in logits.
    """

    top1: float
    mean_difference: float
    max_difference: float
    steps: int
    share: float
    worst_tensor: str


@dataclass(frozen=True, kw_only=True)
class IntegerProof:
    """What `prove_integer` found; `logit_deviation` is the standard deviation of the simulated logits.

    `exact_top1` and `exact_mean_difference` compare the simulation with that of `model.onnx`; `range_error`
    is the largest (see `IntegerTolerance`), of the tensor `worst_range`.
    """

    runtime: str
    images: int
    lock_step_images: int
    logit_deviation: float
    exact_top1: float
    exact_mean_difference: float
    range_error: float
    worst_range: str
    optimizer_off: IntegerAgreement
    optimizer_default: IntegerAgreement
    tolerance: IntegerTolerance

    def to_json(self) -> dict[str, Any]:
        """For `report.json`; differences are rounded to three digits."""
        document: dict[str, Any] = rounded(asdict(self))
        return document


def prove_integer(
    onnx_bytes: bytes,
    integers: IntegerSubnet,
    plan: IntegerPlan,
    images: NDArray[np.float32],
    exact_logits: NDArray[np.float32],
    *,
    tolerance: IntegerTolerance | None = None,
    threads: int = 1,
) -> IntegerProof:
    """Run the file on the CPU and compare with `IntegerModule(integers, plan)`.

    `images` are normalised float32 [N, C, H, W], N >= 1; `exact_logits` [N, classes] what the simulation of
    `model.onnx` says about them. `threads` are ONNX Runtime's.

    Raises:
        ProofError: the file does not load, does not hold these integers, differs by more than `tolerance`, or
        has ranges that its tensors do not fit.
    """
    tolerance = tolerance or IntegerTolerance()
    images = np.require(images, np.float32, ["C", "W"])
    module = IntegerModule(integers, plan)
    expected = simulate(module, images)
    if not np.isfinite(expected).all():
        raise ProofError("the simulation's logits are not finite: scales or BatchNorms are broken")
    deviation = float(expected.std()) or 1.0
    model = load_model(onnx_bytes)
    check_integer_file(model, integers, plan)
    names = sorted([*integers.tensors, *(f"{layer}.input" for layer in integers.requantized)])
    probed = images[: max(1, min(8, _LOCK_STEP_VALUES // _codes(integers)))]
    type = onnx.TensorProto.INT8 if integers.subnet.configuration.signed else onnx.TensorProto.UINT8
    exposed = exposed_values(model, [f"{name}.codes" for name in names], type)
    lost = _range_errors(integers, plan, probed)
    worst_range = max(lost, key=lambda name: lost[name]) if lost else ""
    if lost and not lost[worst_range] <= tolerance.range_error:
        raise ProofError(
            f"the range of {worst_range} does not fit this supernet: 8 bits lose {lost[worst_range]:.1%} of "
            "the tensor, and model.integer.onnx strays from model.onnx: the bundle's owner runs the `ranges` "
            "stage again"
        )
    agreements = {}
    for optimize in (False, True):
        inside = open_session(exposed, optimize, threads)
        found = run_batch(inside, probed, [*(f"{name}.codes" for name in names), "logits"])
        parts, rest, whole = [found[-1]], images[len(probed) :], inside
        if optimize:
            parts, rest, whole = [], images, open_session(onnx_bytes, optimize, threads)
        logits = np.concatenate([*parts, *(run_batch(whole, b, ["logits"])[0] for b in batches(rest))])
        differences = _lock_step(module, probed, dict(zip(names, found[:-1], strict=True)))
        agreement = _compare(expected, logits, differences)
        _check(agreement, tolerance, deviation, len(images), "at its default" if optimize else "off")
        agreements[optimize] = agreement
    return IntegerProof(
        runtime=f"onnxruntime {onnxruntime.__version__}",
        images=len(images),
        lock_step_images=len(probed),
        logit_deviation=deviation,
        exact_top1=float((expected.argmax(1) == exact_logits.argmax(1)).mean()),
        exact_mean_difference=float(np.abs(expected - exact_logits).mean()),
        range_error=lost.get(worst_range, 0.0),
        worst_range=worst_range,
        optimizer_off=agreements[False],
        optimizer_default=agreements[True],
        tolerance=tolerance,
    )


def _range_errors(
    integers: IntegerSubnet, plan: IntegerPlan, images: NDArray[np.float32]
) -> dict[str, float]:
    """The share of every ranged tensor's energy that its quantiser loses, as `model.onnx` computes it."""
    found: dict[str, float] = {}

    def observe(name: str, x: Tensor) -> None:
        if name in plan.ranged:
            quantizer, scale = integers.tensors[name], float(integers.tensors[name].scale)
            codes = (x / scale).round_().add_(quantizer.zero_point).clamp_(quantizer.low, quantizer.high)
            error = codes.sub_(quantizer.zero_point).mul_(scale).sub_(x)
            found[name] = float(error.square_().sum()) / max(float(x.square().sum()), 1e-30)

    run_plan(build_module(integers.subnet).network, plan, torch.from_numpy(images), observe)
    return found


def _codes(integers: IntegerSubnet) -> int:
    """About as many as one image has; every tensor but the sums is the input of a layer."""
    return 2 * sum(spec.inputs for spec in integers.subnet.space.layers)


def _lock_step(
    module: IntegerModule, images: NDArray[np.float32], codes: dict[str, NDArray[Any]]
) -> dict[str, tuple[int, float]]:
    """Largest difference and share of differing codes of every tensor, with the file's codes carried on."""
    found: dict[str, tuple[int, float]] = {}

    def observe(name: str, ours: Tensor) -> Tensor:
        theirs = torch.from_numpy(codes[name].astype(np.float32))
        if ours.shape != theirs.shape:
            raise ProofError(
                f"{name}: the export makes {tuple(theirs.shape)}, the simulation {tuple(ours.shape)}"
            )
        apart = (ours - theirs).abs_()
        differing = max(int((apart > 0).sum()) - 3, 0)
        found[name] = (int(apart.max()), differing / apart.numel())
        return theirs

    module(torch.from_numpy(images), observe)
    return found


def _compare(
    expected: NDArray[np.float32], logits: NDArray[np.float32], differences: dict[str, tuple[int, float]]
) -> IntegerAgreement:
    if logits.shape != expected.shape:
        raise ProofError(f"the export makes logits {logits.shape}, the simulation {expected.shape}")
    apart = np.abs(logits - expected)
    worst = max(differences, key=lambda name: differences[name])
    return IntegerAgreement(
        top1=float((logits.argmax(1) == expected.argmax(1)).mean()),
        mean_difference=float(apart.mean()),
        max_difference=float(apart.max()),
        steps=max(steps for steps, _ in differences.values()),
        share=max(share for _, share in differences.values()),
        worst_tensor=worst,
    )


def _check(
    agreement: IntegerAgreement, tolerance: IntegerTolerance, deviation: float, images: int, optimizer: str
) -> None:
    problems = []
    if agreement.steps > tolerance.steps or not agreement.share <= tolerance.share:
        problems.append(
            f"{agreement.worst_tensor} differs by up to {agreement.steps} steps "
            f"(at most {agreement.share:.1e} of a tensor's codes)"
        )
    if not agreement.top1 >= tolerance.top1 - 1 / images:
        problems.append(f"only {agreement.top1:.1%} of the classes agree")
    if not agreement.mean_difference <= tolerance.mean * deviation:
        problems.append(f"the logits differ by {agreement.mean_difference:.3g} on average")
    if problems:
        raise ProofError(
            f"with ONNX Runtime's optimiser {optimizer}, model.integer.onnx is not what was simulated: "
            + "; ".join(problems)
        )
