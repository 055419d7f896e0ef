"""Policies trained on several judges and seeds, measured side by side by a yardstick that is no judge: a table.

    python -m recipes.studies.policy_study recipes/studies/policy_study.yaml --out runs/policies
    python -m recipes.studies.policy_study recipes/studies/policy_study.yaml --out runs/policies --only adaptive random
    python -m recipes.studies.policy_study recipes/studies/policy_study.yaml --out runs/policies --set training.use_cpu=false

Trains each run once per seed with ``policy/train.py``, lets every policy write to the same held-out prompts as the base
model (``policy/evaluate.py``), and writes ``report.json`` and ``report.md``. What is done is not done again: interrupted,
the same command goes on, a training from its last checkpoint. Several processes may each do some of the runs (``--only``)
in one folder; a last one without it then writes the whole table.

Differences to the base are paired by prompt and seed of the sampling; their 95 % intervals are over prompts, of the mean
over training seeds (whose single gains stand beside). Calls and tokens are of the judge, per training step.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any

from pydantic import Field

from mrjudge_reward import json_lines
from mrjudge_reward.errors import ConfigError, InputError
from mrjudge_reward.settings import Settings
from recipes.common.config import read_config
from recipes.common.intervals import written
from recipes.common.resumable import write_text
from recipes.common.training_folder import TrainingFolder
from recipes.policy.evaluate import (
    Columns,
    PolicyEvaluation,
    differences,
    markdown_table,
    measured,
    sampled,
    summary,
    yardstick,
)
from recipes.policy.policies import Prompt, load_policy, prompts_of
from recipes.policy.train import PolicyRecipe

BASE = "base"
PER_STEP = ("calls", "tokens", "judge_s", "step_s")
HEAD = ("policy", "seeds", "yardstick", "gain", "gains of seeds", "length", "distinct 2", "loss", *PER_STEP)


class PolicyStudy(Settings):
    """What is trained and how it is measured.

    Args:
        train: config of ``policy/train.py``; a relative path is looked for beside this config.
        evaluation: config of ``policy/evaluate.py``, likewise; its ``before``, ``after`` and best of N are not used.
        seeds: of each training.
        runs: name → overrides of the training's config (``a.b=value``).

    Raises:
        ConfigError: if a run is named like the base.
    """

    train: str
    evaluation: str
    seeds: list[int] = Field(min_length=1)
    runs: dict[str, list[str]] = Field(min_length=1)

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        if BASE in self.runs:
            raise ConfigError(f"a run cannot be named {BASE!r}: that is the model before training")


def trained(config: Path, overrides: Sequence[str], folder: Path, seed: int) -> None:
    """Train one policy, unless it is there.

    Raises:
        ConfigError: if what is there was trained with other settings.
        InputError: if the training ended badly.
    """
    settings = [*overrides, f"training.seed={seed}", f"training.output_dir={folder}"]
    if TrainingFolder(PolicyRecipe(**read_config(str(config), settings))).finished:
        return
    print(f"\n== {folder.name}", flush=True)
    words = (word for one in settings for word in ("--set", one))
    command = [sys.executable, "-m", "recipes.policy.train", str(config), *words]
    if code := subprocess.run(command, check=False).returncode:
        raise InputError(f"training {folder.name} ended with code {code}; the same command goes on")


def measured_policy(
    folder: Path, adapter: str | None, recipe: PolicyEvaluation, prompts: Sequence[Prompt], base: tuple[Any, Any]
) -> dict[str, Any]:
    """Texts and measures (``columns``, ``summary``) of a policy, from its folder if it was measured with these settings."""
    file = folder / "measured.json"
    how = recipe.model_dump(
        include={"model", "prompts", "split", "count", "seeds", "max_new_tokens", "temperature", "resamples", "seed"}
    )
    if file.is_file() and (found := json.loads(file.read_text(encoding="utf-8")))["how"] == how:
        return dict(found)
    policy = base if adapter is None else load_policy(recipe.model, adapter)
    written_S, losses_S = sampled(recipe, prompts, policy, base)
    columns = measured(written_S, losses_S, yardstick())
    found = {
        "how": how,
        "columns": columns,
        "summary": summary(columns, written_S, recipe.resamples, recipe.seed),
        "texts": [[one.text for one in texts] for texts in written_S],
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps(found))
    print(f"measured {folder.name}", flush=True)
    return found


def per_step(log: Path) -> dict[str, float]:
    """Means over the steps of a run; empty for one that asks no judge."""
    if not log.is_file():
        return {}
    rows = [row for _, row in json_lines.read(log)]
    found = {
        "calls": [row["metrics"]["judge/calls"] for row in rows],
        "tokens": [row["metrics"]["judge/tokens"] for row in rows],
        "judge_s": [row["judge_s"] for row in rows],
        "step_s": [row["generate_s"] + row["judge_s"] + row["update_s"] for row in rows],
    }
    return {name: fmean(values) for name, values in found.items() if values}


def _joined(found: Sequence[Columns]) -> Columns:
    """Columns of policies of several seeds as those of one that was sampled more often."""
    return {
        name: [[value for columns in found for value in columns[name][n]] for n in range(len(found[0][name]))]
        for name in found[0]
    }


def row_of(
    policies: Sequence[Mapping[str, Any]],
    base: Mapping[str, Any],
    logs: Sequence[Mapping[str, float]],
    recipe: PolicyEvaluation,
) -> dict[str, Any]:
    """A row of the table.

    Args:
        policies: measured, of one run, a seed each.
        base: the model before training, measured.
        logs: :func:`per_step` of each.
        recipe: whose bootstrap is used.
    """
    start: Columns = base["columns"]
    changed = differences(
        _joined([start] * len(policies)), _joined([one["columns"] for one in policies]), recipe.resamples, recipe.seed
    )
    own, before = [one["summary"] for one in policies], base["summary"]["yardstick"][0]
    known = [row["distinct 2"] for row in own if row["distinct 2"] is not None]
    return {
        "seeds": len(policies),
        "yardstick": fmean(row["yardstick"][0] for row in own),
        "gain": changed["yardstick"],
        "gains of seeds": [round(row["yardstick"][0] - before, 3) for row in own],
        "length": changed["length"],
        "distinct 2": fmean(known) if known else None,
        "loss": changed.get("loss"),
        **{name: fmean(log[name] for log in logs) for name in PER_STEP if all(name in log for log in logs)},
    }


def markdown(report: Mapping[str, Any]) -> str:
    """The table; length and loss of a trained policy are differences to the base, whose own stand in its row."""
    rows = [[name, *(_cell(column, row.get(column)) for column in HEAD[1:])] for name, row in report["rows"].items()]
    return "\n".join(
        [
            f"{report['prompts']} prompts, {len(report['sampling seeds'])} completions each",
            "",
            *markdown_table(HEAD, rows),
        ]
    )


def _cell(column: str, value: Any) -> str:
    if column == "gains of seeds" and value is not None:
        return ", ".join(f"{one:+.3f}" for one in value)
    return f"{value:.1f}" if isinstance(value, float) and value > 10 else written(value)


def study(
    recipe: PolicyStudy, beside: Path, out: Path, only: Sequence[str], overrides: Sequence[str] = ()
) -> dict[str, Any]:
    """Train, measure, report.

    Args:
        recipe: what is trained and measured.
        beside: folder in which its configs are looked for.
        out: folder of the policies.
        only: names of runs; empty for all.
        overrides: of the training's config, in all runs; a run's own come after them.

    Raises:
        ConfigError: if ``only`` names a run that is not there.
        InputError: if there are too few prompts, pairs are missing, or a training ended badly.
    """
    if unknown := set(only) - set(recipe.runs):
        raise ConfigError(f"no run is named {', '.join(sorted(unknown))}; there are {', '.join(recipe.runs)}")
    for name in only or recipe.runs:  # all of them before the first hour is spent
        policy = PolicyRecipe(**read_config(str(beside / recipe.train), [*overrides, *recipe.runs[name]]))
        if policy.pairs is not None and not Path(policy.pairs).is_file():
            raise InputError(
                f"{name} learns from {policy.pairs}, which is not there: recipes.policy.dpo_pairs makes it"
            )
    evaluation = PolicyEvaluation(**read_config(str(beside / recipe.evaluation)))
    found = prompts_of(evaluation.prompts, evaluation.split)
    if len(found) < evaluation.count:
        raise InputError(f"{evaluation.prompts} has {len(found)} prompts in split {evaluation.split!r}")
    prompts = Random(evaluation.seed).sample(found, evaluation.count)
    model = load_policy(evaluation.model)
    base = measured_policy(out / BASE, None, evaluation, prompts, model)
    rows: dict[str, Any] = {BASE: base["summary"]}
    for name in only or recipe.runs:
        folders = [out / f"{name}-seed{seed}" for seed in recipe.seeds]
        policies = []
        for seed, folder in zip(recipe.seeds, folders, strict=True):
            trained(beside / recipe.train, [*overrides, *recipe.runs[name]], folder, seed)
            policies.append(measured_policy(folder, str(folder), evaluation, prompts, model))
        rows[name] = row_of(policies, base, [per_step(folder / "log.jsonl") for folder in folders], evaluation)
        print(f"{name}: " + ", ".join(f"{key} {_cell(key, value)}" for key, value in rows[name].items()), flush=True)
    return {"prompts": len(prompts), "sampling seeds": evaluation.seeds, "rows": rows, "recipe": recipe.model_dump()}


def main() -> None:
    """Train, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("--out", required=True)
    parser.add_argument("--only", nargs="+", default=[], metavar="RUN")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", dest="overrides", help="of all trainings"
    )
    args = parser.parse_args()
    out = Path(args.out)
    report = study(PolicyStudy(**read_config(args.config)), Path(args.config).parent, out, args.only, args.overrides)
    write_text(out / "report.json", json.dumps(report, indent=2, allow_nan=False))
    write_text(out / "report.md", markdown(report) + "\n")
    print(markdown(report))


if __name__ == "__main__":
    main()
