"""Train the judges of a table side by side: one frozen base, a LoRA for each run, one forward pass for all of them.

    python -m recipes.studies.train_side_by_side recipes/studies/table.yaml --out runs/table
    python -m recipes.studies.train_side_by_side CONFIG --out DIR --stages prepare      # render and tokenize: no device
    python -m recipes.studies.train_side_by_side CONFIG --out DIR --stages train read --deadline-s 900
    python -m recipes.studies.train_side_by_side CONFIG --out DIR --stages report

A small judge leaves a GPU idle: a step of eight examples is over before the next is launched. Here the batches of K runs
(seeds, tasks, warm-up or reinforcement) are one batch of K times eight, and each LoRA sees its own eighth. The runs share
nothing else: each has its own data, order, optimizer, schedule and clipping, so a run ends where it would have ended alone
(``tests/recipes/test_train_side_by_side.py``). A run may start from another one's adapter; it begins once that one is done.

Every run is a recipe of ``judge/train_sft.py`` or ``judge/train_rl.py`` (one that opens the answer) with settings of its
own. What a setting of the trainer means here it means there; one that cannot be honoured is refused. Differences: the
examples of a batch are of like length within eight steps of each other (``side_by_side_rows.batches``), and no checkpoint
is chosen by dev.

Reinforcement of a verdict that is read needs no generation: the replies are one token, drawn from the very logits that
then learn, so that GRPO's step (TRL's default loss, on-policy) is one forward and one backward pass.

Every stage goes on where it was interrupted. ``read`` reads the verdicts of all judges on the evaluation's test and dev
problems; ``report`` makes ``NAME/report.json`` of them, as ``evaluate/judge.py`` writes it, for ``evaluate/table.py``.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field

from mrjudge_reward.engines.embedded import embedded_model_path
from mrjudge_reward.errors import ConfigError, InputError
from mrjudge_reward.judge import JudgeConfig
from mrjudge_reward.settings import Settings
from mrjudge_reward.training.tasks import Problem, Split
from mrjudge_reward.types import NoVerdict, Verdict
from recipes.common.config import read_config
from recipes.evaluate.judge import Answered, EvaluationRecipe, by_gap, calibration, measures, write_report

from .side_by_side_model import WEIGHTS, Base, logprobs
from .side_by_side_rows import Kind, Rows, labels_of, measured, prepare_run, prompt_rows
from .side_by_side_runs import train

BASE = "base"
"""Name under which the judge without an adapter is measured."""
SPLITS: tuple[Split, ...] = ("test", "dev")


class RunConfig(Settings):
    """One run.

    Args:
        kind: ``"sft"`` or ``"rl"``.
        recipe: file of its settings, relative to the config that names it.
        set: settings that differ, as on the command line of the recipe.
        start: name of the run whose adapter it goes on from.
    """

    kind: Literal["sft", "rl"]
    recipe: str
    set: list[str] = Field(default_factory=list)
    start: str | None = None


class SideBySideRecipe(Settings):
    """All runs of a table.

    Args:
        model: hub name, path, or ``"embedded"``; of all runs.
        lora: fields of PEFT's ``LoraConfig``; of all runs, whatever their recipes say.
        runs: name → fields of ``RunConfig``.
        seeds: of each run, which then is called ``NAME-seedN``; one that starts from another starts from the same seed.
        evaluation: file of the evaluation, relative to this one, and settings that differ.
        evaluation_set: as on the command line of ``evaluate/judge.py``.
    """

    model: str = "embedded"
    lora: dict[str, Any]
    runs: dict[str, dict[str, Any]] = Field(min_length=1)
    seeds: list[int] = Field(default_factory=lambda: [0], min_length=1)
    evaluation: str
    evaluation_set: list[str] = Field(default_factory=list)

    def all_runs(self) -> dict[str, RunConfig]:
        """The runs of every seed, by name.

        Raises:
            ConfigError: for a run that starts from one that is not there, or in a circle.
        """
        found: dict[str, RunConfig] = {}
        for (name, values), seed in itertools.product(self.runs.items(), self.seeds):
            run = RunConfig(**values)
            start = f"{run.start}-seed{seed}" if run.start is not None else None
            # A seed that the run sets itself is the last word.
            found[f"{name}-seed{seed}"] = run.model_copy(
                update={"set": [f"training.seed={seed}", *run.set], "start": start}
            )
        for name in found:
            seen = [name]
            while (start := found[seen[-1]].start) is not None:
                if start not in found or start in seen:
                    raise ConfigError(f"run {seen[-1]!r} starts from {start!r}, which is no run before it")
                seen.append(start)
        return found


# -- measuring --------------------------------------------------------------------------------------------------------


def read(base: Base, out: Path, names: Sequence[str], device: str, tokens_at_once: int = 65536) -> None:
    """Read the verdicts of all judges that are trained, and of the model without an adapter, and keep them.

    Writes ``NAME/verdicts.npz``: per split, log-probabilities of the labels, (rows, labels), NaN where there are fewer.
    """
    trained = [name for name in names if (out / name / WEIGHTS).is_file()]
    wanted = [name for name in (BASE, *trained) if not (out / name / "verdicts.npz").is_file()]
    if not wanted:
        return
    none = torch.zeros_like(base.fresh(0))
    adapters = [none if name == BASE else base.load(out / name) for name in wanted]
    found: dict[str, dict[Split, np.ndarray]] = {name: {} for name in wanted}
    group = 8  # judges in one pass
    for split in SPLITS:
        rows = Rows.load(out / f"{split}.npz")
        for first in range(0, len(wanted), group):
            some = torch.stack(adapters[first : first + group]).to(device)
            for name, values in zip(wanted[first:], logprobs(base, some, rows, device, tokens_at_once), strict=False):
                found[name][split] = values
    for name, values in found.items():
        (out / name).mkdir(exist_ok=True)
        np.savez_compressed(out / name / "verdicts.npz", **values)  # type: ignore[arg-type]


def report(
    out: Path, name: str, tasks: Mapping[Split, Mapping[str, Sequence[Problem]]], recipe: EvaluationRecipe
) -> None:
    """Write a judge's ``report.json`` (test) and ``dev/report.json`` out of its verdicts."""
    least = JudgeConfig().min_label_mass
    with np.load(out / name / "verdicts.npz") as file:
        verdicts = {split: file[split] for split in SPLITS}
    for split in SPLITS:
        values = iter(verdicts[split])
        found: dict[str, Any] = {"judge": name, "split": split, "tasks": {}}
        for task, shown in tasks[split].items():
            answered = [Answered(one, (verdict(one, next(values), least),)) for one in shown]
            row = measures(answered, [1], recipe.resamples, recipe.seed)
            found["tasks"][task] = row | {"gaps": by_gap(answered), "calibration": calibration(answered)}
        write_report(found, out / name if split == "test" else out / name / "dev")


