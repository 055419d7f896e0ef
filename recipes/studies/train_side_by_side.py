"""Train the judges of a table side by side: one frozen base, a LoRA for each run, one forward pass for all of them.

    python -m recipes.studies.train_side_by_side recipes/studies/table.yaml --out runs/table
    python -m recipes.studies.train_side_by_side CONFIG --out DIR --stages prepare      # render and tokenize: no device
    python -m recipes.studies.train_side_by_side CONFIG --out DIR --stages train read --deadline-s 900
    python -m recipes.studies.train_side_by_side CONFIG --out DIR --stages report
    python -m recipes.studies.train_side_by_side recipes/studies/reasoning/study.yaml --out runs/reasoning  # that reason

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

Judges that reason need more, which other commands do (``side_by_side_commands.py``): the base writes traces to learn from,
reinforcement that generates has a trainer of its own (``alone``), and a judge that writes is measured by its writing
(``verdict: written``).

Every stage goes on where it was interrupted. ``read`` reads the verdicts of all judges on the evaluation's problems, and
``write`` has those write that are measured so; ``report`` makes ``NAME/report.json`` of what was read, as
``evaluate/judge.py`` writes it, for ``evaluate/table.py``.
"""

from __future__ import annotations

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
from recipes.common.config import command_line, read_config
from recipes.evaluate.judge import Answered, EvaluationRecipe, by_gap, calibration, measures, write_report

from .side_by_side_commands import make_traces, train_alone, write
from .side_by_side_model import WEIGHTS, Base, logprobs
from .side_by_side_rows import Kind, Rows, labels_of, measured, prepare_run, prompt_rows
from .side_by_side_runs import train

SPLITS: tuple[Split, ...] = ("test", "dev")
BASE = "base"
"""Name under which the judge without an adapter is read."""
BASE_WRITTEN = "base-written"
"""Name under which what it writes is measured."""


class RunConfig(Settings):
    """One run.

    Args:
        kind: ``"sft"`` or ``"rl"``.
        recipe: file of its settings, relative to the config that names it.
        set: settings that differ, as on the command line of the recipe; ``{out}`` is the folder of the study.
        start: name of the run whose adapter it goes on from.
        alone: train it by ``judge/train_rl.py``, which can generate, after those that are trained side by side.
        verdict: whether it is measured by what is read or by what it writes.
    """

    kind: Literal["sft", "rl"]
    recipe: str
    set: list[str] = Field(default_factory=list)
    start: str | None = None
    alone: bool = False
    verdict: Literal["read", "written"] = "read"


class SideBySideRecipe(Settings):
    """All runs of a table.

    Args:
        model: hub name, path, or ``"embedded"``; of all runs.
        lora: fields of PEFT's ``LoraConfig``; of all runs, whatever their recipes say.
        runs: name → fields of ``RunConfig``.
        seeds: of each run, which then is called ``NAME-seedN``; one that starts from another starts from the same seed.
        evaluation: file of the evaluation, relative to this one, and settings that differ.
        evaluation_set: as on the command line of ``evaluate/judge.py``.
        splits: that are read.
        written, written_set: the same for judges that write; None where none does.
        traces, traces_set: file of what the base reasons about, relative to this one, and settings that differ; None for no
            traces. Those that are right are kept in ``{out}/traces/kept/examples.jsonl``.
        curation: fields of ``CurationRecipe``, of what is kept.

    Raises:
        ConfigError: on construction, for a run that is to write with nothing to write about.
    """

    model: str = "embedded"
    lora: dict[str, Any]
    runs: dict[str, dict[str, Any]] = Field(min_length=1)
    seeds: list[int] = Field(default_factory=lambda: [0], min_length=1)
    evaluation: str
    evaluation_set: list[str] = Field(default_factory=list)
    splits: list[Split] = Field(default_factory=lambda: list(SPLITS), min_length=1)
    written: str | None = None
    written_set: list[str] = Field(default_factory=list)
    traces: str | None = None
    traces_set: list[str] = Field(default_factory=list)
    curation: dict[str, Any] = Field(default_factory=dict)

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        found = self.all_runs()
        order = list(found)
        for name, run in found.items():
            later = run.start in found and (not run.alone or order.index(run.start) > order.index(name))
            if later and found[run.start or ""].alone:
                raise ConfigError(f"run {name!r} starts from {run.start!r}, which is trained after it")
            if run.verdict == "written" and self.written is None:
                raise ConfigError(f"run {name!r} is measured by what it writes: name the evaluation in written")
            if run.alone and run.kind != "rl":
                raise ConfigError(f"run {name!r}: warm-ups are trained side by side, not alone")

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


