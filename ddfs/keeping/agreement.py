"""How hosts that share a storage agree that a file may go. Pure.

Whoever wants to delete a file (the *proposer*) writes an *intent*. Every host that is known,
the proposer too, looks who uses the file on it, and votes. A host that has voted for the
deletion keeps its promise: it uses the file no more before the intent is cancelled or over.
Wanting the file, it cancels the intent, which succeeds exactly if it is not committed yet.
The proposer commits when all have voted for it, deletes, and says that it is over.

Why no file goes that is needed: what is in use when a host looks, it votes against. What
begins later, begins with a cancelled intent, or waits until it is over and then finds that the
file is gone. A host that does not answer stops the deletion: that it is dead, only a person
can know. A host that comes new makes itself known first and looks for intents then: either
the proposer sees it before committing, and waits for its vote, or the host sees the intent,
and keeps the promise as if it had voted. So does one that was started again.

Nothing depends on anybody's clock. Times only say when to give up, which keeps the file.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ddfs.model.sharing import HostRecord, Intent


@dataclass
class Member:
    """What this host has said, and has to keep."""

    _votes: dict[str, str | None] = field(default_factory=dict)
    _promises: dict[str, Intent] = field(default_factory=dict)

    def come_back(self, intents: Iterable[Intent]) -> list[str]:
        """At its start: what an earlier life may have promised. The contents not to be used."""
        self._promises.update({intent.token: intent for intent in intents})
        return list({intent.content_id for intent in self._promises.values()})

    def unanswered(self, intents: Iterable[Intent]) -> list[Intent]:
        """Those to vote on."""
        return [i for i in intents if i.token not in self._votes and not i.is_committed]

    def unpromised(self, intents: Iterable[Intent]) -> list[Intent]:
        """Those that were committed without our vote, since an operator had forgotten us."""
        return [i for i in intents if i.is_committed and i.token not in self._promises]

    def vote(self, intent: Intent, objection: str | None) -> None:
        """An answer, before it is written down. Without *objection* the file is used no more."""
        self._votes[intent.token] = objection
        if objection is None:
            self._promises[intent.token] = intent

    def promise(self, intent: Intent) -> None:
        """Use it no more, without a vote."""
        self._promises[intent.token] = intent

    @property
    def votes(self) -> Mapping[str, str | None]:
        """All answers to what is not over."""
        return dict(self._votes)

    def promised(self, content_id: str) -> list[Intent]:
        """The intents that have to be cancelled, or over, before a content may be used."""
        return [i for i in self._promises.values() if i.content_id == content_id]

    def unseen(self, intents: Iterable[Intent]) -> list[str]:
        """The tokens that a listing shows no more: perhaps they are over."""
        there = {intent.token for intent in intents}
        return [t for t in {**self._votes, **self._promises} if t not in there]

    def end(self, tokens: Collection[str]) -> list[str]:
        """They are over; the contents that may be used again."""
        ended = [self._promises.pop(token) for token in tokens if token in self._promises]
        for token in tokens:
            self._votes.pop(token, None)
        contents = dict.fromkeys(intent.content_id for intent in ended)
        return [content_id for content_id in contents if not self.promised(content_id)]


@dataclass(frozen=True, slots=True)
class Tally:
    """How a vote stands: why the file stays, and the hosts that have not answered yet."""

    objection: str | None
    missing: Sequence[HostRecord]

    @property
    def is_agreed(self) -> bool:
        """Whether it may be committed, if nobody has come since the records were listed."""
        return self.objection is None and not self.missing


def tally(intent: Intent, records: Sequence[HostRecord]) -> Tally:
    """How the vote on *intent*, which is the proposer's own, stands by all records there are."""
    missing = []
    for each in records:
        if each.record is None:
            return Tally(unreadable(each), ())
        if intent.token not in each.record.votes:
            missing.append(each)
            continue
        objection = each.record.votes[intent.token]
        if objection is not None:
            mine = each.host == intent.host
            return Tally(objection if mine else f"on host {each.name}: {objection}", ())
    if not any(each.host == intent.host for each in records):
        return Tally("this host's own record of uses is gone", ())
    return Tally(None, missing)


@dataclass
class Watch:
    """For how long hosts have shown no sign of life, by the watcher's own clock alone."""

    _seen: dict[str, tuple[int, float]] = field(default_factory=dict)

    def note(self, records: Iterable[HostRecord], now: float) -> None:
        """What the directory shows at *now*."""
        self._seen = {
            each.host: self._seen[each.host]
            if self._seen.get(each.host, (None, 0.0))[0] == each.stamp
            else (each.stamp, now)
            for each in records
        }

    def silent_seconds(self, host: str, now: float) -> float:
        """Since its last sign, as far as that was watched."""
        return now - self._seen.get(host, (0, now))[1]


def unreadable(each: HostRecord) -> str:
    """Why a file stays of which such a host may know something."""
    return f"perhaps used on host {each.host}, whose record of uses makes no sense; {advice(each)}"


def silent(each: HostRecord, seconds: float) -> str:
    """The same, for one that does not answer."""
    return f"perhaps used on host {each.name}, silent for {seconds:.0f} s; {advice(each)}"


def advice(each: HostRecord) -> str:
    """What to do about a host that does not answer."""
    return f"start ddfs there, or if it is gone for good: ddfs forget {each.host}"
