"""What the runs of ``train_side_by_side.py`` are shown, as tokens: examples of the warm-up, prompts of the reinforcement.

Rendering needs no device and takes longer than training, so it is done beforehand and kept in files.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mrjudge_reward.engines.label_tokens import first_label_tokens
from mrjudge_reward.errors import ConfigError
from mrjudge_reward.training.tasks import Problem, Split
from mrjudge_reward.types import Request
from recipes.data.judge_data import asked_tasks, task_problems
from recipes.evaluate.judge import EvaluationRecipe
from recipes.judge.train_rl import RLRecipe, VerdictReward, asked, checked
from recipes.judge.train_rl import rows_of as opened_rows
from recipes.judge.train_sft import SFTRecipe, examples

Kind = Literal["sft", "rl"]
HONOURED = {
    "learning_rate", "adam_beta2", "lr_scheduler_type", "warmup_steps", "per_device_train_batch_size", "num_generations",
    "max_completion_length", "max_steps", "max_grad_norm", "num_train_epochs", "seed",
}  # fmt: skip
INDIFFERENT = {
    "output_dir", "logging_steps", "save_steps", "save_total_limit", "save_strategy", "use_cpu", "bf16", "max_length",
    "gradient_checkpointing", "train_sampling_strategy", "eval_strategy", "eval_steps", "per_device_eval_batch_size",
    "report_to",
}  # fmt: skip
"""Settings of a trainer that do not bear on what is learned here, or only on the order of the examples."""


@dataclass(frozen=True)
class Plan:
    """How one run is trained.

    Attributes:
        kind: warm-up or reinforcement.
        steps: of the optimizer.
        batch: rows of a step.
        generations: replies to a prompt; of reinforcement.
        bonus: for being right in both orders; of reinforcement.
        start: name of the run whose adapter this one goes on from; None for a fresh adapter.
        lora: fields of PEFT's ``LoraConfig``.
    """

    kind: Kind
    steps: int
    batch: int
    learning_rate: float
    beta2: float
    schedule: str
    warmup: int
    clip: float
    seed: int
    generations: int
    bonus: float
    start: str | None
    lora: dict[str, Any]


@dataclass(frozen=True)
class Rows:
    """Token sequences and what belongs to each, flat, so that they can be kept in one file.

    Attributes:
        ids, ends: tokens of all rows, and where each row ends.
        answers: of warm-up rows, the place of the first token that is learned; of prompts, their length.
        labels, accuracies, label_ends: of prompts, the tokens that are a verdict, and what each is worth.
        places: of these tokens, which of the format's labels each says.
        twins: of prompts, whether the row shows its neighbour (of rows 2i and 2i + 1) in the opposite order.
    """

    ids: np.ndarray
    ends: np.ndarray
    answers: np.ndarray
    labels: np.ndarray
    accuracies: np.ndarray
    label_ends: np.ndarray
    places: np.ndarray
    twins: np.ndarray

    @classmethod
    def of(
        cls,
        sequences: Sequence[Sequence[int]],
        answers: Sequence[int],
        labels: Sequence[Sequence[tuple[int, float, int]]] = (),
        twins: Sequence[bool] = (),
    ) -> Rows:
        """Rows from lists; of labels (token, accuracy, place)."""

        def flat(lists: Sequence[Sequence[Any]], kind: Any) -> tuple[np.ndarray, np.ndarray]:
            return np.array([x for one in lists for x in one], dtype=kind), np.cumsum([len(one) for one in lists])

        ids, ends = flat(sequences, np.uint32)
        tokens, label_ends = flat([[token for token, _, _ in one] for one in labels], np.int64)
        accuracies, _ = flat([[accuracy for _, accuracy, _ in one] for one in labels], np.float32)
        places, _ = flat([[place for _, _, place in one] for one in labels], np.int64)
        return cls(ids, ends, np.array(answers), tokens, accuracies, label_ends, places, np.array(twins, dtype=bool))

    def __len__(self) -> int:
        return len(self.ends)

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each row."""
        return np.diff(self.ends, prepend=0)

    def padded(self, rows: Sequence[int], width: int) -> np.ndarray:
        """Tokens of some rows, filled up with zeros on the right."""
        filled = np.zeros((len(rows), width), dtype=np.int64)
        for place, row in enumerate(rows):
            end = self.ends[row]
            filled[place, : self.lengths[row]] = self.ids[end - self.lengths[row] : end]
        return filled

    def verdicts(self, rows: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Tokens that are a verdict on each row, what each is worth and which label it says, filled up: (rows, M) each."""
        starts = np.concatenate(([0], self.label_ends))
        most = max(int(starts[row + 1] - starts[row]) for row in rows)
        tokens, places = np.full((len(rows), most), -1), np.full((len(rows), most), -1)
        accuracies = np.zeros((len(rows), most), dtype=np.float32)
        for at, row in enumerate(rows):
            begin, end = starts[row], starts[row + 1]
            for filled, kept in ((tokens, self.labels), (accuracies, self.accuracies), (places, self.places)):
                filled[at, : end - begin] = kept[begin:end]
        return tokens, accuracies, places

    def save(self, path: Path) -> None:
        """Write all of it to a file."""
        np.savez_compressed(path, **asdict(self))

    @classmethod
    def load(cls, path: Path) -> Rows:
        """Read what :meth:`save` wrote."""
        with np.load(path) as file:
            return cls(**file)


def batches(rows: Rows, plan: Plan, window: int = 8) -> Iterator[list[int]]:
    """The rows of each step, for ever: all of them in their own order, before any comes again.

    Within ``window`` steps rows of like length share a batch. Which of these steps shows the short ones depends on the
    step alone, so that runs which share a forward pass are short at the same time. Two orders of a pair stay together.
    """
    unit = 2 if plan.kind == "rl" else 1
    units = [tuple(range(i, i + unit)) for i in range(0, len(rows) - unit + 1, unit)]
    size = plan.batch // unit
    step = 0
    deck: list[tuple[int, ...]] = []
    while True:
        while len(deck) < window * size:
            deck += units
        block, deck = deck[: window * size], deck[window * size :]
        block.sort(key=lambda unit: max(rows.lengths[row] for row in unit))
        for place in np.random.default_rng(step // window).permutation(window):
            yield [row for unit in block[place * size : (place + 1) * size] for row in unit]
            step += 1


def plan_of(kind: Kind, recipe: SFTRecipe | RLRecipe, settings: Any, rows: Rows, start: str | None, lora: Any) -> Plan:
    """How a run is trained, from the settings of the trainer that would train it alone.

    Raises:
        ConfigError: for a setting that cannot be honoured here, rather than train otherwise than it says.
    """
    strange = recipe.training.keys() - HONOURED - INDIFFERENT
    if strange:
        raise ConfigError(f"runs side by side know nothing of training.{', training.'.join(sorted(strange))}")
    if isinstance(recipe, RLRecipe) and recipe.joint_orders:
        raise ConfigError("runs side by side have a group of replies for each order: do without joint_orders")
    if not lora:
        raise ConfigError("runs side by side train adapters: the recipe needs lora")
    generations = settings.num_generations if kind == "rl" else 1
    batch = settings.per_device_train_batch_size // generations
    if len(rows) < (2 if kind == "rl" else 1):
        raise ConfigError("a run needs rows to learn from")
    steps = settings.max_steps if settings.max_steps > 0 else int(settings.num_train_epochs * len(rows)) // batch
    return Plan(
        kind, steps, batch, settings.learning_rate, settings.adam_beta2, str(settings.lr_scheduler_type.value),
        settings.get_warmup_steps(steps), settings.max_grad_norm, settings.seed, generations,
        recipe.both_orders_bonus if isinstance(recipe, RLRecipe) else 0.0, start, dict(lora),
    )  # fmt: skip


def warm_up_rows(recipe: SFTRecipe, tokenizer: Any) -> Rows:
    """The examples of ``judge/train_sft.py``."""
    sequences, answers = [], []
    for row in examples(recipe, "train", tokenizer):
        if "images" in row:
            raise ConfigError("runs side by side train on text alone, and a task shows images")
        prompt = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=False)
        whole = tokenizer.apply_chat_template([*row["prompt"], *row["completion"]], return_dict=False)
        if whole[: len(prompt)] != prompt:
            raise ConfigError("the chat template renders a prompt otherwise once it is answered")
        # What the template writes after the end of the turn (a line break) is learned by TRL too.
        sequences.append(whole)
        answers.append(len(prompt))
    return Rows.of(sequences, answers)


def prompt_rows(problems: Sequence[tuple[str, Problem]], tokenizer: Any, max_text_tokens: int = 2048) -> Rows:
    """Opened prompts, and what each token that says a label is worth by the reward of ``judge/train_rl.py``."""
    asking = RLRecipe(
        tasks={name: {} for name, _ in problems}, opened=True, max_text_tokens=max_text_tokens, training={}
    )
    prompts = [row["prompt"] for row in opened_rows(problems, 0, tokenizer, asking)]
    reward_func = VerdictReward(list(problems), frozenset(), opened=True)

    def encoded(text: str) -> list[int]:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
        return ids

    def worth_of(number: int, problem: Problem) -> list[tuple[int, float, int]]:
        labels = labels_of(problem)
        tokens = first_label_tokens(encoded, Request((), prefill=problem.format.answer_open, labels=labels))
        worth = [reward_func.verify(number, label, ()).accuracy for label in labels]
        return [(token, worth[place], place) for place, some in enumerate(tokens) for token in some]

    worth = [worth_of(number, problem) for number, (_, problem) in enumerate(problems)]
    shown = [problem for _, problem in problems]
    pairs = [shown[i ^ 1 : (i ^ 1) + 1] for i in range(len(shown))]
    twins = [
        bool(other) and other[0].twins == one.twins and other[0].slots != one.slots
        for one, other in zip(shown, pairs, strict=True)
    ]
    sequences = [tokenizer.encode(prompt) for prompt in prompts]
    return Rows.of(sequences, [len(ids) for ids in sequences], worth, twins)


def labels_of(problem: Problem) -> tuple[str, ...]:
    """What can be said of a problem in one token."""
    return problem.format.read_labels(len(problem.slots))


def prepare_run(
    kind: Kind, settings: Mapping[str, Any], start: str | None, lora: Any, tokenizer: Any, folder: Path
) -> None:
    """Write the rows and the plan of a run, and its recipe."""
    from trl import GRPOConfig, SFTConfig

    recipe: SFTRecipe | RLRecipe
    fixed = {"report_to": "none", "output_dir": str(folder)}
    if kind == "sft":
        recipe = SFTRecipe(**settings)
        rows, trainer = warm_up_rows(recipe, tokenizer), SFTConfig(**recipe.training | fixed)
        plan = plan_of(kind, recipe, trainer, rows, start, recipe.lora)
    else:
        recipe = RLRecipe(**settings)
        if not recipe.opened:
            raise ConfigError("runs side by side reinforce verdicts that are read: set opened")
        trainer = GRPOConfig(**recipe.training | fixed)
        checked(recipe, trainer)
        rows = prompt_rows(asked(recipe, "train", tokenizer), tokenizer, recipe.max_text_tokens)
        plan = plan_of(kind, recipe, trainer, rows, start, recipe.lora or lora)
    folder.mkdir(parents=True, exist_ok=True)
    rows.save(folder / "rows.npz")
    (folder / "recipe.json").write_text(recipe.model_dump_json(indent=2), encoding="utf-8")
    (folder / "plan.json").write_text(json.dumps(asdict(plan), indent=2), encoding="utf-8")


def measured(recipe: EvaluationRecipe, splits: Sequence[Split]) -> dict[Split, dict[str, list[Problem]]]:
    """Split → task → what every run is measured on; a source held out has no dev side."""
    tasks = asked_tasks(recipe.tasks, recipe.judge)
    return {
        split: {
            name: task_problems(task, split)
            for name, task in tasks.items()
            if split == "test" or task.held_out != "source"
        }
        for split in splits
    }
