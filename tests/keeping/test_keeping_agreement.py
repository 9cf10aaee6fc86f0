"""Hosts agree before one of them deletes: random lives of several, with crashes between any two
steps, on a real directory. None of them has a clock.
"""

import os
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from ddfs.keeping.agreement import Member, Watch, tally
from ddfs.model.sharing import HostRecord, Intent, UsesRecord
from ddfs.primary.uses import UsesDirectory

CONTENTS = ["sha-256:aa", "sha-256:bb"]
HOSTS = ["a", "b", "c"]


@dataclass
class Daemon:
    """What dies with a process."""

    member: Member = field(default_factory=Member)
    # From register() on it is known; from come_back() on it lets anybody use anything.
    is_up: bool = False
    # Between a look and the vote: what was used then, and how often each was used so far.
    looked: tuple[list[Intent], set[str], dict[str, int]] | None = None
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(CONTENTS, 0))
    asked: list[Intent] = field(default_factory=list)
    agreed: list[Intent] = field(default_factory=list)
    committed: list[Intent] = field(default_factory=list)


class World:
    def __init__(self) -> None:
        fast = "/dev/shm" if os.path.isdir("/dev/shm") else None
        self.directory = Path(tempfile.mkdtemp(dir=fast))
        self.files = {name: UsesDirectory(self.directory, name) for name in HOSTS}
        self.stored = set(CONTENTS)
        # What domains refer to; they outlive daemons.
        self.users: dict[str, set[str]] = {name: set() for name in HOSTS}
        # What a daemon that died had promised: its names in the pool lead nowhere.
        self.left: dict[str, set[str]] = {name: set() for name in HOSTS}
        self.daemons: dict[str, Daemon] = {}
        self.known: set[str] = set()
        # Two live from the beginning; the third may come.
        for name in HOSTS[:2]:
            self.register(name)
            self.come_back(name)

    def close(self) -> None:
        shutil.rmtree(self.directory)

    # -- the life of a host --

    def register(self, name: str, _what: str = "") -> None:
        if name not in self.daemons:
            self.files[name].register()
            self.files[name].write_record(UsesRecord(name, name))
            self.daemons[name] = Daemon()
            self.known.add(name)

    def come_back(self, name: str, _what: str = "") -> None:
        daemon = self.daemons.get(name)
        if daemon and not daemon.is_up:
            intents = self.files[name].intents()
            daemon.member.come_back(intents)
            for intent in intents:
                if intent.host == name:
                    self.files[name].finish(intent)
            daemon.is_up = True

    def crash(self, name: str, _what: str = "") -> None:
        daemon = self.daemons.pop(name, None)
        if daemon:
            promised = {c for c in CONTENTS if daemon.member.promised(c)}
            self.left[name] = promised if daemon.is_up else self.left[name] | promised

    def restart(self, name: str, _what: str) -> None:
        self.crash(name)
        self.register(name)
        self.come_back(name)

    def forget(self, name: str, _what: str) -> None:
        """An operator knows that a host burnt down."""
        by = next(iter(self.daemons), name)
        if name not in self.daemons and name != by:
            self.files[by].forget(name)
            self.users[name].clear()
            self.known.discard(name)

    # -- uses --

    def use(self, name: str, what: str) -> None:
        daemon = self.daemons.get(name)
        if daemon is None or not daemon.is_up:
            return
        daemon.counts[what] += 1
        promised = daemon.member.promised(what)
        late = self.files[name].cancel(promised)
        daemon.member.end({i.token for i in promised} - {i.token for i in late})
        if late:
            return
        if what not in self.stored:
            # As SharedDirectoryStorage.claim does before a fetch.
            there = [i for i in self.files[name].intents() if i.content_id == what]
            if self.files[name].cancel(there):
                return
            self.stored.add(what)
        self.users[name].add(what)

    def use_without_a_daemon(self, name: str, what: str) -> None:
        is_linked = what in self.stored and what not in self.left[name]
        if name in self.known and name not in self.daemons and is_linked:
            self.users[name].add(what)

    def stop(self, name: str, what: str) -> None:
        self.users[name].discard(what)

    # -- votes --

    def look(self, name: str, _what: str = "") -> None:
        daemon = self.daemons.get(name)
        if daemon and daemon.is_up:
            new = daemon.member.unanswered(self.files[name].intents())
            daemon.looked = new, set(self.users[name]), dict(daemon.counts)

    def vote(self, name: str, _what: str = "") -> None:
        daemon = self.daemons.get(name)
        if daemon is None or daemon.looked is None:
            return
        intents, used, counts = daemon.looked
        daemon.looked = None
        for intent in intents:
            what = intent.content_id
            is_used = what in used or counts[what] != daemon.counts[what]
            daemon.member.vote(intent, "used" if is_used else None)
        self.files[name].write_record(UsesRecord(name, name, daemon.member.votes))

    def settle(self, name: str, _what: str = "") -> None:
        daemon = self.daemons.get(name)
        if daemon and daemon.is_up:
            unseen = daemon.member.unseen(self.files[name].intents())
            daemon.member.end([t for t in unseen if self.files[name].is_over(t)])

    # -- deleting --

    def propose(self, name: str, what: str) -> None:
        daemon = self.daemons.get(name)
        if daemon and daemon.is_up and what in self.stored:
            daemon.asked.append(self.files[name].propose(what, what, 0.0))

    def count(self, name: str, _what: str = "") -> None:
        daemon = self.daemons.get(name)
        if daemon:
            records = self.files[name].records()
            daemon.agreed += [i for i in daemon.asked if tally(i, records).is_agreed]

    def those_with(self, what: str) -> list[str]:
        return sorted(n for n, daemon in self.daemons.items() if getattr(daemon, what))

    def commit(self, _name: str, _what: str) -> None:
        if not (able := self.those_with("agreed")):
            return
        name = able[0]
        daemon = self.daemons[name]
        intent = daemon.agreed.pop()
        if intent not in daemon.committed and self.files[name].commit(intent):
            daemon.committed.append(intent)

    def delete(self, _name: str, what: str) -> None:
        if not (able := self.those_with("committed")):
            return
        name = able[0]
        daemon = self.daemons[name]
        intent = daemon.committed.pop()
        # Or not, when it went wrong.
        if what == CONTENTS[0] or intent.content_id == what:
            for user, used in self.users.items():
                assert intent.content_id not in used, f"{user} needs what {name} deletes"
            self.stored.discard(intent.content_id)
        self.files[name].finish(intent)
        daemon.asked = [i for i in daemon.asked if i.token != intent.token]
        daemon.agreed = [i for i in daemon.agreed if i.token != intent.token]

    def whole_round(self, name: str, what: str) -> None:
        """So that something comes of it often enough."""
        self.propose(name, what)
        for each in HOSTS:
            self.look(each)
            self.vote(each)
        self.count(name)


