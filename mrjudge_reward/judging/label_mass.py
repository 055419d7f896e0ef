"""Whether the judge would have written a label at all where its labels were read, and what it would rather have written."""

from __future__ import annotations

import logging
import statistics
from collections import Counter, deque
from collections.abc import Iterable

from mrjudge_reward.scoring.stats import Watch
from mrjudge_reward.types import Verdict

logger = logging.getLogger(__name__)

LOW = 0.1
"""Probability of the labels together, below which a read says little: it compares what the judge hardly considers."""

_LEAST, _WINDOW = 32, 256


class LabelMassWatch(Watch):
    """Warns once when the labels of the latest reads held little probability, in the median."""

    def __init__(self) -> None:
        super().__init__()
        self._latest: deque[tuple[float, str]] = deque(maxlen=_WINDOW)
        self._warned = False

    def observe(self, verdicts: Iterable[Verdict]) -> None:
        """Count verdicts, read ones and others."""
        with self._lock:
            self._latest.extend((v.label_mass, v.likeliest) for v in verdicts if v.label_mass is not None)
            if self._warned or len(self._latest) < _LEAST:
                return
            median = statistics.median(mass for mass, _ in self._latest)
            if median >= LOW:
                return
            self._warned = True
            would = Counter(token for _, token in self._latest if token).most_common(3)
        rather = (
            f" It would rather write {', '.join(f'{token!r} ({count})' for token, count in would)}." if would else ""
        )
        logger.warning(
            "the labels held %.2g of the probability together, in the median of %d reads, so a verdict compares what the "
            "judge hardly considers.%s Look at what it is shown (mrjudge doctor --show-prompt), let it think first "
            "(thinking_tokens), or let it write (verdict: generate). This is said once.",
            median, len(self._latest), rather,
        )  # fmt: skip
