"""The `eqnet` command."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import ValidationError

    from service.client import Client

HOST = "127.0.0.1"
PORT = 8000


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    run = options.run
    return int(run(options))


def _parser() -> argparse.ArgumentParser:
    # Imported here: `eqnet --help` is read more often than a server is started.
    from service.security.commands import add_commands
    from service.settings import describe_settings

    parser = argparse.ArgumentParser(
        prog="eqnet",
        description="One quantised network per device.",
        epilog="`subnet` and `devices` send EQNET_API_KEY, where it is set, as their API key.",
    )
    commands = parser.add_subparsers(title="commands", required=True)

    serve = commands.add_parser(
        "serve",
        help="run the service",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"environment:\n{describe_settings()}",
    )
    serve.add_argument("--host", default=HOST, help=f"address to listen on (default {HOST})")
    serve.add_argument("--port", type=_port, default=PORT, help=f"port to listen on (default {PORT})")
    serve.set_defaults(run=_serve)

    worker = commands.add_parser(
        "worker",
        help="build for services with the same EQNET_BROKER_URL, EQNET_REDIS_URL and EQNET_ARTIFACTS_URL",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"environment:\n{describe_settings()}",
    )
    worker.set_defaults(run=_worker)
    for command in (serve, worker):
        command.add_argument(
            "--log-level",
            default="info",
            choices=["critical", "error", "warning", "info", "debug"],
            help="default info",
        )

    subnet = commands.add_parser("subnet", help="ask a running service for a subnet and save its files")
    subnet.add_argument("--supernet", help="may be left out where only one is loaded")
    target = subnet.add_mutually_exclusive_group(required=True)
    target.add_argument("--device", help="a name that `eqnet devices` lists")
    target.add_argument("--profile", type=Path, metavar="FILE", help="a device profile, JSON")
    subnet.add_argument("--weight-bits", type=_bound, help="average at most this")
    subnet.add_argument("--activation-bits", type=_bound, help="average at most this")
    subnet.add_argument("--model-bytes", type=int, help="packed size at most this")
    subnet.add_argument("--seed", type=int, default=0, help="of the search (default 0)")
    subnet.add_argument(
        "--artifacts",
        nargs="+",
        metavar="FILE",
        help="only these, such as model.qonnx.onnx for an FPGA's profile",
    )
    subnet.add_argument("--out", type=Path, metavar="FOLDER", help="save the artifacts here")
    subnet.set_defaults(run=_subnet)

    add_commands(commands.add_parser("keys", help="make, list and revoke API keys"))

    devices = commands.add_parser("devices", help="list the devices that a running service knows")
    devices.set_defaults(run=_devices)
    for command in (subnet, devices):
        command.add_argument(
            "--url", default=f"http://{HOST}:{PORT}", help=f"the service (default http://{HOST}:{PORT})"
        )
    return parser


def _port(text: str) -> int:
    if not (text.isdecimal() and int(text) <= 65535):
        raise argparse.ArgumentTypeError(f"{text[:100]!r} is no port: use 0 to 65535, 0 for any that is free")
    return int(text)


def _bound(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text[:100]!r} is no bound: give a number, or leave it out")
    return value


def _serve(options: argparse.Namespace) -> int:
    from pydantic import ValidationError

    from eqnet_core.errors import EqnetError
    from service.app import create_app
    from service.data_folder import DataFolder, DataFolderError
    from service.embedded import EmbeddedStore, EmbeddedStoreError
    from service.jobs.evaluation import EvaluationSet
    from service.logs import configure_logging
    from service.security.exposure import ExposedError, check_exposure
    from service.security.key_file import KeyFileError
    from service.security.keys import KeyEntryError
    from service.server import run_server
    from service.settings import Settings, warn_of_misspelt
    from service.tracing import TracingError

    try:
        settings = Settings()
        if settings.broker_url is not None and not _has_celery():
            return 1
        check_exposure(options.host, keys=settings.keys.required, anonymous=settings.allow_anonymous)
        # Tried before the server starts: its own message would be a stack trace out of the lifespan.
        if settings.redis_url is None:
            with DataFolder(settings.data_dir) as folder:
                EmbeddedStore(folder.path / "store").prepare()
        if settings.evaluation_data is not None:
            EvaluationSet.open(settings.evaluation_data, limit=settings.evaluation_limit)
        app = create_app(settings)
    except ValidationError as error:
        return _tell_settings(error)
    except KeyEntryError as error:
        print(f"eqnet: EQNET_API_KEYS: {error}", file=sys.stderr)
        return 2
    except (
        DataFolderError, EmbeddedStoreError, EqnetError, ExposedError, KeyFileError, TracingError
    ) as error:  # fmt: skip
        print(f"eqnet: {error}", file=sys.stderr)
        return 1
    configure_logging(form=settings.log_format, level=options.log_level)
    warn_of_misspelt(os.environ)
    run_server(
        app,
        host=options.host,
        port=options.port,
        grace=settings.shutdown_grace,
        ending=lambda: app.state.service.subnets.end_streams(),
        leave=lambda: app.state.service.subnets.leave(),
        told=(DataFolderError, EmbeddedStoreError, EqnetError),
    )
    return 0


def _worker(options: argparse.Namespace) -> int:
    from pydantic import ValidationError

    from service.settings import Settings, warn_of_misspelt

    try:
        settings = Settings()
    except ValidationError as error:
        return _tell_settings(error)
    if settings.broker_url is None:
        print("eqnet: EQNET_BROKER_URL: set it to the broker that the services use", file=sys.stderr)
        return 2
    if not _has_celery():
        return 1
    from eqnet_core.errors import EqnetError
    from service.jobs.celery_worker import run_worker
    from service.jobs.evaluation import EvaluationSet
    from service.logs import configure_logging
    from service.security.key_file import KeyFileError
    from service.security.keys import KeyEntryError
    from service.tracing import TracingError

    configure_logging(form=settings.log_format, level=options.log_level)
    warn_of_misspelt(os.environ)
    try:
        if settings.evaluation_data is not None:  # now, not by every build that wants it
            EvaluationSet.open(settings.evaluation_data, limit=settings.evaluation_limit)
        return run_worker(settings, log_level=options.log_level)
    except KeyEntryError as error:
        print(f"eqnet: EQNET_API_KEYS: {error}", file=sys.stderr)
        return 2
    except (EqnetError, KeyFileError, OSError, TracingError) as error:
        print(f"eqnet: {error}", file=sys.stderr)
        return 1


def _has_celery() -> bool:
    """Tells where it is not installed."""
    import importlib.util

    if importlib.util.find_spec("celery") is not None:
        return True
    print("eqnet: Celery is not installed: `scripts/install serve,workers` in the checkout", file=sys.stderr)
    return False


def _tell_settings(error: ValidationError) -> int:
    for entry in error.errors():
        name = "_".join(str(part) for part in entry["loc"]).upper()
        reason = entry["msg"].removeprefix("Value error, ")
        print(f"eqnet: EQNET_{name.removeprefix('EQNET_')}: {reason}", file=sys.stderr)
    return 2


def _subnet(options: argparse.Namespace) -> int:
    request: dict[str, Any] = {"search": {"seed": options.seed}}
    if options.supernet is not None:
        request["supernet"] = options.supernet
    if options.device is not None:
        request["device"] = options.device
    else:
        try:
            request["profile"] = _read_object(options.profile)
        except (OSError, ValueError, RecursionError) as error:
            print(f"eqnet: the profile {options.profile} cannot be read: {error}", file=sys.stderr)
            return 2
    bounds = {name: getattr(options, name) for name in ("weight_bits", "activation_bits", "model_bytes")}
    request["budget"] = {name: value for name, value in bounds.items() if value is not None}
    if options.artifacts is not None:
        request["artifacts"] = options.artifacts

    def call(client: Client) -> None:
        record = client.subnet(**request)
        saved = client.download(record, options.out) if options.out is not None else []
        print(json.dumps(record, indent=2))
        for path in saved:
            print(f"saved {path}", file=sys.stderr)

    return _told(options.url, call, interrupted="interrupted: asking again finds the subnet")


def _read_object(path: Path) -> dict[str, Any]:
    """Raises ValueError also for what `json` reads although no JSON may have it, such as NaN."""
    document = json.loads(path.read_text(encoding="utf-8"))
    json.dumps(document, allow_nan=False, ensure_ascii=False).encode()
    if not isinstance(document, dict):
        raise ValueError("it must be a JSON object")
    return document


def _devices(options: argparse.Namespace) -> int:
    def call(client: Client) -> None:
        for device in client.devices():
            if device["supported"]:
                print(device["name"])

    return _told(options.url, call)


def _told(url: str, call: Callable[[Client], None], *, interrupted: str = "interrupted") -> int:
    """Run a call with a client of the service at `url`; problems become one message and an exit code, and so
    does Ctrl-C.
    """
    import httpx

    from service.client import Client, ServiceError

    key = os.environ.get("EQNET_API_KEY", "").strip()
    if not (key.isascii() and key.isprintable()):
        print("eqnet: EQNET_API_KEY: no header can hold it: set the key that was printed", file=sys.stderr)
        return 2
    try:
        with Client(url, api_key=key or None) as client:
            call(client)
        return 0
    except KeyboardInterrupt:
        print(f"eqnet: {interrupted}", file=sys.stderr)
        return 130
    except ServiceError as error:
        message = str(error)
        if error.status == 401:
            message += f"; EQNET_API_KEY, which is sent as the key, is {'set' if key else 'not set'}"
    except httpx.InvalidURL as error:
        message = f"{url} is no URL of a service ({error})"
    except httpx.TransportError as error:
        message = f"no service answers at {url} ({error}): start one with `eqnet serve`"
    except (httpx.DecodingError, LookupError, TypeError) as error:
        # Read without further checks, since every service answers as documented: this is another one.
        message = f"what answers at {url} is no EQ-Net service ({type(error).__name__}: {error})"
    except (ValueError, OSError) as error:
        message = str(error)
    print(f"eqnet: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
