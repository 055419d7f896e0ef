"""Public benchmarks of judges, scored by their own protocol; a failed judgement is wrong and stays in the denominator.

    python -m recipes.evaluate.benchmarks judgebench --config judge.yaml
    python -m recipes.evaluate.benchmarks vl_rewardbench --config judge.yaml --votes 10 --limit 50
    python -m recipes.evaluate.benchmarks multimodal_rewardbench --path data/all_data.json --config judge.yaml

========================  ==============================================  ================================================
benchmark                 data                                            protocol
========================  ==============================================  ================================================
rewardbench               hub ``allenai/reward-bench``, split filtered    each pair once, in a random order; the mean of
(arXiv 2403.13787)                                                        four sections, math as much as all code
rewardbench2              hub ``allenai/reward-bench-2``, split test      best of 4, each in a random slot, once; Ties by
(arXiv 2506.01937)                                                        ratings; overall is the mean of the subsets
judgebench                hub ``ScalerLab/JudgeBench``, split gpt or      both orders, +1 for the right answer and -1 for
(arXiv 2410.12784)        claude                                          the other; right only if the sum is positive
vl_rewardbench            hub ``MMInstruction/VL-RewardBench``, split     k votes, each in a random order; right if more
(arXiv 2411.17451)        test                                            than half of all k are
multimodal_rewardbench    ``data/all_data.json`` of                       one order
(arXiv 2502.14191)        facebookresearch/multimodal_rewardbench, made
                          by its download script, with the images beside
rm_bench                  hub ``THU-KEG/RM-Bench``, split train           three styles of the right answer against three of
(arXiv 2410.16184)                                                        the wrong one, each pair once in a random order;
                                                                          the mean of domains and levels
========================  ==============================================  ================================================

The judge is asked in its own format and wording, through :class:`~mrjudge_reward.Judge`. A format that grades alone is
accepted everywhere: the better grade wins, once. ``--path`` reads a file in the same columns instead of the hub
(``benchmark_rows``).

How this differs from the benchmarks' own scripts:

1. A comparison that failed is never right. RewardBench gives it .5, RewardBench 2 .25, Multimodal RewardBench a coin,
   VL-RewardBench leaves a question without a majority out of the denominator. The report has the share of questions with a
   failure.
2. RewardBench 2's ratings prompt for Ties says that depth and detail need not count; here the format ``score`` asks with its
   own wording, 1 to 10 (1 to 9 where the judge is read: "10" begins like "1"). A prompt with a failed rating is not accurate
   and has no margin. Graded alone, nothing is right if one rating failed.
3. Multimodal RewardBench shows the answers in the order of its file; here a seed decides. Its toxicity questions cannot be
   rebuilt from what it publishes (their images' licence), here as there.

A **tie** (equal grades, which ``pair_scores`` gives often, or a label that says so) is no failure, and worth what it is
there: .5 in RewardBench, 1/k in RewardBench 2 where the right answer is among k best (1/4 where all four are even), nothing
in JudgeBench, VL-RewardBench and RM-Bench. Multimodal RewardBench tosses a coin; its mean, .5, stands here.

**What was run**: JudgeBench's two files (620 pairs, from its repository) with a judge by rule. The others were **not
run against the real sets**, since no hub could be reached where this was written: columns are those of the data sets' cards
and of the official scripts (reward-bench 05a9005, JudgeBench e2c52c2, VL_RewardBench 9b10abd, multimodal_rewardbench
b4b92cd, RM-Bench 73c52d7), and the tests use small files in these columns. No figure of a model is known to agree with a
published one.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from mrjudge_reward.engines.contract import Engine
from mrjudge_reward.errors import ConfigError, InputError
from mrjudge_reward.judge import JudgeConfig
from mrjudge_reward.scoring.tally import best_in
from mrjudge_reward.types import Judgement

from .benchmark_rows import (
    MATH_WEIGHT,
    Case,
    load_judgebench,
    load_multimodal_rewardbench,
    load_rewardbench,
    load_rewardbench2,
    load_rm_bench,
    load_vl_rewardbench,
    section_of,
)


@dataclass(frozen=True)
class Row:
    """A subset's result.

    Attributes:
        subset: its name.
        score: share right of all cases, or what the benchmark calls this subset's score.
        cases: all of them.
        failed: share with a failed comparison among theirs.
    """

    subset: str
    score: float
    cases: int
    failed: float


@dataclass(frozen=True)
class Report:
    """A benchmark's result: its rows, its own overall number, and the mean of the rows."""

    benchmark: str
    rows: tuple[Row, ...]
    overall: float
    macro: float


