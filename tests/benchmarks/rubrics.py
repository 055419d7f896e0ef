"""How well a judge's total over a rubric's criteria follows the true one, per judge call, by ways to ask. Needs no model.

    python -m tests.benchmarks.rubrics                        # everything, some minutes on two cores
    python -m tests.benchmarks.rubrics --quick                # seconds, for a smoke test: the numbers mean nothing

The judging is the package's own (rendering, parsing, schedules, ratings, totals); only the model is simulated.

**The truth.** A group has G answers and C criteria of weights 1 to 3, one of them a pitfall. How far answer i meets
criterion c is sigmoid(2 u_ci), with u_ci = level_c + N(0, 1). Of a share ``SATURATED`` of the criteria the level is ±4,
so that the group hardly differs on them. The true total is the weighted mean.

**The judge.** Each look at an answer on a criterion sees u_ci + N(0, ``NOISE``), drawn anew for each request, and
bounded to ±``SEEN``: an answer that clearly meets a criterion, or clearly does not, looks like others that do. A
comparison sees the difference of two looks plus ``BIAS`` for the first slot, and says tie within ``BAND``. A grade
alone cuts a look at -0.5 and 0.5. Where a call asks about several criteria, a share ``HALO`` of each look is the mean
over all it asks about. One verdict over all criteria compares weighted sums of such looks (scaled to the noise of one);
the judge's own weights are the rubric's times exp(N(0, 0.7)), the same in all its calls on a group. A verdict on a
criterion fails by itself, and one over all as a whole.

The columns, means over groups ± standard errors, without failures, with 10 % and with 30 %:

    calls       judge calls of a group
    tau         Kendall's tau-b of totals to the true ones; 0 where all totals are equal
    advantage   correlation of the advantages (r - mean) / std with the true ones; 0 where std is 0

A total that is unknown counts as the group's mean. All rows see the same groups.
"""

from __future__ import annotations

import argparse
import math
import re
import statistics
from dataclasses import dataclass
from itertools import pairwise
from random import Random
from typing import Any

import numpy as np

from mrjudge_reward import Group, Judge, ScriptedEngine
from mrjudge_reward.engines.scripted import shown_candidates
from mrjudge_reward.judging.tournament import digest
from mrjudge_reward.rubrics.criteria import Criterion, Rubric
from mrjudge_reward.types import Request
from tests.support.criteria_judge import shown_criteria

NOISE, BIAS, BAND, HALO, SEEN = 0.7, 0.4, 0.5, 0.3, 1.5
SATURATED = 0.4
FAILURES = (0.0, 0.1, 0.3)

WAYS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("one verdict over all, ring", {"criteria": "implicit", "format": "choice", "schedule": "ring", "tie_label": "tie"}),
    ("one verdict over all, ranking", {"criteria": "implicit", "format": "ranking"}),
    ("comparative, all in a call, ring", {"criteria": "comparative", "criteria_per_call": 99, "schedule": "ring"}),
    ("comparative, all in a call, rankings", {"criteria": "comparative", "criteria_per_call": 99, "format": "ranking"}),
    ("comparative, one a call, ring", {"criteria": "comparative", "schedule": "ring"}),
    ("comparative, one a call, adaptive", {"criteria": "comparative", "schedule": "adaptive"}),
    ("comparative, one a call, rankings", {"criteria": "comparative", "format": "ranking"}),
    ("comparative, read, ring", {"criteria": "comparative", "verdict": "logprobs"}),
    ("comparative, read, ring of half", {"criteria": "comparative", "verdict": "logprobs", "budget": 8}),
    ("comparative, read, adaptive", {"criteria": "comparative", "verdict": "logprobs", "schedule": "adaptive"}),
    ("absolute, all in a call", {"criteria": "absolute", "criteria_per_call": 99}),
    ("absolute, all in a call, 2 votes", {"criteria": "absolute", "criteria_per_call": 99, "votes": 2}),
    ("absolute, one a call", {"criteria": "absolute"}),
    ("absolute, read", {"criteria": "absolute", "verdict": "logprobs"}),
    ("comparative, all in a call, ring, contrast",
     {"criteria": "comparative", "criteria_per_call": 99, "schedule": "ring", "contrast": True}),
    ("comparative, all in a call, rankings, contrast",
     {"criteria": "comparative", "criteria_per_call": 99, "format": "ranking", "contrast": True}),
    ("comparative, read, ring, contrast", {"criteria": "comparative", "verdict": "logprobs", "contrast": True}),
    ("absolute, all in a call, contrast", {"criteria": "absolute", "criteria_per_call": 99, "contrast": True}),
    ("absolute, read, contrast", {"criteria": "absolute", "verdict": "logprobs", "contrast": True}),
    ("comparative, read, ring, dropout .4", {"criteria": "comparative", "verdict": "logprobs", "rubric_dropout": 0.4}),
    ("absolute, all in a call, dropout .4", {"criteria": "absolute", "criteria_per_call": 99, "rubric_dropout": 0.4}),
    ("absolute, read, dropout .4", {"criteria": "absolute", "verdict": "logprobs", "rubric_dropout": 0.4}),
)  # fmt: skip
"""Name → settings."""


