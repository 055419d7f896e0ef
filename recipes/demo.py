"""The main job in small: a policy learns from a judge's verdicts, on two CPU cores, in a few minutes.

A LoRA policy on SmolLM2-135M continues openings of real film reviews. TRL's GRPO trains it on the rewards of the embedded
judge, SmolLM2-135M with the adapter that this project's recipes trained: it reads which of two completions is the more
positive, the verdicts become games between the completions of a prompt, the games become scores.

    python recipes/demo.py                                  # what `make demo` runs
    python recipes/demo.py --format sentiment               # the untrained model, reading each completion by itself
    python recipes/demo.py --format choice --steps 3        # the untrained model, which chooses at chance: no progress
    python recipes/demo.py --config judge.yaml              # any judge

It prints a table per step: mean reward, its spread inside groups, the judge's mean grade (probability of positive; only
for formats that grade), position consistency (only where the schedule shows something in both orders), failed
judgements, seconds generating, judging and updating, with a dash for what is unknown; then completions of held-out
openings before and after with their verdicts. It leaves ``log.jsonl`` and the adapter in --out.

What this is not: evidence about any judge you would use, or about sentiment by any measure but the judge's own.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import re
import statistics
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mrjudge_reward.config import JudgeConfig
from mrjudge_reward.embedded import embedded_model_path
from mrjudge_reward.explain import printable, verdict_line
from mrjudge_reward.integrations.trl_reward import JudgeReward
from mrjudge_reward.jsonl import plain
from mrjudge_reward.judge import Judge
from mrjudge_reward.types import Group, Judgement, Scores
from reviews import openings

NEW_TOKENS = 20
COLUMNS = {
    "step": "4d", "reward": "+7.3f", "spread": "7.3f", "grade": "6.3f", "consistency": "8.2f", "failed": "7.2f",
    "generate_s": "9.1f", "judge_s": "8.1f", "update_s": "8.1f",
}  # fmt: skip


def row_line(row: Mapping[str, float | None]) -> str:
    """A step as a line of the table; a dash for what is unknown (None, or NaN as some trainers say it)."""
    cells = []
    for name, form in COLUMNS.items():
        value = row[name]
        width = int(re.findall(r"\d+", form)[0])
        cells.append("-".rjust(width) if value is None or math.isnan(value) else f"{value:{form}}")
    return " ".join(cells)


def mean_grade(judgements: list[Judgement]) -> float | None:
    """Mean grade over candidates judged alone; None for formats that do not grade."""
    grades = [
        value
        for judgement in judgements
        for item in judgement.played
        if isinstance(item.verdict.outcome, Scores)
        for value in item.verdict.outcome.values_K
    ]
    return statistics.mean(grades) if grades else None


def complete(model: Any, tokenizer: Any, prompts: list[str]) -> list[str]:
    """One sampled completion per prompt, the same random numbers each time."""
    import torch

    inputs = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        output = model.generate(
            **inputs, max_new_tokens=NEW_TOKENS, do_sample=True, pad_token_id=tokenizer.pad_token_id
        )
    texts: list[str] = tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return texts


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
            if isinstance(item.verdict.outcome, Scores) and item.comparison.slots == (index,)
        ]
        if values:
            print(f"; mean grade {name} {statistics.mean(values):.3f}", end="")
    print()


def train(args: argparse.Namespace) -> None:
    """Build the policy, the judge and the trainer; run."""
    import datasets
    import torch
    import transformers
    from peft import LoraConfig
    from trl import GRPOConfig, GRPOTrainer

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    warnings.filterwarnings("ignore", category=FutureWarning)
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)

    overrides: dict[str, Any] = {"format": args.format} if args.format else {}
    if not args.format and not args.config:
        overrides = {"adapter": "embedded"}
    elif args.format == "choice":
        overrides |= {"schedule": "listwise", "both_orders": True, "max_slots": args.num_generations}
    config = JudgeConfig.load(args.config, **overrides) if args.config else JudgeConfig(**overrides)
    judge = config.build()
    if config.embedded:
        kind = "trained to choose the more positive of two texts" if config.trained else "untrained"
        print(f"Judge: the embedded SmolLM2-135M, {kind}; it knows positive from negative text and nothing else.")

    path = str(embedded_model_path())
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    prompts = openings()
    held_out, prompts = prompts[:32], prompts[32:]
    before = complete(model, tokenizer, held_out)

    seconds = {"generate": 0.0, "judge": 0.0}

    class TimedTrainer(GRPOTrainer):  # type: ignore[misc]
        def _generate(self, *inputs: Any) -> Any:
            started = time.perf_counter()
            result = super()._generate(*inputs)
            seconds["generate"] += time.perf_counter() - started
            return result

        def _calculate_rewards(self, *inputs: Any) -> Any:
            started = time.perf_counter()
            result = super()._calculate_rewards(*inputs)
            seconds["judge"] += time.perf_counter() - started
            return result

    class Table(transformers.TrainerCallback):  # type: ignore[misc]
        started = 0.0

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.started = time.perf_counter()
            seconds.update(generate=0.0, judge=0.0)

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float | None], **_: Any) -> None:
            if "reward" not in logs:
                return
            total = time.perf_counter() - self.started
            reward_mean = logs["reward"]
            row: dict[str, float | None] = {
                "step": state.global_step,
                "reward": None if reward_mean is None else round(reward_mean, 4) + 0.0,  # no -0.0
                "spread": logs["reward_std"],
                "grade": mean_grade(reward.last_judgements),
                "consistency": logs[f"{reward.__name__}/position_consistency"],
                "failed": logs[f"{reward.__name__}/failed_rate"],
                "generate_s": seconds["generate"],
                "judge_s": seconds["judge"],
                "update_s": total - seconds["generate"] - seconds["judge"],
            }
            print(row_line(row), flush=True)
            with (out / "log.jsonl").open("a", encoding="utf-8") as log:
                print(json.dumps(plain({**row, "metrics": logs}), allow_nan=False), file=log)

    reward = JudgeReward(judge, num_generations=args.num_generations, log_dir=out)
    trainer = TimedTrainer(
        model=model,
        processing_class=tokenizer,
        reward_funcs=reward,
        train_dataset=datasets.Dataset.from_dict({"prompt": prompts}),
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
        callbacks=[Table()],
        args=GRPOConfig(
            output_dir=str(out),
            max_steps=args.steps,
            per_device_train_batch_size=args.prompts_per_step * args.num_generations,
            num_generations=args.num_generations,
            max_completion_length=NEW_TOKENS,
            learning_rate=args.learning_rate,
            lr_scheduler_type="constant",
            scale_rewards="batch",  # a group of near-ties must not be stretched to full spread
            beta=0.0,
            temperature=1.0,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            bf16=False,
            gradient_checkpointing=False,
            use_cpu=not torch.cuda.is_available(),
            dataloader_pin_memory=False,
            disable_tqdm=True,
            seed=args.seed,
        ),
    )
    trainer.remove_callback(transformers.PrinterCallback)
    (out / "log.jsonl").unlink(missing_ok=True)
    print(f"{len(prompts)} openings, {args.prompts_per_step} prompts x {args.num_generations} completions a step\n")
    print("step  reward  spread  grade consist.  failed generate s  judge s update s", flush=True)
    trainer.train()
    trainer.save_model(str(out / "adapter"))
    print(f"\nHeld-out openings, the same random numbers before and after {args.steps} steps:")
    show(judge, held_out, before, complete(trainer.model, tokenizer, held_out))
    print(f"\nLog: {out / 'log.jsonl'}   Adapter: {out / 'adapter'}")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", "--max-steps", type=int, default=20)
    parser.add_argument("--num-generations", type=int, default=8)
    parser.add_argument("--prompts-per-step", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--format", choices=["sentiment", "choice"], default=None)
    parser.add_argument("--config", help="YAML file of a JudgeConfig")
    parser.add_argument("--out", default="runs/demo")
    parser.add_argument("--seed", type=int, default=0)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    started = time.perf_counter()
    train(parser.parse_args())
    print(f"Done in {time.perf_counter() - started:.0f} s.")


if __name__ == "__main__":
    main()
