"""What is in a packed image, written out: bounded, sparse, hashed on the way.

Blocking; runs in a thread, and asks its caller at every mebibyte that comes out, and at every
read of what goes in, whether to go on.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from ddfs import errors
from ddfs.image import decoders
from ddfs.model import MAX_SIZE, KiB, MiB, Packing

# Where nobody stated a size, a file may become so many times as large. Deflate cannot do
# more than 1032; bzip2 can make a gigabyte of zeros from a hundred bytes.
MAX_RATIO: Final = 1100

# Blocks of zeros of this length become holes, as `cp --sparse` makes them.
_HOLE_BYTES: Final = 64 * KiB
_ZEROS: Final = bytes(_HOLE_BYTES)

# Room is asked for in such steps where the size was not known before.
_STEP_BYTES: Final = 64 * MiB


@dataclass(frozen=True, slots=True)
class Unpacked:
    """What came out: its size in bytes and its SHA-256 in hexadecimal."""

    size: int
    sha256: str


def unpack(
    packed_fd: int,
    target_fd: int,
    packing: Packing,
    *,
    need_room: Callable[[int], None],
    check: Callable[[], None],
) -> Unpacked:
    """Write what comes out of the packed file, which is verified, into an empty file.

    *need_room* is told how many bytes *target_fd* is going to have, and raises if there is
    no room for them; *check* raises to end it. Raises :class:`errors.ImageError` for packed
    data that is broken, or gives more or fewer bytes than *packing* says,
    :class:`errors.ChecksumError` when what came out is not what the operator declared, and
    ``OSError`` from the files. What was written by then stays, and is worth nothing.
    """
    size = os.fstat(packed_fd).st_size

    def read_at(offset: int, length: int) -> bytes:
        # Here too: a file may be made of streams with nothing in them.
        check()
        return os.pread(packed_fd, length, offset)

    if packing.size is not None:
        need_room(packing.size)
    output = _Output(target_fd, packing, size, need_room)
    try:
        for part in decoders.unpacked(packing.kind, packing.member, size, read_at):
            check()
            output.write(part)
    except errors.ImageError as error:
        raise errors.ImageError(f"the image is refused: {error}") from error
    return output.finish()


class _Output:
    """The file that grows, and what is known of it."""

    def __init__(
        self, fd: int, packing: Packing, packed_size: int, need_room: Callable[[int], None]
    ) -> None:
        self._fd = fd
        self._packing = packing
        self._need_room = need_room
        self._room = packing.size or 0
        self._limit = min(MAX_SIZE, packed_size * MAX_RATIO)
        if packing.size is not None:
            self._limit = packing.size
        self._size = 0
        self._sha256 = hashlib.sha256()
        checksum = packing.checksum
        self._declared = checksum.algorithm.hasher() if checksum else None

    def write(self, data: bytes) -> None:
        """Add *data*, as a hole where it is zeros."""
        if self._size + len(data) > self._limit:
            raise self._too_much()
        if self._size + len(data) > self._room:
            self._room = min(self._limit, self._size + max(_STEP_BYTES, len(data)))
            self._need_room(self._room)
        self._sha256.update(data)
        if self._declared is not None:
            self._declared.update(data)
        for start in range(0, len(data), _HOLE_BYTES):
            block = data[start : start + _HOLE_BYTES]
            if block != _ZEROS[: len(block)]:
                _write(self._fd, block, self._size + start)
        self._size += len(data)

    def finish(self) -> Unpacked:
        """The file at its full size, checked."""
        packing = self._packing
        if packing.size is not None and packing.size != self._size:
            raise errors.ImageError(
                f"the image is refused: it unpacks to {self._size} bytes, not to the "
                f"{packing.size} that were stated; if {self._size} is right, say so with --size"
            )
        os.ftruncate(self._fd, self._size)
        if packing.checksum is not None and self._declared is not None:
            found = self._declared.hexdigest()
            if found != packing.checksum.hexdigest:
                raise errors.ChecksumError(
                    f"what was unpacked has {packing.checksum.algorithm.value}:{found}, not "
                    f"the declared {packing.checksum}"
                )
        sha256 = self._sha256.hexdigest()
        if packing.sha256 is not None and packing.sha256 != sha256:
            raise errors.ChecksumError(
                f"what was unpacked has sha-256:{sha256}, where it had sha-256:{packing.sha256} "
                "before"
            )
        return Unpacked(self._size, sha256)

    def _too_much(self) -> errors.ImageError:
        if self._packing.size is not None:
            return errors.ImageError(
                f"it unpacks to more than the {self._packing.size} bytes that were stated; if "
                "that is right, say how many with --size"
            )
        return errors.ImageError(
            f"it unpacks to more than {MAX_RATIO} times its size; if that is right, say to how "
            "many bytes with --size"
        )


def _write(fd: int, data: bytes, position: int) -> None:
    view = memoryview(data)
    while view:
        count = os.pwrite(fd, view, position)
        view, position = view[count:], position + count
