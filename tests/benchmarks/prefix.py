"""How much of its prompts a judge is spared by the engine's prefix cache, in our order of requests and in a shuffled one.

    python -m tests.benchmarks.prefix                           # about five minutes on two idle cores
    OMP_NUM_THREADS=1 python -m tests.benchmarks.prefix         # ten minutes; times are steadier on a shared machine
    python -m tests.benchmarks.prefix --groups 8 --scale 0      # more is measured, nothing simulated; a quarter of an hour
    python -m tests.benchmarks.prefix --quick --json rows.json  # a minute, for a smoke test: the numbers mean nothing

**Measured.** The embedded model judges groups of film reviews (100 to 200 tokens each, after a question of some 100) by
reading its verdict, in vLLM in this process. The requests of a schedule are recorded once; every row then sends the same
ones, the prefix cache emptied before: **ours** as the judge sends them (sorted by their text), **shuffled** with each batch
permuted at random. Two sizes of cache:

*roomy*: nothing is ever evicted, so that order cannot matter and the share is the largest there can be;
*tight*: a fortieth of the prompt tokens of all pairs, though at least one full context and the longest prompt one and a
half times. A training step is like that: an 8B judge keeps 144 KiB per token, so 8 GB for its cache hold 54,000 tokens, and
128 groups of 8 have 4 million in all pairs, 1.2 million in adaptive. ``batch/cache`` tells how tight that is: the prompt
tokens of a schedule's largest batch over those that the cache holds.

The columns: calls; tokens per verdict (prompt, of these from the cache, generated); the share of prompt tokens served from
the cache, and what it is in the simulation below; ``bound``, that share if every block of 32 tokens were computed once and
kept for ever; seconds, their ratio to those of our order, and the same of the process's CPU time, which suffers less from
what else the machine does. Shares repeat; times are of one run each, and shown for the tight cache alone, because the runs
before it pay for the first use of every shape.

**Simulated.** A training step of 128 groups is too much for two cores, so there the cache is simulated: blocks evicted in
the order of their last use, requests admitted in order until a step is full. The verdicts are those of a scripted judge.

Other orders: **there and back**, every second batch backwards, so that a round begins where the one before it ended;
**in waves**, some groups are taken through all rounds before the next ones begin; **question last**, candidates before the
question, which is what the layout of our templates avoids.

What this flatters. Verdicts are read, so that a comparison costs its prompt and one token; where the judge thinks first,
a prompt is the smaller part of its time. And the groups measured are few, so that a shuffled request still meets its own
question in the cache by chance; see the simulation for many.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import sys
import tempfile
import time
import zlib
from collections import OrderedDict, deque
from collections.abc import Callable, Container, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import mrjudge_reward
from mrjudge_reward import Choice, Group, Judge
from mrjudge_reward.engines.contract import Engine
from mrjudge_reward.engines.embedded import embedded_model_path
from mrjudge_reward.engines.scripted import ScriptedEngine
from mrjudge_reward.engines.vllm.setup import VLLMSetup, cpu_build
from mrjudge_reward.types import EngineFailure, Reply, Request, Usage
from recipes.data.reviews import load_reviews

from .overhead import environment

BLOCK = 32
"""Tokens per block of the cache; what vLLM's CPU attention takes at the least."""

ROOMY = 4096
"""Blocks of the roomy cache, 131,072 tokens."""

TIGHT_SHARE = 40

STEP = 2048
"""Tokens computed in a step of vLLM at most."""

SCALE_CACHE, SCALE_STEP = 54_000, 8192
"""Tokens of a cache and a step on a GPU, for the simulation."""

WAVE = 16
"""Groups of a wave in the simulation."""

SCHEDULES = ("listwise", "adaptive", "all_pairs")

Order = Callable[[int, int], list[int]]
"""From the number of a batch and its size to the places of its requests in the order sent."""


def in_order(batch: int, size: int) -> list[int]:
    return list(range(size))


def shuffled(batch: int, size: int) -> list[int]:
    return Random(batch).sample(range(size), size)


Batches = Sequence[Sequence[Request]]


