"""Train a policy on a judge: GRPO or RLOO on its verdicts, or DPO on the pairs it has chosen.

    python -m recipes.policy.train recipes/policy/policy_cpu.yaml                             # GRPO, embedded judge
    python -m recipes.policy.train CONFIG --set training.output_dir=D --set algorithm=rloo --set training.scale_rewards=null
    python -m recipes.policy.train CONFIG --set training.output_dir=D --set shared_base=true    # one copy of the base
    python -m recipes.policy.train CONFIG --set training.output_dir=D --set candidates=12       # over-generate, keep 8
    python -m recipes.policy.train recipes/policy/policy_dpo_cpu.yaml                         # after dpo_pairs.py
    accelerate launch --config_file recipes/policy/accelerate/fsdp2.yaml -m recipes.policy.train \
      recipes/policy/main_colocated.yaml                                                      # 8 GPUs: docs/main_job.md

One YAML holds the judge (any field of ``JudgeConfig``: format, schedule, rating, verdict, engine) and the training (any
field of TRL's config of the algorithm). GRPO and RLOO print a row per step (mean reward, its spread, position consistency,
failed judgements, seconds) and leave all metrics in ``log.jsonl``. ``training.seed`` decides the adapter's first weights,
the order of prompts and the sampling, and the judge's slots unless it has a seed of its own. Interrupted, the same command
goes on from the last checkpoint, if ``save_steps`` made one. ``evaluate.py`` measures what came of it by another
yardstick than the judge.
"""

from __future__ import annotations

import importlib
import logging
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt

from mrjudge_reward.engines.embedded import embedded_model_path
from mrjudge_reward.errors import ConfigError, InputError
from mrjudge_reward.integrations.trl import JudgeReward, SharedBaseJudgeReward
from mrjudge_reward.judge import JudgeConfig
from mrjudge_reward.settings import Settings
from recipes.common.config import command_line, read_config
from recipes.common.training_folder import TrainingFolder
from recipes.judge.train_rl import model_of

from .policies import rows_of
from .random_judge import random_judge
from .step_table import HEAD, cut_log, step_table, timed


class PolicyRecipe(Settings):
    """What is trained, on what.

    Args:
        algorithm: ``grpo`` and ``rloo`` sample and are judged as they train, ``dpo`` learns from ``pairs``.
        model: hub name, path, or ``"embedded"``.
        adapter: folder of a LoRA to go on from; it is trained itself.
        lora: fields of PEFT's ``LoraConfig`` for a fresh one; without it and ``adapter`` all weights are trained.
        judge: fields of ``JudgeConfig``, or ``"random"`` for one whose verdicts mean nothing.
        shared_base: the judge's adapter judges on the policy's own base; the judge's ``model`` must be that base.
        candidates: completions per prompt to generate, of which the judge keeps ``num_generations`` (GRPO alone).
        how: which of them, ``extremes`` or ``spread``.
        prompts: ``"openings"`` of film reviews, or a file of JSON lines with a ``prompt`` each; the train split of them.
        reward: further arguments of ``JudgeReward``, e.g. ``reference_column``: columns are the other fields of a line.
        rules: reward functions beside the judge, called as TRL does: ``module:function`` (``recipes.common.rules:number``).
        pairs: a file made by ``dpo_pairs.py``.
        training: fields of TRL's ``GRPOConfig``, ``RLOOConfig`` or ``DPOConfig``.

    Raises:
        ConfigError: if settings belong to another algorithm.
    """

    algorithm: Literal["grpo", "rloo", "dpo"] = "grpo"
    model: str = "embedded"
    adapter: str | None = None
    lora: dict[str, Any] | None = None
    judge: dict[str, Any] | Literal["random"] = Field(default_factory=dict)
    shared_base: bool = False
    candidates: PositiveInt | None = None
    how: Literal["extremes", "spread"] = "extremes"
    prompts: str = "openings"
    reward: dict[str, Any] = Field(default_factory=dict)
    rules: list[Annotated[str, Field(pattern=r"^[\w.]+:\w+$")]] = Field(default_factory=list)
    pairs: str | None = None
    training: dict[str, Any]

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        if self.adapter is not None and self.lora is not None:
            raise ConfigError("either go on from an adapter or make a fresh one by lora, not both")
        if (self.algorithm == "dpo") != (self.pairs is not None):
            raise ConfigError("pairs and algorithm 'dpo' go together: recipes.policy.dpo_pairs makes a file of pairs")
        if self.algorithm != "grpo" and self.candidates is not None:
            raise ConfigError("candidates need TRL's rollout_func, which GRPO alone has")
        if self.algorithm == "dpo" and (self.judge or self.shared_base or self.reward or self.rules):
            raise ConfigError(
                "DPO asks no judge: it learns from the pairs; leave out judge, shared_base, reward and rules"
            )
        if self.judge == "random" and self.shared_base:
            raise ConfigError("a random judge has no model that could share the policy's base; leave out shared_base")
        if self.shared_base and self.lora is None and self.adapter is None:
            raise ConfigError("a judge on the policy's base needs it frozen: train a LoRA (set lora)")


