"""What judging costs beside the engine: speed against the raw engine, our own time and memory.

    python -m tests.benchmarks.overhead                              # six to ten minutes on two cores
    python -m tests.benchmarks.overhead --parts own memory           # without an engine
    python -m tests.benchmarks.overhead --quick --json rows.json     # a minute, for a smoke test: the numbers mean nothing

It exits with 1 if a requirement fails (not with --quick).

**Against the raw engine.** The embedded model judges groups with random texts. A recording run keeps every call that the
judge makes of its engine; then the raw engine, given these very lists of requests, and the judge, given the groups, take
turns, the raw engine first and last. A judge's run that asks anything else than the recorded one is an error. Before each
turn vLLM's prefix cache is emptied, because the completions of a training step have never been seen before: what is
reused is what comparisons of one turn share, on both sides. A ratio is the mean time of the two turns of the raw engine
before and after, over that of the judge's turn between them; median and range over the judge's turns. The control is the
ratio of these two turns of the raw engine to each other: as far as it strays from 1, the machine did other things too.
A turn takes seconds, so the ratio says little about a per mille. The share of the judge's own turns that it spent inside
the engine does, but would not see a judge that makes its engine slower. Ratio and share must reach 0.97.

An untrained model writes no verdicts. After it has written, its text becomes a closed reasoning and a verdict for the
longer candidate is put after it, so that parsing and rating have their work. The judge's side pays for that.

**Own time.** The judge on an engine that answers at once, candidates of some 200 tokens counted by the embedded model's
tokenizer, as with every engine that runs in this process. The time inside the engine is taken off. The stages come from
further runs with a clock around each. The last column is the speed of an engine above which 0.97 is out of reach for a
judge whose own time is not overlapped with it.

**Memory.** One call of 10,000 comparisons and more, each with a reasoning of some 300 tokens: what Python's allocator
holds at the peak and after it (tracemalloc), without the groups given, and in a run of its own the peak of the process.

What this flatters. The engine is slow here: on two cores a comparison takes it a tenth of a second or more, and our part
is the smaller for it. Own time and the last column are the figures to carry over to a GPU.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
import tracemalloc
import zlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import pairwise, product
from pathlib import Path
from random import Random
from statistics import median
from typing import Any, TypeVar
from unittest.mock import patch

from mrjudge_reward import Choice, Group, Judge
from mrjudge_reward.cache import Verb
from mrjudge_reward.config import VerdictMode
from mrjudge_reward.engines.contract import Engine
from mrjudge_reward.engines.embedded import embedded_model_path
from mrjudge_reward.engines.scripted import ScriptedEngine
from mrjudge_reward.engines.vllm.setup import JudgeTokenizer, VLLMSetup, cpu_build
from mrjudge_reward.judging import comparisons as comparisons_module
from mrjudge_reward.judging.comparisons import Comparer
from mrjudge_reward.judging.tournament import Tournament
from mrjudge_reward.special_tokens import Reserved
from mrjudge_reward.types import EngineFailure, Reply, Request

REQUIRED = 0.97
"""Of the raw engine's judgements per second, what a judge must reach."""

LINEAR = 1.1
"""Memory per comparison may differ by this factor between the largest and the smallest number of comparisons."""

CONTEXT = 32768
"""Of the judge whose own time is taken, in tokens. A shorter one has to count the tokens of long texts."""

ENGINES = ("transformers", "vllm")
PARTS = ("speed", "own", "memory")
MiB = 2**20
PROSE = (
    "the a film was slow but its music carried every scene and I would watch it again because of one actor who never "
    "smiled while he cut onions; however, critics — most of them — called it “overlong” [1], which (to be fair) it is: "
    "**two** hours, 41 minutes. See `x < y` \n\n- first \n- second"
)

T = TypeVar("T")


def text(rng: Random, words: int) -> str:
    return " ".join(rng.choices(PROSE.split(" "), k=words))


def groups_of(size: int, count: int, words: int) -> list[Group]:
    rng = Random(0)
    return [
        Group.of("What did you think of it? " + text(rng, 20), [text(rng, words) for _ in range(size)], str(index))
        for index in range(count)
    ]


