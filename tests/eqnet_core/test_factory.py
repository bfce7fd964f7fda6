"""The front door on a real, if untrained, bundle: sampled, fitted and written the way training does it."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from eqnet_core.bundle import GRAPH, SUPERNET, Bundle, add_ranges, write_bundle
from eqnet_core.calibration import calibrate_batch_norm
from eqnet_core.devices import load_catalogue
from eqnet_core.errors import (
    BundleError,
    InfeasibleBudgetError,
    InvalidConfigurationError,
    UnsupportedTargetError,
)
from eqnet_core.export.plan import plan_integers
from eqnet_core.export.state_dict import load_subnet, read_metadata
from eqnet_core.export.template import trace_float_graph
from eqnet_core.factory import ARTIFACTS, INTEGER, Build, Factory, save
from eqnet_core.profile import Budget, DeviceProfile, SearchSettings
from eqnet_core.space import FORMS, Granularity, Symmetry
from eqnet_core.supernet import Supernet
from eqnet_core.training.ensemble import EnsembleSettings
from eqnet_core.training.fitting import MINIMUM_SAMPLES, fit_predictor
from eqnet_core.training.ranges import fit_ranges, tensor_samples
from eqnet_core.training.samples import Calibrations, Samples, configuration_columns
from eqnet_core.training.statistics_fitting import fit_statistics
from eqnet_core.training.subnets import sample_configuration

PROFILE = DeviceProfile(
    weight_bits=(2, 3, 4, 8),
    weight_granularity=Granularity.PER_CHANNEL,
    weight_symmetry=Symmetry.SYMMETRIC,
    activation_bits=(4, 8),
    activation_symmetry=Symmetry.ASYMMETRIC,
)
SETTINGS = SearchSettings(population=20, generations=10, seed=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, supernet: Supernet, images: torch.Tensor) -> Path:
    samples, calibrations = measure(supernet, images[:32], MINIMUM_SAMPLES + 4)
    predictor, predictor_quality, _ = fit_predictor(
        samples, supernet.space, 0, settings=EnsembleSettings(members=2, hidden=8, steps=(30, 30))
    )
    statistics, statistics_quality = fit_statistics(calibrations, supernet.space)
    folder = tmp_path_factory.mktemp("bundles") / "untrained"
    write_bundle(
        folder,
        name="untrained",
        architecture=supernet.architecture,
        classes=supernet.classes,
        input=supernet.input,
        space=supernet.space,
        float_accuracy=1.0,
        accuracy={},
        predictor_quality=predictor_quality,
        statistics_quality=statistics_quality,
        card={"data": "artificial images"},
        supernet=supernet.tensors(),
        predictor=predictor,
        statistics=statistics,
    )
    assert INTEGER not in Factory.open(folder).artifacts
    plan = plan_integers(trace_float_graph("resnet20", supernet.input.shape, 10))
    supernet.activate(supernet.space.uniform(FORMS[5], 4))
    calibrate_batch_norm(supernet, [images[:32]])
    samples_of = {k: [v] for k, v in tensor_samples(supernet, plan, images[:32], 4096).items()}
    quality = {"images": 500, "subnets": [], "cost": {"below 4 bits": 0.01, "4 bits and above": 0.002}}
    add_ranges(folder, fit_ranges(samples_of, plan), quality)
    return folder


@torch.no_grad()
def measure(supernet: Supernet, images: torch.Tensor, count: int) -> tuple[Samples, Calibrations]:
    """Subnets with calibrated statistics; what the 8/8 bit subnet says counts as right."""
    generator = np.random.default_rng(0)
    # 8 uniform nets, and mixed ones
    configurations = [sample_configuration(supernet.space, 48 + i, generator) for i in range(count)]
    supernet.activate(supernet.space.uniform(FORMS[4], 8))
    calibrate_batch_norm(supernet, [images[:16]])
    expected = supernet(images).argmax(1)
    correct, means, variances = [], [], []
    for configuration in configurations:
        supernet.activate(configuration)
        statistics = calibrate_batch_norm(supernet, [images[:16]])
        correct.append((supernet(images).argmax(1) == expected).reshape(2, -1).double().mean(1).numpy())
        means.append(np.concatenate([mean for mean, _ in statistics.values()]))
        variances.append(np.concatenate([variance for _, variance in statistics.values()]))
    subnets: dict[str, Any] = {
        "space": supernet.space,
        "draw": np.zeros(count, dtype=np.int32),
        "index": np.arange(count, dtype=np.int32),
        **configuration_columns(configurations),
    }
    accuracy = np.array(correct)
    samples = Samples(
        **subnets, half_accuracy=accuracy, smooth_accuracy=accuracy.mean(axis=1), images=len(images)
    )
    calibrations = Calibrations(
        **subnets,
        means=np.array(means),
        variances=np.array(variances),
        batch_norms=tuple((name, module.num_features) for name, module in supernet.batch_norms().items()),
    )
    return samples, calibrations


def test_a_bundle_with_images_calibrates_with_them(
    folder: Path, factory: Factory, supernet: Supernet, tmp_path: Path
) -> None:
    bundle = Bundle.open(folder)
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


@pytest.fixture(scope="module")
def factory(folder: Path) -> Factory:
    return Factory.open(folder)


@pytest.fixture(scope="module")
def build(factory: Factory) -> Build:
    configuration = factory.bundle.space.uniform(FORMS[5], 4)
    return factory.build(configuration, provenance={"subnet": "0123"})


def test_a_search_stays_within_budget_and_device(factory: Factory) -> None:
    found = factory.search(PROFILE, Budget(weight_bits=3.0, activation_bits=5.0), SETTINGS)
    assert set(found.configuration.weight_bits) <= {2, 3, 4, 8}
    assert set(found.configuration.activation_bits) <= {4, 8}
    assert found.cost == factory.cost(found.configuration)
    assert found.cost.weight_bits <= 3.0
    assert found.cost.activation_bits <= 5.0
    predicted = factory.predict([found.configuration])
    assert predicted.accuracy[0] == found.predicted_accuracy
    assert (predicted.low[0], predicted.high[0]) == found.prediction_interval
    with pytest.raises(InfeasibleBudgetError):
        factory.search(PROFILE, Budget(activation_bits=3.0), SETTINGS)


def test_no_configurations_have_no_predictions(factory: Factory) -> None:
    predicted = factory.predict([])
    assert len(predicted.accuracy) == len(predicted.low) == len(predicted.high) == 0


def test_searching_and_predicting_load_no_torch(folder: Path) -> None:
    program = """
