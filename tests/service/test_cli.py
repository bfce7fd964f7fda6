"""The `eqnet` command against a real server."""

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from service.cli import main
from service.settings import Settings

Server = Any


def test_help_of_serve_documents_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["serve", "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert all(f"EQNET_{name.upper()}" in text for name in Settings.model_fields)
    assert "127.0.0.1" in text
    assert "beyond that, 429 (default: 100)." in text
    assert "(default: text)" in text


def test_a_subnet_is_saved(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "folder"
    budget = ["--weight-bits", "4", "--activation-bits", "4"]
    code = main(["subnet", "--url", server.url, "--device", "fpga-mixed", *budget, "--out", str(out)])
    assert code == 0
    record = json.loads(capsys.readouterr().out)
    assert record["cost"]["weight_bits"] <= 4
    for file in record["artifacts"]:
        assert hashlib.sha256((out / file["name"]).read_bytes()).hexdigest() == file["sha256"]


def test_a_problem_is_one_message(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["subnet", "--url", server.url, "--device", "fpga-mixed", "--weight-bits", "1"])
    captured = capsys.readouterr()
    assert code == 1
    assert captured.out == ""
    assert "/budget/weight_bits" in captured.err


def test_devices_are_listed(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["devices", "--url", server.url]) == 0
    listed = capsys.readouterr().out.split()
    assert "tensorrt" in listed
    assert "vitis-ai-dpu" not in listed


def test_no_service_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["devices", "--url", "http://127.0.0.1:1"]) == 1
    assert "eqnet serve" in capsys.readouterr().err


def test_a_profile_that_cannot_be_read_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["subnet", "--profile", str(tmp_path / "none.json")]) == 2
    assert "none.json" in capsys.readouterr().err


def test_a_wrong_setting_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("EQNET_BUILDERS", "many")
    assert main(["serve"]) == 2
    assert "EQNET_BUILDERS" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["serve", "worker"])
def test_a_broker_without_celery_is_told(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    installed = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "celery" else installed(name)
    )
    monkeypatch.setattr("service.server.run_server", lambda *_, **__: pytest.fail("it was started"))
    monkeypatch.setenv("EQNET_REDIS_URL", "redis://127.0.0.1:1/0")
    monkeypatch.setenv("EQNET_BROKER_URL", "redis://127.0.0.1:1/1")
    assert main([command]) == 1
    assert "Celery is not installed: `scripts/install serve,workers`" in capsys.readouterr().err


def test_a_store_without_its_folder_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "store").write_bytes(b"a file where a folder should be")
    monkeypatch.setenv("EQNET_DATA_DIR", str(tmp_path))
    assert main(["serve", "--port", "0"]) == 1
    told = capsys.readouterr().err
    assert "folders of the embedded store cannot be made" in told
    assert told.count("\n") == 1


def test_a_store_that_does_not_start_is_told_without_a_stack_trace(tmp_path: Path) -> None:
    files = tmp_path / "store" / "appendonlydir"
    files.mkdir(parents=True)
    (files / "appendonly.aof.manifest").write_text("no manifest of a store\n")
    ended = subprocess.run(
        [sys.executable, "-m", "service.cli", "serve", "--port", "0"],
        env={**os.environ, "EQNET_DATA_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    told = ended.stdout + ended.stderr
    assert ended.returncode == 3
    assert f"embedded store in {tmp_path / 'store'} does not start" in told
    assert "manifest" in told
    assert "Traceback" not in told


def test_it_is_a_module_too() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "service.cli", "--help"], capture_output=True, text=True, check=True
    )
    assert "serve" in result.stdout
