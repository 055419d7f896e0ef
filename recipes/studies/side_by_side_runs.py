"""Runs of ``train_side_by_side.py`` under way: what each learns from a forward pass that all of them share."""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from mrjudge_reward.errors import ConfigError
from mrjudge_reward.training.tasks import FORMAT_WEIGHT

from .side_by_side_model import WEIGHTS, Base
from .side_by_side_rows import Plan, Rows, batches

LOG_STEPS = 50
SAVE_S = 300.0
"""Seconds between two saved states; so much is lost if the process is killed."""
EPSILON = 1e-4  # added to a group's spread, as TRL does


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
        tokens, accuracies, _ = (torch.as_tensor(part, device=ids.device) for part in self.rows.verdicts(chosen))
        twins = torch.as_tensor(self.rows.twins[list(chosen)], device=ids.device)
        rewards, accuracy = reward(said, tokens, accuracies, twins, self.plan.bonus)
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
    said: torch.Tensor, tokens: torch.Tensor, accuracies: torch.Tensor, twins: torch.Tensor, bonus: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """What replies of one token are worth, as ``train_rl.VerdictReward`` pays them, and their accuracy; (P, G) each.

    Args:
        said: tokens drawn, (P, G).
        tokens, accuracies: tokens that are a verdict, and their accuracy, (P, M) each.
        twins: whether a prompt's neighbour shows the opposite order, (P,).
        bonus: for being right in both orders.
    """
    meant = said[:, :, None] == tokens[:, None, :]  # (P, G, M)
    accuracy = (meant * accuracies[:, None, :]).sum(-1)
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
    began = saved = time.monotonic()
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
        now = time.monotonic()
        late = deadline_s is not None and now - began > deadline_s
        save = late or now - saved > SAVE_S
        ended = late or any(run.done for run in active)
        if ended or step % LOG_STEPS == 0:
            for run, value in zip(active, torch.stack(watched).tolist(), strict=True):
                run.history.append({"step": run.step, "loss" if run.plan.kind == "sft" else "accuracy": value})
            print(f"{now - began:.0f} s, step {step}, {len(active)} runs at once", flush=True)
        for run in active:
            if run.done or save:
                keep(run, base, out / run.name)
        saved = now if save else saved
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