@dataclass(frozen=True)
class World:
    """True utilities of a group: answers by criterion, and the criteria's weights. Shapes (C, G) and (C,)."""

    number: int
    utility_CG: np.ndarray
    weight_C: np.ndarray

    @classmethod
    def drawn(cls, number: int, criteria: int, size: int) -> World:
        """The world of a group, the same in every run."""
        rng = np.random.default_rng(number)
        level_C = np.where(rng.random(criteria) < SATURATED, rng.choice([-4.0, 4.0], criteria), 0.0)
        weight_C = rng.integers(1, 4, criteria).astype(np.float64)
        weight_C[rng.integers(criteria)] *= -1
        return cls(number, rng.normal(size=(criteria, size)) + level_C[:, None], weight_C)

    @property
    def total_G(self) -> np.ndarray:
        """The true total. Shape (G,)."""
        met_CG = 1 / (1 + np.exp(-2 * self.utility_CG))
        return np.asarray(self.weight_C @ met_CG / np.abs(self.weight_C).sum())

    @property
    def group(self) -> Group:
        """The group that a judge is given."""
        criteria, size = self.utility_CG.shape
        rubric = tuple(
            Criterion(f"c{c}", f"Point {c} of {self.number}.", float(self.weight_C[c])) for c in range(criteria)
        )
        texts = [f"answer {i} of {self.number}" for i in range(size)]
        return Group.of("Which?", texts, str(self.number), rubric=Rubric(rubric))


@dataclass(frozen=True)
class Simulated:
    """The judge, as a script."""

    worlds: dict[int, World]
    fails: float

    def __call__(self, request: Request) -> str | dict[str, float]:
        shown, told = shown_candidates(request), shown_criteria(request)
        labels = list(shown)
        places = [tuple(map(int, re.findall(r"\d+", text))) for text in shown.values()]
        world = self.worlds[places[0][1]]
        text = request.messages[-1].text
        rng = np.random.default_rng(digest(text, request.seed))
        seen_CK = world.utility_CG[:, [i for i, _ in places]]
        seen_CK = np.clip(seen_CK + rng.normal(0, NOISE, seen_CK.shape), -SEEN, SEEN)
        if not told:
            return self._over_all(world, seen_CK, labels, rng)
        asked = {number: int(re.findall(r"Point (\d+)", criterion)[0]) for number, criterion in told.items()}
        if len(asked) > 1:
            mean_K = seen_CK[list(asked.values())].mean(axis=0)
            seen_CK = (1 - HALO) * seen_CK + HALO * mean_K
        if request.labels:
            return {} if rng.random() < self.fails else self._read(seen_CK[asked[1]], labels, request.labels)
        said = {number: self._verdict(seen_CK[c], labels, "Rank all" in text) for number, c in asked.items()}
        lost = {number for number in said if rng.random() < self.fails}
        if len(said) == 1:
            return "nothing" if lost else f"<answer>{said[1]}</answer>"
        return "-" + "".join(f"<answer>{number}: {one}</answer>" for number, one in said.items() if number not in lost)

    def _over_all(self, world: World, seen_CK: np.ndarray, labels: list[str], rng: Any) -> str:
        own = np.random.default_rng(world.number + 10**6).normal(0, 0.7, len(world.weight_C))
        weight_C = world.weight_C * np.exp(own)
        seen_K = weight_C @ seen_CK / math.sqrt(float(weight_C @ weight_C))
        return (
            "nothing"
            if rng.random() < self.fails
            else f"<answer>{self._verdict(seen_K, labels, len(labels) > 2)}</answer>"
        )

    def _verdict(self, seen_K: np.ndarray, labels: list[str], ranks: bool) -> str:
        if len(labels) == 1:
            return "met" if seen_K[0] > 0.5 else "not met" if seen_K[0] < -0.5 else "partly"
        biased_K = seen_K + BIAS * (1 - np.arange(len(seen_K)) / (len(seen_K) - 1))
        order: list[int] = np.argsort(-biased_K).tolist()
        if not ranks:
            return "tie" if biased_K[order[0]] - biased_K[order[1]] < BAND else labels[order[0]]
        said = labels[order[0]]
        for before, after in pairwise(order):
            said += (" = " if biased_K[before] - biased_K[after] < BAND else " > ") + labels[after]
        return said

    def _read(self, seen_K: np.ndarray, labels: list[str], offered: tuple[str, ...]) -> dict[str, float]:
        if len(labels) == 1:  # how likely each grade is, given the look
            cuts = [0.5 * (1 + math.erf((cut - seen_K[0]) / NOISE / math.sqrt(2))) for cut in (-0.5, 0.5)]
            return dict(zip(offered, (max(1e-6, p) for p in (cuts[0], cuts[1] - cuts[0], 1 - cuts[1])), strict=True))
        apart = (seen_K[0] - seen_K[1] + BIAS) / NOISE
        weights = [math.exp(apart), math.exp(-apart), math.exp(BAND / NOISE)]
        return {label: weight / sum(weights) for label, weight in zip(offered, weights, strict=True)}


