"""The whole-file hash: it follows the front of the file, decides at the end, finds what is wrong.

The hash is made of the contiguous front while the rest arrives, so that it ends with the
download. Where it does not match, only what may be wrong is fetched again: pieces that
changed on disk, then, without piece hashes, what a liar sent (:mod:`blame`).
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Collection, Iterable
from typing import Final, Protocol

import trio

from ddfs import errors
from ddfs.fetch import twofold
from ddfs.fetch.arrivals import Arrival, hash_apart
from ddfs.fetch.aside import Aside
from ddfs.fetch.blame import MAX_ALONE, UNKNOWN, Inquest, Plan
from ddfs.fetch.events import WholeFileCompared
from ddfs.fetch.hot import HOT_BYTES, HotPieces, HotRoom
from ddfs.fetch.pieces import HELD
from ddfs.fetch.target import Target
from ddfs.fetch.verify import FrontHasher, decisive, find_damaged, hash_range, holes_of
from ddfs.model import ByteRange, Digest, HashAlgorithm, Manifest, MiB

# Comparisons of the whole-file hash; between two of them only suspect ranges are fetched.
MAX_COMPARISONS: Final = 3


# Within a block of a file system somebody may cut a file off without leaving a hole. Those of ZFS
# are the largest.
MAX_BLOCK_BYTES: Final = 1 * MiB


class Fetching(Protocol):
    """What brings the pieces: :class:`transfer.Transfer`."""

    def observe(self, event: WholeFileCompared) -> None:
        """Tell whoever watches."""

    async def wait_complete(self) -> None:
        """Until every piece is held and nothing writes any more."""

    async def fetch_again(self, plan: Plan) -> None:
        """Fetch pieces again, each not from the mirrors that the plan names; do not wait."""

    async def commit(self) -> None:
        """Make durable what is held."""

    async def start_over(self) -> None:
        """Let the journal vouch for nothing: the next fetch begins with an empty file."""

    async def forget(self, pieces: Collection[int]) -> None:
        """Held pieces are about to be replaced: the journal vouches for them no more."""

    def hashed(self, arrival: Arrival) -> None:
        """The digest of *arrival* was made: the piece may now be held."""

    def record(self, piece: int, mirror: int, digest: bytes) -> None:
        """*piece* is in the file as *mirror* sent it."""

    def url(self, mirror: int) -> str:
        """The address of *mirror*."""

    def usable(self) -> list[int]:
        """The mirrors that may be asked for what others sent."""

    def blame(self, mirror: int, reason: str) -> None:
        """*mirror* was proved to send wrong bytes."""


class WholeFile:
    """*states* are the live states of the pieces of the file behind *target*.

    ``front`` is the first piece that is not held, ``digests`` are those that decide,
    ``comparisons`` says how often they were compared, ``is_repairing`` whether they did not
    match. ``hot`` are the pieces of the front that are still in memory; ``hashes_pieces`` says
    whether :meth:`follow` is of use.
    """

    def __init__(
        self,
        manifest: Manifest,
        target: Target,
        states: bytearray,
        fetching: Fetching,
        room: HotRoom,
    ) -> None:
        self.digests = decisive(manifest.digests)
        self.front = 0
        self.comparisons = 0
        self._name = manifest.name
        self._grid = manifest.grid
        self._pieces = manifest.pieces
        self._algorithm = manifest.pieces.algorithm if manifest.pieces else HashAlgorithm.SHA256
        self._fd = target.fd
        self._has_earlier = target.has_journaled
        self._aside = Aside(target, self._grid)
        self._states = states
        # How long the file was seen to be, its holes that were seen, and the pieces of which some
        # may have become zeros: to be looked at.
        self._length = 0
        self._holes: frozenset[ByteRange] = frozenset()
        self._suspects: set[int] = set()
        # Pieces that an earlier run left on disk.
        self._earlier: list[int] = []
        self._fetching = fetching
        # Who sent each piece and what arrived; without piece hashes that finds a liar.
        count = 0 if self._pieces else self._grid.count
        self._inquest = Inquest([UNKNOWN] * count, [b""] * count)
        self.is_repairing = False
        self.hot = HotPieces(self._grid.piece_length, room if self.digests else HotRoom(0))
        self.hashes_pieces = _can_hash_pieces(manifest, self.digests)
        # Those that are hashed with the whole file, from the front on.
        self._unhashed: deque[Arrival] = deque()
        self._follower = self._new_follower()
        # What the follower has hashed is fetched again.
        self._is_stale = False
        self._grown = trio.Event()

    # -- what happens to pieces -----------------------------------------------------

    def received(self, piece: int, mirror: int, digest: bytes) -> Plan:
        """*mirror* sent *piece*; for files without piece hashes. What to fetch because of it.

        *digest* may be empty until ``is_repairing``: it is then made when it is needed.
        """
        if self.is_repairing:
            plan = self._inquest.heard(piece, mirror, digest, self._fetching.usable())
            if self._inquest.is_certain:
                self._grown.set()
            return plan
        self._inquest.sources[piece] = mirror
        self._inquest.digests[piece] = digest
        return {}

    def arrived(self, piece: int, buffer: bytearray | None, *, is_held: bool) -> None:
        """A buffer of ``hot``, or none, has *piece* as one run brought it; so has the file, if
        *is_held*.

        Where others wrote into the piece as well, or it is wrong, only the file counts.
        """
        if buffer is not None and is_held:
            self.hot.keep(piece, buffer)
        elif buffer is not None:
            self.hot.give_back(buffer)

    def follow(self, arrival: Arrival) -> bool:
        """Whether *arrival* is hashed here, with the whole file; :meth:`Fetching.hashed` tells.

        Only what the whole-file hash comes to at once: nobody is to wait for a hole in front.
        """
        is_next = arrival.piece == self.front + len(self._unhashed)
        lag = self._front_bytes() - self._follower.position
        if not (self.hashes_pieces and arrival.buffer and is_next and lag <= HOT_BYTES):
            return False
        self._unhashed.append(arrival)
        self._grown.set()
        return True

    def advance(self) -> None:
        """Pieces may be held that were not."""
        self._note_length()
        front, count = self.front, len(self._states)
        while front < count and self._states[front] == HELD:
            front += 1
        if front != self.front:
            self.front = front
            self._grown.set()

    def reopened(self, pieces: Iterable[int]) -> None:
        """*pieces* are fetched again."""
        for piece in pieces:
            self.hot.forget(piece)
            self.front = min(self.front, piece)
            if piece * self._grid.piece_length < self._follower.reached:
                self._is_stale = True

    # -- the way to the end ---------------------------------------------------------

    async def see_through(self) -> None:
        """Until the file is complete, what the manifest says, and on disk.

        Raises :class:`errors.ChecksumError`, :class:`errors.HostError`. Where no piece hash
        says which bytes are wrong, the former leaves none of them for the next time.
        """
        self._earlier = [piece for piece, state in enumerate(self._states) if state == HELD]
        for _ in range(MAX_COMPARISONS):
            await self._complete()
            # Seconds on a slow disk, in which somebody may cut the file off.
            await self._fetching.commit()
            if not await self._was_cut():
                return
        raise errors.StorageError(
            "the partial file is cut off again and again; end what else writes to it"
        )

    async def _complete(self) -> None:
        """Until it is complete and right."""
        await self._gather()
        await self._restore_cut()
        # Nothing else looks at what an earlier run left.
        unread = self._earlier if self._has_earlier and not self.digests else []
        if await self._mend(unread):
            await self._gather()
        try:
            while self.digests and not self._compare():
                await self._repair()
        except errors.ChecksumError:
            if self._pieces is None:
                await self._fetching.start_over()
            raise
        finally:
            self._aside.close()

    async def _gather(self) -> None:
        """Until all pieces are here; the hash follows the front meanwhile."""
        while True:
            if self._is_stale:
                self._is_stale = False
                self._follower = self._new_follower()
            if not self._follower_is_done():
                await self._follower.advance(self._front_bytes())
            elif self._unhashed:
                await self._hash_next(self._unhashed[0])
            elif self.front < self._grid.count:
                await self._grown.wait()
                self._grown = trio.Event()
            else:
                await self._fetching.wait_complete()
                if not self._is_stale and self.front == self._grid.count:
                    return

    async def _hash_next(self, arrival: Arrival) -> None:
        follower, piece, buffer = self._follower, arrival.piece, arrival.buffer or bytearray()
        is_next = piece == self.front
        if is_next:
            arrival.digest = await follower.hash_next(buffer)
        else:  # the one in front of it was wrong
            await hash_apart(arrival, self._fd, self._grid, self._algorithm)
        self._unhashed.popleft()
        self._fetching.hashed(arrival)
        # Held now, unless it was wrong or others wrote into it as well.
        if is_next and self.front > piece:
            follower.accept()
            self.hot.forget(piece)

    def _new_follower(self) -> FrontHasher:
        return FrontHasher(
            self._fd, self._grid, self.digests, self.hot, hashes_pieces=self.hashes_pieces
        )

    def _front_bytes(self) -> int:
        return min(self.front * self._grid.piece_length, self._grid.size)

    def _follower_is_done(self) -> bool:
        return not self.digests or self._follower.position == self._front_bytes()

    def _compare(self) -> bool:
        """Whether the file is what the manifest says. Raises ChecksumError at the last time."""
        self.comparisons += 1
        wrong = self._follower.mismatches()
        self._fetching.observe(WholeFileCompared(not wrong))
        if not wrong:
            for liar in self._inquest.liars:
                self._fetching.blame(
                    liar, "sent wrong bytes: with those of another mirror the file is right"
                )
            return True
        # One more for each mirror that the file may be taken from alone.
        most = MAX_COMPARISONS + (MAX_ALONE if self._inquest.contradicting else 0)
        if self.comparisons >= most:
            raise self._error(wrong, f"after {most} comparisons")
        return False

    def _error(self, wrong: Iterable[Digest], why: str) -> errors.ChecksumError:
        names = " and ".join(digest.algorithm.value for digest in wrong)
        parties = [self._fetching.url(mirror) for mirror in self._inquest.contradicting]
        advice = "check the source of the checksum"
        if parties:
            advice = f"these mirrors contradict each other: {', '.join(parties)}"
        return errors.ChecksumError(
            f"{self._name}: the whole file does not match its {names} {why}; {advice}"
        )

    # -- repair ---------------------------------------------------------------------

    async def _repair(self) -> None:
        """Fetch again what may be wrong. Raises ChecksumError when nothing may be."""
        wrong = self._follower.mismatches()
        # What this run brought is still in memory: a liar is more likely than a broken disk.
        is_first = self._pieces is None and self.comparisons == 1
        if not await self._mend(self._earlier if is_first else range(self._grid.count)):
            if self._pieces is not None:
                raise self._error(wrong, "although every piece matches its own hash")
            await self._find_liar(wrong)
        await self._gather()

    async def _mend(self, pieces: Iterable[int]) -> bool:
        """Fetch those again that are not on disk as they came; whether there are any."""
        known = [piece for piece in pieces if self._expected(piece)]
        damaged = await find_damaged(self._fd, self._grid, known, self._algorithm, self._expected)
        if damaged:
            await self._fetching.fetch_again(dict.fromkeys(damaged, frozenset()))
        return bool(damaged)

    async def _restore_cut(self) -> None:
        """Fetch once more what somebody cut off or punched out since it came.

        Pieces are hashed in memory as they come: the hashes would still be right.
        """
        if not await self._was_cut():
            return
        pieces = sorted(self._suspects)
        self._suspects.clear()
        # From here on the file counts, and nothing that was in memory.
        self.hot.close()
        if unknown := [piece for piece in pieces if not self._expected(piece)]:
            await self._fetching.fetch_again(dict.fromkeys(unknown, frozenset()))
            await self._fetching.wait_complete()
        await self._mend(pieces)
        await self._gather()

    async def _was_cut(self) -> bool:
        """Whether there are suspects, by now.

        Those are the pieces at holes that were not there, and not right all the same, before.
        """
        if self._has_earlier:
            self._note_length()
            holes = await holes_of(self._fd, self._grid.size)
            for hole in holes - self._holes:
                self._suspect(hole.start, hole.end)
            self._holes = holes
        return bool(self._suspects)

    def _note_length(self) -> None:
        """Notice a cut before it is written over.

        Nobody knows then where it was: the rest of its block is zeros, and no hole.
        """
        length = os.fstat(self._fd).st_size
        if length < self._length and self._has_earlier:
            self._suspects.update(range(self._grid.count))
        self._length = length

    def _suspect(self, start: int, end: int) -> None:
        around = ByteRange(max(0, start - MAX_BLOCK_BYTES), end + MAX_BLOCK_BYTES)
        self._suspects.update(self._grid.pieces_under(around))

    def _expected(self, piece: int) -> bytes:
        return self._pieces[piece] if self._pieces is not None else self._inquest.digests[piece]

    async def _find_liar(self, wrong: list[Digest]) -> None:
        if self.is_repairing:
            self._inquest.compared()
        self.is_repairing = True
        earlier = set(self._earlier)
        for piece, digest in enumerate(self._inquest.digests):
            if not digest:
                place = self._grid.bytes_of(piece)
                self._inquest.digests[piece] = await hash_range(self._fd, place, self._algorithm)
                if piece in earlier:
                    self._inquest.hearsay[piece] = self._inquest.sources[piece]
        while plan := self._inquest.plan(self._fetching.usable()):
            if plan := await self._exchange(plan):
                await self._fetching.fetch_again(plan)
                await self._until_suspicious()
            if self._inquest.is_certain:
                # Most likely the last of it: hash it as it comes.
                await self._gather()
        if not self._inquest.has_news:
            # The same bytes as before, which may not have been on disk as they came.
            await self._gather()
            if self._follower.mismatches():
                raise self._error(wrong, "and fetching it again gives the same bytes")

    async def _exchange(self, plan: Plan) -> Plan:
        """Of what is wanted of one mirror, put back what it sent before; the rest of *plan*."""
        alone = self._inquest.alone
        if alone is None:
            return plan
        mine = {piece: self._inquest.opinion(piece, alone) for piece in plan}
        kept = {p: digest for p, digest in mine.items() if digest and self._aside.has(p, digest)}
        if kept:
            await self._fetching.forget(kept)
            await self._aside.put_back(kept)
            self.reopened(kept)
            self.advance()
            for piece, digest in kept.items():
                self._inquest.heard(piece, alone, digest, ())
                self._fetching.record(piece, alone, digest)
        rest = {piece: not_from for piece, not_from in plan.items() if piece not in kept}
        needed = self._inquest.needed_later(rest)
        await self._aside.keep({piece: self._inquest.digests[piece] for piece in needed})
        return rest

    async def _until_suspicious(self) -> None:
        """Until somebody is suspected, or every piece is held and nothing writes any more."""

        async def watch() -> None:
            while not self._inquest.is_certain:
                await self._grown.wait()
                self._grown = trio.Event()
            nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            await self._fetching.wait_complete()
            nursery.cancel_scope.cancel()


def _can_hash_pieces(manifest: Manifest, digests: Iterable[Digest]) -> bool:
    """Whether one pass makes both hashes: both SHA-256, and pieces whole blocks of it."""
    pieces = manifest.pieces
    return (
        pieces is not None
        and pieces.algorithm is HashAlgorithm.SHA256
        and manifest.grid.piece_length % twofold.BLOCK_BYTES == 0
        and any(digest.algorithm is HashAlgorithm.SHA256 for digest in digests)
        and manifest.grid.size > HOT_BYTES
        and twofold.is_available()
    )
