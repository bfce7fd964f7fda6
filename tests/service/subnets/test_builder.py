"""What a build says that cannot begin; those that can are tested through the service."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eqnet_core.errors import EqnetError
from service.jobs.evaluation import EvaluationSet
from service.subnets.artifacts import ArtifactStore
from service.subnets.builder import build, problem_document
from service.subnets.order import SubnetOrder
from service.subnets.record import new_record, shown_record

ORDER = SubnetOrder(
    supernet="a", bundle_digest="sha256:a", what={"layers": []}, artifacts=("model.onnx",), evaluation="a-10"
)
REPLACED = EvaluationSet(digest="b-10", images=np.zeros((1, 3, 8, 8), np.uint8), labels=np.zeros(1, np.int64))


class Untouched:
    """A factory that nobody is to ask for anything yet."""

    def __getattr__(self, name: str) -> Any:
        if name == "bundle":
            raise EqnetError("the build had begun")
        raise AttributeError(name)


@pytest.mark.parametrize("evaluation", [None, REPLACED])
def test_other_evaluation_images_are_the_operator_s_to_mend(
    tmp_path: Path, evaluation: EvaluationSet | None
) -> None:
    with pytest.raises(EqnetError) as failed:
        build(
            ORDER.id,
            ORDER,
            factory=Untouched(),  # type: ignore[arg-type]
            artifacts=ArtifactStore(tmp_path.as_uri()),
            evaluation=evaluation,
            progress=lambda stage, fraction: None,
        )
    stored = new_record(ORDER)
    problem = problem_document(failed.value)
    shown = shown_record(replace(stored, record={**stored.record, "status": "failed", "problem": problem}))
    assert shown["problem"]["status"] == 503
    assert "restart" in shown["problem"]["detail"]
    assert "EQNET_EVALUATION_DATA" in shown["problem"]["detail"]
