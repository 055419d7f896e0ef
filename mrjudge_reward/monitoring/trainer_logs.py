"""What trainers leave in a run's folder: transformers' ``trainer_state.json`` and verl's ``file`` logger.

Both are optional. What cannot be read is left out: the judge's own log is enough for a report.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mrjudge_reward.errors import InputError
from mrjudge_reward.json_lines import parsed

TrainerLogs = dict[int, dict[str, float]]
"""Step → name → value."""

_TIMES = {"gen": "generate", "reward": "judge", "update_actor": "update", "update_critic": "update"}
"""verl's timers (``timing_s/...``), as parts of a step."""


def trainer_logs(folder: Path) -> TrainerLogs:
    """What trainers logged, found in the folder and its checkpoints; newer checkpoints hold all that older ones do."""
    found: TrainerLogs = {}
    states = [*folder.glob("trainer_state.json"), *folder.glob("checkpoint-*/trainer_state.json")]
    histories = (history for path in states if (history := _history(path)))  # one at a time: all of them are many
    for entry in max(histories, key=lambda history: max(map(_step, history)), default=[]):
        found.setdefault(_step(entry), {}).update(_numbers(entry))
    for path in sorted(folder.glob("*.jsonl")):
        for step, data in _verl_lines(path):
            found.setdefault(step, {}).update(_numbers(data))
    return found


def step_seconds(logs: Mapping[str, float]) -> dict[str, float]:
    """Where a step's time went, as far as verl says."""
    parts: dict[str, float] = {}
    for timer, part in _TIMES.items():
        if (value := logs.get(f"timing_s/{timer}")) is not None:
            parts[part] = parts.get(part, 0.0) + value
    return parts


def _step(entry: Mapping[str, Any]) -> int:
    return int(entry.get("step", 0))


def _history(path: Path) -> list[dict[str, Any]]:
    try:
        history = json.loads(path.read_text(encoding="utf-8"))["log_history"]
        return [entry for entry in history if isinstance(entry, dict) and _step(entry) >= 0]
    except (OSError, ValueError, TypeError, KeyError):
        return []


def _verl_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        with path.open("rb") as file:
            for raw in file:
                try:
                    line = parsed(raw)
                except InputError:
                    continue  # torn
                if line.keys() != {"step", "data"}:
                    return  # another kind of file
                if isinstance(line["data"], dict) and isinstance(line["step"], int):
                    yield line["step"], line["data"]
    except OSError:
        return


def _numbers(entry: Mapping[str, Any]) -> dict[str, float]:
    return {
        sys.intern(str(name)): float(value)  # one name for all steps
        for name, value in entry.items()
        if isinstance(value, int | float) and name != "step" and math.isfinite(value)
    }
