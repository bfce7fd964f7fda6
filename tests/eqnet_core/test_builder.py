"""Building subnets of a real, if untrained, bundle."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from eqnet_core.bundle import GRAPH, SUPERNET, Bundle, shipped_bundles
from eqnet_core.bundle_writer import write_bundle
from eqnet_core.calibration import calibrate_batch_norm
from eqnet_core.devices import load_catalogue
from eqnet_core.errors import (
    BundleError,
    ProofError,
    UnsupportedTargetError,
)
from eqnet_core.export.state_dict import load_subnet, read_metadata
from eqnet_core.factory import ARTIFACTS, INTEGER, QONNX, Build, Factory, save
from eqnet_core.space import FORMS
from eqnet_core.supernet import Supernet


def test_every_artifact_is_built_and_proven(factory: Factory, build: Build) -> None:
    assert set(build.files) == set(ARTIFACTS) - {QONNX} == set(factory.usual_artifacts())
    onnx.checker.check_model(onnx.load_from_string(build.files["model.onnx"]))
    report = json.loads(build.files["report.json"])
    assert report == build.report
    assert report["metadata"]["bundle_digest"] == factory.bundle.digest
    assert report["metadata"]["subnet"] == "0123"
    assert report["cost"] == factory.cost(factory.bundle.space.uniform(FORMS[5], 4)).to_json()
    assert report["proofs"]["model.onnx"]["optimizer_default"]["top1"] >= 0.9
    for name in set(build.files) - {"report.json"}:
        assert report["files"][name]["bytes"] == len(build.files[name])
    assert set(build.timings) == {"calibrate", "export", "prove"}


def test_what_is_delivered_is_the_supernet_with_predicted_statistics(
    factory: Factory, build: Build, images: torch.Tensor, tmp_path: Path
) -> None:
    configuration = factory.bundle.space.uniform(FORMS[5], 4)
    reference = Supernet.from_bundle(Bundle.open(factory.bundle.path))
    reference.activate(configuration)
    reference.set_statistics(factory.statistics.predict(configuration, factory.bundle.space))
    module = load_subnet(save(build, tmp_path / "subnet") / "model.safetensors")
    session = onnxruntime.InferenceSession(build.files["model.onnx"], providers=["CPUExecutionProvider"])
    with torch.no_grad():
        expected = reference(images)
        loaded = module(images)
    served = torch.from_numpy(session.run(["logits"], {"image": images.numpy()})[0])
    for logits in (loaded, served):
        assert (logits.argmax(1) == expected.argmax(1)).float().mean() >= 0.95
        assert (logits - expected).abs().mean() < 0.05 * expected.std()
    metadata = read_metadata(tmp_path / "subnet" / "model.safetensors")
    assert metadata["supernet"] == "untrained"
    predicted = float(factory.predict([configuration]).accuracy[0])
    assert float(metadata["predicted_accuracy"]) == predicted


def test_the_same_request_gives_the_same_bytes(
    factory: Factory, build: Build, untrained_bundle: Path
) -> None:
    configuration = factory.bundle.space.uniform(FORMS[5], 4)
    factory.build(factory.bundle.space.uniform(FORMS[0], 2))  # another in between leaves no trace
    again = factory.build(configuration, provenance={"subnet": "0123"})
    assert digests(again) == digests(build)
    fresh = Factory.open(untrained_bundle).build(
        configuration, artifacts=["report.json", "model.onnx"], provenance={"subnet": "0123"}
    )
    assert list(fresh.files) == ["report.json", "model.onnx"]
    assert digests(fresh) == {name: digests(build)[name] for name in fresh.files}


def test_the_integer_flavour_is_built_proven_and_reported(
    factory: Factory, build: Build, images: torch.Tensor, tmp_path: Path
) -> None:
    report = build.report
    proof = report["proofs"][INTEGER]
    assert proof["optimizer_default"]["steps"] <= 1
    assert proof["exact_top1"] >= 0.8
    accuracy = report["integer"]["accuracy"]
    assert accuracy["exact_predicted_accuracy"] == report["metadata"]["predicted_accuracy"]
    assert accuracy["mean_cost"] == 0.002
    assert accuracy["predicted_accuracy"] == pytest.approx(accuracy["exact_predicted_accuracy"] - 0.002)
    stored = {entry.key: entry.value for entry in onnx.load_from_string(build.files[INTEGER]).metadata_props}
    assert float(stored["eqnet.predicted_accuracy"]) == accuracy["predicted_accuracy"]
    assert json.loads(stored["eqnet.prediction_interval"]) == accuracy["prediction_interval"]
    ends = report["metadata"]["prediction_interval"]
    assert accuracy["prediction_interval"] == pytest.approx([end - 0.002 for end in ends])
    weights = report["weight_bytes"]
    assert weights["true_bits"] <= weights["containers"] < weights["integer"] < weights["float32"]
    logits = []
    for name in ("model.onnx", INTEGER):
        session = onnxruntime.InferenceSession(build.files[name], providers=["CPUExecutionProvider"])
        logits.append(session.run(["logits"], {"image": images.numpy()})[0])
    assert (logits[0].argmax(1) == logits[1].argmax(1)).mean() >= 0.85


def test_a_device_gets_what_it_takes_or_a_refusal_that_names_the_layers(factory: Factory) -> None:
    catalogue, space = load_catalogue(), factory.bundle.space
    device = catalogue["tensorrt"]
    configuration = space.uniform(device.profile.form, 4, signed=True)
    report = factory.build(configuration, device=device).report
    assert report["device"]["name"] == "tensorrt"
    assert report["device"]["file"] == "model.integer.onnx"
    held = [layer["weight"]["on_device"] for layer in report["layers"]]
    assert held == ["native", *["held in int8"] * len(space.searchable), "native"]
    with pytest.raises(UnsupportedTargetError, match="qualcomm-htp-v66 cannot run this") as error:
        factory.build(configuration, device=catalogue["qualcomm-htp-v66"])
    pointers = [violation.pointer for violation in error.value.violations]
    assert pointers == [f"/layers/{layer.name}/weight" for layer in space.layers]


def test_a_bundle_with_images_calibrates_with_them(
    untrained_bundle: Path, factory: Factory, supernet: Supernet, tmp_path: Path
) -> None:
    bundle = Bundle.open(untrained_bundle)
    images = np.random.default_rng(0).integers(0, 256, (48, 3, 32, 32), dtype=np.uint8)
    arguments: dict[str, Any] = {
        "architecture": bundle.architecture,
        "classes": bundle.classes,
        "input": bundle.input,
        "space": bundle.space,
        "float_accuracy": 1.0,
        "accuracy": {},
        "predictor_quality": {},
        "statistics_quality": {},
        "card": {},
        "supernet": bundle.supernet_tensors(),
        "predictor": bundle.predictor(),
        "statistics": bundle.statistics(),
    }
    write_bundle(tmp_path / "with-images", name="with-images", calibration=images, **arguments)
    configuration = bundle.space.uniform(FORMS[5], 4)
    mean, deviation = (np.array(v, np.float32)[:, None, None] for v in (bundle.input.mean, bundle.input.std))
    batch = torch.from_numpy((images.astype(np.float32) / 255 - mean) / deviation)
    logits = []
    for one in (Factory.open(tmp_path / "with-images"), factory):
        built = one.build(configuration, artifacts=("model.safetensors",))
        path = save(built, tmp_path / one.bundle.name) / "model.safetensors"
        with torch.inference_mode():
            logits.append(load_subnet(path).eval()(batch))
    supernet.activate(configuration)
    calibrate_batch_norm(supernet, [batch])
    with torch.inference_mode():
        expected = supernet(batch)
    assert (logits[0] - expected).abs().mean() < 0.05 * expected.std()
    assert (logits[1] - expected).abs().mean() > (logits[0] - expected).abs().mean()
    with pytest.raises(BundleError, match="calibration images do not fit"):
        write_bundle(tmp_path / "bad", name="bad", calibration=images[:, :1], **arguments)


def with_graph(bundle: Bundle, folder: Path, graph: bytes) -> Path:
    """A copy of `bundle` that holds `graph`."""
    shutil.copytree(bundle.path, folder)
    (folder / GRAPH).write_bytes(graph)
    document = json.loads((folder / "bundle.json").read_text())
    document["files"][GRAPH] = {"sha256": hashlib.sha256(graph).hexdigest(), "bytes": len(graph)}
    (folder / "bundle.json").write_text(json.dumps(document))
    return folder


def test_a_bundle_with_its_graph_is_not_traced(
    factory: Factory, build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = factory.trace().to_bytes()
    monkeypatch.setattr("eqnet_core.builder.trace", lambda bundle: pytest.fail("it was traced"))
    stored = Factory.open(with_graph(factory.bundle, tmp_path / "stored", graph))
    stored.warm()
    name = "model.onnx"
    configuration = stored.bundle.space.uniform(FORMS[0], 4)
    built, expected = (
        onnx.load_from_string(one.build(configuration, artifacts=[name]).files[name])
        for one in (stored, factory)
    )
    assert built.graph == expected.graph


def test_a_graph_of_another_network_is_refused(factory: Factory, tmp_path: Path) -> None:
    graph = factory.trace()
    other = replace(graph, nodes=graph.nodes[:-1]).to_bytes()
    for content, problem in ((other, "is of another network"), (b"damaged", "not a float graph")):
        stored = Factory.open(with_graph(factory.bundle, tmp_path / problem, content))
        with pytest.raises(BundleError, match=problem):
            stored.warm()


def test_bundles_that_this_version_cannot_load_say_so(factory: Factory, tmp_path: Path) -> None:
    bundle = factory.bundle
    tensors = bundle.supernet_tensors()
    for position, (architecture, supernet, complaint) in enumerate(
        (
            ("resnet9000", tensors, "resnet9000"),
            ("resnet20", dict(list(tensors.items())[1:]), "do not fit"),
            ("resnet20", {**tensors, "fc.bias": tensors["fc.bias"] * np.float32(np.nan)}, "broken"),
            ("resnet20", tensors, "statistics are of other BatchNorms"),
        )
    ):
        names = factory.statistics.batch_norms
        if complaint.startswith("statistics"):
            names = (("renamed", names[0][1]), *names[1:])
        folder = tmp_path / str(position)
        write_bundle(
            folder,
            name="other",
            architecture=architecture,
            classes=bundle.classes,
            input=bundle.input,
            space=bundle.space,
            float_accuracy=0.5,
            accuracy={},
            predictor_quality={},
            statistics_quality={},
            card={},
            supernet=supernet,
            predictor=factory.predictor,
            statistics=replace(factory.statistics, batch_norms=names),
        )
        other = Factory.open(folder)
        other.predict([bundle.space.uniform(FORMS[0], 4)])  # what needs no torch side works
        with pytest.raises(BundleError, match=complaint):
            other.warm()
    with pytest.raises(BundleError, match="no bundle in"):
        Factory.open("no-such-supernet")


def test_a_folder_that_is_no_bundle_does_not_hide_the_one_that_ships(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "resnet20-cifar10").mkdir()
    assert Factory.open("resnet20-cifar10").bundle.path == shipped_bundles()["resnet20-cifar10"]


def test_what_is_extracted_is_compared_with_the_supernet(
    factory: Factory, untrained_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights that change while they are extracted stand for any fault of the extraction."""
    extract = Supernet.extract

    def faulty(supernet: Supernet, *arguments: Any) -> Any:
        subnet = extract(supernet, *arguments)
        with torch.no_grad():
            supernet.layers[-1].weight[0] += 1
        return subnet

    monkeypatch.setattr(Supernet, "extract", faulty)
    with pytest.raises(ProofError, match="extracted subnet's logits differ"):
        Factory.open(untrained_bundle).build(factory.bundle.space.uniform(FORMS[0], 8))


def test_a_bundle_damaged_after_opening_is_noticed(untrained_bundle: Path, tmp_path: Path) -> None:
    for path in untrained_bundle.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    factory = Factory.open(tmp_path)
    (tmp_path / SUPERNET).write_bytes(b"something else")
    with pytest.raises(BundleError, match="damaged"):
        factory.warm()


def digests(build: Build) -> dict[str, str]:
    return {name: hashlib.sha256(content).hexdigest() for name, content in build.files.items()}
