"""What a rubric is worth with a judge, where each question has a reference: the same pairs judged in several ways.

    python -m recipes.studies.rubrics recipes/studies/rubrics.yaml --out runs/rubric-study
    python -m recipes.studies.rubrics CONFIG --set judge.model=NAME --set judge.base_url=URL --out DIR

Of each pair (``recipes/data/referenced.py``) one answer is right. A way that judges by criteria has the set's own rubric: it
points to the pair's reference, and was written without a look at any wrong answer. An interrupted study goes on where it
was; all ways judge some pairs before the next are begun.

============  =======================================================================================================
calls         requests to the judge, per pair
failed        share of verdicts that are none, and why
mass          probability of the labels together, where they are read: the median
one           share of orders in which the right answer is ahead; by criteria in the weighted sum of their log-odds
both          share of pairs of which it is ahead in both orders
right         share of pairs in which the right answer has the higher total, both orders together
tied          share of pairs in which the totals are equal: in bfloat16 many, because reads are rounded
unknown       share of pairs of which nothing is known: the judge abstains
difference    to the first way, on the same pairs; a pair that is right counts 1, tied or unknown ½
tokens        of the prompts, per pair
written       tokens that the judge wrote, per pair
seconds       per pair, of those judged together
============  =======================================================================================================

``shared words`` is no judge: the answer that has more words in common with the reference (of all their words) wins. Shares
have 95 % intervals from a bootstrap over pairs. Writes ``report.json`` and ``report.md`` beside ``progress.jsonl``.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any, ClassVar

from pydantic import Field, PositiveInt

from mrjudge_reward.engines.contract import Engine
from mrjudge_reward.errors import ConfigError
from mrjudge_reward.judge import Judge, JudgeConfig
from mrjudge_reward.rubrics.reading import read_rubric
from mrjudge_reward.settings import Settings
from mrjudge_reward.training.items import Item
from mrjudge_reward.types import Group, Judgement, NoVerdict
from recipes.common.config import command_line, read_config
from recipes.common.intervals import interval, table
from recipes.common.resumable import write_text
from recipes.common.votes import for_first
from recipes.data.referenced import SetName, referenced_pairs

from .asking import finished

SHARED_WORDS = "shared words"
_SURE = 1e-6
"""A written verdict's distance from certainty, so that it has log-odds."""


class ReferencedSet(Settings):
    """Pairs, and what they are judged by.

    Args:
        path: of the set's file.
        count: of pairs, the first of a seeded order.
        rubric: criteria, in a shape of ``rubrics.reading``.
    """

    where: ClassVar[str] = "a set"

    path: str
    count: PositiveInt = 100
    rubric: list[Any] = Field(min_length=1)


class RubricStudy(Settings):
    """What is judged, and how.

    Args:
        judge: settings of ``JudgeConfig`` that hold for all: the model and where it runs.
        ways: name → settings that say how; the others are compared to the first.
        bare: names of ways that are not shown the reference.
        sets: name in ``recipes/data/referenced.py`` → pairs.
        chunk: pairs that are judged together, and kept.
        resamples: of the bootstrap.
        seed: of pairs and bootstrap.
    """

    judge: dict[str, Any] = Field(default_factory=dict)
    ways: dict[str, dict[str, Any]] = Field(min_length=1)
    bare: list[str] = Field(default_factory=list)
    sets: dict[SetName, dict[str, Any]] = Field(min_length=1)
    chunk: PositiveInt = 10
    resamples: PositiveInt = 2000
    seed: int = 0


def judges_of(study: RubricStudy) -> dict[str, JudgeConfig]:
    """Way → its judge, which is shown each pair in both orders and never stops because of failures.

    Raises:
        ConfigError: if settings contradict each other, or a way is named that there is not.
    """
    if strange := [name for name in study.bare if name not in study.ways]:
        raise ConfigError(f"bare names {strange[0]!r}, which is no way; there are {', '.join(study.ways)}")
    return {name: JudgeConfig(**{"max_failed_fraction": 1.0, **study.judge, **how}) for name, how in study.ways.items()}


