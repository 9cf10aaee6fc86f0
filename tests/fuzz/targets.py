"""What reads bytes from outside: documents, checksum files, headers, heads of images.

A target either takes its input, and returns what kind of thing it saw, or refuses it with an
error of ours. Anything else that it raises is a bug, and so is taking long.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import socket
import struct
import time
import tomllib
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ddfs import errors
from ddfs.declaration import problems_of
from ddfs.fetch.address import Address, AddressError, redirected
from ddfs.fetch.connection import ClosedEarlyError, Connection, ProtocolError, parse_content_range
from ddfs.image import packed
from ddfs.image.domain import PoolTargets, files_of_domain
from ddfs.image.header import ChainError, references
from ddfs.image.inspect import inspect_head
from ddfs.metalink import checksums, links, read
from ddfs.model import ImageFormat, Packing, PackingKind

_ORIGIN: Final = Address.parse("https://origin.example/d/i?q")

# What fits into a socket's buffer while nobody reads.
_MAX_RESPONSE: Final = 64 * 1024

CORPUS: Final = Path(__file__).with_name("corpus")

_HASH: Final = b"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

_METALINK4: Final = b"""<?xml version="1.0" encoding="UTF-8"?>
<metalink xmlns="urn:ietf:params:xml:ns:metalink"><file name="image.qcow2"><size>1048577</size>
<hash type="sha-256">%b</hash>
<pieces length="1048576" type="sha-256"><hash>%b</hash><hash>%b</hash></pieces>
<url location="de" priority="1">https://a.example/image.qcow2</url>
<metaurl mediatype="torrent">https://a.example/t</metaurl>
<signature mediatype="application/pgp-signature">-----BEGIN PGP SIGNATURE-----</signature>
</file></metalink>""" % (_HASH, _HASH, _HASH)

_METALINK3: Final = (
    b"""<?xml version="1.0"?>
