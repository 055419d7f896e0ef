"""Train the judges of a table side by side: one frozen base, a LoRA for each run, one forward pass for all of them.

    python recipes/train_many.py recipes/configs/table.yaml --out runs/table
    python recipes/train_many.py CONFIG --out DIR --stages prepare          # what needs no device: render and tokenize
    python recipes/train_many.py CONFIG --out DIR --stages train read --deadline-s 900
    python recipes/train_many.py CONFIG --out DIR --stages report

A small judge leaves a GPU idle: a step of eight examples is over before the next is launched. Here the batches of K runs
(seeds, tasks, warm-up or reinforcement) are one batch of K times eight, and each LoRA sees its own eighth. The runs share
nothing else: each has its own data, order, optimizer, schedule and clipping (``tests/test_train_many.py``: a run ends where
it would have ended alone). A run may start from another one's adapter; it begins once that one is done.

Every run is a recipe of ``train_sft.py`` or ``train_rl.py`` (one that opens the answer) with settings of its own. What a
setting of the trainer means here it means there; one that cannot be honoured is refused. Differences: the examples of a
batch are of like length within eight steps of each other (``many_rows.batches``), and no checkpoint is chosen by dev.

Reinforcement of a verdict that is read needs no generation: the replies are one token, drawn from the very logits that
then learn, so that GRPO's step (TRL's default loss, on-policy) is one forward and one backward pass.

Every stage goes on where it was interrupted. ``read`` reads the verdicts of all judges on the evaluation's test and dev
exercises; ``report`` makes ``NAME/report.json`` of them, the same that ``evaluate_judge.py`` writes, for ``judge_table.py``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch.nn.functional import cross_entropy

sys.path.insert(0, str(Path(__file__).resolve().parent))

from evaluate_judge import Answered, EvaluationRecipe, by_gap, calibration, markdown, measures
from many_rows import Kind, Plan, Rows, batches, measured, prepare_run, prompt_rows
from mrjudge_reward.config import JudgeConfig
from mrjudge_reward.embedded import embedded_model_path
from mrjudge_reward.errors import ConfigError, InputError
from mrjudge_reward.settings import Settings
from mrjudge_reward.tasks import FORMAT_WEIGHT, Exercise, Split
from mrjudge_reward.types import Failed, Verdict
from recipe_config import read_config
from train_rl import RLRecipe

BASE = "base"
"""Name under which the judge without an adapter is measured."""
SPLITS: tuple[Split, ...] = ("test", "dev")
WEIGHTS = "adapter_model.safetensors"
LOG_STEPS, SAVE_STEPS = 50, 500
EPSILON = 1e-4  # added to a group's spread, as TRL does


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


class ManyRecipe(Settings):
    """All runs of a table.

    Args:
        model: hub name, path, or ``"embedded"``; of all runs.
        lora: fields of PEFT's ``LoraConfig``; of all runs, whatever their recipes say.
        runs: name → fields of ``RunConfig``.
        seeds: of each run, which then is called ``NAME-seedN``; one that starts from another starts from the same seed.
        evaluation: file of the evaluation, relative to this one, and settings that differ.
        evaluation_set: as on the command line of ``evaluate_judge.py``.
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


# -- adapters side by side --------------------------------------------------------------------------------------------


