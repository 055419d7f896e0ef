"""A vLLM server as a child process: private port and key, a log, and no way to outlive the process that started it."""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mrjudge_reward.engines.openai.engine import OpenAIEngine
from mrjudge_reward.errors import EngineError

from . import supervise

logger = logging.getLogger(__name__)

_TAIL_BYTES = 4096
_OF_A_LAUNCHER = (
    "RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE",
    "ROLE_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_USE_AGENT_STORE", "TORCHELASTIC_RUN_ID",
    "TORCHELASTIC_RESTART_COUNT", "TORCHELASTIC_MAX_RESTARTS", "TORCH_NCCL_ASYNC_ERROR_HANDLING",
)  # fmt: skip
"""What a launcher of training processes sets; vLLM must not take the trainer's process group for its own."""
_ALLOCATORS = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")


def reserve_port() -> socket.socket:
    """A socket that holds a free port of 127.0.0.1 without listening, so that only a server told of it takes it."""
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # vLLM sets it too: then both may have the port
    held.bind(("127.0.0.1", 0))
    return held


def command_line(arguments: Mapping[str, Any], port: int, adapter: tuple[str, str] | None) -> list[str]:
    """The command that serves a model.

    Args:
        arguments: of ``vllm.EngineArgs``.
        port: on 127.0.0.1.
        adapter: name and path of a LoRA adapter.

    >>> command_line({"model": "m", "enforce_eager": True, "enable_chunked_prefill": False}, 8000, None)[3:]
    ['--model', 'm', '--enforce-eager', '--no-enable-chunked-prefill', '--host', '127.0.0.1', ...]
    """
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    for name, value in arguments.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            command.append(f"--{flag}" if value else f"--no-{flag}")
        elif isinstance(value, list | tuple):
            command += [f"--{flag}", *map(str, value)]
        elif value is not None:
            command += [f"--{flag}", json.dumps(value) if isinstance(value, Mapping) else str(value)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--enable-prompt-tokens-details"]
    command += ["--middleware", "mrjudge_reward.engines.vllm.guard.RequireKey", "--disable-uvicorn-access-log"]
    if adapter is not None:
        command += ["--lora-modules", json.dumps({"name": adapter[0], "path": adapter[1]})]
    return command


def environment(
    api_key: str, device: str | None, sleeps: bool, base: Mapping[str, str], gpus: int = 1
) -> dict[str, str]:
    """The child's environment.

    Args:
        api_key: that the server asks for.
        device: e.g. ``"cuda:1"``, among those visible; None for all, or under a launcher for the rank's own.
        sleeps: whether the server offers sleep.
        base: this process's environment.
        gpus: over which the model is laid; each rank of a launcher has as many of its own.
    """
    child = {name: value for name, value in base.items() if name not in _OF_A_LAUNCHER}
    child["VLLM_API_KEY"] = api_key
    root = str(Path(__file__).parents[3])  # the middleware must be found where this package is found
    child["PYTHONPATH"] = os.pathsep.join(filter(None, (root, base.get("PYTHONPATH"))))
    if sleeps:
        child["VLLM_SERVER_DEV_MODE"] = "1"
        for name in _ALLOCATORS:  # vLLM's sleep mode refuses expandable segments
            if "expandable_segments:True" in child.get(name, ""):
                del child[name]
    index = device.rpartition(":")[2] if device and ":" in device else (None if device else base.get("LOCAL_RANK"))
    if index is not None and index.isdigit():
        visible = base.get("CUDA_VISIBLE_DEVICES", "")
        first = int(index) * gpus
        names = visible.split(",") if visible else [str(number) for number in range(first + gpus)]
        if first + gpus <= len(names):
            child["CUDA_VISIBLE_DEVICES"] = ",".join(names[first : first + gpus])
    return child


class ServerChild:
    """One run of the server.

    Args:
        command: see ``command_line``.
        environment: see ``environment``.
        port: it listens on.
        log_path: its output is appended here.
        engine: the client. It is closed when the server dies, which ends the calls in flight.

    Attributes:
        pid: of the server; 0 if it was never started.
        died: why there is no server any more; empty while there is, or after ``stop``.
    """

    def __init__(
        self, command: list[str], environment: Mapping[str, str], port: int, log_path: Path, engine: OpenAIEngine
    ) -> None:
        self.engine, self.died = engine, ""
        self._port, self._key, self._log_path = port, environment["VLLM_API_KEY"], log_path
        self._owner, self._stopping, self._calls = os.getpid(), False, 0
        self._changed = threading.Condition()
        with log_path.open("ab") as log:
            self._supervisor = subprocess.Popen(
                [sys.executable, "-I", supervise.__file__, str(os.getpid()), *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=dict(environment),
                start_new_session=True,  # an interrupt in the terminal is for this process, not for the server
            )
        assert self._supervisor.stdout is not None
        self.pid = int(self._supervisor.stdout.readline() or 0)
        self._watcher = threading.Thread(target=self._watch, name="mrjudge-vllm-watch", daemon=True)
        self._watcher.start()

    def _watch(self) -> None:
        status = self._supervisor.wait()
        if self.pid:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)  # what is left if the supervisor itself was killed
        with self._changed:
            if self._stopping:
                return
            self.died = f"the judge server ended (exit status {status}); its log {self._log_path} ends:\n{self.tail()}"
            self._changed.notify_all()
        while self.calls_in_flight:
            self.engine.close()  # more than once: a call may have connected just now
            time.sleep(0.05)

    def tail(self) -> str:
        """The end of the log."""
        try:
            with self._log_path.open("rb") as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - _TAIL_BYTES))
                return log.read().decode(errors="replace").strip()
        except OSError as error:
            return f"(the log cannot be read: {error})"

    # -- calls ----------------------------------------------------------------------------------------------------------

    @property
    def calls_in_flight(self) -> int:
        """How many calls are between ``begin`` and ``end``."""
        with self._changed:
            return self._calls

    def begin(self) -> None:
        """Note that a call begins."""
        with self._changed:
            self._calls += 1

    def end(self) -> None:
        """Note that a call ended."""
        with self._changed:
            self._calls -= 1
            self._changed.notify_all()

    def drain(self) -> None:
        """Wait until no call is in flight."""
        with self._changed:
            self._changed.wait_for(lambda: not self._calls)

    def ask(self, method: str, path: str, body: Any = None, timeout_s: float = 300.0) -> Any:
        """One request outside the OpenAI protocol; no proxy is asked.

        Raises:
            EngineError: if the server does not answer, or with an error.
        """
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=timeout_s)
        headers = {"Authorization": f"Bearer {self._key}", "Content-Type": "application/json"}
        try:
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            text = answer.read().decode(errors="replace")
        except (OSError, http.client.HTTPException) as error:
            raise EngineError(f"the judge server does not answer {path}: {error!r}") from error
        finally:
            connection.close()
        if answer.status != 200:
            raise EngineError(f"the judge server answers {path} with {answer.status}: {text[:500]}")
        try:
            return json.loads(text) if text else None
        except ValueError:
            return text

    def wait_until_ready(self, timeout_s: float) -> int | None:
        """Wait for the first answer.

        Returns:
            The most tokens a request and its reply may hold.

        Raises:
            EngineError: if the server ends before it is ready, or is not ready in time; with the end of its log.
        """
        until = time.monotonic() + timeout_s
        while not self.died:
            with contextlib.suppress(EngineError):
                models = self.ask("GET", "/v1/models", timeout_s=5.0)
                with contextlib.suppress(LookupError, TypeError):
                    return int(models["data"][0]["max_model_len"])
                return None
            if time.monotonic() > until:
                raise EngineError(
                    f"the judge server was not ready after {timeout_s:g} s; its log {self._log_path} ends:\n{self.tail()}"
                )
            with self._changed:
                self._changed.wait_for(lambda: self.died, timeout=0.25)
        raise EngineError(self.died)

    @contextlib.contextmanager
    def ended_if_this_fails(self, what: str, raises: bool = True) -> Iterator[None]:
        """A server in an unknown state is ended, and counts as one that died.

        Raises:
            EngineError: if it is ended and ``raises``; with the end of its log.
        """
        try:
            yield
        except EngineError as error:
            why = f"the judge server did not {what} and was ended ({error}); its log {self._log_path} ends:\n{self.tail()}"
            self.died = self.died or why  # by itself, with a reason of its own; noted before an interrupt can come
            self.stop()
            if raises:
                raise EngineError(self.died) from error
            logger.warning("%s", self.died)

    def stop(self) -> None:
        """End the server and everything it started; safe to call twice."""
        if self._owner != os.getpid():  # forked: it belongs to another process
            return
        with self._changed:
            self._stopping = True
        self.engine.close()
        for pipe in (self._supervisor.stdin, self._supervisor.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()  # the supervisor ends the server, then itself
        try:
            self._supervisor.wait(timeout=3 * supervise.GRACE_S)
        except subprocess.TimeoutExpired:
            self._supervisor.kill()
        if threading.current_thread() is not self._watcher:
            self._watcher.join(timeout=supervise.GRACE_S)


@contextlib.contextmanager
def call_to(child: ServerChild) -> Iterator[OpenAIEngine]:
    """The client for a call that ``child.begin()`` announced."""
    try:
        yield child.engine
    finally:
        child.end()
