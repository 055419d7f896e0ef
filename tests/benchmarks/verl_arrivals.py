"""What the verl adapter costs per sample, and what judging while rollouts still run saves.

    python -m tests.benchmarks.verl_arrivals                          # about three minutes on two cores
    python -m tests.benchmarks.verl_arrivals --groups 8 --no-ray      # a look

**Arrivals.** Groups whose rollouts take a long-tailed (lognormal) time are judged by a server that thinks about each
comparison for a fixed time and works on a fixed number at once. The step ends when every sample has its reward. Three
ways: judge the whole batch when the last rollout has ended (what verl's colocated path does), judge each group when its
last member has come, and ask each comparison as soon as its members are there. Times are real seconds of this process;
only the server is simulated, by sleeping. The rollouts alone are the floor.

**Overhead.** Samples go through verl's own reward loop on a real Ray, once with our manager and a judge that answers at
once, once with verl's stock manager and a function that returns at once. The difference is what our adapter adds. CPU time
is told besides, of each kind of process, because it does not depend on what else the machine does; and of the judge alone,
asked about the same groups in this process.
"""

from __future__ import annotations

import argparse
import asyncio
import heapq
import random
import threading
import time
from collections import Counter
from collections.abc import Sequence

from mrjudge_reward import Choice, Judge, JudgeConfig
from mrjudge_reward.engines.scripted import ScriptedEngine
from mrjudge_reward.messages import as_messages
from mrjudge_reward.streaming.batches import SharedBatches
from mrjudge_reward.streaming.groups import ArrivingGroups, Sample
from mrjudge_reward.streaming.queue import JudgingQueue
from mrjudge_reward.streaming.scores import group_of
from mrjudge_reward.types import EngineFailure, Reply, Request

KINDS = ("driver", "RewardLoopWorker", "JudgeActor")
"""Kinds of processes whose CPU time is told."""

WAYS = {"batch": "at the end of the batch", "group": "group by group", "comparison": "as it arrives"}


class ThinkingServer(ScriptedEngine):
    """A scripted judge behind a server with so many slots, each busy so long with a request; first come, first served."""

    def __init__(self, slots: int, think_s: float) -> None:
        super().__init__(ScriptedEngine.by_utility(len).script)
        self._think_s = think_s
        self._free_at = [0.0] * slots
        self._lock = threading.Lock()

    def _serve(self, requests: Sequence[Request]) -> list[Reply | EngineFailure]:
        done = time.perf_counter()
        with self._lock:
            for _ in requests:
                done = max(time.perf_counter(), heapq.heappop(self._free_at)) + self._think_s
                heapq.heappush(self._free_at, done)
        replies = super()._serve(requests)
        time.sleep(max(0.0, done - time.perf_counter()))
        return replies


def rollout_times(groups: int, size: int, median_s: float, sigma: float, seed: int) -> list[list[float]]:
    """Seconds until each member of each group has been generated."""
    rng = random.Random(seed)
    return [[median_s * rng.lognormvariate(0, sigma) for _ in range(size)] for _ in range(groups)]


def sample(group: int, member: int, size: int) -> Sample:
    """A completion that differs from all others of its group."""
    answer = f"answer {'.' * (member * 3 % size)} of {member} to {group}"
    return Sample(f"group {group}", str(member), size, as_messages(f"Question {group}?"), answer, 8)


async def step(judge: Judge, times: list[list[float]], way: str) -> float:
    """Seconds until every sample has its reward."""
    size = len(times[0])
    queue = JudgingQueue(lambda: judge, deadline_s=600)
    groups, batches = ArrivingGroups(queue, as_it_arrives=way == "comparison"), SharedBatches(queue, sizes=[size])
    await queue.ask_early(())  # the judge is ready
    began = time.perf_counter()

    async def one(group: int, member: int) -> None:
        await asyncio.sleep(times[group][member])
        if way != "batch":
            await groups.join(sample(group, member, size))

    await asyncio.gather(*(one(group, member) for group in range(len(times)) for member in range(size)))
    if way == "batch":
        everything = [sample(group, member, size) for group in range(len(times)) for member in range(size)]
        await batches.join_share(everything, 0, 1)
    seconds = time.perf_counter() - began
    queue.close()
    return seconds


def arrivals(args: argparse.Namespace) -> None:
    """Print the table of step times."""
    times = rollout_times(args.groups, args.size, args.median, args.sigma, args.seed)
    slowest = max(max(group) for group in times)
    print(
        f"{args.groups} groups of {args.size}; rollouts lognormal, median {args.median} s, sigma {args.sigma}, slowest "
        f"{slowest:.2f} s; the judge thinks {args.think} s about each comparison, {args.slots} at once\n"
    )
    print(f"{'schedule':<10}{'judged':<34}{'step, s':>9}{'beyond rollouts, s':>20}{'step / at the end':>19}")
    for schedule in args.schedules:
        end = 0.0
        for way, name in (
            ("batch", "at the end of the batch"),
            ("group", "group by group"),
            ("comparison", "as it arrives"),
        ):
            engine = ThinkingServer(args.slots, args.think)
            judge = Judge(engine, Choice(), schedule=schedule, verdict="logprobs", audit=False)
            seconds = asyncio.run(step(judge, times, way))
            end = end or seconds
            print(f"{schedule:<10}{name:<34}{seconds:>9.2f}{seconds - slowest:>20.2f}{seconds / end:>19.3f}")
    print()


