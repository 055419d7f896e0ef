"""Ours against what is otherwise written by hand or imported: same groups, model, server, prompt and verdicts.

    python -m tests.benchmarks.peers                             # about five minutes on two cores
    python -m tests.benchmarks.peers --repeats 9 --written 0     # more groups, verdicts read only
    python -m tests.benchmarks.peers --quick --json rows.json    # a minute, for a smoke test: the numbers mean nothing

The embedded model is served by vLLM on loopback and judges groups of film reviews, ours through ``VLLMServerEngine``, the
patterns through the plain ``openai`` client with as many calls in flight at most. All use the prompt of our ``Choice``.
The patterns are the shapes found in other systems, in a few lines each and without their own wording:

*one by one*      each pair once, each call awaited before the next (Tinker cookbook's preference environments)
*all, gathered*   each pair in both orders, all calls at once (qqr's matches, OpenJudge with ``debiased``)
*ring, gathered*  each with its neighbour, one order, all at once (NeMo Gym's ``circular``)
*listwise, once*  one call about everybody, in the order given (ART's RULER, which asks for a score each; a model of this
                  size writes no such list, so it is the best that is asked for)

They average the share of wins, and turn a verdict that failed into a score: written, it is a tie, as where unrecognised
output is a tie (Tinker cookbook), 5 : 5 (qqr) or 3.0 for both (NeMo Gym); read, a label that was not seen has probability 0.
Ours plays no game instead, and a candidate without a game has no score.

**Read.** The judge's turn is opened with our answer marker and one token is asked for with the 20 most likely ones: a
verdict as cheap as it gets, the same for all. From the same calls the patterns are scored twice, by the labels' shares of
the probability (``read``) and by the label written (``parsed``), which is what those systems do. ``failed`` counts
verdicts for which a label was not among the 20, or for which neither was written. Each repeat has groups of its own;
patterns take turns in rotated order, and the server's prefix cache is emptied before each. Seconds are medians over repeats.

**Written.** The same groups once more, and the judge writes its answer itself, up to some tokens, parsed strictly for our
markers by all. The embedded model hardly ever writes them, so this table shows what becomes of verdicts that failed, and
what it costs to wait for one call after another when each takes some steps. By default our judge raises when most of its
verdicts failed; here it may go on.

``tau`` is Kendall's tau-a to the order that ours finds from all pairs in both orders, read, mean over groups ± standard
error. This judge is weak: it follows slots more than texts, so its own tournament is mostly noise. The tau says how much of
that tournament's outcome fewer calls recover, and nothing about which review is better; in float32 it was no higher. Ours
over all pairs is the reference itself, less than 1 where candidates tie.

What this flatters. A reference of our own making favours us; see ``parsed`` for what a tie costs. On two cores a prompt's
tokens take the same time alone or in a batch, so that for read verdicts waiting for each call costs little here, and
gathering gains little; on a GPU it is the difference between one request at a time and dozens. No call fails for the
network's sake; the patterns have no deadline, no retries beyond the client's and no check of the texts they show.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import combinations, permutations
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import openai

from mrjudge_reward import Choice, Group, Judge, Judgement
from mrjudge_reward.engines.embedded import embedded_model_path
from mrjudge_reward.engines.openai.requests import chat_messages
from mrjudge_reward.engines.vllm.server import VLLMServerEngine
from mrjudge_reward.engines.vllm.setup import cpu_build
from mrjudge_reward.prompting.sanitizing import Sanitizer
from mrjudge_reward.scoring.alarms import FailureAlarm

from .prefix import review_groups, start_in_environment
from .schedules import standard_error, tau_a

FORMAT = Choice()
CONCURRENCY = 32
"""Calls in flight at most, ours and theirs."""


# -- what is otherwise written by hand ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """What a call came to, by slot.

    Attributes:
        shares_K: probability of each label among those offered, 0 for one that was not seen; None if it was not read.
        parsed: place of the label that was written; None if it was none of those offered.
        missing: whether a label was not seen.
    """

    shares_K: list[float] | None
    parsed: int | None
    missing: bool


@dataclass
class PlainClient:
    """A judge call as it is written by hand.

    Args:
        written: most tokens the judge writes; 0 to open its answer and look at one token.
    """

    client: openai.AsyncOpenAI
    model: str
    written: int
    calls: int = 0
    slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(CONCURRENCY))

    async def __call__(self, group: Group, shown: Sequence[int]) -> Answer:
        texts = tuple(group.candidates[place] for place in shown)
        labels = FORMAT.labels[: len(shown)]
        chat = FORMAT.render(group, texts, Sanitizer(len, 1 << 20))
        how: dict[str, Any] = {"max_tokens": self.written}
        if not self.written:
            how = {"max_tokens": 1, "logprobs": True, "top_logprobs": 20}
            how["extra_body"] = {"continue_final_message": True, "add_generation_prompt": False}
        messages: Any = chat_messages(chat, "" if self.written else FORMAT.answer_open)
        async with self.slots:
            self.calls += 1
            reply = await self.client.chat.completions.create(model=self.model, messages=messages, temperature=0, **how)
        choice = reply.choices[0]
        if self.written:
            found = re.findall(r"<answer>\s*(\w+)\s*</answer>", choice.message.content or "")
            parsed = labels.index(found[-1]) if found and found[-1] in labels else None
            return Answer(None, parsed, parsed is None)
        assert choice.logprobs is not None
        assert choice.logprobs.content
        first = choice.logprobs.content[0]
        likely = {token.token: float(np.exp(token.logprob)) for token in first.top_logprobs}
        seen = [likely.get(label, 0.0) for label in labels]
        shares = [share / sum(seen) for share in seen] if any(seen) else None
        parsed = labels.index(first.token) if first.token in labels else None
        return Answer(shares, parsed, not all(label in likely for label in labels))


Ask = Callable[[Group, Sequence[int]], Awaitable[Answer]]
Answers = list[tuple[tuple[int, ...], Answer]]


async def one_by_one(ask: Ask, groups: Sequence[Group]) -> list[Answers]:
    found: list[Answers] = []
    for group in groups:
        pairs = combinations(range(len(group.candidates)), 2)
        found.append([(pair, await ask(group, pair)) for pair in pairs])
    return found


async def gathered(ask: Ask, groups: Sequence[Group], shown: Callable[[int], list[tuple[int, ...]]]) -> list[Answers]:
    async def one(group: Group) -> Answers:
        places = shown(len(group.candidates))
        return list(zip(places, await asyncio.gather(*(ask(group, place) for place in places)), strict=True))

    return list(await asyncio.gather(*map(one, groups)))


async def all_gathered(ask: Ask, groups: Sequence[Group]) -> list[Answers]:
    return await gathered(ask, groups, lambda size: list(permutations(range(size), 2)))


async def ring_gathered(ask: Ask, groups: Sequence[Group]) -> list[Answers]:
    return await gathered(ask, groups, lambda size: [(i, (i + 1) % size) for i in range(size)])


async def listwise_once(ask: Ask, groups: Sequence[Group]) -> list[Answers]:
    return await gathered(ask, groups, lambda size: [tuple(range(size))])


Pattern = Callable[[Ask, Sequence[Group]], Awaitable[list[Answers]]]
PATTERNS: dict[str, Pattern] = {
    "one by one": one_by_one,
    "all, gathered": all_gathered,
    "ring, gathered": ring_gathered,
    "listwise, once": listwise_once,
}

OURS = ("all_pairs", "adaptive", "ring", "listwise")
OURS_WRITTEN = ("adaptive", "listwise")


def share_of_wins(answers: Answers, size: int, read: bool) -> np.ndarray:
    """Mean share of each candidate in the verdicts about it, where a verdict that failed is a tie. Shape (G,)."""
    won_G, met_G = np.zeros(size), np.zeros(size)
    for slots, answer in answers:
        shares = answer.shares_K if read else None
        if not read and answer.parsed is not None:
            shares = [float(place == answer.parsed) for place in range(len(slots))]
        won_G[list(slots)] += [1 / len(slots)] * len(slots) if shares is None else shares
        met_G[list(slots)] += 1
    return won_G / met_G


# -- measuring ------------------------------------------------------------------------------------------------------------


@dataclass
class Row:
    """What a way of judging came to, over repeats.

    Attributes:
        calls: judge calls of a repeat.
        seconds: of each repeat.
        verdicts: in all.
        failed: of these, by how they are scored (``read``, ``parsed``).
        scored: candidates with a score, by how; of ``candidates``.
        taus: of each group with scores, by how.
    """

    name: str
    becomes: str
    calls: int = 0
    candidates: int = 0
    verdicts: int = 0
    seconds: list[float] = field(default_factory=list)
    failed: dict[str, int] = field(default_factory=dict)
    scored: dict[str, int] = field(default_factory=dict)
    taus: dict[str, list[float]] = field(default_factory=dict)

    def note(
        self, how: str, scores_G: Sequence[float | None] | np.ndarray, reference_G: np.ndarray, failed: int
    ) -> None:
        """Note one group."""
        known = [place for place, score in enumerate(scores_G) if score is not None]
        self.failed[how] = self.failed.get(how, 0) + failed
        self.scored[how] = self.scored.get(how, 0) + len(known)
        taus = self.taus.setdefault(how, [])
        if len(known) == len(scores_G):
            taus.append(tau_a(np.array(scores_G, dtype=float), reference_G))

    def tau(self, how: str) -> str:
        taus = np.array(self.taus.get(how, ()))
        if len(taus) < 2:
            return "-" if len(taus) == 0 else f"{taus.mean():.3f}"
        return f"{taus.mean():.3f} ±{standard_error(taus):.3f}"


@contextmanager
def server(context: int) -> Iterator[VLLMServerEngine]:
    """The embedded model behind vLLM's server; sleep mode, because only then it lets its prefix cache be emptied."""
    kwargs = {"block_size": 32, "enforce_eager": True} if cpu_build() else {}
    engine = VLLMServerEngine(
        str(embedded_model_path()), max_model_len=context, max_concurrency=CONCURRENCY, enable_sleep_mode=True,
        dtype="float32" if cpu_build() else None,  # many CPUs have no bfloat16, and are ten times slower with it
        engine_kwargs=kwargs,
    )  # fmt: skip
    try:
        yield engine
    finally:
        engine.close()


