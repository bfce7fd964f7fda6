from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import save

from eqnet_core.errors import ArtifactError
from eqnet_core.export.module import build_module
from eqnet_core.export.packing import packed_bytes
from eqnet_core.export.state_dict import load_subnet, read_metadata, read_subnet, save_subnet
from eqnet_core.subnet import Subnet


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


def test_every_form_comes_back_bit_for_bit(
    subnets: list[Subnet], path: Path, pictures: NDArray[np.float32]
) -> None:
    x = torch.from_numpy(pictures[:4])
    for subnet in subnets:
        path.write_bytes(save_subnet(subnet, {"bundle": "sha256:1"}))
        loaded = load_subnet(path)
        assert torch.equal(loaded(x), build_module(subnet)(x))
        assert loaded.subnet.configuration == subnet.configuration
        assert (loaded.subnet.space, loaded.subnet.input) == (subnet.space, subnet.input)
        assert loaded.subnet.classes == subnet.classes
        for ours, theirs in zip(subnet.layers, loaded.subnet.layers, strict=True):
            assert np.array_equal(ours.codes, theirs.codes)
            assert np.array_equal(ours.weight.zero_point, theirs.weight.zero_point)
    assert read_metadata(path) == {"bundle": "sha256:1"}


def test_weights_take_their_true_bits(subnets: list[Subnet], path: Path) -> None:
    for subnet in subnets[:3]:
        file = save_subnet(subnet, {})
        header = json.loads(file[8 : 8 + int.from_bytes(file[:8], "little")])
        for layer in subnet.layers:
            start, end = header[f"{layer.name}.weight.codes"]["data_offsets"]
            assert end - start == packed_bytes(layer.codes.size, layer.weight.bits)


def test_same_subnet_same_bytes(subnets: list[Subnet]) -> None:
    metadata = {"bundle": "x", "predicted_accuracy": "0.9"}
    assert save_subnet(subnets[4], metadata) == save_subnet(subnets[4], dict(reversed(metadata.items())))


def test_any_flipped_bit_is_noticed(subnets: list[Subnet], path: Path) -> None:
    file = save_subnet(subnets[1], {})
    generator = np.random.default_rng(0)
    length = 8 + int.from_bytes(file[:8], "little")
    places = [*generator.integers(0, length, 40), *generator.integers(length, len(file), 40)]
    for place in places:
        damaged = bytearray(file)
        damaged[place] ^= 1 << int(generator.integers(8))
        path.write_bytes(bytes(damaged))
        with pytest.raises(ArtifactError):
            read_subnet(path)


