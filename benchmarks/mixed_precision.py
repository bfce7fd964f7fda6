"""What mixing bit-widths is worth: searched subnets against uniform ones of the same average, measured.

    python benchmarks/mixed_precision.py --data cifar10.npz [--bits 3] [--forms 0 1 2 3 4 5 6 7]

One row per form: top-1 of `model.onnx` of the uniform subnet and of the searched one, both as delivered, on
the same test images; the last row is their mean over forms, with the standard error of the gain over images.
Needs an `.npz` with `x_test` (uint8 [N, 3, H, W]) and `y_test`, images that training never saw.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from eqnet_core.factory import Factory
from eqnet_core.profile import Budget, DeviceProfile
from eqnet_core.space import BIT_WIDTHS, FORMS, QuantizationForm, SubnetConfiguration

BATCH = 100


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--bundle", default="resnet20-cifar10")
    parser.add_argument("--bits", type=int, default=3, choices=BIT_WIDTHS, help="average of both")
    parser.add_argument("--forms", type=int, nargs="+", default=list(range(len(FORMS))), help="0 to 7")
    options = parser.parse_args()
    with np.load(options.data, allow_pickle=False) as arrays:
        images, labels = arrays["x_test"], arrays["y_test"]
    factory = Factory.open(options.bundle)
    widths = factory.bundle.space.bit_widths
    if options.bits not in widths:
        parser.error(f"uniform subnets of {options.bundle} have {widths[0]} to {widths[-1]} bits")

    def hits(configuration: SubnetConfiguration) -> NDArray[np.bool_]:
        """Which images are classified right, [N]."""
        session = onnxruntime.InferenceSession(factory.build(configuration).files["model.onnx"])
        spec = factory.bundle.input
        mean, std = (np.array(values, np.float32)[:, None, None] for values in (spec.mean, spec.std))
        parts = []
        for start in range(0, len(labels), BATCH):
            batch = (images[start : start + BATCH].astype(np.float32) / 255 - mean) / std
            parts.append(session.run(["logits"], {"image": batch})[0].argmax(1))
        found: NDArray[np.bool_] = np.concatenate(parts) == labels
        return found

    floating = factory.bundle.float_accuracy
    print(f"{len(labels)} images, average {options.bits} bits; float network {100 * floating:.2f}")
    print(f"{'form':35}{'uniform':>9}{'searched':>10}{'predicted':>11}{'gain':>8}")
    uniform, searched, predictions = [], [], []
    for form in (FORMS[index] for index in options.forms):
        budget = Budget(weight_bits=float(options.bits), activation_bits=float(options.bits))
        found = factory.search(_any_bits(form), budget)
        uniform.append(hits(factory.bundle.space.uniform(form, options.bits)))
        searched.append(hits(found.configuration))
        predictions.append(found.predicted_accuracy)
        _print(form.name, uniform[-1].mean(), searched[-1].mean(), predictions[-1])
    # paired by image: most of the luck of the images is the same on both sides
    gains = np.mean(searched, axis=0) - np.mean(uniform, axis=0)
    error = gains.std(ddof=1) / np.sqrt(len(gains))
    _print("mean", np.mean(uniform), np.mean(searched), np.mean(predictions), f" +- {100 * error:.2f}")


def _any_bits(form: QuantizationForm) -> DeviceProfile:
    return DeviceProfile(
        weight_bits=BIT_WIDTHS,
        weight_granularity=form.weight_granularity,
        weight_symmetry=form.weight_symmetry,
        activation_bits=BIT_WIDTHS,
        activation_symmetry=form.activation_symmetry,
    )


def _print(name: str, uniform: float, searched: float, predicted: float, error: str = "") -> None:
    print(
        f"{name:35}{100 * uniform:9.2f}{100 * searched:10.2f}{100 * predicted:11.2f}"
        f"{100 * (searched - uniform):+8.2f}{error}",
        flush=True,
    )


if __name__ == "__main__":
    main()