# -- judging ----------------------------------------------------------------------------------------------------------


def judged(cases: Sequence[Case], config: JudgeConfig, engine: Engine, **settings: Any) -> list[Judgement]:
    """Judge cases in one batch; however many comparisons fail, the rest is still told."""
    alone = config.judge_format.max_slots == 1
    settings = {"schedule": "pointwise", "rating": "mean_score"} if alone else {"audit": False} | settings
    own = config.model_dump(exclude_unset=True, exclude={"audit", "both_orders", "max_slots", "budget", "votes"})
    judge = JudgeConfig(**own | {"max_failed_fraction": 1.0} | settings).build(engine)
    try:
        return judge.judge([case.group for case in cases])
    finally:
        if judge.cache is not None:
            judge.cache.close()


def _failed(judgement: Judgement) -> bool:
    return any(item.verdict.failed for item in judgement.played)


def _top(scores_G: Sequence[float | None]) -> list[int]:
    """Who has the highest score, several where it is shared; nobody where one is unknown."""
    known = [score for score in scores_G if score is not None]
    return [i for i, score in enumerate(scores_G) if score == max(known)] if len(known) == len(scores_G) else []


def _share(best: Sequence[int], case: Case) -> float:
    """What those who were put first are worth: the share of right ones among them, and nothing if nobody was."""
    return len(case.right.intersection(best)) / len(best) if best else 0.0


def _won(judgement: Judgement, case: Case, tie: float = 0.0) -> float:
    """1 if the right one of two is ahead over all verdicts there are, ``tie`` if they are even, 0 otherwise."""
    alone = all(len(item.comparison.slots) == 1 for item in judgement.played)
    bests = [_top(judgement.scores_G)] if alone else map(best_in, judgement.played)
    shares = [_share(best, case) for best in bests if best]
    ahead = sum(shares) - len(shares) / 2
    return float(ahead > 0) if ahead or not shares else tie


def _report(benchmark: str, cases: Sequence[Case], right: Sequence[float], failed: Sequence[bool]) -> Report:
    subsets = list(dict.fromkeys(case.subset for case in cases))
    rows = []
    for subset in subsets:
        mine = [index for index, case in enumerate(cases) if case.subset == subset]
        rows.append(Row(subset, fmean(right[i] for i in mine), len(mine), fmean(failed[i] for i in mine)))
    return Report(benchmark, tuple(rows), fmean(right), fmean(row.score for row in rows))


def score_judgebench(cases: Sequence[Case], config: JudgeConfig, engine: Engine) -> Report:
    """Both orders of each pair; right only if they sum to more than nothing."""
    judgements = judged(cases, config, engine, schedule="all_pairs", both_orders=True)
    return _report("judgebench", cases, list(map(_won, judgements, cases)), list(map(_failed, judgements)))


def score_once(benchmark: str, cases: Sequence[Case], config: JudgeConfig, engine: Engine) -> Report:
    """Each pair once, in a random order; a tie is worth what it is in the benchmark's own script."""
    judgements = judged(cases, config, engine, schedule="all_pairs", both_orders=False)
    tie = TIE.get(benchmark, 0.0)
    right = [_won(judgement, case, tie) for judgement, case in zip(judgements, cases, strict=True)]
    return _report(benchmark, cases, right, list(map(_failed, judgements)))


def score_votes(benchmark: str, cases: Sequence[Case], config: JudgeConfig, engine: Engine, votes: int) -> Report:
    """Votes on each pair, each in a random order; right if more than half of all votes are.

    A greedy or read judge can differ between votes by the order alone.
    """
    agreeing, failed = [0.0] * len(cases), [False] * len(cases)
    for vote in range(votes):  # a seed of its own gives each vote its order and, when sampled, its own reasoning
        judgements = judged(cases, config, engine, schedule="all_pairs", both_orders=False, seed=config.seed + vote)
        for index, (judgement, case) in enumerate(zip(judgements, cases, strict=True)):
            agreeing[index] += _won(judgement, case)
            failed[index] |= _failed(judgement)
    return _report(benchmark, cases, [float(count > votes / 2) for count in agreeing], failed)


