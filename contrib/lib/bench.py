"""contrib/bench: one module bench_NAME.py beside this one for each subcommand."""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "tests" / "system"))

from lab import namespace  # noqa: E402 (the line above makes it importable)
from lab.processes import LabError  # noqa: E402
from lab.scratch import scratch_directory  # noqa: E402

SUBJECTS: Final = {
    "main": "listing 1,000 templates, reading through the mount, the hook, blocked readers",
    "libvirt": "starts with the hook, thirty at once, attaching from a silent mirror",
    "fetch": "ddfs fetch beside aria2c, wget2, axel and curl, on mirrors good and bad",
    "apply": "1,000 templates by `template apply`, on mirrors that take 20 ms to answer",
    "many": "10,000 templates in the catalogue: starting, memory, listing, libvirt meanwhile",
    "scheduler": "what deciding who fetches what costs as pieces, mirrors and fetches grow",
}


def main() -> int:
    """0 when every bar was reached, 1 when one was missed."""
    listing = "\n".join(f"  {name:12}{text}" for name, text in SUBJECTS.items())
    parser = argparse.ArgumentParser(
        prog="contrib/bench",
        description="Measures what ddfs promises beside its peers, and says which bars it reaches.",
        epilog=f"subjects:\n{listing}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("subject", nargs="?", default="main", choices=SUBJECTS)
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="SUBJECT -h says which")
    wanted = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("run it as root: it mounts file systems and starts a libvirtd")
    namespace.enter()
    # So that what is in memory or mounted is cleaned up as after an error.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    module = importlib.import_module(f"bench_{wanted.subject}")
    try:
        with scratch_directory() as directory:
            return 0 if module.run(directory, wanted.arguments) else 1
    except (LabError, OSError) as error:
        print(f"contrib/bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main())
