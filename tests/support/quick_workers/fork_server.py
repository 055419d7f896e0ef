"""A process that has imported what Ray's workers of a verl run import, and forks one for each that asks.

Ray starts each worker as a Python of its own. That one hands its command line, environment and outputs over to this
process, which it starts where there is none yet, and lives as long as the fork does.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from contextlib import suppress

MODULES = (
    "verl.trainer.main_ppo", "verl.workers.engine_workers", "vllm.entrypoints.openai.api_server", "vllm.v1.engine.core",
    "mrjudge_reward.integrations.verl.reward_manager",
)  # fmt: skip
_STARTED_WITHIN_S = 120.0


def _address() -> str:
    return f"\0mrjudge-forks-{os.environ['RAY_RAYLET_PID']}"  # in Linux's abstract space: it ends with its process


def be_forked() -> None:
    """Called by a process that is to become a worker. It ends when the worker does."""
    deadline = time.monotonic() + _STARTED_WITHIN_S
    started = None
    while True:
        server = socket.socket(socket.AF_UNIX)
        try:
            server.connect(_address())
            break
        except ConnectionRefusedError:
            server.close()
            started = started or subprocess.Popen([sys.executable, __file__], stdin=subprocess.DEVNULL)
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
    forked = b""
    with suppress(BrokenPipeError, ConnectionResetError):
        socket.send_fds(server, [b"\0"], [0, 1, 2])
        server.sendall(json.dumps([sys.orig_argv, dict(os.environ), os.getcwd()]).encode())
        server.shutdown(socket.SHUT_WR)
        forked = server.recv(1)
        server.recv(1)
    if not forked:
        print("the fork server ended before it forked", file=sys.stderr, flush=True)
    os._exit(0 if forked else 1)


def serve() -> None:
    """Fork until the raylet has ended."""
    import importlib
    import signal

    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(_address())
    except OSError:
        return  # another worker's server was first
    listener.listen()
    listener.settimeout(0.5)
    _draw_class_ids_from_the_system()
    for module in MODULES:
        importlib.import_module(module)
    if _drawn_in_a_fork() == _drawn_in_a_fork():
        sys.exit("something imported has drawn from Ray's generator: forks would give their tasks the same ids")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while os.path.exists(f"/proc/{os.environ['RAY_RAYLET_PID']}"):
        try:
            client, _ = listener.accept()
        except TimeoutError:
            continue
        if os.fork() == 0:
            listener.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _work(client)
        client.close()


def _draw_class_ids_from_the_system() -> None:
    """Ray draws the id of a decorated class from a generator, whose state forks would share."""
    from types import SimpleNamespace

    import ray.actor

    kind = ray.actor.ActorClassID
    ray.actor.ActorClassID = SimpleNamespace(from_random=lambda: kind(os.urandom(kind.size())))


def _drawn_in_a_fork() -> bytes:
    from ray._raylet import UniqueID

    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        os.write(writer, UniqueID.from_random().binary())
        os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with os.fdopen(reader, "rb") as file:
        return file.read()


def _work(client: socket.socket) -> None:
    """Be the worker. ``client`` is told so, and held open until this process ends, whereby the one that asked knows."""
    import runpy

    client.sendall(b"\0")
    os.setpgid(0, 0)  # a raylet ends the process groups of its workers
    _, outputs, _, _ = socket.recv_fds(client, 1, 3)
    argv, environment, folder = json.load(client.makefile())
    for number, copy in enumerate(outputs):
        os.dup2(copy, number)
        os.close(copy)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.modules["numpy"].random.seed()
    script = next(index for index, one in enumerate(argv) if one.endswith(".py"))
    sys.argv = argv[script:]
    sys.path[0] = os.path.dirname(sys.argv[0])
    runpy.run_path(sys.argv[0], run_name="__main__")
    sys.exit()


if __name__ == "__main__":
    serve()
