"""`model.safetensors`: a subnet's integers at their true bit-widths, readable without supernet or bundle.

Tensors, for every layer and BatchNorm by name:

    <layer>.weight.codes       uint8, packed as `packing` says (2 to 8 bits per code)
    <layer>.weight.scale       float32 [] or [C];   <layer>.weight.zero_point int8, same shape
    <layer>.input.scale        float32 [];          <layer>.input.zero_point  int16 []
    <layer>.bias               float32 [C], where the layer has one
    <norm>.scale, .shift, .mean, .variance   float32 [C]

The header's metadata has one key, `eqnet`: JSON with format, architecture, input, classes, space,
configuration, the layers' shapes, bits and code ranges, the BatchNorms' epsilons, what the caller gave as
metadata, and a SHA-256 over all of that and all tensors, so that a damaged file is refused rather than
loaded.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from eqnet_core.configuration_json import configuration_from_json, configuration_to_json
from eqnet_core.errors import ArtifactError, InvalidConfigurationError
from eqnet_core.export.packing import pack_codes, unpack_codes
from eqnet_core.space import BIT_WIDTHS, FIXED_BITS, LayerSpec, SearchSpace
from eqnet_core.subnet import BatchNorm, InputSpec, QuantizedLayer, Quantizer, Subnet

if TYPE_CHECKING:
    from eqnet_core.export.module import SubnetModule

FORMAT = "eqnet-subnet/1"
_MAX_BYTES = 1 << 30


def save_subnet(subnet: Subnet, metadata: Mapping[str, str]) -> bytes:
    """The file's bytes; equal arguments give equal bytes. `read_metadata` returns `metadata`."""
    tensors: dict[str, NDArray[Any]] = {}
    for layer in subnet.layers:
        tensors[f"{layer.name}.weight.codes"] = pack_codes(layer.codes, layer.weight.bits)
        tensors[f"{layer.name}.weight.scale"] = layer.weight.scale.astype(np.float32)
        tensors[f"{layer.name}.weight.zero_point"] = layer.weight.zero_point.astype(np.int8)
        tensors[f"{layer.name}.input.scale"] = layer.activation.scale.astype(np.float32)
        tensors[f"{layer.name}.input.zero_point"] = layer.activation.zero_point.astype(np.int16)
        if layer.bias is not None:
            tensors[f"{layer.name}.bias"] = layer.bias.astype(np.float32)
    for name, norm in subnet.batch_norms.items():
        for field in ("scale", "shift", "mean", "variance"):
            tensors[f"{name}.{field}"] = getattr(norm, field).astype(np.float32)
    header = _header(subnet, metadata)
    header["sha256"] = _digest(header, tensors)
    # np.ascontiguousarray would turn a scalar into an array of one
    contiguous = {name: np.require(array, requirements="C") for name, array in tensors.items()}
    return save(contiguous, {"eqnet": _json(header)})


def load_subnet(path: str | PathLike[str]) -> SubnetModule:
    """The subnet of a `model.safetensors`, ready to run: normalised float32 images [N, C, H, W] to logits.

    The module's `subnet` has the class names and the normalisation of the input.

    Raises:
        ArtifactError: not such a file, or a damaged one.
    """
    from eqnet_core.export.module import build_module

    return build_module(read_subnet(path))


def read_subnet(path: str | PathLike[str]) -> Subnet:
    """The same without torch: the integers as NumPy arrays.

    Raises:
        ArtifactError: not such a file, or a damaged one.
    """
    tensors, header = _read(path)
    try:
        space = SearchSpace(tuple(LayerSpec(**spec) for spec in header["space"]))
        subnet = Subnet(
            architecture=str(header["architecture"]),
            input=_input(header["input"]),
            classes=tuple(str(name) for name in header["classes"]),
            space=space,
            configuration=configuration_from_json(header["configuration"], space),
            layers=tuple(_layer(entry, tensors) for entry in header["layers"]),
            batch_norms={
                name: _batch_norm(name, float(epsilon), tensors)
                for name, epsilon in header["batch_norms"].items()
            },
        )
        if [layer.name for layer in subnet.layers] != [spec.name for spec in space.layers]:
            raise ArtifactError(f"{Path(path).name} does not hold each of its layers once, in order")
        _check_bits(subnet)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, InvalidConfigurationError) as error:
        raise ArtifactError(f"{Path(path).name} does not hold a complete subnet: {error}") from error
    return subnet