class SideBySide(torch.nn.Module):  # type: ignore[misc]
    """A linear layer with K adapters; row block k of a batch goes through adapter k.

    Attributes:
        a, b: the adapters of the coming pass, (K, r, in) and (K, out, r).
    """

    def __init__(self, base: Any, scale: float) -> None:
        super().__init__()
        self.base, self.scale = base, scale
        self.a: Any = None
        self.b: Any = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(K·B, T, in) to (K·B, T, out)."""
        count = self.a.shape[0]
        out = self.base(x)
        down = torch.bmm(x.reshape(count, -1, x.shape[-1]), self.a.transpose(1, 2))  # (K, B·T, r)
        both = torch.baddbmm(out.reshape(count, -1, out.shape[-1]), down, self.b.transpose(1, 2), alpha=self.scale)
        return both.view(out.shape)


@dataclass
class Base:
    """A frozen model with places for K adapters, which are rows of one (K, N) matrix.

    Attributes:
        model: the causal language model.
        layers: names and layers that have adapters.
        sizes: of the parts of an adapter in a row, A and B of each layer in turn.
    """

    model: Any
    layers: dict[str, SideBySide]
    shapes: list[tuple[int, int]]
    config: Any

    @classmethod
    def of(cls, model: Any, lora: Mapping[str, Any]) -> Base:
        """Take a model; PEFT finds the layers that the settings mean."""
        from peft import LoraConfig, get_peft_model
        from peft.tuners.lora import LoraLayer

        config = LoraConfig(task_type="CAUSAL_LM", **lora)
        found = get_peft_model(model, config).get_base_model()
        layers: dict[str, SideBySide] = {}
        shapes: list[tuple[int, int]] = []
        for name, layer in [(n, m) for n, m in found.named_modules() if isinstance(m, LoraLayer)]:
            base = layer.get_base_layer()
            placed = SideBySide(base, layer.scaling["default"])
            parent, _, last = name.rpartition(".")
            setattr(found.get_submodule(parent), last, placed)
            layers[name] = placed
            shapes += [(config.r, base.in_features), (base.out_features, config.r)]
        if not layers:
            raise ConfigError("lora names no layer of the model")
        found.requires_grad_(False)
        return cls(found.eval(), layers, shapes, config)

    def place(self, adapters_KN: torch.Tensor) -> None:
        """Let the coming passes use these adapters."""
        parts = adapters_KN.to(self.model.dtype).split([rows * columns for rows, columns in self.shapes], dim=1)
        views = [part.view(-1, *shape) for part, shape in zip(parts, self.shapes, strict=True)]
        for layer, a, b in zip(self.layers.values(), views[::2], views[1::2], strict=True):
            layer.a, layer.b = a, b

    def hidden(self, ids: torch.Tensor) -> torch.Tensor:
        """Last hidden states; rows end in padding, which nothing before it sees."""
        states: torch.Tensor = self.model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
        return states

    def fresh(self, seed: int) -> torch.Tensor:
        """A new adapter, drawn as PEFT draws it: A uniform as for a linear layer, B zero."""
        draw = torch.Generator().manual_seed(seed)
        parts = []
        for place, (rows, columns) in enumerate(self.shapes):
            bound = 0.0 if place % 2 else 1 / math.sqrt(columns)
            parts.append((torch.rand(rows * columns, generator=draw) * 2 - 1) * bound)
        return torch.cat(parts)

    def load(self, folder: Path) -> torch.Tensor:
        """An adapter from PEFT's files."""
        from safetensors.torch import load_file

        weights = load_file(folder / WEIGHTS)
        return torch.cat([weights[name].float().flatten() for name in self.names()])

    def save(self, adapter_N: torch.Tensor, folder: Path) -> None:
        """Write an adapter as PEFT does; the weights last, so that they are there only when all is."""
        from safetensors.torch import save_file

        parts = adapter_N.detach().cpu().split([rows * columns for rows, columns in self.shapes])
        named = {n: p.view(s).clone() for n, p, s in zip(self.names(), parts, self.shapes, strict=True)}
        config = replace(self.config, inference_mode=True)
        config.save_pretrained(folder)
        save_file(named, folder / "adapter_model.part", metadata={"format": "pt"})
        os.replace(folder / "adapter_model.part", folder / WEIGHTS)

    def names(self) -> list[str]:
        """Of the parts of an adapter, in PEFT's files."""
        return [f"base_model.model.{name}.lora_{part}.weight" for name in self.layers for part in "AB"]


# -- training ---------------------------------------------------------------------------------------------------------


