"""`ddfs fetch`: its short way past Typer, its report, and whole downloads on loopback."""

from __future__ import annotations

import hashlib
import http.server
import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from ddfs import errors
from ddfs.cli import app, fetch, fetch_request
from ddfs.cli.destination import destination_of
from ddfs.cli.fetch_request import FetchRequest
from ddfs.fetch.statistics import MirrorStatistics, TransferReport, TransferStatistics
from ddfs.model import Digest, HashAlgorithm, Manifest, Mirror
from tests.cli.conftest import Ddfs


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["fetch", "S"], FetchRequest("S")),
        (["--config", "c", "fetch", "S"], FetchRequest("S", config="c")),
        (
            ["fetch", "-o", "f", "--checksum=md5:0", "--json", "S", "--file", "n"],
            FetchRequest("S", "f", "md5:0", "n", as_json=True),
        ),
        (
            ["fetch", "S", "--seed", "a", "--limit-rate=1MiB", "--seed=b"],
            FetchRequest("S", limit_rate="1MiB", seeds=("a", "b")),
        ),
        (
            ["fetch", "S", "--checksum-url=C", "--signature", "G", "--keyring=K", "--unverified"],
            FetchRequest("S", checksum_url="C", signature="G", keyring="K", unverified=True),
        ),
        # All of these are for Typer, which knows what to say.
        (["fetch"], None),
        (["fetch", "a", "b"], None),
        (["fetch", "a", "--help"], None),
        (["fetch", "a", "-of"], None),
        (["fetch", "a", "--", "b"], None),
        (["fetch", "a", "-o"], None),
        (["fetch", "a", "-o", "--json"], None),
        (["fetch", "a", "--json=1"], None),
        (["-o", "f", "fetch", "a"], None),
        (["status", "a"], None),
        ([], None),
    ],
)
def test_the_short_way(arguments: list[str], expected: FetchRequest | None) -> None:
    assert fetch_request.parse(arguments) == expected


def by_typer(arguments: Sequence[str]) -> FetchRequest | str:
    """What Typer makes of it: a request, or the text of a mistake."""
    found: list[FetchRequest] = []
    original, fetch.fetch = fetch.fetch, found.append
    try:
        app.app(list(arguments), prog_name="ddfs", standalone_mode=False)
    except typer.TyperException as error:
        return error.format_message()
    finally:
        fetch.fetch = original
    return found[0]


words = st.sampled_from(
    [
        *fetch_request.VALUES,
        *fetch_request.FLAGS,
        *fetch_request.REPEATED,
        *("fetch", "S", "--checksum=x", "-", "--output=o", "--seed=s"),
    ]
)


@given(st.lists(words, max_size=7))
def test_the_short_way_says_what_typer_says(arguments: list[str]) -> None:
    short = fetch_request.parse(["fetch", "S", *arguments])
    if short is not None:
        # --config stands in front by the time that Typer sees it.
        from ddfs.cli.main import hoist_config

        assert by_typer(hoist_config(["fetch", "S", *arguments])) == short


def test_both_ways_know_the_same_options() -> None:
    command: Any = typer.main.get_command(app.app)
    known = {option for p in command.commands["fetch"].params for option in p.opts}
    known -= {"source", "--help", "-h"}
    ours = {*fetch_request.VALUES, *fetch_request.FLAGS, *fetch_request.REPEATED}
    assert known == ours - {"--config"}


def test_destinations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert destination_of(None, "a/b/x.img") == Path("x.img")
    assert destination_of("y", "x.img") == Path("y")
    assert destination_of(str(tmp_path), "x.img") == tmp_path / "x.img"
    assert destination_of("none/", "x.img") == Path("none/x.img")
    for name in ("", "..", "/"):
        with pytest.raises(errors.InvalidValueError, match="say where to with -o FILE"):
            destination_of(None, name)


def test_what_exists_is_refused_before_any_request(ddfs: Ddfs, tmp_path: Path) -> None:
    taken = tmp_path / "x"
    taken.write_text("mine")
    (tmp_path / "dangling").symlink_to("/nowhere")
    for path in (taken, tmp_path / "dangling"):
        # Port 9 answers nobody: a request would fail in another way.
        done = ddfs("fetch", "http://127.0.0.1:9/x.meta4", "-o", str(path))
        assert done.err == f"ddfs: {path}: exists already, and is not overwritten\n"
        assert done.code == errors.EXIT_HOST
    assert taken.read_text() == "mine"


