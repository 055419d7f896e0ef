"""How well each schedule and rating order a group, per judge call, with a simulated judge. Needs no model.

    python -m tests.benchmarks.schedules                      # everything, a few minutes on two cores
    python -m tests.benchmarks.schedules --sizes 8 16 --groups 1000 --json rows.json
    python -m tests.benchmarks.schedules --quick              # seconds, for a smoke test: the numbers mean nothing

It exits with 1 if a requirement fails (not with --quick).

The judge. Candidates have true strengths s ~ N(0, 1). A comparison of i (first slot) with j has the logit

    beta (s_i - s_j) + bias + noise e_ij        with e_ij ~ N(0, 1), fixed for the ordered pair (i, j)

so that asking again in the same order tells nothing new, and asking in the other order does. The hard verdict is the
logit's sign, or a tie where the logit is within the tie band; the soft verdict is the logit's sigmoid. Among K slots
(listwise) slot k has the utility ``beta s + bias (1 - k / (K - 1)) + noise e / sqrt(2)``, e again fixed for the
permutation: for K = 2 that is the same judge. The hard verdict is the slot of highest utility (a tie if the runner-up
is within the band), the soft one the softmax. Two more judges are read: one of whose reads of pairs a tenth say one label
with log-odds of 12, at random, and one whose logits are all 3.3 times as large.

What this flatters. A soft judge gets credit for knowing its own margins, which a real one does only as far as it is
calibrated; the hard rows are the lower end. And a soft listwise judge reads the utilities of all K candidates in one
call, each as sharply as if it had seen two; a real one blurs as K grows, and its prompt is K / 2 times as long. So
listwise rows do not compare with pairwise ones call by call, and the default is chosen among pairwise schedules.

The columns, each a mean over groups ± its standard error:

    calls, batches  judge calls, and engine batches they are sent in (rounds that must wait for each other)
    tau             Kendall's tau-a to the true order: a tied pair earns nothing, as a tie gives a policy no gradient
    tau to full     the same to the order that soft log_odds finds over all pairs in both orders
    advantage       correlation of the advantages (r - mean) / std with those of the true strengths; 0 where std is 0

All rows of a size see the same groups and the same noise e, so rows are paired, and the requirements at the end compare
them group by group. ``pointwise`` is absent, as it needs a judge that grades, and so is the rating of grades.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from mrjudge_reward.scoring.ratings import RATINGS, rate
from mrjudge_reward.scoring.schedules import SCHEDULES, Limits
from mrjudge_reward.scoring.tally import Tally, count_games
from mrjudge_reward.types import Comparison, JudgedComparison, Outcome, Preference, Tie, Verdict

SIZES = (4, 8, 16, 32)
NAMES = [name for name in SCHEDULES if name != "pointwise"]
RATING_NAMES = [name for name in RATINGS if name != "mean_score"]
REQUIRED_SHARE = {8: 0.92, 16: 0.85}
"""Of the tau of hard all-pairs in both orders, what soft verdicts must reach at 2G calls, by group size."""


@dataclass(frozen=True)
class Level:
    """A kind of judge."""

    name: str
    beta: float
    bias: float
    noise: float
    tie_band: float = 0.0
    slips: float = 0.0
    confidence: float = 1.0

    def __str__(self) -> str:
        numbers = f"beta {self.beta:g}, bias {self.bias:g}, noise {self.noise:g}, tie band {self.tie_band:g}"
        return f"{self.name} ({numbers})"


LEVELS = (Level("low noise", 2, 0.5, 1), Level("middle", 1, 1, 1), Level("biased", 1, 2, 1))
TIED = Level("middle, with ties", 1, 1, 1, tie_band=0.5)
SLIPPING = Level("middle, a tenth of the reads certain at random", 1, 1, 1, slips=0.1)
CONFIDENT = Level("middle, overconfident", 1, 1, 1, confidence=3.3)
REQUIRED_TAU = {LEVELS[1]: 0.73, SLIPPING: 0.65, CONFIDENT: 0.71}
"""Of soft log_odds over the adaptive schedule with 8 candidates."""


class Judge:
    """The simulated judge of one group."""

    def __init__(self, size: int, group: int, level: Level, soft: bool) -> None:
        self.seed = (size, group)
        rng = np.random.default_rng(self.seed)
        self.s_G = rng.normal(size=size)
        self.level, self.soft = level, soft
        difference_GG = self.s_G[:, None] - self.s_G[None, :]
        logit_GG = level.beta * difference_GG + level.bias + level.noise * rng.normal(size=(size, size))
        slips_GG = rng.random((size, size)) < level.slips
        self.logit_GG = np.where(slips_GG, 12 * rng.choice([-1, 1], (size, size)), level.confidence * logit_GG)

    def __call__(self, slots: tuple[int, ...]) -> Outcome:
        if len(slots) == 2:
            utilities_K = np.array([self.logit_GG[slots], 0.0])
        else:
            e_K = np.random.default_rng((*self.seed, *slots)).normal(size=len(slots))
            ahead_K = 1 - np.arange(len(slots)) / (len(slots) - 1)
            utilities_K = self.level.beta * self.s_G[list(slots)] + self.level.bias * ahead_K
            utilities_K = utilities_K + self.level.noise * e_K / np.sqrt(2)
        if self.soft:
            mass_K = np.exp(utilities_K - utilities_K.max())
            return Preference(tuple((mass_K / mass_K.sum()).tolist()), soft=True)
        second, best = np.sort(utilities_K)[-2:]
        if best - second < self.level.tie_band:
            return Tie()
        return Preference(tuple((utilities_K == best).astype(float).tolist()))


@dataclass(frozen=True)
class Tournament:
    """What a schedule found out about one group."""

    tally: Tally
    calls: int
    batches: int


def hold(schedule: str, size: int, group: int, judge: Judge, limits: Limits) -> Tournament:
    plan = SCHEDULES[schedule].plan(size, limits, Random(group))
    played: list[JudgedComparison] = []
    batches = 0
    comparisons = next(plan)
    while True:
        played += [JudgedComparison(Comparison(slots), Verdict(judge(slots))) for slots in comparisons]
        batches += 1
        tally = count_games(size, played)
        try:
            comparisons = plan.send(tally)
        except StopIteration:
            return Tournament(tally, len(played), batches)


def scores(rating: str, tally: Tally) -> np.ndarray:
    neutral = RATINGS[rating].neutral
    return np.array([neutral if score is None else score for score in rate(RATINGS[rating], tally)])


def tau_a(x_G: np.ndarray, y_G: np.ndarray) -> float:
    agreement = np.sign(x_G[:, None] - x_G) * np.sign(y_G[:, None] - y_G)
    return float(agreement.sum() / (len(x_G) * (len(x_G) - 1)))


def advantage_correlation(x_G: np.ndarray, y_G: np.ndarray) -> float:
    spread = x_G.std() * y_G.std()
    return float(((x_G - x_G.mean()) * (y_G - y_G.mean())).mean() / spread) if spread > 1e-12 else 0.0


@dataclass(frozen=True)
class Row:
    """One way to judge, over all groups of a size. Shapes (groups,)."""

    size: int
    level: Level
    schedule: str
    soft: bool
    rating: str
    calls: np.ndarray
    batches: np.ndarray
    tau: np.ndarray
    tau_to_full: np.ndarray
    advantage: np.ndarray

    def summary(self) -> dict[str, Any]:
        measures = {name: getattr(self, name) for name in ("calls", "batches", "tau", "tau_to_full", "advantage")}
        return {
            "size": self.size,
            "level": asdict(self.level),
            "schedule": self.schedule,
            "verdict": "soft" if self.soft else "hard",
            "rating": self.rating,
            "groups": len(self.tau),
            **{name: {"mean": float(x.mean()), "standard_error": standard_error(x)} for name, x in measures.items()},
        }

    def line(self) -> str:
        cells = [f"{x.mean():6.3f} ±{standard_error(x):.3f}" for x in (self.tau, self.tau_to_full, self.advantage)]
        verdict = "soft" if self.soft else "hard"
        counts = f"{self.calls.mean():6.0f} {self.batches.mean():7.0f}"
        return f"{self.schedule:<10} {verdict:<7} {self.rating:<14} {counts}   {'  '.join(cells)}"


HEADER = (
    f"{'schedule':<10} {'verdict':<7} {'rating':<14} {'calls':>6} {'batches':>7}   "
    f"{'tau':<14}  {'tau to full':<14}  {'advantage':<14}"
)


def standard_error(x: np.ndarray) -> float:
    return float(x.std(ddof=1) / np.sqrt(len(x)))


def measure(size: int, level: Level, soft: bool, groups: int) -> list[Row]:
    """All schedules and ratings with one judge."""
    found: dict[tuple[str, str], list[tuple[float, ...]]] = {}
    for group in range(groups):
        judge = Judge(size, group, level, soft)
        full_judge = judge if soft else Judge(size, group, level, soft=True)
        full = hold("all_pairs", size, group, full_judge, Limits(both_orders=True))
        full_G = scores("log_odds", full.tally)
        for schedule in NAMES:
            reuse = soft and schedule == "all_pairs"  # in both orders by default
            held = full if reuse else hold(schedule, size, group, judge, Limits())
            for rating in RATING_NAMES:
                r_G = scores(rating, held.tally)
                row = (tau_a(r_G, judge.s_G), tau_a(r_G, full_G), advantage_correlation(r_G, judge.s_G))
                found.setdefault((schedule, rating), []).append((held.calls, held.batches, *row))
    return [Row(size, level, schedule, soft, rating, *np.array(x).T) for (schedule, rating), x in found.items()]


Table = dict[tuple[int, Level, str, bool, str], Row]


@dataclass(frozen=True)
class Finding:
    """A requirement and how it came out."""

    status: str
    text: str

    def __str__(self) -> str:
        return f"{self.status:<5} {self.text}"


def judged(passed: bool, text: str) -> Finding:
    return Finding("PASS" if passed else "FAIL", text)


def soft_share(table: Table, size: int, level: Level) -> Finding:
    """Requirement (a): what 2G soft calls reach of what G(G-1) hard ones do."""
    hard = table[size, level, "all_pairs", False, "win_rate"].tau
    shares: dict[str, float] = {}
    cells = []
    for schedule in ("ring", "adaptive"):
        soft = table[size, level, schedule, True, "log_odds"].tau
        shares[schedule] = share = float(soft.mean() / hard.mean())
        error = standard_error(soft - share * hard) / hard.mean()
        cells.append(f"{schedule} {share:.3f} ±{error:.3f}")
    needed = REQUIRED_SHARE[size]
    return judged(max(shares.values()) >= needed, f"(a) G={size:<2} {level.name:<9} >= {needed}: {', '.join(cells)}")


def adaptive_against_ring(table: Table, size: int, level: Level) -> Finding:
    """Requirement (b): adaptive is not behind the ring, and is ahead where the judge is good."""
    ring, adaptive = (table[size, level, schedule, True, "log_odds"] for schedule in ("ring", "adaptive"))
    difference = adaptive.tau - ring.tau
    mean, error = float(difference.mean()), standard_error(difference)
    must_lead = level is LEVELS[0]
    text = f"(b) G={size:<2} {level.name:<9} {'ahead' if must_lead else 'not behind'}: {mean:+.4f} ±{error:.4f}"
    if size == 4:
        return Finding("-", text + " (reported only)")
    equal_calls = float(ring.calls.mean()) == float(adaptive.calls.mean())
    return judged(equal_calls and (mean > error if must_lead else mean >= -error), text)


def slips_and_confidence(table: Table, level: Level) -> Finding:
    """Requirement (c): reads that are certain and wrong, or all too sure, leave the order standing."""
    tau = table[8, level, "adaptive", True, "log_odds"].tau
    needed = REQUIRED_TAU[level]
    return judged(tau.mean() >= needed, f"(c) {level.name}: {tau.mean():.3f} ±{standard_error(tau):.3f} >= {needed}")


def default_schedule(table: Table, sizes: Iterable[int], soft: bool) -> str:
    """The pairwise schedule of at most 2G calls with the best order, averaged over judges and sizes."""
    mean_tau: dict[str, float] = {}
    batches: dict[str, float] = {}
    for schedule in set(NAMES) - {"listwise"}:
        rows = [table[size, level, schedule, soft, "log_odds"] for size in sizes for level in LEVELS]
        if all(row.calls.mean() <= 2 * row.size for row in rows):
            mean_tau[schedule] = float(np.mean([row.tau.mean() for row in rows]))
            batches[schedule] = max(float(row.batches.max()) for row in rows)
    ranking = sorted(mean_tau, key=lambda name: -mean_tau[name])
    listed = ", ".join(f"{name} {mean_tau[name]:.3f} (up to {batches[name]:.0f} batches)" for name in ranking)
    kind = "soft" if soft else "hard"
    return (
        f"default for {kind} verdicts: {ranking[0]}, the best mean tau of log_odds among pairwise schedules of <= 2G "
        f"calls: {listed}"
    )


def requirements(table: Table, sizes: list[int]) -> list[Finding]:
    findings = []
    for size in REQUIRED_SHARE:
        if size in sizes:
            findings += [soft_share(table, size, level) for level in LEVELS]
        else:
            findings.append(Finding("-", f"(a) G={size} was not run"))
    for size in SIZES:
        if size in sizes:
            findings += [adaptive_against_ring(table, size, level) for level in LEVELS]
        else:
            findings.append(Finding("-", f"(b) G={size} was not run"))
    return findings + [slips_and_confidence(table, level) for level in REQUIRED_TAU if 8 in sizes]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--groups", type=int, default=400, help="groups per row; half of it above 16 candidates")
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), help="candidates per group")
    parser.add_argument("--quick", action="store_true", help="a few groups of 4 and 8, to see that it runs")
    parser.add_argument("--json", type=Path, help="where to write the rows and the requirements")
    options = parser.parse_args()
    sizes, groups = ([4, 8], 8) if options.quick else (options.sizes, options.groups)
    if min(sizes) < 2 or groups < 2:
        parser.error("needs at least two groups, of at least two candidates each")

    started = time.monotonic()
    table: Table = {}
    for size in sizes:
        count = groups if size <= 16 else max(2, groups // 2)
        for level in (*LEVELS, TIED, *((SLIPPING, CONFIDENT) if size == 8 else ())):
            print(f"\nG = {size}, {level}, {count} groups\n{HEADER}")
            reads_alone = level in (SLIPPING, CONFIDENT)
            for soft in (True,) if reads_alone else (False,) if level is TIED else (False, True):
                for row in measure(size, level, soft, count):
                    table[size, level, row.schedule, soft, row.rating] = row
                    print(row.line(), flush=True)
    findings = requirements(table, sizes)
    print("\nRequirements")
    print("(a) tau of soft log_odds at 2G calls, as a share of the tau of hard win_rate over all pairs in both orders")
    print("(b) tau of adaptive minus tau of the ring, soft log_odds, equal calls, group by group")
    print("(c) tau of soft log_odds, adaptive, G=8, where a tenth of the reads are slips, or all are too sure")
    for finding in findings:
        print(finding)
    for soft in (True, False):
        print(default_schedule(table, sizes, soft))
    print(f"{time.monotonic() - started:.0f} s")
    if options.json:
        contents = {"rows": [row.summary() for row in table.values()], "requirements": [asdict(f) for f in findings]}
        options.json.write_text(json.dumps(contents, indent=1) + "\n")
    if not options.quick and any(finding.status == "FAIL" for finding in findings):
        sys.exit(1)


if __name__ == "__main__":
    main()
