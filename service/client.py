"""The API from Python, for deployment tooling; synchronous, on httpx."""

from __future__ import annotations

import base64
import hashlib
import math
import os
import re
import time
import uuid
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self, TypeVar

import httpx

_ATTEMPTS = 5
"""At a file, and at asking how a build goes, while connections break or the service starts again."""

_PAUSE = 0.5
"""Seconds between questions, and between attempts."""

_RECORD = ("id", "status")
"""What every record of a subnet has."""


_SECONDS = re.compile(r"\d{1,6}")

T = TypeVar("T")


class ServiceError(Exception):
    """The service answered with a problem: `status`, `code` (the problem type's last part), `document`, and
    `retry_after` seconds, 0 where it does not say when to ask again.
    """

    def __init__(self, status: int, document: Mapping[str, Any], *, retry_after: int = 0) -> None:
        detail = document["detail"]
        # Most problems say the first of their errors themselves.
        untold = [
            error
            for error in document.get("errors", ())
            if error["pointer"] not in detail or error["detail"] not in detail
        ]
        super().__init__(detail + "".join(f"\n  {error['pointer']}: {error['detail']}" for error in untold))
        self.status = status
        self.code = str(document.get("type", "")).rsplit(":", 1)[-1]
        self.document = dict(document)
        self.retry_after = retry_after


class Client:
    """One service, at `url`, with an `api_key` where it wants one. Every method raises ServiceError for
    problems and httpx.TransportError for the network's, such as `timeout` seconds without an answer.
    """

    def __init__(
        self, url: str = "http://127.0.0.1:8000", *, api_key: str | None = None, timeout: float = 60.0
    ) -> None:
        headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        self._timeout = timeout
        self._http = httpx.Client(base_url=url, timeout=timeout, headers=headers)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def subnet(self, *, wait: float = 600.0, **request: Any) -> dict[str, Any]:
        """The finished record for the members of `POST /subnets`, waiting up to `wait` seconds, also for the
        rate of the key.

        Raises:
            TimeoutError: it is still being built.
        """
        deadline = time.monotonic() + wait
        asked = int(max(0, min(wait, 30)))

        def ask() -> dict[str, Any]:
            return self._json(
                "POST",
                "/subnets",
                _RECORD,
                json=request,
                headers={"Prefer": f"wait={asked}"},
                timeout=httpx.Timeout(self._timeout, read=asked + self._timeout),
            )

        record = _patiently(ask, deadline=deadline, attempts=1)
        subnet = record["id"]
        while record["status"] not in ("ready", "failed"):
            if time.monotonic() >= deadline:
                raise TimeoutError(f"subnet {subnet} is still {record['status']}")
            time.sleep(_PAUSE)
            record = _patiently(lambda: self.record(subnet), deadline=deadline)
        if record["status"] == "failed":
            raise ServiceError(record["problem"]["status"], record["problem"])
        return record

    def record(self, subnet: str) -> dict[str, Any]:
        return self._json("GET", f"/subnets/{subnet}", _RECORD)

    def delete(self, subnet: str) -> None:
        self._send("DELETE", f"/subnets/{subnet}")

    def artifact(self, subnet: str, name: str) -> bytes:
        """The file's content, checked against the digest that came with it.

        Raises:
            ValueError: it was damaged on the way.
        """
        response = self._send("GET", f"/subnets/{subnet}/artifacts/{name}")
        digest = base64.b64encode(hashlib.sha256(response.content).digest()).decode()
        if response.headers["Content-Digest"] != f"sha-256=:{digest}:":
            raise ValueError(f"{name} was damaged on the way: fetch it again")
        return response.content

    def download(self, record: Mapping[str, Any], folder: Path) -> list[Path]:
        """Save every artifact of a record into `folder`, which is made if need be. A file is there once it is
        whole and has the record's digest, or stays what it was. One whose connection breaks is gone on with;
        a service that is starting again is waited for, some seconds, and the rate of the key as long as it
        takes.

        Raises:
            ValueError: a file was damaged on the way.
        """
        folder.mkdir(parents=True, exist_ok=True)
        saved = []
        for file in record["artifacts"]:
            path = folder / Path(file["name"]).name
            partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
            try:
                self._fetch(f"/subnets/{record['id']}/artifacts/{file['name']}", partial, file)
                partial.replace(path)
            finally:
                partial.unlink(missing_ok=True)
            saved.append(path)
        return saved

    def _fetch(self, url: str, partial: Path, file: Mapping[str, Any]) -> None:
        """Write the file of a record's entry; each attempt goes on where the one before broke off."""
        with partial.open("w+b") as out:
            _patiently(lambda: self._fetch_rest(url, out, file))
            out.flush()
            os.fsync(out.fileno())
            out.seek(0)
            digest = hashlib.file_digest(out, "sha256").hexdigest()
        if digest != file["sha256"]:
            raise ValueError(f"{file['name']} was damaged on the way: fetch it again")

    def _fetch_rest(self, url: str, out: BinaryIO, file: Mapping[str, Any]) -> None:
        had = out.tell()
        if had == file["bytes"]:
            return
        headers = {"Accept-Encoding": "identity"}
        if had:
            headers |= {"Range": f"bytes={had}-", "If-Range": f'"{file["sha256"]}"'}
        with self._http.stream("GET", url, headers=headers) as response:
            if not response.is_success:
                response.read()
            _raise_problem(response)
            if had and response.status_code != 206:  # all of it once more
                out.seek(0)
                out.truncate()
            for part in response.iter_bytes():
                out.write(part)
                if out.tell() > file["bytes"]:  # not what the record says, and maybe without end
                    return

    def predict_accuracy(self, **query: Any) -> dict[str, Any]:
        """One prediction, for the parameters of `GET /predict-accuracy`; bits may be Python lists."""
        return self._json(
            "GET",
            "/predict-accuracy",
            ("predicted_accuracy",),
            params={
                name: ",".join(map(str, value)) if isinstance(value, list | tuple) else value
                for name, value in query.items()
                if value is not None
            },
        )

    def devices(self) -> list[dict[str, Any]]:
        return list(self._json("GET", "/devices", ("devices",))["devices"])

    def supernets(self) -> list[dict[str, Any]]:
        return list(self._json("GET", "/supernets", ("supernets",))["supernets"])

    def _json(self, method: str, url: str, members: Collection[str], **options: Any) -> dict[str, Any]:
        """The answer, an object with those `members` at least."""
        response = self._send(method, url, **options)
        try:
            document = response.json()
        except (ValueError, RecursionError) as error:
            raise _no_service(response, f"{type(error).__name__}: {error}") from error
        if not isinstance(document, dict) or not document.keys() >= set(members):
            raise _no_service(response, f"an answer without {' and '.join(members)}")
        return document

    def _send(self, method: str, url: str, **options: Any) -> httpx.Response:
        response = self._http.request(method, url, **options)
        _raise_problem(response)
        return response