def read_metadata(path: str | PathLike[str]) -> dict[str, str]:
    """What `save_subnet` was given as metadata, such as bundle digest and predicted accuracy.

    Raises:
        ArtifactError: not such a file, or a damaged one.
    """
    return dict(_read(path)[1]["metadata"])


def _header(subnet: Subnet, metadata: Mapping[str, str]) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "architecture": subnet.architecture,
        "input": asdict(subnet.input),
        "classes": list(subnet.classes),
        "space": [asdict(spec) for spec in subnet.space.layers],
        "configuration": configuration_to_json(subnet.configuration, subnet.space),
        "layers": [
            {
                "name": layer.name,
                "shape": list(layer.codes.shape),
                "weight": _codes(layer.weight),
                "input": _codes(layer.activation),
                "bias": layer.bias is not None,
            }
            for layer in subnet.layers
        ],
        "batch_norms": {name: norm.epsilon for name, norm in subnet.batch_norms.items()},
        "metadata": dict(metadata),
    }


def _codes(quantizer: Quantizer) -> dict[str, int]:
    return {"bits": quantizer.bits, "low": quantizer.low, "high": quantizer.high}


def _read(path: str | PathLike[str]) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    name = Path(path).name
    try:
        if Path(path).stat().st_size > _MAX_BYTES:
            raise ArtifactError(f"{name} is larger than any subnet (1 GiB)")
        content = Path(path).read_bytes()
    except OSError as error:
        raise ArtifactError(f"cannot read {name}: {error.strerror}") from error
    try:
        tensors = load(content)
        # safetensors checks the header's length and layout when it loads; only then is it read here
        length = int.from_bytes(content[:8], "little")
        text = json.loads(content[8 : 8 + length]).get("__metadata__", {}).get("eqnet", "null")
        header = json.loads(text)
    except (SafetensorError, AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{name} is not a safetensors file, or is damaged: {error}") from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise ArtifactError(f"{name} is not a subnet of this version of EQ-Net Serve ({FORMAT})")
    if header.pop("sha256", None) != _digest(header, tensors):
        raise ArtifactError(f"{name} is damaged: its content does not match its digest")
    return tensors, header


def _input(entry: Mapping[str, Any]) -> InputSpec:
    shape, mean, std = (tuple(entry[key]) for key in ("shape", "mean", "std"))
    if len(shape) != 3 or not all(isinstance(size, int) and size > 0 for size in shape):
        raise ArtifactError(f"the input has the shape {list(shape)}, which no image has")
    fits = len(mean) == len(std) == shape[0]
    if not fits or not np.isfinite([*mean, *std]).all() or min(std) <= 0:
        raise ArtifactError(f"the input is not normalised by {shape[0]} means and positive deviations")
    return InputSpec(shape=shape, mean=mean, std=std)


def _check_bits(subnet: Subnet) -> None:
    """The bits that the configuration states, and the codes that follow, are those of the layers."""
    configuration = subnet.configuration
    chosen = iter(zip(configuration.weight_bits, configuration.activation_bits, strict=True))
    for layer, spec in zip(subnet.layers, subnet.space.layers, strict=True):
        weight_bits, activation_bits = next(chosen) if spec.searchable else (FIXED_BITS, FIXED_BITS)
        if (layer.weight.bits, layer.activation.bits) != (weight_bits, activation_bits):
            raise ArtifactError(
                f"{layer.name} has {layer.weight.bits}/{layer.activation.bits} bits, "
                f"the configuration {weight_bits}/{activation_bits}"
            )
        ranges = spec.code_ranges(
            weight_bits,
            activation_bits,
            narrow_range=configuration.narrow_range,
            signed=configuration.signed,
        )
        found = ((layer.weight.low, layer.weight.high), (layer.activation.low, layer.activation.high))
        if found != ranges:
            raise ArtifactError(f"{layer.name} has codes in {found}, of its bits are {ranges}")


def _layer(entry: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]]) -> QuantizedLayer:
    name = entry["name"]
    weight = _quantizer(f"{name}.weight", entry["weight"], tensors)
    channels = int(entry["shape"][0])
    if weight.scale.shape not in ((), (channels,)):
        raise ArtifactError(f"{name}.weight has {weight.scale.size} step sizes for {channels} channels")
    codes = unpack_codes(tensors[f"{name}.weight.codes"], weight.bits, tuple(entry["shape"]))
    _check_range(f"the weight codes of {name}", codes, weight.low, weight.high)
    activation = _quantizer(f"{name}.input", entry["input"], tensors)
    if activation.per_channel:
        raise ArtifactError(f"{name}.input has more than one step size")
    bias = tensors[f"{name}.bias"] if entry["bias"] else None
    if bias is not None and (bias.shape != (channels,) or not np.isfinite(bias).all()):
        raise ArtifactError(f"the bias of {name} is not {channels} finite numbers")
    return QuantizedLayer(name=name, codes=codes, weight=weight, activation=activation, bias=bias)


