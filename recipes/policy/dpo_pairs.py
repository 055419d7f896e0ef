"""Preference pairs for DPO: prompts, samples of each, a judge, and only what it prefers in both orders.

    python -m recipes.policy.dpo_pairs recipes/policy/dpo_pairs_cpu.yaml --out runs/dpo-pairs
    python -m recipes.policy.dpo_pairs CONFIG --set candidates=answers.jsonl --out FOLDER   # samples that are there already
    python -m recipes.policy.train recipes/policy/policy_dpo_cpu.yaml

1. A local model writes ``samples`` answers to each prompt, or they stand in ``candidates``: JSON lines of ``prompt`` (text
   or messages) and ``candidates`` (texts).
2. The judge ranks them. Of all twos whose scores differ by ``margin`` or more the ``tries`` with the largest difference are
   shown to it in both orders (what the ranking asked already is not asked again), and a pair stays if the better one wins in
   **both orders** (Flex-Judge, arXiv 2505.18601). In an order the votes with a verdict decide, by their mean; an even one is
   no win, nor is an order in which all failed. A judge that grades alone knows no order: there the scores decide. With
   ``both_orders=false`` they decide for every judge; the two ways can be had of one folder, one after the other. A judge by
   ``criteria`` (but ``implicit``) is refused: it gives several verdicts on two.
3. Each prompt gives at most ``per_prompt`` pairs, the largest margins first. Then **length is balanced**: as long as the
   chosen answers are together longer than the rejected (in characters), the pair whose chosen one is longer by most gives
   way to a spare pair of its prompt whose chosen one is not longer, or is left out where there is none.

Empty answers are in no pair, nor are those that ``max_new_tokens`` cut off: a trainer puts an end after every answer, and
the policy would learn to stop in mid-sentence. ``keep_cut=true`` takes them all the same. Answers of a file count as whole.
An answer with reasoning is judged by what follows it but kept whole. Writes
``pairs.jsonl``, which TRL's ``DPOTrainer`` takes as it is (text or chat, as the prompts are), and ``report.json``, which
counts what was left out and why. A line that cannot be used costs itself alone and is named. Interrupted, the same command
goes on; prompts of which the judge found out nothing are asked again by it.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any

from pydantic import Field, NonNegativeFloat, PositiveInt

from mrjudge_reward import json_lines
from mrjudge_reward.config import JudgeSettings
from mrjudge_reward.errors import ConfigError, InputError, MRJudgeError
from mrjudge_reward.judge import Judge, JudgeConfig
from mrjudge_reward.judging.tournament import digest, is_degenerate
from mrjudge_reward.messages import as_messages, final_answer
from mrjudge_reward.scoring.tally import MAX_GROUP
from mrjudge_reward.settings import Settings
from mrjudge_reward.training.tasks import split_of
from mrjudge_reward.types import Comparison, Group, JudgedComparison, Judgement
from recipes.common.config import command_line, read_config
from recipes.common.resumable import ResumableRows, not_overwritten, write_lines, write_text
from recipes.common.votes import for_first
from recipes.data.reviews import openings

from .policies import Prompt, complete, load_policy, prompt_in, written_prompt

VERSION = 3
"""Of what ``progress.jsonl`` holds; raised when that changes, so that a folder of an older one is refused by name."""


class PairsRecipe(Settings):
    """Which pairs are made, of what.

    Args:
        prompts: ``"openings"`` of film reviews, or a file of JSON lines with a ``prompt`` each; the train split of them.
        candidates: a file with the answers as well; then nothing is generated, and all its lines are used.
        count: most prompts; None for all.
        model, adapter: the policy that writes; hub name, path or ``"embedded"``, and a LoRA on it.
        samples: answers per prompt.
        max_new_tokens, temperature: of an answer.
        keep_cut: whether answers that did not end within ``max_new_tokens`` are judged and paired as well.
        judge: fields of ``JudgeConfig``.
        margin: least difference of scores.
        tries: most twos of a prompt that are shown in both orders.
        both_orders: whether a pair must win in both orders.
        per_prompt: most pairs of a prompt.
        balance: whether length is balanced.
        chunk: prompts that are written and judged together, and lost together when interrupted.
        seed: of the sampling.
    """

    prompts: str = "openings"
    candidates: str | None = None
    count: PositiveInt | None = None
    model: str = "embedded"
    adapter: str | None = None
    samples: PositiveInt = 4
    max_new_tokens: PositiveInt = 256
    temperature: NonNegativeFloat = 1.0
    keep_cut: bool = False
    judge: dict[str, Any] = Field(default_factory=dict)
    margin: NonNegativeFloat = 0.0
    tries: PositiveInt = 6
    both_orders: bool = True
    per_prompt: PositiveInt = 1
    balance: bool = True
    chunk: PositiveInt = 16
    seed: int = 0

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        if self.candidates is None and self.samples < 2:
            raise ConfigError("a pair takes at least 2 samples")
        if self.candidates is None and self.temperature == 0:
            raise ConfigError("at temperature 0 all samples of a prompt are the same; raise it")
        _gives_one_verdict(JudgeConfig(**self.judge))


def _gives_one_verdict(settings: JudgeSettings) -> None:
    """Raise ConfigError of a judge that gives a verdict on each criterion, so that "in both orders" is no question."""
    if settings.by_criterion:
        raise ConfigError(
            f"the judge has criteria={settings.criteria!r} and gives a verdict on each criterion, but a pair must win as a "
            "whole in both orders; use criteria='implicit', which gives one verdict over all criteria, or leave criteria out"
        )


# -- what comes in ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A prompt with its line, its answers if they are known, and what is wrong with it."""

    line: int
    prompt: Prompt = ""
    candidates: tuple[str, ...] = ()
    fault: str = ""