class Bench:
    """Rows that are being filled. ``written`` as in ``PlainClient``."""

    def __init__(self, engine: VLLMServerEngine, written: int = 0) -> None:
        self.engine, self.written = engine, written
        self.how = ("parsed",) if written else ("read", "parsed")
        self.rows = {name: Row(name, "a tie or a 0") for name in PATTERNS}
        schedules = OURS_WRITTEN if written else OURS
        self.rows |= {f"ours, {schedule}": Row(f"ours, {schedule}", "no game") for schedule in schedules}

    @property
    def _child(self) -> Any:  # its port and key are the engine's own business; a user starts a server by hand
        return getattr(self.engine, "_child")  # noqa: B009

    def ours(self, schedule: str, groups: Sequence[Group]) -> list[Judgement]:
        row = self.rows[f"ours, {schedule}"]
        # By default a judge raises when most of its verdicts fail.
        alarm = FailureAlarm(max_fraction=1.0)
        written = {"verdict": "generate", "max_tokens": self.written, "temperature": 0, "top_p": 1.0, "retries": 0}
        how: dict[str, Any] = written if self.written else {"verdict": "logprobs"}
        judge = Judge(
            self.engine,
            FORMAT,
            schedule=schedule,
            audit=False,
            alarm=alarm,
            **how,
        )
        began = time.perf_counter()
        judgements = judge.judge(groups)
        row.seconds.append(time.perf_counter() - began)
        row.calls = sum(judgement.calls for judgement in judgements)
        row.verdicts += sum(len(judgement.played) for judgement in judgements)
        return judgements

    def theirs(self, name: str, groups: Sequence[Group]) -> list[Answers]:
        row, pattern = self.rows[name], PATTERNS[name]

        async def run() -> list[Answers]:
            url = f"http://127.0.0.1:{self._child._port}/v1"
            model = str(embedded_model_path())
            async with openai.AsyncOpenAI(base_url=url, api_key=self._child._key) as client:
                ask = PlainClient(client, model, self.written)
                began = time.perf_counter()
                found = await pattern(ask, groups)
                row.seconds.append(time.perf_counter() - began)
                row.calls = ask.calls
                return found

        found = asyncio.run(run())
        row.verdicts += sum(map(len, found))
        return found

    def repeat(
        self, number: int, groups: Sequence[Group], references: Sequence[np.ndarray] | None = None
    ) -> Sequence[np.ndarray]:
        """All ways on the same groups.

        Args:
            number: of the repeat, which decides who begins.
            groups: to judge.
            references: an order of each group; None for that of all pairs in both orders.

        Returns:
            The references.
        """
        names = list(self.rows)
        turn = number % len(names)
        judgements: dict[str, list[Judgement]] = {}
        answers: dict[str, list[Answers]] = {}
        for name in names[turn:] + names[:turn]:
            self._child.ask("POST", "/reset_prefix_cache")
            if name in PATTERNS:
                answers[name] = self.theirs(name, groups)
            else:
                judgements[name] = self.ours(name.removeprefix("ours, "), groups)
        if references is None:
            references = full_order(judgements["ours, all_pairs"])
        for name, row in self.rows.items():
            for place, (group, reference_G) in enumerate(zip(groups, references, strict=True)):
                row.candidates += len(group.candidates)
                if name in judgements:
                    judgement = judgements[name][place]
                    failed = sum(played.verdict.failed for played in judgement.played)
                    row.note(self.how[0], judgement.scores_G, reference_G, failed)
                    continue
                for how in self.how:
                    mine = answers[name][place]
                    failed = sum(a.missing if how == "read" else a.parsed is None for _, a in mine)
                    row.note(how, share_of_wins(mine, len(group.candidates), how == "read"), reference_G, failed)
        return references

    def show(self) -> None:
        """Print the table."""
        base = median(self.rows["ours, adaptive"].seconds)
        columns = "".join(f"{'failed ' + how:>15}{'tau ' + how:>16}" for how in self.how)
        print(f"{'':<17}{'calls':>6}{'seconds':>9}{'/ adaptive':>11}{columns}{'scored':>10}  a failed verdict becomes")
        for name, row in self.rows.items():
            seconds = median(row.seconds)
            cells = ""
            for how in self.how:
                known = how in row.failed
                cells += f"{f'{row.failed[how]}/{row.verdicts}' if known else '-':>15}{row.tau(how):>16}"
            scored = f"{row.scored[self.how[0]]}/{row.candidates}"
            print(
                f"{name:<17}{row.calls:>6}{seconds:>9.2f}{seconds / base:>11.2f}{cells}{scored:>10}  {row.becomes}",
                flush=True,
            )


