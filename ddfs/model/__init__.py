"""The values that all of ddfs speaks in. Frozen, and validated when made.

Ranges are half-open and in bytes; piece numbers start at 0; times are POSIX seconds.
Nothing here does I/O. A value that cannot be right raises :class:`errors.InvalidValueError`
where it came from outside (names, digests, addresses), ``ValueError`` where only our own
code could have made it (ranges, piece numbers).
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Self

from ddfs import errors
from ddfs.model.hashes import Digest as Digest
from ddfs.model.hashes import HashAlgorithm as HashAlgorithm
from ddfs.model.rbd import RbdPool as RbdPool
from ddfs.names import split_version, validate_template_name

KiB: Final = 1024
MiB: Final = 1024 * KiB
GiB: Final = 1024 * MiB
TiB: Final = 1024 * GiB


def size_text(count: int) -> str:
    """*count* bytes as people read it, and to the byte: ``20 GiB``, ``1.5 MiB (1573376 bytes)``."""
    for unit, name in ((TiB, "TiB"), (GiB, "GiB"), (MiB, "MiB")):
        if count >= unit:
            exact = count % unit == 0
            return (
                f"{count // unit} {name}" if exact else f"{count / unit:.1f} {name} ({count} bytes)"
            )
    return f"{count} bytes"


# The largest offset that pread() and the kernel's loff_t can say.
MAX_SIZE: Final = 2**63 - 1

# What a listing of images looks at: libvirt reads VIR_STORAGE_MAX_HEADER = 33,280 bytes,
# and the kernel asks in powers of two.
HEAD_LENGTH: Final = 64 * KiB

# Pieces up to this length are fetched whole at registering, so that the head is verified.
MAX_HEAD_PIECE_LENGTH: Final = 8 * MiB

# The engine's own grid where the manifest has no pieces: large enough that 150 ms to the
# first byte is noise, small enough that one bad piece costs little. Small files get small
# pieces so that several mirrors can share them.
OWN_PIECE_LENGTH: Final = 4 * MiB
OWN_PIECE_LENGTH_SMALL: Final = 1 * MiB
SMALL_FILE: Final = 64 * MiB

# RFC 5854 section 4.2.16.1: 1 to 999999, lower is better, and this where none is given.
LOWEST_PRIORITY: Final = 999_999


@dataclass(frozen=True, slots=True, order=True)
class ByteRange:
    """Bytes *start* to *end* - 1 of a file. Never empty."""

    start: int
    end: int

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end:
            raise ValueError(f"not a range of bytes: {self.start} to {self.end}")

    def __len__(self) -> int:
        return self.end - self.start

    def intersection(self, other: ByteRange) -> ByteRange | None:
        """The bytes that both have, or None."""
        start, end = max(self.start, other.start), min(self.end, other.end)
        return ByteRange(start, end) if start < end else None


@dataclass(frozen=True, slots=True)
class Grid:
    """How a file of *size* bytes falls into pieces of *piece_length*; the last is shorter.

    An empty file has no pieces.
    """

    size: int
    piece_length: int

    def __post_init__(self) -> None:
        if not 0 <= self.size <= MAX_SIZE or self.piece_length <= 0:
            raise ValueError(f"not a grid: {self.size} bytes in pieces of {self.piece_length}")

    @property
    def count(self) -> int:
        """Number of pieces."""
        return -(-self.size // self.piece_length)

    def bytes_of(self, piece: int) -> ByteRange:
        """The bytes of *piece*."""
        if not 0 <= piece < self.count:
            raise ValueError(f"no piece {piece} in {self.count}")
        start = piece * self.piece_length
        return ByteRange(start, min(start + self.piece_length, self.size))

    def pieces_under(self, wanted: ByteRange) -> range:
        """The pieces that *wanted* touches; what lies behind the end of the file has none."""
        end = min(wanted.end, self.size)
        return range(wanted.start // self.piece_length, -(-end // self.piece_length))


@dataclass(frozen=True, slots=True)
class PieceMap:
    """The hash of every piece of a file.

    ``digests`` holds them one behind the other: 400,000 pieces are then 12.8 MB and not
    some hundred MB of objects.
    """

    algorithm: HashAlgorithm
    piece_length: int
    digests: bytes

    def __post_init__(self) -> None:
        if self.piece_length <= 0 or len(self.digests) % self.algorithm.digest_size:
            raise ValueError(
                f"not a piece map: {len(self.digests)} bytes of {self.algorithm.value} "
                f"for pieces of {self.piece_length}"
            )

    def __len__(self) -> int:
        return len(self.digests) // self.algorithm.digest_size

    def __getitem__(self, piece: int) -> bytes:
        if not 0 <= piece < len(self):
            raise IndexError(piece)
        width = self.algorithm.digest_size
        return self.digests[piece * width : (piece + 1) * width]

    def __iter__(self) -> Iterator[bytes]:
        return (self[i] for i in range(len(self)))


@dataclass(frozen=True, slots=True)
class Mirror:
    """One address that serves the bytes of a template.

    ``priority`` is RFC 5854's: 1 to 999999, lower is better. ``location`` is a lower-case
    ISO 3166-1 alpha-2 code. ``max_connections`` is what the document allows to this mirror.
    ``named_from`` is the network that the document which names it came from: a special block
    in CIDR notation, or empty for the public network; None where the operator named it.
    """

    url: str
    priority: int = LOWEST_PRIORITY
    location: str | None = None
    max_connections: int | None = None
    named_from: str | None = None


class PackingKind(enum.Enum):
    """In what an image is packed; the value is the suffix that says so."""

    GZIP = "gz"
    BZIP2 = "bz2"
    XZ = "xz"
    ZSTD = "zst"
    ZIP = "zip"

    @classmethod
    def of_name(cls, name: str) -> Self | None:
        """The kind that the name of a file claims; None for what is not packed."""
        stem, dot, suffix = name.rpartition(".")
        known = next((kind for kind in cls if kind.value == suffix.lower()), None)
        return known if stem and dot else None


@dataclass(frozen=True, slots=True)
class Packing:
    """How an image is packed in the file that is downloaded, and what comes out of it.

    ``member`` is the file in an archive, None for its only one. ``size`` is that of what
    comes out, by the operator's word, the packed file's, or, once it was unpacked, proved;
    None while nobody knows. ``checksum`` is what the operator says about what comes out,
    ``sha256`` (in hexadecimal) what did; None before the first unpacking.
    """

    kind: PackingKind
    member: str | None = None
    size: int | None = None
    checksum: Digest | None = None
    sha256: str | None = None

    def __post_init__(self) -> None:
        if self.size is not None and not 0 <= self.size <= MAX_SIZE:
            raise ValueError(f"not a size: {self.size}")

    @property
    def digests(self) -> tuple[Digest, ...]:
        """What is known of the bytes that come out, to verify them by."""
        found = Digest(HashAlgorithm.SHA256, self.sha256) if self.sha256 else None
        return tuple(digest for digest in (found, self.checksum) if digest is not None)


# How the name of a content begins that nothing but its first fetch can vouch for.
_UNVERIFIED: Final = "unverified:"


@dataclass(frozen=True)
class Manifest:
    """What a source resolves to.

    ``name`` is the file name in the document, for people; nothing is stored under it.
    ``size`` is None until mirrors were asked. ``size_is_stated`` says that the document,
    not a mirror, gave it. ``digests`` go from strongest to weakest. ``mirrors`` stand in
    the order in which to try them, best first. ``notes`` are what the reader of the
    document passed over and a person may want to know. With ``packing``, all else is about
    the packed file, which is what mirrors have and what is fetched. ``unverified_id`` is
    there where nothing said what the bytes must be when the source was registered: it names
    the content then, and ``digests`` stay empty until the first fetch has pinned them.
    ``signature`` is the armored OpenPGP signature of the file that a key of the operator's
    has to have made: until it was judged over all of the file, nothing else here counts.
    """

    name: str
    size: int | None
    digests: tuple[Digest, ...]
    pieces: PieceMap | None
    mirrors: tuple[Mirror, ...]
    size_is_stated: bool = True
    notes: tuple[str, ...] = ()
    packing: Packing | None = None
    unverified_id: str | None = None
    signature: str | None = None

    def __post_init__(self) -> None:
        if self.size is not None and not 0 <= self.size <= MAX_SIZE:
            raise ValueError(f"not a size: {self.size}")
        ordered = tuple(sorted(self.digests, key=lambda d: -d.algorithm.strength))
        object.__setattr__(self, "digests", ordered)
        if self.pieces is not None and self.size is not None:
            expected = Grid(self.size, self.pieces.piece_length).count
            if len(self.pieces) != expected:
                raise ValueError(f"{len(self.pieces)} piece hashes where {expected} are needed")

    @property
    def image_name(self) -> str:
        """The name of what comes out, where it is packed; else its name."""
        return self.name.rpartition(".")[0] if self.packing is not None else self.name

    @property
    def published(self) -> Manifest:
        """What is known of the file that stands in primary storage in the end: itself, or
        what comes out of it, which may have neither size nor digests yet.
        """
        if self.packing is None:
            return self
        inside = self.packing
        return Manifest(self.image_name, inside.size, inside.digests, None, (), False)

    @property
    def digest(self) -> Digest | None:
        """The strongest whole-file digest, the one that decides."""
        return self.digests[0] if self.digests else None

    @property
    def is_unpinned(self) -> bool:
        """Whether nobody knows yet what its bytes are."""
        return self.unverified_id is not None and not self.digests

    @cached_property
    def content_id(self) -> str:
        """Names the content, wherever it comes from: ``sha-256:HEX``.

        Two manifests with the same strongest digest are the same content. With piece
        hashes alone it is the SHA-256 over them and the size; without any hash there is
        nothing to tell contents apart by, and that is refused. What comes out of a packed
        file is another content than the packed file: its hash is over how it comes about.
        """
        if self.packing is None or self.unverified_id is not None:
            return self.download_id
        packing = self.packing
        how = (self.download_id, packing.kind.value, packing.member or "", packing.checksum or "")
        return f"unpacked:{hashlib.sha256(' '.join(map(str, how)).encode()).hexdigest()}"

    @cached_property
    def download_id(self) -> str:
        """Names the file that mirrors have, packed or not.

        An unverified one keeps the name that it got before anybody knew its hash.
        """
        if self.unverified_id is not None:
            return self.unverified_id
        if self.digest is not None:
            return str(self.digest)
        if self.pieces is None:
            raise errors.DocumentError(
                f"{self.name}: nothing to verify it by; give a checksum with --checksum ALG:HEX"
            )
        whole = hashlib.sha256(f"{self.size} {self.pieces.piece_length} ".encode())
        whole.update(self.pieces.algorithm.value.encode() + b" " + self.pieces.digests)
        return f"pieces:{whole.hexdigest()}"

    @property
    def is_readable_early(self) -> bool:
        """Whether a reader may have verified pieces before the whole file is here.

        It takes piece hashes, and a size that the document states: a mirror's word on the
        size would otherwise decide what the file is. Never while it is packed, nor where a
        signature decides, which is of the whole file.
        """
        if self.packing is not None or self.signature is not None:
            return False
        return self.pieces is not None and self.size_is_stated and self.size is not None

    @property
    def grid(self) -> Grid:
        """The pieces that a fetch works in: the document's, or the engine's own."""
        if self.size is None:
            raise ValueError("no grid before the size is known")
        if self.pieces is not None:
            return Grid(self.size, self.pieces.piece_length)
        own = OWN_PIECE_LENGTH_SMALL if self.size <= SMALL_FILE else OWN_PIECE_LENGTH
        return Grid(self.size, own)


def unverified_id(url: str, size: int, validator: str, member: str | None = None) -> str:
    """The content id of what is at *url*, as long as its server says the same of it.

    *validator* is what changes when the file does. It is part of the name, so that what is
    published there later is other content. *member* is the file in it, if it is an archive;
    the name without it begins the name with it.
    """
    name = _UNVERIFIED + hashlib.sha256(f"{size} {validator!r} {url}".encode()).hexdigest()
    return name if member is None else f"{name}-{hashlib.sha256(member.encode()).hexdigest()[:16]}"


def is_unverified(content_id: str) -> bool:
    """Whether nothing but its first fetch says what the bytes of that content are."""
    return content_id.startswith(_UNVERIFIED)


class ImageFormat(enum.Enum):
    """What a template is; the value is the suffix of its name in the pool."""

    QCOW2 = "qcow2"
    RAW = "img"
    ISO = "iso"
    VMDK = "vmdk"
    VHD = "vhd"
    VHDX = "vhdx"

    @classmethod
    def parse(cls, text: str) -> Self:
        """From the name that people use: the suffix, or ``raw``."""
        plain = text.strip().lower().removeprefix(".")
        try:
            return cls("img" if plain == "raw" else plain)
        except ValueError:
            known = "qcow2, raw (img), iso, vmdk, vhd, vhdx"
            raise errors.InvalidValueError(f"unknown format {text!r}: use one of {known}") from None

    @property
    def qemu_name(self) -> str:
        """What QEMU and libvirt call it."""
        return {"img": "raw", "iso": "raw", "vhd": "vpc"}.get(self.value, self.value)


@dataclass(frozen=True, slots=True)
class Template:
    """A name bound for ever to one content.

    The first version of a family ``debian-12`` is called so, the later ones ``debian-12@2``
    and on; only they have an ``@`` in their names.
    ``row`` never comes back after removal, so that what derives from it (the inode
    numbers) does not either. ``head_is_verified``: its head was hashed and inspected at
    registering. ``is_readable_early`` as in :class:`Manifest`. ``size`` is that of the image;
    ``packed_size`` that of the packed file, where it is fetched packed. Where that does not
    say to how much it unpacks, ``size`` is the packed one and not ``size_is_known``, until it
    was unpacked. ``primary`` is the primary storage that it shall be on, None for the default.
    ``signature`` as in :class:`Manifest`; what is published under the name was judged by it.
    ``weak`` is the kind of hash that verifies it, where that can be forged.
    """

    row: int
    name: str
    format: ImageFormat
    content_id: str
    size: int
    virtual_size: int | None
    source: str
    added_at: float
    head_is_verified: bool
    is_readable_early: bool
    packed_size: int | None = None
    size_is_known: bool = True
    primary: str | None = None
    signature: str | None = None
    weak: str | None = None

    def __post_init__(self) -> None:
        family, number = split_version(self.name)
        validate_template_name(family)
        if number == 1:
            raise errors.InvalidValueError(f"{self.name!r}: the first version is called {family!r}")

    @property
    def family(self) -> str:
        """The name that all its versions share."""
        return split_version(self.name)[0]

    @property
    def version(self) -> int:
        """Its number in the family, from 1."""
        return split_version(self.name)[1] or 1

    @property
    def exact_name(self) -> str:
        """What means this version and no other, also where a newer one is there."""
        return f"{self.family}@{self.version}"

    @property
    def file_name(self) -> str:
        """Its name in the template pool."""
        return f"{self.name}.{self.format.value}"

    @property
    def published_name(self) -> str:
        """Its name in primary storage, ``FAMILY@DIGEST12.FORMAT``."""
        return f"{self.family}@{self.content_id.rpartition(':')[2][:12]}.{self.format.value}"


class SpoolState(enum.Enum):
    """How far a content has come on a primary storage."""

    ABSENT = "not-downloaded"
    FETCHING = "downloading"
    PUBLISHED = "downloaded"
    FAILED = "error"


@dataclass(frozen=True, slots=True)
class PublishedFile:
    """A complete file in primary storage, and how to see that it is still the same.

    Owner and ctime are not part of it: libvirt changes them at every start.

    It may be a volume that is a block device: then ``inode`` is 0, ``device`` is the device's
    own number, ``mtime_ns`` a fingerprint of its bytes, and ``path`` may be a link to it. The
    device may be larger than ``size``.
    """

    path: str
    device: int
    inode: int
    size: int
    mtime_ns: int

    @property
    def is_volume(self) -> bool:
        """Whether it is one."""
        return self.inode == 0


@dataclass(frozen=True, slots=True)
class SpoolReference:
    """The fact that a content is (being) stored on a primary storage.

    ``bytes_here`` counts verified (or, without piece hashes, received) bytes at
    ``updated_at``. ``published`` is there exactly in the state PUBLISHED, ``last_error``
    in FAILED, and after a failure that was followed by another try.
    """

    content_id: str
    primary: str
    state: SpoolState
    bytes_here: int
    updated_at: float
    published: PublishedFile | None = None
    last_error: str | None = None
