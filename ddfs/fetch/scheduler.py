"""Who fetches which range next. Pure: events in, actions out, time an argument, no I/O.

The shell (:mod:`transfer`) reports what happens, then calls :meth:`Scheduler.decide` and
carries out its actions until there are none.

Work is given in *runs* from the front of the file, each of about four seconds of its
mirror's rate. When nothing is free, an idle mirror takes the tail of the run that would
last longest, cut by speed on a piece boundary; when only single pieces are left it fetches
the latest one a second time. A cut is asked for (``Trim``) and answered (``trimmed``),
because the run's writer may be further than what was last reported; no byte range ever has
two writers unless the scheduler said so, and such a piece is read back from the file once
all but one have ended (``Recheck``).

Cost: an event touches the runs in progress (at most ``MAX_ACTIVE``) and O(log n) of the
piece sets.
"""

from __future__ import annotations

import enum
import itertools
from collections.abc import Iterable
from typing import Final

from ddfs.fetch import pieces as states
from ddfs.fetch.mirrors import Failure, FailureKind, MirrorStanding
from ddfs.fetch.pieces import PieceTable
from ddfs.fetch.runs import Action, Ask, Blame, Cancel, Extend, Recheck, Run, Trim
from ddfs.fetch.widening import Widening
from ddfs.model import Grid, MiB

# A run lasts about this long: short enough that the file grows from the front, long enough
# that the gap between two requests is small beside it.
RUN_SECONDS: Final = 4.0
MIN_RUN_BYTES: Final = 8 * MiB
MAX_RUN_BYTES: Final = 64 * MiB
# The gap between two requests is one latency: at most a tenth of a run.
RUN_LATENCIES: Final = 10.0

# A run that would last longer than this is cut to RUN_SECONDS: others go on in front.
LONG_RUN_SECONDS: Final = 2 * RUN_SECONDS

# Nobody else has the first byte so late; its pieces go to others, one excepted.
LATE_ANSWER_SECONDS: Final = 1.0

# Hard limits on silence, in seconds. The first where others deliver, the second where
# nobody does; NAT tables and overloaded disks stay below them.
SILENCE_SECONDS: Final = 10.0
SILENCE_ALONE_SECONDS: Final = 30.0

# The whole fetch gives up when it came no further than this in this time.
GIVE_UP_SECONDS: Final = 60.0
GIVE_UP_BYTES: Final = 64 * 1024

# A duplicate or theft has to end sooner by this much, or the gain is noise.
MIN_GAIN_SECONDS: Final = 0.03
DUPLICATE_GAIN: Final = 0.9

# A reader's piece is moved elsewhere when it comes there in less than half the time and
# this much sooner; moving cuts connections.
WANT_GAIN_SECONDS: Final = 0.3
# Contested pieces looked at for one mirror; those in front come first.
CONTESTED_AT_ONCE: Final = 64
# Wanted pieces looked at per decision; the oldest come first.
WANTS_AT_ONCE: Final = 48


class Verdict(enum.Enum):
    """Why it cannot go on."""

    EXHAUSTED = "every mirror failed"
    SILENT = "no mirror delivers"
    SUSPECT = "mirrors agree on bytes that the document denies"


