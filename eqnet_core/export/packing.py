"""Integer codes at their true bit-width: `bits` bits per code, one after the other. NumPy only.

Code k occupies bits k * bits .. (k + 1) * bits - 1 of the stream, bit n of the stream is bit n % 8 (least
significant first) of byte n // 8, and a code is stored unsigned, as code + 2^(bits - 1). So 2-bit codes are
four to a byte, 4-bit codes two to a byte (low nibble first), and 3-bit codes eight to three bytes. The last
byte is filled with zeros.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from eqnet_core.errors import ArtifactError


def packed_bytes(count: int, bits: int) -> int:
    """Bytes that `count` codes of `bits` bits take."""
    return -(-count * bits // 8)


def pack_codes(codes: NDArray[np.int8], bits: int) -> NDArray[np.uint8]:
    """Codes in [-2^(bits-1), 2^(bits-1) - 1], any shape, 1..8 bits: uint8 [packed_bytes(size, bits)]."""
    unsigned = (codes.reshape(-1, 1).astype(np.int16) + (1 << (bits - 1))).astype(np.uint8)
    stream = np.unpackbits(unsigned, axis=1, count=bits, bitorder="little")
    return np.packbits(stream.reshape(-1), bitorder="little")


def unpack_codes(packed: NDArray[np.uint8], bits: int, shape: tuple[int, ...]) -> NDArray[np.int8]:
    """Inverse of `pack_codes`.

    Raises:
        ArtifactError: `packed` has not exactly the length that `shape` needs.
    """
    count = int(np.prod(shape, dtype=np.int64))
    if packed.dtype != np.uint8 or packed.shape != (packed_bytes(count, bits),):
        raise ArtifactError(
            f"{packed.size} bytes of packed weights where {packed_bytes(count, bits)} are due: "
            "the file is damaged"
        )
    stream = np.unpackbits(packed, count=count * bits, bitorder="little")
    unsigned = np.packbits(stream.reshape(count, bits), axis=1, bitorder="little")
    signed = unsigned.astype(np.int16).reshape(shape) - (1 << (bits - 1))
    return signed.astype(np.int8)
