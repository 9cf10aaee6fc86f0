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

import itertools
from collections.abc import Iterator
from typing import Final

from ddfs.fetch import pieces as states
from ddfs.fetch.mirrors import Failure, FailureKind, MirrorStanding
from ddfs.fetch.runs import Action, Ask, Extend, Run
from ddfs.fetch.sizes import RUN_SECONDS, RunSizes
from ddfs.fetch.state import LATE_ANSWER_SECONDS, Verdict

# A run that would last longer than this is cut to RUN_SECONDS: others go on in front.
LONG_RUN_SECONDS: Final = 2 * RUN_SECONDS

# While no rate is known, a run is left alone for this long.
HEDGE_SECONDS: Final = 0.5

# A run that would last this much longer than the whole fetch is cut so that it does not.
OVERTIME: Final = 1.2

# Hard limits on silence, in seconds. The first where others deliver, the second where
# nobody does; NAT tables and overloaded disks stay below them.
SILENCE_SECONDS: Final = 10.0
SILENCE_ALONE_SECONDS: Final = 30.0

# The whole fetch gives up when it came no further than this in this time.
GIVE_UP_SECONDS: Final = 60.0

# A duplicate or theft has to end sooner by this much, or the gain is noise.
MIN_GAIN_SECONDS: Final = 0.03
DUPLICATE_GAIN: Final = 0.9
# Who fetches a piece a second time may fall silent as well.
MAX_WRITERS: Final = 8

# A reader's piece is moved elsewhere when it comes there in less than half the time and
# this much sooner; moving cuts connections.
WANT_GAIN_SECONDS: Final = 0.3
# Contested pieces looked at for one mirror; those in front come first.
CONTESTED_AT_ONCE: Final = 64
# Wanted pieces looked at per decision; the oldest come first.
WANTS_AT_ONCE: Final = 48


