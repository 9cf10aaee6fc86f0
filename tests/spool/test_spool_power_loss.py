"""A power loss at any moment leaves nothing that calls a wrong byte verified."""

import hashlib
import json
import os
import random
import shutil
import tempfile
from pathlib import Path

import pytest
import trio

from ddfs.fetch.transport import Transport
from ddfs.model import KiB, MiB
from ddfs.spool import journal as journal_module
from ddfs.spool.download import download
from ddfs.spool.partial import PartialFile
from tests.mirrorlab.mirrorlab import MirrorLab
from tests.spool.crash_states import CrashState, Recorder, crash_at, states
from tests.spool.test_spool_spool import manifest_of

CONTENT = random.Random(11).randbytes(3 * MiB + 333)
PIECE = 64 * KiB

IN_MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def rebuilt(directory: Path, state: CrashState) -> None:
    """Make *state* real. The journal names its data file by inode, which is a new one now."""
    directory.mkdir()
    for name, (_, data) in state.files.items():
        (directory / name).write_bytes(data)
    part = state.files.get(".x.ddfs-part")
    journal = state.files.get(".x.ddfs-journal")
    if part is None or journal is None:
        return
    records, _ = journal_module._parse(journal[1])
    if not records:
        return
    header = json.loads(records[0][1])
    if header["data_inode"] == part[0]:
        header["data_inode"] = (directory / ".x.ddfs-part").stat().st_ino
        old = journal_module._frame(*records[0])
        new = journal_module._frame(records[0][0], json.dumps(header).encode())
        (directory / ".x.ddfs-journal").write_bytes(new + journal[1][len(old) :])


@pytest.mark.parametrize("with_pieces", [True, False], ids=["pieces", "whole hash only"])
async def test_no_crash_state_vouches_for_a_wrong_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_pieces: bool
) -> None:
    """Records a whole download, then crashes it 400 times and looks at what is believed."""
    directory = tmp_path / "d"
    directory.mkdir()
    async with MirrorLab() as lab, Transport() as transport:
        urls = [lab.mirror(CONTENT, rate=MiB), lab.mirror(CONTENT, rate=MiB / 2)]
        manifest = manifest_of(CONTENT, urls, with_pieces=with_pieces, piece_length=PIECE)

        async def fetch_into(path: Path) -> None:
            with trio.fail_after(90):
                await download(
                    manifest, path, transport=transport,
                    observer=lambda _: None, started=lambda _: None,
                )  # fmt: skip

        with Recorder(directory).recording(monkeypatch) as recorder:
            await fetch_into(directory / "x")
        # Who looks at what a power loss left runs on another kernel.
        monkeypatch.setattr(journal_module, "boot_id", lambda: b"another")
        chance = random.Random(5)
        vouched = set()
        # In memory, where a restart need not wait for a disk: a gigabyte in all, piece by piece.
        with tempfile.TemporaryDirectory(dir=IN_MEMORY) as memory:
            for number, state in enumerate(states(recorder.notes, chance, 400)):
                crashed = Path(memory) / f"crash{number}"
                rebuilt(crashed, state)
                vouched.add(look_at(crashed, manifest))
                if number in (100, 200, 300):
                    path = crashed / "x"
                    if not path.exists():
                        await fetch_into(path)
                    assert hashlib.sha256(path.read_bytes()).hexdigest() in manifest.content_id
                shutil.rmtree(crashed)
        assert max(vouched) > MiB, "some crash was late enough to test anything"
        assert 0 in vouched


def look_at(directory: Path, manifest: object) -> int:
    """How many bytes a restart would believe, having checked every one of them."""
    final = directory / "x"
    if final.exists():
        assert final.read_bytes() == CONTENT, "an unverified byte under the final name"
        return len(CONTENT)
    partial = PartialFile.open(directory / ".x.ddfs-part", directory / ".x.ddfs-journal", manifest)
    try:
        grid = manifest.grid
        for record in partial.journaled():
            where = grid.bytes_of(record.piece)
            assert os.pread(partial.fd, len(where), where.start) == CONTENT[where.start : where.end]
        return partial.bytes_here
    finally:
        partial.close()


def test_the_crash_maker_finds_a_journal_that_runs_ahead_of_its_data(tmp_path: Path) -> None:
    """The check can fail: a journal written before the data was synced is caught."""
    recorder = Recorder(tmp_path)
    patch = pytest.MonkeyPatch()
    with recorder.recording(patch):
        fd = os.open(tmp_path / "data", os.O_RDWR | os.O_CREAT)
        os.pwrite(fd, b"x" * 4096, 0)
        vouch = os.open(tmp_path / "vouch", os.O_RDWR | os.O_CREAT)
        os.write(vouch, b"4096 bytes are there")
        os.fsync(vouch)
        names = os.open(tmp_path, os.O_RDONLY)
        os.fsync(names)
    for descriptor in (fd, vouch, names):
        os.close(descriptor)
    chance = random.Random(1)
    found = [crash_at(recorder.notes, chance).files for _ in range(50)]
    assert any(files["vouch"][1] and files["data"][1] != b"x" * 4096 for files in found)
    assert any(files["data"][1] == b"x" * 4096 for files in found)
