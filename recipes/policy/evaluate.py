"""Measure policies that were trained on a judge, and best of N by the judge, with a yardstick that is not the judge.

    python -m recipes.policy.evaluate recipes/policy/policy_eval_cpu.yaml --out runs/policy-eval
    python -m recipes.policy.evaluate CONFIG --set after=runs/policy-dpo --out FOLDER
    python -m recipes.policy.evaluate CONFIG --set best_of='[]' --out FOLDER          # policies alone
    python -m recipes.policy.evaluate CONFIG --set pairs='[runs/dpo-pairs/pairs.jsonl]' --out FOLDER

Writes ``report.json`` and ``report.md``. The yardstick is VADER (Hutto & Gilbert, ICWSM 2014; the package
``vaderSentiment``): a lexicon and rules, no model, whose ``compound`` goes from -1 to 1. It reads the completion without its
prompt. No judge and no reward here uses it, but it is not unrelated: its lexicon and the ratings that the embedded judge was
trained on come from the same authors' raters. It measures whether text became positive, not whether it became good; hence
the other columns.

Before and after write to the same held-out prompts with the same seeds. Differences are paired; their 95 % intervals come
from a bootstrap over prompts, the mean over seeds of each.

=============  ======================================================================================================
yardstick      mean over prompts and seeds
length         tokens of a completion
ended          share that ended by itself
distinct 1, 2  different words (pairs of words) over all words (pairs) of a seed's completions, mean over seeds
loss           of the base model, per token of what was written; perplexity is its exponential. It falls where a policy
               retreats to what is likely anyhow, and rises where it writes what the base would not
=============  ======================================================================================================

**Best of N**: ``before`` writes N completions to each of some prompts; a judge chooses one. ``share`` is how much of the
possible gain its choices make: (chosen - mean of the N) / (the yardstick's own best - mean of the N), summed over prompts
before dividing; 0 is a random choice, 1 the yardstick's own. Where a judge found out nothing, a random choice stands in (its
expectation), and ``unknown`` counts these. Controls: the embedded model without its adapter, which grades texts alone, and a
judge that answers at random.

**Pairs** (of ``dpo_pairs.py``): the share whose chosen answer the yardstick puts above the rejected one, of those that
it tells apart; how many it cannot tell apart stands beside.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any, Literal

import numpy as np
from pydantic import Field, PositiveInt

from mrjudge_reward import json_lines
from mrjudge_reward.errors import ConfigError, InputError, require
from mrjudge_reward.judge import Judge, JudgeConfig
from mrjudge_reward.judging.tournament import digest
from mrjudge_reward.messages import final_answer
from mrjudge_reward.reranker import Reranker, combined
from mrjudge_reward.settings import Settings
from mrjudge_reward.types import Group
from recipes.common.config import command_line, read_config
from recipes.common.intervals import Interval, interval, written

from .policies import Completion, Prompt, complete, load_policy, losses, prompts_of, written_prompt
from .random_judge import random_judge


class PolicyEvaluation(Settings):
    """What is measured.

    Args:
        model: of both policies; hub name, path or ``"embedded"``. Its own loss is the measure ``loss``.
        before, after: folders of LoRAs on it; None for the model itself. Without ``after`` only ``before`` is measured.
        prompts: ``"openings"`` of film reviews, or a file of JSON lines with a ``prompt`` each.
        split: ``dev`` to choose, ``test`` to report; by a hash of the prompt, as in training.
        count: prompts on which policies are compared.
        seeds: of the sampling.
        max_new_tokens, temperature: of a completion.
        judge: fields of ``JudgeConfig``: who chooses the best of N.
        best_of: numbers of completions to choose from; empty to leave this out.
        votes: numbers of votes.
        best_of_count: prompts for best of N.
        controls: also choose by the untrained embedded model and at random.
        pairs: files of pairs whose agreement with the yardstick is measured.
        resamples: of the bootstrap.
        seed: of the bootstrap and of the completions to choose from.
    """

    model: str = "embedded"
    before: str | None = None
    after: str | None = None
    prompts: str = "openings"
    split: Literal["dev", "test"] = "test"
    count: PositiveInt = 100
    seeds: list[int] = Field(default_factory=lambda: [0, 1, 2], min_length=1)
    max_new_tokens: PositiveInt = 20
    temperature: float = Field(default=1.0, gt=0)
    judge: dict[str, Any] = Field(default_factory=dict)
    best_of: list[PositiveInt] = Field(default_factory=lambda: [4, 16])
    votes: list[PositiveInt] = Field(default_factory=lambda: [1, 3, 5], min_length=1)
    best_of_count: PositiveInt = 32
    controls: bool = True
    pairs: list[str] = Field(default_factory=list)
    resamples: PositiveInt = 2000
    seed: int = 0

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        if any(count < 2 for count in self.best_of):
            raise ConfigError(f"best_of must be numbers from 2 on; got {self.best_of}")


# -- measures -----------------------------------------------------------------------------------------------------------


def yardstick() -> Callable[[str], float]:
    """VADER's compound of a text, from -1 to 1; 0 for none.

    Raises:
        MissingPackageError: if ``vaderSentiment`` is not installed.
    """
    analyzer = require("vaderSentiment.vaderSentiment", extra="dev").SentimentIntensityAnalyzer()
    return lambda text: float(analyzer.polarity_scores(text)["compound"])


def distinct(texts: Sequence[str], size: int) -> float | None:
    """Different runs of ``size`` words over all of them; None where there is none."""
    runs = [
        tuple(words[place : place + size])
        for words in (text.lower().split() for text in texts)
        for place in range(len(words) - size + 1)
    ]
    return len(set(runs)) / len(runs) if runs else None


def ratio(tops: Sequence[float], bottoms: Sequence[float], resamples: int, seed: int) -> Interval | None:
    """Sum over sum, with its interval over resampled prompts; None where the bottoms sum to nothing."""
    top, bottom = np.array(tops), np.array(bottoms)
    if not bottom.sum() > 0:
        return None
    draws = np.random.default_rng(seed).integers(len(top), size=(resamples, len(top)))
    below = bottom[draws].sum(axis=1)
    shares = (top[draws].sum(axis=1) / np.where(below > 0, below, np.nan))[below > 0]
    low, high = np.quantile(shares, (0.025, 0.975))
    return float(top.sum() / bottom.sum()), float(low), float(high)


Columns = dict[str, list[list[float]]]
"""Measure → for each prompt, a value per seed."""


def measured(
    written_S: Sequence[Sequence[Completion]], losses_S: Sequence[Sequence[float]], score: Callable[[str], float]
) -> Columns:
    """Measures of single completions.

    Args:
        written_S: for each seed, a completion per prompt.
        losses_S: the base model's loss of each, summed over tokens.
        score: the yardstick.
    """
    by_prompt = list(zip(*written_S, strict=True))
    return {
        "yardstick": [[score(final_answer(one.text)) for one in row] for row in by_prompt],
        "length": [[float(len(one.ids)) for one in row] for row in by_prompt],
        "ended": [[float(one.ended) for one in row] for row in by_prompt],
        "loss": [list(row) for row in zip(*losses_S, strict=True)],
    }


def summary(columns: Columns, written_S: Sequence[Sequence[Completion]], resamples: int, seed: int) -> dict[str, Any]:
    """A policy's row of the report."""
    row: dict[str, Any] = {name: interval(columns[name], resamples, seed) for name in ("yardstick", "length", "ended")}
    for size in (1, 2):
        values = [distinct([one.text for one in written], size) for written in written_S]
        known = [value for value in values if value is not None]
        row[f"distinct {size}"] = fmean(known) if known else None
    row["loss"] = ratio(*_sums(columns), resamples, seed)
    row["perplexity"] = math.exp(row["loss"][0]) if row["loss"] else None
    return row


