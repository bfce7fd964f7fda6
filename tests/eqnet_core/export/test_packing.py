from __future__ import annotations

import numpy as np
import pytest

from eqnet_core.errors import ArtifactError
from eqnet_core.export.packing import pack_codes, packed_bytes, unpack_codes


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("shape", [(1,), (3, 5), (16, 3, 3, 3), (7, 1)])
def test_every_code_survives(bits: int, shape: tuple[int, ...]) -> None:
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    codes = np.random.default_rng(bits).integers(low, high + 1, shape).astype(np.int8)
    codes.reshape(-1)[0] = low
    packed = pack_codes(codes, bits)
    assert packed.size == packed_bytes(codes.size, bits) == -(-codes.size * bits // 8)
    assert np.array_equal(unpack_codes(packed, bits, shape), codes)


def test_layout_is_as_documented() -> None:
    assert pack_codes(np.array([-2, -1, 0, 1], np.int8), 2).tolist() == [0b11_10_01_00]
    assert pack_codes(np.array([-8, 7], np.int8), 4).tolist() == [0xF0]
    assert pack_codes(np.array([-4, 3, -4, -4, -4, -4, -4, -4], np.int8), 3).tolist() == [0b00_111_000, 0, 0]


def test_wrong_length_is_refused() -> None:
    packed = pack_codes(np.zeros(8, np.int8), 3)
    with pytest.raises(ArtifactError, match="damaged"):
        unpack_codes(packed[:-1], 3, (8,))
