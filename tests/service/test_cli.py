"""The `eqnet` command against a real server."""

import hashlib
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from service.cli import main
from service.client import Client
from service.settings import Settings
from tests.support.servers import answering

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


def test_only_the_named_files_are_asked_for(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    named = ["report.json", "model.qonnx.onnx"]
    code = main(["subnet", "--url", server.url, "--device", "fpga-mixed", "--artifacts", *named])
    assert code == 0
    record = json.loads(capsys.readouterr().out)
    assert [file["name"] for file in record["artifacts"]] == sorted(named)
    assert main(["subnet", "--url", server.url, "--device", "tensorrt", "--artifacts", "model.bin"]) == 1
    assert "/artifacts/0" in capsys.readouterr().err


def test_every_option_of_a_subnet_is_part_of_the_request(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[dict[str, Any]] = []

    def subnet(_: Client, **request: Any) -> dict[str, Any]:
        asked.append(request)
        return {}

    monkeypatch.setattr(Client, "subnet", subnet)
    (tmp_path / "p.json").write_text('{"weight_bits": [8]}')
    options = {
        "supernet": "mine",
        "seed": "7",
        "weight-bits": "3.5",
        "activation-bits": "4",
        "model-bytes": "150000",
        "artifacts": "report.json",
    }
    given = [part for name, value in options.items() for part in (f"--{name}", value)]
    assert main(["subnet", "--profile", str(tmp_path / "p.json"), *given]) == 0
    assert main(["subnet", "--device", "tensorrt"]) == 0
    assert asked == [
        {
            "profile": {"weight_bits": [8]},
            "supernet": "mine",
            "search": {"seed": 7},
            "budget": {"weight_bits": 3.5, "activation_bits": 4.0, "model_bytes": 150_000},
            "artifacts": ["report.json"],
        },
        {"device": "tensorrt", "search": {"seed": 0}, "budget": {}},
    ]


def test_a_problem_is_one_message(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["subnet", "--url", server.url, "--device", "fpga-mixed", "--weight-bits", "1"])
    captured = capsys.readouterr()
    assert code == 1
    assert captured.out == ""
    assert "/budget/weight_bits" in captured.err
    assert main(["subnet", "--url", server.url, "--device", "fpga-mixed", "--model-bytes", "0"]) == 1
    told = capsys.readouterr().err
    assert told == "eqnet: /budget/model_bytes: Input should be greater than 0\n"


@pytest.mark.parametrize(("key", "told"), [("", "is not set"), ("k", "is set")])
def test_a_key_that_is_wrong_or_missing_is_told_with_its_variable(
    key: str, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EQNET_API_KEY", key)
    with answering('{"detail": "needs a key"}', status=401) as url:
        assert main(["devices", "--url", url]) == 1
    assert f"needs a key; EQNET_API_KEY, which is sent as the key, {told}" in capsys.readouterr().err


def test_ctrl_c_is_one_line() -> None:
    program = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
    program += "from service.cli import main; sys.exit(main())"
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        asking = subprocess.Popen(
            [sys.executable, "-c", program, "subnet", "--url", url, "--device", "tensorrt"],
            stderr=subprocess.PIPE,
            text=True,
        )
        connection, _ = silent.accept()
        with connection:
            assert connection.recv(100).startswith(b"POST /subnets")
            asking.send_signal(signal.SIGINT)
            _, told = asking.communicate(timeout=60)
    assert (asking.returncode, told) == (130, "eqnet: interrupted: asking again finds the subnet\n")


def test_devices_are_listed(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["devices", "--url", server.url]) == 0
    listed = capsys.readouterr().out.split()
    assert "tensorrt" in listed
    assert "vitis-ai-dpu" not in listed


def test_no_service_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["devices", "--url", "http://127.0.0.1:1"]) == 1
    assert "eqnet serve" in capsys.readouterr().err


def test_what_is_no_url_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["devices", "--url", "http://[::1"]) == 1
    assert "http://[::1 is no URL" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (200, "{}", "an answer without"),
        (200, "[1]", "an answer without"),
        (200, '{"devices": [1], "id": "", "status": "failed"}', "Error"),
        (200, "<html></html>", "Expecting value"),
        (200, "[" * 60_000, "RecursionError"),
        (301, "", "HTTP 301"),
        (404, "[1]", "HTTP 404"),
        (404, '{"detail": "", "errors": null}', "HTTP 404"),
        (502, '{"detail": "", "errors": [{"message": ""}]}', "HTTP 502"),
        (502, "<html></html>", "HTTP 502"),
    ],
)
@pytest.mark.parametrize("command", [["devices"], ["subnet", "--device", "tensorrt"]])
def test_what_is_no_service_is_told(
    command: list[str], status: int, body: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with answering(body, status=status) as url:
        assert main([*command, "--url", url]) == 1
    told = capsys.readouterr().err
    assert f"eqnet: what answers at {url}" in told
    assert "is no EQ-Net service" in told
    assert reason in told
    assert told.count("\n") == 1


@pytest.mark.parametrize(
    ("key", "code", "told"),
    [
        ("", 0, ""),
        (" \n", 0, ""),
        ("key\n", 0, ""),
        ("a\nb", 2, "EQNET_API_KEY"),
        ("schlüssel", 2, "EQNET_API_KEY"),
    ],
)
def test_a_key_that_no_header_holds_is_told(
    server: Server,
    key: str,
    code: int,
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("EQNET_API_KEY", key)
    assert main(["devices", "--url", server.url]) == code
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["serve", "--port", "99999999"],
        ["serve", "--port", "-1"],
        ["serve", "--port", "http"],
        ["subnet", "--device", "tensorrt", "--weight-bits", "nan"],
        ["subnet", "--device", "tensorrt", "--activation-bits", "four"],
    ],
)
def test_a_flag_with_a_senseless_value_is_named(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("service.server.run_server", lambda *_, **__: pytest.fail("it was started"))
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    flag, value = arguments[-2:]
    assert f"argument {flag}: {value!r} is no" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text", [None, "[" * 60_000, "null", "[]", '{"weight": NaN}', '{"a": 1e999}', '"\\ud800"']
)
def test_a_profile_that_cannot_be_read_is_told(
    text: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "profile.json"
    if text is not None:
        path.write_text(text)
    assert main(["subnet", "--profile", str(path)]) == 2
    assert "profile.json cannot be read" in capsys.readouterr().err


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
