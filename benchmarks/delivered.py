"""What is handed out, measured: predicted accuracy, top-1 of model.onnx, agreement of load_subnet.

    .venv/bin/python benchmarks/delivered.py --data cifar10.npz

Needs an `.npz` with `x_test` (uint8 [N, 3, H, W]) and `y_test`, images that training never saw.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from eqnet_core import load_subnet
from eqnet_core.factory import Factory
from eqnet_core.profile import Budget, DeviceProfile
from eqnet_core.space import BIT_WIDTHS, FORMS

BATCH = 100


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--bundle", default="resnet20-cifar10")
    parser.add_argument("--budgets", type=float, nargs="+", default=[2.5, 3.0, 4.0, 6.0])
    parser.add_argument("--forms", type=int, nargs="+", default=[5], help="indices of FORMS, 0 to 7")
    options = parser.parse_args()
    with np.load(options.data, allow_pickle=False) as arrays:
        images, labels = arrays["x_test"], arrays["y_test"]
    factory = Factory.open(options.bundle)
    spec = factory.bundle.input
    mean, std = (np.array(v, np.float32)[:, None, None] for v in (spec.mean, spec.std))
    print(f"{len(labels)} images; float network {100 * factory.bundle.float_accuracy:.2f}")
    print("form                                budget  predicted  onnx   load_subnet  same class")
    for form in (FORMS[index] for index in options.forms):
        profile = DeviceProfile(
            weight_bits=BIT_WIDTHS,
            weight_granularity=form.weight_granularity,
            weight_symmetry=form.weight_symmetry,
            activation_bits=BIT_WIDTHS,
            activation_symmetry=form.activation_symmetry,
        )
        for budget in (b for b in options.budgets if b >= factory.bundle.space.bit_widths[0]):
            found = factory.search(profile, Budget(weight_bits=budget, activation_bits=budget))
            build = factory.build(found.configuration)
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "model.safetensors"
                path.write_bytes(build.files["model.safetensors"])
                module = load_subnet(path).eval()
            session = onnxruntime.InferenceSession(build.files["model.onnx"])
            classes: dict[str, list[np.ndarray]] = {"onnx": [], "torch": []}
            for start in range(0, len(labels), BATCH):
                batch = (images[start : start + BATCH].astype(np.float32) / 255 - mean) / std
                classes["onnx"].append(session.run(["logits"], {"image": batch})[0].argmax(1))
                with torch.inference_mode():
                    classes["torch"].append(module(torch.from_numpy(batch)).argmax(1).numpy())
            onnx, simulated = (np.concatenate(parts) for parts in classes.values())
            print(
                f"{form.name:35s} {budget:6.1f}  {100 * found.predicted_accuracy:9.2f}"
                f"  {100 * (onnx == labels).mean():5.2f}  {100 * (simulated == labels).mean():11.2f}"
                f"  {100 * (onnx == simulated).mean():9.2f} %"
            )


if __name__ == "__main__":
    main()
