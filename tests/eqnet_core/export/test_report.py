from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from eqnet_core.export.onnx_exact import ExactExporter
from eqnet_core.export.proof import prove
from eqnet_core.export.report import report
from eqnet_core.export.state_dict import save_subnet
from eqnet_core.space import FORMS, QuantizationForm, SearchSpace, SubnetConfiguration
from eqnet_core.subnet import Subnet


def test_report_adds_up(
    exporter: ExactExporter, subnets: list[Subnet], pictures: NDArray[np.float32]
) -> None:
    subnet = subnets[5]
    files = {"model.onnx": exporter.render(subnet, {}), "model.safetensors": save_subnet(subnet, {})}
    content = report(
        subnet,
        proofs={"model.onnx": prove(files["model.onnx"], subnet, pictures[:8])},
        sizes={name: len(file) for name, file in files.items()},
        cost={"weight_bits": 4.5},
        metadata={"bundle": "sha256:2"},
    )
    document = json.loads(content)
    weights = document["weight_bytes"]
    assert weights["true_bits"] == sum(entry["weight"]["true_bit_bytes"] for entry in document["layers"])
    assert weights["true_bits"] <= weights["containers"] <= weights["float32"] / 4
    assert weights["true_bits"] < document["ideal_bytes"] < document["files"]["model.safetensors"]["bytes"]
    assert document["files"]["model.onnx"]["bytes"] > weights["containers"]
    assert document["cost"] == {"weight_bits": 4.5}
    assert document["metadata"] == {"bundle": "sha256:2"}
    assert document["proofs"]["model.onnx"]["optimizer_default"]["top1"] >= 6 / 8
    first, second = document["layers"][:2]
    assert (first["searchable"], second["searchable"]) == (False, True)
    assert second["weight"]["bits"] == subnet.configuration.weight_bits[0]
    assert second["weight"]["container"] == ("int4" if second["weight"]["bits"] <= 4 else "int8")


@pytest.mark.parametrize(
    ("form", "step_sizes", "zero_points"),
    [(FORMS[0], 2 * 20, 0), (FORMS[1], 2 * 20, 20), (FORMS[7], 688 + 10 + 20, 688 + 10 + 20)],
    ids=lambda value: getattr(value, "name", None),
)
def test_ideal_size_of_a_uniform_subnet(
    make_subnet: Callable[[SubnetConfiguration], Subnet],
    space: SearchSpace,
    form: QuantizationForm,
    step_sizes: int,
    zero_points: int,
) -> None:
    """By hand: ResNet-20 has 267,264 searchable weights, 432 + 640 outer ones, 688 BatchNorm channels, 10
    biases.
    """
    subnet = make_subnet(space.uniform(form, 3))
    document = json.loads(report(subnet, proofs={}, sizes={}, cost={}, metadata={}))
    true_bits = 267_264 * 3 // 8 + 432 + 640
    assert document["weight_bytes"]["true_bits"] == true_bits
    assert document["ideal_bytes"] == true_bits + 4 * (step_sizes + 10 + 4 * 688) + zero_points
