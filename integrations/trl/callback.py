"""What TRL's trainer tells those who watch: what it logs, and where the seconds of a step went."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from transformers import TrainerCallback

from mrjudge_reward.monitoring.run_log import RunLogWriter


class RunLogCallback(TrainerCallback):  # type: ignore[misc]
    """Writes to a run's log; added to the trainer by ``JudgeReward`` with its first call, so the first step has no times.

    In a step, what passes before the judge is called is generation, what passes after it the update; where a step generates
    for several, the others are all update.
    """

    def __init__(self, log: RunLogWriter) -> None:
        self.log = log
        self._began: float | None = None
        self._mark = self._generating = self._judging = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """A step of the optimizer begins."""
        self._began = self._mark = time.perf_counter()
        self._generating = self._judging = 0.0

    def on_substep_end(self, *_: Any, **__: Any) -> None:
        """One of several backward passes of a step has ended."""
        self._mark = time.perf_counter()

    def judged(self, began: float, ended: float) -> None:
        """The judge was called; in ``time.perf_counter``'s seconds."""
        self._generating += max(0.0, began - self._mark)
        self._judging += ended - began
        self._mark = ended

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The optimizer has stepped."""
        if self._began is None:
            return
        whole = time.perf_counter() - self._began
        update = max(0.0, whole - self._generating - self._judging)
        self.log.seconds(state.global_step, generate=self._generating, judge=self._judging, update=update)
        self._began = None

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **_: Any) -> None:
        """The trainer has logged."""
        if state.is_world_process_zero and logs:
            self.log.trainer(state.global_step, logs)
