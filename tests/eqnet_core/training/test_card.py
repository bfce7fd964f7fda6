"""The card of a bundle as a page."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from eqnet_core.bundle import CALIBRATION, Bundle, shipped_bundles
from eqnet_core.training.card import card_page, told_once

DOCS = Path(__file__).parents[3] / "docs"


@pytest.mark.parametrize("name", shipped_bundles())
def test_the_page_of_a_shipped_bundle_is_its_card(name: str) -> None:
    bundle = Bundle.open(shipped_bundles()[name])
    assert (DOCS / f"bundle-{name}.md").read_text() == card_page(bundle)


def test_a_bundle_with_images_says_so() -> None:
    bundle = Bundle.open(shipped_bundles()["resnet20-cifar10"])
    files = bundle.document["files"]
    page = card_page(
        replace(bundle, document={**bundle.document, "files": {**files, CALIBRATION: {"bytes": 1}}})
    )
    assert "holds some of its images" in page
    assert "calibrated with the bundle's images" in page
    assert "holds no image" in card_page(bundle)


def test_accuracies_in_views_are_told_from_those_of_the_images_as_they_are() -> None:
    bundle = Bundle.open(shipped_bundles()["resnet20-cifar10"])
    predictor = bundle.document["predictor"] | {"views": 900, "plain_pearson": 0.71, "plain_kendall": 0.52}
    page = card_page(replace(bundle, document={**bundle.document, "predictor": predictor}))
    assert "held-out images and on 900 mirrored or shifted views of held-out images." in page
    assert "| Pearson on the images as they are alone | 0.710 |" in page
    assert "| Kendall on the images as they are alone | 0.520 |" in page
    page = card_page(replace(bundle, document={**bundle.document, "predictor": predictor | {"views": 0}}))
    assert "views" not in page.split("## Predictors")[1].split("##")[0]
    assert "as they are" not in page


def test_teachers_are_named_with_their_settings() -> None:
    bundle = Bundle.open(shipped_bundles()["resnet20-cifar10"])
    one = {"stage": "PretrainSettings", "seed": 1, "teacher": None, "temperature": 4.0}
    two = {"stage": "PretrainSettings", "seed": 2, "teacher": one, "temperature": 2.0}
    stages = {"supernet": {"stage": "S", "seed": 3, "teacher": {"members": [one, two]}}}
    document = {**bundle.document, "card": {**bundle.document["card"], "stages": stages}}
    page = card_page(replace(bundle, document=document))
    assert page.endswith(
        "| supernet | seed 3, teacher (mean of (seed 1) and (seed 2, teacher (seed 1), temperature 2.0)) |\n"
    )


def test_every_run_that_a_stage_began_with_has_a_row() -> None:
    bundle = Bundle.open(shipped_bundles()["resnet20-cifar10"])
    first = {"stage": "S", "seed": 0, "start": None}
    runs = {"stage": "S", "seed": 2, "start": {"stage": "S", "seed": 1, "start": first}}
    began = {**runs, "supernet": "sha256:0123456789abcdef"}
    stages = {"float": {"stage": "F", "seed": 7, "start": began}, "supernet": runs}
    document = {**bundle.document, "card": {**bundle.document["card"], "stages": stages}}
    page = card_page(replace(bundle, document=document))
    assert page.endswith(
        "| float | start supernet sha256:01234567…, seed 7 |\n"
        "| supernet, run 1 | seed 0 |\n| supernet, run 2 | seed 1 |\n| supernet, run 3 | seed 2 |\n"
    )


def test_a_network_is_described_once() -> None:
    first = {"stage": "P", "architecture": "a", "float": "sha256:1", "seed": 1}
    second = {
        "stage": "P",
        "architecture": "b",
        "float": "sha256:2",
        "seed": 2,
        "teacher": first,
        "start": first,
    }
    third = {"stage": "P", "seed": 3, "teacher": {"members": [first, second]}, "start": second}
    again = {"stage": "P", "architecture": "a", "float": "sha256:1"}
    told = told_once(third)
    assert told["start"] == {**second, "teacher": again, "start": again}
    assert told["teacher"] == {"members": [first, {"stage": "P", "architecture": "b", "float": "sha256:2"}]}
    assert third["start"] is second  # and what was given is as it was
    # generation after generation, no more than what is new
    sizes = []
    for generation in range(4, 12):
        third = {
            "stage": "P",
            "architecture": "b",
            "float": f"sha256:{generation}",
            "seed": generation,
            "teacher": {"members": [first, third]},
            "start": third,
        }
        third = told_once(third)
        sizes.append(len(json.dumps(third)))
    grown = np.diff(sizes)
    assert max(grown) < 1.2 * min(grown)
