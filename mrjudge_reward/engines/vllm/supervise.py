"""Runs a command and ends it, with every process it started, as soon as the process that asked for it is gone.

A script of the standard library alone, started by path::

    python -I supervise.py PARENT_PID COMMAND...

The command runs in a session of its own and its process id is printed. Everything ends when the command ends, standard
input closes, PARENT_PID is no longer the parent (also after ``kill -9``, and also where a forked sibling still holds
the pipe), or SIGTERM comes. Should this script itself be killed, Linux kills the command. Exit status: the command's.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time

GRACE_S = 5.0
"""Seconds between SIGTERM and SIGKILL."""

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def group_lives(leader: int) -> bool:
    """Whether a process group has members."""
    try:
        os.killpg(leader, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # macOS says so of zombies
        return False
    return True


def _reap() -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _end(leader: int) -> None:
    for number, patience_s in ((signal.SIGTERM, GRACE_S), (signal.SIGKILL, GRACE_S)):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(leader, number)
        until = time.monotonic() + patience_s
        while group_lives(leader) and time.monotonic() < until:
            _reap()
            time.sleep(0.05)


def main(parent: int, command: list[str]) -> int:
    """Run a command for as long as its parent lives.

    Returns:
        Its exit status; 128 and the signal's number if a signal ended it.
    """
    asked: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda got, _: asked.append(got))
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)  # grandchildren whose parent died are ours to reap
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
        start_new_session=True,
        preexec_fn=lambda: _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL),
    )
    print(child.pid, flush=True)
    while child.poll() is None and os.getppid() == parent and not asked:
        try:
            if select.select([0], [], [], 0.2)[0] and not os.read(0, 1):
                break
        except InterruptedError:
            continue
    ended = child.returncode
    _end(child.pid)
    if ended is None:
        return 128 + signal.SIGTERM
    return ended if ended >= 0 else 128 - ended


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
