from __future__ import annotations

import json

import numpy as np
import onnx

from eqnet_core.export.encodings import encodings
from eqnet_core.export.onnx_exact import ExactExporter
from eqnet_core.subnet import Quantizer, Subnet


def grid(entry: dict[str, object], channel: int) -> tuple[float, float]:
    """Smallest and largest value that AIMET's encoding can express."""
    scale, offset, bits = entry["scale"], entry["offset"], entry["bw"]
    assert isinstance(scale, list)
    assert isinstance(offset, list)
    assert isinstance(bits, int)
    return scale[channel] * offset[channel], scale[channel] * (offset[channel] + 2**bits - 1)


def test_aimets_grids_are_ours(subnets: list[Subnet]) -> None:
    for subnet in subnets:
        document = json.loads(encodings(subnet))
        assert document["version"] == "1.0.0"
        for layer, weight, activation in zip(
            subnet.layers, document["param_encodings"], document["activation_encodings"], strict=True
        ):
            for entry, quantizer in ((weight, layer.weight), (activation, layer.activation)):
                check(entry, quantizer, subnet)


def check(entry: dict[str, object], quantizer: Quantizer, subnet: Subnet) -> None:
    assert (entry["dtype"], entry["bw"]) == ("INT", quantizer.bits)
    assert entry["enc_type"] == ("PER_CHANNEL" if quantizer.per_channel else "PER_TENSOR")
    offsets = entry["offset"]
    assert isinstance(offsets, list)
    assert all(offset <= 0 for offset in offsets)
    scales, zero_points = np.atleast_1d(quantizer.scale), np.atleast_1d(quantizer.zero_point)
    for channel in (0, len(scales) - 1):
        lowest, highest = grid(entry, channel)
        scale, zero_point = float(scales[channel]), int(zero_points[channel])
        assert highest == scale * (quantizer.high - zero_point)
        # codes that narrow range or a signed runtime leave unused are on AIMET's grid all the same
        assert lowest <= scale * (quantizer.low - zero_point)
        if not subnet.configuration.narrow_range and not subnet.configuration.signed:
            assert lowest == scale * (quantizer.low - zero_point)


def test_symmetric_means_signed_without_zero_point(subnets: list[Subnet]) -> None:
    symmetric, asymmetric = (json.loads(encodings(subnets[k])) for k in (0, 7))
    assert all(entry["is_sym"] for entry in symmetric["param_encodings"])
    assert not all(entry["is_sym"] for entry in asymmetric["param_encodings"])
    # after a ReLU the codes are unsigned, which AIMET does not call symmetric
    assert [entry["is_sym"] for entry in symmetric["activation_encodings"]] == [True] + [False] * 19


def test_names_are_values_of_the_onnx_file(exporter: ExactExporter, subnets: list[Subnet]) -> None:
    document = json.loads(encodings(subnets[6]))
    model = onnx.load_from_string(exporter.render(subnets[6], {}))
    values = {output for node in model.graph.node for output in node.output}
    entries = document["param_encodings"] + document["activation_encodings"]
    assert len(entries) == 40
    assert {entry["name"] for entry in entries} <= values


def test_same_subnet_same_bytes(subnets: list[Subnet]) -> None:
    assert encodings(subnets[2]) == encodings(subnets[2])