<metalink version="3.0" xmlns="http://www.metalinker.org/"><files><file name="image.iso">
<size>5</size><verification><hash type="sha256">%b</hash>
<pieces length="4" type="sha1"><hash piece="0">da39a3ee5e6b4b0d3255bfef95601890afd80709</hash>
<hash piece="1">da39a3ee5e6b4b0d3255bfef95601890afd80709</hash></pieces></verification>
<resources maxconnections="2"><url type="http" location="fr" preference="90">http://b.example/i</url>
</resources></file></files></metalink>"""
    % _HASH
)

_SUMS: Final = b"%b  image.qcow2\n%b *./folder/other.iso\n\\%b  a\\nb\n" % (_HASH, _HASH, _HASH)
_BSD: Final = b"# image.qcow2: 5 bytes\nSHA256 (image.qcow2) = %b\nMD5 (x) = %b\n" % (
    _HASH, _HASH[:32],
)  # fmt: skip
_SIGNED: Final = (
    b"-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\n%b- dashed\n"
    b"-----BEGIN PGP SIGNATURE-----\n\niQ==\n-----END PGP SIGNATURE-----\n" % _BSD
)

_HEADERS: Final = (
    b'link: <http://m.example/i>; rel=duplicate; pri=1; geo=de, </i.meta4>; rel="describedby"; '
    b'type="application/metalink4+xml"\n'
    b"digest: SHA-256=47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n"
    b"repr-digest: sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:\n"
    b"content-digest: sha-512=:AAAA:\n"
)

_DOMAIN: Final = b"""<domain type="kvm"><name>vm</name><os><kernel>/k</kernel></os>
<devices><disk type="file" device="disk"><driver name="qemu" type="qcow2"/>
<source file="/srv/ddfs/templates/a.qcow2"/><backingStore type="file"><format type="raw"/>
<source file="/b"/><backingStore/></backingStore><target dev="vda"/><readonly/></disk>
<disk type="volume" device="cdrom"><source pool="p" volume="v"/></disk></devices></domain>"""

_TOML: Final = (
    b'[template.a]\nsource = "https://a.example/i"\nchecksum = "sha256:%b"\nformat = "qcow2"\n'
    b'headers = ["A: b"]\ncheck_every = "1d"\nsize = 5\nunverified = false\n' % _HASH
)


_RESPONSE: Final = (
    b"HTTP/1.1 206 Partial Content\r\nServer: x\r\nContent-Length: 10\r\n"
    b'Content-Range: bytes 0-9/100\r\nETag: "a"\r\nRetry-After: 5\r\nConnection: keep-alive\r\n'
    b"Location: https://b.example/i\r\n\r\n0123456789"
)
_CHUNKED: Final = (
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n"
    b"Location: ../a?b#c\r\n\r\n5;x=y\r\n01234\r\n5\r\n56789\r\n0\r\nTrailer: z\r\n\r\n"
)
_OLD_RESPONSE: Final = b"HTTP/1.0 302 Found\r\nLocation: //c.example:81/%zz\r\n\r\nmoved"


def _qcow2(version: int = 3, backing: bytes = b"") -> bytes:
    head = struct.pack(
        ">IIQIIQIIQQIIQ", 0x514649FB, version, 512 if backing else 0, len(backing), 16,
        2**30, 0, 1, 2**17, 2**16, 1, 0, 0,
    )  # fmt: skip
    head += struct.pack(">QQQII", 0, 0, 0, 4, 104)
    head += struct.pack(">II", 0xE2792ACA, 5) + b"qcow2\0\0\0" + bytes(8)
    return head.ljust(512, b"\0") + backing.ljust(512, b"\0")


def _images() -> list[bytes]:
    iso = bytes(32768) + b"\x01CD001\x01\0" + bytes(72) + struct.pack("<I", 9) + bytes(2000)
    mbr = bytes(446) + struct.pack("<BBBBBBBBII", 128, 0, 2, 0, 131, 0, 2, 0, 1, 63) + bytes(48)
    gpt = (mbr + b"\x55\xaa") + b"EFI PART\0\0\1\0" + bytes(500)
    vmdk = b"KDMV" + struct.pack("<IIQQQQIQQQ", 1, 3, 2048, 128, 1, 20, 512, 0, 0, 0)
    text = b'# Disk DescriptorFile\nversion=1\ncreateType="monolithicSparse"\nRW 9 SPARSE "a"\n'
    vhd = b"conectix" + struct.pack(">IIQ", 2, 0x10000, 512) + bytes(488)
    vhdx = b"vhdxfile" + bytes(65528) + b"head" + bytes(4092)
    return [
        _qcow2(), _qcow2(2), _qcow2(3, b"/etc/passwd"), iso, mbr + b"\x55\xaa", gpt,
        vmdk.ljust(512, b"\0") + text, text, vhd, vhdx, b"QFI\xfb", bytes(512), b"LUKS\xba\xbe\0\1",
        b"QED\0" + bytes(100), b"<<< Oracle VM VirtualBox Disk Image >>>\n" + bytes(500),
    ]  # fmt: skip


def _packed() -> list[bytes]:
    plain = _qcow2() + os.urandom(0) + bytes(3000)
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("image.qcow2", plain)
    # A frame of one raw block (RFC 8878): magic, descriptor, window, size, block.
    zstd = bytes.fromhex("28b52ffd") + b"\x00\x58" + struct.pack("<I", 64 << 3 | 1)[:3] + plain[:64]
    return [
        gzip.compress(plain, mtime=0), gzip.compress(plain, mtime=0) * 2, bz2.compress(plain),
        lzma.compress(plain), lzma.compress(plain) + lzma.compress(b"x"), archive.getvalue(), zstd,
    ]  # fmt: skip


def _documents(data: bytes) -> str:
    document = read.parse(data, base_url="https://origin.example/d/", location="de")
    for manifest in document.files:
        read.select(document, manifest.name)
    return " ".join(sorted({*document.warnings, *(reason for _, reason in document.refused)}))


def _checksum_files(data: bytes) -> str:
    found = checksums.digests_of(data, "folder/image.qcow2")
    return " ".join(digest.algorithm.value for digest in found)


def _headers(data: bytes) -> str:
    fields = {}
    seen = []
    for line in data.decode("latin-1").split("\n"):
        name, _, value = line.partition(":")
        fields[name.strip().lower()] = value.strip()
    for status, is_whole in ((200, True), (206, False), (302, False)):
        offer = links.offer_of(
            fields, url="https://origin.example/i", status=status, is_whole=is_whole
        )
        mirrors = "m" * min(len(offer.duplicates), 5)
        seen.append(f"{'d' * len(offer.digests)} {mirrors} {offer.described_by is None}")
    return " / ".join(seen)


def _responses(data: bytes) -> str:
    """What a server sends for a segment, its body, and where it redirects to."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        theirs.sendall(data[:_MAX_RESPONSE])
        theirs.shutdown(socket.SHUT_WR)
        connection = Connection(_ORIGIN, ours)
        try:
            head = connection.request(_ORIGIN, 0, 9, time.monotonic() + 1)
            while connection.receive_into(memoryview(bytearray(4096))):
                pass
        except (ProtocolError, ClosedEarlyError) as error:
            said = str(error)
            assert said.isprintable()
            assert len(said) < 400
            # What it quotes is different each time, and no other outcome.
            raise errors.MirrorError(_ORIGIN.url, " ".join(said.split()[:7])) from None
    part = parse_content_range(head.headers.get("content-range", ""))
    seen = f"{head.status // 100} {head.is_chunked} {part is None} {connection.is_reusable}"
    try:
        target = redirected(_ORIGIN, head.headers.get("location", ""), may_leave_tls=True)
    except AddressError as error:
        return f"{seen} {error}"
    return f"{seen} {target.scheme} {target.origin == _ORIGIN.origin}"


def _heads(data: bytes) -> str:
    # One of eight questions, by the input itself: all of them take long.
    size = len(data) + (2**30 if len(data) & 1 else 0)
    claims = (None, ImageFormat.QCOW2, ImageFormat.VHD, ImageFormat.RAW)
    facts = inspect_head(data, size=size, claimed=claims[len(data) >> 1 & 3])
    return f"{facts.format.value} {facts.virtual_size is None} {facts.notes}"


