"""Training on the command line, from images to a bundle that hands out subnets."""

from __future__ import annotations

from pathlib import Path

import pytest

from eqnet_core.bundle import Bundle
from eqnet_core.devices import load_catalogue
from eqnet_core.factory import Factory
from eqnet_core.profile import Budget
from eqnet_core.training.ablations import PER_TENSOR_STEPS
from eqnet_core.training.commands import main

PNG = b"\x89PNG"


@pytest.mark.slow
def test_the_commands_lead_from_images_to_a_bundle_and_its_pages(
    digits_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out, bundle = tmp_path / "run", tmp_path / "docs", tmp_path / "bundles" / "digits"

    def stage(name: str, *options: object, data: bool = True) -> str:
        images = ("--data", digits_file, "--held-out", 64, "--no-mirror") if data else ()
        main([str(part) for part in (name, "--run", run, *images, *options)])
        return capsys.readouterr().out.splitlines()[-1]

    brief = ("--epochs", 1, "--no-compile")
    stage("pretrain", *brief, "--batch-size", 16)
    stage("supernet", *brief, "--batch-size", 48)
    stage("statistics", "--samples", 60, "--images", 32, "--no-compile")
    stage("sample", "--samples", 64, "--images", 64, "--drawn", 0, "--no-compile")
    stage("fit", data=False)
    stage("sample", "--samples", 64, "--searched", 2, "--images", 64, "--drawn", 0, "--no-compile")
    stage("fit", data=False)
    stage("accuracies", "--no-compile")
    stage("ranges", "--subnets", 2, "--images", 64)
    page = out / "bundle.md"
    described = ("--data-description", "enlarged digits", "--page", page)
    said = stage("bundle", "--out", bundle, *described, data=False)
    stage("report", "--out", out, data=False)
    stage("plots", "--out", out, data=False)
    stage("ablations", *brief, "--images", 40, "--variants", "EQ-Net's recipe", "--out", out)

    assert said == f"wrote {bundle}, {Bundle.open(bundle).digest}"
    assert "enlarged digits" in page.read_text()
    assert "prediction.png" in (out / "prediction.md").read_text()
    ablations = (out / "ablations.md").read_text()
    assert "40 held-out training images" in ablations
    assert all(f"per-tensor steps: {how}" in ablations for how in PER_TENSOR_STEPS)
    for figure in ("prediction", "training", "weights", "ablations"):
        assert (out / f"{figure}.png").read_bytes().startswith(PNG)

    factory = Factory.open(bundle)
    device = load_catalogue()["tensorrt"]
    found = factory.search(device.profile, Budget(weight_bits=6))
    assert found.cost.weight_bits <= 6
    built = factory.build(found.configuration, device=device)
    assert set(built.files) == set(factory.usual_artifacts(device))


@pytest.mark.slow
def test_a_bundle_is_enough_to_measure_its_supernet_anew(
    digits_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, again, bundle = tmp_path / "first", tmp_path / "again", tmp_path / "digits"

    def stage(run: Path, name: str, *options: object, data: bool = True) -> None:
        images = ("--data", digits_file, "--held-out", 64, "--no-mirror") if data else ()
        main([str(part) for part in (name, "--run", run, *images, *options)])

    brief = ("--epochs", 1, "--no-compile")
    sampled = ("--images", 64, "--drawn", 0, "--no-compile")
    described = ("--data-description", "enlarged digits", "--out", bundle)
    stage(first, "pretrain", *brief, "--batch-size", 16)
    stage(first, "supernet", *brief, "--batch-size", 48)
    stage(first, "statistics", "--samples", 60, "--images", 32, "--no-compile")
    stage(first, "sample", "--samples", 64, *sampled)
    stage(first, "fit", data=False)
    stage(first, "accuracies", "--no-compile")
    stage(first, "bundle", *described, data=False)
    written = Bundle.open(bundle)

    stage(again, "unpack", "--bundle", bundle, data=False)
    stage(again, "accuracies", "--no-compile")
    assert (again / "accuracies" / "accuracies.json").read_bytes() == (
        first / "accuracies" / "accuracies.json"
    ).read_bytes()
    stage(again, "bundle", *described, "--overwrite", data=False)
    assert Bundle.open(bundle).digest == written.digest
    with pytest.raises(SystemExit):
        stage(again, "unpack", "--bundle", bundle, data=False)
    assert "is there already: choose another folder with --run" in capsys.readouterr().err
