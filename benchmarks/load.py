"""What the service carries: `python benchmarks/load.py [--minutes 30]` prints tables.

The yardstick is a bare FastAPI endpoint that does one Redis GET, run by the same server with the same
settings on the same store. Its rounds lie between those of the others, each of which is compared with the two
beside it, and the median of these ratios is shown: a busy machine slows both alike, a passing disturbance
spoils one ratio. What is asked for while a build runs is compared with the yardstick when none does.

`--rounds 0 --minutes 30` is the mixed load alone, `--rate` requests per second of it. Memory is flat when the
median of the last quarter is at most 5 % above that of the second. The first quarter is warm-up: callers meet
every kind of request and answer, caches fill (512 records, 1,024 predictions), and malloc reaches the most
that was ever needed at once. Quarters are printed, and the slope after the warm-up, so that what would go on
growing shows.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CONNECTIONS = 16
CALLERS = 8
ROUND_SECONDS = 1.5
IDENTICAL = 1000
FLAT = 0.05
REQUEST: dict[str, Any] = {"device": "fpga-mixed", "budget": {"weight_bits": 4.0, "activation_bits": 4.0}}
QUICK = {"population": 20, "generations": 20}
LONG = {"population": 400, "generations": 10_000}
"""A build that outlasts a round; it is cancelled after it."""


class Connection:
    """One keep-alive connection that sends bytes and reads one answer; cheaper than a client library."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def open(cls, port: int) -> Connection:
        return cls(*await asyncio.open_connection("127.0.0.1", port, limit=2**22))

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        self._writer.write(request)
        head = await self._reader.readuntil(b"\r\n\r\n")
        status = int(head[9:12])
        found = head.lower().find(b"content-length:")
        length = int(head[found + 15 : head.find(b"\r\n", found)]) if found >= 0 else 0
        return status, await self._reader.readexactly(length) if length else b""

    def close(self) -> None:
        self._writer.close()


async def once(port: int, request: bytes) -> tuple[int, bytes]:
    """On a connection of its own: idle ones are closed by the server."""
    connection = await Connection.open(port)
    try:
        return await connection.ask(request)
    finally:
        connection.close()


def encoded(method: str, path: str, body: Any = None, *, prefer: str = "") -> bytes:
    content = b"" if body is None else json.dumps(body).encode()
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n"
    if prefer:
        head += f"Prefer: {prefer}\r\n"
    if body is not None:
        head += f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n"
    return head.encode() + b"\r\n" + content


class Started:
    """A process of this benchmark on a free port, told to end when this block does."""

    def __init__(self, arguments: Sequence[str], environment: dict[str, str], log: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.launched = time.perf_counter()
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, *arguments, "--port", str(self.port)],
                env=os.environ | environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        self._log = log

    async def until(self, path: str, seconds: float = 60.0) -> float:
        """Seconds from launch until `path` answers 200."""
        while time.perf_counter() - self.launched < seconds and self.process.poll() is None:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                status, _ = await once(self.port, encoded("GET", path))
                if status == 200:
                    return time.perf_counter() - self.launched
            await asyncio.sleep(0.02)
        raise SystemExit(f"it does not get ready:\n{self._log.read_text()[-3000:]}")

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)

    def processor_seconds(self) -> float:
        """That the web process has used so far, in user and kernel."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory(self) -> dict[str, float]:
        """Resident megabytes of this process and of those it started, by what they are."""
        found = {"web": _resident(self.process.pid)}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
                    if parent == self.process.pid:
                        command = (entry / "cmdline").read_bytes()
                        found["builder" if b"worker" in command else "store"] = _resident(int(entry.name))
        return found


def _resident(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


@dataclass
class Row:
    """What a call reached, round by round: requests per second, and the seconds of every answer."""

    server: Started
    requests: Sequence[bytes]
    processor: list[float] = field(default_factory=list)
    """Microseconds of the web process's processor time per request: what a busy machine changes least."""
    rates: list[float] = field(default_factory=list)
    p99: list[float] = field(default_factory=list)
    rate_ratios: list[float] = field(default_factory=list)
    p99_ratios: list[float] = field(default_factory=list)

    async def round(self, duration: float) -> None:
        seconds: list[float] = []
        following = itertools.cycle(self.requests)
        started, used = time.perf_counter(), self.server.processor_seconds()

        async def caller() -> None:
            connection = await Connection.open(self.server.port)
            while (sent := time.perf_counter()) - started < duration:
                status, body = await connection.ask(next(following))
                if status != 200:
                    raise SystemExit(f"answered {status}: {body[:500]!r}")
                seconds.append(time.perf_counter() - sent)
            connection.close()

        await asyncio.gather(*(caller() for _ in range(CONNECTIONS)))
        self.rates.append(len(seconds) / (time.perf_counter() - started))
        self.p99.append(statistics.quantiles(seconds, n=100)[98])
        self.processor.append(1e6 * (self.server.processor_seconds() - used) / len(seconds))

    def compare(self, yardstick: Row, rounds: int) -> None:
        """The last round with the yardstick's last `rounds`."""
        self.rate_ratios.append(self.rates[-1] / statistics.mean(yardstick.rates[-rounds:]))
        self.p99_ratios.append(self.p99[-1] / statistics.mean(yardstick.p99[-rounds:]))


