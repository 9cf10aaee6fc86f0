"""Inputs made from others, the same ones for the same seed."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from typing import Final

# Where sizes and counts go wrong.
_EDGES: Final = (0, 1, 2, 7, 8, 9, 255, 256, 2**15, 2**16 - 1, 2**16, 2**31 - 1, 2**31, 2**32 - 1,
                 2**62, 2**63 - 1, 2**63, 2**64 - 1)  # fmt: skip

# Larger ones make the run slow and find nothing that a small one does not; what is large by
# nature (nesting, long lines) comes from repeating.
MAX_BYTES: Final = 256 * 1024


class Mutator:
    """Makes inputs out of a pool, with the tokens of a format thrown in."""

    def __init__(self, seed: int, tokens: Sequence[bytes]) -> None:
        self._random = random.Random(seed)
        self._tokens = tokens
        self._steps: tuple[Callable[[bytearray], None], ...] = (
            self._flip, self._set, self._number, self._cut, self._repeat, self._insert_token,
            self._replace_token, self._move, self._insert_noise, self._letter, self._decimal,
            self._letter, self._decimal,
        )  # fmt: skip

    def make(self, pool: Sequence[bytes]) -> bytes:
        """One more input; *pool* is not empty."""
        data = bytearray(self._random.choice(pool))
        if self._random.random() < 0.1:
            other = self._random.choice(pool)
            data = data[: self._at(data)] + other[self._at(other) :]
        # Mostly one change: two of them leave hardly any document that is still one.
        for _ in range(1 + int(self._random.expovariate(1.2))):
            self._random.choice(self._steps)(data)
        return bytes(data[:MAX_BYTES])

    def _at(self, data: Sequence[int]) -> int:
        # Headers stand at the start: half of all changes go there.
        end = len(data) if self._random.random() < 0.5 else min(len(data), 512)
        return self._random.randint(0, end)

    def _span(self, data: bytearray) -> slice:
        start = self._at(data)
        return slice(start, start + int(self._random.expovariate(1 / 24)) + 1)

    def _flip(self, data: bytearray) -> None:
        at = self._at(data)
        if at < len(data):
            data[at] ^= 1 << self._random.randrange(8)

    def _set(self, data: bytearray) -> None:
        at = self._at(data)
        if at < len(data):
            data[at] = self._random.choice((0, 9, 10, 32, 34, 38, 47, 58, 60, 127, 128, 255))

    def _number(self, data: bytearray) -> None:
        width = self._random.choice((1, 2, 4, 8))
        value = self._random.choice(_EDGES) % (1 << 8 * width)
        at = self._at(data)
        if self._random.random() < 0.3:
            data[at : at + width] = str(value).encode()
        else:
            order = self._random.choice(("big", "little"))
            data[at : at + width] = value.to_bytes(width, order)  # type: ignore[arg-type]

    def _letter(self, data: bytearray) -> None:
        at = self._at(data)
        while at < len(data) and not chr(data[at]).isalnum():
            at += 1
        if at < len(data):
            data[at] = self._random.choice(b"0189aefzAFZ")

    def _decimal(self, data: bytearray) -> None:
        found = list(re.finditer(rb"[0-9]+", data[: 64 * 1024]))
        if found:
            number = self._random.choice(found)
            data[number.start() : number.end()] = str(self._random.choice(_EDGES)).encode()

    def _cut(self, data: bytearray) -> None:
        if self._random.random() < 0.2:
            del data[self._at(data) :]
        else:
            del data[self._span(data)]

    def _repeat(self, data: bytearray) -> None:
        span = self._span(data)
        times = self._random.choice((2, 2, 3, 10, 100, 1000))
        data[span.start : span.start] = bytes(data[span]) * times

    def _insert_token(self, data: bytearray) -> None:
        at = self._at(data)
        data[at:at] = self._random.choice(self._tokens)

    def _replace_token(self, data: bytearray) -> None:
        present = [token for token in self._tokens if token in data]
        if present:
            at = data.find(self._random.choice(present))
            old = next(token for token in present if data.startswith(token, at))
            data[at : at + len(old)] = self._random.choice(self._tokens)

    def _move(self, data: bytearray) -> None:
        span = self._span(data)
        taken = bytes(data[span])
        del data[span]
        at = self._at(data)
        data[at:at] = taken

    def _insert_noise(self, data: bytearray) -> None:
        at = self._at(data)
        data[at:at] = self._random.randbytes(int(self._random.expovariate(1 / 8)) + 1)
