"""How rows become inode numbers and file handles, and back. Pure arithmetic.

Nothing in the kernel's hands points into this process: every number can be read again by a
daemon that was started later. A published template is another inode than the regular file
that it was, because the kernel calls an inode whose type changes stale. Rows are never used
again, so neither are inode numbers, and the generation can stay 0.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import pyfuse3

ROOT: Final = int(pyfuse3.ROOT_INODE)
TEMPLATES: Final = 2

# Numbers below are kept for directories.
_FIRST: Final = 16

_PROBE: Final = 0b001
_IMPATIENT: Final = 0b010
_KEPT: Final = 0b100
_BITS: Final = 3


def file_inode(row: int) -> int:
    """The inode of the regular file that a template is before it is published."""
    return 2 * row + _FIRST


def link_inode(row: int) -> int:
    """The inode of the symlink that it is afterwards."""
    return 2 * row + _FIRST + 1


def row_of(inode: int) -> int | None:
    """The row behind a file's or a symlink's inode, None for directories."""
    return (inode - _FIRST) // 2 if inode >= _FIRST else None


def is_link(inode: int) -> bool:
    """Whether *inode* is a template's symlink."""
    return inode > _FIRST and bool((inode - _FIRST) & 1)


class Handle(NamedTuple):
    """What the handle of a file or directory says: the inode, and who opened it.

    ``is_probe``: opened with O_NONBLOCK. ``is_impatient``: opened by libvirt, which holds
    locks while it reads. ``is_kept``: reads go through the page cache, which has the head.
    """

    inode: int
    is_probe: bool = False
    is_impatient: bool = False
    is_kept: bool = False

    def pack(self) -> int:
        """As the 64-bit number that the kernel keeps."""
        bits = _PROBE * self.is_probe | _IMPATIENT * self.is_impatient | _KEPT * self.is_kept
        return self.inode << _BITS | bits

    @classmethod
    def unpack(cls, number: int) -> Handle:
        """The handle behind the kernel's number."""
        return cls(
            number >> _BITS,
            bool(number & _PROBE),
            bool(number & _IMPATIENT),
            bool(number & _KEPT),
        )
