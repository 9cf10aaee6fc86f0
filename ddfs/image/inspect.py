"""What an image is, and whether it is safe to give to a hypervisor.

The inspection is that of oslo.utils, which OpenStack hardened after images had read files
of their hosts (CVE-2024-32498, CVE-2022-47951); this is its only home. What it does not
look at is in :mod:`ddfs.image.layout`. Its import takes some 0.1 s and waits until the
first image.

Everything here is blocking: the daemon calls it in a thread.
"""

from __future__ import annotations

import io
import logging
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from ddfs import errors
from ddfs.image import layout
from ddfs.model import HEAD_LENGTH, MAX_SIZE, ImageFormat, MiB

if TYPE_CHECKING:
    from collections.abc import Iterable

# What is read of a VMDK's start: its descriptor ends before (1 MiB - 1 behind 512 bytes),
# and of its end: the footer and the end marker have 1,536 bytes.
_VMDK_START: Final = 2 * MiB
_VMDK_END: Final = 4096

# The inspector parses a text descriptor out of its first chunk, and it has to be ASCII.
_CHUNK: Final = 512

_FOOTER: Final = 512

# ECMA-167 part 2: UDF without ISO 9660 starts its volume recognition so, at sector 16.
_UDF_AT: Final = 32769
_UDF: Final = (b"BEA01", b"NSR02", b"NSR03")

_NAMES: Final = {
    "qcow2": ImageFormat.QCOW2,
    "vmdk": ImageFormat.VMDK,
    "vhd": ImageFormat.VHD,
    "vhdx": ImageFormat.VHDX,
    "iso": ImageFormat.ISO,
    "gpt": ImageFormat.RAW,  # a partition table, also an MBR's: a raw disk
    "luks": ImageFormat.RAW,  # encrypted by its guest; QEMU is told that it is raw
    "raw": ImageFormat.RAW,
}

