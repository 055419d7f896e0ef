"""A process that asks to be forked says so where it was not."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

BESIDE = Path(__file__).parent / "quick_workers"


@pytest.mark.parametrize(
    ("reads", "answer", "code", "said"),
    [
        (False, b"", 1, "the fork server ended before it forked\n"),
        (True, b"", 1, "the fork server ended before it forked\n"),
        (True, b"\0", 0, ""),
    ],
)
def test_a_worker_that_was_never_forked_is_told_of(reads: bool, answer: bytes, code: int, said: str):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"\0mrjudge-forks-{os.getpid()}")
        listener.listen()
        asked = subprocess.Popen(
            [sys.executable, "-S", "-c", "import fork_server; fork_server.be_forked()"],
            env={"PYTHONPATH": str(BESIDE), "RAY_RAYLET_PID": str(os.getpid())}, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        client, _ = listener.accept()
        while reads and client.recv(1 << 16):
            pass
        client.sendall(answer)
        client.close()
        assert asked.communicate(timeout=60)[1] == said
        assert asked.returncode == code


def test_forks_draw_ids_of_their_own_also_where_a_class_was_decorated():
    """Else their tasks have the same ids, and the actor that they call ends."""
    script = """
import fork_server, ray
fork_server._draw_class_ids_from_the_system()
ray.remote(type("First", (), {}))
print(fork_server._drawn_in_a_fork() == fork_server._drawn_in_a_fork())
ray.actor.ActorClassID = ray.ActorClassID
ray.remote(type("Second", (), {}))
print(fork_server._drawn_in_a_fork() == fork_server._drawn_in_a_fork())
"""
    done = subprocess.run(
        [sys.executable, "-c", script], env={"PYTHONPATH": str(BESIDE)}, capture_output=True, text=True
    )
    assert done.stdout == "False\nTrue\n", done.stderr
