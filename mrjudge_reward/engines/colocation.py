"""A judge on a device that others use too: awake while it judges, asleep while they work.

>>> engine = ColocatedEngine(partial(VLLMServerEngine, "Qwen/Qwen3-8B", enable_sleep_mode=True))  # doctest: +SKIP
>>> judge = Judge(engine)  # one turn on the device per batch of groups, over all its rounds  # doctest: +SKIP

A **turn** is one guarded section: take the device, wake, judge, drain, sleep, give the device back. It ends asleep also
after an exception or an interrupt. Loading the model is a turn as well. The device is a file lock, one per physical
device, in a folder of this user on this machine (``$MRJUDGE_LOCKS``, else in the temporary folder), so no two judges
that take turns are ever awake on one device, whatever their processes. A process that dies gives its locks back.
What an interrupt cannot stop at once, such as a thread that waits for a server to be started anew, keeps the turn until it
is done. Turns do not nest: whoever has one and asks for another on the same device waits for itself, up to ``wait_s``.

What others do with the device is not seen. A trainer is still while it waits for its rewards; what torch only keeps for
later in this process is given back first. A rollout engine should be asleep by then: TRL 1.16 puts its own to sleep at
the end of ``generate`` with ``vllm_enable_sleep_mode=True`` (trl/generation/vllm_generation.py), and otherwise never. Code
of your own can take turns too::

    with DeviceTurns(["cuda:0"], "my rollouts").turn():
        ...

Containers that share a device need one ``$MRJUDGE_LOCKS`` in common.
"""

from __future__ import annotations

import logging
import os
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from filelock import FileLock, Timeout

from mrjudge_reward.errors import ConfigError, EngineError, require
from mrjudge_reward.images import Picture
from mrjudge_reward.types import EngineFailure, Reply, Request

from .cancelling import cancelled
from .contract import Engine

logger = logging.getLogger(__name__)

_SAY_AFTER_S = 30.0  # of waiting


@runtime_checkable
class SleepingEngine(Engine, Protocol):
    """An engine that can give its device's memory back and take it again; both do nothing where nothing is to be done."""

    def wake(self) -> None:
        """Take the device's memory."""
        ...

    def sleep(self) -> None:
        """Wait for the calls in flight and give the memory back."""
        ...


def lock_folder() -> Path:
    """Where the locks are: ``$MRJUDGE_LOCKS``, or a folder of this user among the temporary ones."""
    given = os.environ.get("MRJUDGE_LOCKS")
    return Path(given) if given else Path(tempfile.gettempdir()) / f"mrjudge-locks-{getattr(os, 'getuid', int)()}"


def physical_name(device: str) -> str:
    """A name of a device that is the same in every process: ``CUDA_VISIBLE_DEVICES`` renumbers, so CUDA's own id.

    >>> physical_name("cpu")
    'cpu'
    """
    if not device.startswith("cuda"):
        return device.replace(":", "-")
    torch = require("torch", extra="transformers")
    return f"cuda-{torch.cuda.get_device_properties(torch.device(device)).uuid}"


