"""The journal: what it vouches for survives, what was torn does not count."""

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ddfs.fetch.transfer import PieceRecord
from ddfs.spool import journal as journal_module
from ddfs.spool.journal import Journal, JournalHeader

HEADER = JournalHeader("sha-256:" + "a" * 64, 1000, 10, False, 7)

records = st.builds(
    PieceRecord,
    piece=st.integers(0, 99),
    mirror_url=st.sampled_from(["http://a/x", "http://b/x", "http://ü/x"]),
    sha256=st.sampled_from([b"", b"h" * 32]),
)
operations = st.lists(
    st.one_of(st.lists(records, min_size=1, max_size=5), st.integers(0, 99)), max_size=12
)


def apply(journal: Journal, model: dict[int, PieceRecord], operation: list[PieceRecord] | int):
    if isinstance(operation, int):
        journal.forget([operation])
        model.pop(operation, None)
    else:
        journal.append(operation)
        model.update({record.piece: record for record in operation})


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(operations=operations, data=st.data())
def test_every_torn_journal_is_a_state_that_was(
    tmp_path: Path, operations: list[list[PieceRecord] | int], data: st.DataObject
) -> None:
    """Cut anywhere, and with anything behind the cut, it reads as some prefix of its life."""
    path = tmp_path / "journal"
    journal = Journal.create(path, HEADER)
    header_length = path.stat().st_size
    model: dict[int, PieceRecord] = {}
    states = [dict(model)]
    for operation in operations:
        # One record at a time: a torn batch may leave any front part of it.
        for single in [operation] if isinstance(operation, int) else [[r] for r in operation]:
            apply(journal, model, single)
            states.append(dict(model))
    journal.close()
    whole = path.read_bytes()
    cut = data.draw(st.integers(header_length, len(whole)))
    path.write_bytes(whole[:cut] + data.draw(st.binary(max_size=20)))
    again = Journal.open(path)
    assert again is not None
    assert {record.piece: record for record in again.pieces()} in states
    if cut == len(whole):
        assert {record.piece: record for record in again.pieces()} == model
    again.append([PieceRecord(5, "http://c/x", b"")])
    again.close()
    last = Journal.open(path)
    assert last is not None
    assert PieceRecord(5, "http://c/x", b"") in last.pieces()
    last.close()


@pytest.mark.parametrize("content", [b"", b"H", b"\0" * 100, os.urandom(200)])
def test_a_journal_without_a_header_is_none(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "journal"
    path.write_bytes(content)
    assert Journal.open(path) is None


def test_no_journal_is_none(tmp_path: Path) -> None:
    assert Journal.open(tmp_path / "none") is None


def test_bytes_here_knows_the_short_last_piece(tmp_path: Path) -> None:
    header = JournalHeader("sha-256:" + "a" * 64, 95, 10, True, 7)
    journal = Journal.create(tmp_path / "journal", header)
    journal.append([PieceRecord(9, "http://a/x", b""), PieceRecord(0, "http://a/x", b"")])
    assert journal.bytes_here == 15
    assert [record.piece for record in journal.pieces()] == [0, 9]
    journal.close()


def test_a_flipped_bit_ends_what_is_believed(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal = Journal.create(path, HEADER)
    journal.append([PieceRecord(1, "http://a/x", b"h" * 32)])
    middle = path.stat().st_size
    journal.append([PieceRecord(2, "http://a/x", b"h" * 32)])
    journal.close()
    data = bytearray(path.read_bytes())
    data[middle + 12] ^= 1
    path.write_bytes(data)
    again = Journal.open(path)
    assert again is not None
    assert [record.piece for record in again.pieces()] == [1]
    again.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting takes root")
def test_what_a_full_disk_cuts_off_hides_nothing_that_comes_later(tmp_path: Path) -> None:
    size = ["-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)]
    subprocess.run(["mount", *size], check=True)
    try:
        path, filler = tmp_path / "journal", tmp_path / "filler"
        journal = Journal.create(path, HEADER)
        journal.append([PieceRecord(1, "http://a/x", b"h" * 32)])
        figures = os.statvfs(tmp_path)
        filler.write_bytes(bytes(figures.f_bavail * figures.f_frsize))
        # There is room in the last page: the first part of these gets onto the disk.
        many = [PieceRecord(piece, "http://b/x", b"h" * 32) for piece in range(2, 100)] * 2
        with pytest.raises(OSError, match="space"):
            journal.append(many)
        assert [record.piece for record in journal.pieces()] == [1]
        with pytest.raises(OSError, match="space"):
            journal.forget([1] * 500)
        filler.unlink()
        journal.append([PieceRecord(7, "http://c/x", b"h" * 32)])
        journal.close()
        again = Journal.open(path)
        assert again is not None
        assert [(r.piece, r.mirror_url) for r in again.pieces()] == [
            (1, "http://a/x"),
            (7, "http://c/x"),
        ]
        again.close()
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_what_was_noted_counts_as_long_as_the_kernel_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "journal"
    one, two, three = (PieceRecord(piece, "http://a/x", b"h" * 32) for piece in (1, 2, 3))

    def lived(boot: bytes) -> list[PieceRecord]:
        monkeypatch.setattr(journal_module, "boot_id", lambda: boot)
        again = Journal.open(path)
        assert again is not None
        again.close()
        return again.pieces()

    monkeypatch.setattr(journal_module, "boot_id", lambda: b"first")
    journal = Journal.create(path, HEADER)
    journal.append([one])
    journal.note([two, three])
    journal.forget([3])
    journal.close()
    assert lived(b"first") == [one, two]
    assert lived(b"second") == lived(b"") == [one]
    # What the second kernel is told of does not speak of what the first one had.
    monkeypatch.setattr(journal_module, "boot_id", lambda: b"second")
    journal = Journal.open(path)
    assert journal is not None
    journal.note([three])
    journal.close()
    assert lived(b"second") == [one, three]
    # Until it is on disk.
    monkeypatch.setattr(journal_module, "boot_id", lambda: b"second")
    journal = Journal.open(path)
    assert journal is not None
    journal.append(journal.noted())
    assert journal.noted() == []
    journal.close()
    assert lived(b"third") == [one, three]


def test_nothing_is_noted_where_nobody_knows_the_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "boot_id", lambda: b"")
    journal = Journal.create(tmp_path / "journal", HEADER)
    before = journal.path.read_bytes()
    journal.note([PieceRecord(1, "http://a/x", b"h" * 32)])
    assert journal.path.read_bytes() == before
    journal.close()