def test_the_report() -> None:
    def mirror(url: str, received: int, error: str | None, rejected: int) -> MirrorStatistics:
        return MirrorStatistics(url, received, 0.0, "idle", error, rejected)

    mirrors = (
        mirror("http://slow/x", 1024**2, None, 0),
        mirror("http://fast/x", 3 * 1024**2, None, 0),
        mirror("http://liar/x", 1024, "status 500\x1b[0m", 1),
        mirror("http://sloppy/x", 512, "status 500", 2),
        mirror("http://broken/x", 0, "status 500\x1b[0m", 0),
        mirror("http://idle/x", 0, None, 0),
    )
    statistics = TransferStatistics(2**22, 2**22, 0.0, None, mirrors, 1024)
    manifest = Manifest(
        "x", 2**22, (Digest(HashAlgorithm.SHA256, "0" * 64),), None, (Mirror("http://slow/x"),)
    )
    report = TransferReport(2**22, 2.0, 2**20, 1, statistics)
    lines = fetch.report_lines(Path("out"), manifest, report, {"http://liar/x": "wrong bytes"})
    assert lines == [
        "out: 4.0 MiB in 2.0 s (1.5 MiB/s), verified by sha-256",
        "  1.0 MiB were here already",
        "     3.0 MiB  http://fast/x",
        "     1.0 MiB  http://slow/x",
        "     1.0 KiB  http://liar/x; wrong bytes",
        "       512 B  http://sloppy/x; 2 of its pieces had wrong hashes",
        r"         0 B  http://broken/x; status 500\x1b[0m",
        "  1.0 KiB were fetched twice",
    ]


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves what is in ``files`` with ranges.

    Paths under ``/wrong`` have their bytes turned, those under ``/stuck`` stop after some.
    """

    protocol_version = "HTTP/1.1"
    files: dict[str, bytes]
    stuck: threading.Event
    released: threading.Event

    def do_GET(self) -> None:
        content = self.files.get(re.sub("^/(wrong|stuck)/", "/", self.path))
        if content is None:
            self.send_error(404)
            return
        if self.path.startswith("/wrong"):
            content = content[::-1]
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("range", ""))
        start, end = (int(wanted[1]), int(wanted[2]) + 1) if wanted else (0, len(content))
        self.send_response(206 if wanted else 200)
        body = content[start:end]
        if wanted:
            last = start + len(body) - 1
            self.send_header("content-range", f"bytes {start}-{last}/{len(content)}")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        if self.path.startswith("/stuck/"):
            self.wfile.write(body[:100_000])
            self.stuck.set()
            self.released.wait(90)
            self.close_connection = True
            return
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base's name)
        pass


class Server(http.server.ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up in the middle are what a fetch engine is."""