def test_cut_files_are_refused(subnets: list[Subnet], path: Path) -> None:
    file = save_subnet(subnets[1], {})
    for length in (0, 7, 100, len(file) // 2, len(file) - 1):
        path.write_bytes(file[:length])
        with pytest.raises(ArtifactError, match=r"model\.safetensors"):
            load_subnet(path)


def test_foreign_files_are_refused(path: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="cannot read"):
        load_subnet(tmp_path / "absent")
    for content in (
        save({"weight": np.zeros(3, np.float32)}),
        save({"weight": np.zeros(3, np.float32)}, {"eqnet": "[]"}),
        save({"weight": np.zeros(3, np.float32)}, {"eqnet": '{"format": "eqnet-subnet/99"}'}),
    ):
        path.write_bytes(content)
        with pytest.raises(ArtifactError, match="not a subnet of this version"):
            load_subnet(path)


def forged(subnet: Subnet) -> Iterator[tuple[str, Subnet]]:
    """Files that are whole, digest and all, but of no subnet; with what the error says."""
    layer, name = subnet.layers[3], "layer1.0.bn1"
    norm = subnet.batch_norms[name]

    def other_layer(**changes: Any) -> Subnet:
        changed = replace(layer, **changes)
        layers = tuple(changed if one.name == layer.name else one for one in subnet.layers)
        return replace(subnet, layers=layers)

    def other_norm(**changes: Any) -> Subnet:
        return replace(subnet, batch_norms={**subnet.batch_norms, name: replace(norm, **changes)})

    def other_weight(scales: int, zero_points: int) -> Subnet:
        scale, zero_point = np.ones(scales, np.float32), np.zeros(zero_points, np.int32)
        return other_layer(weight=replace(layer.weight, scale=scale, zero_point=zero_point))

    two = replace(layer.activation, scale=np.ones(2, np.float32), zero_point=np.zeros(2, np.int32))
    yield "layer1.0.bn1.*four finite", other_norm(variance=np.full_like(norm.variance, np.nan))
    yield "layer1.0.bn1.*four finite", other_norm(scale=np.full_like(norm.scale, np.inf))
    yield "layer1.0.bn1.*four finite", other_norm(mean=norm.mean[:-1])
    yield "layer1.0.bn1.*negative", other_norm(variance=-np.ones_like(norm.variance))
    yield "layer1.0.bn1.*negative", other_norm(epsilon=-1.0)
    yield "3 step sizes for 16 channels", other_weight(3, 3)
    yield "16 step sizes and 3 zero-points", other_weight(16, 3)
    yield "more than one step size", other_layer(activation=two)
    yield "which no subnet has", other_layer(activation=replace(layer.activation, low=-(10**5), high=10**5))
    yield "which no subnet has", other_layer(activation=replace(layer.activation, low=5, high=2))
    yield "the bias of", other_layer(bias=np.full(16, np.nan, np.float32))
    yield "the bias of", other_layer(bias=np.ones(2, np.float32))
    yield "which no image has", replace(subnet, input=replace(subnet.input, shape=(3, -1, 32)))
    yield "3 means and positive deviations", replace(subnet, input=replace(subnet.input, mean=(0.5,)))
    yield "3 means and positive deviations", replace(subnet, input=replace(subnet.input, std=(1.0, 0.0, 1.0)))
    first, *others = subnet.configuration.weight_bits
    bits = (2 if first == 8 else 8, *others)
    yield "the configuration", replace(subnet, configuration=replace(subnet.configuration, weight_bits=bits))
    first, *others = subnet.configuration.activation_bits
    bits = (2 if first == 8 else 8, *others)
    yield (
        "the configuration",
        replace(subnet, configuration=replace(subnet.configuration, activation_bits=bits)),
    )
    wide = replace(layer.weight, low=-128, high=255)
    yield "codes in .*-128, 255", other_layer(weight=wide)
    wide = replace(layer.activation, low=-128, high=255)
    yield "codes in .*-128, 255", other_layer(activation=wide)
    yield "each of its layers once", replace(subnet, layers=subnet.layers[1:])
    yield "each of its layers once", replace(subnet, layers=(*subnet.layers, subnet.layers[0]))
    yield "the architecture needs", replace(subnet, classes=subnet.classes[:5])
    yield "no architecture", replace(subnet, architecture="resnet9000")
    yield "not those of the architecture", replace(subnet, architecture="resnet18")


def test_whole_files_of_no_subnet_are_refused(subnets: list[Subnet], path: Path) -> None:
    for complaint, subnet in forged(subnets[5]):
        path.write_bytes(save_subnet(subnet, {}))
        with pytest.raises(ArtifactError, match=complaint):
            load_subnet(path)


def test_a_pickle_is_refused_and_not_run(path: Path, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (tmp_path / "ran",)

    nested = save({"weight": np.zeros(3, np.float32)}, {"eqnet": "[" * 100_000})
    for content in (pickle.dumps(Bomb()), b"", nested):
        path.write_bytes(content)
        with pytest.raises(ArtifactError, match="not a safetensors file"):
            load_subnet(path)
    assert not (tmp_path / "ran").exists()


def test_reading_needs_neither_torch_nor_onnx(subnets: list[Subnet], path: Path) -> None:
    path.write_bytes(save_subnet(subnets[6], {}))
    code = (
        "import sys, eqnet_core.export.report, eqnet_core.export.encodings\n"
        "from eqnet_core.export.state_dict import read_subnet\n"
        "print(read_subnet(sys.argv[1]).architecture, {'torch', 'onnx', 'onnxruntime'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["resnet20", "set()"]
