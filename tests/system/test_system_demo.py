"""contrib/demo: it works, and it leaves nothing behind, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest
from lab import namespace, scratch
from lab.host import TOP
from lab.processes import PATIENCE_SECONDS, wait_until


class Demo:
    """contrib/demo as somebody runs it, with a temporary directory of its own."""

    def __init__(self, temporary: Path, *arguments: str) -> None:
        self.log = temporary / "output"
        self.temporary = temporary
        # Outside, for all that it knows.
        environ = {k: v for k, v in os.environ.items() if k != namespace.MARK}
        environ["TMPDIR"] = str(temporary)
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                [TOP / "contrib" / "demo", *arguments],
                stdout=output,
                stderr=output,
                env=environ,
                # Somebody may run the tests in the background, where shells ignore it.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )

    def wait_for(self, text: str) -> None:
        wait_until(lambda: text in self.output(), text)

    def output(self) -> str:
        return self.log.read_text()

    def left_over(self) -> list[Path]:
        return list(self.temporary.glob(f"{scratch.PREFIX}*"))


def test_the_demo_works_also_after_a_killed_one(directory: Path) -> None:
    killed = Demo(directory)
    killed.wait_for("virsh start vm1")
    killed.process.kill()
    killed.process.wait(PATIENCE_SECONDS)
    assert killed.left_over()

    demo = Demo(directory)
    assert demo.process.wait(PATIENCE_SECONDS) == 0, demo.output()
    assert "made 0 requests to the mirrors; nothing is downloaded yet" in demo.output()
    assert "serial port: Hello from the guest" in demo.output()
    assert "A second VM booted" in demo.output()
    assert "and made 0 requests to the mirrors" in demo.output().rpartition("A second VM")[2]
    assert demo.left_over() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_demo_cleans_up_when_it_is_interrupted(directory: Path, number: int) -> None:
    demo = Demo(directory)
    demo.wait_for("virsh start vm1")
    demo.process.send_signal(number)
    assert demo.process.wait(PATIENCE_SECONDS) == 128 + number
    assert demo.output().splitlines()[-1] == "contrib/demo: interrupted; everything is cleaned up"
    assert demo.left_over() == []


def test_the_demo_says_what_is_wrong_with_a_source(directory: Path) -> None:
    demo = Demo(directory, f"{directory}/missing.meta4")
    assert demo.process.wait(PATIENCE_SECONDS) == 1
    assert "\ncontrib/demo: " in demo.output()
    assert "missing.meta4" in demo.output()
    assert "Traceback" not in demo.output()
    assert demo.left_over() == []
