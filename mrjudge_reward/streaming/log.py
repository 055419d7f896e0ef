"""The run's log, metrics and canaries where groups come one by one, and training steps are told afterwards, if at all."""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import replace

from mrjudge_reward.errors import InputError
from mrjudge_reward.judge import Judge
from mrjudge_reward.monitoring.canaries import Canaries, CanaryReport
from mrjudge_reward.monitoring.monitor import RunMonitor
from mrjudge_reward.monitoring.run_log import log_name, read_run
from mrjudge_reward.scoring.stats import JudgeStats
from mrjudge_reward.types import Judgement

logger = logging.getLogger(__name__)

LINE_GROUPS = 16
"""Groups of a line of the log, where they come one by one. Where no steps are told, so many may be missing at the end."""

NAME = "judge"

REPORT_S = 60.0
"""Seconds between two reports in the program's own log."""

_Rewarded = tuple[Judgement, Sequence[float | None], Sequence[int]]


def _counted(rewarded: Sequence[_Rewarded]) -> JudgeStats:
    judgements, rewards, lengths = zip(*rewarded, strict=True) if rewarded else ((), (), ())
    return JudgeStats.of(judgements, rewards, lengths)


class _Step:
    """What was judged of one mode since the last step ended."""

    def __init__(self) -> None:
        self.waiting: list[_Rewarded] = []
        self.stats = JudgeStats()


class StreamMonitor(RunMonitor):
    """Counts groups; canaries' ``every`` counts groups as well. A judge that is asked from several threads measures in one
    of them.

    Args:
        folder: of the run's log; None for no log.
        canaries: None for none.
        stepped: whether ``end_step`` tells where training steps end, so that the log counts these. Otherwise every
            ``LINE_GROUPS`` groups, or every batch, are a "step" of the log.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str] | None = None,
        canaries: Canaries | None = None,
        stepped: bool = False,
    ) -> None:
        super().__init__(folder, NAME, canaries)
        self._lock = threading.Lock()
        self._judge: Judge | None = None
        self._seen = 0
        self._stepped = stepped
        self._ended: int | None = None
        self._steps = {mode: _Step() for mode in ("train", "eval")}
        self._measured: CanaryReport | None = None
        self._told: dict[str, float] = {}
        self._total, self._unreported, self._next_report = JudgeStats(), JudgeStats(), -math.inf

    @property
    def stats(self) -> JudgeStats:
        """Of everything judged."""
        with self._lock:
            return sum((_counted(step.waiting) for step in self._steps.values()), self._total)

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
            self._measured, self._told = report, report.metrics()
        self.stop_if_asked(report)

    def judged(
        self,
        judge: Judge,
        judgements: Sequence[Judgement],
        rewards: Sequence[Sequence[float | None]],
        lengths: Sequence[Sequence[int]],
        validation: Sequence[bool],
    ) -> None:
        """Groups were judged and rewarded; per group, whether it is of a validation."""
        with self._lock:
            self._judge = judge
            for rewarded, of_validation in zip(zip(judgements, rewards, lengths, strict=True), validation, strict=True):
                self._steps["eval" if of_validation else "train"].waiting.append(rewarded)
            for mode, step in self._steps.items():
                if len(step.waiting) >= (LINE_GROUPS if len(judgements) == 1 else 1):
                    self._line(mode)

    def end_step(self, number: int, trained: bool = True) -> dict[str, float]:
        """A training step has ended; or, where none was trained, the validation after it.

        Returns:
            Metrics of what was judged since the last one ended, as in the log: ``judge/...``, and ``val-judge/...`` of
            validation groups; none of what was not judged.
        """
        with self._lock:
            metrics: dict[str, float] = {}
            if self._stepped:
                self._ended = number - 1 if trained else number
            for mode, prefix in (("train", "judge"), ("eval", "val-judge")):
                self._line(mode)
                stats, self._steps[mode] = self._steps[mode].stats, _Step()
                if stats.groups:
                    metrics |= {f"{prefix}/{name}": value for name, value in stats.metrics().items()}
            metrics |= {f"judge/{name}": value for name, value in self._told.items()}
            self._told = {}
            if self._stepped:
                self._ended = number
            return metrics

    def _line(self, mode: str) -> None:
        """Count what waits, and write it where there is a log."""
        waiting, self._steps[mode].waiting = self._steps[mode].waiting, []
        if not waiting:
            return
        judgements, rewards, lengths = zip(*waiting, strict=True)
        before, stats = self._steps[mode].stats, _counted(waiting)
        self._steps[mode].stats = replace(before + stats, seconds=before.seconds + stats.seconds)
        self._total += stats
        self._report(stats)
        if self.folder is None or self._judge is None:
            return
        measured, self._measured = self._measured, None
        number = (self._ended if self._ended is not None else self._last_step()) + 1
        if not self._stepped:
            self._ended = number
        self.log(0, number, mode, self._judge, judgements, rewards, lengths, measured)

    def _report(self, stats: JudgeStats) -> None:
        """Log what was judged since the last report, at most every ``REPORT_S`` seconds."""
        self._unreported += stats
        if time.monotonic() < self._next_report:
            return
        recent, self._unreported = self._unreported, JudgeStats()
        self._next_report = time.monotonic() + REPORT_S
        rates = recent.metrics()
        why = f" ({recent.failures}; {recent.advice})" if recent.failures else ""
        logger.log(
            logging.WARNING if recent.failed else logging.INFO,
            "judged %d groups: %d of %d judgements failed%s; %d of %d completions without a score; position consistency "
            "%.2f, ties %.2f, %d groups without spread, %d calls, %d tokens",
            recent.groups, recent.failed, recent.comparisons, why, recent.abstained, recent.candidates,
            rates["position_consistency"], rates["tie_rate"], recent.zero_spread_groups, recent.calls, rates["tokens"],
        )  # fmt: skip

    def _last_step(self) -> int:
        """Where the log of a run that goes on ends."""
        assert self.folder is not None
        try:
            return max((batch.step for batch in read_run(self.folder, log_name(NAME)).batches), default=0)
        except (InputError, OSError):
            return 0
