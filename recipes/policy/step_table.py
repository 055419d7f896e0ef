"""What a training run on a judge prints and logs: a row per step, with the seconds of its parts."""

from __future__ import annotations

import json
import math
import re
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mrjudge_reward import json_lines
from mrjudge_reward.cli.lines import plain
from mrjudge_reward.integrations.trl import JudgeReward
from mrjudge_reward.types import Grades, Judgement

COLUMNS = {
    "step": "4d", "reward": "+7.3f", "spread": "7.3f", "grade": "6.3f", "consistency": "8.2f", "failed": "7.2f",
    "generate_s": "9.1f", "judge_s": "8.1f", "update_s": "8.1f",
}  # fmt: skip
HEAD = "step  reward  spread  grade consist.  failed generate s  judge s update s"


def row_line(row: Mapping[str, float | None]) -> str:
    """A step as a line of the table; a dash for what is unknown (None, or NaN as some trainers say it)."""
    cells = []
    for name, form in COLUMNS.items():
        value = row[name]
        width = int(re.findall(r"\d+", form)[0])
        cells.append("-".rjust(width) if value is None or math.isnan(value) else f"{value:{form}}")
    return " ".join(cells)


def mean_grade(judgements: list[Judgement]) -> float | None:
    """Mean grade over candidates judged alone; None for formats that do not grade."""
    grades = [
        value
        for judgement in judgements
        for item in judgement.played
        if isinstance(item.verdict.outcome, Grades)
        for value in item.verdict.outcome.values_K
    ]
    return statistics.mean(grades) if grades else None


def timed(trainer_class: type[Any]) -> type[Any]:
    """A GRPO or RLOO trainer whose ``seconds`` tell how long the step's generations and rewards took so far."""

    class TimedTrainer(trainer_class):  # type: ignore[misc]
        def __init__(self, *inputs: Any, **settings: Any) -> None:
            self.seconds = {"generate": 0.0, "judge": 0.0}
            super().__init__(*inputs, **settings)

        def _generate(self, *inputs: Any) -> Any:
            started = time.perf_counter()
            result = super()._generate(*inputs)
            self.seconds["generate"] += time.perf_counter() - started
            return result

        def _calculate_rewards(self, *inputs: Any) -> Any:
            started = time.perf_counter()
            result = super()._calculate_rewards(*inputs)
            self.seconds["judge"] += time.perf_counter() - started
            return result

    return TimedTrainer


def cut_log(log: Path, step: int) -> None:
    """Leave the rows up to a step: a run that goes on from a checkpoint writes the later ones again."""
    if log.exists():
        whole = [line for line in log.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
        log.write_bytes(b"".join(line for line in whole if json_lines.parsed(line)["step"] <= step))


def step_table(reward: JudgeReward, seconds: dict[str, float], log: Path) -> Any:
    """A trainer's callback that prints a row per step and writes it, with all metrics, to a file of JSON lines.

    Args:
        reward: whose judgements are shown.
        seconds: of a :func:`timed` trainer.
        log: the file; rows are added to it.
    """
    import transformers

    class Table(transformers.TrainerCallback):  # type: ignore[misc]
        started = 0.0

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.started = time.perf_counter()
            seconds.update(generate=0.0, judge=0.0)

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float | None], **_: Any) -> None:
            if "reward" not in logs or not state.is_world_process_zero:
                return
            total = time.perf_counter() - self.started
            reward_mean = logs["reward"]
            row: dict[str, float | None] = {
                "step": state.global_step,
                "reward": None if reward_mean is None else round(reward_mean, 4) + 0.0,  # no -0.0
                "spread": logs["reward_std"],
                "grade": mean_grade(reward.last_judgements),
                "consistency": logs[f"{reward.__name__}/position_consistency"],
                "failed": logs[f"{reward.__name__}/failed_rate"],
                "generate_s": seconds["generate"],
                "judge_s": seconds["judge"],
                "update_s": total - seconds["generate"] - seconds["judge"],
            }
            print(row_line(row), flush=True)
            with log.open("a", encoding="utf-8") as file:
                print(json.dumps(plain({**row, "metrics": logs}), allow_nan=False), file=file)

    return Table()
