"""EQ-Net: one elastic quantisation supernet, a subnet for every device.

Importing this package imports neither torch nor ONNX; what needs them is loaded when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eqnet_core.export.state_dict import load_subnet
    from eqnet_core.factory import Factory

__all__ = ["Factory", "load_subnet"]


def __getattr__(name: str) -> Any:
    if name == "load_subnet":
        from eqnet_core.export.state_dict import load_subnet

        return load_subnet
    if name == "Factory":
        from eqnet_core.factory import Factory

        return Factory
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
