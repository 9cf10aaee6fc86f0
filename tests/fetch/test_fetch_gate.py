"""Who is furthest in front takes in bytes first, and nobody waits for ever."""

from __future__ import annotations

import random
import threading
import time

from ddfs.fetch.gate import Gate, places

LIMIT = 90.0


class Waiting:
    """A thread at the gate."""

    def __init__(self, gate: Gate, rank: int) -> None:
        self.rank = rank
        self.is_aborted = False
        self.entered: bool | None = None
        self.done = threading.Event()
        self._gate = gate
        before = len(gate._waiting)
        threading.Thread(target=self._run, daemon=True).start()
        deadline = time.monotonic() + LIMIT
        while len(gate._waiting) == before and not self.done.is_set():
            assert time.monotonic() < deadline
            time.sleep(0.001)

    def _run(self) -> None:
        self.entered = self._gate.enter(lambda: self.rank, lambda: self.is_aborted)
        self.done.set()


def test_the_gate_is_open_until_its_places_are_taken():
    gate = Gate(2)
    assert gate.try_enter()
    assert gate.try_enter()
    assert not gate.try_enter()
    gate.leave()
    assert gate.try_enter()


def test_cores_are_left_to_the_hash_of_the_file_where_taking_in_is_cheap():
    assert places(hashes=False, decrypts=False, cores=8) == 4
    assert places(hashes=True, decrypts=False, cores=8) == 8
    assert places(hashes=False, decrypts=True, cores=8) == 8
    assert places(hashes=False, decrypts=False, cores=1) == 1


def test_who_is_furthest_in_front_goes_first():
    gate = Gate(1)
    assert gate.try_enter()
    behind, before = Waiting(gate, 900), Waiting(gate, 300)
    assert gate.is_wanted_before(600)
    assert not gate.is_wanted_before(300)
    gate.leave()
    assert before.done.wait(LIMIT)
    assert before.entered
    assert not behind.done.is_set()
    gate.leave()
    assert behind.done.wait(LIMIT)
    gate.leave()
    assert gate.try_enter()


def test_who_becomes_urgent_while_waiting_overtakes():
    gate = Gate(1)
    assert gate.try_enter()
    front, reader = Waiting(gate, 100), Waiting(gate, 900)
    reader.rank = -1
    deadline = time.monotonic() + LIMIT
    while not gate.is_wanted_before(0):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    gate.leave()
    assert reader.done.wait(LIMIT)
    assert not front.done.is_set()


def test_an_abort_ends_the_wait_and_takes_no_place():
    gate = Gate(1)
    assert gate.try_enter()
    waiting = Waiting(gate, 5)
    waiting.is_aborted = True
    assert waiting.done.wait(LIMIT)
    assert waiting.entered is False
    gate.leave()
    assert gate.try_enter()


def test_no_place_is_lost_or_given_twice():
    gate, lock, inside, most = Gate(2), threading.Lock(), 0, 0
    dice = random.Random(4)
    ranks = [[dice.randrange(50) for _ in range(200)] for _ in range(6)]
    aborts = [[dice.random() < 0.1 for _ in range(200)] for _ in range(6)]

    def run(number: int) -> None:
        nonlocal inside, most
        for rank, abort in zip(ranks[number], aborts[number], strict=True):
            if not gate.try_enter() and not gate.enter(lambda r=rank: r, lambda a=abort: a):
                continue
            with lock:
                inside += 1
                most = max(most, inside)
            time.sleep(0)
            with lock:
                inside -= 1
            gate.leave()

    threads = [threading.Thread(target=run, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
        assert not thread.is_alive()
    assert most == 2
    assert gate.try_enter()
    assert gate.try_enter()
    assert not gate.try_enter()
