"""The run's log and the canaries where a judge sees no steps, only groups that come and come: verl's judge actor."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence

from mrjudge_reward.errors import InputError
from mrjudge_reward.judge import Judge
from mrjudge_reward.monitoring.canaries import Canaries, CanaryReport
from mrjudge_reward.monitoring.monitor import RunMonitor
from mrjudge_reward.monitoring.run_log import log_name, read_run
from mrjudge_reward.types import Judgement

LINE_GROUPS = 16
"""Groups of a line of the log, where they come one by one. So many may be missing at the end of a run."""

NAME = "judge"


class StreamMonitor(RunMonitor):
    """Counts groups; every ``LINE_GROUPS`` of them, or every batch, is a "step" of the log, and canaries' ``every`` counts
    groups as well. A judge that is asked from several threads measures in one of them.

    Args:
        folder: of the run's log; None for no log.
        canaries: None for none.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None, canaries: Canaries | None = None) -> None:
        super().__init__(folder, NAME, canaries)
        self._lock = threading.Lock()
        self._seen = 0
        self._step: int | None = None
        self._waiting: list[tuple[Judgement, Sequence[float | None], Sequence[int]]] = []
        self._measured: CanaryReport | None = None

    def come(self, groups: int) -> bool:
        """So many groups are to be judged; whether canaries are to be judged with them."""
        with self._lock:
            self._seen += groups
            return groups > 0 and self.due(self._seen)

    def check(self, judge: Judge) -> None:
        """Judge the canaries.

        Raises:
            JudgeDriftedError: if the judge fails them and they are set to stop the run.
        """
        report = self.measure(judge, self._seen)
        with self._lock:
            self._measured = report
        self.stop_if_asked(report)

    def judged(
        self,
        judge: Judge,
        judgements: Sequence[Judgement],
        rewards: Sequence[Sequence[float | None]],
        lengths: Sequence[Sequence[int]],
    ) -> None:
        """Groups were judged and rewarded."""
        if self.folder is None:
            return
        with self._lock:
            self._waiting += zip(judgements, rewards, lengths, strict=True)
            if len(judgements) == 1 and len(self._waiting) < LINE_GROUPS:
                return
            waiting, self._waiting = self._waiting, []
            measured, self._measured = self._measured, None
            self._step = (self._step if self._step is not None else self._last_step()) + 1
            self.log(
                0, self._step, "train", judge, [judgement for judgement, _, _ in waiting],
                [rewards_G for _, rewards_G, _ in waiting], [lengths_G for _, _, lengths_G in waiting], measured,
            )  # fmt: skip

    def _last_step(self) -> int:
        """Where the log of a run that goes on ends."""
        assert self.folder is not None
        try:
            return max((batch.step for batch in read_run(self.folder, log_name(NAME)).batches), default=0)
        except (InputError, OSError):
            return 0