def _sums(columns: Columns) -> tuple[list[float], list[float]]:
    return [sum(row) for row in columns["loss"]], [sum(row) for row in columns["length"]]


def differences(before: Columns, after: Columns, resamples: int, seed: int) -> dict[str, Any]:
    """After minus before, paired by prompt and seed; the loss per token has a mean on each side, so it is resampled."""
    row: dict[str, Any] = {
        name: interval(
            [[b - a for a, b in zip(*rows, strict=True)] for rows in zip(before[name], after[name], strict=True)],
            resamples,
            seed,
        )
        for name in ("yardstick", "length", "ended")
    }
    sums = np.array([*_sums(before), *_sums(after)])  # (4, P)
    if sums[1].sum() > 0 and sums[3].sum() > 0:
        draws = np.random.default_rng(seed).integers(sums.shape[1], size=(resamples, sums.shape[1]))
        drawn = sums[:, draws].sum(axis=2)
        usable = (drawn[1] > 0) & (drawn[3] > 0)
        changes = drawn[2, usable] / drawn[3, usable] - drawn[0, usable] / drawn[1, usable]
        low, high = np.quantile(changes, (0.025, 0.975))
        total = sums.sum(axis=1)
        row["loss"] = (float(total[2] / total[3] - total[0] / total[1]), float(low), float(high))
    return row


