"""Train a judge by reinforcement on verifiable verdicts: multi-task GRPO (MR. Judge, stage 2; MT-RL-Judge).

    python -m recipes.judge.train_rl recipes/judge/rl_cpu.yaml              # one process
    python -m recipes.judge.train_rl CONFIG --set adapter=runs/judge-sft    # from a warm-up
    accelerate launch --config_file recipes/judge/accelerate/zero3.yaml -m recipes.judge.train_rl recipes/judge/rl_7b.yaml

``reward = 0.9 accuracy + 0.1 format``, and nothing for a reply that ran into the cap (MR. Judge); what is right is decided
by the very parser that later scores policies (``training.tasks``). Where a task shows both orders, they are sampled
in one batch, and a reply earns ``both_orders_bonus`` times its accuracy times the mean accuracy of the replies to the
opposite order: the expectation of J1's reward for being right in both (arXiv 2505.10320) over all pairings of replies.
Tasks are mixed by their weights. The checkpoint with the best dev accuracy is kept, and training stops once that has not
risen for ``patience`` measurements. Interrupted, the same command goes on from the last checkpoint.

``opened`` trains a judge that is read, not asked to reason: the answer is opened for it, as when it is read, and it says
one token, the label. Without a GPU a prompt of text alone is computed once for all its completions (``shared_prompt``).

Images of items reach a vision-language model through its processor, in TRL's trainer and in vLLM. A prompt that leaves the
reply no room is left out, and counted.

With ``joint_orders`` both orders of a pair are one group of GRPO. With ``consistency`` another model reads the reasoning of
right replies, and a verdict that it does not support earns less (``consistency.py``).

KL (``beta``), clipping (``epsilon``, ``epsilon_high``), the scale of rewards and the loss are TRL's own, under ``training``.

Differences from the papers: LoRA by default; several formats in one run; the bonus; ``opened``.
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import fmean, stdev
from typing import Any

from pydantic import Field, NonNegativeFloat, PositiveInt

from mrjudge_reward.engines.embedded import embedded_adapter_path, embedded_model_path
from mrjudge_reward.engines.label_tokens import spellings
from mrjudge_reward.errors import ConfigError, InputError
from mrjudge_reward.integrations.trl.distributed import check_timeout, gather, gather_results, rank_and_world
from mrjudge_reward.settings import Settings
from mrjudge_reward.training.consistency import Question, filled, question_on
from mrjudge_reward.training.tasks import FORMAT_WEIGHT, Problem, Split, Verified, balanced, verify, with_twins
from mrjudge_reward.types import Reply
from recipes.common.config import command_line, read_config
from recipes.common.training_folder import TrainingFolder
from recipes.data.judge_data import Trait, asked_tasks, mixture_weights, shows_images
from recipes.data.trained_tasks import trained

from .chat_rows import alike, check_modalities, data_set, fitting, guard_of, processing_class, save_processor, shown
from .consistency import ConsistencyConfig, Reader, Spent
from .seeing_model import make_known


class RLRecipe(Settings):
    """What is trained, on what.

    Args:
        model: hub name, path, or ``"embedded"``.
        adapter: folder of a LoRA to go on from, usually the warm-up's, or ``"embedded"``; it is trained itself.
        tasks: name → fields of ``TaskConfig``. Held-out ones are left out; all others are measured on dev as well, where
            ``training.eval_strategy`` asks for it.
        balance: what kinds of tasks have the same share of the mixture: by ``format``, by ``modality``, or both; within a
            kind, and without it, tasks are mixed by their weights.
        lora: fields of PEFT's ``LoraConfig`` for a fresh one; without it and ``adapter`` all weights are trained.
        opened: open the answer for the judge, which then says one token.
        both_orders_bonus: reward for being right in both orders; 0 for none.
        joint_orders: both orders of a pair have one baseline and one spread of rewards (EIS-GRPO of J4R, arXiv 2505.13346).
            With a baseline for each order a judge that always names one slot earns the same in all replies to an order, and
            learns nothing.
        consistency: fields of ``ConsistencyConfig``: who reads the reasoning of right replies, and how much it counts.
        patience: measurements without a better dev accuracy before training stops; None to go on.
        dev_samples: replies to each dev problem; above 1 the measure is a mean over samples.
        max_text_tokens: bound of each text of a problem; one with a longer text is left out, and counted.
        training: fields of TRL's ``GRPOConfig``.
    """

    model: str = "embedded"
    adapter: str | None = None
    tasks: dict[str, dict[str, Any]] = Field(min_length=1)
    balance: list[Trait] = Field(default_factory=list)
    lora: dict[str, Any] | None = None
    opened: bool = False
    both_orders_bonus: NonNegativeFloat = 0.5
    joint_orders: bool = False
    consistency: dict[str, Any] | None = None
    patience: PositiveInt | None = None
    dev_samples: PositiveInt = 1
    max_text_tokens: int = 2048
    training: dict[str, Any]

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        if self.adapter is not None and self.lora is not None:
            raise ConfigError("either go on from an adapter or make a fresh one by lora, not both")
        if self.consistency is not None and self.opened:
            raise ConfigError(
                "an opened answer has no reasoning that could support it: do without consistency or opened"
            )
        self.reader()

    def reader(self) -> Reader | None:
        """Who reads reasoning; None for nobody."""
        return None if self.consistency is None else Reader(ConsistencyConfig(**self.consistency))


# -- what is asked ----------------------------------------------------------------------------------------------------

SPREAD_FLOOR = 1e-4
"""What TRL adds to the spread that it divides by."""
Unit = tuple[Problem, ...]


def units_of(problems: Sequence[Problem]) -> list[Unit]:
    """Problems in twos: the two orders of a pair, or any two neighbours; so no batch of an even size parts twins."""
    twins = with_twins(problems)
    alone = [unit[0] for unit in twins if len(unit) == 1]
    twos: list[Unit] = [unit for unit in twins if len(unit) == 2]
    return twos + list(zip(alone[::2], alone[1::2], strict=False))


def asked(recipe: RLRecipe, split: Split, tokenizer: Any) -> list[tuple[str, Problem]]:
    """The problems of a split with their tasks, in the order in which they are asked, without those that would be cut.

    Raises:
        ConfigError: if all tasks are held out, or none has items of the dev side.
        InputError: if a task has fewer than two problems, or all of them would be cut.
    """
    tasks = asked_tasks(recipe.tasks)
    guard = guard_of(tokenizer, recipe.max_text_tokens)
    made = {name: units_of(some) for name, some in trained(tasks, split, lambda _: guard).items()}
    if split == "train":
        pictured = {name: any(shows_images(unit[0]) for unit in units[:1]) for name, units in made.items()}
        weights = mixture_weights({name: tasks[name] for name in made}, pictured, recipe.balance)
        count = round(max(len(made[name]) / weight for name, weight in weights.items()) * sum(weights.values()))
        mixture = balanced(made, count, int(recipe.training.get("seed", 42)), weights)
    else:
        mixture = [(name, unit) for name, units in made.items() for unit in units]
        random.Random(0).shuffle(mixture)
    return [(name, problem) for name, unit in mixture for problem in unit]


def rows_of(asked: Sequence[tuple[str, Problem]], first: int, tokenizer: Any, recipe: RLRecipe) -> list[dict[str, Any]]:
    """Rows of the trainer's data set: a prompt, and the problem's number in the reward's list.

    Raises:
        InputError: for an item with an image that is none; where the answer is opened, with any image.
    """
    guard = guard_of(tokenizer, recipe.max_text_tokens)
    rows = []
    for number, (name, problem) in enumerate(asked, first):
        place = f"task {name}, item {problem.item.group.key}"
        chat, images = shown(problem.render(guard), place)
        prompt: Any = chat
        if recipe.opened:
            if images:
                raise InputError(f"{place} has images, and TRL opens no answer after an image: do without opened")
            prompt = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
            prompt = prompt.removeprefix(tokenizer.bos_token or "") if adds_bos(tokenizer) else prompt
            prompt += problem.format.answer_open
            check_labels(prompt, problem, tokenizer)
        rows.append({"prompt": prompt, "problem": number, **({"images": images, "item": place} if images else {})})
    return rows


def are_twins(problems: Sequence[tuple[str, Problem]], row: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two rows show the two orders of a pair."""
    one, two = problems[row["problem"]][1], problems[other["problem"]][1]
    return bool(one.twins == two.twins and one.slots != two.slots)


