"""How busy ``mrjudge rank`` keeps a server whose replies take very different times. Needs no model.

    python -m tests.benchmarks.rank                           # a minute
    python -m tests.benchmarks.rank --quick                   # seconds, for a smoke test: the numbers mean nothing

A real HTTP server on this machine thinks about each comparison for a long-tailed (lognormal) time, the same whenever the
comparison is asked. The same lines are judged in these ways, in the same run and in turns:

    batches   ``--chunk`` lines are judged together, and the next ones when all of these are done
    window    ``mrjudge rank``: as many lines in flight, another whenever one is done, written in the input's order
    default   the same with the number that is the default with a server
    at once   all lines in one judging: the floor, which needs memory for all of them and writes nothing before its end

It exits with 1 if the outputs differ, or if the window takes longer than the batches (the latter not with --quick).
"""

from __future__ import annotations

import argparse
import io
import json
import random
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from itertools import islice
from statistics import median
from typing import Any

from mrjudge_reward.cli.lines import SERVED, Counts, read_items, results
from mrjudge_reward.judge import JudgeConfig
from tests.support.judge_server import JudgeServer, longest_wins, prompt_text


def lines(count: int, size: int) -> bytes:
    """Lines of different questions."""
    rng = random.Random(0)
    return b"".join(
        json.dumps({"prompt": f"Question {n}?", "candidates": ["x" * rng.randint(1, 200) + f" {i}" for i in range(size)]})
        .encode() + b"\n"
        for n in range(count)
    )  # fmt: skip


def seconds(body: Mapping[str, Any], median_s: float, sigma: float) -> float:
    """How long the server thinks about a request."""
    return median_s * random.Random(prompt_text(body)).lognormvariate(0, sigma)


def thinking(median_s: float, sigma: float) -> Callable[[Mapping[str, Any]], str]:
    """A judge that takes its time, drawn by what it is asked."""

    def answer(body: Mapping[str, Any]) -> str:
        time.sleep(seconds(body, median_s, sigma))
        return longest_wins(body)

    return answer


def written(config: JudgeConfig, source: bytes, chunk: int | None) -> list[Any]:
    """The scores in the output of ``mrjudge rank``."""
    items = read_items(io.BytesIO(source), "lines", config, Counts())
    return [json.loads(line)["scores"] for found in results(config, items, chunk) for line, _ in found]


def judged(config: JudgeConfig, source: bytes, chunk: int) -> list[Any]:
    """The scores when so many lines are judged together, and then the next ones."""
    items = read_items(io.BytesIO(source), "lines", config, Counts())
    batches = iter(lambda: [item.group for item in islice(items, chunk) if item.group is not None], [])
    with closing(config.build()) as judge:
        return [list(judgement.scores_G) for batch in batches for judgement in judge.judge(batch)]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=96)
    parser.add_argument("--size", type=int, default=6, help="candidates of a line")
    parser.add_argument("--chunk", type=int, default=16)
    parser.add_argument("--slots", type=int, default=64, help="requests in flight")
    parser.add_argument("--median", type=float, default=0.25, help="median thinking time of a comparison, seconds")
    parser.add_argument("--sigma", type=float, default=0.8, help="of the logarithm of a comparison's time")
    parser.add_argument("--schedules", nargs="*", default=["adaptive", "ring"])
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="tiny numbers, for a smoke test")
    args = parser.parse_args()
    if args.quick:
        args.lines, args.size, args.chunk, args.median, args.turns = 9, 4, 3, 0.005, 1
    source = lines(args.lines, args.size)
    ways: dict[str, Callable[[JudgeConfig], list[Any]]] = {
        "batches": lambda config: judged(config, source, args.chunk),
        "window": lambda config: written(config, source, args.chunk),
        "default": lambda config: written(config, source, None),
        "at once": lambda config: judged(config, source, args.lines),
    }
    print(f"{args.lines} lines of {args.size}, {args.slots} requests in flight, median of {args.turns} turns\n")
    print(f"{'schedule':<10}{'way':<9}{'lines at once':>14}{'s':>8}{'of batches':>12}{'slots in use':>14}")
    at_once = {"batches": args.chunk, "window": args.chunk, "default": SERVED, "at once": args.lines}
    fine = True
    with JudgeServer(thinking(args.median, args.sigma)) as server:
        for schedule in args.schedules:
            config = JudgeConfig(
                model="judge", base_url=server.base_url, schedule=schedule, verdict="generate",
                max_concurrency=args.slots,
            )  # fmt: skip
            took: dict[str, list[float]] = {name: [] for name in ways}
            thought, scores = 0.0, []
            for _ in range(args.turns):
                for name, way in ways.items():
                    first, began = len(server.requests), time.perf_counter()
                    scores.append(way(config))
                    took[name].append(time.perf_counter() - began)
                    thought = sum(seconds(body, args.median, args.sigma) for body in server.requests[first:])
            fine &= all(found == scores[0] for found in scores)
            for name, times in took.items():
                share = median(times) / median(took["batches"])
                print(
                    f"{schedule:<10}{name:<9}{at_once[name]:>14}{median(times):>8.2f}{share:>12.2f}"
                    f"{thought / args.slots / median(times):>14.0%}", flush=True,
                )  # fmt: skip
            fine &= args.quick or median(took["window"]) <= median(took["batches"])
    if not fine:
        print("FAIL: the ways differ in their scores, or the window took longer than the batches")
        sys.exit(1)
    print("\nscores of all ways are identical")


if __name__ == "__main__":
    main()
