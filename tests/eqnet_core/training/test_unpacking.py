"""What of a bundle a run can go on with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from eqnet_core.bundle import Bundle, shipped_bundles
from eqnet_core.errors import TrainingError
from eqnet_core.training.calibrating import load_statistics
from eqnet_core.training.run import read_origins, tensors_digest
from eqnet_core.training.starting import load_predictor
from eqnet_core.training.trained import load_trained, supernet_digest
from eqnet_core.training.unpacking import known_float_accuracy, unpack


@pytest.fixture(scope="module")
def shipped() -> Bundle:
    return Bundle.open(shipped_bundles()["resnet20-cifar10"])


def test_what_is_unpacked_is_what_the_card_says_it_is(shipped: Bundle, tmp_path: Path) -> None:
    unpack(shipped, tmp_path)
    stages = shipped.document["card"]["stages"]
    assert supernet_digest(load_trained(tmp_path / "supernet")) == stages["samples"]["supernet"]
    statistics = load_statistics(tmp_path / "statistics")
    assert tensors_digest(statistics.to_tensors()) == stages["samples"]["statistics"]
    predictors = [load_predictor(folder).to_tensors() for folder in (tmp_path, shipped.path)]
    assert tensors_digest(predictors[0]) == tensors_digest(predictors[1])
    assert known_float_accuracy(tmp_path / "float")["accuracy"] == shipped.float_accuracy
    origins = {name: read_origins(tmp_path / name) for name in ("supernet", "statistics", "prediction")}
    assert {each["data"] for each in origins.values()} == {stages["supernet"]["data"]}


def test_a_run_is_not_written_over(shipped: Bundle, tmp_path: Path) -> None:
    (tmp_path / "statistics").mkdir()
    with pytest.raises(TrainingError, match=r"statistics is there already: choose another folder"):
        unpack(shipped, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["statistics"]


def test_a_bundle_that_does_not_say_how_it_was_made_is_refused(shipped: Bundle, tmp_path: Path) -> None:
    stages = {**shipped.document["card"]["stages"], "samples": {"samples": 64}}
    older = replace(shipped, document={**shipped.document, "card": {"stages": stages}})
    with pytest.raises(TrainingError, match=r"older version.*--start"):
        unpack(older, tmp_path)
    assert not list(tmp_path.iterdir())