def serve_bare(socket_url: str, port: int) -> None:
    """The yardstick: FastAPI, one Redis GET, and nothing else."""
    from fastapi import FastAPI

    from service.server import run_server
    from service.subnets.store import connect

    app = FastAPI()
    redis = connect(socket_url)

    @app.get("/bare")
    async def bare() -> dict[str, str]:
        return {"value": (await redis.get("eqnet:benchmark") or b"none").decode()}

    run_server(app, host="127.0.0.1", port=port)


async def until_status(port: int, subnet: str, wanted: str) -> None:
    for _ in range(600):
        _, answer = await once(port, encoded("GET", f"/subnets/{subnet}"))
        if json.loads(answer)["status"] == wanted:
            return
        await asyncio.sleep(0.05)
    raise SystemExit(f"{subnet} does not get {wanted}: {answer[:300]!r}")


def predictions(count: int) -> list[bytes]:
    """Different configurations: thousands are more than the service keeps the answers of."""
    generator = random.Random(0)
    requests = []
    for _ in range(count):
        bits = ["%2C".join(str(generator.randint(2, 8)) for _ in range(18)) for _ in range(2)]
        query = f"device=fpga-mixed&weight_bits={bits[0]}&activation_bits={bits[1]}"
        requests.append(encoded("GET", f"/predict-accuracy?{query}"))
    return requests


async def throughput(service: Started, bare: Started, rounds: int) -> None:
    warm = []
    for seed in range(8):
        body = REQUEST | {"search": QUICK | {"seed": seed}}
        status, answer = await once(service.port, encoded("POST", "/subnets", body, prefer="wait=100"))
        if status not in (200, 201):
            raise SystemExit(f"answered {status}: {answer[:500]!r}")
        warm.append(encoded("POST", "/subnets", body))
    yardstick = Row(bare, [encoded("GET", "/bare")])
    rows = {
        "POST /subnets, warm": Row(service, warm),
        "GET /predict-accuracy, asked before": Row(service, predictions(100)),
        "GET /predict-accuracy, always another": Row(service, predictions(5000)),
    }
    everything = {"bare endpoint, one Redis GET": yardstick, **rows}
    building = {f"{name}, while building": Row(row.server, row.requests) for name, row in everything.items()}
    for row in everything.values():
        await row.round(0.5)
        row.rates.clear()
        row.p99.clear()
        row.processor.clear()
    for number in range(rounds):
        await yardstick.round(ROUND_SECONDS)
        for row in rows.values():
            await row.round(ROUND_SECONDS)
            await yardstick.round(ROUND_SECONDS)
            row.compare(yardstick, 2)
        body = REQUEST | {"search": LONG | {"seed": 1000 + number}}
        _, answer = await once(service.port, encoded("POST", "/subnets", body, prefer="respond-async"))
        subnet = json.loads(answer)["id"]
        await until_status(service.port, subnet, "building")
        for row in building.values():
            await row.round(ROUND_SECONDS)
            row.compare(yardstick, 1 + len(rows))
        _, answer = await once(service.port, encoded("GET", f"/subnets/{subnet}"))
        if json.loads(answer)["status"] != "building":
            raise SystemExit("the build ended before its round did")
        await once(service.port, encoded("DELETE", f"/subnets/{subnet}"))
    print(f"{'':54}{'requests/s':>11}{'of bare':>9}{'p99 ms':>9}{'of bare':>9}{'processor µs':>14}")
    for name, row in {**everything, **building}.items():
        rate = statistics.median(row.rate_ratios or [1.0])
        late = statistics.median(row.p99_ratios or [1.0])
        print(
            f"{name:54}{statistics.median(row.rates):11.0f}{rate:9.2f}"
            f"{1000 * statistics.median(row.p99):9.1f}{late:9.2f}"
            f"{statistics.median(row.processor):14.0f}",
            flush=True,
        )


async def identical(service: Started) -> None:
    """A thousand at once, each on its own connection; all but the builder's caller share its build."""
    before = await builds(service.port)
    body = encoded("POST", "/subnets", REQUEST | {"search": QUICK | {"seed": 4711}}, prefer="wait=300")
    started = time.perf_counter()
    answers = await asyncio.gather(*(once(service.port, body) for _ in range(IDENTICAL)))
    seconds = time.perf_counter() - started
    statuses = {status: sum(found == status for found, _ in answers) for status, _ in answers}
    print(
        f"{IDENTICAL} identical cold POSTs: {await builds(service.port) - before:.0f} build, "
        f"statuses {statuses}, {len({answer for _, answer in answers})} different answer, {seconds:.1f} s"
    )


