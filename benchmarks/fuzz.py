"""Schemathesis over the whole document: `python benchmarks/fuzz.py [--cases 10000]` prints a table.

Half of the cases go to a service without keys, half to one that wants them. Every answer must be a documented
one, in status, type, headers and body, and none a 5xx; the exit code says so.
"""

from __future__ import annotations

import argparse
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx

from service.security.keys import ApiKey, Scope

CONFIGURATION = Path(__file__).with_name("schemathesis.toml")
ROUNDS = 100
"""Runs with other seeds, at most, until there are enough cases."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=10_000)
    options = parser.parse_args()
    entry, key = ApiKey.make(name="fuzz", scope=Scope.BUILD)
    failed = False
    for name, environment, arguments in (
        ("without keys", {}, []),
        ("with keys", {"EQNET_API_KEYS": entry.to_entry()}, ["-H", f"Authorization: Bearer {key}"]),
    ):
        with tempfile.TemporaryDirectory() as folder:
            failed |= fuzz(name, Path(folder), environment, arguments, options.cases // 2)
    return int(failed)


def fuzz(name: str, folder: Path, environment: dict[str, str], arguments: list[str], cases: int) -> bool:
    """Whether anything was wrong."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # Builds are not what is tried here: few wait, and none is waited for.
    settings = {
        "EQNET_DATA_DIR": str(folder),
        "EQNET_BUILDERS": "1",
        "EQNET_QUEUE_LIMIT": "2",
        "EQNET_WAIT": "0",
    }
    log = (folder / "log").open("wb")
    server = subprocess.Popen(
        [sys.executable, "-m", "service.cli", "serve", "--port", str(port)],
        env=os.environ | settings | environment,
        stdout=log,
        stderr=log,
    )
    url = f"http://127.0.0.1:{port}"
    count = failures = 0
    try:
        wait_until_ready(url)
        for seed in range(ROUNDS):
            run = subprocess.run(
                [
                    *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIGURATION)),
                    *(
                        "run",
                        f"{url}/openapi.json",
                        "--seed",
                        str(seed),
                        "-n",
                        "100",
                        "--continue-on-failure",
                    ),
                    *("--phases", "examples,coverage,fuzzing" if seed == 0 else "fuzzing", "--no-color"),
                    *arguments,
                ],
                cwd=folder,
                capture_output=True,
                text=True,
            )
            found = re.search(r"(\d[\d,]*) generated", run.stdout)
            if found is None:
                raise SystemExit(run.stdout + run.stderr)
            count += int(found[1].replace(",", ""))
            if run.returncode:
                failures += 1
                print(run.stdout)
            if count >= cases:
                break
        alive = server.poll() is None
        statuses = httpx.get(f"{url}/metrics", headers=_headers(arguments)).text
    finally:
        server.terminate()
        server.wait(30)
        log.close()
    broken = re.findall(r'eqnet_requests_total\{[^}]*status="5(?!03)\d\d"[^}]*\} \d+', statuses)
    traces = (folder / "log").read_text().count("Traceback")
    print(
        f"{name:14}{count:8} cases, {failures} runs with failures, {len(broken)} routes with 5xx, "
        f"{traces} tracebacks in the log{'' if alive else ', and it died'}",
        flush=True,
    )
    return bool(failures or broken or traces or not alive)


def wait_until_ready(url: str) -> None:
    for _ in range(600):
        try:
            if httpx.get(f"{url}/health/ready").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise SystemExit("the service does not get ready")


def _headers(arguments: list[str]) -> dict[str, str]:
    return dict([arguments[1].split(": ", 1)]) if arguments else {}


if __name__ == "__main__":
    sys.exit(main())
