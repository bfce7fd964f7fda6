"""Search spaces of equal convolutions, for the tests of both fits."""

from __future__ import annotations

from eqnet_core.space import LayerSpec, SearchSpace

CHANNELS = 4


def make_space(*names: str) -> SearchSpace:
    """Layers of `CHANNELS` channels; the first and the last are fixed."""
    return SearchSpace(
        tuple(
            LayerSpec(
                name=name,
                kind="linear" if name == "fc" else "conv",
                searchable=0 < position < len(names) - 1,
                output_channels=CHANNELS,
                weights=9 * CHANNELS**2,
                inputs=64 * CHANNELS,
                macs=9 * 64 * CHANNELS**2,
                nonnegative=True,
                float_parameters=2 * CHANNELS,
            )
            for position, name in enumerate(names)
        )
    )