def row_of(line: int, raw: bytes, with_candidates: bool) -> Row:
    """A line of a file."""
    try:
        record = json_lines.parsed(raw)
        prompt = prompt_in(record)
        if isinstance(prompt, list):
            prompt = [{"role": turn.role, "content": turn.text} for turn in as_messages(prompt)]
        candidates: tuple[str, ...] = ()
        if with_candidates:
            given = record.get("candidates")
            if not isinstance(given, list) or not all(isinstance(one, str) for one in given):
                raise InputError(f"candidates must be a list of texts; got {given!r:.60}")
            if len(given) > MAX_GROUP:
                raise InputError(f"{len(given)} candidates; at most {MAX_GROUP} are judged together")
            candidates = tuple(given)
        "\n".join((written_prompt(prompt), *candidates)).encode()  # half a surrogate pair would spoil the whole file
        return Row(line, prompt, candidates)
    except (ValueError, TypeError, RecursionError) as error:
        return Row(line, fault=str(error)[:200])


def rows_of(recipe: PairsRecipe) -> list[Row]:
    """The prompts, those that cannot be used included.

    Raises:
        InputError: if the file cannot be read, or holds no prompt that can be used.
    """
    source = recipe.candidates or recipe.prompts
    if source == "openings":
        rows = [Row(number, prompt) for number, prompt in enumerate(openings(), 1)]
    else:
        with json_lines.opened(source) as stream:
            found = json_lines.lines(stream, source)
            rows = [row_of(number, raw, recipe.candidates is not None) for number, raw in found]
    if recipe.candidates is None:
        rows = [row for row in rows if row.fault or split_of(written_prompt(row.prompt)) == "train"]
    form = next((type(row.prompt) for row in rows if not row.fault), None)
    if form is None:
        raise InputError(f"{source} holds no prompt that can be used{f'; {rows[0].fault}' if rows else ''}")
    # A data set is of one form: the first decides.
    mixed = "the prompt is text and others are chats, or the other way round"
    return [row if row.fault or type(row.prompt) is form else Row(row.line, fault=mixed) for row in rows]


# -- pairs of a prompt --------------------------------------------------------------------------------------------------


