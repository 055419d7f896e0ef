"""What a reward does for those who watch a run: its log, and canaries. Does nothing where neither is asked for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from mrjudge_reward.errors import InputError
from mrjudge_reward.judge import Judge
from mrjudge_reward.types import Judgement

from .canaries import Canaries, CanaryReport, CanaryWatch
from .run_log import RunLogWriter, log_name, read_run


def described(judge: Judge) -> dict[str, Any]:
    """A judge's settings, as a reader of its log wants to know them."""
    return {
        "judge": judge.engine.name,
        "format": type(judge.format).__name__,
        "schedule": judge.schedule.name,
        "rating": judge.rating.name,
        "verdict": judge.settings.verdict_mode,
    }


class RunMonitor:
    """The log and the canaries of one reward, on one rank. Picklable.

    Args:
        folder: of the run's log; None for no log.
        name: of the reward.
        canaries: None for none.
    """

    def __init__(self, folder: str | os.PathLike[str] | None, name: str, canaries: Canaries | None) -> None:
        self.folder = folder
        self._name = name
        self._canaries = canaries
        self._writer: RunLogWriter | None = None
        self._watch: CanaryWatch | None = None

    # -- canaries -----------------------------------------------------------------------------------------------------

    def due(self, step: int) -> bool:
        """Whether canaries are to be judged with this step. Only one rank may ask."""
        if self._canaries is None:
            return False
        if self._watch is None:
            self._watch = CanaryWatch(self._canaries, self._first_report())
        return self._watch.due(step)

    def measure(self, judge: Judge, step: int) -> CanaryReport:
        """Judge the canaries."""
        assert self._watch is not None
        return self._watch.measure(judge, step)

    def stop_if_asked(self, report: CanaryReport) -> None:
        """See ``CanaryWatch.stop_if_asked``."""
        assert self._watch is not None
        self._watch.stop_if_asked(report)

    def _first_report(self) -> CanaryReport | None:
        """The measurement before training, from the log of a run that goes on."""
        if self.folder is None:
            return None
        try:
            batches = read_run(self.folder, log_name(self._name)).batches
            return next((CanaryReport.read(batch.canaries) for batch in batches if batch.canaries), None)
        except (InputError, OSError, TypeError, KeyError):  # no log yet, or none that can be read
            return None

    # -- log ----------------------------------------------------------------------------------------------------------

    def writer(self, rank: int) -> RunLogWriter | None:
        """Of the log; None where none is written."""
        if self._writer is None and self.folder is not None:
            self._writer = RunLogWriter(self.folder, self._name, rank)
        return self._writer

    def log(
        self,
        rank: int,
        step: int,
        mode: str,
        judge: Judge,
        judgements: Sequence[Judgement],
        rewards: Sequence[Sequence[float | None]],
        lengths: Sequence[Sequence[int]],
        measured: CanaryReport | None,
    ) -> None:
        """See ``RunLogWriter.batch``."""
        if (writer := self.writer(rank)) is None:
            return
        record = measured.record() if measured is not None else None
        writer.batch(step, mode, judgements, rewards, lengths, described(judge), record)
