"""What a supernet hands to export is what the supernet itself computes, up to the files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from eqnet_core.calibration import calibrate_batch_norm
from eqnet_core.export.onnx_exact import ExactExporter
from eqnet_core.export.proof import prove
from eqnet_core.export.state_dict import load_subnet, save_subnet
from eqnet_core.space import FORMS
from eqnet_core.supernet import Supernet


@pytest.fixture(scope="module")
def supernet_exporter(supernet: Supernet) -> ExactExporter:
    return ExactExporter(supernet.architecture, supernet.input, supernet.classes)


@pytest.mark.parametrize(
    ("form", "bits", "narrow_range", "signed"),
    [(0, 2, False, False), (1, 4, True, False), (6, 3, False, True), (5, 8, True, True)],
)
def test_supernet_subnet_and_files_agree(
    form: int,
    bits: int,
    narrow_range: bool,
    signed: bool,
    supernet: Supernet,
    images: torch.Tensor,
    supernet_exporter: ExactExporter,
    tmp_path: Path,
) -> None:
    configuration = supernet.space.uniform(FORMS[form], bits, narrow_range=narrow_range, signed=signed)
    before = supernet.statistics()
    supernet.activate(configuration)
    subnet = supernet.extract(configuration, calibrate_batch_norm(supernet, [images]))
    try:
        with torch.no_grad():
            simulated = supernet(images[:16])
    finally:
        supernet.set_statistics(before)
    path = tmp_path / "model.safetensors"
    path.write_bytes(save_subnet(subnet, {}))
    loaded = load_subnet(path)(images[:16])
    # a rounding that falls the other way moves single images; most are equal to float32 rounding
    apart = (loaded - simulated).abs().amax(1) / simulated.std()
    assert apart.median() < 1e-4
    found = prove(supernet_exporter.render(subnet, {}), subnet, images[:16].numpy())
    assert found.optimizer_default.layer_difference < found.tolerance.layer