def there_and_back(batches: Batches) -> list[list[Request]]:
    """Every second batch backwards."""
    return [list(batch)[:: -1 if number % 2 else 1] for number, batch in enumerate(batches)]


def in_waves(batches: Batches, groups: int) -> list[list[Request]]:
    """Some groups through all rounds, then the next ones."""
    opening = {request: request.messages[-1].text.partition("[Response")[0] for batch in batches for request in batch}
    number = {text: place for place, text in enumerate(dict.fromkeys(map(opening.__getitem__, batches[0])))}
    waves: dict[tuple[int, int], list[Request]] = {}
    for turn, batch in enumerate(batches):
        for request in batch:
            waves.setdefault((number[opening[request]] // groups, turn), []).append(request)
    return [waves[key] for key in sorted(waves)]


@dataclass
class Reordered(Engine):
    """An engine that sends each batch in another order, and notes what it was asked, for how long and at what cost."""

    engine: Engine
    order: Order
    batches: list[list[Request]] = field(default_factory=list)
    usage: Usage = Usage()
    seconds: float = 0.0
    cpu_seconds: float = 0.0

    def __post_init__(self) -> None:
        self.identity, self.reserved, self.can_read = self.engine.identity, self.engine.reserved, self.engine.can_read
        self.context_tokens = self.engine.context_tokens

    def generate(self, requests: Sequence[Request]) -> list[Reply | EngineFailure]:
        return self.engine.generate(requests)

    def count_tokens(self, text: str) -> int:
        return self.engine.count_tokens(text)

    def close(self) -> None:
        self.engine.close()

    def label_logprobs(self, requests: Sequence[Request]) -> list[Reply | EngineFailure]:
        """The replies, in the order of the requests."""
        places = self.order(len(self.batches), len(requests))
        began, cpu_began = time.perf_counter(), time.process_time()
        replies = self.engine.label_logprobs([requests[place] for place in places])
        self.seconds += time.perf_counter() - began
        self.cpu_seconds += time.process_time() - cpu_began
        self.batches.append(list(requests))
        for reply in replies:
            if isinstance(reply, EngineFailure):
                raise SystemExit(f"{self.identity} failed: {reply}")
            self.usage += reply.usage
        back = dict(zip(places, replies, strict=True))
        return [back[place] for place in range(len(requests))]


def keys(prompt: Sequence[int]) -> list[int]:
    """An identity for each full block of a prompt, which depends on all that stands before it."""
    found: list[int] = []
    for end in range(BLOCK, len(prompt) + 1, BLOCK):
        found.append(hash((found[-1] if found else 0, *prompt[end - BLOCK : end])))
    return found


def known_start(blocks: Sequence[int], seen: Container[int], length: int) -> int:
    """Blocks at the start of a prompt that need no computing. Its last token is computed in any case, as vLLM does."""
    known = next((place for place, block in enumerate(blocks) if block not in seen), len(blocks))
    return min(known, (length - 1) // BLOCK)


def bound(prompts: Sequence[Sequence[int]]) -> float:
    """Share of the tokens of these prompts that need no computing if every block is computed once and kept."""
    seen: set[int] = set()
    cached = 0
    for prompt in prompts:
        blocks = keys(prompt)
        cached += BLOCK * known_start(blocks, seen, len(prompt))
        seen.update(blocks)
    return cached / sum(map(len, prompts))


def simulated(batches: Sequence[Sequence[Sequence[int]]], cache: int, step: int) -> float:
    """Share of prompt tokens served from a cache that drops the block unused for longest.

    Args:
        batches: of prompts; each is finished before the next begins. Every request ends with the step it was admitted to.
        cache: tokens it holds, those of running requests among them.
        step: tokens computed in a step at most.
    """
    idle: OrderedDict[int, None] = OrderedDict()  # the one unused for longest first
    cached = 0
    for batch in batches:
        waiting = deque((keys(prompt), len(prompt)) for prompt in batch)
        while waiting:
            running: list[list[int]] = []
            held: set[int] = set()
            ends, room = 0, step  # begun blocks at the ends of running prompts; tokens left in this step
            while waiting:
                blocks, length = waiting[0]
                known = known_start(blocks, idle.keys() | held, length)
                taken = len(held.union(blocks)) + ends + (length % BLOCK > 0)
                if running and (length - known * BLOCK > room or taken > cache // BLOCK):
                    break
                waiting.popleft()
                cached, room = cached + known * BLOCK, room - length + known * BLOCK
                held.update(blocks)
                ends += length % BLOCK > 0
                running.append(blocks)
                for block in blocks:
                    idle.pop(block, None)
                while idle and len(idle) + len(held) + ends > cache // BLOCK:
                    idle.popitem(last=False)
            for blocks in running:
                for block in reversed(blocks):  # the end of a prompt goes first
                    idle.pop(block, None)
                    idle[block] = None
    return cached / sum(len(prompt) for batch in batches for prompt in batch)


def review_groups(count: int, size: int, question: int, lengths: tuple[int, int], seed: int = 0) -> list[Group]:
    """Groups of real sentences about films, put together at random.

    Args:
        count: groups.
        size: candidates of each.
        question: words in the question, beside its own.
        lengths: fewest and most words of a candidate; a sentence is not cut, so it may be some more.
        seed: of the choice.
    """
    rng = Random(seed)
    sentences = [review.text for review in load_reviews()]

    def passage(words: int) -> str:
        text = ""
        while len(text.split()) < words:
            text += f" {rng.choice(sentences)}"
        return text.strip()

    return [
        Group.of(
            f"Others wrote about a film: {passage(question)}\nWrite a review of it." if question else "Review a film.",
            [passage(rng.randint(*lengths)) for _ in range(size)],
            f"{seed}-{index}",
        )
        for index in range(count)
    ]


def build(blocks: int, context: int) -> Any:
    """The embedded model in vLLM with a cache of so many blocks."""
    from mrjudge_reward.engines.vllm.engine import VLLMEngine

    cache = {"block_size": BLOCK, "num_gpu_blocks_override": blocks, "max_num_batched_tokens": STEP}
    eager = {"enforce_eager": True} if cpu_build() else {}
    dtype = "float32" if cpu_build() else None  # many CPUs have no bfloat16, and are ten times slower with it
    return VLLMEngine(str(embedded_model_path()), max_model_len=context, dtype=dtype, engine_kwargs=cache | eager)


@dataclass(frozen=True)
class Row:
    """One schedule, order and cache. Seconds are those inside the engine."""

    cache: str
    cache_tokens: int
    schedule: str
    order: str
    calls: int
    usage: Usage
    largest_batch: int
    simulated: float
    bound: float
    seconds: float
    cpu_seconds: float
    ratio: float
    cpu_ratio: float

    @property
    def share(self) -> float:
        """Of the prompt tokens, those that came from the cache."""
        return self.usage.cached_tokens / self.usage.prompt_tokens

    def line(self) -> str:
        spent = (self.usage.prompt_tokens, self.usage.cached_tokens, self.usage.completion_tokens)
        per_verdict = "".join(f"{tokens / self.calls:>9.1f}" for tokens in spent)
        times = self.largest_batch / self.cache_tokens
        timed = f"{self.seconds:>9.1f}{self.ratio:>8.2f}{self.cpu_ratio:>12.2f}" if self.cache == "tight" else ""
        return (
            f"{self.cache:<7}{self.schedule:<11}{self.order:<15}{self.calls:>6}{times:>12.1f}"
            f"{per_verdict}{self.share:>8.3f}{self.simulated:>7.3f}{self.bound:>7.3f}{timed}"
        )


HEADER = (
    f"{'cache':<7}{'schedule':<11}{'order':<15}{'calls':>6}{'batch/cache':>12}{'prompt':>9}{'cached':>9}{'gener.':>9}"
    f"{'share':>8}{'sim.':>7}{'bound':>7}{'seconds':>9}{'/ ours':>8}{'CPU / ours':>12}"
)


def encoder() -> Callable[[Request], list[int]]:
    """What turns a request into the tokens of its prompt."""
    tokens = VLLMSetup(str(embedded_model_path())).load_tokenizer()
    return lambda request: tokens.encode(tokens.chat.text(request))


class Bench:
    """Runs rows, each printed as it comes; holds one engine at a time."""

    def __init__(self, groups: list[Group], context: int) -> None:
        self.groups, self.context = groups, context
        self.encode = encoder()
        self.rows: list[Row] = []
        self.engine: Any = None
        self.cache = ("", 0)

    def use(self, name: str, blocks: int) -> None:
        self.close()
        self.engine, self.cache = build(blocks + 1, self.context), (name, blocks * BLOCK)  # vLLM keeps one to itself
        Judge(self.engine, schedule="ring", verdict="logprobs").judge(self.groups[:1])  # the first steps are slow

    def close(self) -> None:
        if self.engine is not None:
            self.engine.close()
        self.engine = None
        gc.collect()

    def run(self, schedule: str, name: str, order: Order, work: Callable[[Reordered], object]) -> Reordered:
        """Do some work on an engine that sends in this order, and keep the row."""
        getattr(self.engine, "_llm").reset_prefix_cache()  # noqa: B009  no part of the engine's contract
        watched = Reordered(self.engine, order)
        work(watched)
        prompts = [[self.encode(request) for request in batch] for batch in watched.batches]
        sent = [[batch[place] for place in order(number, len(batch))] for number, batch in enumerate(prompts)]
        twin = (row for row in self.rows if (row.cache, row.schedule, row.order) == (self.cache[0], schedule, "ours"))
        base = next(twin, None)
        row = Row(
            *self.cache,
            schedule,
            name,
            calls=sum(map(len, prompts)),
            usage=watched.usage,
            largest_batch=max(sum(map(len, batch)) for batch in prompts),
            simulated=simulated(sent, self.cache[1], STEP),
            bound=bound([prompt for batch in prompts for prompt in batch]),
            seconds=watched.seconds,
            cpu_seconds=watched.cpu_seconds,
            ratio=watched.seconds / (base.seconds if base else watched.seconds),
            cpu_ratio=watched.cpu_seconds / (base.cpu_seconds if base else watched.cpu_seconds),
        )
        self.rows.append(row)
        print(row.line(), flush=True)
        return watched


def replay(batches: Sequence[Sequence[Request]]) -> Callable[[Reordered], object]:
    return lambda engine: [engine.label_logprobs(batch) for batch in batches]


def question_last(folder: Path) -> str:
    """A file with our template of a choice, its question moved behind the candidates."""
    text = (Path(mrjudge_reward.__file__).parent / "prompting" / "templates" / "choice.txt").read_text(encoding="utf-8")
    question = "[Question]\n{question}\n[End of question]\n"
    assert question in text, "the template has changed"
    moved = text.replace(question, "").replace("{responses}\n", "{responses}\n" + question)
    (folder / "question_last.txt").write_text(moved, encoding="utf-8")
    return str(folder / "question_last.txt")


def measure(groups: list[Group], context: int) -> list[Row]:
    """All rows."""
    bench = Bench(groups, context)

    def judging(schedule: str, format: Choice = Choice()) -> Callable[[Reordered], object]:  # noqa: B008  frozen
        return lambda engine: Judge(engine, format, schedule=schedule, verdict="logprobs", audit=False).judge(groups)

    bench.use("roomy", ROOMY)
    recorded: dict[str, list[list[Request]]] = {}
    for schedule in SCHEDULES:
        recorded[schedule] = bench.run(schedule, "ours", in_order, judging(schedule)).batches
        bench.run(schedule, "shuffled", shuffled, replay(recorded[schedule]))
    everything = max(row.usage.prompt_tokens for row in bench.rows)
    longest = max(len(bench.encode(request)) for batches in recorded.values() for batch in batches for request in batch)
    tight = max(everything / TIGHT_SHARE, 1.5 * longest, context)  # vLLM wants room for one full context
    bench.use("tight", math.ceil(tight / BLOCK))
    for schedule in SCHEDULES:
        bench.run(schedule, "ours", in_order, replay(recorded[schedule]))
        bench.run(schedule, "shuffled", shuffled, replay(recorded[schedule]))
    bench.run("adaptive", "in waves", in_order, replay(in_waves(recorded["adaptive"], 1)))
    with tempfile.TemporaryDirectory() as folder:
        moved = Choice(template=question_last(Path(folder)))
        bench.run("adaptive", "question last", in_order, judging("adaptive", moved))
    bench.close()
    return bench.rows


def at_scale(count: int, size: int, texts: tuple[int, tuple[int, int]]) -> list[dict[str, Any]]:
    """Print the simulated shares of so many groups."""
    print(
        f"\nSimulated: {count} groups of {size}, a cache of {SCALE_CACHE} tokens, up to {SCALE_STEP} a step; bound is that "
        f"of a cache kept for ever\n{'schedule':<11}{'calls':>6}{'batch/cache':>12}{'bound':>8}{'ours':>8}{'shuffled':>10}"
        f"{'there and back':>16}{'in waves':>10}"
    )
    groups, encode = review_groups(count, size, *texts), encoder()
    rows: list[dict[str, Any]] = []
    for schedule in SCHEDULES:
        scripted = ScriptedEngine.by_utility(lambda text: zlib.crc32(text.encode()))
        watched = Reordered(scripted, in_order)
        Judge(watched, schedule=schedule, verdict="logprobs", audit=False).judge(groups)
        ours, ids = watched.batches, {request: encode(request) for batch in watched.batches for request in batch}
        mixed = [[batch[place] for place in shuffled(number, len(batch))] for number, batch in enumerate(ours)]
        orders = {"ours": ours, "shuffled": mixed, "back": there_and_back(ours), "waves": in_waves(ours, WAVE)}
        shares = {
            name: simulated([[ids[request] for request in batch] for batch in batches], SCALE_CACHE, SCALE_STEP)
            for name, batches in orders.items()
        }
        tight = max(sum(len(ids[request]) for request in batch) for batch in ours) / SCALE_CACHE
        best = bound(list(ids.values()))
        rows.append({"schedule": schedule, "groups": count, "calls": len(ids), "bound": best, **shares})
        print(
            f"{schedule:<11}{len(ids):>6}{tight:>12.1f}{best:>8.3f}{shares['ours']:>8.3f}{shares['shuffled']:>10.3f}"
            f"{shares['back']:>16.3f}{shares['waves']:>10.3f}",
            flush=True,
        )
    return rows


def start_in_environment(threads: int) -> None:
    """Start this script anew with what vLLM's CPU build wants to know, some of it before Python starts."""
    own = {"VLLM_LOGGING_LEVEL": "ERROR", "OMP_NUM_THREADS": str(threads)}
    wanted = environment("vllm") | own | os.environ
    if not wanted.items() <= os.environ.items():
        os.execve(sys.executable, sys.orig_argv, wanted)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", type=int, default=3)
    parser.add_argument("--size", type=int, default=8, help="candidates per group")
    parser.add_argument("--scale", type=int, default=128, help="groups of the simulation; 0 to leave it out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--quick", action="store_true", help="two groups of three short candidates, to see that it runs"
    )
    parser.add_argument("--json", type=Path, help="where to write the rows")
    args = parser.parse_args()
    start_in_environment(threads=os.cpu_count() or 1)
    count, size, texts = (2, 3, (10, (10, 20))) if args.quick else (args.groups, args.size, (65, (70, 110)))
    groups = review_groups(count, size, *texts, seed=args.seed)
    print(f"Measured: {count} groups of {size}, embedded model, blocks of {BLOCK} tokens\n{HEADER}", flush=True)
    rows = measure(groups, 1024 if args.quick else 2048)
    print(f"the tight cache holds {rows[-1].cache_tokens} tokens")
    scale = 16 if args.quick else args.scale
    simulation = at_scale(scale, size, texts) if scale else []
    if args.json:
        contents = {"measured": [asdict(row) | {"share": row.share} for row in rows], "simulated": simulation}
        args.json.write_text(json.dumps(contents, indent=1) + "\n")


if __name__ == "__main__":
    main()