def twos_of(judgement: Judgement, margin: float, tries: int) -> list[tuple[int, int]]:
    """(better, worse) by score, the largest differences first; each text once, and no empty one."""
    texts, scores = judgement.group.candidates, judgement.scores_G
    usable = [
        index
        for index, text in enumerate(texts)
        if scores[index] is not None and index not in judgement.forfeits and texts.index(text) == index
    ]
    found: list[tuple[float, int, int]] = []
    for pair in combinations(usable, 2):
        worse, better = sorted(pair, key=lambda index: scores[index] or 0.0)
        difference = (scores[better] or 0.0) - (scores[worse] or 0.0)
        if difference > 0 and difference >= margin:
            found.append((difference, better, worse))
    found.sort(key=lambda one: (-one[0], one[1:]))
    return [(better, worse) for _, better, worse in found[:tries]]


def judged(judge: Judge, groups: Sequence[Group], margin: float, tries: int) -> list[dict[str, Any]]:
    """Per group the twos looked at, and which of them hold in both orders, in one ranking and one batch of comparisons.

    Returns:
        For each group ``pairs`` (``chosen`` and ``rejected`` as numbers of candidates, their scores, and whether the two
        ``holds`` in both orders), and whether nothing at all was found out (``again``).
    """
    judgements = judge.judge(groups)
    twos = [twos_of(judgement, margin, tries) for judgement in judgements]
    alone = judge.format.max_slots == 1
    known_G = [for_first(judgement.played) for judgement in judgements]
    if not alone:
        unasked = [
            (number, Comparison(slots, vote))
            for number, pairs in enumerate(twos)
            for pair in pairs
            for slots in (pair, pair[::-1])
            if (slots, "") not in known_G[number]
            for vote in range(judge.settings.votes)
        ]
        verdicts = judge.compare([(groups[number], comparison) for number, comparison in unasked])
        asked: list[list[JudgedComparison]] = [[] for _ in groups]
        for (number, comparison), verdict in zip(unasked, verdicts, strict=True):
            asked[number].append(JudgedComparison(comparison, verdict))
        known_G = [known | for_first(items) for known, items in zip(known_G, asked, strict=True)]
    found: list[dict[str, Any]] = []
    for judgement, pairs, known in zip(judgements, twos, known_G, strict=True):
        looked = []
        for better, worse in pairs:
            first, second = known.get(((better, worse), "")), known.get(((worse, better), ""))
            holds = alone or (first is not None and first > 0.5 and second is not None and second < 0.5)
            high, low = judgement.scores_G[better], judgement.scores_G[worse]
            assert high is not None
            assert low is not None
            looked.append(
                {"chosen": better, "rejected": worse, "score_chosen": high, "score_rejected": low, "holds": holds}
            )
        real = {text for text in judgement.group.candidates if not is_degenerate(text)}
        nothing = len(real) > 1 and all(score is None for score in judgement.scores_G)
        found.append({"pairs": looked, "again": nothing})
    return found


# -- pairs of all -------------------------------------------------------------------------------------------------------


def extra(pair: dict[str, Any]) -> int:
    """By how many characters the chosen answer is longer."""
    return len(pair["chosen"]) - len(pair["rejected"])


def drawn(pairs_P: Sequence[Sequence[dict[str, Any]]], per_prompt: int, balance: bool) -> list[dict[str, Any]]:
    """At most so many pairs of each prompt, chosen answers not longer on average (see the module).

    Args:
        pairs_P: the pairs of each prompt, best first, with the texts of ``chosen`` and ``rejected``.
        per_prompt: most of a prompt.
        balance: whether length is balanced.
    """
    kept = [list(pairs[:per_prompt]) for pairs in pairs_P]
    if balance:
        spare = [[pair for pair in pairs[per_prompt:] if extra(pair) <= 0] for pairs in pairs_P]
        total = sum(extra(pair) for pairs in kept for pair in pairs)
        longest = sorted(
            ((extra(pair), prompt, place) for prompt, pairs in enumerate(kept) for place, pair in enumerate(pairs)),
            reverse=True,
        )
        gone: dict[int, set[int]] = {}
        for length, prompt, place in longest:
            if total <= 0:
                break
            total -= length
            if spare[prompt]:
                kept[prompt][place] = spare[prompt].pop(0)
                total += extra(kept[prompt][place])
            else:
                gone.setdefault(prompt, set()).add(place)
        kept = [
            [pair for place, pair in enumerate(pairs) if place not in gone.get(prompt, ())]
            for prompt, pairs in enumerate(kept)
        ]
    return [pair for pairs in kept for pair in pairs]