def check_labels(prompt: str, problem: Problem, tokenizer: Any) -> None:
    """Raise ConfigError if a label takes more than one token after the opened answer."""
    opened = tokenizer.encode(prompt)

    def tokens(text: str) -> int:
        whole = tokenizer.encode(prompt + text)
        # Where the tokenizer would join them, the model writes the label's own tokens all the same.
        joined = whole[: len(opened)] != opened
        return len(tokenizer.encode(text, add_special_tokens=False)) if joined else len(whole) - len(opened)

    for label in problem.format.read_labels(len(problem.slots)):
        if all(tokens(text) != 1 for text in spellings(label, prompt)):
            raise ConfigError(
                f"label {label!r} is not one token after {problem.format.answer_open!r}: do without opened"
            )


def adds_bos(tokenizer: Any) -> bool:
    """Whether the tokenizer puts a beginning before every text by itself."""
    return bool(tokenizer.encode("a")[:1] == [tokenizer.bos_token_id])


# -- what it is worth -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """What was found of a reply.

    Attributes:
        number: of its problem.
        verified: what its verdict is worth.
        read: whether its reasoning was to be read.
        consistent: 1 where the reasoning supports the verdict, -1 where not, None where the reader did not say.
    """

    number: int
    verified: Verified
    read: bool = False
    consistent: float | None = None


@dataclass
class VerdictReward:
    """The reward function: verifies each reply, and remembers what it found since that was last taken.

    Args:
        problems: all problems that are asked, with the names of their tasks; a row names its number here.
        ends: tokens that end a reply.
        opened: whether the answer was opened, so that a reply is a bare label.
        bonus: for being right in both orders.
        scale: by what an advantage over both orders is divided, as TRL's ``scale_rewards``; None for no such advantages.
        advantages: of the rows that were verified last, over both orders.
        reader: of the reasoning of right replies; None for nobody.
    """

    problems: list[tuple[str, Problem]]
    ends: frozenset[int]
    opened: bool = False
    bonus: float = 0.5
    scale: str | None = None
    seen: list[tuple[int, Verified]] = field(default_factory=list)
    advantages: list[float] = field(default_factory=list)
    reader: Reader | None = None

    def __post_init__(self) -> None:
        self.__name__ = "verdict"  # what TRL logs it as

    def verify(self, number: int, text: str, ids: Sequence[int]) -> Verified:
        """What one reply is worth."""
        problem = self.problems[number][1]
        if self.opened:
            form, slots = problem.format, len(problem.slots)
            # To the letter, in any spelling that reading counts.
            said = [text in spellings(label, form.answer_open) for label in form.read_labels(slots)]
            outcome = form.from_logprobs([0.0 if one else -1e9 for one in said], slots)
            accuracy = problem.accuracy(outcome) if any(said) else 0.0
            return Verified(accuracy, any(said), (1 - FORMAT_WEIGHT) * accuracy + FORMAT_WEIGHT * any(said))
        whole = bool(ids) and ids[-1] in self.ends
        return verify(problem, Reply(text, finish="stop" if whole else "length"))

    def __call__(
        self,
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]],
        problem: Sequence[int],
        log_metric: Callable[[str, float], None] | None = None,
        **columns: Any,
    ) -> list[float]:
        """Rewards of one rank's rows; accuracies of the opposite order may come from another rank."""
        texts = [said if isinstance(said, str) else said[-1]["content"] for said in completions]
        rank, world = rank_and_world()
        told = gather_results(lambda: self._found(list(zip(problem, texts, completion_ids, strict=True))), world)
        own, every = told[rank][0], [row for rows, _ in told for row in rows]
        self.seen += [(row.number, row.verified) for row in own]
        accuracies: dict[Any, dict[tuple[int, ...], list[float]]] = defaultdict(lambda: defaultdict(list))
        for row in every:
            asked = self.problems[row.number][1]
            accuracies[asked.twins][asked.slots].append(row.verified.accuracy)
        read = [(row.number, row.consistent) for row in every if row.read]
        neutral = filled(read)
        rewards = []
        for row in own:
            asked, one = self.problems[row.number][1], row.verified
            orders = accuracies[asked.twins].items()
            other = [value for slots, values in orders if slots != asked.slots for value in values]
            consistency = 0.0
            if row.read and self.reader is not None:
                consistent = neutral[row.number] if row.consistent is None else row.consistent
                consistency = (1 - FORMAT_WEIGHT) * one.accuracy * self.reader.config.weight * consistent
            both = self.bonus * one.accuracy * fmean(other) if other else 0.0
            rewards.append(one.reward + consistency + both)
        if self.scale is not None:
            self.advantages = self._joint(
                [(self.problems[row.number][1].twins, r) for row, r in zip(own, rewards, strict=True)]
            )
        if log_metric is not None:
            log_metric("verdict/accuracy", fmean(row.verified.accuracy for row in every))
            log_metric("verdict/formed", fmean(row.verified.formed for row in every))
            if read:
                self._log_reading(log_metric, [value for _, value in read], sum((cost for _, cost in told), Spent()))
        return rewards

    def _found(self, replies: list[tuple[int, str, Sequence[int]]]) -> tuple[list[Found], Spent]:
        """What this rank's replies are worth, and what reading their reasoning took."""
        found = [Found(number, self.verify(number, text, ids)) for number, text, ids in replies]
        if self.reader is None:
            return found, Spent()
        asked = [
            index
            for index, one in enumerate(found)
            if one.verified.accuracy > 0 and question_on(self.problems[one.number][1]) is not None
        ]
        values, spent = self.reader([(self.problems[found[i].number][1], replies[i][1]) for i in asked])
        for index, value in zip(asked, values, strict=True):
            found[index] = replace(found[index], read=True, consistent=value)
        return found, spent

    @staticmethod
    def _log_reading(log_metric: Callable[[str, float], None], values: Sequence[float | None], spent: Spent) -> None:
        known = [value for value in values if value is not None]
        if known:
            log_metric("consistency/rate", fmean(value > 0 for value in known))
        log_metric("consistency/failed", 1 - len(known) / len(values))
        log_metric("consistency/calls", spent.calls)
        log_metric("consistency/tokens", spent.tokens)

    def _joint(self, own: list[tuple[Any, float]]) -> list[float]:
        """Advantages of this rank's rewards within all replies to either order, which may be on other ranks."""
        _, world = rank_and_world()
        every = [row for rows in gather(own, world) for row in rows]
        groups: dict[Any, list[float]] = defaultdict(list)
        for twins, reward in every:
            groups[twins].append(reward)
        whole = _spread([reward for _, reward in every])
        made = []
        for twins, reward in own:
            spread = {"group": _spread(groups[twins]), "batch": whole}.get(self.scale or "")
            centred = reward - fmean(groups[twins])
            made.append(centred if spread is None else centred / (spread + SPREAD_FLOOR))
        return made

    def take(self) -> dict[str, float]:
        """Mean accuracy per task since the last call, over all ranks, and the mean of those; forgets them."""
        _, world = rank_and_world()
        found: dict[str, list[float]] = defaultdict(list)
        for rows in gather(self.seen, world):
            for number, one in rows:
                found[self.problems[number][0]].append(one.accuracy)
        self.seen.clear()
        means = {f"accuracy/{name}": fmean(values) for name, values in sorted(found.items())}
        return means | ({"accuracy": fmean(means.values())} if means else {})