def full_order(judgements: Sequence[Judgement]) -> list[np.ndarray]:
    """Scores of all pairs in both orders. Shape (G,) each."""
    for judgement in judgements:
        if None in judgement.scores_G:
            raise SystemExit("the reference has a candidate without a score: too many verdicts failed")
    return [np.array(judgement.scores_G, dtype=float) for judgement in judgements]


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", type=int, default=2, help="groups per repeat")
    parser.add_argument("--size", type=int, default=8, help="candidates per group")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--written", type=int, default=24, help="tokens of a written verdict; 0 to leave that table out"
    )
    parser.add_argument("--quick", action="store_true", help="groups of three, two repeats, to see that it runs")
    parser.add_argument("--json", type=Path, help="where to write the rows")
    args = parser.parse_args()
    start_in_environment(threads=1)  # the other core is for the clients and the server itself
    count, size, repeats = (1, 3, 2) if args.quick else (args.groups, args.size, args.repeats)
    lengths = (8, 12) if args.quick else (12, 20)
    tables: dict[str, Bench] = {}
    with server(1024 if args.quick else 2048) as engine:
        Judge(engine, FORMAT, schedule="ring", verdict="logprobs").judge(review_groups(1, 3, 0, lengths, seed=-1))
        print(f"\nRead: {repeats} repeats of {count} groups of {size}, at most {CONCURRENCY} calls in flight")
        tables["read"] = read = Bench(engine)
        rounds = [review_groups(count, size, 0, lengths, seed=number) for number in range(repeats)]
        references = [read.repeat(number, groups) for number, groups in enumerate(rounds)]
        read.show()
        if args.written:
            print(f"\nWritten: {count} groups of {size}, up to {args.written} tokens, once")
            tables["written"] = written = Bench(engine, args.written)
            written.repeat(0, rounds[0], references[0])
            written.show()
    if args.json:
        contents = {name: [asdict(row) for row in bench.rows.values()] for name, bench in tables.items()}
        args.json.write_text(json.dumps(contents, indent=1) + "\n")


if __name__ == "__main__":
    main()