def read(base: Base, out: Path, names: Sequence[str], splits: Sequence[Split], device: str) -> None:
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
    tokens_at_once = 65536 if device.startswith("cuda") else 8192  # a CPU wins nothing by more, and pads more
    for split in splits:
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
        verdicts = {split: file[split] for split in tasks}
    for split in tasks:
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
    for split, tasks in measured(evaluation, recipe.splits).items():
        if not (out / f"{split}.npz").is_file():
            problems = [(name, problem) for name, shown in tasks.items() for problem in shown]
            prompt_rows(problems, tokenizer).save(out / f"{split}.npz")
    beside = {name: run for name, run in recipe.all_runs().items() if not run.alone}
    for name, run in track(beside.items(), "Preparing runs"):
        if not (out / name / "plan.json").is_file():
            settings = settings_of(recipe, run, config, out)
            kind: Kind = run.kind
            prepare_run(kind, settings, run.start, recipe.lora, tokenizer, out / name)


def settings_of(recipe: SideBySideRecipe, run: RunConfig, config: Path, out: Path) -> dict[str, Any]:
    """Of the recipe by which a run is trained."""
    changed = [one.replace("{out}", str(out)) for one in run.set]
    return read_config(str(config.parent / run.recipe), [*changed, f"model={recipe.model}"])


def model_path(name: str) -> str:
    """Where the model is loaded from."""
    return str(embedded_model_path()) if name == "embedded" else name


def main() -> None:
    """Run the stages."""
    parser = command_line(__doc__)
    parser.add_argument("--out", required=True)
    stages = ("traces", "prepare", "train", "read", "write", "report")
    parser.add_argument("--stages", nargs="+", choices=stages, default=stages)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default=None, help="of training; bfloat16 on a GPU and float32 elsewhere")
    parser.add_argument("--read-dtype", default="float32", help="of reading; float32 is what a judge on a CPU has")
    parser.add_argument("--deadline-s", type=float, default=None, help="of training side by side; a later call goes on")
    args = parser.parse_args()
    config, out = Path(args.config), Path(args.out)
    recipe = SideBySideRecipe(**read_config(args.config, args.overrides))
    runs = recipe.all_runs()
    evaluation = EvaluationRecipe(**read_config(str(config.parent / recipe.evaluation), recipe.evaluation_set))
    beside = [name for name, run in runs.items() if not run.alone]
    if "traces" in args.stages and recipe.traces is not None:
        make_traces(config.parent / recipe.traces, recipe.traces_set, recipe.model, recipe.curation, out / "traces")
    if "prepare" in args.stages:
        prepare(recipe, config, out, evaluation)
    later = {*args.stages} - {"traces", "prepare"}
    if later and (missing := [name for name in beside if not (out / name / "plan.json").is_file()]):
        raise InputError(f"{', '.join(missing)}: not prepared in {out}; run the stage prepare")
    torch.set_float32_matmul_precision("high")
    if "train" in args.stages:
        done = train(loaded(recipe, args.device, args.dtype), out, beside, args.device, args.deadline_s)
        for name, run in runs.items() if done else ():
            if run.alone and not (out / name / WEIGHTS).is_file():
                settings = settings_of(recipe, run, config, out)
                train_alone(settings, recipe.lora, out / run.start if run.start else None, out / name)
    if "read" in args.stages:
        names = [name for name, run in runs.items() if run.verdict == "read"]
        read(loaded(recipe, args.device, args.read_dtype), out, names, recipe.splits, args.device)
    if "write" in args.stages and recipe.written is not None:
        names = [name for name, run in runs.items() if run.verdict == "written" and (out / name / WEIGHTS).is_file()]
        for name in (BASE_WRITTEN, *names):
            adapter = None if name == BASE_WRITTEN else out / name
            write(config.parent / recipe.written, recipe.written_set, recipe.model, adapter, out / name)
    if "report" in args.stages:
        tasks = measured(evaluation, recipe.splits)
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