def verdict(problem: Problem, label_logprobs: Sequence[float], least: float) -> Verdict:
    """What a judge makes of it (``judging.comparisons``): labels that are improbable together are no verdict."""
    values = [float(value) for value in label_logprobs[: len(labels_of(problem))]]
    if sum(map(math.exp, values)) < least:
        return Verdict(NoVerdict("labels improbable"))
    return Verdict(problem.format.from_logprobs(values, len(problem.slots)))


# -- stages -----------------------------------------------------------------------------------------------------------


def prepare(recipe: SideBySideRecipe, config: Path, out: Path, evaluation: EvaluationRecipe) -> None:
    """Write what every run is shown, and what all are measured on."""
    from rich.progress import track
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_path(recipe.model))
    out.mkdir(parents=True, exist_ok=True)
    for split, tasks in measured(evaluation, SPLITS).items():
        if not (out / f"{split}.npz").is_file():
            problems = [(name, problem) for name, shown in tasks.items() for problem in shown]
            prompt_rows(problems, tokenizer).save(out / f"{split}.npz")
    for name, run in track(recipe.all_runs().items(), "Preparing runs"):
        if not (out / name / "plan.json").is_file():
            settings = read_config(str(config.parent / run.recipe), [*run.set, f"model={recipe.model}"])
            kind: Kind = run.kind
            prepare_run(kind, settings, run.start, recipe.lora, tokenizer, out / name)


def model_path(name: str) -> str:
    """Where the model is loaded from."""
    return str(embedded_model_path()) if name == "embedded" else name


def main() -> None:
    """Run the stages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="overrides")
    parser.add_argument("--out", required=True)
    stages = ("prepare", "train", "read", "report")
    parser.add_argument("--stages", nargs="+", choices=stages, default=stages)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default=None, help="of training; bfloat16 on a GPU and float32 elsewhere")
    parser.add_argument("--deadline-s", type=float, default=None, help="of training; a later call goes on")
    args = parser.parse_args()
    config, out = Path(args.config), Path(args.out)
    recipe = SideBySideRecipe(**read_config(args.config, args.overrides))
    runs = recipe.all_runs()
    evaluation = EvaluationRecipe(**read_config(str(config.parent / recipe.evaluation), recipe.evaluation_set))
    if "prepare" in args.stages:
        prepare(recipe, config, out, evaluation)
    if missing := [name for name in runs if not (out / name / "plan.json").is_file()]:
        raise InputError(f"{', '.join(missing)}: not prepared in {out}; run the stage prepare")
    torch.set_float32_matmul_precision("high")
    if "train" in args.stages:
        train(loaded(recipe, args.device, args.dtype), out, list(runs), args.device, args.deadline_s)
    if "read" in args.stages:  # in full precision, as a judge on a CPU is
        read(loaded(recipe, args.device, "float32"), out, list(runs), args.device)
    if "report" in args.stages:
        tasks = measured(evaluation, SPLITS)
        for name in (BASE, *runs):
            if (out / name / "verdicts.npz").is_file():
                report(out, name, tasks, evaluation)


def loaded(recipe: SideBySideRecipe, device: str, dtype: str | None) -> Base:
    """The frozen model with places for adapters."""
    from transformers import AutoModelForCausalLM

    kind = dtype or ("bfloat16" if device.startswith("cuda") else "float32")
    model = AutoModelForCausalLM.from_pretrained(model_path(recipe.model), dtype=getattr(torch, kind))
    return Base.of(model.to(device), recipe.lora)


if __name__ == "__main__":
    main()
