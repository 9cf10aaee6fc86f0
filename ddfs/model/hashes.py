"""Hashes of whole files: the algorithms, and their values."""

from __future__ import annotations

import enum
import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

from ddfs import errors

if TYPE_CHECKING:
    from hashlib import _Hash


class HashAlgorithm(enum.Enum):
    """A whole-file or piece hash, named as IANA's "Hash Function Textual Names" does.

    Members stand from weakest to strongest.
    """

    MD5 = "md5"
    SHA1 = "sha-1"
    SHA224 = "sha-224"
    SHA256 = "sha-256"
    SHA384 = "sha-384"
    SHA512 = "sha-512"

    @property
    def digest_size(self) -> int:
        """Length of a digest in bytes."""
        return _DIGEST_SIZES[self]

    @property
    def strength(self) -> int:
        """Order among the algorithms: higher is stronger."""
        return list(HashAlgorithm).index(self)

    @property
    def is_strong(self) -> bool:
        """Whether a match proves anything against somebody who wants a collision."""
        return self.strength >= HashAlgorithm.SHA224.strength

    def hasher(self) -> _Hash:
        """A fresh hashlib object."""
        return hashlib.new(self.value.replace("-", ""), usedforsecurity=False)

    @classmethod
    def parse(cls, name: str) -> Self | None:
        """The algorithm called *name* (``sha256``, ``SHA-256``, ``sha-256``), or None.

        Unknown names are no error: RFC 5854 asks to pass over them.
        """
        plain = name.strip().lower().replace("-", "").replace("_", "")
        return next((a for a in cls if a.value.replace("-", "") == plain), None)


_DIGEST_SIZES: Final = {a: a.hasher().digest_size for a in HashAlgorithm}


@dataclass(frozen=True, slots=True)
class Digest:
    """The hash of a whole file: algorithm and value in lower-case hexadecimal."""

    algorithm: HashAlgorithm
    hexdigest: str

    def __post_init__(self) -> None:
        if re.fullmatch(rf"[0-9a-f]{{{2 * self.algorithm.digest_size}}}", self.hexdigest) is None:
            raise errors.InvalidValueError(
                f"{self.hexdigest[:140]!r} is no {self.algorithm.value} digest: it takes "
                f"{2 * self.algorithm.digest_size} hexadecimal digits"
            )

    def __str__(self) -> str:
        return f"{self.algorithm.value}:{self.hexdigest}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """From ``ALG:HEX``, or from ``{ALG}HEX`` as CloudStack's users have it."""
        match = re.fullmatch(r"\{([^{}]{1,20})\}(.*)|([^:]{1,20}):(.*)", text.strip())
        name = (match[1] or match[3]) if match else None
        algorithm = HashAlgorithm.parse(name) if name else None
        if match is None or algorithm is None:
            known = ", ".join(a.value for a in HashAlgorithm)
            raise errors.InvalidValueError(
                f"{text[:140]!r} is no checksum: write ALG:HEX, with ALG one of {known}"
            )
        value = match[2] if match[1] else match[4]
        return cls(algorithm, value.strip().lower())
