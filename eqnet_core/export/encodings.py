"""`encodings.json`: AIMET 1.0.0 encodings at the true bit-widths, for QNN's and SNPE's
`--quantization_overrides`.

Format as `aimet-torch` 2.x writes it (version 1.0.0: lists, `dtype` INT, offsets of *unsigned* codes, never
positive): `x = scale * (u + offset)` with u in 0 .. 2^bw - 1. Names are values of `model.onnx`:
`<layer>.weight` and `<layer>.input`, the dequantised weight and input of each layer.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from eqnet_core.subnet import Quantizer, Subnet


def encodings(subnet: Subnet) -> bytes:
    """UTF-8 JSON, the same bytes for the same subnet."""
    document = {
        "version": "1.0.0",
        "activation_encodings": [_encoding(f"{la.name}.input", la.activation) for la in subnet.layers],
        "param_encodings": [_encoding(f"{la.name}.weight", la.weight) for la in subnet.layers],
        "excluded_layers": [],
    }
    return (json.dumps(document, indent=2, sort_keys=True) + "\n").encode()


def _encoding(name: str, quantizer: Quantizer) -> dict[str, Any]:
    # Codes up to 2^bits - 1 are AIMET's unsigned codes already. Signed ones start at -2^(bits - 1), also
    # where the lowest go unused: with narrow range, and in 8-bit inputs that are never negative on a runtime
    # without unsigned types.
    signed = quantizer.high < 1 << (quantizer.bits - 1)
    first = -(1 << (quantizer.bits - 1)) if signed else 0
    offsets = first - np.atleast_1d(quantizer.zero_point)
    return {
        "name": name,
        "dtype": "INT",
        "bw": quantizer.bits,
        "enc_type": "PER_CHANNEL" if quantizer.per_channel else "PER_TENSOR",
        "is_sym": signed and not bool(quantizer.zero_point.any()),
        "scale": [float(scale) for scale in np.atleast_1d(quantizer.scale)],
        "offset": [int(offset) for offset in offsets],
    }
