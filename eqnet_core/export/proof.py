"""The proof that an exported file computes what torch simulates, made for every build.

Two runs of the same arithmetic in float32 sum in different orders, so that here and there an activation near
the middle between two codes rounds the other way; the step is then carried through the network and, at few
bits, moves the logits of that image visibly. (Measured on ResNet-20, 2 to 8 bits, in deviations of the
logits: torch in float32 against torch in float64 differs by up to 0.15 in an image, 0.004 on average; ONNX
Runtime against torch by up to 0.5 in an image, 0.01 on average.) A bound on logits alone therefore has to be
so wide that a small fault passes. So the proof has three parts:

*The integers.* Codes, scales, zero-points and code ranges in the file are the subnet's (`inspection`).

*Layer by layer, in lock-step.* The file runs with the input and output of every quantised layer exposed; the
simulation runs beside it, and after each comparison continues with the *file's* values. No step is ever
carried on, each layer and everything between two layers must agree to float32 rounding, and a fault is found
where it is.

*End to end.* The untouched file against the untouched simulation: top-1 agreement, mean and largest
difference of the logits, with bounds as wide as carried-on steps need.

The last two are done with ONNX Runtime's optimiser off and at its default.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from eqnet_core.errors import ProofError
from eqnet_core.export.inspection import check_integers
from eqnet_core.export.module import SubnetModule, build_module
from eqnet_core.export.sessions import batches, exposed_values, load_model, open_session, run_batch
from eqnet_core.subnet import InputSpec, Subnet

_LOCK_STEP_VALUES = 64 * 1024 * 1024
"""Float32 values that the lock-step may keep, which bounds how many images it sees of a large network."""


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """When a proof fails.

    `layer`: largest difference of a layer's output in lock-step, as a fraction of its largest value; float32
    sums of a few hundred products stayed below 2e-6. `between`: the same for a layer's input (measured: below
    2e-7), wider because BatchNorm amplifies rounding where the variance is small. `top1`: least share of
    images with the same class, one image allowed on top for small numbers of them. `mean`: largest mean
    |difference| of the logits, in standard deviations of the simulated logits.
    """

    layer: float = 2e-5
    between: float = 1e-4
    top1: float = 0.9
    mean: float = 0.1


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How one way to run the file compares with the simulation.

    `top1` is a fraction of the images; `mean_difference` and `max_difference` are of |logits|, in logits;
    `layer_difference` and `between_difference` are the largest of the lock-step (see `Tolerance`), at
    `worst_layer`.
    """

    top1: float
    mean_difference: float
    max_difference: float
    layer_difference: float
    between_difference: float
    worst_layer: str


@dataclass(frozen=True, kw_only=True)
class Proof:
    """What `prove` found; `logit_deviation` is the standard deviation of the simulated logits."""

    runtime: str
    images: int
    lock_step_images: int
    logit_deviation: float
    optimizer_off: Agreement
    optimizer_default: Agreement
    tolerance: Tolerance

    def to_json(self) -> dict[str, Any]:
        """For `report.json`; differences are rounded to three digits."""
        document: dict[str, Any] = rounded(asdict(self))
        return document


