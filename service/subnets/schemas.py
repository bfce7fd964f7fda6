"""What `POST /subnets` takes and what a record looks like."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from eqnet_core.profile import LARGEST_BOUND, MAX_GENERATIONS, MAX_POPULATION, MAX_PREDICTIONS, MAX_SEED

ArtifactName = Literal[
    "model.onnx",
    "model.integer.onnx",
    "model.qonnx.onnx",
    "model.safetensors",
    "encodings.json",
    "report.json",
]
Bits = Annotated[int, Field(ge=2, le=8, description="Bit-width, 2 to 8")]
_ACCEPTED = "What the device accepts; those that the supernet does not have are left out"
Status = Literal["queued", "building", "ready", "failed"]

INTERVAL = (
    "90 % interval of the accuracy on the held-out images of the bundle's own training data; on others, such "
    "as a test set, it can be lower"
)
"""What every `prediction_interval` is described as."""

EXAMPLE_PROFILE: dict[str, Any] = {
    "weight": {
        "bits": [2, 3, 4, 5, 6, 7, 8],
        "granularity": "per_channel",
        "symmetry": "symmetric",
        "narrow_range": False,
    },
    "activation": {"bits": [2, 3, 4, 5, 6, 7, 8], "symmetry": "asymmetric", "signed": False},
}


class Strict(BaseModel):
    """No coercion, no unknown members, no NaN or infinity."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _only_known(cls, document: Any) -> Any:
        """pydantic, after this, would not say what is known."""
        known = cls.model_fields
        if isinstance(document, dict) and not known.keys() >= document.keys():
            reason = PydanticCustomError(
                "unknown_member", "is not known here: use {known}", {"known": ", ".join(known)}
            )
            surplus = [name for name in document if name not in known]
            raise ValidationError.from_exception_data(
                cls.__name__, [{"type": reason, "loc": (name,), "input": None} for name in surplus[:50]]
            )
        return document


class WeightProfile(Strict):
    bits: Annotated[list[Bits], Field(min_length=1, max_length=7, description=_ACCEPTED)]
    granularity: Literal["per_tensor", "per_channel"]
    symmetry: Literal["symmetric", "asymmetric"]
    narrow_range: bool = Field(default=False, description="Leave out the lowest weight code (LiteRT)")


class ActivationProfile(Strict):
    bits: Annotated[list[Bits], Field(min_length=1, max_length=7, description=_ACCEPTED)]
    symmetry: Literal["symmetric", "asymmetric"]
    signed: bool = Field(default=False, description="The runtime has no unsigned activations (TensorRT)")


class Profile(Strict):
    weight: WeightProfile
    activation: ActivationProfile


_Bound = Annotated[float, Field(gt=0, lt=LARGEST_BOUND)]


class BudgetSchema(Strict):
    """Upper bounds; null or left out is no bound. On `signed` devices, activations count as in `Cost`."""

    weight_bits: _Bound | None = Field(default=None, description="Average over the searchable layers")
    activation_bits: _Bound | None = Field(default=None, description="Average over the searchable layers")
    model_bytes: int | None = Field(
        default=None,
        gt=0,
        le=2**53,
        description="Packed at the true bit-widths; a device that holds them in wider types needs more "
        "(containers, in GET /devices)",
    )
    bit_operations: _Bound | None = Field(
        default=None, description="MACs x weight bits x activation bits, one image"
    )


class Pin(Strict):
    weight_bits: Bits | None = None
    activation_bits: Bits | None = None


class Search(Strict):
    population: int = Field(default=100, ge=2, le=MAX_POPULATION)
    generations: int = Field(
        default=500,
        ge=1,
        le=MAX_GENERATIONS,
        description=f"With `population`, at most {MAX_PREDICTIONS:,} predictions: their product",
    )
    seed: int = Field(default=0, ge=0, le=MAX_SEED)


class LayerBits(Strict):
    name: Annotated[str, Field(max_length=200)]
    weight_bits: Bits
    activation_bits: Bits


class Configuration(Strict):
    granularity: Literal["per_tensor", "per_channel"]
    weight_symmetry: Literal["symmetric", "asymmetric"]
    activation_symmetry: Literal["symmetric", "asymmetric"]
    narrow_range: bool = False
    signed: bool = False
    layers: Annotated[list[LayerBits], Field(min_length=1, max_length=1000)]