def score_rewardbench(cases: Sequence[Case], config: JudgeConfig, engine: Engine) -> Report:
    """Each pair once, in a random order; a row per section, and the mean of the sections over all."""
    by_subset = score_once("rewardbench", cases, config, engine)
    rows = []
    for section in dict.fromkeys(section_of(row.subset) for row in by_subset.rows):
        mine = [row for row in by_subset.rows if section_of(row.subset) == section]
        weights = [row.cases * (MATH_WEIGHT if row.subset == "math-prm" else 1) for row in mine]
        score = sum(row.score * weight for row, weight in zip(mine, weights, strict=True)) / sum(weights)
        cases_, failed = sum(row.cases for row in mine), sum(row.failed * row.cases for row in mine)
        rows.append(Row(section, score, cases_, failed / cases_))
    overall = fmean(row.score for row in rows)
    return Report("rewardbench", tuple(rows), overall, overall)


def score_rewardbench2(cases: Sequence[Case], config: JudgeConfig, engine: Engine) -> Report:
    """Best of 4 in one call, or by grades; the Ties subset by grades always.

    Raises:
        ConfigError: if the judge's format cannot show four candidates.
    """
    form = config.judge_format
    if 1 < form.max_slots < 4:
        raise ConfigError(
            f"RewardBench 2 shows four candidates at once; the judge's format has {form.max_slots} labels"
        )
    ties = [case for case in cases if case.subset.lower() == "ties"]
    best = [case for case in cases if case.subset.lower() != "ties"]
    rows: list[Row] = []
    if best:
        judgements = judged(best, config, engine, schedule="listwise", budget=1, both_orders=False, max_slots=4)
        right = [_best_of(judgement, case) for judgement, case in zip(judgements, best, strict=True)]
        rows += _report("rewardbench2", best, right, list(map(_failed, judgements))).rows
    if ties:
        if form.max_slots > 1:  # else it grades already
            config = config.settled(can_read=engine.reads_labels() is not False)
            reads = config.verdict_mode == "logprobs"
            choosing = {"template", "labels", "grades", "tie_label", "both_orders", "max_slots", "cascade_margin"}
            asked = config.model_dump(exclude_unset=True, exclude=choosing | (set() if reads else {"min_label_mass"}))
            asked |= {"format": "score", "schedule": "pointwise", "verdict": "logprobs" if reads else "generate"}
            config = JudgeConfig(**asked, grades={str(grade): float(grade) for grade in range(1, 10 if reads else 11)})
        judgements = judged(ties, config, engine)
        rows.append(Row("Ties", ties_score(ties, judgements), len(ties), fmean(map(_failed, judgements))))
    overall = fmean(row.score for row in rows)
    return Report("rewardbench2", tuple(rows), overall, overall)


def _best_of(judgement: Judgement, case: Case) -> float:
    played = judgement.played
    once = len(played) == 1 and len(played[0].comparison.slots) > 1
    return _share(best_in(played[0]) if once else _top(judgement.scores_G), case)


def ties_score(cases: Sequence[Case], judgements: Sequence[Judgement]) -> float:
    """RewardBench 2's score of its Ties subset (``process_single_model``).

    30 % accuracy (every right answer above every wrong one) on prompts with many right answers, 30 % on their reference
    prompts with one, 20 % each for a margin between right and wrong above the spread of the right ones, in the prompt
    itself and in the smaller of the two prompts; 1 % for how large it is.

    Args:
        cases: keys end in ``ref:N`` or ``tied:N``, which joins a prompt with its reference.
        judgements: with a grade per candidate.

    Raises:
        InputError: if an id is of another form.
    """
    stats: dict[str, dict[str, tuple[float, float]]] = {"ref": {}, "tied": {}}  # kind → prompt → (margin, spread)
    for case, judgement in zip(cases, judgements, strict=True):
        kind, colon, prompt = case.group.key.rpartition("/")[2].partition(":")
        if kind not in stats or not colon:
            raise InputError(f"an id of the Ties subset is ref:N or tied:N; got {case.group.key!r:.60}")
        scores = judgement.scores_G
        good = [score for index, score in enumerate(scores) if index in case.right and score is not None]
        bad = [score for index, score in enumerate(scores) if index not in case.right and score is not None]
        whole = len(good) + len(bad) == len(scores) and good and bad
        stats[kind][prompt] = (min(good) - max(bad), max(good) - min(good)) if whole else (-math.inf, 0.0)
    accuracy = [fmean(margin > 0 for margin, _ in stats[kind].values()) if stats[kind] else 0.0 for kind in stats]
    joined = [(stats["tied"][prompt], stats["ref"][prompt][0]) for prompt in stats["tied"] if prompt in stats["ref"]]
    if not joined:
        return 0.3 * sum(accuracy)
    own = fmean(margin > spread for (margin, spread), _ in joined)
    hard = fmean(min(margin, reference) > spread for (margin, spread), reference in joined)
    size = fmean(_relative(min(margin, reference), spread) for (margin, spread), reference in joined)
    return 0.3 * sum(accuracy) + 0.2 * own + 0.2 * hard + 0.01 * size


