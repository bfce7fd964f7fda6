"""What `/devices` answers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from service.subnets.schemas import Profile

Container = Annotated[str, Field(pattern=r"^(native|held in int[2-8])$")]


class Containers(BaseModel):
    """What each accepted bit-width is held in: `native`, or `held in int8` and the like."""

    weight: dict[str, Container]
    activation: dict[str, Container]


class AcceptedWeight(BaseModel):
    granularity: list[str]
    symmetry: list[str]
    file_types: list[str] = Field(
        description="Integer types that the codes may have in the file, ONNX's or those of Quant nodes"
    )


class AcceptedActivation(BaseModel):
    symmetry: list[str]
    file_types: list[str] = Field(
        description="Integer types that the codes may have in the file, ONNX's or those of Quant nodes"
    )


class Accepted(BaseModel):
    """Everything the device accepts; its profile has the first of each."""

    weight: AcceptedWeight
    activation: AcceptedActivation


class DeviceSchema(BaseModel):
    """One entry of the catalogue. An unsupported one says why, and has no profile."""

    name: str
    title: str
    supported: bool = Field(description="Whether `POST /subnets` takes it")
    unsupported_because: str | None
    profile: Profile | None
    containers: Containers | None
    accepts: Accepted | None
    exchange: str = Field(description="Format that its toolchain takes")
    flavour: Literal["exact", "integer", "qonnx"] | None = Field(description="Flavour of ONNX that fits it")
    file: str | None = Field(description="Artifact that it, or its converter, is given")
    source: list[str] = Field(description="Where the facts come from")
    date: str = Field(description="Year and month in which they were looked up")
    confidence: Literal["documented", "partly documented"]
    verified_on_device: bool = Field(description="Whether an artifact of ours has run on the hardware")
    unverified: list[str] = Field(description='What the source does not settle, each starting with "?"')
    notes: list[str]


class DeviceList(BaseModel):
    """Every entry, in alphabetical order."""

    devices: list[DeviceSchema]
