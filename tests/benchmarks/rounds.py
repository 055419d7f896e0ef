"""What it saves that groups do not wait for each other between the rounds of a schedule. Needs no model.

    python -m tests.benchmarks.rounds                         # about two minutes
    python -m tests.benchmarks.rounds --quick                 # seconds, for a smoke test: the numbers mean nothing

Groups are judged by a server that thinks about each comparison for a long-tailed (lognormal) time, the same whenever the
comparison is asked, and works on a fixed number at once, first come, first served. Two ways, in the same run: in
lock-step, where each round of all groups is one call (what an engine gets that batches by itself), and side by side, as
``Judge`` does with an engine that takes calls from several threads. Times are real seconds of this process, scaled down
from those of a thinking judge; only the server is simulated, by sleeping.

The floor is all thinking spread evenly over the slots, or the longest single thought if that is more; rounds that wait
for their own group keep any schedule of several rounds above it. Slots in use is the share of the server's time spent
thinking, in lock-step → side by side. A schedule of one round is one call either way, so its ratio is 1 but for noise.
The judgements of both ways are compared, and a difference ends the benchmark with code 1.
"""

from __future__ import annotations

import argparse
import heapq
import math
import random
import sys
import threading
import time
from collections.abc import Sequence

from mrjudge_reward import Choice, Group, Judge
from mrjudge_reward.engines.scripted import ScriptedEngine
from mrjudge_reward.types import EngineFailure, Judgement, Reply, Request


class ThinkingServer(ScriptedEngine):
    """A scripted judge behind a server with so many slots; thinking times are drawn by what is asked.

    Args:
        slots: comparisons it works on at once.
        median_s: of the thinking time.
        sigma: of the logarithm of the thinking time.
        several_calls: whether it says that it takes calls from several threads.
    """

    def __init__(self, slots: int, median_s: float, sigma: float, several_calls: bool) -> None:
        super().__init__(ScriptedEngine.by_utility(taste).script)
        self.concurrent_calls = several_calls
        self.thought_s = self.longest_s = 0.0
        self._median_s, self._sigma = median_s, sigma
        self._free_at = [0.0] * slots
        self._lock = threading.Lock()

    def _serve(self, requests: Sequence[Request]) -> list[Reply | EngineFailure]:
        done = time.perf_counter()
        with self._lock:
            arrived = time.perf_counter()
            for request in requests:
                needs_s = self._median_s * random.Random(request.messages[-1].text).lognormvariate(0, self._sigma)
                end = max(arrived, heapq.heappop(self._free_at)) + needs_s
                heapq.heappush(self._free_at, end)
                done = max(done, end)
                self.thought_s += needs_s
                self.longest_s = max(self.longest_s, needs_s)
        replies = super()._serve(requests)
        time.sleep(max(0.0, done - time.perf_counter()))
        return replies


def taste(text: str) -> float:
    """What the judge likes: a number drawn by the text."""
    return random.Random(text).gauss(0, 1)


def batch(groups: int, size: int) -> list[Group]:
    """Groups of different questions and answers."""
    return [Group.of(f"Question {g}?", [f"answer {i} to {g}" for i in range(size)], str(g)) for g in range(groups)]


def judged(engine: ThinkingServer, schedule: str, groups: Sequence[Group]) -> tuple[float, list[Judgement]]:
    """Seconds, and what came out."""
    judge = Judge(engine, Choice(), schedule=schedule, verdict="logprobs", audit=False)
    began = time.perf_counter()
    judgements = judge.judge(groups)
    return time.perf_counter() - began, judgements


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", type=int, nargs="*", default=[16, 64])
    parser.add_argument("--size", type=int, default=8)
    parser.add_argument("--median", type=float, default=0.3, help="median thinking time of a comparison, seconds")
    parser.add_argument("--sigma", type=float, default=0.8, help="of the logarithm of a comparison's time")
    parser.add_argument("--slots", type=int, default=64, help="comparisons the server works on at once")
    parser.add_argument("--schedules", nargs="*", default=["adaptive", "swiss", "knockout", "ring"])
    parser.add_argument("--quick", action="store_true", help="tiny numbers, for a smoke test")
    args = parser.parse_args()
    if args.quick:
        args.groups, args.size, args.median, args.slots = [3], 4, 0.01, 4
    mean_s = args.median * math.exp(args.sigma**2 / 2)
    print(
        f"groups of {args.size}; thinking lognormal, median {args.median} s, mean {mean_s:.2f} s, sigma {args.sigma}; "
        f"{args.slots} slots\n"
    )
    print(f"{'groups':>6} {'schedule':<10}{'calls':>7}{'lock-step, s':>14}{'side by side, s':>17}{'ratio':>7}", end="")
    print(f"{'slots in use':>20}{'floor, s':>12}")
    same = True
    for count in args.groups:
        groups = batch(count, args.size)
        for schedule in args.schedules:
            seconds, found, in_use = [], [], []
            for several in (False, True):
                engine = ThinkingServer(args.slots, args.median, args.sigma, several)
                took_s, judgements = judged(engine, schedule, groups)
                seconds.append(took_s)
                found.append([(judgement.scores_G, judgement.played) for judgement in judgements])
                in_use.append(engine.thought_s / args.slots / took_s)
            same = same and found[0] == found[1]
            floor = max(engine.thought_s / args.slots, engine.longest_s)
            print(
                f"{count:>6} {schedule:<10}{len(engine.requests):>7}{seconds[0]:>14.2f}{seconds[1]:>17.2f}"
                f"{seconds[1] / seconds[0]:>7.2f}{in_use[0]:>11.0%} → {in_use[1]:>4.0%}{floor:>14.2f}",
                flush=True,
            )
    if not same:
        print("FAIL: side by side, other judgements came out than in lock-step")
        sys.exit(1)
    print("\njudgements of both ways are identical")


if __name__ == "__main__":
    main()
