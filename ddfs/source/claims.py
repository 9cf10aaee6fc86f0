"""What the name of an image claims that it is, and what has to be seen to believe it."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Final

from ddfs import errors
from ddfs.model import ByteRange, ImageFormat, Manifest, PackingKind
from ddfs.source.head import Head, read_part
from ddfs.source.ports import Documents

# Not .img: publishers call raw disks and qcow2 images so.
_SUFFIXES: Final = {
    ".qcow2": ImageFormat.QCOW2,
    ".raw": ImageFormat.RAW,
    ".iso": ImageFormat.ISO,
    ".vmdk": ImageFormat.VMDK,
    ".vhd": ImageFormat.VHD,
    ".vhdx": ImageFormat.VHDX,
}

# A fixed VHD is a raw disk with a footer, which ends the file.
_TAIL_LENGTH: Final = 512
_VHD_COOKIE: Final = b"conectix"


def claimed_by_name(manifest: Manifest) -> ImageFormat | None:
    """The format that the file's name says, under what it is packed in; None for no claim."""
    name = manifest.name
    if manifest.packing is not None and manifest.packing.member is not None:
        name = manifest.packing.member
    elif PackingKind.of_name(name) is not None:
        name = name.rpartition(".")[0]
    return _SUFFIXES.get(PurePosixPath(name).suffix.lower())


def refused_by_name(
    manifest: Manifest, claimed: ImageFormat, reason: Exception
) -> errors.ImageError:
    """What to say where the bytes are not what the name claims."""
    kind = "raw" if claimed is ImageFormat.RAW else claimed.value
    return errors.ImageError(
        f"{reason}; the name {manifest.name} says {kind}: if the image is right, give what it is "
        "with --format"
    )


async def read_tail(
    manifest: Manifest, head: Head, claimed: ImageFormat | None, documents: Documents
) -> bytes:
    """The last bytes of the image, where only they tell what it is; else nothing.

    They are unverified, as a head without piece hashes is: the whole is inspected again
    before it is published. Raises :class:`errors.MirrorsExhaustedError`.
    """
    size = manifest.size
    is_plain = manifest.packing is None and size is not None
    if claimed is not ImageFormat.VHD or not is_plain or head.data.startswith(_VHD_COOKIE):
        return b""
    assert size is not None
    if size <= max(len(head.data), _TAIL_LENGTH):
        return b""
    return await read_part(manifest, ByteRange(size - _TAIL_LENGTH, size), documents)
