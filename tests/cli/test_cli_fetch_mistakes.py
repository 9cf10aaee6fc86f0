"""Bad input to ``ddfs fetch``, and bad moments: one line, and nothing false under the name."""

from __future__ import annotations

import hashlib
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from ddfs import errors
from ddfs.fetch.transport import Transport
from ddfs.metalink import read
from ddfs.model import MiB
from ddfs.spool.beside import beside
from ddfs.spool.download import download
from tests.cli.conftest import Ddfs
from tests.cli.test_cli_fetch import serving
from tests.mirrorlab.mirrorlab import MirrorLab

CONTENT = random.Random(9).randbytes(6 * MiB + 321)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
PROGRAM = [sys.executable, "-c", "from ddfs.cli.main import main; main()"]


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def site() -> Iterator[str]:
    with serving({"/x.img": CONTENT}) as address:
        yield address


def document(
    directory: Path, *urls: str, size: int = len(CONTENT), digest: str = SHA256, pieces: int = 0
) -> Path:
    path = directory / "x.meta4"
    starts = range(0, len(CONTENT), pieces) if pieces else ()
    parts = [hashlib.sha256(CONTENT[start : start + pieces]).hexdigest() for start in starts]
    hashes = "".join(f"<hash>{part}</hash>" for part in parts)
    path.write_text(
        '<metalink xmlns="urn:ietf:params:xml:ns:metalink"><file name="x.img">'
        f'<size>{size}</size><hash type="sha-256">{digest}</hash>'
        + (f'<pieces type="sha-256" length="{pieces}">{hashes}</pieces>' if pieces else "")
        + "".join(f"<url>{url}</url>" for url in urls)
        + "</file></metalink>"
    )
    return path


def test_a_hash_of_the_wrong_length_names_the_document(ddfs: Ddfs, site: str, tmp_path: Path):
    source = document(tmp_path, f"{site}/x.img", digest="abcd")
    done = ddfs("fetch", str(source), "-o", str(tmp_path / "y"))
    assert done.code == errors.EXIT_SOURCE
    assert done.err.startswith(f"ddfs: {source}: ")
    assert done.err.count("\n") == 1
    assert not (tmp_path / "y").exists()


def test_a_checksum_of_the_wrong_length(ddfs: Ddfs, site: str, tmp_path: Path):
    done = ddfs("fetch", f"{site}/x.img", "--checksum", "sha256:abcd", "-o", str(tmp_path / "y"))
    assert done.code == errors.EXIT_REQUEST
    assert done.err.count("\n") == 1
    assert not (tmp_path / "y").exists()


def test_a_size_that_no_mirror_has_names_each_and_its_size(ddfs: Ddfs, site: str, tmp_path: Path):
    urls = (f"{site}/x.img", f"{site}/wrong/x.img")
    source = document(tmp_path, *urls, size=len(CONTENT) + 1)
    done = ddfs("fetch", str(source), "-o", str(tmp_path / "y"))
    assert done.code == errors.EXIT_SOURCE
    assert done.err.count("\n") == 1
    for url in urls:
        assert f"{url}: has {len(CONTENT)} bytes, not {len(CONTENT) + 1}" in done.err
    assert not (tmp_path / "y").exists()


def test_a_target_that_is_a_directory_within_the_directory(ddfs: Ddfs, site: str, tmp_path: Path):
    (tmp_path / "out" / "x.img").mkdir(parents=True)
    source = document(tmp_path, f"{site}/x.img")
    done = ddfs("fetch", str(source), "-o", str(tmp_path / "out"))
    assert done.code == errors.EXIT_REQUEST
    assert done.err == f"ddfs: {tmp_path}/out/x.img: is a directory; name a file in it\n"


def test_a_target_whose_name_is_too_long(ddfs: Ddfs, site: str, tmp_path: Path):
    source = document(tmp_path, f"{site}/x.img")
    done = ddfs("fetch", str(source), "-o", str(tmp_path / ("y" * 300)))
    assert done.code == errors.EXIT_REQUEST
    assert done.err.endswith("y: File name too long\n")
    assert done.err.count("\n") == 1


@pytest.mark.parametrize(
    ("output", "code", "complaint"),
    [
        (">/dev/full", errors.EXIT_HOST, b"ddfs: standard output: no room for more\n"),
        ("| sh -c 'read line'", 141, b""),
    ],
)
def test_events_that_nobody_takes_end_the_fetch(
    output: str, code: int, complaint: bytes, site: str, tmp_path: Path
):
    source = document(tmp_path, f"{site}/x.img", pieces=64 * 1024)
    command = f"exec {' '.join(map(shlex.quote, PROGRAM))} fetch {source} -o {tmp_path}/y --json"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"({command}) {output}"],
        capture_output=True,
        timeout=90,
        env={**os.environ, "DDFS_CONFIG": str(_settings(tmp_path))},
    )
    assert done.stderr == complaint
    assert done.returncode == code


def _settings(directory: Path) -> Path:
    path = directory / "ddfs.toml"
    path.write_text(f'state_dir = "{directory}/state"\n')
    return path


@pytest.mark.parametrize("is_replaced", [False, True])
async def test_a_file_that_vanishes_while_it_is_written(tmp_path: Path, is_replaced: bool):
    target = tmp_path / "y"
    part = beside(target, "part")
    async with MirrorLab() as lab:
        url = lab.mirror(CONTENT, rate=20 * MiB)
        text = document(tmp_path, url, pieces=MiB).read_bytes()
        manifest = read.select(read.parse(text, base_url=None), None)

        async def vanish() -> None:
            while not part.exists() or part.stat().st_blocks == 0:
                await trio.sleep(0.01)
            part.unlink()
            if is_replaced:
                part.write_bytes(b"something else")

        async with Transport() as transport, trio.open_nursery() as nursery:
            nursery.start_soon(vanish)
            with pytest.raises(errors.StorageError, match="deleted or replaced"):
                await download(
                    manifest,
                    target,
                    transport=transport,
                    observer=lambda _: None,
                    started=lambda _: None,
                )
    assert not target.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_a_signal_at_any_moment_leaves_nothing_false(
    number: signal.Signals, ddfs: Ddfs, site: str, tmp_path: Path
):
    source = document(tmp_path, f"{site}/x.img", pieces=MiB)
    target = tmp_path / "y"
    began = time.monotonic()
    assert ddfs("fetch", str(source), "-o", str(target)).code == 0
    target.unlink()
    whole = time.monotonic() - began + 0.3  # another process has to start
    for share in (0.2, 0.5, 0.7, 0.8, 0.9, 1.0):
        ready, started = os.pipe()
        # Not before the interpreter is there, which says what it likes.
        program = [sys.executable, "-c", f"import os; os.write({started}, b'x'); {PROGRAM[-1]}"]
        process = subprocess.Popen(
            [*program, "fetch", str(source), "-o", str(target)],
            pass_fds=[started],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        os.close(started)
        os.read(ready, 1)
        os.close(ready)
        time.sleep(share * whole)
        process.send_signal(number)
        _, err = process.communicate(timeout=90)
        assert process.returncode in (0, 130, -number)
        if share > 0.5 and number is not signal.SIGINT:
            assert err == b""
        if target.exists():
            assert target.read_bytes() == CONTENT
            target.unlink()
    if not target.exists():
        assert ddfs("fetch", str(source), "-o", str(target)).code == 0
    assert target.read_bytes() == CONTENT
    assert sorted(os.listdir(tmp_path)) == sorted({"ddfs.toml", "x.meta4", "y"})
