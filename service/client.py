"""The API from Python, for deployment tooling; synchronous, on httpx."""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx


class ServiceError(Exception):
    """The service answered with a problem: `status`, `code` (the problem type's last part), `document`."""

    def __init__(self, status: int, document: Mapping[str, Any]) -> None:
        errors = "".join(f"\n  {e['pointer']}: {e['detail']}" for e in document.get("errors", ()))
        super().__init__(f"{document.get('detail', 'no detail')}{errors}")
        self.status = status
        self.code = str(document.get("type", "")).rsplit(":", 1)[-1]
        self.document = dict(document)


class Client:
    """One service, at `url`, with an `api_key` where it wants one. Every method raises ServiceError for
    problems and httpx.TransportError for the network's.
    """

    def __init__(
        self, url: str = "http://127.0.0.1:8000", *, api_key: str | None = None, timeout: float = 60.0
    ) -> None:
        headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
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
        """The finished record for the members of `POST /subnets`, waiting up to `wait` seconds.

        Raises:
            TimeoutError: it is still being built.
        """
        deadline = time.monotonic() + wait
        record = self._json(
            "POST", "/subnets", json=request, headers={"Prefer": f"wait={int(min(wait, 30))}"}
        )
        while record["status"] not in ("ready", "failed"):
            if time.monotonic() >= deadline:
                raise TimeoutError(f"subnet {record['id']} is still {record['status']}")
            time.sleep(0.5)
            record = self.record(record["id"])
        if record["status"] == "failed":
            raise ServiceError(record["problem"]["status"], record["problem"])
        return record

    def record(self, subnet: str) -> dict[str, Any]:
        return self._json("GET", f"/subnets/{subnet}")

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
        """Save every artifact of a record into `folder`, which is made if need be."""
        folder.mkdir(parents=True, exist_ok=True)
        saved = []
        for file in record["artifacts"]:
            path = folder / Path(file["name"]).name
            path.write_bytes(self.artifact(record["id"], file["name"]))
            saved.append(path)
        return saved

    def predict_accuracy(self, **query: Any) -> dict[str, Any]:
        """One prediction, for the parameters of `GET /predict-accuracy`; bits may be Python lists."""
        return self._json(
            "GET",
            "/predict-accuracy",
            params={
                name: ",".join(map(str, value)) if isinstance(value, list | tuple) else value
                for name, value in query.items()
            },
        )

    def devices(self) -> list[dict[str, Any]]:
        return list(self._json("GET", "/devices")["devices"])

    def supernets(self) -> list[dict[str, Any]]:
        return list(self._json("GET", "/supernets")["supernets"])

    def _json(self, method: str, url: str, **options: Any) -> dict[str, Any]:
        return dict(self._send(method, url, **options).json())

    def _send(self, method: str, url: str, **options: Any) -> httpx.Response:
        response = self._http.request(method, url, **options)
        if response.is_error:
            try:
                document = response.json()
            except ValueError:
                document = {"detail": f"HTTP {response.status_code} without a problem document"}
            raise ServiceError(response.status_code, document)
        return response