def written_pair(row: Row, entry: dict[str, Any], pair: dict[str, Any], judge: str, writer: str) -> dict[str, Any]:
    """A line of ``pairs.jsonl``."""
    chosen, rejected = (entry["candidates"][pair[name]] for name in ("chosen", "rejected"))
    chat = isinstance(row.prompt, list)
    return {
        "prompt": row.prompt,
        "chosen": [{"role": "assistant", "content": chosen}] if chat else chosen,
        "rejected": [{"role": "assistant", "content": rejected}] if chat else rejected,
        "score_chosen": pair["score_chosen"],
        "score_rejected": pair["score_rejected"],
        "line": row.line,
        "candidates": [pair["chosen"], pair["rejected"]],
        "judge": judge,
        "writer": writer,
    }


def finish(recipe: PairsRecipe, rows: Sequence[Row], progress: ResumableRows, judge: str, out: Path) -> dict[str, Any]:
    """Draw the pairs, and write them and what was left out."""
    writer = recipe.candidates or f"{recipe.model}{f'+{recipe.adapter}' if recipe.adapter else ''}, seed {recipe.seed}"
    counts: Counter[str] = Counter()
    texts_P: list[list[dict[str, Any]]] = []
    for row in rows:
        entry = progress.entries.get(row.line)
        if entry is None or entry["fault"]:
            counts["prompts that could not be used"] += 1
            continue
        counts["prompts"] += 1
        counts["answers"] += len(entry["ended"])
        counts["answers cut at max_new_tokens"] += entry["ended"].count(False)
        counts["prompts the judge found out nothing about"] += entry["again"]
        counts["twos shown in both orders"] += len(entry["pairs"])
        counts["twos that hold in both orders"] += sum(pair["holds"] for pair in entry["pairs"])
        texts_P.append(
            [
                {name: entry["candidates"][pair[name]] for name in ("chosen", "rejected")}
                | {"line": written_pair(row, entry, pair, judge, writer)}
                for pair in entry["pairs"]
                if pair["holds"] or not recipe.both_orders
            ]
        )
    pairs = drawn(texts_P, recipe.per_prompt, recipe.balance)
    write_lines(out / "pairs.jsonl", [pair["line"] for pair in pairs])
    lengths = {name: fmean(len(pair[name]) for pair in pairs) if pairs else None for name in ("chosen", "rejected")}
    unbalanced = drawn(texts_P, recipe.per_prompt, False)
    report = {
        **counts,
        "pairs": len(pairs),
        "characters": lengths,
        "longer by, before balancing": fmean(map(extra, unbalanced)) if unbalanced else None,
        "left out for their length": len(unbalanced) - len(pairs),
        "judge": judge,
        "writer": writer,
    }
    write_text(out / "report.json", json.dumps(report, indent=2))
    if (cut := counts["answers cut at max_new_tokens"]) and not recipe.keep_cut:
        print(
            f"{cut} of {counts['answers']} answers did not end within max_new_tokens={recipe.max_new_tokens} and are in no "
            "pair; raise max_new_tokens, or set keep_cut=true where answers are to be cut",
            file=sys.stderr,
        )
    return report