def judged(judge: Judge, pairs: Sequence[Item], groups: Sequence[Group]) -> dict[str, Any]:
    """What is kept of some pairs, judged in one way.

    Args:
        pairs: the pairs.
        groups: theirs, with what the judge is shown beside the answers.
    """
    started = time.perf_counter()
    judgements = judge.judge([replace(group, key=str(number)) for number, group in enumerate(groups)])
    seconds = time.perf_counter() - started
    played = [item.verdict for judgement in judgements for item in judgement.played]
    right = [int(pair.gold_G[1] > pair.gold_G[0]) for pair in pairs]
    return {
        "orders": [in_each_order(one, of) for one, of in zip(judgements, right, strict=True)],
        "credits": [
            credit(*(one.scores_G[i] for i in (of, 1 - of))) for one, of in zip(judgements, right, strict=True)
        ],
        "reasons": Counter(verdict.outcome.reason for verdict in played if isinstance(verdict.outcome, NoVerdict)),
        "verdicts": len(played),
        "masses": [verdict.label_mass for verdict in played if verdict.label_mass is not None],
        "calls": sum(one.calls for one in judgements),
        "tokens": sum(one.usage.prompt_tokens for one in judgements),
        "written": sum(one.usage.completion_tokens for one in judgements),
        "seconds": seconds,
    }


def credit(right: float | None, wrong: float | None) -> float | None:
    """1 where the right answer is ahead, 0 where the other is, ½ for a tie, None where nothing is known."""
    if right is None or wrong is None:
        return None
    return 0.5 if math.isclose(right, wrong, abs_tol=1e-8) else float(right > wrong)


def in_each_order(judgement: Judgement, right: int) -> list[float | None]:
    """Per order in which two were shown, how far ahead the right answer is, in log-odds; None where all verdicts failed."""
    weights = {one.criterion.name: one.weight for one in judgement.criteria}
    known = for_first(judgement.played)
    found: list[float | None] = []
    for slots in ((right, 1 - right), (1 - right, right)):
        asked = [(weights.get(criterion, 1.0), first) for (shown, criterion), first in known.items() if shown == slots]
        sides = [(weight, first if slots[0] == right else 1 - first) for weight, first in asked if first is not None]
        if asked:
            found.append(sum(weight * _log_odds(side) for weight, side in sides) if sides else None)
    return found


def _log_odds(probability: float) -> float:
    bounded = min(1 - _SURE, max(_SURE, probability))
    return math.log(bounded / (1 - bounded))


def shared_words(pair: Item) -> float | None:
    """Credit of choosing the answer that has most words in common with the reference, of all words of the two."""
    reference = _words(pair.group.reference or "")
    shares = [len(words & reference) / len(words | reference) for words in map(_words, pair.group.candidates)]
    right = int(pair.gold_G[1] > pair.gold_G[0])
    return credit(shares[right], shares[1 - right])


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.casefold()))


def measures(
    credits: Sequence[float | None], first: Sequence[float | None], resamples: int, seed: int
) -> dict[str, Any]:
    """The figures of a row that need no more than the credit of each pair, in this way and in the first one."""

    def mean(values: Sequence[float]) -> Any:
        return interval([[float(value)] for value in values], resamples, seed)

    half, other = ([0.5 if one is None else one for one in values] for values in (credits, first))
    return {
        "right": mean([one == 1 for one in credits]),
        "tied": sum(one == 0.5 for one in credits) / len(credits),
        "unknown": sum(one is None for one in credits) / len(credits),
        "difference": None if credits is first else mean([a - b for a, b in zip(half, other, strict=True)]),
    }