_SEARCH_MEMBERS = ("device", "profile", "budget", "pinned", "search")


class SubnetRequest(Strict):
    """Exactly one of `device`, `profile` and `configuration`; everything else has a default."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"profile": EXAMPLE_PROFILE, "budget": {"weight_bits": 3.0, "activation_bits": 3.0}},
                {"device": "qualcomm-htp-v73", "budget": {"weight_bits": 4.0}},
            ]
        }
    )

    supernet: Annotated[str, Field(max_length=200)] | None = Field(
        default=None, description="May be left out where only one is loaded"
    )
    device: Annotated[str, Field(max_length=200)] | None = Field(default=None, description="See GET /devices")
    profile: Profile | None = None
    budget: BudgetSchema | None = Field(
        default=None, description="Empty: the highest bits that the device accepts"
    )
    pinned: Annotated[dict[str, Pin], Field(max_length=1000)] | None = None
    search: Search | None = None
    configuration: Configuration | None = Field(
        default=None, description="Build this very subnet; then no device, profile, budget, pinned or search"
    )
    artifacts: Annotated[list[ArtifactName], Field(min_length=1, max_length=20)] | None = Field(
        default=None,
        description="All, unless told; `model.qonnx.onnx` only for devices that take it, or if it is named",
    )
    verify: bool = Field(
        default=False,
        description="Also measure top-1 on the operator's evaluation images, of model.integer.onnx too if it "
        "is asked for",
    )

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.configuration is not None:
            surplus = [name for name in _SEARCH_MEMBERS if getattr(self, name) is not None]
            if surplus:
                raise ValueError(f"with `configuration`, leave out {', '.join(surplus)}: nothing is searched")
        elif (self.device is None) == (self.profile is None):
            raise ValueError("give exactly one of `device` and `profile` (or a `configuration`)")
        return self


class SupernetReference(BaseModel):
    name: str
    digest: str


class Cost(BaseModel):
    """On `signed` devices, 8 activation bits of a `nonnegative` layer (`GET /supernets`) count as 7, since
    its codes use no more.
    """

    weight_bits: float = Field(description="Average over the searchable layers, weighted by parameters")
    activation_bits: float = Field(description="Average, weighted by input feature-map elements")
    model_bytes: int = Field(description="Packed at the true bit-widths")
    bit_operations: float = Field(description="MACs x weight bits x activation bits, one image")
    compression: float = Field(description="float32 bytes over model_bytes")


class Artifact(BaseModel):
    name: str
    url: str
    bytes: int
    sha256: str


class LayerContainers(BaseModel):
    """What the device holds one layer in: `native`, or `held in int8` and the like."""

    name: str
    weight: str
    activation: str


class Progress(BaseModel):
    stage: str
    fraction: float = Field(ge=0, le=1)
    detail: str | None = Field(default=None, description="Why nothing happens, where nothing does")


class SubnetRecord(BaseModel):
    """A subnet: what was asked for, and once it is ready, what came of it."""

    id: str
    status: Status
    created_at: str = Field(description="RFC 3339, UTC")
    supernet: SupernetReference
    device: str | None = Field(default=None, description="Where the request named one")
    profile: Profile | None = None
    budget: BudgetSchema | None = None
    pinned: dict[str, Pin] | None = None
    search: Search | None = None
    configuration: Configuration | None = None
    predicted_accuracy: float | None = Field(default=None, ge=0, le=1)
    prediction_interval: list[float] | None = Field(default=None, description=INTERVAL)
    measured_accuracy: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="With `verify`: top-1 of `model.safetensors`, which `model.onnx` is proven against",
    )
    measured_integer_accuracy: float | None = Field(
        default=None, ge=0, le=1, description="With `verify`: top-1 of `model.integer.onnx`, if asked for"
    )
    containers: list[LayerContainers] | None = Field(
        default=None, description="Every layer, first and last among them, where a device is named"
    )
    cost: Cost | None = None
    artifacts: list[Artifact] = []
    timings: dict[str, float] = Field(default={}, description="Seconds per stage")
    progress: Progress | None = Field(default=None, description="While it is being built")
    problem: dict[str, Any] | None = Field(
        default=None, description="Why a build failed; asking again retries"
    )


class SubnetPage(BaseModel):
    """One page of records, newest first."""

    subnets: list[SubnetRecord]
    next_cursor: str | None = Field(description="Pass as `cursor` for the next page; null on the last")
