"""Parts of the studies that ask one judge about pairs: work that is kept chunk by chunk, and whom a verdict is for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.progress import track

from mrjudge_reward.engines.contract import Engine
from mrjudge_reward.settings import Settings
from mrjudge_reward.types import Comparison, Grades, Verdict
from recipes.common.resumable import ResumableRows
from recipes.common.votes import ahead, for_slot


def finished(
    study: Settings,
    folder: Path,
    count: int,
    engine: Engine | None,
    build: Callable[[], Engine],
    ask: Callable[[Engine, int], dict[str, Any]],
) -> list[dict[str, Any]]:
    """What is kept of every chunk; those that the folder lacks are asked about now.

    Args:
        study: all settings.
        folder: of the run.
        count: of chunks.
        engine: use this one instead of building it.
        build: makes the engine, if anything is left to ask.
        ask: what is to be kept of a chunk, by its number.

    Raises:
        ConfigError: see ``ResumableRows``.
    """
    progress = ResumableRows(folder, study.model_dump(mode="json"))
    try:
        left = [number for number in range(count) if number not in progress.entries]
        if left:
            shared = engine if engine is not None else build()
            try:
                for number in track(left, "Pairs"):
                    progress.add([{"row": number, **ask(shared, number)}])
            finally:
                if engine is None:
                    shared.close()
        return [progress.entries[number] for number in range(count)]
    finally:
        progress.close()


def sides(verdicts: Sequence[Verdict], orders: Sequence[Comparison]) -> list[float | None]:
    """Per order, how far the verdict is for candidate 0, from 0 to 1; None for a failure."""
    if len(orders[0].slots) == 1:  # graded alone: one comparison
        grades = [v.outcome.values_K[0] if isinstance(v.outcome, Grades) else None for v in verdicts]
        return [None if grades[0] is None or grades[1] is None else ahead(grades[0], grades[1])]
    return [for_slot(verdict.outcome, order.slots.index(0)) for verdict, order in zip(verdicts, orders, strict=True)]