class DeviceTurns:
    """Turns on devices, one holder at a time among all processes.

    Args:
        devices: e.g. ``["cuda:0"]``.
        who: is told to others who wait.
        wait_s: the longest wait for a turn.
    """

    def __init__(self, devices: Sequence[str], who: str, wait_s: float = 1800.0) -> None:
        self.devices, self.who, self.wait_s = tuple(devices), who, wait_s
        folder = lock_folder()
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            fault = _fault_of(folder, shared="MRJUDGE_LOCKS" in os.environ)
        except OSError as error:
            fault = str(error)
        if fault:
            raise ConfigError(
                f"the locks of devices cannot be kept in {folder} ({fault}); set MRJUDGE_LOCKS to a folder of yours"
            )
        # Always in the same order: two that want the same two devices must not wait for each other.
        names = sorted({physical_name(device) for device in devices})
        self._paths = [folder / f"{name}.lock" for name in names]
        self._here = threading.Lock()  # a file lock lets in whoever has it already

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Hold the devices.

        Raises:
            EngineError: if they are not free within ``wait_s``; it names the holder.
        """
        with ExitStack() as held:
            if not self._here.acquire(timeout=self.wait_s):
                raise EngineError(f"{self.who} had no turn within {self.wait_s:g} s; this process has one already")
            held.callback(self._here.release)
            for path in self._paths:
                # A new one per turn, as none may cross a fork. Not per thread: the last of several threads to leave a
                # turn gives it back, whoever took it.
                lock = FileLock(path, thread_local=False)
                held.callback(lock.release)  # does nothing before it is taken
                try:
                    if path.is_symlink():
                        raise OSError("it is a link, which somebody may have planted: remove it")
                    self._take(lock, path)
                except OSError as error:
                    raise EngineError(f"{path} cannot be locked ({error}); set MRJUDGE_LOCKS") from error
                with suppress(OSError):  # it is for messages alone
                    _write(_holder_file(path), f"process {os.getpid()} ({self.who})")
            yield

    def _take(self, lock: FileLock, path: Path) -> None:
        try:
            lock.acquire(timeout=min(_SAY_AFTER_S, self.wait_s))
            return
        except Timeout:
            if self.wait_s > _SAY_AFTER_S:
                logger.warning("%s waits for its turn on %s, held by %s", self.who, path.stem, _holder(path))
        try:
            lock.acquire(timeout=max(0.0, self.wait_s - _SAY_AFTER_S))
        except Timeout:
            raise EngineError(
                f"{self.who} had no turn on {path.stem} within {self.wait_s:g} s; it is held by {_holder(path)}"
            ) from None


def _fault_of(folder: Path, shared: bool) -> str:
    """Why a folder is not safe to keep locks in; empty if it is. Others could point a lock at a file of this user.

    Args:
        folder: to look at.
        shared: whether it was named by the user, so that it may belong to root and be written to by a group.
    """
    found = os.lstat(folder)
    if stat.S_ISLNK(found.st_mode) and not shared:
        return "it is a link, which somebody may have planted"
    found = os.stat(folder)
    if not stat.S_ISDIR(found.st_mode):
        return "it is no folder"
    user = getattr(os, "getuid", lambda: found.st_uid)()
    if found.st_uid not in ((user, 0) if shared else (user,)):
        return f"it belongs to user {found.st_uid}, and this is user {user}"
    sticky = shared and found.st_mode & stat.S_ISVTX
    if found.st_mode & (stat.S_IWOTH if shared else stat.S_IWOTH | stat.S_IWGRP) and not sticky:
        return f"others may write to it: its mode is {stat.S_IMODE(found.st_mode):o}, 700 is safe"
    return ""


def _write(path: Path, text: str) -> None:
    """Write a small file, which must not be a link."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_NOFOLLOW", 0)
    with open(os.open(path, flags, 0o644), "w", encoding="utf-8") as file:
        file.write(text)


def _holder_file(path: Path) -> Path:
    return path.with_suffix(".holder")


def _holder(path: Path) -> str:
    try:
        return _holder_file(path).read_text(encoding="utf-8")
    except OSError:
        return "an unknown process"