# What people register by mistake, and no disk starts with.
_NO_IMAGES: Final = {
    b"\x1f\x8b": "compressed with gzip",
    b"\xfd7zXZ\0": "compressed with xz",
    b"BZh": "compressed with bzip2",
    b"\x28\xb5\x2f\xfd": "compressed with zstd",
    b"PK\x03\x04": "a zip archive",
    b"<!doctype html": "a web page",
    b"<html": "a web page",
}


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What an image is.

    ``virtual_size`` in bytes, None where the bytes seen do not tell. ``notes``: what could
    not be checked, or is worth knowing; one phrase each.
    """

    format: ImageFormat
    virtual_size: int | None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.virtual_size is not None and not 0 <= self.virtual_size <= MAX_SIZE:
            raise ValueError(f"not a virtual size: {self.virtual_size}")


@dataclass(frozen=True, slots=True)
class _Source:
    """An image as far as it is at hand: its whole, or its head alone."""

    head: bytes
    size: int
    read_at: Callable[[int, int], bytes]
    is_whole: bool
    tail: bytes = b""


def inspect_head(
    data: bytes, *, size: int, claimed: ImageFormat | None, tail: bytes = b""
) -> ImageFacts:
    """What the image of *size* bytes is that starts with *data*.

    *claimed* is the format that somebody says it has; None takes what is found. What the
    head, and the *tail* of 512 bytes where it is given, cannot tell stays open (a note says
    so) for :func:`inspect_file` to settle. Raises :class:`errors.ImageError` for an image
    that is refused.
    """
    if not len(data) <= size:
        raise ValueError(f"a head of {len(data)} bytes for {size}")

    def read_at(offset: int, length: int) -> bytes:
        return data[offset : offset + length]

    source = _Source(data[:HEAD_LENGTH], size, read_at, is_whole=len(data) == size, tail=tail)
    return _inspect(source, claimed)


def inspect_file(path: str | os.PathLike[str] | int, *, claimed: ImageFormat | None) -> ImageFacts:
    """What the complete image at *path*, or behind that descriptor, is.

    Reads some 100 KiB, of a VMDK 2 MiB. A descriptor's position does not matter and is not
    moved. Raises :class:`errors.ImageError` for an image that is refused, and
    :class:`errors.StorageError` where the file cannot be read.
    """
    shown = f"descriptor {path}" if isinstance(path, int) else os.fspath(path)
    try:
        if isinstance(path, int):
            return _inspect_descriptor(path, claimed)
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            return _inspect_descriptor(descriptor, claimed)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise errors.StorageError(f"{shown}: cannot be read: {error.strerror or error}") from error


def _inspect_descriptor(descriptor: int, claimed: ImageFormat | None) -> ImageFacts:
    status = os.fstat(descriptor)
    if stat.S_ISREG(status.st_mode):
        size = status.st_size
    elif stat.S_ISBLK(status.st_mode):
        # A second descriptor, because lseek moves the position that all copies share.
        again = os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            size = os.lseek(again, 0, os.SEEK_END)
        finally:
            os.close(again)
    else:
        raise errors.ImageError("the image is refused: it is no file")

    def read_at(offset: int, length: int) -> bytes:
        return os.pread(descriptor, length, offset) if offset <= MAX_SIZE - length else b""

    return _inspect(_Source(read_at(0, HEAD_LENGTH), size, read_at, is_whole=True), claimed)


def _inspect(source: _Source, claimed: ImageFormat | None) -> ImageFacts:
    try:
        return _inspect_source(source, claimed)
    except errors.ImageError as error:
        raise errors.ImageError(f"the image is refused: {error}") from error


def _inspect_source(source: _Source, claimed: ImageFormat | None) -> ImageFacts:
    if source.size == 0:
        raise errors.ImageError("it is empty")
    found = _detect(source)
    image_format, notes = _agree(source, found, claimed)
    if not source.is_whole and len(source.head) < HEAD_LENGTH:
        notes.append(f"only its first {len(source.head)} bytes were seen")
    virtual_size = _look_inside(source, image_format, notes)
    return ImageFacts(image_format, virtual_size, tuple(notes))


def _detect(source: _Source) -> ImageFormat:
    """The format by content. Two at once are refused, but for a hybrid ISO."""
    inspector = _oslo()
    # Some inspectors see nothing in less than a sector, where QEMU sees a magic number.
    padded = source.head.ljust(_CHUNK, b"\0")
    wrapper = inspector.InspectWrapper(io.BytesIO(padded))
    try:
        while wrapper.read(_CHUNK):
            pass
        wrapper.close()
        names = {str(match) for match in wrapper.formats or ()}
    except Exception as error:
        raise errors.ImageError(f"what it is cannot be made out ({_brief(error)})") from error
    if source.head.startswith(b"# Disk DescriptorFile"):
        names.add("vmdk")
    if source.head[_UDF_AT : _UDF_AT + 5] in _UDF:
        names.add("iso")
    if len(names) > 1:
        names -= {"raw"}
    if names == {"iso", "gpt"}:
        # Boots from a stick as well: an MBR in front of the file system, which owns it.
        return ImageFormat.ISO
    if len(names) != 1:
        raise errors.ImageError(f"it looks like {' and '.join(sorted(names))} at the same time")
    (name,) = names
    if name not in _NAMES:
        raise errors.ImageError(f"{name} images are not served")
    return _NAMES[name]


def _agree(
    source: _Source, found: ImageFormat, claimed: ImageFormat | None
) -> tuple[ImageFormat, list[str]]:
    """The format to take it for, given what is *found* and what is *claimed*."""
    if found is ImageFormat.RAW:
        return _agree_on_raw(source, claimed)
    if claimed is ImageFormat.RAW and found is ImageFormat.ISO:
        return claimed, ["it holds an ISO 9660 or UDF file system"]
    if claimed is not None and claimed is not found:
        # Above all "raw" with a header of another format in it: whoever probes it later
        # follows that header to files of the host.
        raise errors.ImageError(f"it is {_shown(found)}, not {_shown(claimed)}")
    return found, []


def _agree_on_raw(source: _Source, claimed: ImageFormat | None) -> tuple[ImageFormat, list[str]]:
    """What has no header: a raw disk, or a fixed VHD, which has a footer alone."""
    if claimed is ImageFormat.VHD and not source.is_whole and not source.tail:
        return claimed, []  # proved by inspect_file
    if claimed in (None, ImageFormat.VHD) and layout.is_fixed_vhd(_footer(source)):
        return ImageFormat.VHD, []
    if claimed not in (None, ImageFormat.RAW):
        raise errors.ImageError(f"it has no header of {_shown(claimed)}")
    start = source.head[:16].lower()
    mistake = next(
        (what for magic, what in _NO_IMAGES.items() if start.startswith(magic.lower())), None
    )
    if mistake is None:
        return ImageFormat.RAW, []
    if claimed is None:
        raise errors.ImageError(f"it is {mistake}, and no disk image")
    return claimed, [f"it looks {mistake}"]


def _look_inside(source: _Source, image_format: ImageFormat, notes: list[str]) -> int | None:
    """The virtual size, after all that the format could hide was looked for."""
    if image_format in (ImageFormat.RAW, ImageFormat.ISO):
        return source.size
    if image_format is ImageFormat.VHD:
        head = source.head[:_FOOTER]
        footer = head if head.startswith(b"conectix") else _footer(source)
        virtual_size = layout.vhd(footer, source.size)
    elif image_format is ImageFormat.VHDX:
        virtual_size = layout.vhdx(source.read_at)
    else:
        look = layout.qcow2 if image_format is ImageFormat.QCOW2 else layout.vmdk
        virtual_size = look(source.read_at, source.size)
        _check_safety(source, image_format, notes)
    if virtual_size is None:
        if source.is_whole:
            raise errors.ImageError("it is cut off before its header ends")
        notes.append("its head does not tell its virtual size and parent")
    return virtual_size


def _check_safety(source: _Source, image_format: ImageFormat, notes: list[str]) -> None:
    """The inspector's own checks, of a qcow2 image or a VMDK."""
    inspector = _oslo()
    kind = inspector.ALL_FORMATS[image_format.value]()
    try:
        for chunk in _chunks(source, image_format):
            kind.eat_chunk(chunk)
        if source.is_whole:
            kind.finish()
        elif not kind.complete:
            notes.append("what its end says was not checked")
            return
        kind.safety_check()
    except inspector.SafetyCheckFailed as error:
        reasons = _reasons(error.failures, source.head)
        if reasons:
            raise errors.ImageError("; ".join(reasons)) from error
    except Exception as error:
        raise errors.ImageError(f"its header is broken ({_brief(error)})") from error


