"""What `/predict-accuracy` and `/pareto` take and answer."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Discriminator, Field, RootModel, Tag, ValidationError

from service.subnets.schemas import INTERVAL, Bits, BudgetSchema, Configuration, Cost, Profile, Strict

MAX_PREDICTIONS = 10_000
_PART = 100
_ERRORS = 50

Granularity = Literal["per_tensor", "per_channel"]
Symmetry = Literal["symmetric", "asymmetric"]
MAX_LAYERS = 1000


def _one_or_each(value: Any) -> str:
    return "each" if isinstance(value, list) else "one"


LayerwiseBits = Annotated[
    Annotated[Bits, Tag("one")]
    | Annotated[list[Bits], Field(min_length=1, max_length=MAX_LAYERS), Tag("each")],
    Discriminator(_one_or_each),
]
"""What is wrong is told of the kind that was given: a number that is none of the bits is no bad list too."""


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

    @classmethod
    def in_parts(cls, document: Any) -> list[PredictionQuery]:
        """`model_validate(document).root`, between whose parts other threads get their turn.

        Raises:
            RequestValidationError: what is wrong, the first errors of it where it is a lot.
        """
        errors: list[Any] = []
        queries: list[PredictionQuery] = []
        whole = isinstance(document, list) and 0 < len(document) <= MAX_PREDICTIONS
        for start in range(0, len(document), _PART) if whole else [0]:
            try:
                queries += cls.model_validate(document[start : start + _PART] if whole else document).root
            except ValidationError as error:
                for entry in error.errors(include_url=False):
                    position = entry["loc"]
                    if whole:
                        position = (start + int(position[0]), *_without_tag(position[1:]))
                    errors.append({**entry, "loc": ("body", *position)})
            if len(errors) >= _ERRORS:
                break
        if errors:
            raise RequestValidationError(errors)
        return queries


def _without_tag(location: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """Where in the body an error is: pydantic's location of it also says which kind of bits was meant."""
    bits = location[:1] in (("weight_bits",), ("activation_bits",))
    return (*location[:1], *location[2:]) if bits else location


class Prediction(BaseModel):
    predicted_accuracy: float = Field(ge=0, le=1)
    prediction_interval: list[float] = Field(description=INTERVAL)
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
