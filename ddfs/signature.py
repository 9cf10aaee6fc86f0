"""OpenPGP signatures of documents and images, checked by GnuPG's gpgv against a given keyring.

gpgv trusts every key of the keyring, and no other; it has no configuration, no agent and no
network. It runs by argument list, under limits of time, memory and what it may write, in a
folder of its own. What counts is its status output (GnuPG's doc/DETAILS): one good
signature by a key of the ring and no bad one. Signatures by keys that are not in the ring
are passed over, since publishers sign with an old and a new key while they change.
"""

from __future__ import annotations

import base64
import binascii
import io
import os
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from ddfs import errors
from ddfs.model import KiB, MiB

# Debian's ring of all its developers has 30 MB; those of archives some 50 KiB.
MAX_KEYRING_BYTES: Final = 64 * MiB

# A signature has some 600 bytes; with notations, and several of them, a few KiB.
MAX_SIGNATURE_BYTES: Final = 256 * KiB

# gpgv takes 20 ms, and a second for 32 MiB of metalink on a slow host.
_SECONDS: Final = 30.0
_CPU_SECONDS: Final = 20

# An image is hashed at some 500 MiB/s, as fast as its disk is; a text signature, which
# nobody makes of an image, at a tenth. Slower than this no disk is that others read from.
_SLOW_BYTES_PER_SECOND: Final = 10 * MiB
_MEMORY_BYTES: Final = 512 * MiB

_STATUS: Final = re.compile(r"\[GNUPG:\] ([A-Z_]+)(?: (.*))?")
_KEY_BLOCK: Final = re.compile(
    rb"-----BEGIN PGP PUBLIC KEY BLOCK-----\r?\n(.*?)-----END PGP PUBLIC KEY BLOCK-----", re.DOTALL
)
_SIGNATURE_BLOCK: Final = re.compile(
    rb"-----BEGIN PGP SIGNATURE-----\r?\n(.*?)-----END PGP SIGNATURE-----", re.DOTALL
)

# Statuses after which nothing of the document is believed, and what they mean.
_REFUSED: Final = {
    "BADSIG": "its signature is wrong: it was changed after it was signed",
    "EXPSIG": "its signature has expired",
    "EXPKEYSIG": "the key that signed it has expired",
    "REVKEYSIG": "the key that signed it was revoked",
}

_PREPARING: Final = trio.CapacityLimiter(2)


@dataclass(frozen=True, slots=True)
class _Verdict:
    code: int
    status: str
    said: str
    text: bytes | None


async def check_detached(document: bytes, signature: bytes, keyring: str) -> str:
    """The fingerprint of the key in *keyring* (a path) that made *signature* of *document*.

    Raises :class:`errors.DocumentError` when none did, :class:`errors.RequestError` for a
    keyring that is none, and :class:`errors.HostError` where gpgv cannot run.
    """
    if len(signature) > MAX_SIGNATURE_BYTES:
        raise errors.DocumentError(f"a signature of more than {MAX_SIGNATURE_BYTES} bytes")
    verdict = await _run({"signature": signature, "document": document}, keyring)
    return _signer(verdict, keyring)


async def signed_text(document: bytes, keyring: str) -> bytes:
    """What a key in *keyring* (a path) signed of the clear-signed *document*, and nothing else.

    Raises as :func:`check_detached` does.
    """
    verdict = await _run({"document": document}, keyring, is_inline=True)
    _signer(verdict, keyring)
    if verdict.text is None:
        raise errors.DocumentError("its signature is of nothing")
    return verdict.text