def tau_b(one: np.ndarray, other: np.ndarray) -> float:
    """Kendall's tau-b; 0 where either is constant."""
    first, second = np.triu_indices(len(one), 1)
    a, b = np.sign(one[first] - one[second]), np.sign(other[first] - other[second])
    return float(a @ b) / math.sqrt(float(a @ a) * float(b @ b)) if a.any() and b.any() else 0.0


def advantage(one: np.ndarray, other: np.ndarray) -> float:
    """Correlation; 0 where either is constant."""
    return float(np.corrcoef(one, other)[0, 1]) if one.std() > 1e-9 and other.std() > 1e-9 else 0.0


def measured(settings: dict[str, Any], worlds: list[World], fails: float) -> tuple[float, list[float], list[float]]:
    """Mean calls, and tau and advantage of each group."""
    engine = ScriptedEngine(Simulated({world.number: world for world in worlds}, fails), reads=True)
    settings = {"verdict": "generate", "retries": 0, "max_failed_fraction": 1.0, **settings}
    if settings.get("criteria") != "absolute":  # graded alone nobody meets
        settings["audit"] = False
    judgements = Judge(engine, **settings).judge([world.group for world in worlds])
    taus, advantages = [], []
    for world, judgement in zip(worlds, judgements, strict=True):
        known = [score for score in judgement.scores_G if score is not None]
        mean = statistics.fmean(known) if known else 0.0
        scores = np.array([mean if score is None else score for score in judgement.scores_G])
        taus.append(tau_b(scores, world.total_G))
        advantages.append(advantage(scores, world.total_G))
    return statistics.fmean(judgement.calls for judgement in judgements), taus, advantages


def shown(values: list[float]) -> str:
    """Mean ± standard error."""
    return f"{statistics.fmean(values):.3f} ± {statistics.stdev(values) / math.sqrt(len(values)):.3f}"


def main() -> None:
    """Print the table, as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", type=int, default=150)
    parser.add_argument("--size", type=int, default=8, help="answers of a group, G")
    parser.add_argument("--criteria", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="few groups, for a smoke test")
    args = parser.parse_args()
    worlds = [World.drawn(number, args.criteria, args.size) for number in range(2 if args.quick else args.groups)]
    Random(0).shuffle(worlds)
    columns = [f"{name}, {fails:.0%}" for fails in FAILURES for name in ("tau", "advantage")]
    print("| way | calls | " + " | ".join(columns) + " |")
    print("|---|---|" + "---|" * 2 * len(FAILURES))
    for name, settings in WAYS:
        found = [measured(settings, worlds, fails) for fails in FAILURES]
        cells = [shown(values) for _, *both in found for values in both]
        print(f"| {name} | {found[0][0]:.0f} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