def prove(
    onnx_bytes: bytes,
    subnet: Subnet,
    images: NDArray[np.float32],
    *,
    expected: NDArray[np.float32] | None = None,
    tolerance: Tolerance | None = None,
    threads: int = 1,
    inspect: Callable[[onnx.ModelProto, Subnet], Mapping[str, tuple[str, str]]] = check_integers,
) -> Proof:
    """Run the file on the CPU and compare with `build_module(subnet)`.

    `images` are normalised float32 [N, C, H, W], N >= 1: calibration images, or `natural_images`; `expected`
    what `simulate` says about them, if it was asked already. `threads` are ONNX Runtime's. `inspect` compares
    the file's integers with the subnet's, and knows its quantisers; it returns what `check_integers` does.

    Raises:
        ProofError: the file does not load, does not have the subnet's layers, or differs by more than
        `tolerance`.
    """
    tolerance = tolerance or Tolerance()
    images = np.require(images, np.float32, ["C", "W"])  # torch warns about arrays that it may not write
    module = build_module(subnet)
    if expected is None:
        expected = simulate(module, images)
    if not np.isfinite(expected).all():
        raise ProofError(
            "the simulation's logits are not finite: the subnet's scales or BatchNorms are broken"
        )
    deviation = float(expected.std()) or 1.0
    model = load_model(onnx_bytes)
    probes = inspect(model, subnet)
    last = subnet.layers[-1].name
    if probes[last][1] != "logits":
        raise ProofError(f"the export changes the logits after the last layer, {last}")
    values_per_image = sum(2 * layer.inputs for layer in subnet.space.layers)
    probed = images[: max(1, min(8, _LOCK_STEP_VALUES // values_per_image))]
    names = sorted({name for pair in probes.values() for name in pair})
    exposed = exposed_values(model, names)
    agreements = {}
    for optimize in (False, True):
        inside = open_session(exposed, optimize, threads)
        found = run_batch(inside, probed, [*names, "logits"])
        values = dict(zip(names, found[:-1], strict=True))
        # Exposing values keeps the optimiser from fusing across them: the end-to-end run has them hidden.
        parts, rest, whole = [found[-1]], images[len(probed) :], inside
        if optimize:
            parts, rest, whole = [], images, open_session(onnx_bytes, optimize, threads)
        logits = np.concatenate([*parts, *(run_batch(whole, b, ["logits"])[0] for b in batches(rest))])
        agreement = _compare(expected, logits, _lock_step(module, probed, probes, values))
        _check(agreement, tolerance, deviation, len(images), "at its default" if optimize else "off")
        agreements[optimize] = agreement
    return Proof(
        runtime=f"onnxruntime {onnxruntime.__version__}",
        images=len(images),
        lock_step_images=len(probed),
        logit_deviation=deviation,
        optimizer_off=agreements[False],
        optimizer_default=agreements[True],
        tolerance=tolerance,
    )


def simulate(module: nn.Module, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """The logits [N, classes] of `images`, normalised float32 [N, C, H, W]."""
    images = np.require(images, np.float32, ["C", "W"])  # torch warns about arrays that it may not write
    return np.concatenate([module(torch.from_numpy(batch)).numpy() for batch in batches(images)])


def check_extraction(supernet: nn.Module, logits: NDArray[np.float32], images: NDArray[np.float32]) -> None:
    """Compare the active subnet of `supernet` with the `logits` [N, classes] of what was extracted from it.

    The rest of a proof is about the extracted integers, which this shows to be those of the supernet.

    Raises:
        ProofError: they differ by more than the tolerance of end-to-end runs.
    """
    with torch.no_grad():
        apart = np.abs(simulate(supernet, images) - logits)
    if not apart.mean() <= Tolerance.mean * float(logits.std()):
        raise ProofError(f"the extracted subnet's logits differ from the supernet's by {apart.mean():.3g}")


def natural_images(input: InputSpec, count: int, *, seed: int) -> NDArray[np.float32]:
    """Images with the statistics of photographs, normalised for the network: float32 [count, C, H, W].

    A bundle may not hold real images, and white noise drives a network into activations that no photograph
    does. So: random phases under an amplitude spectrum that falls with the frequency (Field 1987), one such
    field shared by the channels and one of each channel's own, random contrast and brightness per image,
    scaled to the mean and deviation of the normalisation, cut to [0, 1] and rounded to 8 bits as pixels are.
    The exponent 1.4 and the other constants come near CIFAR-10's test images: correlation of neighbouring
    pixels 0.89 (there 0.93), of red and green 0.92 (0.92), deviation within an image 0.83 (0.79).
    """
    channels, height, width = input.shape
    generator = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    amplitude = np.maximum(frequency, 1 / max(height, width)) ** -1.4
    amplitude[0, 0] = 0  # brightness is drawn separately
    white = generator.standard_normal((count, channels + 1, height, width))
    fields = np.fft.irfft2(np.fft.rfft2(white) * amplitude, s=(height, width))
    fields /= fields.std((2, 3), keepdims=True)
    mixed = (fields[:, :1] + fields[:, 1:] / 3) / np.hypot(1, 1 / 3)
    contrast = generator.uniform(0.4, 1.4, (count, 1, 1, 1))
    brightness = generator.normal(0, 0.5, (count, 1, 1, 1))
    mean = np.array(input.mean).reshape(-1, 1, 1)
    std = np.array(input.std).reshape(-1, 1, 1)
    pixels = np.round(np.clip(mean + std * (mixed * contrast + brightness), 0, 1) * 255) / 255
    return np.asarray((pixels - mean) / std, dtype=np.float32)


def _lock_step(
    module: SubnetModule,
    images: NDArray[np.float32],
    probes: Mapping[str, tuple[str, str]],
    values: Mapping[str, NDArray[np.float32]],
) -> tuple[dict[str, float], dict[str, float]]:
    """Relative differences of each layer's input and output, with the file's values carried on."""
    between: dict[str, float] = {}
    within: dict[str, float] = {}
    with _hooks(module, probes, values, between, within):
        module(torch.from_numpy(images))
    return between, within


@contextmanager
def _hooks(
    module: SubnetModule,
    probes: Mapping[str, tuple[str, str]],
    values: Mapping[str, NDArray[np.float32]],
    between: dict[str, float],
    within: dict[str, float],
) -> Iterator[None]:
    handles = []
    for name, layer in module.quantized_layers().items():
        before, after = (torch.from_numpy(values[value]) for value in probes[name])

        def on_input(
            _: nn.Module, arguments: tuple[Tensor], *, name: str = name, theirs: Tensor = before
        ) -> tuple[Tensor]:
            between[name] = _relative(name, arguments[0], theirs)
            return (theirs,)

        def on_output(
            _: nn.Module, __: tuple[Tensor], ours: Tensor, *, name: str = name, theirs: Tensor = after
        ) -> Tensor:
            within[name] = _relative(name, ours, theirs)
            return theirs

        handles += [layer.register_forward_pre_hook(on_input), layer.register_forward_hook(on_output)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _relative(name: str, ours: Tensor, theirs: Tensor) -> float:
    if ours.shape != theirs.shape:
        raise ProofError(
            f"{name}: the export makes {tuple(theirs.shape)}, the simulation {tuple(ours.shape)}"
        )
    difference = float((ours - theirs).abs().amax())
    return difference / max(float(ours.abs().amax()), 1e-20) if difference else 0.0


def _compare(
    expected: NDArray[np.float32],
    logits: NDArray[np.float32],
    differences: tuple[dict[str, float], dict[str, float]],
) -> Agreement:
    if logits.shape != expected.shape:
        raise ProofError(f"the export makes logits {logits.shape}, the simulation {expected.shape}")
    between, within = differences
    apart = np.abs(logits - expected)
    return Agreement(
        top1=float((logits.argmax(1) == expected.argmax(1)).mean()),
        mean_difference=float(apart.mean()),
        max_difference=float(apart.max()),
        layer_difference=max(within.values()),
        between_difference=max(between.values()),
        worst_layer=max(within, key=lambda name: within[name]),
    )


def _check(agreement: Agreement, tolerance: Tolerance, deviation: float, images: int, optimizer: str) -> None:
    # `not <=` instead of `>`, so that NaN fails
    problems = []
    if not agreement.layer_difference <= tolerance.layer:
        problems.append(f"the layer {agreement.worst_layer} differs by {agreement.layer_difference:.1e}")
    if not agreement.between_difference <= tolerance.between:
        problems.append(f"a layer's input differs by {agreement.between_difference:.1e}")
    if not agreement.top1 >= tolerance.top1 - 1 / images:
        problems.append(f"only {agreement.top1:.1%} of the classes agree")
    if not agreement.mean_difference <= tolerance.mean * deviation:
        problems.append(f"the logits differ by {agreement.mean_difference:.3g} on average")
    if problems:
        raise ProofError(
            f"with ONNX Runtime's optimiser {optimizer}, the export is not what the supernet simulates: "
            + "; ".join(problems)
        )


def rounded(value: Any) -> Any:
    """Numbers anywhere in a JSON document to three digits: more would hardly ever be the same twice."""
    if isinstance(value, dict):
        return {key: rounded(entry) for key, entry in value.items()}
    return float(f"{value:.3g}") if isinstance(value, float) else value