async def check_image(image: Path, armored: str, keyring: str) -> str:
    """The fingerprint of the key in *keyring* (a path) that made the *armored* signature of
    the file *image*, which is read once, from its start to its end.

    *image* may be a name of an open descriptor in ``/proc/self/fd``. Cancelled, gpgv is ended.
    Raises :class:`errors.SignatureError` when no key did, :class:`errors.RequestError` for a
    keyring that is none, :class:`errors.StorageError` for an image that cannot be read, and
    :class:`errors.HostError` where gpgv cannot run.
    """
    try:
        opened = await trio.to_thread.run_sync(_open_image, image, limiter=_PREPARING)
        with opened as file:
            size = os.fstat(file.fileno()).st_size
            made = {"signature": _binary_signature(armored)}
            verdict = await _run(made, keyring, size=size, stdin=file.fileno())
        return _signer(verdict, keyring)
    except errors.DocumentError as error:
        raise errors.SignatureError(str(error)) from None


def _open_image(image: Path) -> io.FileIO:
    try:
        return open(image, "rb", buffering=0, opener=_open_regular)
    except OSError as error:
        raise errors.StorageError(f"{image}: {error.strerror or error}") from error


async def refuse_hopeless(armored: str, keyring: str) -> None:
    """Refuse a signature of an image that no bytes could make good, before any is fetched:
    one by a key that is not in *keyring* (a path), or what is no signature.

    Raises as :func:`check_detached` does.
    """
    verdict = await _run({"signature": _binary_signature(armored)}, keyring, size=0)
    if "BADSIG" not in _kinds(verdict):
        _signer(verdict, keyring)


def armored(made: bytes) -> str:
    """A detached signature, armored already or not, as text (RFC 9580 section 6.2)."""
    if _SIGNATURE_BLOCK.search(made):
        return made.decode("ascii", "replace")
    body = base64.encodebytes(made).decode("ascii")
    return f"-----BEGIN PGP SIGNATURE-----\n\n{body}-----END PGP SIGNATURE-----\n"


def _binary_signature(armored: str) -> bytes:
    """The packets of all armored signatures in a text, which may be indented."""
    try:
        blocks = _SIGNATURE_BLOCK.findall(armored.encode(errors="replace"))
        made = b"".join(_unarmored(block) for block in blocks)
    except binascii.Error:
        made = b""
    if not made:
        raise errors.DocumentError("its signature is none: no armored OpenPGP signature is in it")
    return made


async def _run(
    files: dict[str, bytes],
    keyring: str,
    *,
    is_inline: bool = False,
    size: int | None = None,
    stdin: int = subprocess.DEVNULL,
) -> _Verdict:
    """What gpgv says of *files*; with a *size* the document is that many bytes of *stdin*."""
    with tempfile.TemporaryDirectory(prefix="ddfs-gpgv-") as name:
        folder = Path(name)

        def prepare() -> None:
            (folder / "keys").write_bytes(_binary_keys(keyring))
            for file, data in files.items():
                (folder / file).write_bytes(data)

        await trio.to_thread.run_sync(prepare, limiter=_PREPARING)
        extra = 0 if size is None else size // _SLOW_BYTES_PER_SECOND
        written = len(files["document"]) if size is None else 0
        arguments = ["prlimit", f"--cpu={_CPU_SECONDS + extra}", f"--as={_MEMORY_BYTES}"]
        arguments += ["--core=0", f"--fsize={written + KiB}"]
        arguments += ["gpgv", "--status-fd", "1", "--homedir", name]
        arguments += ["--weak-digest", "SHA1", "--keyring", str(folder / "keys")]
        if is_inline:
            arguments += ["--output", str(folder / "text")]
        arguments += ["--", *(str(folder / file) for file in files)]
        arguments += [] if size is None else ["-"]
        done = await _finished(arguments, _SECONDS + extra, stdin)
        text = folder / "text"
        return _Verdict(
            done.returncode,
            done.stdout.decode("utf-8", "replace"),
            done.stderr.decode("utf-8", "replace"),
            text.read_bytes() if text.is_file() else None,
        )


