"""A Python interpreter that has imported torch, transformers, TRL and their like before it is started.

``warm_python()`` is a command that takes a script and its arguments as ``python`` does. What it starts is a process of its
own with that script as ``__main__``, its own arguments, folder, environment, input and output, whose exit code is the
command's; only the imports of those packages, seven seconds of CPU time, are paid once for all. Nothing of the project
itself is imported before.

Three roles: pytest starts the process that imports (by exec, so that nothing of pytest's own is passed on), which then
forks for each command; a command is a small client that hands over what it was given and waits.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parents[2]

IMPORTED = (
    "torch", "torch.utils.data", "transformers", "transformers.models.llama.modeling_llama", "datasets", "deepspeed",
    "peft", "accelerate", "matplotlib.pyplot", "pydantic", "tenacity", "torchdata.stateful_dataloader",
    "trl.trainer.dpo_trainer", "trl.trainer.grpo_trainer", "trl.trainer.rloo_trainer", "trl.trainer.sft_trainer",
)  # fmt: skip


def run_python(*arguments: object, python: str | None = None, **more: Any) -> subprocess.CompletedProcess[str]:
    """``python ARGUMENTS`` in the project's folder, warm if no other is named; ``more`` is for ``subprocess.run``."""
    settings: dict[str, Any] = {"cwd": ROOT, "capture_output": True, "text": True, "timeout": 500, "check": False}
    return subprocess.run([python or warm_python(), *map(str, arguments)], **settings | more)


@cache
def warm_python() -> str:
    """The command; the process that imports is started by the first call, and ends with the one that called."""
    import atexit
    import shlex
    import shutil
    import tempfile

    folder = Path(tempfile.mkdtemp(prefix="warm-"))  # a socket's path has to be short
    with socket.socket(socket.AF_UNIX) as listener, (folder / "stderr").open("w") as errors:
        listener.bind(str(folder / "socket"))
        listener.listen(16)
        hidden = [str(ROOT / "tests" / "support/vllm_hidden"), *filter(None, [os.environ.get("PYTHONPATH")])]
        importer = subprocess.Popen(
            [sys.executable, __file__, "serve", str(listener.fileno()), str(folder)],
            # A thread does not survive a fork, and CUDA that was asked for devices does not either.
            env=os.environ | {"PYTHONPATH": os.pathsep.join(hidden), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
                              "PYTORCH_NVML_BASED_CUDA_CHECK": "1", "DS_ACCELERATOR": "cpu", "MPLBACKEND": "agg"},
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=errors,
            pass_fds=[listener.fileno()],
        )  # fmt: skip

    def end() -> None:
        importer.kill()
        importer.communicate()
        shutil.rmtree(folder)

    atexit.register(end)
    (folder / "pid").write_text(str(importer.pid))
    command = folder / "python"
    client = shlex.join([sys.executable, "-IS", __file__, "ask", str(folder)])
    command.write_text(f'#!/bin/sh\nexec {client} "$@"\n')
    command.chmod(0o755)
    return str(command)


def cpu_s() -> float:
    """CPU time of all commands that have ended and of the process that imports."""
    if not warm_python.cache_info().currsize:
        return 0.0
    try:
        process = Path(warm_python()).with_name("pid").read_text()
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def ask(folder: Path, arguments: list[str]) -> int:
    """The client: have a script run, and end as it does."""
    if arguments[0] == "-c":
        os.execv(sys.executable, [sys.executable, *arguments])
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(str(folder / "socket"))
            socket.send_fds(connection, [b"\n"], [0, 1, 2])
            request = {"arguments": arguments, "folder": os.getcwd(), "environment": dict(os.environ)}
            connection.sendall(json.dumps(request).encode() + b"\n")
            code = int(connection.makefile().readline())
        except (OSError, ValueError):
            sys.exit(f"the warm interpreter is gone: {(folder / 'stderr').read_text()[-3000:]}")
    if code < 0:
        with suppress(OSError):  # SIGKILL cannot be set
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


def serve(listener: socket.socket, folder: Path) -> None:
    """Import, then fork for each client, until pytest is gone; returns in the forked process, which is to run a script."""
    import gc
    import importlib
    import selectors
    import shutil

    for name in IMPORTED:
        importlib.import_module(name)
    # Or DeepSpeed would compile, for a minute, an all-reduce through shared memory that training does not use.
    sys.modules["deepspeed.ops"].__compatible_ops__ = {}  # type: ignore[attr-defined]
    gc.freeze()
    events = selectors.DefaultSelector()
    events.register(listener, selectors.EVENT_READ)
    events.register(0, selectors.EVENT_READ)
    running: dict[socket.socket, int] = {}
    while True:
        for key, _ in events.select():
            if key.fd == 0:
                shutil.rmtree(folder, ignore_errors=True)
                os._exit(0)
            if key.fileobj is listener:
                client = listener.accept()[0]
                _, given, _, _ = socket.recv_fds(client, 1, 3)
                request = client.makefile().readline()
                if not (pid := os.fork()):
                    for place, descriptor in enumerate(given):
                        os.dup2(descriptor, place)
                        os.close(descriptor)
                    for held in (client, listener, events, *running):
                        held.close()
                    for held in running.values():
                        os.close(held)
                    become(**json.loads(request))
                    return
                for descriptor in given:
                    os.close(descriptor)
                running[client] = os.pidfd_open(pid)
                events.register(client, selectors.EVENT_READ)
                events.register(running[client], selectors.EVENT_READ, (client, pid))
            elif key.data:
                client, pid = key.data
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                with suppress(OSError):
                    client.sendall(f"{code}\n".encode())
                for held in (client, key.fd):
                    with suppress(KeyError):
                        events.unregister(held)
                os.close(running.pop(client))
                client.close()
            elif key.fileobj in running:  # the client was killed
                events.unregister(key.fileobj)
                signal.pidfd_send_signal(running[key.fileobj], signal.SIGKILL)


def become(arguments: list[str], folder: str, environment: dict[str, str]) -> None:
    """Take on what the interpreter would have been started with."""
    import random

    import numpy as np

    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    if arguments[0] == "-u":
        sys.stdout.reconfigure(write_through=True)  # type: ignore[union-attr]
        del arguments[0]
    sys.argv[:] = arguments
    np.random.seed(random.SystemRandom().getrandbits(32))


def finish(code: int) -> NoReturn:
    """End as the interpreter does, but for tearing down what all commands share, which takes a second."""
    import atexit
    import threading

    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads, and ends those of executors
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def run_main() -> int:
    """Run ``sys.argv`` as ``__main__``; the exit code."""
    import runpy

    try:
        if sys.argv[0] == "-m":
            del sys.argv[0]
            sys.path[0] = os.getcwd()
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        else:
            sys.path[0] = str(Path(sys.argv[0]).resolve().parent)
            runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except BaseException:  # noqa: BLE001  # as the interpreter does
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


if __name__ == "__main__":
    if sys.argv[1] == "ask":
        sys.exit(ask(Path(sys.argv[2]), sys.argv[3:]))
    serve(socket.socket(fileno=int(sys.argv[2])), Path(sys.argv[3]))
    finish(run_main())
