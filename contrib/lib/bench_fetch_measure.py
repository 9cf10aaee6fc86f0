"""Runs one command and says what it took, as the kernel counts it.

A process of its own, and a small one: ``ru_maxrss`` of a child begins with the size of the
process that made it. Run it as ``python -I -S bench_fetch_measure.py LIMIT COMMAND…``; it
prints a line of JSON when the command runs, ``{"pid": …}``, and one when it ended. After
LIMIT seconds it sends SIGTERM, and SIGKILL when that does not help.
"""

import json
import os
import signal
import sys
import time

# What an orderly end may take.
GRACE_SECONDS = 5.0


def main(limit: float, command: list[str]) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    began = time.monotonic()
    pid = os.posix_spawnp(
        command[0],
        command,
        os.environ,
        # Its words go where ours do not: standard output is for the figures.
        file_actions=[(os.POSIX_SPAWN_DUP2, 2, 1)],
        setpgroup=0,
        setsigmask=(),
        setsigdef=(signal.SIGINT,),
    )
    print(json.dumps({"pid": pid}), flush=True)
    stopped = False
    for number, seconds in ((signal.SIGTERM, limit), (signal.SIGKILL, GRACE_SECONDS)):
        if ended(pid, seconds):
            break
        stopped = True
        os.killpg(pid, number)
    _, status, usage = os.wait4(pid, 0)
    took = time.monotonic() - began
    result = {
        "began": began,
        "seconds": took,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "rss_bytes": usage.ru_maxrss * 1024,
        "returncode": os.waitstatus_to_exitcode(status),
        "is_stopped": stopped,
    }
    print(json.dumps(result), flush=True)


def ended(pid: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while True:
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return True
        left = deadline - time.monotonic()
        if left <= 0:
            return False
        signal.sigtimedwait({signal.SIGCHLD}, left)


if __name__ == "__main__":
    main(float(sys.argv[1]), sys.argv[2:])