# -- policies -----------------------------------------------------------------------------------------------------------


def sampled(
    recipe: PolicyEvaluation, prompts: Sequence[Prompt], policy: tuple[Any, Any], base: tuple[Any, Any]
) -> tuple[list[list[Completion]], list[list[float]]]:
    """What a policy writes, a completion per prompt for each seed, and the base model's loss of each."""
    written_S = [
        complete(*policy, prompts, recipe.max_new_tokens, seed, temperature=recipe.temperature, top_k=0, top_p=1.0)
        for seed in recipe.seeds
    ]
    return written_S, [losses(*base, prompts, written) for written in written_S]


def compare_policies(
    recipe: PolicyEvaluation, prompts: Sequence[Prompt], score: Callable[[str], float], base: tuple[Any, Any]
) -> dict[str, Any]:
    """Before and after on the same prompts and seeds."""
    found: dict[str, Columns] = {}
    report: dict[str, Any] = {"prompts": len(prompts), "seeds": recipe.seeds, "policies": {}, "examples": []}
    texts: dict[str, list[str]] = {}
    for name, adapter in (("before", recipe.before), ("after", recipe.after)):
        if name == "after" and adapter is None:
            continue
        policy = base if adapter is None else load_policy(recipe.model, adapter)
        written_S, losses_S = sampled(recipe, prompts, policy, base)
        found[name] = measured(written_S, losses_S, score)
        row = summary(found[name], written_S, recipe.resamples, recipe.seed)
        report["policies"][name] = {"adapter": adapter, **row}
        texts[name] = [one.text for one in written_S[0][:5]]
        print(f"{name}: " + ", ".join(f"{key} {written(value)}" for key, value in row.items()), flush=True)
    if len(found) == 2:
        report["difference"] = differences(found["before"], found["after"], recipe.resamples, recipe.seed)
        print("difference: " + ", ".join(f"{key} {written(value)}" for key, value in report["difference"].items()))
    report["examples"] = [
        {"prompt": prompt, **{name: texts[name][number] for name in texts}} for number, prompt in enumerate(prompts[:5])
    ]
    return report


# -- best of N ----------------------------------------------------------------------------------------------------------


def judges_of(recipe: PolicyEvaluation) -> dict[str, Callable[[], Judge]]:
    """Name → the judge, built when it is its turn."""
    found: dict[str, Callable[[], Judge]] = {"judge": lambda: JudgeConfig(**recipe.judge).build()}
    if recipe.controls:
        found["untrained embedded model"] = lambda: JudgeConfig().build()
        found["random judge"] = lambda: random_judge(recipe.seed)
    return found