def _chunks(source: _Source, image_format: ImageFormat) -> Iterable[bytes]:
    if image_format is ImageFormat.QCOW2:
        return [source.head.ljust(_CHUNK, b"\0")]
    start = source.read_at(0, _VMDK_START)
    # The bytes between are of no interest: each region but the end's is complete by then.
    end = max(len(start), source.size - _VMDK_END)
    return [start, source.read_at(end, source.size - end)] if source.is_whole else [start]


def _reasons(failures: dict[str, Exception], head: bytes) -> list[str]:
    """What the checks found, without what they misread."""
    # oslo.utils 10.2 does not know extended L2 entries (QEMU 5.2), and reads a version 2
    # header, which ends before the features, as if it had them.
    is_version_2 = head[4:8] == b"\0\0\0\x02"
    misread = {
        "unknown_features": layout.qcow2_has_known_features(head),
        "data_file": is_version_2,
    }
    return [_brief(error) for name, error in failures.items() if not misread.get(name, False)]


def _footer(source: _Source) -> bytes:
    if not source.is_whole:
        return source.tail
    if source.size < _FOOTER:
        return b""
    return source.read_at(source.size - _FOOTER, _FOOTER)


def _shown(image_format: ImageFormat | None) -> str:
    return "raw" if image_format in (None, ImageFormat.RAW) else image_format.value


def _brief(error: Exception) -> str:
    """One line of somebody else's error."""
    text = " ".join(str(error).split()) or type(error).__name__
    return "".join(c if c.isprintable() else "?" for c in text)[:200]


def _oslo() -> Any:
    """oslo.utils' inspector, imported when first needed."""
    from oslo_utils.imageutils import format_inspector

    # It logs what it raises as well, in more lines and with bytes of the image in them.
    logging.getLogger(format_inspector.__name__).setLevel(logging.CRITICAL)
    return format_inspector