def figures(entries: Sequence[Mapping[str, Any]], resamples: int, seed: int) -> dict[str, Any]:
    """The figures of a row that need the verdicts."""
    total: Counter[str] = Counter()
    for entry in entries:
        total.update({name: entry[name] for name in ("verdicts", "calls", "tokens", "written", "seconds")})
    reasons = sum((Counter(entry["reasons"]) for entry in entries), Counter[str]())
    masses = [mass for entry in entries for mass in entry["masses"]]
    orders = [pair for entry in entries for pair in entry["orders"]]
    ahead = [[float(side is not None and side > 0) for side in pair] for pair in orders if pair]
    row: dict[str, Any] = {
        "calls": total["calls"] / len(orders),
        "failed": sum(reasons.values()) / total["verdicts"],
        "why": ", ".join(f"{reason} {number}" for reason, number in reasons.most_common()) or None,
        "mass": median(masses) if masses else None,
        "one": interval(ahead, resamples, seed) if ahead else None,
        "both": interval([[float(all(pair))] for pair in ahead], resamples, seed) if ahead else None,
    }
    return row | {name: total[name] / len(orders) for name in ("tokens", "written", "seconds")}


def run(study: RubricStudy, folder: Path, engine: Engine | None = None) -> dict[str, Any]:
    """Judge what is left to judge, and report on all of it.

    Args:
        study: what is judged.
        folder: of the finished rows.
        engine: use this one instead of building it.

    Raises:
        ConfigError: if the settings contradict each other or those of the folder, or a set has too few pairs.
        InputError: if a set or its rubric cannot be read.
    """
    configs = judges_of(study)
    pairs: dict[SetName, list[Item]] = {}
    rubrics: dict[str, Any] = {}
    for name, values in study.sets.items():
        wanted = ReferencedSet(**values)
        rubrics[name] = read_rubric(wanted.rubric, f"rubric of {name}")
        pairs[name] = referenced_pairs(name, wanted.path, study.seed)[: wanted.count]
        if len(pairs[name]) < wanted.count:
            raise ConfigError(f"{name} has {len(pairs[name])} pairs; lower its count of {wanted.count}")
    chunks = [
        (name, way, of[first : first + study.chunk])
        for name, of in pairs.items()
        for first in range(0, len(of), study.chunk)
        for way in configs
    ]

    def ask(shared: Engine, number: int) -> dict[str, Any]:
        name, way, some = chunks[number]
        shown = [
            replace(
                pair.group,
                reference=None if way in study.bare else pair.group.reference,
                rubric=None if configs[way].criteria is None else rubrics[name],
            )
            for pair in some
        ]
        return judged(configs[way].build(shared), some, shown)

    kept = finished(study, folder, len(chunks), engine, next(iter(configs.values())).build_engine, ask)
    rows = []
    for name, of in pairs.items():
        entries: dict[str, list[dict[str, Any]]] = {way: [] for way in configs}
        for (set_of, way, _), entry in zip(chunks, kept, strict=True):
            if set_of == name:
                entries[way].append(entry)
        credits = {way: [one for entry in some for one in entry["credits"]] for way, some in entries.items()}
        credits[SHARED_WORDS] = [shared_words(pair) for pair in of]
        first = credits[next(iter(configs))]
        for way, each in credits.items():
            row = measures(each, first, study.resamples, study.seed)
            more = figures(entries[way], study.resamples, study.seed) if way in entries else {}
            rows.append({"set": name, "way": way, "pairs": len(of), **more, **row})
    names = ("set", "way", "pairs", "calls", "failed", "why", "mass", "one", "both", "right", "tied", "unknown",
             "difference", "tokens", "written", "seconds")  # fmt: skip
    return {
        "judge": str(study.judge.get("model", "embedded")),
        "rows": [{name: row.get(name) for name in names} for row in rows],
    }


def main() -> None:
    """Judge, print, write."""
    parser = command_line(__doc__)
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    folder = Path(args.out)
    report = run(RubricStudy(**read_config(args.config, args.overrides)), folder)
    write_text(folder / "report.json", json.dumps(report, indent=2))
    text = "\n".join([f"Judge: `{report['judge']}`", "", *table(report["rows"]), ""])
    write_text(folder / "report.md", text)
    print(text, flush=True)


if __name__ == "__main__":
    main()
