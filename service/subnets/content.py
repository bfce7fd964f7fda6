"""Answering with a stored file: validators, one byte range, digests (RFC 9110, RFC 9530)."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping

from fastapi import Response

from service.errors import ProblemError

_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
_MEDIA_TYPES = {".json": "application/json", ".onnx": "application/octet-stream"}


def file_response(name: str, content: bytes, sha256: str, request_headers: Mapping[str, str]) -> Response:
    """The whole file, a part of it (206), or nothing because it is known (304).

    Raises:
        ProblemError: 416, the range lies outside the file.
    """
    etag = f'"{sha256}"'
    headers = {
        "ETag": etag,
        "Accept-Ranges": "bytes",
        "Cache-Control": "no-cache",
        "Content-Disposition": f'attachment; filename="{name}"',
        "Repr-Digest": f"sha-256=:{base64.b64encode(bytes.fromhex(sha256)).decode()}:",
    }
    if _matches(request_headers.get("if-none-match"), etag):
        return Response(status_code=304, headers=headers)
    status = 200
    wanted = _RANGE.fullmatch(request_headers.get("range", "").strip())
    if wanted is not None and _valid(wanted) and request_headers.get("if-range", etag) == etag:
        span = _span(wanted[1], wanted[2], len(content))
        if span is None:
            raise ProblemError(
                416,
                "range-not-satisfiable",
                f"{name} has {len(content)} bytes: ask for a range within them",
                headers={"Content-Range": f"bytes */{len(content)}"},
            )
        first, last = span
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        content, status = content[first : last + 1], 206
    headers["Content-Digest"] = f"sha-256=:{base64.b64encode(hashlib.sha256(content).digest()).decode()}:"
    media_type = _MEDIA_TYPES.get(name[name.rfind(".") :], "application/octet-stream")
    return Response(content, status_code=status, headers=headers, media_type=media_type)


def _matches(header: str | None, etag: str) -> bool:
    if header is None:
        return False
    tags = [tag.strip().removeprefix("W/") for tag in header.split(",")]
    return "*" in tags or etag in tags


def _valid(wanted: re.Match[str]) -> bool:
    """Malformed ranges are ignored, as RFC 9110 section 14.2 has it."""
    first, last = wanted[1], wanted[2]
    return bool(first or last) and not (first and last and int(last) < int(first))


def _span(first: str, last: str, size: int) -> tuple[int, int] | None:
    """First and last byte, both included, or None where the range lies outside the file."""
    if first == "":
        length = min(int(last), size)
        return (size - length, size - 1) if length else None
    start = int(first)
    end = min(int(last), size - 1) if last else size - 1
    return (start, end) if start <= end else None
