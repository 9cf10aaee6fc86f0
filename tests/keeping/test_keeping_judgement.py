"""What may go: the rules one by one, and thousands of random lives of a host."""

from dataclasses import dataclass, field, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from ddfs.keeping.judgement import StoredFile, Uses, choose, judge
from ddfs.primary.room import Ledger
from tests.keeping.life import Judge

NOW = 1_000_000.0


def file(name="a", **changes):
    stored = StoredFile(
        content_id=f"sha-256:{name}",
        primary="default",
        path=f"/pool/{name}@1.img",
        bytes=100,
        names=(name,),
        last_used_at=NOW - 1000,
        is_pinned=False,
    )
    return replace(stored, **changes)


def reason(stored, uses=None, **options):
    [judgement] = judge([stored], uses or Uses(), NOW, **options)
    return judgement.kept_because


def test_judgement_what_nothing_speaks_for_may_go():
    assert reason(file()) is None
    assert reason(file(last_used_at=0.0, names=())) is None


def test_judgement_each_reason_to_stay():
    assert reason(file(is_pinned=True)) == "pinned"
    assert reason(file(), Uses(of_content={"sha-256:a": ["domain vm"]})) == "used by domain vm"
    many = Uses(of_path={"/pool/a@1.img": [*"xxyzabcdef"]})
    assert reason(file(), many) == "used by x, y, z and 6 more"
    assert reason(file(), Uses(of_path={"/pool/b@1.img": ["x"]})) is None
    assert reason(file(last_used_at=NOW - 59)) == "used 59 s ago"
    assert reason(file(), unused_seconds=1001) == "used 1000 s ago"
    assert reason(file(), unused_seconds=1000) is None
    down = Uses(obstacles=["libvirtd does not answer", "pool x is not active"])
    assert reason(file(), down) == "perhaps used: libvirtd does not answer"


def test_judgement_a_clock_that_was_wrong_makes_nothing_old_or_new_for_ever():
    assert reason(file(last_used_at=NOW + 5)) == "used 0 s ago"
    assert reason(file(last_used_at=NOW + 10**6)) is None


def test_judgement_the_longest_unused_go_first_and_no_more_than_needed():
    files = [file(n, last_used_at=NOW - 1000 + i * 10) for i, n in enumerate("cab")]
    files.append(file("z", last_used_at=0.0, primary="other"))
    judgements = judge(files, Uses(of_path={"/pool/c@1.img": ["x"]}), NOW)
    assert [f.path for f in choose(judgements, "default", 1)] == ["/pool/a@1.img"]
    assert [f.names for f in choose(judgements, "default", 101)] == [("a",), ("b",)]
    assert len(choose(judgements, "default", 10**9)) == 2
    assert choose(judgements, "default", 0) == []


QUOTA = 1000
CONTENTS = "abcdefgh"
SIZES = {name: 60 + 70 * number for number, name in enumerate(CONTENTS)}

operation = st.one_of(
    st.tuples(st.just("deploy"), st.sampled_from(CONTENTS)),
    st.tuples(st.just("prefetch"), st.sampled_from(CONTENTS)),
    st.tuples(st.just("finish"), st.sampled_from(CONTENTS)),
    st.tuples(st.just("kill"), st.just("")),
    st.tuples(st.just("delete"), st.sampled_from(CONTENTS)),
    st.tuples(st.just("pin"), st.sampled_from(CONTENTS)),
    st.tuples(st.just("unpin"), st.sampled_from(CONTENTS)),
    st.tuples(st.just("libvirt"), st.sampled_from(["up", "down"])),
    st.tuples(st.just("gc"), st.just("")),
    st.tuples(st.just("wait"), st.just("")),
)


@dataclass
class Host:
    """A host by the rules."""

    ledger: Ledger = field(default_factory=Ledger)
    now: float = 0.0
    published: dict[str, float] = field(default_factory=dict)
    judge: Judge = field(default_factory=lambda: Judge(SIZES, QUOTA))
    number: int = 0
    is_libvirt_up: bool = True

    def judgements(self):
        uses = Uses(
            of_content={f"sha-256:{n}": [vm] for vm, n in self.judge.machines.items()}
            if self.is_libvirt_up
            else {},
            obstacles=() if self.is_libvirt_up else ("libvirtd does not answer",),
        )
        files = [
            file(n, bytes=SIZES[n], last_used_at=at, is_pinned=n in self.judge.pinned)
            for n, at in self.published.items()
        ]
        return judge(files, uses, self.now)

    def held(self):
        return sum(SIZES[name] for name in self.published)

    def remove(self, files):
        for gone in files:
            [name] = gone.names
            assert name not in self.judge.kept, "a version that is needed or pinned was removed"
            assert self.is_libvirt_up, "removed without knowing who needs it"
            del self.published[name]

    def fetch(self, name):
        """Whether it is here or on its way."""
        if name in self.published or name in self.ledger:
            return True
        missing = self.ledger.over_quota(name, SIZES[name], 0, self.held(), QUOTA)
        if missing:
            chosen = choose(self.judgements(), "default", missing)
            if sum(gone.bytes for gone in chosen) < missing:
                return False
            self.remove(chosen)
        assert not self.ledger.over_quota(name, SIZES[name], 0, self.held(), QUOTA)
        self.ledger.promise(name, SIZES[name], 0)
        return True

    def finish(self, name):
        if name in self.ledger:
            self.ledger.release(name)
            self.published[name] = self.now

    def step(self, what, argument):
        self.now += 1
        if what == "deploy" and self.fetch(argument):
            self.finish(argument)
            self.published[argument] = self.now
            self.number += 1
            self.judge.machines[f"vm{self.number}"] = argument
        elif what == "prefetch":
            self.fetch(argument)
        elif what == "finish":
            self.finish(argument)
        elif what == "kill":
            self.ledger = Ledger()
        elif what == "delete":
            on_it = [vm for vm, name in self.judge.machines.items() if name == argument]
            for vm in on_it[:1]:
                del self.judge.machines[vm]
        elif what == "pin":
            self.judge.pinned.add(argument)
        elif what == "unpin":
            self.judge.pinned.discard(argument)
        elif what == "libvirt":
            self.is_libvirt_up = argument == "up"
        elif what == "gc":
            self.remove(j.file for j in self.judgements() if j.kept_because is None)
        elif what == "wait":
            self.now += 3600


@settings(max_examples=2000, deadline=None)
@given(st.lists(operation, max_size=40))
def test_judgement_no_life_of_a_host_loses_what_is_needed_or_breaks_the_quota(operations):
    host = Host()
    for what, argument in operations:
        host.step(what, argument)
        held = host.held() + host.ledger.promised()
        host.judge.check(f"{what} {argument}", host.published, held)


def test_judgement_room_is_made_when_it_can_be():
    host = Host()
    for name in "hgf":  # 550 + 480 are more than the quota
        host.step("deploy", name)
    assert list(host.published) == ["h", "f"]
    host.step("delete", "h")
    host.step("wait", "")
    host.step("deploy", "g")
    assert list(host.published) == ["f", "g"]