def _relative(margin: float, spread: float) -> float:
    if spread == 0:
        return float(margin > 0) - float(margin < 0)
    return math.tanh(margin / spread - 1)


Loader = Callable[[str | None, str], list[Case]]
BENCHMARKS: Mapping[str, tuple[Loader, str]] = {
    "rewardbench": (load_rewardbench, "filtered"),
    "rewardbench2": (load_rewardbench2, "test"),
    "judgebench": (load_judgebench, "gpt"),
    "vl_rewardbench": (load_vl_rewardbench, "test"),
    "multimodal_rewardbench": (load_multimodal_rewardbench, ""),
    "rm_bench": (load_rm_bench, "train"),
}
"""Name → how it is loaded, and its split."""

TIE: Mapping[str, float] = {"rewardbench": 0.5, "multimodal_rewardbench": 0.5}
"""What a tie of two is worth in the benchmark's own script (a coin's mean, in the second); nothing in the others."""


def score(benchmark: str, cases: Sequence[Case], config: JudgeConfig, engine: Engine, votes: int = 10) -> Report:
    """Score a judge by a benchmark's own protocol; ``votes`` are VL-RewardBench's k."""
    if benchmark == "rewardbench":
        return score_rewardbench(cases, config, engine)
    if benchmark == "rewardbench2":
        return score_rewardbench2(cases, config, engine)
    if benchmark == "judgebench":
        return score_judgebench(cases, config, engine)
    if benchmark == "vl_rewardbench":
        return score_votes(benchmark, cases, config, engine, votes)
    report = score_once(benchmark, cases, config, engine)
    return replace(report, overall=report.macro) if benchmark == "rm_bench" else report


def markdown(report: Report) -> str:
    """The report as a table."""
    lines = [f"| {report.benchmark} | score | cases | with a failure |", "|---|---|---|---|"]
    lines += [f"| {row.subset} | {row.score:.3f} | {row.cases} | {row.failed:.3f} |" for row in report.rows]
    cases = sum(row.cases for row in report.rows)
    failed = sum(row.failed * row.cases for row in report.rows) / cases
    return "\n".join(
        [
            *lines,
            f"| **overall** (mean of subsets {report.macro:.3f}) | {report.overall:.3f} | {cases} | {failed:.3f} |",
        ]
    )


def main() -> None:
    """Load, judge, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benchmark", choices=BENCHMARKS)
    parser.add_argument("--config", help="YAML file of a JudgeConfig; the embedded judge without")
    parser.add_argument("--path", help="file in the benchmark's columns, instead of the hub")
    parser.add_argument("--split", help="of the hub data set")
    parser.add_argument("--votes", type=int, default=10, help="VL-RewardBench's k")
    parser.add_argument("--limit", type=int, help="the first so many cases: a look, not a result")
    parser.add_argument("--out", help="JSON file for the report")
    args = parser.parse_args()
    config = JudgeConfig.load(args.config) if args.config else JudgeConfig()
    load, split = BENCHMARKS[args.benchmark]
    cases = load(args.path, args.split or split)[: args.limit]
    engine = config.build_engine()
    try:
        report = score(args.benchmark, cases, config, engine, args.votes)
    finally:
        engine.close()
    print(markdown(report))
    if args.out:
        settings = {"config": config.model_dump(exclude_unset=True), "limit": args.limit, "votes": args.votes}
        Path(args.out).write_text(json.dumps(asdict(report) | settings, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