def build(recipe: PairsRecipe, out: Path, judge: Judge | None = None) -> dict[str, Any]:
    """Make the pairs, or go on making them.

    Args:
        recipe: what to make.
        out: the folder.
        judge: use this one instead of building it.

    Raises:
        InputError: if there is no prompt that can be used.
        ConfigError: if the folder holds a run of other settings, or what would be overwritten, or if the judge gives a
            verdict on each criterion.
        JudgeUnreliableError: if too many judgements failed; what was made so far is kept.
    """
    from rich.console import Console
    from rich.progress import Progress

    if judge is not None:
        _gives_one_verdict(judge.settings)
    not_overwritten(out, ["pairs.jsonl"], recipe.candidates, recipe.prompts)
    rows = rows_of(recipe)
    content = hashlib.blake2b(repr(rows).encode(errors="surrogatepass"), digest_size=16).hexdigest()
    rows = rows[: recipe.count]
    decides = recipe.model_dump(
        exclude={"both_orders", "per_prompt", "balance", "count"}
    )  # the rest is applied to the finished rows
    with closing(ResumableRows(out, decides | {"content": content, "version": VERSION})) as progress:
        for row in rows:
            if row.fault:
                print(f"line {row.line}: {row.fault}", file=sys.stderr)
        progress.add(
            {"row": row.line, "fault": row.fault} for row in rows if row.fault and row.line not in progress.entries
        )
        finished = {line for line, entry in progress.entries.items() if not entry.get("again")}
        chunks = [rows[start : start + recipe.chunk] for start in range(0, len(rows), recipe.chunk)]
        policy: tuple[Any, Any] | None = None
        own = judge is None
        judge = judge if judge is not None else JudgeConfig(**recipe.judge).build()
        bar = Progress(console=Console(stderr=True), disable=not sys.stderr.isatty(), redirect_stdout=False)
        try:
            with bar:
                task = bar.add_task("pairs", total=len(rows))
                for chunk in chunks:
                    todo = [row for row in chunk if row.line not in finished]
                    if todo:
                        if recipe.candidates is None and policy is None:
                            policy = load_policy(recipe.model, recipe.adapter)
                        progress.add(_entries(recipe, todo, judge, policy))
                    bar.advance(task, len(chunk))
        finally:
            if own:
                judge.close()
        return finish(recipe, rows, progress, judge.engine.identity, out)


def _entries(
    recipe: PairsRecipe, rows: Sequence[Row], judge: Judge, policy: tuple[Any, Any] | None
) -> list[dict[str, Any]]:
    if policy is None:
        answers = [[(text, True) for text in row.candidates] for row in rows]
    else:
        prompts = [row.prompt for row in rows for _ in range(recipe.samples)]
        seed = digest(recipe.seed, rows[0].line) % 2**31
        written = complete(
            *policy, prompts, recipe.max_new_tokens, seed, temperature=recipe.temperature, top_k=0, top_p=1.0
        )
        each = [(one.text, one.ended) for one in written]
        answers = [each[n * recipe.samples : (n + 1) * recipe.samples] for n in range(len(rows))]
    groups = [  # a cut answer is as good as none: it keeps its number, and is neither shown nor paired
        Group.of(
            row.prompt,
            [final_answer(text) if ended or recipe.keep_cut else "" for text, ended in of_row],
            f"pairs/{row.line}",
        )
        for row, of_row in zip(rows, answers, strict=True)
    ]
    return [
        {
            "row": row.line,
            "fault": "",
            "candidates": [text for text, _ in of_row],
            "ended": [ended for _, ended in of_row],
            **found,
        }
        for row, of_row, found in zip(rows, answers, judged(judge, groups, recipe.margin, recipe.tries), strict=True)
    ]


def main() -> None:
    """Make the pairs."""
    parser = command_line(__doc__)
    parser.add_argument("--out", required=True, metavar="FOLDER")
    args = parser.parse_args()
    try:
        report = build(PairsRecipe(**read_config(args.config, args.overrides)), Path(args.out))
    except MRJudgeError as error:
        raise SystemExit(f"dpo_pairs: {error}") from error
    print(", ".join(f"{name} {value}" for name, value in report.items()))


if __name__ == "__main__":
    main()