import sys
from eqnet_core.factory import Factory
from eqnet_core.profile import Budget, DeviceProfile, SearchSettings
from eqnet_core.space import Granularity, Symmetry
factory = Factory.open(sys.argv[1])
profile = DeviceProfile(weight_bits=(2, 4), weight_granularity=Granularity.PER_CHANNEL, activation_bits=(8,),
                        weight_symmetry=Symmetry.SYMMETRIC, activation_symmetry=Symmetry.SYMMETRIC)
found = factory.search(profile, Budget(weight_bits=3.0), SearchSettings(population=10, generations=3))
factory.predict([found.configuration])
factory.cost(found.configuration)
factory.statistics.predict(found.configuration, factory.bundle.space)
print(sorted({"torch", "onnx", "onnxruntime", "scipy"} & set(sys.modules)))
"""
    ran = subprocess.run(
        [sys.executable, "-c", program, str(folder)], capture_output=True, text=True, timeout=120, check=True
    )
    assert ran.stdout == "[]\n"


def test_every_artifact_is_built_and_proven(factory: Factory, build: Build) -> None:
    assert set(build.files) == set(ARTIFACTS)
    onnx.checker.check_model(onnx.load_from_string(build.files["model.onnx"]))
    report = json.loads(build.files["report.json"])
    assert report == build.report
    assert report["metadata"]["bundle_digest"] == factory.bundle.digest
    assert report["metadata"]["subnet"] == "0123"
    assert report["cost"] == factory.cost(factory.bundle.space.uniform(FORMS[5], 4)).to_json()
    assert report["proofs"]["model.onnx"]["optimizer_default"]["top1"] >= 0.9
    for name in set(ARTIFACTS) - {"report.json"}:
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


def test_predicted_statistics_beat_those_of_another_subnet(
    factory: Factory, images: torch.Tensor, supernet: Supernet
) -> None:
    space = supernet.space
    generator = np.random.default_rng(11)
    ours, theirs = [], []
    supernet.activate(space.uniform(FORMS[0], 8))
    others = calibrate_batch_norm(supernet, [images[:16]])
    for index in range(100, 106):
        configuration = sample_configuration(space, index, generator)
        supernet.activate(configuration)
        real = calibrate_batch_norm(supernet, [images[:16]])
        predicted = factory.statistics.predict(configuration, space)
        for name, (mean, variance) in real.items():
            deviation = np.sqrt(variance + 1e-5)
            ours.append(np.abs((predicted[name][0] - mean) / deviation).mean())
            theirs.append(np.abs((others[name][0] - mean) / deviation).mean())
    assert np.mean(ours) < 0.5 * np.mean(theirs)


def test_the_same_request_gives_the_same_bytes(factory: Factory, build: Build, folder: Path) -> None:
    configuration = factory.bundle.space.uniform(FORMS[5], 4)
    factory.build(factory.bundle.space.uniform(FORMS[0], 2))  # another in between leaves no trace
    again = factory.build(configuration, provenance={"subnet": "0123"})
    assert digests(again) == digests(build)
    fresh = Factory.open(folder).build(
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


def test_a_bundle_without_ranges_says_what_to_do(factory: Factory, tmp_path: Path) -> None:
    folder = tmp_path / "old"
    shutil.copytree(factory.bundle.path, folder)
    document = json.loads((folder / "bundle.json").read_text())
    del document["integer"], document["files"]["ranges.safetensors"]
    (folder / "bundle.json").write_text(json.dumps(document))
    old = Factory.open(folder)
    configuration = old.bundle.space.uniform(FORMS[0], 4)
    with pytest.raises(UnsupportedTargetError, match=r"`ranges` stage.*choose from.*model\.onnx") as refused:
        old.build(configuration, artifacts=["model.onnx", INTEGER])
    assert [violation.pointer for violation in refused.value.violations] == ["/artifacts/1"]
    with pytest.raises(BundleError, match="`ranges` stage"):
        old.bundle.ranges()
    assert set(old.artifacts) == {*ARTIFACTS} - {INTEGER}


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
    monkeypatch.setattr(Factory, "trace", lambda self: pytest.fail("it was traced"))
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


def digests(build: Build) -> dict[str, str]:
    return {name: hashlib.sha256(content).hexdigest() for name, content in build.files.items()}


def test_saving_replaces_files_and_leaves_nothing_else(build: Build, tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    save(replace(build, files={"model.onnx": b"old", "mine.txt": b"kept"}), folder)
    assert save(build, folder) == folder
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        **build.files,
        "mine.txt": b"kept",
    }


def test_what_cannot_be_built_is_named(factory: Factory) -> None:
    configuration = factory.bundle.space.uniform(FORMS[0], 4)
    with pytest.raises(UnsupportedTargetError, match=r"model\.tflite.*choose from") as refused:
        factory.build(configuration, artifacts=["model.onnx", "model.tflite"])
    assert [violation.pointer for violation in refused.value.violations] == ["/artifacts/1"]
    short = replace(configuration, weight_bits=(4,), activation_bits=(4,))
    with pytest.raises(InvalidConfigurationError, match="searchable"):
        factory.build(short)


def test_bundles_that_this_version_cannot_load_say_so(factory: Factory, tmp_path: Path) -> None:
    bundle = factory.bundle
    tensors = bundle.supernet_tensors()
    for position, (architecture, supernet, complaint) in enumerate(
        (
            ("resnet9000", tensors, "resnet9000"),
            ("resnet20", dict(list(tensors.items())[1:]), "do not fit"),
        )
    ):
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
            statistics=factory.statistics,
        )
        other = Factory.open(folder)
        other.predict([bundle.space.uniform(FORMS[0], 4)])  # what needs no torch side works
        with pytest.raises(BundleError, match=complaint):
            other.warm()
    with pytest.raises(BundleError, match="no bundle in"):
        Factory.open("no-such-supernet")


def test_a_bundle_damaged_after_opening_is_noticed(folder: Path, tmp_path: Path) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    factory = Factory.open(tmp_path)
    (tmp_path / SUPERNET).write_bytes(b"something else")
    with pytest.raises(BundleError, match="damaged"):
        factory.warm()