def share_of_gain(
    choices: Sequence[int | None], values_PN: Sequence[Sequence[float]], resamples: int, seed: int
) -> dict[str, Any]:
    """What choices are worth by the yardstick, and how much of the possible gain they make.

    Args:
        choices: per prompt the number of a completion, None where the judge found out nothing.
        values_PN: the yardstick of each completion.
        resamples, seed: of the bootstrap over prompts.
    """
    means = [fmean(values) for values in values_PN]
    chosen = [
        mean if choice is None else values[choice]
        for choice, values, mean in zip(choices, values_PN, means, strict=True)
    ]
    gains = [value - mean for value, mean in zip(chosen, means, strict=True)]
    possible = [max(values) - mean for values, mean in zip(values_PN, means, strict=True)]
    return {
        "yardstick": interval([[value] for value in chosen], resamples, seed),
        "gain": interval([[gain] for gain in gains], resamples, seed),
        "share": ratio(gains, possible, resamples, seed),
        "unknown": sum(choice is None for choice in choices),
    }


def best_of_n(
    recipe: PolicyEvaluation, prompts: Sequence[Prompt], score: Callable[[str], float], policy: tuple[Any, Any]
) -> dict[str, Any]:
    """Choices of each judge among the first N of each prompt's completions, for all N and numbers of votes."""
    most = max(recipe.best_of)
    rows = [prompt for prompt in prompts for _ in range(most)]
    found = complete(
        *policy, rows, recipe.max_new_tokens, digest(recipe.seed, "best of n") % 2**31,
        temperature=recipe.temperature, top_k=0, top_p=1.0,
    )  # fmt: skip
    texts_PN = [[final_answer(one.text) for one in found[n * most : (n + 1) * most]] for n in range(len(prompts))]
    values_PN = [[score(text) for text in texts] for texts in texts_PN]
    report: dict[str, Any] = {"prompts": len(prompts), "rows": {}}
    for count in recipe.best_of:
        values = [row[:count] for row in values_PN]
        report["rows"][f"best of {count}"] = {
            "random choice": share_of_gain([None] * len(values), values, recipe.resamples, recipe.seed)
            | {"unknown": 0},
            "the yardstick's own": share_of_gain(
                [max(range(count), key=row.__getitem__) for row in values], values, recipe.resamples, recipe.seed
            ),
        }
    for name, build in judges_of(recipe).items():
        judge = build()
        votes = [1] if judge.format.max_slots == 1 else sorted(set(recipe.votes))  # graded alone, votes are one vote
        try:
            for count in recipe.best_of:
                groups = [
                    Group.of(prompt, texts[:count], f"best of {count}/{number}")
                    for number, (prompt, texts) in enumerate(zip(prompts, texts_PN, strict=True))
                ]
                ranked = Reranker(judge, max(votes)).rank_groups(groups)
                calls = sum(judgement.calls for one in ranked for judgement in one.judgements)
                for some in votes:
                    choices = [combined(one.judgements[:some]).best for one in ranked]
                    values = [row[:count] for row in values_PN]
                    row = share_of_gain(choices, values, recipe.resamples, recipe.seed)
                    label = f"{name}, {some} vote{'s' * (some > 1)}"
                    report["rows"][f"best of {count}"][label] = row | {"judge": judge.engine.identity}
                    print(f"best of {count}, {label}: share {written(row['share'])}", flush=True)
                report["rows"][f"best of {count}"][f"{name}, {max(votes)} vote{'s' * (max(votes) > 1)}"]["calls"] = (
                    calls
                )
        finally:
            judge.close()
    return report


# -- pairs --------------------------------------------------------------------------------------------------------------