@contextmanager
def serving(files: dict[str, bytes]) -> Iterator[str]:
    """The address of a server for *files*, which may still grow."""
    Handler.stuck, Handler.released = threading.Event(), threading.Event()
    handler = type("FilesHandler", (Handler,), {"files": files})
    server = Server(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        Handler.released.set()
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "site" / "x.img"
    path.parent.mkdir()
    path.write_bytes(bytes(range(256)) * 20_000)
    return path


@pytest.fixture
def site(image: Path) -> Iterator[str]:
    files = {"/x.img": image.read_bytes()}
    with serving(files) as address:
        from ddfs.metalink import write

        for name, urls in (
            ("good", [f"{address}/x.img"]),
            ("mixed", [f"{address}/wrong/x.img", f"{address}/x.img"]),
            ("bad", [f"{address}/wrong/x.img"]),
            ("gone", [f"{address}/gone.img"]),
            ("stuck", [f"{address}/stuck/x.img"]),
        ):
            manifest = write.describe_file(image, urls, 262_144)
            files[f"/{name}.meta4"] = write.make(manifest).encode()
        yield address


def test_a_metalink(ddfs: Ddfs, site: str, image: Path, tmp_path: Path) -> None:
    done = ddfs("fetch", f"{site}/good.meta4", "-o", str(tmp_path))
    assert (done.code, done.err) == (0, "")
    assert (tmp_path / "x.img").read_bytes() == image.read_bytes()
    lines = done.out.splitlines()
    assert lines[0].startswith(f"{tmp_path}/x.img: 4.9 MiB in ")
    assert lines[0].endswith("verified by sha-256")
    assert lines[1].endswith(f"{site}/x.img")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_an_image_with_a_checksum(ddfs: Ddfs, site: str, image: Path, tmp_path: Path) -> None:
    target = tmp_path / "y"
    digest = hashlib.sha512(image.read_bytes()).hexdigest()
    assert ddfs("fetch", f"{site}/x.img", "-o", str(target)).code == errors.EXIT_REQUEST
    assert not target.exists()
    done = ddfs("fetch", f"{site}/x.img", "--checksum", f"sha512:{digest}", "-o", str(target))
    assert (done.code, done.err) == (0, "")
    assert target.read_bytes() == image.read_bytes()


def test_events(ddfs: Ddfs, site: str, image: Path, tmp_path: Path) -> None:
    done = ddfs("fetch", f"{site}/mixed.meta4", "-o", str(tmp_path / "y"), "--json")
    assert (done.code, done.err) == (0, "")
    assert (tmp_path / "y").read_bytes() == image.read_bytes()
    events = [json.loads(line) for line in done.out.splitlines()]
    kinds = [event["event"] for event in events]
    assert (kinds[0], kinds[-1]) == ("started", "finished")
    assert events[0]["size"] == image.stat().st_size
    assert kinds.count("piece-verified") == 20
    rejected = {event["mirror_url"] for event in events if event["event"] == "piece-rejected"}
    assert rejected == {f"{site}/wrong/x.img"}
    assert events[-1]["mirrors"][0]["url"].startswith(site)


def test_the_liar_is_named_in_the_report(ddfs: Ddfs, site: str, tmp_path: Path) -> None:
    done = ddfs("fetch", f"{site}/mixed.meta4", "-o", str(tmp_path / "y"))
    (line,) = [line for line in done.out.splitlines() if f"{site}/wrong/x.img" in line]
    assert re.search("; .*(wrong|match)", line)


@pytest.mark.parametrize("document", ["bad", "gone"])
def test_nothing_unverified_stands_under_the_name(
    ddfs: Ddfs, site: str, tmp_path: Path, document: str
) -> None:
    done = ddfs("fetch", f"{site}/{document}.meta4", "-o", str(tmp_path / "y"), "--json")
    assert done.code == errors.EXIT_SOURCE
    assert done.err.startswith("ddfs: ")
    assert done.err.count("\n") == 1
    assert site in done.err
    last = json.loads(done.out.splitlines()[-1])
    assert last["event"] == "error"
    assert last["kind"] in ("mirrors-exhausted", "checksum")
    assert not (tmp_path / "y").exists()


def test_a_missing_document_names_it(ddfs: Ddfs, site: str, tmp_path: Path) -> None:
    done = ddfs("fetch", f"{site}/none.meta4", "-o", str(tmp_path / "y"))
    assert done.code == errors.EXIT_SOURCE
    assert f"{site}/none.meta4" in done.err
    assert done.err.count("\n") == 1


def test_an_interrupt_is_quiet_and_loses_nothing(
    ddfs: Ddfs, site: str, image: Path, tmp_path: Path
) -> None:
    program = [sys.executable, "-c", "from ddfs.cli.main import main; main()"]
    target = tmp_path / "y"
    process = subprocess.Popen(
        [*program, "fetch", f"{site}/stuck.meta4", "-o", str(target)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # A shell in the background makes its children ignore the signal.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        assert Handler.stuck.wait(90)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=90)
    finally:
        process.kill()
        process.communicate()
    assert (process.returncode, out, err) == (130, b"", b"")
    assert not target.exists()
    assert ddfs("fetch", f"{site}/good.meta4", "-o", str(target)).code == 0
    assert target.read_bytes() == image.read_bytes()
