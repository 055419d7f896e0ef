"""One table from the reports in a folder of runs: a row per judge and task.

    python -m recipes.evaluate.table runs/cpu

Reads every ``NAME/report.json`` of ``judge.py``, ``baselines.py`` and ``studies/train_side_by_side.py`` below the folder.
Runs that differ by a seed alone (``NAME``, ``NAME-seed1``, ...) become one row: the mean of the runs, and the mean of their
95 % intervals, which are over items (how far seeds lie apart stands in parentheses).
"""

from __future__ import annotations

import argparse
import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from mrjudge_reward.errors import InputError
from recipes.common.intervals import written

SHOWN = ("accuracy", "both", "consistency", "averaged", "order", "failed", "tokens")


def joined(values: Sequence[Any]) -> str:
    """A figure over seeds; empty where no run has it."""
    found = [value for value in values if value is not None]
    if len(found) < 2:
        return written(found[0]) if found else ""
    means = [value[0] if isinstance(value, list) else value for value in found]
    around = f" ({min(means):.3f} to {max(means):.3f})"
    if all(isinstance(value, list) for value in found):
        return written([fmean(part) for part in zip(*found, strict=True)]) + around
    return f"{fmean(means):.3f}{around}"


def table(reports: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown.

    Args:
        reports: name of a run → task → measure → figure.
    """
    runs: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for name, tasks in sorted(reports.items()):
        runs[re.sub(r"-seed\d+", "", name)].append(tasks)
    lines = [f"| judge | seeds | task | {' | '.join(SHOWN)} |", "|---" * (len(SHOWN) + 3) + "|"]
    for name, found in runs.items():
        for task in dict.fromkeys(task for tasks in found for task in tasks):
            rows = [tasks[task] for tasks in found if task in tasks]
            cells = [joined([row.get(measure) for row in rows]) for measure in SHOWN]
            lines.append(f"| {name} | {len(rows)} | {task} | {' | '.join(cells)} |")
    return "\n".join(lines)


def read(folder: Path) -> dict[str, dict[str, Any]]:
    """Reports by the names of their runs; what needs no judge is a run for each method.

    Raises:
        InputError: if there are none.
    """
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("*/report.json")):
        report = json.loads(path.read_text(encoding="utf-8"))
        if "tasks" in report:
            found[path.parent.name] = report["tasks"]
            continue
        for task, methods in report.items():
            for method, figure in methods.items():
                if method != "items":
                    found.setdefault(method, {})[task] = {"accuracy": figure, "both": figure}
    if not found:
        raise InputError(f"no report.json in the folders of {folder}")
    return found


def main() -> None:
    """Print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs")
    print(table(read(Path(parser.parse_args().runs))))


if __name__ == "__main__":
    main()
