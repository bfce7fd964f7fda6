"""`report.json`: what was built, what it costs, and the proof that it computes what was simulated."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from eqnet_core.configuration_json import configuration_to_json
from eqnet_core.devices.device import Device
from eqnet_core.devices.rules import held_in
from eqnet_core.export.containers import activation_container, weight_container
from eqnet_core.export.packing import packed_bytes
from eqnet_core.space import LayerSpec, Symmetry
from eqnet_core.subnet import QuantizedLayer, Subnet

if TYPE_CHECKING:
    from eqnet_core.export.folding import FoldedLayer, IntegerSubnet, TensorQuantizer
    from eqnet_core.export.integer_proof import IntegerProof
    from eqnet_core.export.proof import Proof


def report(
    subnet: Subnet,
    *,
    proofs: Mapping[str, Proof | IntegerProof],
    sizes: Mapping[str, int],
    cost: Mapping[str, Any],
    metadata: Mapping[str, Any],
    integers: IntegerSubnet | None = None,
    integer_accuracy: Mapping[str, Any] | None = None,
    device: Device | None = None,
) -> bytes:
    """UTF-8 JSON; equal arguments give equal bytes.

    Args:
        proofs: by file name, such as `model.onnx`.
        sizes: bytes of every file that was built, by name.
        cost: the `cost` object of the HTTP contract.
        metadata: bundle name and digest, predicted accuracy and the like, copied as it is.
        integers: the subnet as `model.integer.onnx` has it, if that was built.
        integer_accuracy: the predicted accuracy of that flavour and how it was come by, copied as it is.
        device: what the subnet is for; the result then says what it holds each layer in (`on_device`).

    The result's `weight_bytes` are of the weights alone: `true_bits` packed at their bit-widths, `containers`
    as `model.onnx` stores them, `integer` as `model.integer.onnx` does (int8, all of them). `ideal_bytes` is
    the smallest file that holds what `model.safetensors` does: true-bit weights, step sizes and biases and
    the four vectors of each BatchNorm as float32, zero-points (asymmetric only) as one byte each. The cost's
    `model_bytes` is smaller: there a BatchNorm is a scale and a shift, as runtimes fold it.
    """
    specs = {spec.name: spec for spec in subnet.space.layers}
    layers = [_layer(layer, specs[layer.name], signed=subnet.configuration.signed) for layer in subnet.layers]
    true_bits = sum(entry["weight"]["true_bit_bytes"] for entry in layers)
    document: dict[str, Any] = {
        "architecture": subnet.architecture,
        "configuration": configuration_to_json(subnet.configuration, subnet.space),
        "cost": dict(cost),
        "files": {name: {"bytes": size} for name, size in sizes.items()},
        "ideal_bytes": true_bits + _parameter_bytes(subnet),
        "layers": layers,
        "metadata": dict(metadata),
        "proofs": {name: proof.to_json() for name, proof in proofs.items()},
        "weight_bytes": {
            "true_bits": true_bits,
            "containers": sum(entry["weight"]["container_bytes"] for entry in layers),
            "float32": sum(4 * layer.codes.size for layer in subnet.layers),
        },
    }
    if device is not None:
        given = device.file in sizes
        missing = f"{device.file}, which it is meant to run, needs a bundle with tensor ranges"
        document["device"] = {
            "name": device.name,
            "title": device.origin.title,
            "file": device.file if given else "model.onnx",
            "date": device.origin.date,
            "confidence": device.origin.confidence,
            "unverified": [*device.origin.unverified, *([] if given else [missing])],
        }
        for entry, held in zip(layers, held_in(device, subnet), strict=True):
            entry["weight"]["on_device"] = held["weight"]
            entry["activation"]["on_device"] = held["activation"]
    if integers is not None:
        document["weight_bytes"]["integer"] = sum(layer.codes.size for layer in integers.layers.values())
        document["integer"] = {
            "accuracy": dict(integer_accuracy or {}),
            "layers": {name: _folded(layer, integers) for name, layer in integers.layers.items()},
            "tensors": {name: _tensor(tensor) for name, tensor in integers.tensors.items()},
        }
    return (json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _layer(layer: QuantizedLayer, spec: LayerSpec, *, signed: bool) -> dict[str, Any]:
    container = weight_container(layer.weight)
    held = activation_container(layer, spec, signed=signed)
    return {
        "name": layer.name,
        "kind": spec.kind,
        "searchable": spec.searchable,
        "shape": list(layer.codes.shape),
        "weight": {
            "bits": layer.weight.bits,
            "codes": [layer.weight.low, layer.weight.high],
            "container": container.type,
            "true_bit_bytes": packed_bytes(layer.codes.size, layer.weight.bits),
            "container_bytes": packed_bytes(layer.codes.size, 4 if container.type == "int4" else 8),
        },
        "activation": {
            "bits": layer.activation.bits,
            "codes": [layer.activation.low, layer.activation.high],
            "container": held.type,
            "clipped": held.clip,
        },
    }


def _folded(layer: FoldedLayer, integers: IntegerSubnet) -> dict[str, Any]:
    return {
        "weight_codes": [int(layer.codes.min()), int(layer.codes.max())],
        "rounded": layer.rounded,
        "requantized": layer.name in integers.requantized,
    }


def _tensor(tensor: TensorQuantizer) -> dict[str, Any]:
    return {"bits": tensor.bits, "container": tensor.type, "codes": [tensor.low, tensor.high]}


def _parameter_bytes(subnet: Subnet) -> int:
    values, zero_points, form = 0, 0, subnet.configuration.form
    for layer in subnet.layers:
        for quantizer in (layer.weight, layer.activation):
            values += quantizer.scale.size
        if form.weight_symmetry is Symmetry.ASYMMETRIC:
            zero_points += layer.weight.zero_point.size
        if form.activation_symmetry is Symmetry.ASYMMETRIC:
            zero_points += layer.activation.zero_point.size
        values += 0 if layer.bias is None else layer.bias.size
    values += sum(4 * norm.scale.size for norm in subnet.batch_norms.values())
    return 4 * values + zero_points