# -- against the raw engine -------------------------------------------------------------------------------------------


class Watched(Engine):
    """A real engine whose calls are kept and timed, and whose written texts end in a verdict."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.identity, self.reserved = engine.identity, engine.reserved
        self.context_tokens, self.can_read = engine.context_tokens, engine.can_read
        self.calls: list[tuple[Verb, Sequence[Request]]] = []
        self.seconds = 0.0
        self.prompt_tokens = 0
        self._prefer = ScriptedEngine.by_utility(len).script

    def count_tokens(self, text: str) -> int:
        return self.engine.count_tokens(text)

    def close(self) -> None:
        self.engine.close()

    def _call(self, verb: Verb, requests: Sequence[Request]) -> list[Reply | EngineFailure]:
        began = time.perf_counter()
        replies: list[Reply | EngineFailure] = getattr(self.engine, verb)(requests)
        self.seconds += time.perf_counter() - began
        self.calls.append((verb, requests))
        for reply in replies:
            if isinstance(reply, EngineFailure):
                raise SystemExit(f"{self.identity} failed: {reply}")
            self.prompt_tokens += reply.usage.prompt_tokens
        return replies

    def label_logprobs(self, requests: Sequence[Request]) -> list[Reply | EngineFailure]:
        return self._call("label_logprobs", requests)

    def generate(self, requests: Sequence[Request]) -> list[Reply | EngineFailure]:
        dressed: list[Reply | EngineFailure] = []
        for request, reply in zip(requests, self._call("generate", requests), strict=True):
            assert isinstance(reply, Reply)
            verdict = f"<think>{reply.text}</think>{self._prefer(request)}"
            dressed.append(replace(reply, text=verdict, finish="stop"))
        return dressed


@dataclass(frozen=True)
class Duel:
    """Judge against raw engine, one verdict and schedule.

    Attributes:
        judgements, batches: of a turn.
        prompt_tokens: mean of a judgement.
        raw_s, judge_s: of each turn; the raw engine has one more.
        inside_s: of each turn of the judge, spent in the engine.
    """

    engine: str
    verdict: VerdictMode
    schedule: str
    judgements: int
    batches: int
    prompt_tokens: float
    raw_s: list[float]
    judge_s: list[float]
    inside_s: list[float]

    @property
    def ratios(self) -> list[float]:
        around = [(before + after) / 2 for before, after in pairwise(self.raw_s)]
        return [raw / judge for raw, judge in zip(around, self.judge_s, strict=True)]

    @property
    def controls(self) -> list[float]:
        return [before / after for before, after in pairwise(self.raw_s)]

    @property
    def share(self) -> float:
        """Of the judge's wall time, what it spent in the engine."""
        return sum(self.inside_s) / sum(self.judge_s)

    def line(self) -> str:
        per_s = [f"{self.judgements / median(seconds):>9.2f}" for seconds in (self.raw_s, self.judge_s)]
        beside_us = 1e6 * (sum(self.judge_s) - sum(self.inside_s)) / (len(self.judge_s) * self.judgements)
        return (
            f"{self.engine:<13}{self.verdict:<9}{self.schedule:<9}{self.judgements:>11}{self.batches:>8}"
            f"{self.prompt_tokens:>7.0f}{per_s[0]}{per_s[1]}   {spread(self.ratios)}   {spread(self.controls)}"
            f"{self.share:>9.4f}{beside_us:>12.0f}"
        )


def spread(values: list[float]) -> str:
    return f"{median(values):.3f} [{min(values):.3f}, {max(values):.3f}]"


DUEL_HEADER = (
    f"{'engine':<13}{'verdict':<9}{'schedule':<9}{'judgements':>11}{'batches':>8}{'tokens':>7}{'raw /s':>9}{'judge /s':>9}"
    f"   {'ratio':<20}   {'control':<20}{'share':>9}{'beside, µs':>12}"
)


