"""Does a file keep to what an entry of the catalogue accepts?

Read with ONNX's own decoder and from the file alone, not with the code that wrote it nor from the subnet:
what a device's toolchain will see.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from eqnet_core.build import QONNX
from eqnet_core.devices.device import Device, Side
from eqnet_core.devices.rules import raise_if
from eqnet_core.errors import UnsupportedTargetError, Violation
from eqnet_core.export.qonnx import Quant, find_quants
from eqnet_core.profile import escape_pointer
from eqnet_core.space import Granularity, Symmetry

_MIDDLE = 128
"""uint8 codes with this zero-point are symmetric int8 codes moved up by half of the type: x = s * (q - 128).
The same values, and how ONNX writes signed activations where unsigned ones are uint8; fewer bits, which a
Clip between the pair tells, are moved up by half of their codes. The entry of a target that takes symmetric
ones only says so as unverified: no such target's documentation settles it.
"""


def check_files(device: Device, files: Mapping[str, bytes]) -> None:
    """Check those of `files` (artifacts by name) that `device` or its converter is given: `device.file`, or
    `model.onnx` where that could not be built.

    Raises:
        UnsupportedTargetError: a file that breaks a rule; names the layers and the rules.
        ProofError: as `check_qonnx`.
    """
    if device.file == QONNX:
        check_qonnx(device, files[QONNX])
    elif device.file in files:
        check_onnx(device, files[device.file])
    else:
        try:
            check_onnx(device, files["model.onnx"])
        except UnsupportedTargetError as error:
            raise UnsupportedTargetError(
                f"{error}; {device.file}, which is for it, needs a bundle with tensor ranges "
                "(its owner runs the `ranges` stage)",
                violations=error.violations,
            ) from error
    if "encodings.json" in files and "encodings" in device.origin.exchange:
        check_encodings(device, files["encodings.json"])


def check_onnx(device: Device, content: bytes) -> None:
    """Check types, Clips, zero-points, step sizes, granularity, axes and narrow range of an ONNX file.

    Raises:
        UnsupportedTargetError: as `check_files`.
    """
    raise_if(device, list(_OnnxRules(device, onnx.load_from_string(content)).violations()))


def check_qonnx(device: Device, content: bytes) -> None:
    """Check types, zero-points, step sizes, granularity, rounding and narrow range of Quant nodes.

    Raises:
        UnsupportedTargetError: as `check_files`.
        ProofError: a layer whose input or weight comes from no Quant.
    """
    model = onnx.load_from_string(content)
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    names = [node.name for node in model.graph.node if node.op_type in ("Conv", "Gemm")]
    violations = []
    for name, (activation, weight, _) in find_quants(model, names).items():
        granularity = Granularity.PER_CHANNEL if weight.scale.ndim else Granularity.PER_TENSOR
        narrow = device.profile.narrow_range and weight.codes[0] != -weight.codes[1]
        channels, *rest = shapes.get(weight.value, (0,))
        faults = {
            "weight": {
                f"has {granularity} step sizes": granularity not in device.granularities,
                "has not one step size per channel": weight.scale.shape
                not in ((), (channels, *(1 for _ in rest))),
                "uses the lowest code": narrow,
                **_quant_faults(device.weight, weight),
            },
            "activation": {
                "has a step size per channel": activation.scale.ndim > 0,
                **_quant_faults(device.activation, activation),
            },
        }
        for side, found in faults.items():
            violations += _violations(device, (name, "", side), found)
    raise_if(device, violations)


def _quant_faults(side: Side, quant: Quant) -> dict[str, bool]:
    return {
        f"is in {quant.type}": quant.type not in side.file_types,
        f"is rounded by {quant.rounding}": quant.rounding != "ROUND",
        **_parameter_faults(side, quant.scale, quant.zero_point),
    }


def check_encodings(device: Device, content: bytes) -> None:
    """Check bit-widths, symmetry and granularity of `encodings.json`.

    Raises:
        UnsupportedTargetError: as `check_files`.
    """
    document = json.loads(content)
    symmetric = Symmetry.ASYMMETRIC not in device.weight.symmetries
    violations = []
    for kind, side in (("param_encodings", device.weight), ("activation_encodings", device.activation)):
        for entry in document[kind]:
            per_tensor = entry["enc_type"] == "PER_TENSOR"
            granularity = Granularity.PER_TENSOR if per_tensor else Granularity.PER_CHANNEL
            weight = side is device.weight
            accepted = device.granularities if weight else (Granularity.PER_TENSOR,)
            faults = {
                "is no INT encoding": entry["dtype"] != "INT",
                f"has {entry['bw']} bits": entry["bw"] not in side.containers,
                f"is {granularity}": granularity not in accepted,
                "is not symmetric": weight and symmetric and not entry["is_sym"],
                "has a step size that is not positive": not all(scale > 0 for scale in entry["scale"]),
            }
            violations += _violations(device, entry["name"].rpartition("."), faults)
    raise_if(device, violations)


def _violations(device: Device, place: tuple[str, str, str], faults: Mapping[str, bool]) -> list[Violation]:
    layer, _, side = place
    pointer = f"/layers/{escape_pointer(layer)}/{side}"
    return [
        Violation(pointer, f"{fault}, which {device.name} does not take")
        for fault, present in faults.items()
        if present
    ]


class _OnnxRules:
    """The rules, over the Q/DQ nodes of one file."""

    def __init__(self, device: Device, model: onnx.ModelProto) -> None:
        self.device = device
        self.nodes = list(model.graph.node)
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self.producers = {output: node for node in self.nodes for output in node.output}
        self.consumers = {name: node for node in self.nodes for name in node.input}

    def violations(self) -> Iterable[Violation]:
        weights = set()
        for node in self.nodes:
            if node.op_type in ("Conv", "Gemm"):
                yield from self._layer(node)
                weights |= set(node.input[1:])
        for node in self.nodes:
            if node.op_type in ("QuantizeLinear", "DequantizeLinear") and node.output[0] not in weights:
                yield from self._activation(node)

    def _layer(self, layer: onnx.NodeProto) -> list[Violation]:
        dequantizers = [self.producers.get(name) for name in layer.input]
        quantized = [node is not None and node.op_type == "DequantizeLinear" for node in dequantizers]
        faults = {"is not quantised": not all(quantized[:2])}
        weight = dequantizers[1]
        if quantized[1] and weight is not None:
            faults |= self._weight_faults(layer, weight)
        found = _violations(self.device, (layer.name, "", "weight"), faults)
        if len(layer.input) > 2:
            # A classifier's float bias is added after the integer product; a convolution's would be rounded,
            # but not where activations are signed, as in files for TensorRT, which dequantises no int32.
            signed = quantized[0] and self._is_signed(dequantizers[0])
            floating = layer.op_type == "Conv" and not signed and not quantized[2]
            in_int32 = self.device.profile.signed and quantized[2]
            faults = {"is in floating point": floating, "is in int32": in_int32}
            found += _violations(self.device, (layer.name, "", "bias"), faults)
        return found

    def _weight_faults(self, layer: onnx.NodeProto, dequantize: onnx.NodeProto) -> dict[str, bool]:
        codes, (scale, zero_point) = self._array(dequantize.input[0]), self._parameters(dequantize)
        kind = onnx.TensorProto.DataType.Name(self.constants[dequantize.input[0]].data_type).lower()
        granularity = Granularity.PER_CHANNEL if scale.ndim else Granularity.PER_TENSOR
        # A Gemm's output channels are its weight's first axis only where the weight is transposed.
        transposed = layer.op_type == "Conv" or _integer(layer, "transB", 0) == 1
        axis = _integer(dequantize, "axis", 1)
        limits = {"int4": -8, "int8": -128}
        return {
            f"is in {kind}": kind not in self.device.weight.file_types,
            f"has {granularity} step sizes": granularity not in self.device.granularities,
            f"has its channels along axis {axis}": bool(scale.ndim) and not (axis == 0 and transposed),
            "has not one step size per channel": bool(scale.ndim) and scale.shape != codes.shape[:1],
            "uses the lowest code": self.device.profile.narrow_range
            and bool((codes.astype(np.int32) == limits.get(kind, 0)).any()),
            **_parameter_faults(self.device.weight, scale, zero_point),
        }

    def _activation(self, node: onnx.NodeProto) -> list[Violation]:
        scale, zero_point = self._parameters(node)
        kind = str(zero_point.dtype)
        dequantizing = node.op_type == "DequantizeLinear"
        beside = self.producers.get(node.input[0]) if dequantizing else self.consumers.get(node.output[0])
        clip = beside if beside is not None and beside.op_type == "Clip" else None
        # A device with unsigned activations is given signed ones in the same type (`activation_container`).
        middle = (
            _MIDDLE if clip is None else (sum(int(self._array(name)) for name in clip.input[1:3]) + 1) // 2
        )
        signed = kind == "uint8" and not self.device.profile.signed and zero_point.item() == middle
        shift = middle if signed else 0
        faults = {
            f"is in {kind}": kind not in self.device.activation.file_types,
            "has a step size per channel": scale.ndim > 0,
            **_parameter_faults(self.device.activation, scale, zero_point.astype(np.int32) - shift),
        }
        # TensorRT clips floating-point values only, and knows a pair by its neighbourhood.
        faults["has a Clip of integers"] = self.device.profile.signed and dequantizing and clip is not None
        name = node.name.rpartition(".")[0].removesuffix(".input")
        return _violations(self.device, (name, "", "activation"), faults)

    def _parameters(self, node: onnx.NodeProto) -> tuple[NDArray[Any], NDArray[Any]]:
        scale = self._array(node.input[1])
        if len(node.input) > 2:
            return scale, self._array(node.input[2])
        return scale, np.zeros(scale.shape, np.uint8)  # ONNX's default

    def _is_signed(self, dequantize: onnx.NodeProto | None) -> bool:
        return dequantize is not None and self._parameters(dequantize)[1].dtype == np.int8

    def _array(self, name: str) -> NDArray[Any]:
        array: NDArray[Any] = numpy_helper.to_array(self.constants[name])
        return array


def _parameter_faults(side: Side, scale: NDArray[Any], zero_point: NDArray[Any]) -> dict[str, bool]:
    return {
        "has a zero-point other than 0": (
            Symmetry.ASYMMETRIC not in side.symmetries and bool(zero_point.astype(np.int32).any())
        ),
        "has a step size that is not positive": not bool((np.isfinite(scale) & (scale > 0)).all()),
    }


def _integer(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == name), default)