async def _finished(
    arguments: list[str], seconds: float, stdin: int
) -> subprocess.CompletedProcess[bytes]:
    environment = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}
    try:
        with trio.fail_after(seconds):
            done = await trio.run_process(
                arguments,
                stdin=stdin,
                capture_stdout=True,
                capture_stderr=True,
                check=False,
                env=environment,
            )
    except trio.TooSlowError:
        raise errors.DocumentError(
            f"its signature could not be checked within {seconds:.0f} s"
        ) from None
    except OSError as error:
        raise errors.HostError(
            f"prlimit (Debian's util-linux) cannot be run: {error.strerror}"
        ) from error
    if done.returncode == 127 or b"failed to execute gpgv" in done.stderr:
        raise errors.HostError(
            "signatures are checked by gpgv, which is not on this host: install it "
            "(Debian's package is called gpgv)"
        )
    return done


def _signer(verdict: _Verdict, keyring: str) -> str:
    """The fingerprint of a good signature. Raises DocumentError when there is none."""
    statuses, kinds = _statuses(verdict), _kinds(verdict)
    for kind in kinds:
        if kind in _REFUSED:
            raise errors.DocumentError(_REFUSED[kind])
    valid = [match[2].split()[0] for match in statuses if match[1] == "VALIDSIG" and match[2]]
    is_odd = kinds.count("PLAINTEXT") > 1 or "ERROR" in kinds or "NODATA" in kinds
    if "GOODSIG" in kinds and valid and not is_odd:
        return valid[0]
    missing = [match[2].split()[0] for match in statuses if match[1] == "NO_PUBKEY" and match[2]]
    if missing:
        raise errors.DocumentError(f"it is signed by {missing[0]}, and no such key is in {keyring}")
    said = verdict.said.strip().split("\n")[-1].removeprefix("gpgv: ")
    shown = "".join(c if c.isprintable() else "?" for c in said)[:120]
    raise errors.DocumentError(f"it has no good signature ({shown or 'gpgv says nothing'})")


def _statuses(verdict: _Verdict) -> list[re.Match[str]]:
    lines = verdict.status.split("\n")
    return [match for line in lines if (match := _STATUS.fullmatch(line))]


def _kinds(verdict: _Verdict) -> list[str]:
    return [match[1] for match in _statuses(verdict)]


def _binary_keys(keyring: str) -> bytes:
    """The keys at a path, in the form that gpgv takes; blocks. Armored ones are unpacked."""
    try:
        with open(keyring, "rb", opener=_open_regular) as file:
            data = file.read(MAX_KEYRING_BYTES + 1)
    except OSError as error:
        raise errors.RequestError(
            f"{keyring}: the keyring cannot be read: {error.strerror or error}"
        ) from error
    if len(data) > MAX_KEYRING_BYTES:
        raise errors.RequestError(f"{keyring}: larger than any keyring")
    if not data:
        raise errors.RequestError(f"{keyring}: the keyring is empty")
    # A keybox has its name in its first blob, a binary ring begins with a packet (RFC 9580
    # section 4.2: the highest bit is set).
    if data[0] & 0x80 or data[8:12] == b"KBXf":
        return data
    try:
        keys = b"".join(_unarmored(block) for block in _KEY_BLOCK.findall(data))
    except binascii.Error as error:
        raise errors.RequestError(f"{keyring}: its armor is broken: {error}") from None
    if not keys:
        raise errors.RequestError(
            f"{keyring}: no OpenPGP public keys; export them with: gpg --export KEY > FILE"
        )
    return keys


def _open_regular(path: str, flags: int) -> int:
    # A FIFO would wait for its writer.
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)


def _unarmored(block: bytes) -> bytes:
    """The bytes of one armored block (RFC 9580 section 6.2) without its headers and sum."""
    lines = [line.strip() for line in block.split(b"\n")]
    start = lines.index(b"") if b"" in lines else -1
    body = [line for line in lines[start + 1 :] if line and not line.startswith(b"=")]
    return base64.b64decode(b"".join(body), validate=True)
