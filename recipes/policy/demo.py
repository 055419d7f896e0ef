"""The main job in small: a policy learns from a judge's verdicts, on two CPU cores, in a few minutes.

A LoRA policy on SmolLM2-135M continues openings of real film reviews. TRL's GRPO trains it on the rewards of the embedded
judge, SmolLM2-135M with the adapter that this project's recipes trained: it reads which of two completions is the more
positive, the verdicts become games between the completions of a prompt, the games become scores.

    python -m recipes.policy.demo                                  # what `make demo` runs
    python -m recipes.policy.demo --format sentiment               # the untrained model, each completion alone
    python -m recipes.policy.demo --format choice --steps 3        # the untrained model, which chooses at chance
    python -m recipes.policy.demo --config judge.yaml              # any judge

It prints a table per step: mean reward, its spread inside groups, the judge's mean grade (probability of positive; only
for formats that grade), position consistency (only where the schedule shows something in both orders), failed
judgements, seconds generating, judging and updating, with a dash for what is unknown; then completions of held-out
openings before and after with their verdicts. It leaves ``log.jsonl`` and the adapter in --out.

What this is not: evidence about any judge you would use, or about sentiment by any measure but the judge's own.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from rich.progress import Progress, TimeElapsedColumn

from mrjudge_reward.judge import Judge, JudgeConfig
from mrjudge_reward.monitoring.explain import printable, verdict_line
from mrjudge_reward.types import Grades, Group
from recipes.data.reviews import openings

from .policies import complete, load_policy
from .step_table import HEAD
from .train import PolicyRecipe, online_trainer, quiet

NEW_TOKENS = 20


def show(judge: Judge, prompts: list[str], before: list[str], after: list[str]) -> None:
    """Before and after, side by side in one group each, with the judge's verdict on the two."""
    groups = [Group.of(p, pair, f"show/{i}") for i, (p, *pair) in enumerate(zip(prompts, before, after, strict=True))]
    judgements = judge.judge(groups)
    changed = [
        row for row in zip(prompts, zip(before, after, strict=True), judgements, strict=True) if row[1][0] != row[1][1]
    ]
    if not changed:
        print("  not one completion changed: nothing to compare")
    for prompt, pair, judgement in changed[:4]:
        print(f"\n  {printable(prompt)} ...")
        for name, text, score in zip(("before", "after "), pair, judgement.scores_G, strict=True):
            shown = "unknown" if score is None else f"{score:+.2f}"
            print(f"    {name} {shown:>7}  ... {printable(text)}")
        for item in judgement.played:
            print(f"           verdict {verdict_line(item, 100)}")
    decided = [j for j in judgements if None not in j.scores_G and j.scores_G[0] != j.scores_G[1]]
    won = sum(judgement.order[0] == 1 for judgement in decided)
    print(
        f"\n  the judge prefers 'after' in {won} of {len(decided)} held-out openings whose completion changed", end=""
    )
    for index, name in enumerate(("before", "after")):
        values = [
            item.verdict.outcome.values_K[0]
            for judgement in judgements
            for item in judgement.played
            if isinstance(item.verdict.outcome, Grades) and item.comparison.slots == (index,)
        ]
        if values:
            print(f"; mean grade {name} {statistics.mean(values):.3f}", end="")
    print()


def progress_bar() -> Progress:
    """Steps, time left and time gone; on a terminal alone, below the rows that are printed meanwhile."""
    return Progress(
        *Progress.get_default_columns(), TimeElapsedColumn(), disable=not sys.stdout.isatty(), transient=True
    )


def follow(bar: Progress, steps: int) -> Any:
    """A trainer's callback that moves the bar."""
    import transformers

    class Follower(transformers.TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.task = bar.add_task("training", total=steps)

        def on_step_end(self, *_: Any, **__: Any) -> None:
            bar.advance(self.task)

    return Follower()


def train(args: argparse.Namespace) -> None:
    """Build the policy, the judge and the trainer; run."""
    import torch

    quiet()
    out = Path(args.out)
    judge: dict[str, Any] = {"format": args.format} if args.format else {}
    if not args.format and not args.config:
        judge = {"adapter": "embedded"}
    elif args.format == "choice":
        judge |= {"schedule": "listwise", "both_orders": True, "max_slots": args.num_generations}
    judge = {"seed": 0, **(JudgeConfig.load_values(args.config) if args.config else {}), **judge}
    config = JudgeConfig(**judge)
    if config.embedded:
        kind = "trained to choose the more positive of two texts" if config.trained else "untrained"
        print(f"Judge: the embedded SmolLM2-135M, {kind}; it knows positive from negative text and nothing else.")

    prompts = openings()
    held_out, prompts = prompts[: args.held_out], prompts[args.held_out :]
    before = [written.text for written in complete(*load_policy("embedded"), held_out, NEW_TOKENS)]
    recipe = PolicyRecipe(
        lora={"r": 16, "lora_alpha": 32, "target_modules": "all-linear"},
        judge=judge,
        training={
            "output_dir": str(out),
            "max_steps": args.steps,
            "per_device_train_batch_size": args.prompts_per_step * args.num_generations,
            "num_generations": args.num_generations,
            "max_completion_length": NEW_TOKENS,
            "learning_rate": args.learning_rate,
            "lr_scheduler_type": "constant",
            "beta": 0.0,
            "temperature": 1.0,
            "save_strategy": "no",
            "bf16": False,
            "gradient_checkpointing": False,
            "use_cpu": not torch.cuda.is_available(),
            "dataloader_pin_memory": False,
            "seed": args.seed,
        },
    )
    trainer, reward = online_trainer(recipe, [{"prompt": prompt} for prompt in prompts])
    (out / "log.jsonl").unlink(missing_ok=True)
    print(f"{len(prompts)} openings, {args.prompts_per_step} prompts x {args.num_generations} completions a step\n")
    print(HEAD, flush=True)
    with progress_bar() as bar:
        trainer.add_callback(follow(bar, args.steps))
        trainer.train()
    trainer.save_model(str(out / "adapter"))
    print(f"\nHeld-out openings, the same random numbers before and after {args.steps} steps:")
    after = [written.text for written in complete(trainer.model, trainer.processing_class, held_out, NEW_TOKENS)]
    show(reward.judge, held_out, before, after)
    print(f"\nLog: {out / 'log.jsonl'}   Adapter: {out / 'adapter'}")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", "--max-steps", type=int, default=16)
    parser.add_argument("--num-generations", type=int, default=8)
    parser.add_argument("--prompts-per-step", type=int, default=2)
    parser.add_argument("--held-out", type=int, default=24, help="openings to write to before and after")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--format", choices=["sentiment", "choice"], default=None)
    parser.add_argument("--config", help="YAML file of a JudgeConfig")
    parser.add_argument("--out", default="runs/demo")
    parser.add_argument("--seed", type=int, default=0)
    started = time.perf_counter()
    train(parser.parse_args())
    print(f"Done in {time.perf_counter() - started:.0f} s.")


if __name__ == "__main__":
    main()
