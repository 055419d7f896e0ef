"""Reading a run's log: lines of ranks and calls added up by step, groups found again in the file when they are wanted."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from mrjudge_reward.errors import InputError
from mrjudge_reward.scoring.stats import JudgeStats

from .lines import LoggedGroup, RewardSums

_NAME = re.compile(r"(?P<name>.+)\.rank(?P<rank>\d+)\.jsonl")


class GroupPlace(NamedTuple):
    """Where a logged group lies: the groups of a long run do not fit into memory.

    Attributes:
        path: of the file.
        offset: of its line, in bytes.
        number: among the line's groups.
    """

    path: Path
    offset: int
    number: int

    def read(self) -> LoggedGroup:
        """The group."""
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return LoggedGroup.read(json.loads(file.readline())["groups"][self.number])


@dataclass(frozen=True)
class LoggedBatch:
    """All that was judged for a step, over ranks and calls."""

    step: int
    mode: str
    stats: JudgeStats
    rewards: RewardSums
    places: tuple[GroupPlace, ...] = ()
    canaries: Mapping[str, Any] | None = None

    @property
    def groups(self) -> tuple[LoggedGroup, ...]:
        """The logged groups, read from the file."""
        return tuple(place.read() for place in self.places)


@dataclass(frozen=True)
class RunLog:
    """A run, as far as it was logged.

    Attributes:
        name: of the reward.
        about: the judge's settings.
        batches: by mode and step.
        seconds: step → where its time went.
        trainer: step → what the trainer logged.
        started, ended: seconds since the epoch of the first and the last line.
        damaged: lines that could not be read, a torn last line not counted.
    """

    name: str
    about: Mapping[str, Any]
    batches: tuple[LoggedBatch, ...]
    seconds: Mapping[int, Mapping[str, float]]
    trainer: Mapping[int, Mapping[str, float]]
    started: float
    ended: float
    damaged: int = 0


@dataclass
class _RankLog:
    """What counts of one rank's file, added up line by line."""

    about: dict[str, Any] = field(default_factory=dict)
    batches: dict[tuple[str, int], LoggedBatch] = field(default_factory=dict)
    seconds: dict[int, dict[str, float]] = field(default_factory=dict)
    trainer: dict[int, dict[str, float]] = field(default_factory=dict)
    started: float = math.inf
    ended: float = -math.inf
    damaged: int = 0

    def forget_from(self, step: int) -> None:
        """A later process begins at this step: what the one before logged from there on is superseded."""
        self.batches = {place: batch for place, batch in self.batches.items() if place[1] < step}
        self.seconds = {at: of for at, of in self.seconds.items() if at < step}
        self.trainer = {at: of for at, of in self.trainer.items() if at < step}

    def add(self, line: Mapping[str, Any], path: Path, offset: int) -> None:
        """Raises what a line raises that holds something else than its kind does."""
        match line["kind"]:
            case "start":
                self.about = self.about or dict(line["about"])
            case "batch":
                batch = _read_batch(line, path, offset)
                place = (batch.mode, batch.step)
                self.batches[place] = _joined(self.batches[place], batch, True) if place in self.batches else batch
            case "seconds":
                self.seconds[line["step"]] = _numbers(line["seconds"])
            case "trainer":
                self.trainer.setdefault(line["step"], {}).update(_numbers(line["logs"]))
            case kind:
                raise ValueError(f"unknown kind {kind!r}")
        self.started, self.ended = min(self.started, line["time"]), max(self.ended, line["time"])


def _read_rank(path: Path) -> _RankLog:
    """One rank's file, whatever its size. What an earlier process logged of steps that a later one went over is left out."""
    found = _RankLog()
    fresh, offset = False, 0
    with path.open("rb") as file:
        for raw in file:
            if not raw.endswith(b"\n"):
                break  # torn
            try:
                line = json.loads(raw)
                kind = line["kind"]
                line["time"] = float(line["time"])
                if kind == "start":
                    fresh = True
                else:
                    line["step"] = int(line["step"])
                    if fresh:
                        found.forget_from(line["step"])
                    fresh = False
                found.add(line, path, offset)
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
                found.damaged += 1
            offset += len(raw)
    return found


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {sys.intern(str(name)): float(value) for name, value in values.items()}  # one name for all lines


def log_files(folder: str | os.PathLike[str], name: str | None = None) -> tuple[str, list[Path]]:
    """The name of a run's reward, and its files by rank.

    Raises:
        InputError: if there is no log, or several rewards logged and none is named.
    """
    files: dict[str, list[tuple[int, Path]]] = {}
    for path in sorted(Path(folder).glob("*.rank*.jsonl")):
        if match := _NAME.fullmatch(path.name):
            files.setdefault(match["name"], []).append((int(match["rank"]), path))
    if not files:
        raise InputError(
            f"{folder} holds no log of a judge (*.rank0.jsonl); set log_dir of JudgeReward, or mrjudge.log_dir in a verl "
            "config, and run again"
        )
    if name is None and len(files) > 1:
        raise InputError(f"{folder} holds logs of several rewards: {', '.join(files)}; choose one with --name")
    chosen = name if name is not None else next(iter(files))
    if chosen not in files:
        raise InputError(f"{folder} holds no log of {chosen!r}; there is {', '.join(files)}")
    return chosen, [path for _, path in sorted(files[chosen])]


def read_run(folder: str | os.PathLike[str], name: str | None = None) -> RunLog:
    """Read the log of a run.

    Args:
        folder: of the run.
        name: of the reward; may be left out where only one logged.

    Raises:
        InputError: as ``log_files``, or if no line can be read.
    """
    name, files = log_files(folder, name)
    batches: dict[tuple[str, int], LoggedBatch] = {}
    seconds: dict[int, dict[str, float]] = {}
    trainer: dict[int, dict[str, float]] = {}
    about: dict[str, Any] = {}
    started, ended, damaged = math.inf, -math.inf, 0
    for path in files:
        rank = _read_rank(path)
        about = about or rank.about
        for place, batch in rank.batches.items():
            batches[place] = _joined(batches[place], batch, False) if place in batches else batch
        seconds |= rank.seconds
        for step, logs in rank.trainer.items():
            trainer[step] = trainer[step] | logs if step in trainer else logs
        started, ended, damaged = min(started, rank.started), max(ended, rank.ended), damaged + rank.damaged
    if started > ended:
        raise InputError(f"{files[0]} holds no line that can be read")
    ordered = tuple(batch for _, batch in sorted(batches.items()))
    of_steps, logs_of_steps = dict(sorted(seconds.items())), dict(sorted(trainer.items()))
    return RunLog(name, about, ordered, of_steps, logs_of_steps, started, ended, damaged)


def _read_batch(line: Mapping[str, Any], path: Path, offset: int) -> LoggedBatch:
    for group in line["groups"]:
        LoggedGroup.read(group)  # so that a line that holds something else counts as damaged
    return LoggedBatch(
        step=int(line["step"]),
        mode=str(line["mode"]),
        stats=JudgeStats.read(line["stats"]),
        rewards=RewardSums(**line["rewards"]),
        places=tuple(GroupPlace(path, offset, number) for number in range(len(line["groups"]))),
        canaries=line.get("canaries"),
    )


def _joined(one: LoggedBatch, two: LoggedBatch, after_each_other: bool) -> LoggedBatch:
    stats = one.stats + two.stats
    if after_each_other:
        stats = dataclasses.replace(stats, seconds=one.stats.seconds + two.stats.seconds)
    return LoggedBatch(
        one.step, one.mode, stats, one.rewards + two.rewards, one.places + two.places, one.canaries or two.canaries
    )
