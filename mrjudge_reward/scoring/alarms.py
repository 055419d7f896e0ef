"""What is watched while a judge works: it goes by the slot, its labels are improbable, or it fails too often.

The first two are said once, the last ends the run.
"""

from __future__ import annotations

import math
import statistics
import threading
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from mrjudge_reward.errors import JudgeUnreliableError
from mrjudge_reward.once import Once
from mrjudge_reward.types import Judgement, NoVerdict, Outcome, Verdict

from .cures import cure_of
from .stats import asked_of, most_frequent
from .tally import debiased_consistency, position_consistency

LOW = 0.1
"""Probability of the labels together, below which a read says little: it compares what the judge hardly considers."""

_LEAST, _WINDOW = 32, 256


class _Shared:
    """What several threads tell what has come. Its lock is left behind when it is pickled or copied."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=threading.Lock())


class SlotWatch(_Shared):
    """Says once that a judge goes by the slot.

    Args:
        least: pairs in both orders that must have been seen.
        limit: consistency up to which it is said; for reads, that without the bias they share decides.
    """

    def __init__(self, least: float = 32, limit: float = 0.2) -> None:
        super().__init__()
        self.least, self.limit = least, limit
        self._agreeing = self._mirrored = self._debiased_agreeing = self._debiased_mirrored = 0
        self._once = Once()

    def observe(self, judgements: Sequence[Judgement]) -> None:
        """Judgements have come."""
        asked = [asked_of(judgement) for judgement in judgements]
        counts = [position_consistency(items) for items in asked]
        debiased_agreeing, debiased_mirrored = debiased_consistency(asked)
        with self._lock:
            self._agreeing += sum(agreeing for agreeing, _ in counts)
            self._mirrored += sum(mirrored for _, mirrored in counts)
            self._debiased_agreeing += debiased_agreeing
            self._debiased_mirrored += debiased_mirrored
            if self._mirrored < self.least or self._agreeing > self.limit * self._mirrored:
                return
            without = self._debiased_agreeing / self._debiased_mirrored if self._debiased_mirrored else math.nan
            if without > 0.6:  # its reads name one slot, and their margins tell
                return
        written = (
            "written verdicts then say next to nothing about the answers, and reads of label probabilities often still "
            "order them (verdict='logprobs')"
        )
        read = f"without the bias that all reads share, which ratings take out, it is {without:.2f}, and .5 there is a coin"
        self._once.warn(
            "slot",
            f"position consistency is {self._agreeing / self._mirrored:.2f} over {self._mirrored} pairs shown in both "
            "orders: the judge goes by the slot (0: the slot alone decides; .5: a coin; 1: the slot does not matter); "
            f"{written if math.isnan(without) else read}.",
        )


class LabelMassWatch(_Shared):
    """Warns once when the labels of the latest reads held little probability, in the median."""

    def __init__(self) -> None:
        super().__init__()
        self._latest: deque[tuple[float, str]] = deque(maxlen=_WINDOW)
        self._once = Once()

    def observe(self, verdicts: Iterable[Verdict]) -> None:
        """Count verdicts, read ones and others."""
        with self._lock:
            self._latest.extend((v.label_mass, v.likeliest) for v in verdicts if v.label_mass is not None)
            if len(self._latest) < _LEAST:
                return
            median = statistics.median(mass for mass, _ in self._latest)
            if median >= LOW:
                return
            would = Counter(token for _, token in self._latest if token).most_common(3)
        rather = (
            f" It would rather write {', '.join(f'{token!r} ({count})' for token, count in would)}." if would else ""
        )
        self._once.warn(
            "label mass",
            f"the labels held {median:.2g} of the probability together, in the median of {len(self._latest)} reads, so a "
            f"verdict compares what the judge hardly considers.{rather} Look at what it is shown (mrjudge doctor "
            "--show-prompt), let it think first (thinking_tokens), or let it write (verdict: generate).",
        )


@dataclass
class FailureAlarm(_Shared):
    """Stops a run when too many of the latest comparisons failed.

    Args:
        max_fraction: the most that may fail; 1 switches the alarm off.
        window: how many of the latest comparisons count.
        least: no alarm before this many have been seen (or a full window, if that is shorter).
    """

    max_fraction: float = 0.5
    window: int = 256
    least: int = 32

    def __post_init__(self) -> None:
        super().__init__()
        self._latest: deque[NoVerdict | None] = deque(maxlen=self.window)

    def observe(self, outcomes: Iterable[Outcome]) -> None:
        """Count comparisons, in the order they were decided.

        Raises:
            JudgeUnreliableError: if more than ``max_fraction`` of the window failed; it names the reasons. The window
                is then empty, so that a caller who mends the judge can go on with it.
        """
        with self._lock:
            self._latest.extend(outcome if isinstance(outcome, NoVerdict) else None for outcome in outcomes)
            seen = len(self._latest)
            failed = [outcome for outcome in self._latest if outcome is not None]
            if seen < min(self.least, self.window) or len(failed) <= self.max_fraction * seen:
                return
            self._latest.clear()
        reasons = Counter(outcome.reason for outcome in failed)
        rejected = Counter(outcome.rejected for outcome in failed if outcome.rejected)
        commonest = reasons.most_common(1)[0][0]
        typical = next(outcome for outcome in reversed(failed) if outcome.reason == commonest)
        shown = "; ".join(f"{one.reason}: {one.detail}".rstrip(": ") for one in dict.fromkeys((typical, failed[-1])))
        raise JudgeUnreliableError(
            f"{len(failed)} of the last {seen} judgements failed (limit {self.max_fraction:.0%}); most often: "
            f"{most_frequent(reasons, rejected)}; latest: {shown}. Rewards from so few verdicts would be noise: "
            f"{cure_of(typical.reason, typical.detail)}; mrjudge doctor shows more. To go on all the same, "
            "raise max_failed_fraction."
        )
