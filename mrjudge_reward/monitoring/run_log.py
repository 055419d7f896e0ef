"""A run's log: what the judge did, batch by batch, for ``mrjudge report`` and whoever reads JSON lines.

One file per rank and reward, ``judge.rank0.jsonl``, in the run's folder. A line is complete when it is there: it is appended
and flushed at once, and a line that a crash cut off is ignored on reading and removed when the run goes on. One process
writes to a file at a time. What is logged never ends a run: where the disk or another writer says no, one warning is all
that happens, and what follows is tried again.

=============  ======================================================================================================
a line's kind  holds
=============  ======================================================================================================
start          the judge's settings; every process of a run that is continued writes one
batch          counts of ``JudgeStats``, sums over rewards and lengths, a bounded sample of groups, canaries if measured
seconds        where a step's time went
trainer        what the trainer logged
=============  ======================================================================================================

Lines of ranks, and of several calls in a step, are added up on reading, which keeps sums and finds the texts of a group in
the file again where they are wanted: memory grows with the steps, not with the file. A run that goes on from a checkpoint
repeats steps: lines of the process before, from that step on, count no more.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import random
import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import numpy as np

from mrjudge_reward.errors import InputError
from mrjudge_reward.prompting.rendering import conversation_text
from mrjudge_reward.scoring.ratings import bradley_terry_fit
from mrjudge_reward.scoring.stats import JudgeStats
from mrjudge_reward.scoring.tally import count_games
from mrjudge_reward.sole_writer import SoleWriter
from mrjudge_reward.types import JudgedComparison, Judgement

from .explain import criterion_record, verdict_record

logger = logging.getLogger(__name__)

MAX_CHARS = 4000
"""Longest text that is logged; of a longer one the middle is cut."""

MAX_CANDIDATES = 16
"""Candidates of a group that are logged, the first ones."""

MAX_VERDICTS = 64
"""Verdicts of a group that are logged, the first ones."""

MAX_FITTED = 128
"""Largest group to which Bradley-Terry strengths are fitted for the log."""

MAX_METRICS = 200
"""Metrics of the trainer that are logged at a time."""

_NAME = re.compile(r"(?P<name>.+)\.rank(?P<rank>\d+)\.jsonl")


# -- what a line holds ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RewardSums:
    """Sums over the rewards of a batch, from which means over several ranks can be taken.

    Attributes:
        known, total, squares: rewards that are not None; their sum, and that of their squares.
        groups, spread: groups with two known rewards or more; sum of their standard deviations.
        lengths, length: how many lengths, and their sum.
    """

    known: int = 0
    total: float = 0.0
    squares: float = 0.0
    groups: int = 0
    spread: float = 0.0
    lengths: int = 0
    length: float = 0.0

    @classmethod
    def of(cls, rewards: Sequence[Sequence[float | None]], lengths: Sequence[Sequence[int]]) -> RewardSums:
        """Sum up a batch: per group, a reward and a length per candidate."""
        known = [[value for value in rewards_G if value is not None] for rewards_G in rewards]
        several = [values for values in known if len(values) > 1]
        flat = [value for values in known for value in values]
        sizes = [size for lengths_G in lengths for size in lengths_G]
        return cls(
            len(flat), math.fsum(flat), math.fsum(value * value for value in flat), len(several),
            math.fsum(float(np.std(values)) for values in several), len(sizes), float(sum(sizes)),
        )  # fmt: skip

    def __add__(self, other: RewardSums) -> RewardSums:
        return RewardSums(*(a + b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)))

    def metrics(self) -> dict[str, float]:
        """``reward``, its standard deviation over all (``reward_std``) and inside groups (``spread``), ``length``."""
        mean = self.total / self.known if self.known else math.nan
        variance = self.squares / self.known - mean * mean if self.known else math.nan
        return {
            "reward": mean,
            "reward_std": math.sqrt(max(0.0, variance)) if self.known else math.nan,
            "spread": self.spread / self.groups if self.groups else math.nan,
            "length": self.length / self.lengths if self.lengths else math.nan,
        }


@dataclass(frozen=True)
class LoggedCandidate:
    """A candidate as it is logged.

    Attributes:
        text: bounded; ``chars`` is how long it was.
        length: in the adapter's unit, tokens where these are known.
        score, reward: None where unknown.
        games: it took part in.
        strength, error: Bradley-Terry log-odds from the group's games, and the standard error; None without a game, and in
            groups above ``MAX_FITTED``.
        marks: of ``"sanitized"``, ``"cut"`` and ``"forfeit"``, those that hold.
    """

    text: str
    chars: int
    length: int
    score: float | None
    reward: float | None
    games: float
    strength: float | None
    error: float | None
    marks: tuple[str, ...] = ()


@dataclass(frozen=True)
class LoggedGroup:
    """A group as it is logged.

    Attributes:
        key, prompt, reference, rubric: of the group, texts bounded.
        size: how many candidates there were; at most ``MAX_CANDIDATES`` of them are in ``candidates``.
        wins, games: matrices over the logged candidates, row's wins over column.
        verdicts: as ``explain.verdict_record`` gives them, at most ``MAX_VERDICTS`` of ``judged``.
        criteria: as ``explain.criterion_record`` gives them, with the scores of the logged candidates. Games by different
            criteria do not add up, so of such a group there are no wins, games and strengths.
    """

    key: str
    prompt: str
    size: int
    candidates: tuple[LoggedCandidate, ...]
    wins: tuple[tuple[float, ...], ...]
    games: tuple[tuple[float, ...], ...]
    verdicts: tuple[Mapping[str, Any], ...]
    judged: int
    reference: str | None = None
    rubric: str | None = None
    criteria: tuple[Mapping[str, Any], ...] = ()

    @classmethod
    def of(cls, judgement: Judgement, rewards_G: Sequence[float | None], lengths_G: Sequence[int]) -> LoggedGroup:
        """Keep of a judgement what a reader can take in."""
        group, size = judgement.group, len(judgement.group.candidates)
        tally = count_games(size, () if judgement.criteria else judgement.played)
        fitted = size <= MAX_FITTED
        strengths_G, errors_G = bradley_terry_fit(tally) if fitted else (tally.games_G, tally.games_G)
        met = (tally.games_G > 0) & fitted
        kept = min(size, MAX_CANDIDATES)
        candidates = tuple(
            LoggedCandidate(
                text=bounded(text),
                chars=len(text),
                length=int(lengths_G[i]),
                score=judgement.scores_G[i],
                reward=rewards_G[i],
                games=round(judgement.games_G[i], 6),
                strength=round(float(strengths_G[i]), 6) if met[i] else None,
                error=round(float(errors_G[i]), 6) if met[i] else None,
                marks=tuple(
                    mark
                    for mark, of in (
                        ("sanitized", judgement.sanitized),
                        ("cut", judgement.cut),
                        ("forfeit", judgement.forfeits),
                    )
                    if i in of
                ),
            )
            for i, text in enumerate(group.candidates[:kept])
        )
        return cls(
            key=bounded(group.key),
            prompt=bounded(conversation_text(group.prompt)),
            size=size,
            candidates=candidates,
            wins=_rows(tally.wins_GG[:kept, :kept]),
            games=_rows(tally.games_GG[:kept, :kept]),
            verdicts=tuple(_verdict(item) for item in judgement.played[:MAX_VERDICTS]),
            judged=len(judgement.played),
            reference=None if group.reference is None else bounded(group.reference),
            rubric=None if group.rubric is None else bounded(str(group.rubric)),
            criteria=tuple(
                {**record, "name": bounded(record["name"], 200), "scores": record["scores"][:kept]}
                for record in map(criterion_record, judgement.criteria)
            ),
        )

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> LoggedGroup:
        """The group of a line."""
        candidates = tuple(
            LoggedCandidate(**{**candidate, "marks": tuple(candidate["marks"])}) for candidate in record["candidates"]
        )
        matrices = {name: tuple(tuple(map(float, row)) for row in record[name]) for name in ("wins", "games")}
        lists = {"verdicts": tuple(record["verdicts"]), "criteria": tuple(record.get("criteria", ()))}
        return cls(**{**record, **matrices, **lists, "candidates": candidates})


def bounded(text: str, most: int = MAX_CHARS) -> str:
    """A text of at most about ``most`` characters, its middle cut with a mark that says so."""
    if len(text) <= most:
        return text
    head = most * 2 // 3
    return f"{text[:head]}\n(... {len(text) - most} characters cut here ...)\n{text[len(text) - (most - head) :]}"


def _verdict(item: JudgedComparison) -> dict[str, Any]:
    record = verdict_record(item)
    return {**record, "rationale": bounded(record["rationale"]), "detail": bounded(str(record.get("detail", "")), 400)}


def _rows(matrix: Any) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(round(float(value), 6) for value in row) for row in matrix)


def log_name(name: str) -> str:
    """A reward's name as it stands in the names of its files."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name)


# -- writing ----------------------------------------------------------------------------------------------------------


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
        self._warned = False
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
            if not self._warned:
                logger.warning(
                    "the run goes on without its log: %s cannot be written (%s: %s)",
                    self.path, type(error).__name__, error,
                )  # fmt: skip
            self._warned = True


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


# -- reading ----------------------------------------------------------------------------------------------------------


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
