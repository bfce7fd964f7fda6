"""Float networks that can become a supernet."""

from eqnet_core.models.registry import ARCHITECTURES, Architecture, build_model

__all__ = ["ARCHITECTURES", "Architecture", "build_model"]