def _empty_cache() -> None:
    """Give back what a trainer in this process only keeps for later, such as the logits of its last forward pass."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


class ColocatedEngine(Engine):
    """An engine that is awake in its turns only.

    A turn spans ``session()``, which :class:`~mrjudge_reward.judge.Judge` enters once for a batch of groups; a verb that
    is called outside of one takes a turn of its own. Threads that are in a session at once share the turn.

    Args:
        build: makes the engine, which can then wake and sleep. It is called within a turn, once here and again in a
            process that this engine was pickled to.
        devices: that the engine runs on.
        wait_s: the longest wait for a turn.

    Attributes:
        engine: the one within.
        turns: how many turns there were, the loading included.
        awake_s: seconds in turns, waiting for them not included.

    Raises:
        ConfigError: if the engine cannot sleep.
        EngineError: if it cannot be loaded, or no turn was to be had.
    """

    def __init__(
        self, build: Callable[[], Engine], devices: Sequence[str] = ("cuda:0",), wait_s: float = 1800.0
    ) -> None:
        self._build, self._devices, self._wait_s = build, tuple(devices), wait_s
        self._changing = threading.Lock()
        self._inside = 0
        self._turn = ExitStack()
        self.turns, self.awake_s, self._since = 0, 0.0, 0.0
        self._device = DeviceTurns(devices, "a judge that loads", wait_s)
        with self._device.turn():
            started = time.perf_counter()
            _empty_cache()
            engine = build()
            if not isinstance(engine, SleepingEngine):
                engine.close()
                raise ConfigError(f"{engine.name} cannot sleep, so it cannot share a device")
            self.engine: SleepingEngine = engine
            try:
                self._put_to_sleep()
            except BaseException:
                engine.close()
                raise
            self.turns, self.awake_s = 1, time.perf_counter() - started
        self.identity, self._device.who = engine.identity, engine.name
        self.reserved, self.context_tokens = engine.reserved, engine.context_tokens
        self.can_read, self.weights_checksum = engine.can_read, engine.weights_checksum
        self.concurrent_calls, self.weights_may_change = engine.concurrent_calls, engine.weights_may_change

    # -- turns --------------------------------------------------------------------------------------------------------

    @contextmanager
    def session(self) -> Iterator[None]:
        """Be awake.

        Raises:
            EngineError: if there is no turn within ``wait_s``, the engine does not wake, or (last of all) does not sleep.
        """
        with self._changing:  # who comes second waits until the engine is awake
            if not self._inside:
                if cancelled():  # a thread that was left behind must not wake it for nobody
                    raise EngineError("judging was cancelled")
                self._begin()
            self._inside += 1
        try:
            yield
        finally:
            with self._changing:
                self._inside -= 1
                if not self._inside:
                    self._end()

    def _begin(self) -> None:
        with ExitStack() as turn:
            turn.enter_context(self._device.turn())
            turn.callback(self._put_to_sleep)  # also if waking fails half-way
            self._since = time.perf_counter()
            _empty_cache()
            self.engine.wake()
            self._turn = turn.pop_all()

    def _end(self) -> None:
        try:
            self._turn.close()
        finally:
            self.turns += 1
            self.awake_s += time.perf_counter() - self._since

    def _put_to_sleep(self) -> None:
        try:
            self.engine.sleep()
        except KeyboardInterrupt:
            self.engine.sleep()  # a second interrupt must not leave the judge on the policy's device
            raise

    # -- the engine ---------------------------------------------------------------------------------------------------

    def generate(self, requests: Sequence[Request]) -> list[Reply | EngineFailure]:
        """Let the judge write."""
        with self.session():
            return self.engine.generate(requests)

    def label_logprobs(self, requests: Sequence[Request]) -> list[Reply | EngineFailure]:
        """Read how likely each label is right after the prefill."""
        with self.session():
            return self.engine.label_logprobs(requests)

    @property
    def name(self) -> str:
        """Of the engine within."""
        return self.engine.name

    def prompt_text(self, request: Request) -> str | None:
        """A request as the model reads it; needs no turn."""
        return self.engine.prompt_text(request)

    def count_tokens(self, text: str) -> int:
        """Tokens of a text; needs no turn."""
        return self.engine.count_tokens(text)

    def image_tokens(self, picture: Picture) -> int | None:
        """Tokens of an image; needs no turn."""
        return self.engine.image_tokens(picture)

    def close(self) -> None:
        """End the engine; safe to call twice."""
        self.engine.close()

    def __getstate__(self) -> dict[str, Any]:
        return {"build": self._build, "devices": self._devices, "wait_s": self._wait_s}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]
