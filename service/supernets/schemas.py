"""What `/supernets` answers."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field


class LayerSchema(BaseModel):
    name: str
    kind: str = Field(description="conv, depthwise_conv or linear")
    searchable: bool
    bits: list[int] = Field(description="Bit-widths it can have")
    output_channels: int
    weights: int = Field(description="Weight elements")
    inputs: int = Field(description="Elements of one image's input feature map")
    macs: int
    nonnegative: bool = Field(
        description="Its input is never negative: where a subnet is `signed`, 8 activation bits cost as 7"
    )


class InputSchema(BaseModel):
    shape: list[int] = Field(description="Channels, height, width")
    mean: list[float] = Field(description="Of images in [0, 1], per channel")
    std: list[float]


class FormSchema(BaseModel):
    weight_granularity: str
    weight_symmetry: str
    activation_symmetry: str


class SupernetSchema(BaseModel):
    """A loaded supernet."""

    name: str
    digest: str
    architecture: str
    layers: list[LayerSchema] = Field(description="In the order they are executed")
    input: InputSchema
    classes: list[str]
    forms: list[FormSchema]
    float_accuracy: float
    predictor: dict[str, Any] = Field(description="Quality on configurations it never saw")
    accuracy: dict[str, Any] = Field(description="Measured accuracies, as the bundle states them")
    card: dict[str, Any] = Field(description="Data, commands and epochs it was trained with")


class SupernetList(BaseModel):
    supernets: list[SupernetSchema]