def duel(
    engine: Engine, name: str, case: tuple[VerdictMode, str], groups: list[Group], max_tokens: int, turns: int
) -> Duel:
    verdict, schedule = case
    watched = Watched(engine)
    writing: dict[str, Any] = (
        {"temperature": 1.0, "top_p": 1.0, "max_tokens": max_tokens} if verdict == "generate" else {}
    )
    judge = Judge(watched, Choice(), schedule=schedule, verdict=verdict, audit=False, **writing)

    def turn(work: Callable[[], object]) -> float:
        if name == "vllm":
            getattr(engine, "_llm").reset_prefix_cache()  # noqa: B009  no part of the engine's contract
        gc.collect()
        watched.calls, watched.seconds, watched.prompt_tokens = [], 0.0, 0
        began = time.perf_counter()
        work()
        return time.perf_counter() - began

    turn(lambda: judge.judge(groups))  # warms up as well
    recorded = watched.calls
    judgements = sum(len(requests) for _, requests in recorded)
    tokens = watched.prompt_tokens / judgements
    raw_s, judge_s, inside_s = [], [], []

    def raw_turn() -> None:
        raw_s.append(turn(lambda: [getattr(engine, verb)(requests) for verb, requests in recorded]))

    def judge_turn() -> None:
        judge_s.append(turn(lambda: judge.judge(groups)))
        inside_s.append(watched.seconds)
        if watched.calls != recorded:
            raise SystemExit(f"{name}, {verdict}, {schedule}: the judge asked something else than in the recorded run")

    raw_turn()
    for _ in range(turns):
        judge_turn()
        raw_turn()
    return Duel(name, verdict, schedule, judgements, len(recorded), tokens, raw_s, judge_s, inside_s)


def duels(name: str, quick: bool) -> list[Duel]:
    """All duels of one engine; runs in a process of its own."""
    path = str(embedded_model_path())
    if name == "vllm":
        from mrjudge_reward.engines.vllm.engine import VLLMEngine

        kwargs = {"enforce_eager": True, "block_size": 32} if cpu_build() else {}
        dtype = "float32" if cpu_build() else None  # many CPUs have no bfloat16, and are ten times slower with it
        engine: Engine = VLLMEngine(path, max_model_len=2048, dtype=dtype, engine_kwargs=kwargs)
    else:
        from mrjudge_reward.engines.local.engine import TransformersEngine

        engine = TransformersEngine(path, dtype="float32")
    # A turn takes seconds: longer than a clock's grain, and shorter than most of what disturbs a machine.
    size, words, max_tokens, turns = (2, 10, 2, 1) if quick else (4, 40, 16, 10) if name == "vllm" else (3, 40, 16, 5)
    cases: tuple[tuple[VerdictMode, str], ...] = (("logprobs", "adaptive"), ("generate", "ring"))
    found = [duel(engine, name, case, groups_of(size, 1, words), max_tokens, turns) for case in cases]
    engine.close()
    return found


def environment(name: str) -> dict[str, str]:
    """What an engine's process wants to know; what is set already stays."""
    # One thread: so small a model gains little from more, and where a machine does other things too they wait for each
    # other, which moves a turn's time by far more than what is measured here.
    wanted = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "OMP_NUM_THREADS": "1"}
    if name == "vllm" and cpu_build():
        wanted |= {
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_NO_USAGE_STATS": "1",
            "TORCHDYNAMO_DISABLE": "1",
        }
        openmp = Path(sys.prefix) / "lib" / "libiomp5.so"
        wanted |= {"LD_PRELOAD": str(openmp)} if openmp.is_file() else {}
    return wanted | os.environ


# -- own time ---------------------------------------------------------------------------------------------------------


