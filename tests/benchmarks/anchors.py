"""What anchors tell about the level of a group, by schedule and their number, with the simulated judge of ``schedules``.

    python -m tests.benchmarks.anchors            # a minute or two
    python -m tests.benchmarks.anchors --groups 20

A group has 8 candidates, whose true strengths are ``d + N(0, 1)``: d ~ N(0, 1) is how good the policy is at the prompt. Its
anchors have strengths N(0, 1). True is a candidate's strength minus the mean of the anchors'. The columns:

    calls   judge calls a group
    tau     Kendall's tau-a to the true order inside groups
    level   correlation, over groups, of the mean score with the mean true value
    reward  correlation of score and true value over all candidates of all groups: what a critic sees
    sign    candidates on the right side of the anchors; a score of 0 is half
"""

from __future__ import annotations

import argparse

import numpy as np

from mrjudge_reward.scoring.levels import relative
from mrjudge_reward.scoring.ratings import RATINGS, rate
from mrjudge_reward.scoring.schedules import Limits

from .schedules import LEVELS, Judge, Level, hold, tau_a

SIZE = 8
SCHEDULES = ("ring", "adaptive", "all_pairs", "listwise", "anchor", "swiss", "knockout")


class AnchoredJudge(Judge):
    """Anchors are the first of its candidates; the others are shifted together."""

    def __init__(self, anchors: int, group: int, level: Level, soft: bool) -> None:
        super().__init__(SIZE + anchors, group, level, soft)
        shift_G = np.random.default_rng((1, group)).normal() * (np.arange(SIZE + anchors) >= anchors)
        self.s_G = self.s_G + shift_G
        self.logit_GG = self.logit_GG + level.beta * (shift_G[:, None] - shift_G[None, :])


def measure(schedule: str, anchors: int, level: Level, soft: bool, groups: int) -> tuple[float, ...]:
    """A row's columns, with ``log_odds``."""
    limits = Limits(max_slots=SIZE + anchors, anchors=tuple(range(anchors)))
    found_NG, true_NG, calls = [], [], []
    for group in range(groups):
        judge = AnchoredJudge(anchors, group, level, soft)
        held = hold(schedule, SIZE + anchors, group, judge, limits)
        scores, _ = relative(rate(RATINGS["log_odds"], held.tally), limits.anchors, held.tally.games_GG)
        found_NG.append([score if score is not None else np.nan for score in scores[anchors:]])
        true_NG.append(judge.s_G[anchors:] - judge.s_G[:anchors].mean())
        calls.append(held.calls)
    found, true = np.array(found_NG), np.array(true_NG)
    tau = np.mean([tau_a(*rows) for rows in zip(found, true, strict=True)])
    level_r = np.corrcoef(found.mean(axis=1), true.mean(axis=1))[0, 1]
    right = (np.sign(found) == np.sign(true)) + (found == 0) / 2
    reward = np.corrcoef(found.ravel(), true.ravel())[0, 1]
    return float(np.mean(calls)), float(tau), float(level_r), float(reward), float(right.mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--groups", type=int, default=400)
    groups = parser.parse_args().groups
    print(
        f"{'schedule':<10} {'verdict':<7} {'anchors':>7} {'calls':>6} {'tau':>6} {'level':>6} {'reward':>6} {'sign':>6}"
    )
    for soft in (True, False):
        for anchors in (1, 2, 4):
            for schedule in SCHEDULES:
                calls, *columns = measure(schedule, anchors, LEVELS[1], soft, groups)
                cells = " ".join(f"{value:6.3f}" for value in columns)
                print(f"{schedule:<10} {'soft' if soft else 'hard':<7} {anchors:>7} {calls:6.0f} {cells}", flush=True)


if __name__ == "__main__":
    main()
