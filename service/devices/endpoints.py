"""`/devices`: the catalogue."""

from __future__ import annotations

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse

from service.devices.resolve import catalogue
from service.devices.schemas import DeviceList, DeviceSchema
from service.errors import not_found, problem_responses
from service.parameters import EACH_KNOWN_AND_ONCE

router = APIRouter(tags=["devices"], dependencies=[EACH_KNOWN_AND_ONCE], responses=problem_responses(422))


@router.get("/devices", summary="The device catalogue", response_model=DeviceList)
async def devices() -> Response:
    return JSONResponse({"devices": [entry.to_json() for entry in catalogue().entries]})


@router.get(
    "/devices/{name}", summary="One device", response_model=DeviceSchema, responses=problem_responses(404)
)
async def device(name: str) -> Response:
    known = {entry.name: entry for entry in catalogue().entries}
    if name not in known:
        raise not_found("device", name, list(known))
    return JSONResponse(known[name].to_json())