def tokenizer_of(model: str) -> Any:
    """The policy's tokenizer."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(
        str(embedded_model_path()) if model == "embedded" else model, padding_side="left"
    )


def reward_of(recipe: PolicyRecipe, settings: Any) -> JudgeReward:
    """The judge as a reward, with a log for ``mrjudge report``; one on the policy's base is to be attached to the trainer.

    Raises:
        ConfigError: if the judge cannot be built so.
    """
    sizes: dict[str, Any] = {
        "num_generations": settings.num_generations,
        "num_generations_eval": settings.num_generations_eval,
        "name": "judge",
        "log_dir": settings.output_dir,
        **recipe.reward,
    }
    if recipe.judge == "random":
        return JudgeReward(random_judge(settings.seed), **sizes)
    values = {"seed": settings.seed, **recipe.judge}
    if not recipe.shared_base:
        return JudgeReward(JudgeConfig(**values).build(), **sizes)
    config = JudgeConfig(**{"model": recipe.model, **values})
    if config.model != recipe.model:
        raise ConfigError(f"the judge is of {config.model}, the policy of {recipe.model}: they cannot share a base")
    return SharedBaseJudgeReward(config, **sizes)


def rule_of(name: str) -> Any:
    """The reward function of a name, ``module:function``.

    Raises:
        ConfigError: if there is none.
    """
    module, _, function = name.partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"no reward function {name!r}: {error}") from error


def online_trainer(recipe: PolicyRecipe, rows: Sequence[Mapping[str, Any]]) -> tuple[Any, JudgeReward]:
    """A trainer of GRPO or RLOO that prints its steps, and its reward."""
    import transformers
    import trl
    from datasets import Dataset

    Trainer, Config = (
        (trl.GRPOTrainer, trl.GRPOConfig) if recipe.algorithm == "grpo" else (trl.RLOOTrainer, trl.RLOOConfig)
    )
    # A group of near-ties must not be stretched to full spread.
    defaults = {"report_to": "none", "logging_steps": 1, "disable_tqdm": True}
    defaults |= {"scale_rewards": "batch"} if recipe.algorithm == "grpo" else {}
    settings = Config(**{**defaults, **recipe.training})
    transformers.set_seed(settings.seed)  # also a fresh adapter's weights
    reward = reward_of(recipe, settings)
    more: dict[str, Any] = {}
    if recipe.candidates is not None:
        from mrjudge_reward.integrations.trl import SelectingRollout

        more["rollout_func"] = SelectingRollout(
            reward, candidates=recipe.candidates, how=recipe.how, seed=settings.seed
        )
    model, lora = model_of(recipe.model, recipe.adapter, recipe.lora, settings.model_init_kwargs)
    names = dict.fromkeys(name for row in rows for name in row)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "You are using 'rollout_func'", UserWarning)
        trainer = timed(Trainer)(
            model=model,
            args=settings,
            reward_funcs=[reward, *map(rule_of, recipe.rules)],
            train_dataset=Dataset.from_dict({name: [row.get(name) for row in rows] for name in names}),
            processing_class=tokenizer_of(recipe.model),
            peft_config=lora,
            **more,
        )
    if isinstance(reward, SharedBaseJudgeReward):
        reward.attach(trainer)
    trainer.remove_callback(transformers.PrinterCallback)
    log = Path(settings.output_dir) / "log.jsonl"
    log.parent.mkdir(parents=True, exist_ok=True)
    trainer.add_callback(step_table(reward, trainer.seconds, log))
    return trainer, reward


def pair_trainer(recipe: PolicyRecipe) -> Any:
    """A trainer of DPO on a file of pairs.

    Raises:
        InputError: if the file holds none.
    """
    import transformers
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    settings = DPOConfig(**{"report_to": "none", **recipe.training})
    transformers.set_seed(settings.seed)
    assert recipe.pairs is not None
    try:
        pairs = Dataset.from_json(recipe.pairs)
    except (OSError, ValueError) as error:
        raise InputError(f"no pairs in {recipe.pairs}: {error}") from error
    if missing := {"prompt", "chosen", "rejected"} - set(pairs.column_names):
        raise InputError(f"pairs in {recipe.pairs} have no {', '.join(sorted(missing))}")
    model, lora = model_of(recipe.model, recipe.adapter, recipe.lora, settings.model_init_kwargs)
    return DPOTrainer(
        model=model,
        args=settings,
        train_dataset=pairs.select_columns(["prompt", "chosen", "rejected"]),
        processing_class=tokenizer_of(recipe.model),
        peft_config=lora,
    )


def quiet() -> None:
    """Leave the table alone on the screen."""
    import datasets
    import transformers

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    warnings.filterwarnings("ignore", category=FutureWarning)


def main() -> None:
    """Train and save."""
    parser = command_line(__doc__)
    args = parser.parse_args()
    recipe = PolicyRecipe(**read_config(args.config, args.overrides))
    quiet()
    folder = TrainingFolder(recipe)
    if folder.finished:
        return
    started = time.perf_counter()
    if recipe.algorithm == "dpo":
        trainer = pair_trainer(recipe)
    else:
        rows = rows_of(recipe.prompts, "train")
        trainer, _ = online_trainer(recipe, rows)
    if recipe.algorithm != "dpo" and trainer.is_world_process_zero():
        last = folder.checkpoint
        cut_log(folder.path / "log.jsonl", 0 if last is None else int(last.rpartition("-")[2]))
        print(f"{len(rows)} prompts, {trainer.args.num_generations} completions each\n\n{HEAD}", flush=True)
    folder.train(trainer)
    trainer.save_model(str(folder.path))
    if trainer.is_world_process_zero():
        folder.finish()
        steps, seconds = trainer.state.global_step, time.perf_counter() - started
        print(f"\n{steps} steps of {recipe.algorithm} in {seconds:.0f} s; saved to {folder.path}")


if __name__ == "__main__":
    main()