class Scheduler:
    """The state of one fetch. *mirrors* is their number; lower indexes are tried first."""

    def __init__(self, grid: Grid, mirrors: int) -> None:
        self.grid = grid
        self.table = PieceTable(grid)
        self.mirrors = [MirrorStanding(index) for index in range(mirrors)]
        self.runs: dict[int, Run] = {}
        self.verdict: Verdict | None = None
        self.suspect_piece: int | None = None
        self._busy: dict[int, Run] = {}
        self._doubled: dict[int, set[int]] = {}
        self._wants: dict[int, bool] = {}
        self._disputed: set[int] = set()
        self._notices: list[Action] = []
        self._next_run = 0
        self._received = 0
        self._progress_at = 0.0
        self._progress_bytes = 0
        self._widening = Widening(grid.size, mirrors)

    # -- what happens ---------------------------------------------------------------

    def begin(self, pieces: Iterable[int], now: float) -> None:
        """Start the clock. *pieces* are in the file and right, from an earlier run."""
        self._progress_at = now
        for piece in pieces:
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
            standing.observe(received, now - run.seen_at)
            run.seen_at = now
        if received > 0:
            run.position, run.last_byte_at = position, now
            self._received += received
            if self._received - self._progress_bytes >= GIVE_UP_BYTES:
                self._progress_bytes, self._progress_at = self._received, now

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
        del self._busy[run.mirror]
        standing = self.mirrors[run.mirror]
        if failure is not None:
            standing.fail(failure, now)
        elif run.is_answered and not run.is_cancelled:
            standing.observe(0, now - run.seen_at)
        self._drop_range(run, run.next, run.end)

    def trimmed(self, run_id: int, end: int) -> None:
        """The answer to ``Trim``: the run ends before piece *end*, and others may go on there."""
        run = self.runs[run_id]
        run.is_trimming = False
        # Its writer was further than it had said: asking for less again would be in vain.
        run.kept_end = end
        old, run.end = run.end, min(end, run.end)
        self._drop_range(run, max(run.end, run.next), old)

    def found_rangeless(self, run_id: int) -> None:
        """The mirror of this run sends the whole file whatever it is asked for."""
        standing = self.mirrors[self.runs[run_id].mirror]
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
            if mirror in self._busy:
                self._cancel(self._busy[mirror].id, reason)

    # -- what to know ---------------------------------------------------------------

    @property
    def is_complete(self) -> bool:
        """Every piece is held and nothing is left to end."""
        return self.table.is_complete and not self.runs

    @property
    def rate(self) -> float:
        """Bytes per second that the busy mirrors bring together."""
        return sum(self.mirrors[m].rate or 0.0 for m in self._busy)

    def seconds_left(self) -> float | None:
        """Predicted time to the end of the fetch, None while nobody can tell."""
        rate = self.rate
        return (self.grid.size - self.table.held_bytes) / rate if rate > 0 else None

    def writers(self, piece: int) -> list[int]:
        """The runs that may still write into *piece*."""
        return [r.id for r in self.runs.values() if r.next <= piece < r.end]

    # -- decisions ------------------------------------------------------------------

    def decide(self, now: float) -> list[Action]:
        """What to do now. Call again after carrying it out, until it says nothing."""
        self._expire(now)
        self._widen(now)
        actions: list[Action] = self._notices
        self._notices = []
        if self.table.is_complete:
            for run in self.runs.values():
                self._cancel(run.id, "everything is here")
        elif self.verdict is None:
            self._handle_rangeless(actions)
            self._shorten(now, actions)
            self._serve_wants(now, actions)
            work = (self._employ(mirror, now) for mirror in self._idle(now))
            actions.extend(action for action in work if action is not None)
            self._judge(now)
        actions.extend(self._notices)
        self._notices = []
        return actions

    def _idle(self, now: float) -> list[int]:
        """Usable mirrors without a run, the fastest first, untried ones in their order."""
        tried = sum(m.is_tried for m in self.mirrors)
        room = min(self._widening.width - tried, self._widening.limit - len(self._busy))
        idle: list[MirrorStanding] = []
        for standing in self.mirrors:
            if standing.index in self._busy or not standing.is_usable(now):
                continue
            if not standing.is_tried:
                if room <= 0:
                    continue
                room -= 1
            idle.append(standing)
        idle.sort(key=lambda m: (-(m.rate or 0.0), m.index))
        return [m.index for m in idle]

    def _widen(self, now: float) -> None:
        untried = sum(not m.is_tried and m.out is None for m in self.mirrors)
        failed = sum(m.is_tried and not m.is_usable(now) for m in self.mirrors)
        silent = sum(
            not r.is_answered and now - r.started_at > LATE_ANSWER_SECONDS
            for r in self.runs.values()
        )
        if untried and not self.table.is_complete:
            measured = all(self.mirrors[m].is_trusted for m in self._busy)
            left = self.seconds_left()
            self._widening.consider(
                now, rate=self.rate, measured=measured, seconds_left=left, lost=failed + silent
            )

    def _usable_ever(self) -> list[int]:
        return [m.index for m in self.mirrors if m.out is None]

    def _guess(self) -> float | None:
        """The rate to expect of a mirror that was not measured yet."""
        rates = [m.rate for m in self.mirrors if m.rate is not None and m.out is None]
        return sum(rates) / len(rates) if rates else None

    def _employ(self, mirror: int, now: float) -> Action | None:
        if self._is_last_resort(mirror):
            return None
        if (first := self._contested_for(mirror)) is not None:
            return self._start_contested(mirror, first, now)
        if self._is_hopeless(mirror, now):
            return None
        if (interval := self.table.free.first()) is not None:
            first, end = interval
            return self._start_free(mirror, first, end, now)
        return self._steal(mirror, now) or self._duplicate(mirror, now)

    def _is_hopeless(self, mirror: int, now: float) -> bool:
        """Whether one piece would take it longer than the others need for all the rest."""
        standing = self.mirrors[mirror]
        others = sum(self.mirrors[m].rate or 0.0 for m in self._busy if m != mirror)
        if standing.rate is None or others <= 0:
            return False
        mine = (standing.latency or 0.0) + self.grid.piece_length / max(standing.rate, 1.0)
        if mine <= (self.grid.size - self.table.held_bytes) / others:
            standing.slow_since = None
            return False
        if standing.is_worth_a_probe(now):
            standing.forget_rate()
        return True

    def _is_last_resort(self, mirror: int) -> bool:
        """Whether it sends whole files only while somebody else can send parts."""
        return self.mirrors[mirror].is_rangeless and any(
            m.out is None and not m.is_rangeless for m in self.mirrors
        )

    def _handle_rangeless(self, actions: list[Action]) -> None:
        """Let a mirror that sends all or nothing send all, if nobody else is there."""
        for run in self.runs.values():
            if run.is_cancelled or not self.mirrors[run.mirror].is_rangeless:
                continue
            if self._is_last_resort(run.mirror):
                if run.first > 0:
                    run.cancelled_for = "ignores ranges"
                    self._cancel(run.id, run.cancelled_for)
            elif (behind := self.table.free.at(run.end)) is not None and not run.is_trimming:
                self.table.take_free(*behind)
                run.end = behind[1]
                actions.append(Extend(run.id, run.end))

    # -- giving work ----------------------------------------------------------------

    def _run_bytes(self, mirror: int) -> float:
        standing = self.mirrors[mirror]
        left = self.table.free_bytes
        if standing.rate is None and standing.was_slow:
            return 0
        if standing.rate is None:
            share = left / (2 * max(1, min(self._widening.width, len(self._usable_ever()))))
            return min(max(share, MIN_RUN_BYTES), MAX_RUN_BYTES)
        latency = RUN_LATENCIES * (standing.latency or 0.0)
        wanted = min(max(standing.rate * max(RUN_SECONDS, latency), MIN_RUN_BYTES), MAX_RUN_BYTES)
        # Towards the end half of its fair share, so that all end together and in order.
        others = sum(self.mirrors[m].rate or 0.0 for m in self._busy if m != mirror)
        fair = 0.5 * left * standing.rate / (standing.rate + others) if others else left
        return min(wanted, max(fair, MIN_RUN_BYTES, standing.rate * latency))

    def _run_end(self, mirror: int, first: int, end: int) -> int:
        if self.mirrors[mirror].is_rangeless:
            return end
        count = max(1, round(self._run_bytes(mirror) / self.grid.piece_length))
        return min(end, first + count)

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
        self._busy[mirror] = run
        self.mirrors[mirror].is_tried = True
        return run

    def _start_free(self, mirror: int, first: int, end: int, now: float) -> Ask:
        end = self._run_end(mirror, first, end)
        self.table.take_free(first, end)
        run = self._start(mirror, first, end, now)
        return Ask(run.id, mirror, first, end)

    def _contested_for(self, mirror: int) -> int | None:
        usable = self._usable_ever()
        contested = (p for interval in self.table.contested for p in range(*interval))
        return next(
            (
                piece
                for piece in itertools.islice(contested, CONTESTED_AT_ONCE)
                if self.table.contests[piece].is_open_to(mirror, usable)
            ),
            None,
        )

    def _start_contested(self, mirror: int, first: int, now: float) -> Ask:
        usable = self._usable_ever()
        limit, end = self._run_end(mirror, first, self.grid.count), first + 1
        while (
            end < limit
            and self.table.states[end] == states.CONTESTED
            and self.table.contests[end].is_open_to(mirror, usable)
        ):
            end += 1
        self.table.take(first, end)
        run = self._start(mirror, first, end, now)
        return Ask(run.id, mirror, first, end)

    def _seconds_to(self, run: Run, end: int, now: float) -> float:
        return run.seconds_to(end, self.grid, self.mirrors[run.mirror], self._guess(), now)

    def _seconds_for(self, mirror: int, count: int) -> float:
        """Predicted time in which an idle *mirror* brings *count* pieces."""
        standing = self.mirrors[mirror]
        rate = standing.rate if standing.rate is not None else self._guess()
        if rate is None:
            return float("inf")
        return (standing.latency or 0.0) + count * self.grid.piece_length / max(rate, 1.0)

    def _current_end(self, run: Run) -> int:
        """The end of the piece that the run is in; what lies behind it can be taken."""
        current = max(run.next, run.position // self.grid.piece_length) + 1
        return min(max(current, run.kept_end), run.end)

    def _steal(self, mirror: int, now: float) -> Action | None:
        best: tuple[float, Run] | None = None
        for run in self.runs.values():
            if run.is_trimming or run.is_cancelled or self._current_end(run) >= run.end:
                continue
            left = self._seconds_to(run, run.end, now)
            if best is None or left > best[0]:
                best = (left, run)
        if best is None:
            return None
        left, run = best
        rest = run.end - self._current_end(run)
        mine = self.mirrors[mirror].rate or self._guess() or 1.0
        theirs = self.mirrors[run.mirror].rate or (mine if run.is_answered else 0.0)
        take = max(1, min(rest, round(rest * mine / (mine + theirs))))
        if self._seconds_for(mirror, take) + MIN_GAIN_SECONDS >= left:
            return None
        return self._trim(run, run.end - take)

    def _trim(self, run: Run, end: int) -> Trim:
        run.is_trimming = True
        return Trim(run.id, end)

    def _duplicate(self, mirror: int, now: float) -> Action | None:
        best: tuple[float, int] | None = None
        usable = self._usable_ever()
        for run in self.runs.values():
            piece = run.next
            if run.is_cancelled or piece >= run.end or not self._may_double(piece, run):
                continue
            if piece in self.table.contests and not self.table.contests[piece].is_open_to(
                mirror, usable
            ):
                continue
            left = self._seconds_to(run, piece + 1, now)
            if best is None or left > best[0]:
                best = (left, piece)
        if best is None or self._seconds_for(mirror, 1) + MIN_GAIN_SECONDS >= (
            DUPLICATE_GAIN * best[0]
        ):
            return None
        return self._start_duplicate(mirror, best[1], now)

    def _may_double(self, piece: int, run: Run) -> bool:
        return (
            piece not in self._doubled
            and self.table.states[piece] == states.ASKED
            and run.mirror in self._busy
        )

    def _start_duplicate(self, mirror: int, piece: int, now: float) -> Ask:
        writers = set(self.writers(piece))
        run = self._start(mirror, piece, piece + 1, now)
        run.is_duplicate = True
        self._doubled[piece] = writers | {run.id}
        return Ask(run.id, mirror, piece, piece + 1)

    # -- readers --------------------------------------------------------------------

    def _serve_wants(self, now: float, actions: list[Action]) -> None:
        if not self._wants:
            return
        for piece in [p for p in self._wants if self.table.states[p] == states.HELD]:
            del self._wants[piece]
        for piece, urgent in list(self._wants.items())[:WANTS_AT_ONCE]:
            action = self._serve(piece, urgent, now)
            if action is not None:
                actions.append(action)

    def _serve(self, piece: int, urgent: bool, now: float) -> Action | None:
        state = self.table.states[piece]
        if state == states.ASKED:
            return self._hasten(piece, urgent, now)
        if state not in (states.FREE, states.CONTESTED):
            return None
        best = self._soonest(piece, urgent, now)
        if best is None:
            return None
        _, mirror = best
        if mirror in self._busy:
            return self._make_way(mirror)
        if state == states.CONTESTED:
            ask = self._start_contested(mirror, piece, now)
        else:
            interval = self.table.free.at(piece)
            if interval is None:
                raise RuntimeError(f"piece {piece} is free and not in the set of free pieces")
            ask = self._start_free(mirror, piece, interval[1], now)
        self.runs[ask.run].wanted = piece
        return ask

    def _soonest(self, piece: int, urgent: bool, now: float) -> tuple[float, int] | None:
        """Who has *piece* first if it is asked next: its predicted seconds, and the mirror."""
        contest, usable = self.table.contests.get(piece), self._usable_ever()
        best: tuple[float, int] | None = None
        candidates = self._idle(now)
        if urgent:
            candidates += [m for m in self._busy if self.mirrors[m].out is None]
        for mirror in candidates:
            if contest is not None and not contest.is_open_to(mirror, usable):
                continue
            if self._is_last_resort(mirror):
                continue
            seconds = self._seconds_for(mirror, 1)
            if (run := self._busy.get(mirror)) is not None:
                if run.is_cancelled or (run.wanted is not None and run.next <= run.wanted):
                    continue
                seconds += self._seconds_to(run, self._current_end(run), now)
                if run.end > self._current_end(run):
                    seconds += self.mirrors[mirror].latency or 0.0
            if best is None or seconds < best[0]:
                best = (seconds, mirror)
        return best

    def _make_way(self, mirror: int) -> Action | None:
        """Cut what *mirror* does so that it can go on with a wanted piece."""
        run = self._busy[mirror]
        end = self._current_end(run)
        # It serves this want next: no other one cuts it meanwhile.
        run.wanted = run.end
        if run.is_trimming or end >= run.end:
            return None
        return self._trim(run, end)

    def _hasten(self, piece: int, urgent: bool, now: float) -> Action | None:
        """A wanted piece is on its way; move it if it comes much sooner from elsewhere."""
        run = next((r for r in self.runs.values() if r.next <= piece < r.end), None)
        if run is None or run.is_trimming or run.is_cancelled or piece in self._doubled:
            return None
        best = self._soonest(piece, urgent, now)
        if best is None or best[1] == run.mirror:
            return None
        seconds = self._seconds_to(run, piece + 1, now)
        if seconds < 2 * best[0] + WANT_GAIN_SECONDS:
            return None
        if piece >= self._current_end(run):
            return self._trim(run, piece)
        if best[1] in self._busy:
            return self._make_way(best[1])
        duplicate = self._start_duplicate(best[1], piece, now)
        self.runs[duplicate.run].wanted = piece
        return duplicate

    # -- what goes wrong ------------------------------------------------------------

    def _shorten(self, now: float, actions: list[Action]) -> None:
        """Cut runs that would hold the front of the file for too long."""
        if len(self._busy) < 2 and not self._idle(now):
            return
        for run in self.runs.values():
            current = self._current_end(run)
            if run.is_trimming or run.is_cancelled or current >= run.end:
                continue
            standing = self.mirrors[run.mirror]
            if not run.is_answered:
                if now - run.started_at > LATE_ANSWER_SECONDS + 2 * (standing.latency or 0.0):
                    actions.append(self._trim(run, current))
            elif (
                standing.is_settled
                and standing.rate is not None
                and self._seconds_to(run, run.end, now) > LONG_RUN_SECONDS
            ):
                reach = run.position + standing.rate * RUN_SECONDS
                end = max(current, int(reach // self.grid.piece_length) + 1)
                if end < run.end:
                    actions.append(self._trim(run, end))

    def _expire(self, now: float) -> None:
        """Give up on runs that are silent for too long."""
        for run in self.runs.values():
            if run.is_cancelled:
                continue
            delivering = any(
                other is not run and now - other.last_byte_at < SILENCE_SECONDS / 2
                for other in self.runs.values()
                if other.is_answered
            )
            limit = SILENCE_SECONDS if delivering else SILENCE_ALONE_SECONDS
            if now - run.last_byte_at > limit:
                what = "stopped sending" if run.is_answered else "did not answer"
                reason = run.cancelled_for = f"{what} for {limit:.0f} s"
                self._cancel(run.id, reason)
                self.mirrors[run.mirror].fail(Failure(FailureKind.TRANSIENT, reason), now)

    def _judge(self, now: float) -> None:
        """Find out whether there is any way to go on."""
        if self.table.is_complete or self.verdict is not None:
            return
        usable = self._usable_ever()
        for piece in self._disputed:
            contest = self.table.contests[piece]
            tried_by_all = not any(contest.is_open_to(m, usable) for m in usable)
            untried = any(m not in contest.tries for m in usable)
            agreeing = contest.agreeing
            if agreeing >= states.MAX_AGREEING or (agreeing >= 2 and not untried):
                self.verdict, self.suspect_piece = Verdict.SUSPECT, piece
                return
            if tried_by_all and usable and not self.writers(piece):
                self.verdict = Verdict.EXHAUSTED
                return
        if not usable:
            self.verdict = Verdict.EXHAUSTED
            return
        chance = min(m.rests_until for m in self.mirrors if m.out is None)
        deadline = self._progress_at + GIVE_UP_SECONDS
        if now > deadline or (not self.runs and chance > deadline):
            self.verdict = Verdict.SILENT

    def _cancel(self, run_id: int, reason: str) -> None:
        run = self.runs.get(run_id)
        if run is not None and not run.is_cancelled:
            run.is_cancelled = True
            self._notices.append(Cancel(run_id, reason))

    def _reject(self, run: Run, piece: int, digest: bytes) -> None:
        """Count wrong bytes against the mirror and let others look at its next pieces."""
        contest = self.table.contest(piece)
        contest.tries[run.mirror] = contest.tries.get(run.mirror, 0) + 1
        contest.digests[run.mirror] = digest
        self._disputed.add(piece)
        usable = self._usable_ever()
        standing = self.mirrors[run.mirror]
        standing.reject(is_alone=usable == [run.mirror])
        # Cut short: idle, it is the one to try the contested pieces of others.
        self._cancel(run.id, standing.last_error or "wrong bytes")
        if standing.out is not None and not standing.is_blamed:
            standing.is_blamed = True
            self._notices.append(Blame(run.mirror, standing.out))

    def _give_back(self, piece: int) -> None:
        self._doubled.pop(piece, None)
        self.table.states[piece] = states.ASKED
        self.table.release(piece, piece + 1)

    def _hold(self, piece: int, mirror: int) -> None:
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