def _patiently(ask: Callable[[], T], *, deadline: float = math.inf, attempts: int = _ATTEMPTS) -> T:
    """What `ask` returns, asked again until the `deadline` of the monotonic clock: `attempts` times in all
    over a broken connection or a service that is starting or has lost Redis, and whenever only the key's rate
    is in the way.
    """
    while True:
        try:
            return ask()
        except (httpx.TransportError, ServiceError) as error:
            problem = error if isinstance(error, ServiceError) else None
            limited = problem is not None and problem.code == "rate-limited"
            if problem is not None and problem.status != 503 and not limited:
                raise
            attempts -= not limited
            pause = max(_PAUSE, problem.retry_after if problem is not None else 0)
            if not attempts or time.monotonic() + pause > deadline:
                raise
        time.sleep(pause)


def _raise_problem(response: httpx.Response) -> None:
    if response.is_success:
        return
    status = response.status_code
    try:
        retry_after = response.headers.get("Retry-After", "")
        problem = ServiceError(
            status,
            response.json(),
            retry_after=int(retry_after) if _SECONDS.fullmatch(retry_after) else 0,
        )
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        problem = _no_service(response, f"HTTP {status} without a problem document")
    raise problem


def _no_service(response: httpx.Response, reason: str) -> ServiceError:
    detail = f"what answers at {response.url} is no EQ-Net service ({reason})"
    return ServiceError(response.status_code, {"detail": detail})
