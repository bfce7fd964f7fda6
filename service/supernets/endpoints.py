"""`/supernets`: what is loaded."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse

from eqnet_core.bundle import Bundle
from eqnet_core.space import FIXED_BITS, FORMS
from service.errors import problem_responses
from service.parameters import EACH_KNOWN_AND_ONCE
from service.state import State
from service.supernets.schemas import SupernetList, SupernetSchema

router = APIRouter(tags=["supernets"], dependencies=[EACH_KNOWN_AND_ONCE], responses=problem_responses(422))


@router.get("/supernets", summary="What is loaded", response_model=SupernetList)
async def supernets(state: State) -> Response:
    loaded = [describe(factory.bundle) for _, factory in sorted(state.supernets.factories.items())]
    return JSONResponse({"supernets": loaded})


@router.get(
    "/supernets/{name}",
    summary="One supernet",
    response_model=SupernetSchema,
    responses=problem_responses(404, 503),
)
async def supernet(name: str, state: State) -> Response:
    return JSONResponse(describe(state.supernets.in_path(name).bundle))


def describe(bundle: Bundle) -> dict[str, Any]:
    """The `Supernet` document of a bundle."""
    document = bundle.document
    return {
        "name": bundle.name,
        "digest": bundle.digest,
        "architecture": bundle.architecture,
        "layers": [
            {
                "name": layer.name,
                "kind": layer.kind,
                "searchable": layer.searchable,
                "bits": list(bundle.space.bit_widths) if layer.searchable else [FIXED_BITS],
                "output_channels": layer.output_channels,
                "weights": layer.weights,
                "inputs": layer.inputs,
                "macs": layer.macs,
                "nonnegative": layer.nonnegative,
            }
            for layer in bundle.space.layers
        ],
        "input": {
            "shape": list(bundle.input.shape),
            "mean": list(bundle.input.mean),
            "std": list(bundle.input.std),
        },
        "classes": list(bundle.classes),
        "forms": [
            {
                "weight_granularity": form.weight_granularity,
                "weight_symmetry": form.weight_symmetry,
                "activation_symmetry": form.activation_symmetry,
            }
            for form in FORMS
        ],
        "float_accuracy": bundle.float_accuracy,
        "predictor": document.get("predictor", {}),
        "accuracy": document.get("accuracy", {}),
        "card": document.get("card", {}),
    }
