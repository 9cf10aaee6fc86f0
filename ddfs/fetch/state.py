"""What a fetch knows: its pieces, its runs, its mirrors, and what every event does to them.

Pure. :class:`scheduler.Scheduler` adds the decisions.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import Final

from ddfs.fetch import pieces as states
from ddfs.fetch.lanes import Lanes
from ddfs.fetch.mirrors import (
    FIRST_REST_SECONDS,
    MIN_SAMPLE_SECONDS,
    Failure,
    FailureKind,
    MirrorStanding,
)
from ddfs.fetch.pieces import Contest, PieceTable
from ddfs.fetch.runs import Action, Blame, Cancel, Recheck, Run, Trim
from ddfs.fetch.widening import Widening
from ddfs.model import Grid, MiB

# Progress is this many bytes more; a mirror that drips is none.
GIVE_UP_BYTES: Final = 64 * 1024

# Bytes per second to expect of a mirror that was not measured, if others are slower: with
# less nobody would ask it while the others are worse.
UNKNOWN_RATE: Final = 2.0 * MiB

# A request that brought less says nothing about its mirror's rate.
MIN_MEASURED_BYTES: Final = 256 * 1024

# Nobody else has the first byte so late; its pieces go to others, one excepted.
LATE_ANSWER_SECONDS: Final = 1.0


class Verdict(enum.Enum):
    """Why it cannot go on."""

    EXHAUSTED = "every mirror failed"
    SILENT = "no mirror delivers"
    SUSPECT = "mirrors agree on bytes that the document denies"


class FetchState:
    """The state of one fetch. *mirrors* is their number; lower indexes are tried first.

    Where there is only one, it may have *lanes*: up to so many connections, each of which
    has an index and a standing as a mirror has. What is known of the mirror as such, its
    failures above all, stands with index 0. *jitter* is that of :class:`MirrorStanding`.
    """

    def __init__(self, grid: Grid, mirrors: int, *, lanes: int = 1, jitter: float = 0.0) -> None:
        self.grid = grid
        self.table = PieceTable(grid)
        self.lanes = Lanes(lanes) if mirrors == 1 and lanes > 1 else None
        count = lanes if self.lanes is not None else mirrors
        self.mirrors = [MirrorStanding(index, jitter) for index in range(count)]
        self.runs: dict[int, Run] = {}
        self.verdict: Verdict | None = None
        self.suspect_piece: int | None = None
        self._busy: dict[int, Run] = {}
        # What mirrors were asked for before they have ended what they are busy with.
        self._ahead: dict[int, Run] = {}
        self._doubled: dict[int, set[int]] = {}
        self._wants: dict[int, bool] = {}
        self._disputed: set[int] = set()
        self._notices: list[Action] = []
        self._next_run = 0
        self._received = 0
        self._progress_at = 0.0
        self._now = 0.0
        self._progress_bytes = 0
        self._widening = Widening(grid.size, mirrors)

    def begin(self, pieces: Iterable[int], now: float) -> None:
        """Start the clock. *pieces* are in the file and right, from an earlier run."""
        self._progress_at = self._now = now
        # From the end: what is free then is cut at the cheap end of its list. The other way
        # round 100,000 scattered pieces took 2.1 s, and ten times as many minutes.
        for piece in sorted(pieces, reverse=True):
            self.table.hold_free(piece)

    def progressed(self, run_id: int, position: int, now: float) -> None:
        """All bytes of the run before *position* have arrived."""
        run = self.runs[run_id]
        standing = self.mirrors[run.mirror]
        received = position - run.position
        if not run.is_answered:
            if received <= 0:
                return
            run.is_answered = True
            standing.answered(now - run.started_at)
            run.seen_at = now
            # What came with the first sight has no duration to divide by.
        elif not run.is_cancelled:
            # Time passes once for a mirror, also where two of its answers come at once.
            standing.observe(received, 0.0 if run.is_ahead else now - run.seen_at)
            run.seen_at = now
        if received > 0:
            run.position, run.last_byte_at = position, now
            self._received += received
            if self._received - self._progress_bytes >= GIVE_UP_BYTES:
                self._progress_bytes, self._progress_at = self._received, now

    def began_earlier(self, run_id: int, waited: float, brought: int, seconds: float) -> None:
        """The run's request was sent before anybody knew of the run.

        It was not answered for *waited* seconds; then *brought* bytes came in *seconds*.
        """
        run = self.runs[run_id]
        run.started_at -= waited
        self.mirrors[run.mirror].observe(brought, seconds)
        self._widening.began_earlier(waited + seconds)

    def held_back(self, run_id: int, now: float) -> None:
        """The run waits for a limit of ours: that silence is not its mirror's."""
        run = self.runs[run_id]
        run.last_byte_at = self._progress_at = now
        if not run.is_answered:
            run.started_at = now

    def piece_arrived(
        self, run_id: int, piece: int, now: float, *, matches: bool, digest: bytes
    ) -> bool:
        """The run has written all of *piece*. Returns whether the piece is now held.

        False with *matches* means that it is not needed, or has to be rechecked first.
        """
        run = self.runs[run_id]
        run.next = piece + 1
        self.progressed(run_id, max(run.position, self.grid.bytes_of(piece).end), now)
        self._progress_at = now
        writers = self._doubled.get(piece)
        if writers is not None:
            writers.discard(run_id)
        if not matches:
            self._reject(run, piece, digest)
        if writers is None:
            if matches:
                self._hold(piece, run.mirror)
            else:
                self._give_back(piece)
            return matches
        if matches and self.table.states[piece] == states.ASKED:
            self.table.states[piece] = states.CHECKING
            for other in writers:
                self._cancel(other, "another mirror was first")
        if self.table.states[piece] == states.CHECKING:
            self._recheck_if_alone(piece)
        elif not writers:
            self._give_back(piece)
        return False

    def rechecked(self, piece: int, *, matches: bool, mirror: int) -> bool:
        """The answer to ``Recheck``; *mirror* sent the piece last. Whether it is now held."""
        self._doubled.pop(piece, None)
        if matches:
            self._hold(piece, mirror)
        else:
            self.table.states[piece] = states.ASKED
            self.table.release(piece, piece + 1)
        return matches

    def run_ended(self, run_id: int, now: float, failure: Failure | None = None) -> None:
        """Nothing writes for this run any more. What it did not bring is free again."""
        run = self.runs.pop(run_id)
        self._step_up(run, now)
        self._notices = [
            n for n in self._notices if not (isinstance(n, Cancel) and n.run == run_id)
        ]
        standing = self.mirrors[run.mirror]
        if not (run.is_answered or run.is_ahead) and now - run.started_at > LATE_ANSWER_SECONDS:
            standing.is_silent = True
        if failure is not None and run.is_ahead and failure.kind is not FailureKind.FINAL:
            standing.takes_one_only = True
        elif failure is not None:
            self._fail(run.mirror, failure, now)
        elif run.is_ahead:
            pass  # its time was another run's
        elif run.is_answered and standing.rate is None:
            # Too short to be seen twice: the wait for its first byte is then counted too,
            # and a handful of bytes says nothing.
            received = run.position - run.first * self.grid.piece_length
            if received >= MIN_MEASURED_BYTES:
                standing.observe(received, max(now - run.started_at, MIN_SAMPLE_SECONDS))
        elif run.is_answered and not run.is_cancelled:
            standing.observe(0, now - run.seen_at)
        elif not run.is_answered and now - run.started_at > LATE_ANSWER_SECONDS:
            # Silence is a measurement too; else it would pass for a mirror of average speed.
            standing.observe(0, now - run.started_at)
        self._drop_range(run, run.next, run.end)

    def _step_up(self, run: Run, now: float) -> None:
        """*run* has ended: its mirror is idle, or busy with what it was asked for ahead."""
        if run.is_ahead:
            del self._ahead[run.mirror]
            return
        del self._busy[run.mirror]
        following = self._ahead.pop(run.mirror, None)
        if following is not None:
            following.is_ahead = False
            following.seen_at = now
            self._busy[run.mirror] = following

    def trimmed(self, run_id: int, end: int) -> None:
        """The answer to ``Trim``: the run ends before piece *end*, and others may go on there."""
        run = self.runs[run_id]
        run.is_trimming = False
        if end > run.trim_end:
            # Its writer was further than it had said: asking for less again would be in vain.
            run.kept_end = end
        old, run.end = run.end, min(end, run.end)
        self._drop_range(run, max(run.end, run.next), old)

    def found_rangeless(self, run_id: int) -> None:
        """The mirror of this run sends the whole file whatever it is asked for."""
        standing = self.mirrors[self.owner(self.runs[run_id].mirror)]
        standing.is_rangeless = True
        standing.last_error = "ignores ranges"

    def want(self, first: int, end: int, *, urgent: bool = True) -> None:
        """Somebody waits for these pieces. Urgent ones may cut short what others do."""
        for piece in range(first, end):
            if self.table.states[piece] != states.HELD:
                self._wants[piece] = urgent or self._wants.get(piece, False)

    def fetch_again(self, piece: int, not_from: Iterable[int]) -> None:
        """A held piece is suspect: get it from a mirror that is not in *not_from*."""
        contest = self.table.contest(piece)
        for mirror in not_from:
            contest.tries[mirror] = contest.tries.get(mirror, 0) + 1
        self.table.reopen(piece)

    def blame(self, mirror: int, reason: str) -> None:
        """The mirror is out, for sending wrong bytes."""
        if not self.mirrors[mirror].is_blamed:
            self.mirrors[mirror].blame(reason)
            self._notices.append(Blame(mirror, reason))
            self._cancel_all(mirror, reason)

    # -- what to know ---------------------------------------------------------------

    def owner(self, index: int) -> int:
        """The mirror that *index* is a connection to."""
        return 0 if self.lanes is not None else index

    def usable(self) -> list[int]:
        """The mirrors that are not out."""
        return [m.index for m in self._owners() if m.out is None]

    def responsive(self) -> list[int]:
        """Those that are usable and have answered what they were asked last.

        Nobody has to wait for the word of the others, who may never say anything.
        """
        return [m.index for m in self._owners() if m.out is None and self._is_responsive(m)]

    def witnesses(self) -> list[int]:
        """Who may be asked for what others sent: the responsive, if they are enough to compare."""
        some = self.responsive()
        return some if len(some) > 1 else self.usable()

    def _is_open(self, contest: Contest, mirror: int, responsive: list[int]) -> bool:
        """Whether *mirror* may try what is contested. Wrong bytes prove that of themselves; what
        somebody else is to say waits for him, if only one mirror is responsive.
        """
        is_proved = contest.digests or len(responsive) > 1
        return contest.is_open_to(self.owner(mirror), responsive if is_proved else self.usable())

    def _is_responsive(self, standing: MirrorStanding) -> bool:
        run = self._busy.get(standing.index)
        patience = LATE_ANSWER_SECONDS + 2 * (standing.latency or 0.0)
        is_late = run is not None and self._now - run.last_byte_at > patience
        return not (is_late or standing.is_silent)

    def _owners(self) -> list[MirrorStanding]:
        return self.mirrors[:1] if self.lanes is not None else self.mirrors

    @property
    def is_complete(self) -> bool:
        """Every piece is held and nothing is left to end."""
        return self.table.is_complete and not self.runs

    @property
    def rate(self) -> float:
        """Bytes per second that the busy mirrors bring together."""
        return sum(self._rate_of(run) for run in self.runs.values())

    def _rate_of(self, run: Run) -> float:
        """What a run brings now. Its mirror may be known as fast and be silent all the same."""
        if run.is_ahead:
            return 0.0
        standing = self.mirrors[run.mirror]
        late = LATE_ANSWER_SECONDS / 2 + 2 * (standing.latency or 0.0)
        if not run.is_answered and self._now - run.started_at > late:
            return 0.0
        return standing.rate or 0.0

    def seconds_left(self) -> float | None:
        """Predicted time to the end of the fetch, None while nobody can tell."""
        rate = self.rate
        return (self.grid.size - self.table.held_bytes) / rate if rate > 0 else None

    def writers(self, piece: int) -> list[int]:
        """The runs that may still write into *piece*."""
        return [r.id for r in self.runs.values() if r.next <= piece < r.end]

    def _has_measure(self) -> bool:
        return any(m.rate is not None and m.out is None for m in self.mirrors)

    def _guess(self) -> float:
        """The rate to expect of a mirror that was not measured yet."""
        rates = [m.rate for m in self.mirrors if m.rate is not None and m.out is None]
        return max(sum(rates) / len(rates), UNKNOWN_RATE) if rates else UNKNOWN_RATE

    def _seconds_to(self, run: Run, end: int, now: float) -> float:
        standing = self.mirrors[run.mirror]
        seconds = run.seconds_to(end, self.grid, standing, self._guess(), now)
        before = self._busy.get(run.mirror)
        if not run.is_ahead or before is None:
            return seconds
        rate = standing.rate if standing.rate is not None else self._guess()
        own = run.bytes_to(end, self.grid) / max(rate, 1.0)
        return max(seconds, self._seconds_to(before, before.end, now) + own)

    def _seconds_for(self, mirror: int, first: int, count: int) -> float:
        """Predicted time in which an idle *mirror* brings *count* pieces from *first* on."""
        standing = self.mirrors[mirror]
        rate = standing.rate if standing.rate is not None else self._guess()
        if standing.is_rangeless:
            count += first  # all that is before them comes first
        return (standing.latency or 0.0) + count * self.grid.piece_length / max(rate, 1.0)

    def _current_end(self, run: Run) -> int:
        """The end of the piece that the run is in; what lies behind it can be taken."""
        current = max(run.next, run.position // self.grid.piece_length) + 1
        return min(max(current, run.kept_end), run.end)

    def _is_last_resort(self, mirror: int) -> bool:
        """Whether it sends whole files only while somebody else can send parts."""
        return self.mirrors[mirror].is_rangeless and any(
            m.out is None and not m.is_rangeless and self._is_responsive(m) for m in self._owners()
        )

    # -- what follows from it -------------------------------------------------------

    def _start(self, mirror: int, first: int, end: int, now: float) -> Run:
        run = Run(
            id=self._next_run,
            mirror=mirror,
            first=first,
            end=end,
            next=first,
            position=first * self.grid.piece_length,
            started_at=now,
            seen_at=now,
            last_byte_at=now,
        )
        self._next_run += 1
        self.runs[run.id] = run
        run.is_ahead = mirror in self._busy
        (self._ahead if run.is_ahead else self._busy)[mirror] = run
        self.mirrors[mirror].is_tried = True
        return run

    def _trim(self, run: Run, end: int) -> Trim:
        run.is_trimming, run.trim_end, run.is_cut = True, end, True
        return Trim(run.id, end)

    def _cancel(self, run_id: int, reason: str) -> None:
        run = self.runs.get(run_id)
        if run is not None and not run.is_cancelled:
            run.is_cancelled = True
            self._notices.append(Cancel(run_id, reason))

    def _cancel_all(self, mirror: int, reason: str) -> None:
        for runs in (self._busy, self._ahead):
            if mirror in runs:
                self._cancel(runs[mirror].id, reason)

    def _fail(self, index: int, failure: Failure, now: float) -> None:
        """A request failed. Of several connections to one mirror it may be one too many."""
        standing = self.mirrors[self.owner(index)]
        if self.lanes is not None and any(other != index for other in self._busy):
            self.lanes.refused(index)
            standing.last_error = failure.message
            standing.rests_until = max(standing.rests_until, now + FIRST_REST_SECONDS)
        else:
            standing.fail(failure, now)
            if standing.out is not None:
                self._cancel_all(standing.index, standing.out)

    def _reject(self, run: Run, piece: int, digest: bytes) -> None:
        """Count wrong bytes against the mirror and let others look at its next pieces."""
        owner = self.owner(run.mirror)
        contest = self.table.contest(piece)
        contest.tries[owner] = contest.tries.get(owner, 0) + 1
        contest.digests[owner] = digest
        self._disputed.add(piece)
        standing = self.mirrors[owner]
        # What was on its way when the run was cut short is of the same answer: one offence.
        if not run.is_cancelled:
            standing.reject(is_alone=self.usable() == [owner])
        # Cut short: idle, it is the one to try the contested pieces of others.
        self._cancel_all(run.mirror, standing.last_error or "wrong bytes")
        if standing.out is not None and not standing.is_blamed:
            standing.is_blamed = True
            self._notices.append(Blame(owner, standing.out))

    def _give_back(self, piece: int) -> None:
        self._doubled.pop(piece, None)
        self.table.states[piece] = states.ASKED
        self.table.release(piece, piece + 1)

    def _hold(self, piece: int, mirror: int) -> None:
        mirror = self.owner(mirror)
        self.table.hold(piece)
        self._wants.pop(piece, None)
        self._disputed.discard(piece)
        self.mirrors[mirror].delivered()
        contest = self.table.contests.pop(piece, None)
        for liar in contest.digests if contest is not None else ():
            if liar != mirror:
                self.blame(liar, f"sent wrong bytes for piece {piece}, which another mirror had")

    def _drop_range(self, run: Run, first: int, end: int) -> None:
        """The run does not bring *first* to *end* - 1; what nobody else writes is free."""
        start = first
        for piece in range(first, end) if self._doubled else ():
            writers = self._doubled.get(piece)
            if writers is None:
                continue
            if start < piece:
                self.table.release(start, piece)
            start = piece + 1
            writers.discard(run.id)
            if self.table.states[piece] == states.CHECKING:
                self._recheck_if_alone(piece)
            elif not writers:
                self._give_back(piece)
        if start < end:
            self.table.release(start, end)

    def _recheck_if_alone(self, piece: int) -> None:
        if not self._doubled[piece]:
            self._notices.append(Recheck(piece))
