"""A mean with its 95 % interval, and how such figures are written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Interval = tuple[float, float, float]
"""A mean with its 95 % interval."""


def interval(values: Sequence[Sequence[float]], resamples: int, seed: int) -> Interval:
    """Mean over all values, and its interval by a bootstrap over items, whose values stand or fall together.

    Args:
        values: of each item, one or several; an item may have more of them than another.
        resamples: of the bootstrap.
        seed: of the bootstrap.
    """
    sums, counts = (np.array([f(item) for item in values], dtype=float) for f in (sum, len))
    draws = np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))
    means = sums[draws].sum(axis=1) / counts[draws].sum(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(sums.sum() / counts.sum()), float(low), float(high)


def written(value: Any) -> str:
    """A figure for a reader: a mean with its interval, a share, a count, or nothing for None."""
    if isinstance(value, list | tuple):
        return f"{value[0]:.3f} [{value[1]:.3f}, {value[2]:.3f}]"
    return "" if value is None else str(value) if isinstance(value, int) else f"{value:.3f}"


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Lines of a Markdown table with a column for every name in any of the rows; texts stand as they are."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = ([v if isinstance(v := row.get(name), str) else written(v) for name in names] for row in rows)
    head, *rest = [f"| {' | '.join(line)} |" for line in (names, *cells)]
    return [head, "|---" * len(names) + "|", *rest]