def _quantizer(name: str, entry: Mapping[str, int], tensors: Mapping[str, NDArray[Any]]) -> Quantizer:
    scale, zero_point = tensors[f"{name}.scale"], tensors[f"{name}.zero_point"].astype(np.int32)
    if entry["bits"] not in BIT_WIDTHS or not -128 <= entry["low"] < entry["high"] <= 255:
        raise ArtifactError(
            f"{name} has the codes {entry['low']}..{entry['high']} of {entry['bits']} bits, "
            "which no subnet has"
        )
    if scale.dtype != np.float32:
        raise ArtifactError(f"the step sizes of {name} are {scale.dtype}, not float32")
    if zero_point.shape != scale.shape:
        raise ArtifactError(f"{name} has {scale.size} step sizes and {zero_point.size} zero-points")
    if not (np.isfinite(scale) & (scale > 0)).all():
        raise ArtifactError(f"a step size of {name} is not positive")
    _check_range(f"the zero-point of {name}", zero_point, entry["low"], entry["high"])
    return Quantizer(
        bits=entry["bits"], low=entry["low"], high=entry["high"], scale=scale, zero_point=zero_point
    )


def _check_range(what: str, values: NDArray[Any], low: int, high: int) -> None:
    if values.size and (values.min() < low or values.max() > high):
        raise ArtifactError(f"{what} is outside {low}..{high}")


def _batch_norm(name: str, epsilon: float, tensors: Mapping[str, NDArray[Any]]) -> BatchNorm:
    arrays = [tensors[f"{name}.{field}"] for field in ("scale", "shift", "mean", "variance")]
    variance = arrays[-1]
    if any(a.shape != variance.shape or a.ndim != 1 or not np.isfinite(a).all() for a in arrays):
        raise ArtifactError(f"the BatchNorm {name} does not have four finite numbers for every channel")
    if not epsilon > 0 or (variance < 0).any():
        raise ArtifactError(f"the BatchNorm {name} has a negative variance or epsilon")
    return BatchNorm(
        scale=tensors[f"{name}.scale"],
        shift=tensors[f"{name}.shift"],
        mean=tensors[f"{name}.mean"],
        variance=tensors[f"{name}.variance"],
        epsilon=epsilon,
    )


def _digest(header: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]]) -> str:
    """Hex SHA-256 over the canonical header and every tensor's name, type, shape and bytes."""
    digest = hashlib.sha256(_json(header).encode())
    for name in sorted(tensors):
        array = tensors[name]
        digest.update(f"\0{name}\0{array.dtype.str}\0{array.shape}\0".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _json(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
