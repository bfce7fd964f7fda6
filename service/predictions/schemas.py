"""What `/predict-accuracy` and `/pareto` take and answer."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, RootModel

from service.subnets.schemas import Bits, BudgetSchema, Configuration, Cost, Profile, Strict

MAX_PREDICTIONS = 10_000

Granularity = Literal["per_tensor", "per_channel"]
Symmetry = Literal["symmetric", "asymmetric"]
LayerwiseBits = Bits | Annotated[list[Bits], Field(min_length=1, max_length=1000)]


class PredictionQuery(Strict):
    """One configuration: its form, named by a device or by the three axes, and its bits."""

    supernet: Annotated[str, Field(max_length=200)] | None = None
    device: Annotated[str, Field(max_length=200)] | None = None
    weight_granularity: Granularity | None = None
    weight_symmetry: Symmetry | None = None
    activation_symmetry: Symmetry | None = None
    narrow_range: bool | None = None
    signed: bool | None = None
    weight_bits: LayerwiseBits = Field(description="For all searchable layers, or one per searchable layer")
    activation_bits: LayerwiseBits


class PredictionQueries(RootModel[list[PredictionQuery]]):
    """Up to 10,000 of what GET takes."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                [
                    {"device": "qualcomm-htp-v73", "weight_bits": 4, "activation_bits": 8},
                    {
                        "weight_granularity": "per_channel",
                        "weight_symmetry": "symmetric",
                        "activation_symmetry": "asymmetric",
                        "weight_bits": 3,
                        "activation_bits": 4,
                    },
                ]
            ]
        }
    )

    root: Annotated[list[PredictionQuery], Field(min_length=1, max_length=MAX_PREDICTIONS)]


class Prediction(BaseModel):
    predicted_accuracy: float = Field(ge=0, le=1)
    prediction_interval: list[float] = Field(description="90 %")
    cost: Cost
    configuration: Configuration


class ParetoPoint(Prediction):
    """One point of the front: the best accuracy found within its budget."""

    budget: BudgetSchema


class Pareto(BaseModel):
    """Tightest budget first; predicted accuracy never falls along it."""

    supernet: str
    profile: Profile
    points: list[ParetoPoint]