# Nearly all rounds end before anything is committed, unless some things are rarer than others.
OPERATIONS = [
    *["whole_round", "commit", "delete"] * 4,
    *["use", "stop", "settle", "crash", "restart"] * 2,
    "register", "come_back",
    "look", "vote", "propose", "count", "forget", "use_without_a_daemon",
]  # fmt: skip
operation = st.tuples(
    st.sampled_from(OPERATIONS), st.sampled_from(HOSTS), st.sampled_from(CONTENTS)
)


@settings(max_examples=800, deadline=None)
@given(st.lists(operation, min_size=10, max_size=60))
def test_no_life_of_three_hosts_loses_what_one_of_them_needs(
    operations: list[tuple[str, str, str]],
) -> None:
    world = World()
    try:
        for what, name, content in operations:
            getattr(world, what)(name, content)
    finally:
        world.close()


def record(host: str, votes: dict[str, str | None] | None, stamp: int = 1) -> HostRecord:
    known = None if votes is None else UsesRecord(host, f"{host}.example", votes)
    return HostRecord(host, known, stamp)


INTENT = Intent("0" * 32, "a", "sha-256:aa", "x@aa.img", 60.0)


def test_all_known_hosts_have_to_agree() -> None:
    yes = {INTENT.token: None}
    assert tally(INTENT, [record("a", yes), record("b", yes)]).is_agreed
    waits = tally(INTENT, [record("a", yes), record("b", {})])
    assert [each.host for each in waits.missing] == ["b"]
    assert not waits.is_agreed
    no = tally(INTENT, [record("a", yes), record("b", {INTENT.token: "used by domain vm"})])
    assert no.objection == "on host b.example: used by domain vm"
    broken = tally(INTENT, [record("a", yes), record("b", None)])
    assert "start ddfs there, or if it is gone for good: ddfs forget b" in str(broken.objection)
    # Its own record may have been taken away too.
    assert not tally(INTENT, [record("b", yes)]).is_agreed


def test_silence_is_measured_by_the_watchers_own_clock() -> None:
    watch = Watch()
    # The other one's clock stands, or runs backwards: only that it moves is a sign.
    for now, stamp in ((0.0, 5), (100.0, 4), (200.0, 4), (250.0, 4)):
        watch.note([record("b", {}, stamp)], now)
    assert watch.silent_seconds("b", 260.0) == 160.0
    assert watch.silent_seconds("c", 260.0) == 0.0
    watch.note([], 300.0)
    assert watch.silent_seconds("b", 300.0) == 0.0
