"""A judge model whose weights live in host memory and visit the device to judge.

For a judge that does not fit beside the policy while the policy trains. The weights never change, so they are copied to
the device and dropped there, never copied back. The copy in host memory is pinned where CUDA is.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any

from mrjudge_reward.errors import EngineError, require
from mrjudge_reward.types import EngineFailure, Reply, Request

from .engine import TransformersEngine

logger = logging.getLogger(__name__)


class OffloadEngine(TransformersEngine):
    """``TransformersEngine`` that holds its device only while it judges.

    Each call wakes it and puts it to sleep again, also after an exception. Several calls in a row stay awake between
    ``wake()`` and ``sleep()``; ``ColocatedEngine`` does that for a batch of groups. On a CPU there is nothing to
    offload; a warning says so once.

    Args:
        model: hub name or path. A loaded model is somebody else's and is not moved.
        settings: see ``TransformersEngine``.

    Raises:
        EngineError: if the model is a loaded one, or cannot be loaded.
    """

    def __init__(self, model: str, **settings: Any) -> None:
        if not isinstance(model, str):
            raise EngineError(f"give the judge model's name or path; a loaded {type(model).__name__} is not moved")
        super().__init__(model, **settings)

    def _load(self) -> None:
        self._moving = threading.RLock()
        self._awake = False
        target, self._device = self._device, "cpu"
        try:
            super()._load()
        finally:
            self._device = target
        torch = require("torch", extra="transformers")
        device = torch.device(target)
        if device.type == "cpu":
            logger.warning("%s judges on the CPU: there is nothing to offload", self._source)
        tensors = [*self._model.parameters(), *self._model.buffers()]  # tied ones come once
        pinned = device.type == "cuda"
        self._homes = [(tensor, tensor.data.pin_memory() if pinned else tensor.data) for tensor in tensors]
        self.sleep()

    @property
    def awake(self) -> bool:
        """Whether the weights are on the device."""
        return self._awake

    def wake(self) -> None:
        """Bring the weights to the device; on failure none stays there.

        Raises:
            EngineError: if the engine was closed, or there is no room.
        """
        torch = require("torch", extra="transformers")
        try:
            self._move_in()
        except torch.OutOfMemoryError as error:
            raise EngineError(f"no room on {self._device} for the judge {self.name}: {error}") from error

    def _move_in(self) -> None:
        with self._moving:
            if self._model is None:
                raise EngineError(f"{self.name} was closed")
            if self._awake:
                return
            try:
                for tensor, home in self._homes:
                    tensor.data = home.to(self._device, non_blocking=True)
                self._awake = True
            finally:
                if not self._awake:
                    self.sleep()

    def sleep(self) -> None:
        """Give the device's memory back; the weights are where they live."""
        torch = require("torch", extra="transformers")
        with self._moving:
            for tensor, home in self._homes:
                tensor.data = home
            self._awake = False
            if self._device.startswith("cuda"):
                torch.cuda.empty_cache()

    def generate(self, requests: Sequence[Request]) -> list[Reply | EngineFailure]:
        """Let the judge write."""
        return self._awake_for(super().generate, requests)

    def label_logprobs(self, requests: Sequence[Request]) -> list[Reply | EngineFailure]:
        """Read how likely each label is right after the prefill."""
        return self._awake_for(super().label_logprobs, requests)

    def _awake_for(
        self, verb: Callable[[Sequence[Request]], list[Reply | EngineFailure]], requests: Sequence[Request]
    ) -> list[Reply | EngineFailure]:
        torch = require("torch", extra="transformers")
        with self._moving:  # nobody puts it to sleep in the middle of a call
            stays = self._awake
            try:
                try:
                    self._move_in()
                except torch.OutOfMemoryError as error:
                    return [EngineFailure("out of memory", f"no room for the judge: {error}"[:300])] * len(requests)
                return verb(requests)
            finally:
                if not stays:
                    self.sleep()

    def close(self) -> None:
        """Let go of the model, on the device and off it; safe to call twice."""
        with self._moving:
            self.sleep()
            self._homes = []
            super().close()

    def __getstate__(self) -> dict[str, Any]:
        dropped = ("_moving", "_awake", "_homes")
        return {name: value for name, value in super().__getstate__().items() if name not in dropped}