def _spread(rewards: Sequence[float]) -> float:
    """Standard deviation; of a lone reward, whose advantage is 0 by its mean, 0."""
    return stdev(rewards) if len(rewards) > 1 else 0.0


# -- training ---------------------------------------------------------------------------------------------------------


def trainer_class(reward_func: VerdictReward, pictured: bool = False) -> type[Any]:
    """TRL's trainer, with dev accuracy among the measures by which checkpoints are chosen.

    Without a GPU, and in one process, a prompt of text alone is computed once for all its completions.
    """
    import torch
    from trl import GRPOTrainer

    base = GRPOTrainer
    if not pictured and not torch.cuda.is_available() and rank_and_world()[1] == 1:
        from .shared_prompt import SharedPromptTrainer

        base = SharedPromptTrainer

    class JudgeTrainer(base):  # type: ignore[misc, valid-type]
        def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **settings: Any) -> Any:
            reward_func.seen.clear()
            reader, reward_func.reader = reward_func.reader, None  # dev accuracy does not depend on it
            try:
                output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **settings)
            finally:
                reward_func.reader = reader
            output.metrics.update((f"{metric_key_prefix}_{name}", value) for name, value in reward_func.take().items())
            return output

        def _generate_and_score_completions(self, inputs: Any) -> Any:
            output = super()._generate_and_score_completions(inputs)
            if reward_func.scale is not None and self.model.training:
                made = output["advantages"]
                output["advantages"] = torch.tensor(
                    reward_func.advantages, dtype=made.dtype, device=made.device
                ).view_as(made)
            return output

        def training_step(self, *args: Any, **settings: Any) -> Any:
            reward_func.seen.clear()
            return super().training_step(*args, **settings)

    return JudgeTrainer


