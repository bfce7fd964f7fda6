"""The page at `/` and the documentation at `/docs`; everything they load comes from this server."""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles

from service.security.headers import DOCS_POLICY, PAGE_POLICY

_WEB = Path(__file__).parent / "web"


def install_pages(app: FastAPI) -> None:
    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(_WEB / "index.html", headers={"Content-Security-Policy": PAGE_POLICY})

    @app.get("/docs", include_in_schema=False)
    async def docs() -> FileResponse:
        return FileResponse(_WEB / "docs.html", headers={"Content-Security-Policy": DOCS_POLICY})

    app.mount("/docs/swagger", StaticFiles(packages=[("fastapi_offline", "static")]), name="swagger")
    app.mount("/web", StaticFiles(directory=_WEB), name="web")