class Instant(Engine):
    """Answers at once: a verdict that depends on the request alone, after a reasoning of its own."""

    identity = "instant"
    can_read = True
    context_tokens: int | None = CONTEXT

    def __init__(
        self, count_tokens: Callable[[str], int], reserved: Reserved = frozenset(), rationale: str = ""
    ) -> None:
        self._count, self.reserved, self._rationale = count_tokens, reserved, rationale
        self.seconds = 0.0

    def generate(self, requests: Sequence[Request]) -> list[Reply | EngineFailure]:
        began = time.perf_counter()
        replies: list[Reply | EngineFailure] = []
        for request in requests:
            sign = zlib.crc32(request.messages[-1].text.encode())
            replies.append(Reply(f"<think>{sign} {self._rationale}</think>\n\n<answer>{'AB'[sign % 2]}</answer>"))
        self.seconds += time.perf_counter() - began
        return replies

    def label_logprobs(self, requests: Sequence[Request]) -> list[Reply | EngineFailure]:
        began = time.perf_counter()
        signs = [zlib.crc32(request.messages[-1].text.encode()) for request in requests]
        replies: list[Reply | EngineFailure] = [
            Reply(label_logprobs=(-1.0, -0.5 - sign % 1000 / 1000)) for sign in signs
        ]
        self.seconds += time.perf_counter() - began
        return replies

    def count_tokens(self, text: str) -> int:
        return self._count(text)

    def close(self) -> None:
        pass


OWN_SCHEDULES = ("adaptive", "ring", "all_pairs")
STAGES = ("render", "tokens", "keys", "verdict", "schedule", "rating", "rest")
"""Building chats; counting tokens of outside texts; keys, twins and order of requests; parsing or softmax; tally and next
round; last tally and scores; everything else."""


