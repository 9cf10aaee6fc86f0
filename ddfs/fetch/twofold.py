"""SHA-256 of a file and of its pieces in one pass: 0.9 s of a core for each GiB, not 1.4.

A piece that comes in order is hashed twice, for itself and for the whole file, and hashlib
cannot do both at once. ``twofold.c`` can, where the CPU has instructions for SHA-256. It is
compiled when ddfs is installed; where that was not possible, or where it does not give what
hashlib gives, everything is hashed by hashlib as before, and only takes longer.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import struct
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

if TYPE_CHECKING:
    import ctypes

_log = logging.getLogger(__name__)

LIBRARY: Final = Path(__file__).with_name("twofold.so.1")

BLOCK_BYTES: Final = 64

# FIPS 180-4, section 5.3.3.
_BEGINNING: Final = (
    0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19,
)  # fmt: skip


@functools.cache
def is_available() -> bool:
    """Whether both can be made at once here; the first call takes a millisecond or two."""
    return is_usable(LIBRARY)


def is_usable(path: Path) -> bool:
    """Whether the library at *path* is there, runs on this CPU, and hashes as hashlib does."""
    try:
        absorb = _load(path)
    except (OSError, AttributeError, ImportError) as error:
        _log.debug("pieces are hashed apart from their file: %s", error)
        return False
    if absorb is None:
        return False
    # More blocks than one, an odd end, and a beginning that differs between the two.
    data = bytearray(range(256)) * 9 + b"end"
    whole, piece = Sha256(absorb), Sha256(absorb)
    whole.update(memoryview(data)[: 3 * BLOCK_BYTES])
    update_both(whole, piece, memoryview(data))
    right = hashlib.sha256(data[: 3 * BLOCK_BYTES] + data).digest()
    if whole.digest() != right or piece.digest() != hashlib.sha256(data).digest():
        _log.warning("%s does not hash as it should; it is not used", path)
        return False
    return True


def _load(path: Path) -> Callable[..., None] | None:
    import ctypes  # slow to import, and of use for large files alone

    library = ctypes.CDLL(str(path))
    if not library.ddfs_sha256_supported():
        return None
    absorb: Any = library.ddfs_sha256_absorb
    absorb.restype = None
    words = ctypes.POINTER(ctypes.c_uint32)
    absorb.argtypes = (words, words, ctypes.c_void_p, ctypes.c_size_t)
    return absorb  # type: ignore[no-any-return]


@functools.cache
def _absorb() -> Callable[..., None]:
    absorb = _load(LIBRARY)
    if absorb is None:
        raise RuntimeError("twofold is used although it is not available")
    return absorb


class Sha256:
    """As hashlib's, and :func:`update_both` goes on with two of them.

    Only where :func:`is_available`. Not for several threads at once; the GIL is let go.
    """

    __slots__ = ("_absorb", "_length", "_rest", "_words")

    def __init__(self, absorb: Callable[..., None] | None = None) -> None:
        import ctypes

        self._absorb = absorb or _absorb()
        self._words: ctypes.Array[ctypes.c_uint32] = (ctypes.c_uint32 * 8)(*_BEGINNING)
        self._length = 0
        # Less than a block, that waits for more.
        self._rest = b""

    def update(self, data: memoryview) -> None:
        """Go on with *data*, bytes of a writable buffer."""
        if self._rest:
            count = BLOCK_BYTES - len(self._rest)
            head, data = bytes(data[:count]), data[count:]
            self._rest += head
            self._length += len(head)
            if len(self._rest) < BLOCK_BYTES:
                return
            rest, self._rest = self._rest, b""
            self._absorb(self._words, None, rest, 1)
        self._take(None, data)

    def _take(self, twin: Sha256 | None, data: memoryview) -> None:
        """From a block's beginning on; the rest is left to wait, in both."""
        blocks, rest = divmod(len(data), BLOCK_BYTES)
        if blocks:
            words = None if twin is None else twin._words
            self._absorb(self._words, words, _address(data), blocks)
        for each in (self, twin):
            if each is not None:
                each._length += len(data)
                each._rest = bytes(data[len(data) - rest :])

    @property
    def is_at_block(self) -> bool:
        """Whether what it has is whole blocks."""
        return not self._rest

    def copy(self) -> Self:
        """Another one that has the same bytes."""
        other = type(self)(self._absorb)
        other._words[:] = list(self._words)
        other._length, other._rest = self._length, self._rest
        return other

    def digest(self) -> bytes:
        """Of the bytes so far."""
        ended = self.copy()
        zeros = -(len(self._rest) + 9) % BLOCK_BYTES
        end = self._rest + b"\x80" + bytes(zeros) + struct.pack(">Q", 8 * self._length)
        ended._absorb(ended._words, None, end, len(end) // BLOCK_BYTES)
        return struct.pack(">8I", *ended._words)

    def hexdigest(self) -> str:
        """The digest in lower case."""
        return self.digest().hex()


def update_both(one: Sha256, other: Sha256, data: memoryview) -> None:
    """Both go on with *data*, bytes of a writable buffer."""
    if one.is_at_block and other.is_at_block:
        one._take(other, data)
    else:
        one.update(data)
        other.update(data)


def _address(data: memoryview) -> ctypes.Array[ctypes.c_char]:
    import ctypes

    return (ctypes.c_char * len(data)).from_buffer(data)