@dataclass
class Run:
    """A run under way."""

    name: str
    plan: Plan
    rows: Rows
    adapter: torch.nn.Parameter
    order: Iterator[list[int]]
    optimizer: Any
    scheduler: Any
    draw: torch.Generator
    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)

    @classmethod
    def begin(cls, name: str, folder: Path, base: Base, device: str) -> Run:
        """At its first step, or where its folder says it was."""
        from transformers import get_scheduler

        plan = Plan(**json.loads((folder / "plan.json").read_text(encoding="utf-8")))
        rows = Rows.load(folder / "rows.npz")
        start = base.fresh(plan.seed) if plan.start is None else base.load(folder.parent / plan.start)
        adapter = torch.nn.Parameter(start.to(device))
        optimizer = torch.optim.AdamW([adapter], lr=plan.learning_rate, betas=(0.9, plan.beta2), weight_decay=0.0)
        scheduler = get_scheduler(plan.schedule, optimizer, plan.warmup, plan.steps)
        draw = torch.Generator(device).manual_seed(plan.seed)
        run = cls(name, plan, rows, adapter, batches(rows, plan), optimizer, scheduler, draw)
        if (folder / "state.pt").is_file():
            run.restore(torch.load(folder / "state.pt", map_location=device, weights_only=True))
        return run

    def state(self) -> dict[str, Any]:
        """All that a later process needs to go on."""
        return {
            "adapter": self.adapter.data,
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "draw": self.draw.get_state(),
            "step": self.step,
            "history": self.history,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.adapter.data.copy_(state["adapter"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.draw.set_state(state["draw"].cpu())
        self.step, self.history = state["step"], state["history"]
        for _ in range(self.step):
            next(self.order)

    @property
    def done(self) -> bool:
        """Whether all its steps are behind it."""
        return self.step >= self.plan.steps

    def targets(self, chosen: Sequence[int]) -> list[tuple[int, int]]:
        """Places (row of the batch, token) whose next token matters."""
        if self.plan.kind == "rl":
            return [(place, int(self.rows.answers[row]) - 1) for place, row in enumerate(chosen)]
        spans = [(place, int(self.rows.answers[row]), int(self.rows.lengths[row])) for place, row in enumerate(chosen)]
        return [(place, at - 1) for place, begin, end in spans for at in range(begin, end)]

    def loss(self, logits: torch.Tensor, chosen: Sequence[int], ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss, and what is worth watching: the loss itself, or the mean accuracy of the replies."""
        if self.plan.kind == "sft":
            rows, places = torch.tensor(self.targets(chosen), device=ids.device).T
            loss = cross_entropy(logits, ids[rows, places + 1])
            return loss, loss.detach()
        size = self.plan.generations
        logprobs = logits.log_softmax(-1)  # (P, V)
        said = torch.multinomial(logprobs.detach().exp(), size, replacement=True, generator=self.draw)  # (P, G)
        tokens, worths = (torch.as_tensor(part, device=ids.device) for part in self.rows.verdicts(chosen))
        twins = torch.as_tensor(self.rows.twins[list(chosen)], device=ids.device)
        rewards, accuracy = reward(said, tokens, worths, twins, self.plan.bonus)
        spread = rewards.std(dim=1, keepdim=True)
        advantages = (rewards - rewards.mean(dim=1, keepdim=True)) / (spread + EPSILON)
        return -(advantages * logprobs.gather(1, said)).mean(), accuracy.mean()

    def update(self) -> None:
        """One step of the optimizer."""
        torch.nn.utils.clip_grad_norm_([self.adapter], self.plan.clip)
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()
        self.step += 1


def reward(
    said: torch.Tensor, tokens: torch.Tensor, worths: torch.Tensor, twins: torch.Tensor, bonus: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """What replies of one token are worth, as ``train_rl.Marks`` pays them, and their accuracy; (P, G) each.

    Args:
        said: tokens drawn, (P, G).
        tokens, worths: tokens that are a verdict, and their accuracy, (P, M) each.
        twins: whether a prompt's neighbour shows the opposite order, (P,).
        bonus: for being right in both orders.
    """
    meant = said[:, :, None] == tokens[:, None, :]  # (P, G, M)
    accuracy = (meant * worths[:, None, :]).sum(-1)
    paid = (1 - FORMAT_WEIGHT) * accuracy + FORMAT_WEIGHT * meant.any(-1)
    other = accuracy.mean(dim=1).view(-1, 2).flip(1).reshape(-1, 1)  # of the neighbour
    return paid + bonus * accuracy * other * twins[:, None], accuracy


def one_step(base: Base, runs: Sequence[Run], device: str) -> list[torch.Tensor]:
    """A step of every run; what each of them watches."""
    chosen = [next(run.order) for run in runs]
    sizes = {len(rows) for rows in chosen}
    if len(sizes) > 1:
        raise ConfigError(f"runs side by side need batches of one size; got {sorted(sizes)} prompts")
    (size,) = sizes
    width = max(int(run.rows.lengths[rows].max()) for run, rows in zip(runs, chosen, strict=True))
    filled = np.concatenate([run.rows.padded(rows, width) for run, rows in zip(runs, chosen, strict=True)])
    ids = torch.from_numpy(filled).to(device, non_blocking=True)  # (K·B, T)
    targets = [run.targets(rows) for run, rows in zip(runs, chosen, strict=True)]
    at = torch.tensor([(k * size + row, place) for k, one in enumerate(targets) for row, place in one], device=device).T
    base.place(torch.stack([run.adapter for run in runs]))
    logits = base.model.get_output_embeddings()(base.hidden(ids)[at[0], at[1]]).float()  # (targets, V)
    losses, watched = [], []
    for k, (run, part) in enumerate(zip(runs, logits.split([len(one) for one in targets]), strict=True)):
        loss, seen = run.loss(part, chosen[k], ids[k * size : (k + 1) * size])
        losses.append(loss)
        watched.append(seen)
    torch.stack(losses).sum().backward()
    for run in runs:
        run.update()
    return watched


def train(base: Base, out: Path, names: Sequence[str], device: str, deadline_s: float | None) -> bool:
    """Train all runs that are not done; returns whether all are.

    Args:
        base: the model.
        out: folder of the runs.
        names: of the runs.
        device: of the model.
        deadline_s: seconds after which it stops, for a later call to go on; None for no end.
    """
    began = time.monotonic()
    waiting = [name for name in names if not (out / name / WEIGHTS).is_file()]
    active: list[Run] = []
    for step in itertools.count(1):
        for name in list(waiting):
            start = json.loads((out / name / "plan.json").read_text(encoding="utf-8"))["start"]
            if start is None or (out / start / WEIGHTS).is_file():
                active.append(Run.begin(name, out / name, base, device))
                waiting.remove(name)
        if not active:
            return True
        watched = one_step(base, active, device)
        late = deadline_s is not None and time.monotonic() - began > deadline_s
        ended = late or any(run.done for run in active)
        if ended or step % LOG_STEPS == 0:
            for run, value in zip(active, torch.stack(watched).tolist(), strict=True):
                run.history.append({"step": run.step, "loss" if run.plan.kind == "sft" else "accuracy": value})
            print(f"{time.monotonic() - began:.0f} s, step {step}, {len(active)} runs at once", flush=True)
        for run in active:
            if run.done or late or step % SAVE_STEPS == 0:
                keep(run, base, out / run.name)
        active = [run for run in active if not run.done]
        if late:
            return not active and not waiting
    raise AssertionError("unreachable")


def keep(run: Run, base: Base, folder: Path) -> None:
    """Save where a run is; of one that is done, its adapter."""
    (folder / "history.json").write_text(json.dumps(run.history, indent=2), encoding="utf-8")
    if run.done:
        base.save(run.adapter, folder)
        (folder / "state.pt").unlink(missing_ok=True)
        return
    torch.save(run.state(), folder / "state.part")
    os.replace(folder / "state.part", folder / "state.pt")


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


@torch.no_grad()  # type: ignore[untyped-decorator]
def logprobs(base: Base, adapters_KN: torch.Tensor, rows: Rows, device: str, tokens_at_once: int) -> np.ndarray:
    """Log-probabilities of each row's labels for each of K adapters, (K, rows, labels)."""
    count = len(adapters_KN)
    base.place(adapters_KN)
    tokens, _ = rows.verdicts(range(len(rows)))
    values = np.full((count, *tokens.shape), np.nan, dtype=np.float32)
    order = np.argsort(-rows.lengths, kind="stable")
    done = 0
    while done < len(order):
        width = int(rows.lengths[order[done]])
        part = order[done : done + max(1, tokens_at_once // (width * count))]
        ids = torch.from_numpy(rows.padded(list(part), width)).to(device)
        last = torch.as_tensor(rows.lengths[part] - 1, device=device)
        states = base.hidden(ids.repeat(count, 1)).view(count, len(part), width, -1)
        states = states[:, torch.arange(len(part), device=device), last]  # (K, P, D)
        said = base.model.get_output_embeddings()(states).float().log_softmax(-1)  # (K, P, V)
        wanted = torch.as_tensor(tokens[part], device=device).expand(count, -1, -1)
        seen = said.gather(-1, wanted.clamp(min=0))
        values[:, part] = seen.masked_fill(wanted < 0, math.nan).cpu().numpy()
        done += len(part)
    return values


def report(
    out: Path, name: str, tasks: Mapping[Split, Mapping[str, Sequence[Exercise]]], recipe: EvaluationRecipe
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
        folder = out / name if split == "test" else out / name / "dev"
        folder.mkdir(exist_ok=True)
        finite = json.loads(json.dumps(found), parse_constant=lambda _: None)
        (folder / "report.json").write_text(json.dumps(finite, indent=2), encoding="utf-8")
        (folder / "report.md").write_text(markdown(found), encoding="utf-8")


def verdict(exercise: Exercise, label_logprobs: Sequence[float], least: float) -> Verdict:
    """What a judge makes of it (``mrjudge_reward/asking.py``): labels that are improbable together are no verdict."""
    form, slots = exercise.format, len(exercise.slots)
    values = [float(value) for value in label_logprobs[: len(form.read_labels(slots))]]
    if sum(map(math.exp, values)) < least:
        return Verdict(Failed("labels improbable"))
    return Verdict(form.from_logprobs(values, slots))


# -- stages -----------------------------------------------------------------------------------------------------------


def prepare(recipe: ManyRecipe, config: Path, out: Path, evaluation: EvaluationRecipe) -> None:
    """Write what every run is shown, and what all are measured on."""
    from rich.progress import track
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_path(recipe.model))
    out.mkdir(parents=True, exist_ok=True)
    for split, tasks in measured(evaluation, SPLITS).items():
        if not (out / f"{split}.npz").is_file():
            book = [(name, exercise) for name, shown in tasks.items() for exercise in shown]
            asking = RLRecipe(tasks={"any": {}}, opened=True, training={})
            prompt_rows(book, asking, tokenizer).save(out / f"{split}.npz")
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
    recipe = ManyRecipe(**read_config(args.config, args.overrides))
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


def loaded(recipe: ManyRecipe, device: str, dtype: str | None) -> Base:
    """The frozen model with places for adapters."""
    from transformers import AutoModelForCausalLM

    kind = dtype or ("bfloat16" if device.startswith("cuda") else "float32")
    model = AutoModelForCausalLM.from_pretrained(model_path(recipe.model), dtype=getattr(torch, kind))
    return Base.of(model.to(device), recipe.lora)


if __name__ == "__main__":
    main()