def agreement(path: str, score: Callable[[str], float], resamples: int, seed: int) -> dict[str, Any]:
    """How often the yardstick prefers what was chosen.

    Args:
        path: JSON lines with ``chosen`` and ``rejected``, texts or chats.
        score: the yardstick.
        resamples, seed: of the bootstrap over pairs.

    Raises:
        InputError: naming the line that holds no pair, or if there is none at all.
    """
    agrees: list[float] = []
    count = 0
    for number, row in json_lines.read(path):
        with json_lines.placed(f"{path}, line {number}"):
            chosen, rejected = (score(final_answer(written_prompt(row[name]))) for name in ("chosen", "rejected"))
        count += 1
        if chosen != rejected:
            agrees.append(float(chosen > rejected))
    if not count:
        raise InputError(f"{path} holds no pair")
    found = interval([[one] for one in agrees], resamples, seed) if agrees else None
    return {"pairs": count, "told apart": len(agrees), "agreement": found}


# -- reports ------------------------------------------------------------------------------------------------------------


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Its lines."""
    return [f"| {' | '.join(head)} |", "|---" * len(head) + "|", *(f"| {' | '.join(row)} |" for row in rows)]


def markdown(report: Mapping[str, Any]) -> str:
    """Two tables: policies, and best of N."""
    lines = [f"Yardstick: {report['yardstick']}; {report['split']} split", ""]
    if (policies := report.get("policies")) is not None:
        names = ["yardstick", "length", "ended", "distinct 1", "distinct 2", "loss", "perplexity"]
        rows = {**policies["policies"], **({"difference": policies["difference"]} if "difference" in policies else {})}
        lines += [f"{policies['prompts']} prompts, {len(policies['seeds'])} seeds", ""]
        lines += markdown_table(
            ["policy", *names],
            [[policy, *(written(row.get(name)) for name in names)] for policy, row in rows.items()],
        )
        lines.append("")
    if (best := report.get("best of n")) is not None:
        names = ["yardstick", "gain", "share", "unknown"]
        lines += [f"{best['prompts']} prompts", ""]
        lines += markdown_table(
            ["of", "chosen by", *names],
            [
                [of, chooser, *(written(row.get(name)) for name in names)]
                for of, found in best["rows"].items()
                for chooser, row in found.items()
            ],
        )
        lines.append("")
    if (pairs := report.get("pairs")) is not None:
        names = ["pairs", "told apart", "agreement"]
        lines += markdown_table(
            ["of", *names], [[path, *(written(row[name]) for name in names)] for path, row in pairs.items()]
        )
        lines.append("")
    return "\n".join(lines)


def evaluate(recipe: PolicyEvaluation) -> dict[str, Any]:
    """Measure.

    Raises:
        InputError: if there are too few prompts.
    """
    score = yardstick()
    prompts = prompts_of(recipe.prompts, recipe.split)
    wanted = max(recipe.count, recipe.best_of_count if recipe.best_of else 0)
    if len(prompts) < wanted:
        raise InputError(f"{recipe.prompts} has {len(prompts)} prompts in split {recipe.split!r}; {wanted} are wanted")
    prompts = Random(recipe.seed).sample(prompts, wanted)
    base = load_policy(recipe.model)
    report: dict[str, Any] = {"yardstick": "VADER compound of the completion", "split": recipe.split}
    report["policies"] = compare_policies(recipe, prompts[: recipe.count], score, base)
    if recipe.best_of:
        policy = base if recipe.before is None else load_policy(recipe.model, recipe.before)
        report["best of n"] = best_of_n(recipe, prompts[: recipe.best_of_count], score, policy)
    if recipe.pairs:
        report["pairs"] = {path: agreement(path, score, recipe.resamples, recipe.seed) for path in recipe.pairs}
    return report


def main() -> None:
    """Measure, print, write."""
    parser = command_line(__doc__)
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    recipe = PolicyEvaluation(**read_config(args.config, args.overrides))
    folder = Path(args.out)
    folder.mkdir(parents=True, exist_ok=True)
    report = evaluate(recipe) | {"recipe": recipe.model_dump()}
    (folder / "report.json").write_text(json.dumps(report, indent=2, allow_nan=False), encoding="utf-8")
    (folder / "report.md").write_text(markdown(report), encoding="utf-8")
    print(markdown(report))


if __name__ == "__main__":
    main()