class Clock:
    """Seconds spent in each stage, without those of the stages inside it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._inside = [0.0]

    def around(self, function: Callable[..., T], stage: str) -> Callable[..., T]:
        def timed(*args: Any, **kwargs: Any) -> T:
            self._inside.append(0.0)
            began = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                spent = time.perf_counter() - began
                self.seconds[stage] += spent - self._inside.pop()
                self._inside[-1] += spent

        return timed


@dataclass(frozen=True)
class Own:
    """Our own time per comparison, in microseconds."""

    size: int
    schedule: str
    verdict: VerdictMode
    comparisons: int
    us: float
    stages_us: dict[str, float]

    def line(self) -> str:
        stages = "".join(f"{self.stages_us[stage]:>9.1f}" for stage in STAGES)
        reach = 1e6 * (1 - REQUIRED) / REQUIRED / self.us
        case = f"{self.size:>4}  {self.schedule:<10}{self.verdict:<9}{self.comparisons:>11}"
        return f"{case}{self.us:>8.0f} {stages}{reach:>11.0f}"


OWN_HEADER = (
    f"{'size':>4}  {'schedule':<10}{'verdict':<9}{'comparisons':>11}{'own µs':>8} "
    + "".join(f"{stage:>9}" for stage in STAGES)
    + f"{'0.97 to /s':>11}"
)


@cache
def embedded_tokenizer() -> JudgeTokenizer:
    return VLLMSetup(str(embedded_model_path())).load_tokenizer()


def own_time(size: int, schedule: str, verdict: VerdictMode, candidates: int, repeats: int) -> Own:
    tokens = embedded_tokenizer()
    engine = Instant(lambda text: len(tokens.encode(text)), tokens.reserved, text(Random(1), 60))
    judge = Judge(engine, Choice(), schedule=schedule, verdict=verdict, audit=False)
    groups = groups_of(size, max(1, candidates // size), 180)
    comparisons = sum(len(judgement.played) for judgement in judge.judge(groups))
    per_us = 1e6 / comparisons
    totals = []
    for _ in range(repeats):
        engine.seconds = 0.0
        gc.collect()
        began = time.perf_counter()
        judge.judge(groups)
        totals.append((time.perf_counter() - began - engine.seconds) * per_us)
    split: list[dict[str, float]] = []
    for _ in range(repeats):
        clock = Clock()
        with ExitStack() as patched:
            for owner, name, stage in (
                (Judge, "judge", "rest"),
                (Comparer, "render", "render"),
                (engine, "count_tokens", "tokens"),
                (comparisons_module, "ask", "keys"),
                (engine, "generate", "engine"),
                (engine, "label_logprobs", "engine"),
                (Choice, "parse", "verdict"),
                (Choice, "from_logprobs", "verdict"),
                (Tournament, "next_round", "schedule"),
                (Judge, "_judgement", "rating"),
            ):
                patched.enter_context(patch.object(owner, name, clock.around(getattr(owner, name), stage)))
            gc.collect()
            judge.judge(groups)
        split.append(clock.seconds)
    stages_us = {stage: median(seconds[stage] for seconds in split) * per_us for stage in STAGES}
    return Own(size, schedule, verdict, comparisons, median(totals), stages_us)


# -- memory -----------------------------------------------------------------------------------------------------------


MEMORY_SCHEDULES = ("adaptive", "all_pairs")
"""The default, and the one that asks everything in one round."""


@dataclass(frozen=True)
class Memory:
    """Bytes of judging so many comparisons in one call.

    Attributes:
        peak: most that was held, beside the groups.
        returned: what the judgements hold.
        rationales: the part of ``returned`` that is the judge's own writing.
        left: what the judge still holds when the judgements are gone.
        process_peak: growth of the process's peak, in a run without tracemalloc.
    """

    schedule: str
    comparisons: int
    peak: int
    returned: int
    rationales: int
    left: int
    process_peak: int

    def line(self) -> str:
        held = (self.peak, self.returned, self.rationales, self.left, self.process_peak)
        per_10k = 1e4 / self.comparisons / MiB
        return (
            f"{self.schedule:<10}{self.comparisons:>11}"
            + "".join(f"{size / MiB:>12.1f}" for size in held)
            + f"{self.peak * per_10k:>14.2f}{self.returned * per_10k:>14.2f}"
        )


MEMORY_HEADER = (
    f"{'schedule':<10}{'comparisons':>11}{'peak MiB':>12}{'returned':>12}{'rationales':>12}{'left':>12}{'process':>12}"
    f"{'peak /10k':>14}{'returned /10k':>14}"
)


def process_peak_bytes() -> int:
    """Most that this process ever held. Not of ``getrusage``: there a process begins with its parent's peak."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def memory(schedule: str, comparisons: int, traced: bool) -> dict[str, int]:
    """One measurement; runs in a process of its own, because a process's peak never falls."""
    engine = Instant(lambda text: len(text) // 4 + 1, rationale=text(Random(1), 240))
    judge = Judge(engine, Choice(), schedule=schedule, verdict="generate", audit=False)
    per_group = len(judge.judge(groups_of(8, 1, 180))[0].played)
    groups = groups_of(8, round(comparisons / per_group), 180)
    gc.collect()
    if not traced:
        before = process_peak_bytes()
        judge.judge(groups)
        return {"process_peak": process_peak_bytes() - before}
    tracemalloc.start()
    judgements = judge.judge(groups)
    gc.collect()
    held, peak = tracemalloc.get_traced_memory()
    played = [item for judgement in judgements for item in judgement.played]
    count, rationales = len(played), sum(sys.getsizeof(item.verdict.rationale) for item in played)
    del played, judgements
    gc.collect()
    left = tracemalloc.get_traced_memory()[0]
    return {"comparisons": count, "peak": peak, "returned": held - left, "rationales": rationales, "left": left}


# -- everything -------------------------------------------------------------------------------------------------------


def in_child(task: dict[str, Any], **environment: str) -> Any:
    """What this script, started anew, finds out about one task."""
    with tempfile.TemporaryDirectory() as folder:
        answer, log = Path(folder) / "answer.json", Path(folder) / "log.txt"
        with log.open("w") as output:
            command = [
                sys.executable,
                "-m",
                "tests.benchmarks.overhead",
                "--task",
                json.dumps({**task, "answer": str(answer)}),
            ]
            ended = subprocess.run(command, env=environment or None, stdout=output, stderr=output, check=False)
        if not answer.is_file():  # vLLM may complain on its way out; what counts is that it answered
            raise SystemExit(f"{task} ended with {ended.returncode}:\n{log.read_text(errors='replace')[-3000:]}")
        return json.loads(answer.read_text())


def do_task(task: dict[str, Any]) -> None:
    """The child's side of ``in_child``."""
    answer = Path(task.pop("answer"))
    found = [asdict(row) for row in duels(**task)] if "name" in task else memory(**task)
    unfinished = answer.with_suffix(".part")
    unfinished.write_text(json.dumps(found))
    unfinished.rename(answer)


@dataclass(frozen=True)
class Finding:
    """A requirement and how it came out."""

    status: str
    text: str

    def __str__(self) -> str:
        return f"{self.status:<5} {self.text}"


def judged(passed: bool, text: str) -> Finding:
    return Finding("PASS" if passed else "FAIL", text)


def speed_findings(engine: str, rows: list[Duel]) -> list[Finding]:
    if not rows:
        return [Finding("-", f"{engine} was not run")]
    ratios = [ratio for row in rows for ratio in row.ratios]
    shares = [row.share for row in rows]
    return [
        judged(
            median(ratios) >= REQUIRED,
            f"{engine}: judge over raw engine >= {REQUIRED}: median {median(ratios):.3f} of {len(ratios)} turns",
        ),
        judged(
            min(shares) >= REQUIRED,
            f"{engine}: share of the judge's time inside the engine >= {REQUIRED}: lowest {min(shares):.4f}",
        ),
    ]


def memory_finding(schedule: str, rows: list[Memory]) -> Finding:
    if not rows:
        return Finding("-", f"memory of {schedule} was not measured")
    small, *_, large = (row for row in rows if row.schedule == schedule)
    growth = (large.peak / large.comparisons) / (small.peak / small.comparisons)
    return judged(
        growth <= LINEAR,
        f"{schedule}: peak per comparison at {large.comparisons} over that at {small.comparisons} <= {LINEAR}: {growth:.3f}",
    )


def exit_code(findings: Sequence[Finding]) -> int:
    return int(any(finding.status == "FAIL" for finding in findings))


def main() -> None:
    """Print the three tables and the requirements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--quick", action="store_true", help="few and small groups, to see that it runs")
    parser.add_argument("--json", type=Path, help="where to write the rows and the requirements")
    parser.add_argument("--task", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task is not None:
        do_task(options.task)
        return
    started, quick = time.monotonic(), options.quick
    embedded_model_path()  # converted now, and not by two children

    fought: dict[str, list[Duel]] = {name: [] for name in ENGINES}
    own: list[Own] = []
    held: list[Memory] = []
    if "speed" in options.parts:
        print(f"\nJudge against raw engine\n{DUEL_HEADER}", flush=True)
        for name in options.engines:
            fought[name] = [Duel(**row) for row in in_child({"name": name, "quick": quick}, **environment(name))]
            print(*(row.line() for row in fought[name]), sep="\n", flush=True)
    if "own" in options.parts:
        print(f"\nOur own time per comparison\n{OWN_HEADER}", flush=True)
        verdicts: tuple[VerdictMode, ...] = ("logprobs", "generate")
        for size, schedule, verdict in product((4,) if quick else (4, 8, 16), OWN_SCHEDULES, verdicts):
            own.append(own_time(size, schedule, verdict, 16 if quick else 256, 2 if quick else 7))
            print(own[-1].line(), flush=True)
    if "memory" in options.parts:
        print(f"\nMemory of one call\n{MEMORY_HEADER}", flush=True)
        counts = (250, 500) if quick else (2500, 10000, 40000)
        for schedule, comparisons in product(MEMORY_SCHEDULES, counts):
            task = {"schedule": schedule, "comparisons": comparisons}
            found = in_child(task | {"traced": True}) | in_child(task | {"traced": False})
            held.append(Memory(schedule, **found))
            print(held[-1].line(), flush=True)

    findings = [finding for name in ENGINES for finding in speed_findings(name, fought[name])]
    findings += [memory_finding(schedule, held) for schedule in MEMORY_SCHEDULES]
    print("\nRequirements", *findings, f"{time.monotonic() - started:.0f} s", sep="\n")
    if options.json:
        tables: dict[str, Sequence[Any]] = {
            "speed": [row for rows in fought.values() for row in rows],
            "own": own,
            "memory": held,
            "requirements": findings,
        }
        contents = {name: [asdict(row) for row in rows] for name, rows in tables.items()}
        options.json.write_text(json.dumps(contents, indent=1) + "\n")
    sys.exit(0 if quick else exit_code(findings))


if __name__ == "__main__":
    main()