def _chains(data: bytes) -> str:
    seen = []

    def read_at(offset: int, length: int) -> bytes:
        return data[offset : offset + length]

    for declared in (None, "qcow2", "vmdk"):
        found = references(read_at, declared)
        seen.append(f"{found.format} {found.backing is None} {found.data is None}")
    return " / ".join(seen)


def _domains(data: bytes) -> str:
    # Its fields behind the path, without the quotes that mark what varies.
    files = files_of_domain(data, PoolTargets())
    return " / ".join(" ".join(map(str, file[1:])) for file in files)


def _packings(data: bytes) -> str:
    seen = []

    def read_at(offset: int, length: int) -> bytes:
        return data[offset : offset + length]

    for kind in PackingKind:
        try:
            facts = packed.look(Packing(kind), len(data), read_at)
            seen.append(f"{len(facts.head).bit_length()} {facts.size is None}")
        except errors.ImageError as error:
            seen.append(str(error))
    return " ".join(seen)


def _declarations(data: bytes) -> str:
    seen = []
    try:
        document = tomllib.loads(data.decode("utf-8", errors="replace"))
    except (ValueError, RecursionError):
        return "no TOML"
    for table in document.values():
        for inner in table.values() if isinstance(table, dict) else ():
            if isinstance(inner, dict):
                seen += problems_of(inner)
    return " ".join(seen)


@dataclass(frozen=True)
class Target:
    """``run`` takes an input or raises one of ``refusals``."""

    name: str
    run: Callable[[bytes], str]
    seeds: Sequence[bytes]
    tokens: Sequence[bytes]
    refusals: tuple[type[Exception], ...] = (errors.DdfsError,)

    def corpus(self) -> list[bytes]:
        """What is kept: the seeds, and what runs by hand have found to be of interest."""
        kept = sorted((CORPUS / self.name).glob("*")) if (CORPUS / self.name).is_dir() else []
        return [*self.seeds, *(path.read_bytes() for path in kept)]


_XML_TOKENS: Final = (
    b"<!DOCTYPE x [<!ENTITY a 'b'>]>", b"&a;", b"&#0;", b"<![CDATA[", b"]]>", b"<!--", b"-->",
    b"<file name='../x'>", b"</file>", b"<size>", b"</size>", b"<hash>", b"</hash>", b"<pieces>",
    b"<url>ftp://x</url>", b"\xff\xfe", b"\xef\xbb\xbf", b"<a>", b"</a>", b"xmlns=''", b"%00",
)  # fmt: skip
_TEXT_TOKENS: Final = (
    b"\n", b"\r\n", b"\\", b" *", b"  ", b"SHA256 (", b") = ", b"- ", b"sha-256=:", b":", b"=",
    b"<", b">", b'"', b";", b",", b"rel=duplicate", b"rel*=utf-8''describedby", b"\xff", _HASH,
    _HASH * 2,
    b"-----BEGIN PGP SIGNED MESSAGE-----\n", b"-----BEGIN PGP SIGNATURE-----\n",
)  # fmt: skip
_HTTP_TOKENS: Final = (
    b"\r\n", b"\n", b"\r\n\r\n", b": ", b"HTTP/1.1 ", b"HTTP/1.0 200 \r\n", b"HTTP/2", b"\x00",
    b"Content-Length: 9\r\n", b"Transfer-Encoding: gzip, chunked\r\n", b"0\r\n\r\n", b"\t",
    b"ffffffffff\r\n", b"Content-Range: bytes */0\r\n", b"Connection: close\r\n", b"Location: file:///etc/passwd\r\n",
    b"http://[::1]:0/", b"@", b"\xff", b"206", b"Upgrade: x\r\n", b"9" * 30, b"Range: bytes 9-0/-1",
)  # fmt: skip
_IMAGE_TOKENS: Final = (
    b"QFI\xfb", b"KDMV", b"conectix", b"vhdxfile", b"CD001", b"EFI PART", b"\x55\xaa", b"metadata",
    b"regi", b"head", b"# Disk DescriptorFile", b"PK\1\2", b"PK\5\6", b"\xfd7zXZ\0", b"YZ",
    b"\x1f\x8b\x08", b"BZh9", b"\x28\xb5\x2f\xfd", b"\0" * 512, b"raw\0json:{", b"ustar",
)  # fmt: skip

TARGETS: Final = (
    Target("documents", _documents, (_METALINK4, _METALINK3), _XML_TOKENS),
    Target("checksum-files", _checksum_files, (_SUMS, _BSD, _SIGNED, _HASH), _TEXT_TOKENS),
    Target("headers", _headers, (_HEADERS,), _TEXT_TOKENS),
    Target("responses", _responses, (_RESPONSE, _CHUNKED, _OLD_RESPONSE), _HTTP_TOKENS),
    Target("heads", _heads, _images(), _IMAGE_TOKENS),
    Target("chains", _chains, _images(), _IMAGE_TOKENS, (ChainError,)),
    Target("domains", _domains, (_DOMAIN,), _XML_TOKENS, (ChainError,)),
    Target("packings", _packings, _packed(), _IMAGE_TOKENS),
    Target("declarations", _declarations, (_TOML,), _TEXT_TOKENS),
)