class Scheduler(RunSizes):
    """Decides. Everything that happens is reported through :class:`state.FetchState`."""

    def decide(self, now: float) -> list[Action]:
        """What to do now. Call again after carrying it out, until it says nothing."""
        self._now = now
        self._expire(now)
        self._widen(now)
        actions: list[Action] = self._notices
        self._notices = []
        if self.table.is_complete:
            for run in self.runs.values():
                self._cancel(run.id, "everything is here")
        elif self.verdict is None:
            self._handle_rangeless(actions)
            self._close_lanes(actions)
            self._shorten(now, actions)
            self._serve_wants(now, actions)
            work = (self._employ(mirror, now) for mirror in self._idle(now))
            actions.extend(action for action in work if action is not None)
            actions.extend(self._ask_ahead(now))
            self._judge(now)
        actions.extend(self._notices)
        self._notices = []
        return actions

    def _idle(self, now: float) -> list[int]:
        """Usable mirrors without a run, the fastest first, untried ones in their order."""
        if self.lanes is not None:
            free = self.mirrors[: self.lanes.width] if self.mirrors[0].is_usable(now) else []
            return [m.index for m in free if m.index not in self._busy]
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
        if self.lanes is not None:
            if not (self.table.is_complete or self.mirrors[0].is_rangeless):
                measured = len(self._busy) >= self.lanes.width and all(
                    self.mirrors[m].is_settled for m in self._busy
                )
                left = self.seconds_left()
                self.lanes.consider(now, rate=self.rate, measured=measured, seconds_left=left)
            return
        untried = sum(not m.is_tried and m.out is None for m in self.mirrors)
        failed = sum(
            m.is_tried and (not m.is_usable(now) or m.slow_since is not None) for m in self.mirrors
        )
        silent = sum(
            not r.is_answered and now - r.started_at > LATE_ANSWER_SECONDS
            for r in self.runs.values()
        )
        if untried and not self.table.is_complete:
            if not self.runs and self._widening.width <= sum(m.is_tried for m in self.mirrors):
                self._widening.grow(1)  # those tried so far have nothing that they may do
            measured = all(self.mirrors[m].is_trusted for m in self._busy)
            left = self.seconds_left()
            self._widening.consider(
                now, rate=self.rate, measured=measured, seconds_left=left, lost=failed + silent
            )

    # -- giving work ----------------------------------------------------------------

    def _employ(self, mirror: int, now: float) -> Action | None:
        if self._is_last_resort(mirror):
            return None
        if (first := self._contested_for(mirror)) is not None:
            return self._start_contested(mirror, first, now)
        if self._is_hopeless(mirror, now):
            return None
        if (interval := self._free_for(mirror)) is not None:
            return self._start_free(mirror, *interval, now)
        return self._steal(mirror, now) or self._duplicate(mirror, now)

    def _ask_ahead(self, now: float) -> Iterator[Ask]:
        """Ask mirrors that are far away for what they will do next."""
        for mirror, run in list(self._busy.items()):
            if (interval := self._free_for(mirror)) is None:
                return
            standing = self.mirrors[mirror]
            if mirror in self._ahead or not self._works_ahead(standing):
                continue
            if run.is_cancelled or run.is_trimming or not standing.is_usable(now):
                continue
            if self._is_hopeless(mirror, now):
                continue
            lead = self._lead(standing)
            if run.is_answered and self._seconds_to(run, run.end, now) <= lead:
                yield self._start_free(mirror, *interval, now)

    def _close_lanes(self, actions: list[Action]) -> None:
        """End what runs on connections that are not used any more."""
        for run in self.runs.values() if self.lanes is not None else ():
            end = self._current_end(run)
            is_closed = self.lanes is not None and run.mirror >= self.lanes.width
            if is_closed and end < run.end and not (run.is_trimming or run.is_cancelled):
                actions.append(self._trim(run, end))

    def _is_hopeless(self, mirror: int, now: float) -> bool:
        """Whether one piece would take it longer than the others need for all the rest."""
        standing = self.mirrors[mirror]
        others = sum(self._rate_of(run) for m, run in self._busy.items() if m != mirror)
        if standing.rate is None or others <= 0:
            return False
        mine = (standing.latency or 0.0) + self.grid.piece_length / max(standing.rate, 1.0)
        if mine <= (self.grid.size - self.table.held_bytes) / others:
            standing.slow_since = None
            return False
        if standing.is_worth_a_probe(now):
            standing.forget_rate()
        return True

    def _handle_rangeless(self, actions: list[Action]) -> None:
        """Let a mirror that sends all or nothing send all, if nobody else is there."""
        for run in self.runs.values():
            if run.is_cancelled or not self.mirrors[run.mirror].is_rangeless:
                continue
            if self._is_last_resort(run.mirror):
                if run.first > 0:
                    run.cancelled_for = "ignores ranges"
                    self._cancel(run.id, run.cancelled_for)
            elif not run.is_cut and (behind := self.table.free.at(run.end)) is not None:
                self.table.take_free(*behind)
                run.end = behind[1]
                actions.append(Extend(run.id, run.end))

    def _start_free(self, mirror: int, first: int, end: int, now: float) -> Ask:
        end = self._run_end(mirror, first, end)
        self.table.take_free(first, end)
        run = self._start(mirror, first, end, now)
        return Ask(run.id, mirror, first, end)

    def _contested_for(self, mirror: int) -> int | None:
        rivals = self.responsive()
        contested = (p for interval in self.table.contested for p in range(*interval))
        return next(
            (
                piece
                for piece in itertools.islice(contested, CONTESTED_AT_ONCE)
                if self._is_open(self.table.contests[piece], mirror, rivals)
            ),
            None,
        )

    def _start_contested(self, mirror: int, first: int, now: float) -> Ask:
        rivals = self.responsive()
        limit, end = min(first + self._contested_pieces(mirror), self.grid.count), first + 1
        while (
            end < limit
            and self.table.states[end] == states.CONTESTED
            and self._is_open(self.table.contests[end], mirror, rivals)
        ):
            end += 1
        self.table.take(first, end)
        run = self._start(mirror, first, end, now)
        return Ask(run.id, mirror, first, end)

    def _steal(self, mirror: int, now: float) -> Action | None:
        best: tuple[float, Run] | None = None
        rivals = self.responsive()
        for run in self.runs.values():
            if run.is_trimming or run.is_cancelled or self._current_end(run) >= run.end:
                continue
            contest = self.table.contests.get(run.end - 1)
            if contest is not None and not self._is_open(contest, mirror, rivals):
                continue  # it would be cut off for nothing
            if not self._is_comparable(run, now):
                continue
            left = self._seconds_to(run, run.end, now)
            if best is None or left > best[0]:
                best = (left, run)
        if best is None:
            return None
        left, run = best
        rest = run.end - self._current_end(run)
        mine = self.mirrors[mirror].rate or self._guess()
        theirs = self.mirrors[run.mirror].rate or (mine if run.is_answered else 0.0)
        take = max(1, min(rest, round(rest * mine / max(mine + theirs, 1.0))))
        if self._seconds_for(mirror, run.end - take, take) + MIN_GAIN_SECONDS >= left:
            return None
        return self._trim(run, run.end - take)

    def _is_comparable(self, run: Run, now: float) -> bool:
        """Whether a run can be judged: rates are known, or it is late by any measure."""
        return self._has_measure() or now - run.last_byte_at > HEDGE_SECONDS

    def _duplicate(self, mirror: int, now: float) -> Action | None:
        """Fetch a second time what would otherwise come last, if it comes sooner so."""
        rivals, left = self.responsive(), dict[int, float]()
        for run in self.runs.values():
            piece = run.next
            if run.is_cancelled or piece >= run.end or self.table.states[piece] != states.ASKED:
                continue
            contest = self.table.contests.get(piece)
            if contest is not None and not self._is_open(contest, mirror, rivals):
                continue
            if not self._is_comparable(run, now):
                continue
            seconds = self._seconds_to(run, piece + 1, now)
            left[piece] = min(seconds, left.get(piece, seconds))
        free = [p for p in left if len(self._doubled.get(p, ())) < MAX_WRITERS]
        latest = max(free, key=left.__getitem__, default=None)
        if latest is None or self._seconds_for(mirror, latest, 1) + MIN_GAIN_SECONDS >= (
            DUPLICATE_GAIN * left[latest]
        ):
            return None
        return self._start_duplicate(mirror, latest, now)

    def _start_duplicate(self, mirror: int, piece: int, now: float) -> Ask:
        writers = set(self.writers(piece))
        run = self._start(mirror, piece, piece + 1, now)
        self._doubled.setdefault(piece, writers).add(run.id)
        return Ask(run.id, mirror, piece, piece + 1)

    # -- readers --------------------------------------------------------------------

    def _serve_wants(self, now: float, actions: list[Action]) -> None:
        for piece, urgent in list(itertools.islice(self._wants.items(), WANTS_AT_ONCE)):
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
        contest, rivals = self.table.contests.get(piece), self.responsive()
        best: tuple[float, int] | None = None
        candidates = self._idle(now)
        if urgent:
            candidates += [m for m in self._busy if self.mirrors[m].out is None]
        for mirror in candidates:
            if contest is not None and not self._is_open(contest, mirror, rivals):
                continue
            if self._is_last_resort(mirror) or mirror in self._ahead:
                continue
            seconds = self._seconds_for(mirror, piece, 1)
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
        writers = [r for r in self.runs.values() if r.next <= piece < r.end]
        if not 0 < len(writers) < MAX_WRITERS:
            return None
        run = min(writers, key=lambda r: self._seconds_to(r, piece + 1, now))
        if run.is_trimming or run.is_cancelled:
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
            standing = self.mirrors[run.mirror]
            if run.is_trimming or run.is_cancelled or current >= run.end:
                continue
            if standing.is_rangeless:
                continue  # the rest would take it all that is in front once more
            if not run.is_answered:
                if now - run.started_at > LATE_ANSWER_SECONDS + 2 * (standing.latency or 0.0):
                    actions.append(self._trim(run, current))
            elif standing.is_settled and standing.rate:
                reach = self._reach(self._seconds_to(run, run.end, now))
                if reach is None:
                    continue
                end = int((run.position + standing.rate * reach) // self.grid.piece_length)
                if max(current, end) < run.end:
                    actions.append(self._trim(run, max(current, end)))

    def _reach(self, seconds: float) -> float | None:
        """How many of the *seconds* that a run would last it should have; None for all."""
        left = self.seconds_left()
        if seconds > LONG_RUN_SECONDS:
            return RUN_SECONDS if left is None else min(RUN_SECONDS, left)
        if left is not None and seconds > OVERTIME * left + MIN_GAIN_SECONDS:
            return left
        return None

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
                self._fail(run.mirror, Failure(FailureKind.TRANSIENT, reason), now)

    def _judge(self, now: float) -> None:
        """Find out whether there is any way to go on."""
        if self.table.is_complete or self.verdict is not None:
            return
        usable, rivals = self.usable(), self.responsive()
        for piece in self._disputed:
            contest = self.table.contests[piece]
            tried_by_all = not any(self._is_open(contest, m, rivals) for m in usable)
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
        chance = min(m.rests_until for m in self._owners() if m.out is None)
        deadline = self._progress_at + GIVE_UP_SECONDS
        if now > deadline or (not self.runs and chance > deadline):
            self.verdict = Verdict.SILENT