async def builds(port: int) -> float:
    _, text = await once(port, encoded("GET", "/metrics"))
    lines = [line for line in text.decode().splitlines() if line.startswith("eqnet_builds_total")]
    return sum(float(line.split()[-1]) for line in lines)


async def soak(service: Started, minutes: float, rate: float) -> None:
    """Everything there is, from eight callers, and what the processes hold over time."""
    started = time.perf_counter()
    deadline = started + 60 * minutes
    counts: dict[int, int] = {}

    async def caller(number: int) -> None:
        generator = random.Random(number)
        sent = 0
        while time.perf_counter() < deadline:
            for request in mixture(generator):
                if rate:
                    due = started + sent * CALLERS / rate
                    await asyncio.sleep(max(0.0, due - time.perf_counter()))
                sent += 1
                status, answer = await once(service.port, request)
                counts[status] = counts.get(status, 0) + 1
                if status >= 500:
                    raise SystemExit(f"answered {status}: {answer[:500]!r}")
                # Deleted now and then: the store does not grow, and builds go on for ever.
                if request.startswith(b"POST /subnets") and status == 200 and generator.random() < 0.1:
                    record = json.loads(answer)
                    for path in (record["artifacts"][0]["url"], f"/subnets/{record['id']}"):
                        method = "GET" if "artifacts" in path else "DELETE"
                        status, _ = await once(service.port, encoded(method, path))
                        counts[status] = counts.get(status, 0) + 1

    async def watch() -> list[tuple[float, dict[str, float]]]:
        found = []
        while (now := time.perf_counter()) < deadline:
            found.append((now, service.memory()))
            await asyncio.sleep(2)
        return found

    *_, found = await asyncio.gather(*(caller(number) for number in range(CALLERS)), watch())
    print(f"{minutes:g} minutes of mixed load: statuses {dict(sorted(counts.items()))}")
    for name in ("web", "builder", "store"):
        sizes = [(at, sample[name]) for at, sample in found if name in sample]
        parts = [sizes[len(sizes) * k // 4 : len(sizes) * (k + 1) // 4] for k in range(4)]
        medians = [statistics.median(size for _, size in part) for part in parts]
        slope, _ = statistics.linear_regression(*zip(*(sizes[len(sizes) // 4 :]), strict=True))
        growth = medians[3] / medians[1] - 1
        print(
            f"{name:8} MB by quarters: {', '.join(f'{median:.1f}' for median in medians)}; last over second "
            f"{growth:+.1%} ({'flat' if growth <= FLAT else 'NOT FLAT'}), {3600 * slope:+.1f} per hour after "
            f"the first, highest {max(size for _, size in sizes):.1f}"
        )


def mixture(generator: random.Random) -> Iterator[bytes]:
    """One caller's next requests: a subnet that is mostly there, what belongs to it, and mistakes."""
    body = REQUEST | {"search": QUICK | {"seed": generator.randrange(24)}}
    yield encoded("POST", "/subnets", body, prefer="wait=30")
    yield from generator.sample(predictions(3), 2)
    yield encoded("GET", "/subnets?limit=20")
    yield encoded("GET", "/pareto?device=fpga-mixed&points=2")
    bits = [{"device": "fpga-mixed", "weight_bits": 4, "activation_bits": 2 + k % 7} for k in range(50)]
    yield encoded("POST", "/predict-accuracy", bits)
    yield encoded("POST", "/subnets", {"device": generator.choice(["nothing", 7, None])})
    yield encoded("GET", f"/subnets/{generator.randbytes(16).hex()}")
    yield encoded(
        "GET", generator.choice(["/devices", "/supernets", "/health/ready", "/metrics", "/nowhere"])
    )
    yield encoded("POST", "/subnets", body, prefer="respond-async")


async def measure(rounds: int, minutes: float, rate: float) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        environment = {"EQNET_DATA_DIR": str(folder / "data"), "EQNET_BUILDERS": "1", "EQNET_RATE_LIMIT": "0"}
        service = Started(["-m", "service.cli", "serve"], environment, folder / "service.log")
        print(f"ready after {await service.until('/health/ready'):.1f} s")
        store = f"unix://{folder / 'data' / 'store' / 'valkey.sock'}"
        bare = Started([__file__, "--bare", store], {}, folder / "bare.log")
        try:
            await bare.until("/bare")
            await identical(service)
            print("resident MB:", {name: round(size) for name, size in service.memory().items()})
            if rounds:
                await throughput(service, bare, rounds)
            if minutes:
                await soak(service, minutes, rate)
        finally:
            bare.stop()
            service.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="of each call (default 7)")
    parser.add_argument("--minutes", type=float, default=30.0, help="of mixed load (default 30)")
    parser.add_argument(
        "--rate", type=float, default=0.0, help="of the mixed load, per second (as fast as it goes)"
    )
    parser.add_argument("--bare", help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.bare:
        serve_bare(options.bare, options.port)
        return
    asyncio.run(measure(options.rounds, options.minutes, options.rate))


if __name__ == "__main__":
    main()