def checked(recipe: RLRecipe, settings: Any) -> None:
    """Raise ConfigError for what cannot be trained so, such as batches that would part the two orders of a pair."""
    prompts, rest = divmod(settings.generation_batch_size, settings.num_generations)
    if rest or prompts % 2:
        raise ConfigError(
            f"a generation batch of {settings.generation_batch_size} replies, {settings.num_generations} to a prompt, has "
            f"{prompts} prompts; the two orders of a pair need an even number"
        )
    if recipe.patience is not None and settings.eval_strategy == "no":
        raise ConfigError("patience waits for dev accuracy, which is never measured: set training.eval_strategy")
    if recipe.opened and settings.max_completion_length != 1:
        raise ConfigError("an opened answer is one token: set training.max_completion_length to 1")


def model_of(
    model: str, adapter: str | None, lora: Mapping[str, Any] | None, init: Mapping[str, Any] | None = None
) -> tuple[Any, Any]:
    """What the trainer takes: a model or its name, and a fresh LoRA's config.

    Args:
        model: hub name, path, or ``"embedded"``.
        adapter: folder of a LoRA to train on, or ``"embedded"``.
        lora: fields of PEFT's ``LoraConfig`` for a fresh one.
        init: for ``from_pretrained``, where the model is loaded here.

    Raises:
        ConfigError: if there is no such adapter.
    """
    from peft import LoraConfig, PeftModel
    from trl.trainer.utils import create_model_from_path

    name = str(embedded_model_path()) if model == "embedded" else model
    if adapter is None:
        return name, None if lora is None else LoraConfig(task_type="CAUSAL_LM", **lora)
    make_known(name)
    # Of the class that the model's config names, and whole on each rank's own device.
    base = create_model_from_path(name, **{"device_map": None, **(init or {})})
    try:
        folder = str(embedded_adapter_path()) if adapter == "embedded" else adapter
        return PeftModel.from_pretrained(base, folder, is_trainable=True), None
    except (OSError, ValueError) as error:
        raise ConfigError(f"no adapter at {adapter}: {error}") from error


