"""What a builder process holds."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from eqnet_core.bundle import Bundle
from eqnet_core.configuration_json import configuration_to_json
from eqnet_core.factory import Factory
from eqnet_core.space import FORMS
from service.jobs import worker
from service.subnets.order import SubnetOrder

HEAVY = ("sympy", "torch._dynamo", "onnxscript", "onnx_ir")
"""Only needed to trace a network: a quarter of a builder's memory."""

PROGRAM = f"""
import json, sys
from service.jobs.worker import Worker
worker = Worker([sys.argv[1]], sys.argv[2], None)
worker.warm()
worker.run(json.loads(sys.argv[3]), sys.stdout)
print([name for name in {HEAVY!r} if name in sys.modules])
"""


def test_what_only_tracing_needs_is_not_kept(bundle: Path, tmp_path: Path) -> None:
    factory = Factory.open(bundle)
    space = factory.bundle.space
    what = configuration_to_json(space.uniform(FORMS[0], 4), space)
    order = SubnetOrder(
        supernet=factory.bundle.name,
        bundle_digest=factory.bundle.digest,
        what=what,
        artifacts=("model.onnx",),
    )
    job = json.dumps({"id": order.id, "order": order.to_json()})
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(bundle), tmp_path.as_uri(), job],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    *_, outcome, heavy = done.stdout.splitlines()
    assert "built" in json.loads(outcome)["outcome"], done.stderr
    assert heavy == "[]"


def test_everything_is_traced_before_anything_is_loaded(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fork of a process that has computed with several threads waits for them for ever."""
    calls: list[str] = []
    monkeypatch.setattr(worker, "run_apart", lambda function, *, seconds: calls.append("trace"))
    monkeypatch.setattr(Factory, "warm", lambda self, graph: calls.append("warm"))
    worker.Worker([str(bundle)] * 2, tmp_path.as_uri(), None).warm()
    assert calls == ["trace", "trace", "warm", "warm"]


def test_a_bundle_with_its_graph_is_not_traced(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "run_apart", lambda function, *, seconds: pytest.fail("it was traced"))
    monkeypatch.setattr(Bundle, "has_graph", True)
    warmed = []
    monkeypatch.setattr(Factory, "warm", lambda self, graph: warmed.append(graph))
    worker.Worker([str(bundle)], tmp_path.as_uri(), None).warm()
    assert warmed == [None]


def test_builds_go_on_without_the_evaluation_images(tmp_path: Path) -> None:
    """They were moved since the service started: that is no matter of builds that verify nothing."""
    arguments = ["--artifacts-url", tmp_path.as_uri(), "--threads", "1"]
    arguments += ["--evaluation-data", str(tmp_path / "moved.npz"), str(tmp_path / "no-bundle")]
    builder = subprocess.Popen(
        [sys.executable, "-m", "service.jobs.worker", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert builder.stdin is not None
    assert builder.stdout is not None
    assert builder.stderr is not None
    with builder:
        builder.stdin.write('{"id": "a", "order": {}}\n')
        builder.stdin.flush()
        answer = builder.stdout.readline()
        builder.stdin.close()
        told = builder.stderr.read()
    assert "outcome" in answer, told
    assert "moved.npz" in told
