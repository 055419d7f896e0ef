"""Writing a run's log: whole lines, one writer to a file, and no error that would end the run."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import random
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from mrjudge_reward.once import Once
from mrjudge_reward.scoring.stats import JudgeStats
from mrjudge_reward.sole_writer import SoleWriter
from mrjudge_reward.types import Judgement

from .lines import LoggedGroup, RewardSums

MAX_METRICS = 200
"""Metrics of the trainer that are logged at a time."""


def log_name(name: str) -> str:
    """A reward's name as it stands in the names of its files."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name)


class RunLogWriter:
    """Appends to one rank's file of a run. Never raises; picklable.

    Args:
        folder: of the run; made if it is not there.
        name: of the reward.
        rank: of this process.
        groups: of each batch, how many are logged with their texts; drawn by ``seed``, so that a rerun draws the same.
        seed: of the draw.
    """

    def __init__(
        self, folder: str | os.PathLike[str], name: str = "judge", rank: int = 0, groups: int = 2, seed: int = 0
    ) -> None:
        self.path = Path(folder) / f"{log_name(name)}.rank{rank}.jsonl"
        self._groups = groups
        self._seed = seed
        self._begun = False
        self._once = Once()
        self._sole: SoleWriter | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_begun": False, "_sole": None}

    def batch(
        self,
        step: int,
        mode: str,
        judgements: Sequence[Judgement],
        rewards: Sequence[Sequence[float | None]],
        lengths: Sequence[Sequence[int]],
        about: Mapping[str, Any] | None = None,
        canaries: Mapping[str, Any] | None = None,
    ) -> None:
        """Log a batch that was judged together.

        Args:
            step: which the batch is for, counted from 1.
            mode: ``"train"`` or ``"eval"``.
            judgements, rewards, lengths: per group.
            about: the judge's settings, for the file's first line.
            canaries: what was measured with this batch (``CanaryReport.record``).
        """

        def line() -> dict[str, Any]:
            draw = random.Random(f"{self._seed} {mode} {step}")
            drawn = sorted(draw.sample(range(len(judgements)), min(self._groups, len(judgements))))
            return {
                "kind": "batch",
                "step": step,
                "mode": mode,
                "stats": JudgeStats.of(judgements, rewards, lengths).record(),
                "rewards": dataclasses.asdict(RewardSums.of(rewards, lengths)),
                "groups": [dataclasses.asdict(LoggedGroup.of(judgements[i], rewards[i], lengths[i])) for i in drawn],
                "canaries": canaries,
            }

        self._append(line, about)

    def seconds(self, step: int, **seconds: float) -> None:
        """Log where the time of a step went, e.g. ``generate=3.1, judge=1.2, update=0.8``."""
        self._append(lambda: {"kind": "seconds", "step": step, "seconds": seconds})

    def trainer(self, step: int, logs: Mapping[str, Any]) -> None:
        """Log what the trainer logged; what is no number is left out."""
        numbers = ((str(name), float(value)) for name, value in logs.items() if isinstance(value, int | float))
        kept = dict([(name, value) for name, value in numbers if math.isfinite(value)][:MAX_METRICS])
        self._append(lambda: {"kind": "trainer", "step": step, "logs": kept})

    def _append(self, line: Any, about: Mapping[str, Any] | None = None) -> None:
        try:
            text = ""
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self._sole is None or not self._sole.holds(self.path):
                self._sole, self._begun = _sole_writer(self.path), False
            if not self._begun:
                _drop_torn_line(self.path)
                text = _encoded({"kind": "start", "version": 1, "about": dict(about or {})})
            text += _encoded(line())
            with self.path.open("ab") as file:
                file.write(text.encode())
            self._begun = True
        except Exception as error:  # noqa: BLE001  a log must not end a run, whatever is wrong with it
            self._once.warn(
                "log",
                f"the run goes on without its log: {self.path} cannot be written ({type(error).__name__}: {error}).",
            )


_sole: WeakValueDictionary[Path, SoleWriter] = WeakValueDictionary()


def _sole_writer(path: Path) -> SoleWriter:
    """Of a log; the writers of one process share it."""
    place = path.absolute()
    held = _sole.get(place)
    if held is None or not held.holds(path):
        held = _sole[place] = SoleWriter(path)
    return held


def _encoded(record: Mapping[str, Any]) -> str:
    return json.dumps({**record, "time": round(time.time(), 3)}, ensure_ascii=True) + "\n"


def _drop_torn_line(path: Path) -> None:
    """Remove what a crash left behind the last whole line."""
    if not path.exists():
        return
    with path.open("r+b") as file:
        end = file.seek(0, os.SEEK_END)
        at, tail = end, b""
        while at > 0 and b"\n" not in tail:
            at = max(0, at - 65536)
            file.seek(at)
            tail = file.read(min(65536, end - at))
        file.truncate(at + tail.rfind(b"\n") + 1)