def overhead(args: argparse.Namespace) -> None:
    """Print what our manager adds to a sample's way through verl's reward loop."""
    import psutil
    import ray
    from transformers import AutoTokenizer
    from verl.experimental.reward_loop.reward_loop import RewardLoopManager

    from mrjudge_reward.engines.embedded import embedded_model_path
    from tests.support.verl_setup import Streaming, ready_judge, reward_loop, rollouts, verl_config

    ray.init(num_cpus=16, include_dashboard=False, log_to_driver=False)
    path = str(embedded_model_path())
    tokenizer = AutoTokenizer.from_pretrained(path)

    def cpu_seconds() -> Counter[str]:
        """By kind of process."""
        me, spent = psutil.Process(), Counter[str]()
        for process in (me, *me.children(recursive=True)):
            name = "driver" if process == me else process.name()
            spent[next((kind for kind in KINDS if kind in name), "Ray")] += sum(process.cpu_times()[:2])
        return spent

    def of_a_sample(manager: RewardLoopManager) -> tuple[float, dict[str, float]]:
        """Seconds at best, and CPU seconds by kind of process on average."""
        stream = Streaming(manager, tokenizer)
        stream.all(rollouts(4, args.size, {"mrjudge_group_size": args.size}))  # all is loaded
        best, samples, before = float("inf"), args.groups * args.size, cpu_seconds()
        for _ in range(args.repeats):
            made = rollouts(args.groups, args.size, {"mrjudge_group_size": args.size})
            began = time.perf_counter()
            stream.all(made, seed=1)
            best = min(best, (time.perf_counter() - began) / samples)
        spent = cpu_seconds() - before
        return best, {kind: seconds / samples / args.repeats for kind, seconds in spent.items()}

    def judging() -> float:
        """CPU seconds of a sample in ``Judge.judge``, a group a call."""
        judge, began = ready_judge(JudgeConfig()), 0.0
        for number in range(args.groups + 4):
            began = time.process_time() if number == 4 else began
            judge.judge([group_of(str(number), [sample(number, member, args.size) for member in range(args.size)])])
        samples: int = args.groups * args.size
        return (time.process_time() - began) / samples

    workers = f"reward.num_workers={args.workers}"
    found: dict[str, tuple[float, dict[str, float]]] = {}
    stock = [
        "reward.reward_manager.source=register",
        "reward.reward_manager.name=naive",
        "reward.custom_reward_function.path=pkg://tests.support.verl_setup",
        "reward.custom_reward_function.name=constant_score",
    ]
    for name, overrides in {"stock": stock, "ours": []}.items():
        settings = {"factory": "tests.support.verl_setup:ready_judge"}
        with reward_loop(verl_config(path, settings, workers, *overrides)) as manager:
            found[name] = of_a_sample(manager)
    (stock_s, stock_cpu), (ours_s, ours_cpu) = found["stock"], found["ours"]
    print(f"{args.groups * args.size} samples in flight, {args.workers} reward workers; ms a sample\n")
    print(f"{'':<32}{'stock':>8}{'ours':>8}{'added':>8}{'ratio':>8}")
    rows = {
        f"wall, best of {args.repeats}": (stock_s, ours_s),
        "CPU, all": (sum(stock_cpu.values()), sum(ours_cpu.values())),
    }
    rows |= {f"CPU, {kind}": (stock_cpu.get(kind, 0.0), ours_cpu.get(kind, 0.0)) for kind in (*KINDS, "Ray")}
    for name, (stock_one, ours_one) in rows.items():
        ratio = f"{ours_one / stock_one:.2f}" if stock_one else ""
        print(f"{name:<32}{stock_one * 1e3:>8.2f}{ours_one * 1e3:>8.2f}{(ours_one - stock_one) * 1e3:>8.2f}{ratio:>8}")
    print(f"{'CPU, the judge by itself':<32}{'':>8}{judging() * 1e3:>8.2f}")
    ray.shutdown()


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", type=int, default=64)
    parser.add_argument("--size", type=int, default=8)
    parser.add_argument("--median", type=float, default=3.0, help="median rollout, seconds")
    parser.add_argument("--sigma", type=float, default=0.6, help="of the logarithm of a rollout's time")
    parser.add_argument("--think", type=float, default=0.25, help="seconds of thinking per comparison")
    parser.add_argument("--slots", type=int, default=32, help="comparisons the judge works on at once")
    parser.add_argument("--schedules", nargs="*", default=["ring", "adaptive", "all_pairs"])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-ray", action="store_true", help="leave out the overhead inside verl")
    args = parser.parse_args()
    arrivals(args)
    if not args.no_ray:
        overhead(args)


if __name__ == "__main__":
    main()