def longest_prompt(model: str, settings: Any) -> int | None:
    """Tokens of a prompt that leave room for a reply, in what the engine or the model holds; None if it does not say."""
    from transformers import AutoConfig

    room = settings.vllm_max_model_length if settings.use_vllm else None
    if room is None:
        room = getattr(AutoConfig.from_pretrained(model).get_text_config(), "max_position_embeddings", None)
    return None if room is None else room - settings.max_completion_length


def train(recipe: RLRecipe) -> None:
    """Train and save.

    Raises:
        ConfigError: if the settings do not go together, or ``training.output_dir`` holds a run with other ones.
        InputError: if there is nothing to learn from, or something that the model cannot be shown.
    """
    from transformers import AutoTokenizer, EarlyStoppingCallback
    from trl import GRPOConfig

    defaults = {
        "shuffle_dataset": False,  # the order is ours: twins are neighbours
        "num_generations_eval": recipe.dev_samples,
        "metric_for_best_model": "eval_accuracy",
        "greater_is_better": True,
        "load_best_model_at_end": recipe.training.get("eval_strategy", "no") != "no",
        "beta": 0.0,
        "report_to": "none",
    }
    settings = GRPOConfig(**{**defaults, **recipe.training})
    checked(recipe, settings)
    folder = TrainingFolder(recipe)
    if folder.finished:
        return
    source = str(embedded_model_path()) if recipe.model == "embedded" else recipe.model
    make_known(source)
    tokenizer = AutoTokenizer.from_pretrained(source, padding_side="left")
    train = asked(recipe, "train", tokenizer)
    dev = [] if settings.eval_strategy == "no" else asked(recipe, "dev", tokenizer)
    rows, dev_rows = rows_of(train, 0, tokenizer, recipe), rows_of(dev, len(train), tokenizer, recipe)
    processing = processing_class(source, tokenizer, [*rows, *dev_rows])
    bound = longest_prompt(source, settings)
    twins = partial(are_twins, [*train, *dev])
    rows = fitting(alike(rows), processing, bound, twins)
    dev_rows = fitting(alike(dev_rows), processing, bound, twins) if dev_rows else []
    for some in (rows, dev_rows):
        check_modalities(some)
    ends = frozenset({tokenizer.eos_token_id, tokenizer.pad_token_id})
    scale = {True: "group", False: "none"}.get(settings.scale_rewards, settings.scale_rewards)
    joint = scale if recipe.joint_orders else None
    reward_func = VerdictReward([*train, *dev], ends, recipe.opened, recipe.both_orders_bonus, joint)
    reward_func.reader = recipe.reader()
    model, lora = model_of(recipe.model, recipe.adapter, recipe.lora, settings.model_init_kwargs)
    trainer = trainer_class(reward_func, pictured=processing is not tokenizer)(
        model=model,
        args=settings,
        reward_funcs=reward_func,
        train_dataset=data_set(rows),
        eval_dataset=data_set(dev_rows) if dev_rows else None,
        processing_class=processing,
        peft_config=lora,
        callbacks=[] if recipe.patience is None else [EarlyStoppingCallback(recipe.patience)],
    )
    if reward_func.reader is not None:
        check_timeout(trainer, reward_func.reader.config.judge_config(Question()), rank_and_world()[1])
    reward_func.ends |= frozenset(trainer.eos_token_ids)  # a model may have more of them than its tokenizer names
    try:
        folder.train(trainer)
    finally:
        if reward_func.reader is not None:
            reward_func.reader.close()
    trainer.save_model(str(folder.path))
    if trainer.is_world_process_zero():
        save_processor(source, tokenizer, folder.path)
        history = [entry for entry in trainer.state.log_history if "eval_accuracy" in entry]
        (folder.path / "dev.json").write_text(json.dumps(history, indent=2), encoding="utf-8")
        folder.finish()
        best = max((entry["eval_accuracy"] for entry in history), default=None)
        print(f"{len(rows)} problems; best dev accuracy {best}; saved to {folder.path}")


def main() -> None:
    """Read the config and train."""
    parser = command_line(__doc__)
    args = parser.parse_args()
    train(RLRecipe(**read_config(args.config, args.overrides)))


if __name__ == "__main__":
    main()
