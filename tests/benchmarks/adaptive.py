"""What it saves that ``adaptive`` carries its estimates along from game to game. Needs no model.

    python -m tests.benchmarks.adaptive                       # half a minute
    python -m tests.benchmarks.adaptive --quick               # seconds, for a smoke test: the numbers mean nothing

The games of a round are chosen one after another, and each changes what the others are worth. ``anew`` computes that from
the covariance for every game, as the definition says, in O(G³); ``carried`` is the schedule's own way, in O(G²). Both play
the groups of the simulated judge of ``schedules.py``, in turns, verdicts and tally included. It exits with 1 if they play
other games.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from unittest.mock import patch

import numpy as np

from mrjudge_reward.scoring import schedules
from mrjudge_reward.scoring.least_squares import PRIOR_GAMES, log_odds_system
from mrjudge_reward.scoring.schedules import EQUAL, Limits, Slots
from mrjudge_reward.scoring.tally import Matrix, Tally

from .schedules import CONFIDENT, LEVELS, SLIPPING, Judge, hold


def differences(covariance_GG: Matrix) -> Matrix:
    """Variance of the difference of each two."""
    variance_G = covariance_GG.diagonal()
    return np.asarray(variance_G[:, None] + variance_G - 2 * covariance_GG)


def most_telling_anew(tally: Tally, slotter: schedules._Slotter, count: int) -> list[Slots]:
    """The games of a round, by the definition."""
    if count < 1:
        return []
    system, target = log_odds_system(tally)
    inverse: Matrix = np.linalg.inv(system).astype(np.float64)
    strength_G, covariance_GG = (inverse @ target)[: tally.size], inverse[: tally.size, : tally.size].copy()
    noise = (strength_G @ strength_G) / max(1e-9, float((1 / PRIOR_GAMES - covariance_GG.diagonal()).sum()))
    oneself_GG = np.eye(tally.size, dtype=bool)
    variance_GG = differences(covariance_GG) + oneself_GG
    gap_GG = np.abs(strength_G[:, None] - strength_G)
    odds_GG = gap_GG / np.sqrt(2 * noise * variance_GG + 1e-12)
    weight_GG = np.vectorize(math.erfc)(odds_GG) / 2 / variance_GG
    laplacian_GG = np.diag(weight_GG.sum(axis=1)) - weight_GG
    chosen: list[Slots] = []
    while len(chosen) < count:
        worth_GG = differences(covariance_GG @ laplacian_GG @ covariance_GG) / (1 + differences(covariance_GG))
        worth_GG[(slotter.asked_GG & slotter.asked_GG.T) | oneself_GG] = -np.inf
        most = worth_GG.max()
        if most == -np.inf:
            break
        i, j = divmod(int((worth_GG >= most - EQUAL * abs(most)).argmax()), tally.size)
        played = slotter.play([(i, j)])
        for _ in played:
            column_G = covariance_GG[:, i] - covariance_GG[:, j]
            covariance_GG -= column_G[:, None] * column_G / (1 + column_G[i] - column_G[j])
        chosen += played
    return chosen


def games_of(size: int, group: int, judge: Judge, limits: Limits, anew: bool) -> tuple[list[Slots], float]:
    """The games of a group in their order, and seconds of this process's CPU."""
    way = most_telling_anew if anew else schedules._most_telling
    with patch.object(schedules, "_most_telling", way):
        began = time.process_time()
        games = hold("adaptive", size, group, judge, limits).tally.games
        took = time.process_time() - began
    return list(zip(games.first.tolist(), games.second.tolist(), strict=True)), took


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[8, 32, 64, 256])
    parser.add_argument("--quick", action="store_true", help="small groups, for a smoke test")
    args = parser.parse_args()
    sizes = [4, 8] if args.quick else args.sizes
    other = 0
    print(f"{'G':>4}{'groups':>8}{'anew, ms a group':>18}{'carried':>10}{'ratio':>8}")
    for size in sizes:
        groups = 3 if args.quick else max(3, 800 // size)
        seconds = {True: 0.0, False: 0.0}
        for group in range(groups):
            judge = Judge(size, group, (*LEVELS, SLIPPING, CONFIDENT)[group % 5], soft=group % 2 == 0)
            found = {anew: games_of(size, group, judge, Limits(), anew) for anew in (True, False)}
            for anew, (_, took) in found.items():
                seconds[anew] += took
            other += found[True][0] != found[False][0]
        anew_ms, carried_ms = (1000 * seconds[anew] / groups for anew in (True, False))
        print(f"{size:>4}{groups:>8}{anew_ms:>18.2f}{carried_ms:>10.2f}{carried_ms / anew_ms:>8.2f}", flush=True)
    if other:
        print(f"FAIL: other games in {other} groups")
        sys.exit(1)
    print("\nboth ways play the same games")


if __name__ == "__main__":
    main()
