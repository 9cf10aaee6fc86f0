"""How much of a document is read. Each cap stands well above the largest real document."""

from __future__ import annotations

from typing import Final

from ddfs.model import KiB, MiB

# 100 GiB in pieces of 256 KiB are 409,600 hashes: 22 MB with SHA-1 as MirrorBrain writes
# them, 32 MB with SHA-256 as write.py does. The largest document found is 267 KB.
MAX_DOCUMENT_BYTES: Final = 32 * MiB

# The document is fed in chunks of this size, so that the caps act early.
CHUNK_BYTES: Final = 64 * KiB

# What documents are written in: what expat reads by itself, and what they were in before
# everything was UTF-8. Python looks for any other name among its modules, and remembers for
# ever that there is none (``encodings._cache``): each name that a document invents would stay.
ENCODINGS: Final = frozenset(
    {
        *("utf-8", "utf8", "utf-16", "utf-16le", "utf-16be", "us-ascii", "ascii"),
        *(f"iso-8859-{part}" for part in range(1, 17)),
        *(f"windows-{page}" for page in range(1250, 1259)),
        *("koi8-r", "koi8-u"),
    }
)

# One tag with its attributes, or one comment. expat before 2.6.0 reads an unfinished one
# again from its start with every chunk, and a tag's attributes exist all at once.
MAX_TOKEN_BYTES: Final = 256 * KiB

# Version 3 goes 6 deep; foreign markup inside may add some.
MAX_DEPTH: Final = 64

# The document's cap leaves room for some 600,000 hashes; `<a/>` alone would fit 8 million.
MAX_ELEMENTS: Final = 800_000

# Distinct names of elements and attributes that mean nothing here: the parser keeps each.
MAX_FOREIGN_NAMES: Final = 10_000

# One address, name or hash. Servers refuse request lines beyond 8,000 bytes.
MAX_TEXT_LENGTH: Final = 8 * KiB

# BOSH's largest has some 30 files.
MAX_FILES: Final = 10_000

# The most that was found for one file is 300.
MAX_URLS_PER_FILE: Final = 4_000

# There are ten or so kinds of hash in use.
MAX_HASHES_PER_FILE: Final = 64
MAX_PIECE_MAPS_PER_FILE: Final = 16

# RFC 5854 section 4.2.13 allows one.
MAX_SIGNATURES_PER_FILE: Final = 16

# A file name, whole and by component (NAME_MAX of Linux), and how many folders deep.
MAX_NAME_BYTES: Final = 1024
MAX_NAME_COMPONENT_BYTES: Final = 255
MAX_NAME_DEPTH: Final = 16

# How much of hostile text an error repeats.
SHOWN_LENGTH: Final = 80
