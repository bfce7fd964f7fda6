"""What `/devices` answers."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from service.subnets.schemas import Profile

Container = Literal["native", "held in int8"]


class Containers(BaseModel):
    """What each accepted bit-width is held in."""

    weight: dict[str, Container]
    activation: dict[str, Container]


class AcceptedWeight(BaseModel):
    granularity: list[str]
    symmetry: list[str]


class AcceptedActivation(BaseModel):
    symmetry: list[str]


class Accepted(BaseModel):
    """Everything the device accepts; its profile has the first of each."""

    weight: AcceptedWeight
    activation: AcceptedActivation


class DeviceSchema(BaseModel):
    """One entry of the catalogue."""

    name: str
    title: str
    profile: Profile
    containers: Containers
    accepts: Accepted
    exchange: str = Field(description="Format that its toolchain takes")
    flavour: str = Field(description="Flavour of ONNX that fits it")
    source: list[str] = Field(description="Where the facts come from")
    date: str = Field(description="Year and month in which they were looked up")
    confidence: str
    verified_on_device: bool = Field(description="Whether an artifact of ours has run on the hardware")
    unverified: list[str] = Field(description="What the source does not settle")
    notes: list[str]


class DeviceList(BaseModel):
    devices: list[DeviceSchema]
