"""The judge as a reward function of TRL: GRPO, RLOO, and OnlineDPO's pairs.

>>> from mrjudge_reward.config import JudgeConfig
>>> reward = JudgeReward(JudgeConfig(), num_generations=8)
>>> reward.__name__
'judge'

Then ``GRPOTrainer(reward_funcs=reward, ...)`` or ``RLOOTrainer(reward_funcs=reward, ...)``.

What TRL does, and what this adapter makes of it (trl 1.16, ``trainer/grpo_trainer.py``):

* A reward function sees the rows of its own rank only, groups in contiguous blocks of ``num_generations``. Only the
  global batch has to divide by it, so a group can straddle ranks. Where it does, rows are gathered, every group is
  judged once (groups are dealt out over ranks), and each rank returns its own rows.
* ``num_generations`` is not passed, so it is an argument here, and is checked against the trainer. Groups are cut by
  block, never by prompt text. Evaluation may use another size (``num_generations_eval``).
* ``None`` means "not scored" and leaves a row out of its group's baseline, but only while no other reward function
  scores it; otherwise TRL counts our part as 0. ``on_abstain="auto"`` therefore gives None where the judge is the only
  reward function and the group's mean where it is not (None as well where TRL normalises each by itself: then what is not
  scored counts as the mean). A judge that failed never becomes a score.
* Images come in the columns ``image`` or ``images``, or as parts of the prompt's messages: the judge sees what the policy
  saw.

Rows that a rollout has judged already (``rollout``) are not judged again: their scores come in a column.

OnlineDPO has no way to leave out a pair: rows it cannot tell apart count as "first one preferred". Use
``JudgeOnlineDPOTrainer``, which takes such pairs out of the loss.
"""

from __future__ import annotations

import itertools
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from mrjudge_reward.config import JudgeSettings
from mrjudge_reward.errors import ConfigError, EngineError, InputError
from mrjudge_reward.judge import Judge, JudgeConfig
from mrjudge_reward.messages import Message, as_messages, final_answer
from mrjudge_reward.monitoring.canaries import Canaries, CanaryReport
from mrjudge_reward.monitoring.explain import verdict_line
from mrjudge_reward.monitoring.monitor import RunMonitor
from mrjudge_reward.reasoning import THINK_OPEN, decode_marked, hidden_tokens, opens_reasoning, split_reasoning
from mrjudge_reward.reranker import part_of
from mrjudge_reward.scoring.criteria import component
from mrjudge_reward.scoring.rewards import OnAbstain, RewardShape, reward_group
from mrjudge_reward.scoring.stats import JudgeStats
from mrjudge_reward.training.items import with_images
from mrjudge_reward.types import Group, Judgement

from .distributed import gather, gather_results, rank_and_world

if TYPE_CHECKING:
    from .components import CriterionReward

logger = logging.getLogger(__name__)

_instances = itertools.count(1)

Layout: TypeAlias = Literal["blocks", "halves"]
Abstain: TypeAlias = Literal["auto", "none", "group_mean"]
Thinking: TypeAlias = Literal["strip", "opened", "keep"]
Prompt: TypeAlias = str | Sequence[Mapping[str, Any]]
Completion: TypeAlias = str | Sequence[Mapping[str, Any]]


STEPS_KEPT = 256
"""Steps whose calls are counted: those of a trainer that runs ahead may come mixed, and none comes from long ago."""

JUDGED = "mrjudge_judged"
"""The column in which a rollout hands over what it has judged already."""


@dataclass(frozen=True)
class JudgedRow:
    """A completion that a rollout has judged, maybe among more than are trained on: candidate ``index`` of the judgement."""

    judgement: Judgement
    index: int


@dataclass(frozen=True)
class _Row:
    """One completion, as it travels between ranks."""

    prompt: Prompt | tuple[Message, ...]
    answer: str
    length: int
    reference: str | None
    rubric: Any
    judged: JudgedRow | None
    asked: bool


@dataclass(frozen=True)
class _Judged:
    """What one rank found out about the groups it judged."""

    rewards: dict[int, tuple[float | None, ...]]
    verdicts: dict[int, str]
    criteria: dict[int, dict[str, tuple[float | None, ...]]]
    stats: JudgeStats
    canaries: CanaryReport | None = None
    weights_checksum: str = ""


@dataclass(frozen=True)
class _Moment:
    """When a call came: in training or evaluation, at which step (from 0), as which call of that step."""

    mode: str
    step: int
    again: int

    @property
    def key(self) -> str:
        return f"{self.mode}/{self.step}/{self.again}"


def _among(rows: Sequence[JudgedRow]) -> Judgement:
    """The judgement of those completions alone that are trained on, at the cost of the whole."""
    whole = rows[0].judgement
    part = part_of(whole, [row.index for row in rows])
    return replace(part, calls=whole.calls, cache_hits=whole.cache_hits, usage=whole.usage, seconds=whole.seconds)


def completion_text(completion: Completion) -> str:
    """The text of a completion: a string as it is, of messages the last assistant turn."""
    if isinstance(completion, str):
        return completion
    turns = [message for message in as_messages(completion) if message.role == "assistant"]
    return turns[-1].text if turns else ""


def _tokenizer(trainer: Any) -> Any:
    processor: Any = getattr(trainer, "processing_class", None)
    return getattr(processor, "tokenizer", processor)


def _unless_cut(text: str, tokenizer: Any, ids: Sequence[int]) -> str:
    """A turn's text, as an open reasoning if the reasoning that its template opened was never closed.

    Of such a turn TRL's parser makes all content, and of one that was closed and empty too, so that the text does not tell.
    """
    return f"{THINK_OPEN}{text}" if split_reasoning(decode_marked(tokenizer, ids), opened=True)[1] else text


def _texts(completions: Sequence[Completion], ids: Sequence[Sequence[int]] | None, trainer: Any) -> list[str]:
    """Texts of completions, with marks of reasoning that TRL skipped in decoding because they are special tokens."""
    texts = [completion_text(completion) for completion in completions]
    tokenizer = _tokenizer(trainer)
    hidden = hidden_tokens(tokenizer)
    if not hidden or ids is None:
        return texts
    return [  # where TRL did more than decode, as with tools, its text stands
        decode_marked(tokenizer, row, hidden) if tokenizer.decode(row, skip_special_tokens=True) == text else text
        for text, row in zip(texts, ids, strict=True)
    ]


def _without_answers(messages: Sequence[Prompt] | None) -> list[Prompt]:
    """The prompts of chats that end in what is judged."""
    if messages is None:
        raise InputError(
            "one list came, without the column 'messages': a reward function is called with prompts and completions (TRL), "
            "or with completions and messages=[...] (ms-swift)"
        )
    ends = [isinstance(chat[-1], Mapping) and chat[-1].get("role") == "assistant" for chat in messages]
    return [chat[:-1] if answered else chat for chat, answered in zip(messages, ends, strict=True)]


def _with_images(prompt: Prompt, columns: Mapping[str, Sequence[Any]], row: int) -> Prompt | tuple[Message, ...]:
    """A prompt with the images of its dataset columns, unless it shows images already (TRL puts them in for itself)."""
    images = columns["images"][row] if "images" in columns else None
    if images is None and "image" in columns and columns["image"][row] is not None:
        images = [columns["image"][row]]
    if not images or any(part.image is not None for message in as_messages(prompt) for part in message.images):
        return prompt
    return with_images(prompt, images)


class JudgeReward:
    """A judge for ``reward_funcs=``. Picklable; a config is turned into a judge on first use in each process.

    May be called from several threads at once, as AsyncGRPO does; what is kept of the latest call is then any call's.

    Args:
        judge: a config, or a ready judge.
        num_generations: completions per prompt, as in the trainer's config.
        num_generations_eval: the same in evaluation; None for ``num_generations``.
        layout: ``"blocks"``, a group's rows follow each other (GRPO, RLOO); ``"halves"``, row i and row i + n/2 are a
            pair (OnlineDPO).
        on_abstain: what stands for an unknown score: ``"none"``, ``"group_mean"``, or ``"auto"`` (see the module).
        shape: centring and length term; None for the config's own.
        reference_column, rubric_column: dataset columns shown to the judge as reference answer and criteria.
        judged_if: which groups are judged at all: a column that is true for them, or a function of a row's columns (to be
            picklable, of a module). The others get None, so that a verifiable reward beside the judge stands alone there.
        thinking: what becomes of the policy's own reasoning: ``"strip"`` judges what follows it (``final_answer``); where
            the trainer's chat template opens the reasoning itself, a completion that never closes it holds no answer.
            ``"opened"`` is for a caller whose template opens it and is not to be seen, ``"keep"`` judges everything.
        name: of the metrics; every instance has its own.
        log_dir: folder for the run's log, which ``mrjudge report`` shows (see ``monitoring.run_log``); the trainer's
            ``output_dir`` is a good one. What the trainer logs goes in too. None for no log.
        canaries: groups of known order that are judged now and then (see ``monitoring.canaries``). The first rank judges
            them, in the judge's own turn on its device; what comes of it reaches all ranks.

    Attributes:
        last_stats: of the latest call, over all ranks.
        last_judgements: of the latest call, those made on this rank; with ``SelectingRollout`` they are of all candidates.
        abstained_rows: rows of the latest call whose reward is None.
        last_canaries: the latest measurement with canaries; None before any.

    Raises:
        ConfigError: if a setting is unknown, a number of generations is below 1, or ``halves`` goes with anything but 2.
    """

    def __init__(
        self,
        judge: JudgeConfig | Judge | None = None,
        *,
        num_generations: int,
        num_generations_eval: int | None = None,
        layout: Layout = "blocks",
        on_abstain: Abstain = "auto",
        shape: RewardShape | None = None,
        reference_column: str | None = None,
        rubric_column: str | None = None,
        judged_if: str | Callable[[Mapping[str, Any]], bool] | None = None,
        thinking: Thinking = "strip",
        name: str | None = None,
        log_dir: str | os.PathLike[str] | None = None,
        canaries: Canaries | None = None,
    ) -> None:
        self._config = judge if isinstance(judge, JudgeConfig) else JudgeConfig() if judge is None else None
        self._judge = judge if isinstance(judge, Judge) else None
        self.num_generations = num_generations
        self.num_generations_eval = num_generations_eval if num_generations_eval is not None else num_generations
        if min(self.num_generations, self.num_generations_eval) < 1:
            raise ConfigError("num_generations must be at least 1")
        choices = (("layout", layout, Layout), ("on_abstain", on_abstain, Abstain), ("thinking", thinking, Thinking))
        for setting, value, known in choices:
            if value not in get_args(known):
                raise ConfigError(f"{setting} must be one of {', '.join(get_args(known))}; got {value!r}")
        if layout == "halves" and (self.num_generations, self.num_generations_eval) != (2, 2):
            raise ConfigError("layout 'halves' is for OnlineDPO, which generates 2 completions per prompt")
        self.layout = layout
        self.on_abstain = on_abstain
        self.shape = shape or (self._config.reward_shape if self._config else RewardShape())
        self.reference_column = reference_column
        self.rubric_column = rubric_column
        self.judged_if = judged_if
        self.thinking = thinking
        number = next(_instances)
        self.__name__ = name or ("judge" if number == 1 else f"judge_{number}")
        self.last_stats = JudgeStats()
        self.last_judgements: list[Judgement] = []
        self.abstained_rows: tuple[int, ...] = ()
        self.pairs_can_be_left_out = False
        self._template_opens: bool | None = None
        self.last_canaries: CanaryReport | None = None
        self._watch = RunMonitor(log_dir, self.__name__, canaries)
        self._follower: Any = None
        self._untold: Counter[str] = Counter()
        self._calls: dict[tuple[str, int], int] = {}
        self._lock, self._judging = threading.RLock(), threading.Lock()

    @property
    def judge_settings(self) -> JudgeSettings:
        """The judge's settings, for which it need not be built."""
        return self._config if self._config is not None else self.judge.settings

    @property
    def judge(self) -> Judge:
        """The judge, built on first use."""
        with self._lock:
            if self._judge is None:
                assert self._config is not None
                self._judge = self._config.build()
            return self._judge

    def __getstate__(self) -> dict[str, Any]:
        state = {name: value for name, value in vars(self).items() if name not in ("_lock", "_judging")}
        return state | {"_follower": None} | ({"_judge": None} if self._config is not None else {})

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=threading.RLock(), _judging=threading.Lock())

    def __call__(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[Completion] | None = None,
        completion_ids: Sequence[Sequence[int]] | None = None,
        trainer_state: Any = None,
        log_extra: Callable[[str, list[Any]], None] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """Score this rank's rows.

        Args:
            prompts, completions, completion_ids: parallel lists, as TRL passes them. Length n. With one list alone it is
                the completions and the prompts are in the column ``messages``, as ms-swift calls a reward function.
            trainer_state: for the step number, which enters the groups' identity.
            log_extra, log_metric: TRL's loggers; absent in OnlineDPO.
            columns: the dataset's other columns, each of length n.

        Returns:
            n rewards, None where the framework's "not scored" must stand.

        Raises:
            InputError: if the rows do not form groups.
            ConfigError: if ``num_generations`` differs from the trainer's.
            EngineError: if ranks loaded different judges.
            JudgeUnreliableError: if too many judgements failed (on any rank, then on all).
            JudgeDriftedError: if the judge fails canaries that are set to stop the run (then on all ranks, too).
        """
        return self.judged(prompts, completions, completion_ids, trainer_state, log_extra, log_metric, **columns)[0]

    def components(self) -> list[CriterionReward]:
        """A reward function per criterion of the run's rubric, all out of one judging (see ``components``).

        Raises:
            ConfigError: if the judge does not judge by criteria that are the same for all prompts.
        """
        from .components import components

        return components(self)

    def judged(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[Completion] | None = None,
        completion_ids: Sequence[Sequence[int]] | None = None,
        trainer_state: Any = None,
        log_extra: Callable[[str, list[Any]], None] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        **columns: Any,
    ) -> tuple[list[float | None], dict[str, list[float | None]]]:
        """As a call, with the rows' rewards by each criterion besides, where the judge judges by criteria."""
        began = time.perf_counter()
        if completions is None:
            prompts, completions = _without_answers(columns.get("messages")), prompts
        trainer: Any = getattr(log_metric, "__self__", None)
        training = bool(trainer.model.training) if hasattr(trainer, "model") else True
        size = self.num_generations if training else self.num_generations_eval

        def prepare() -> list[_Row]:
            self._check_trainer(trainer, training, size)
            texts = _texts(completions, completion_ids, trainer)
            if self.thinking == "strip" and completion_ids is not None and trainer is not None:
                for row, (prompt, said) in enumerate(zip(prompts, completions, strict=True)):
                    if len(said) == 1 and self.template_opens(trainer, prompt):
                        texts[row] = _unless_cut(texts[row], _tokenizer(trainer), completion_ids[row])
            rows = self._rows(prompts, texts, completion_ids, columns)
            half = len(rows) // 2
            pairs = zip(rows[:half], rows[half:], strict=True) if self.layout == "halves" else ()
            return [row for pair in pairs for row in pair] or rows

        moment = self._now("train" if training else "eval", trainer_state)
        on_abstain: OnAbstain = "none"
        if self.on_abstain != "auto":
            on_abstain = self.on_abstain
        elif self.layout == "blocks" and (trainer is None or len(getattr(trainer, "reward_funcs", [0, 0])) > 1):
            apart = getattr(trainer, "multi_objective_aggregation", "") == "normalize_then_sum"
            on_abstain = "none" if apart else "group_mean"
        self._follow(trainer)
        before = self.last_canaries
        rewards, verdicts, criteria = self._score(prepare, size, moment, on_abstain)
        if self._follower is not None:
            self._follower.judged(began, time.perf_counter())
        canaries = self.last_canaries if self.last_canaries is not before else None
        self._log(verdicts, log_extra, log_metric, canaries)
        if self.layout == "halves":
            rewards = [*rewards[0::2], *rewards[1::2]]
        self.abstained_rows = tuple(index for index, reward in enumerate(rewards) if reward is None)
        return rewards, criteria

    def _follow(self, trainer: Any) -> None:
        """Log what a trainer logs, and where its seconds go; once per trainer."""
        writer = self._watch.writer(rank_and_world()[0]) if hasattr(trainer, "add_callback") else None
        if writer is not None and self._follower is None:
            from .callback import RunLogCallback

            self._follower = RunLogCallback(writer)
            trainer.add_callback(self._follower)

    # -- what came in -------------------------------------------------------------------------------------------------

    def _check_trainer(self, trainer: Any, training: bool, size: int) -> None:
        if self.layout == "halves" and not self.pairs_can_be_left_out:
            raise ConfigError(
                "OnlineDPOTrainer prefers the first completion of a pair that was not judged. Use "
                "mrjudge_reward.integrations.trl.online_dpo.JudgeOnlineDPOTrainer, which leaves such pairs out"
            )
        name = "num_generations" if training else "num_generations_eval"
        theirs = getattr(trainer, name, None)
        if theirs is not None and theirs != size:
            raise ConfigError(f"the trainer's {name} is {theirs}, this reward was made for {size}; give both the same")

    def _rows(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[str],
        completion_ids: Sequence[Sequence[int]] | None,
        columns: Mapping[str, Any],
    ) -> list[_Row]:
        if len(prompts) != len(completions):
            raise InputError(f"{len(prompts)} prompts for {len(completions)} completions")
        answers = [self.answer_of(completion, False) for completion in completions]
        lengths = [len(ids) for ids in completion_ids] if completion_ids is not None else [len(a) for a in answers]

        def column(name: str) -> Sequence[Any]:
            if name not in columns:
                raise ConfigError(f"the dataset has no column {name!r}; it has {', '.join(sorted(columns)) or 'none'}")
            return list(columns[name])

        def texts(name: str | None) -> Sequence[Any]:
            values = [None] * len(prompts) if name is None else column(name)
            # A dataset of numeric answers is common, and means their numerals.
            return [str(value) if isinstance(value, int | float) else value for value in values]

        references, rubrics = texts(self.reference_column), texts(self.rubric_column)
        judged: Sequence[JudgedRow | None] = columns.get(JUDGED) or [None] * len(prompts)
        for row, (known, answer) in enumerate(zip(judged, answers, strict=True)):
            if known is not None and known.judgement.group.candidates[known.index] != answer:
                raise InputError(
                    f"row {row} is not the text that the rollout judged: the trainer parses completions in its own way "
                    "(a response template?); leave out rollout_func"
                )
        shown = [_with_images(prompt, columns, index) for index, prompt in enumerate(prompts)]
        if callable(self.judged_if):
            asked = [bool(self.judged_if({name: of[i] for name, of in columns.items()})) for i in range(len(prompts))]
        else:
            asked = [True] * len(prompts) if self.judged_if is None else list(map(bool, column(self.judged_if)))
        return list(map(_Row, shown, answers, lengths, references, rubrics, judged, asked))

    def template_opens(self, trainer: Any, prompt: Prompt | tuple[Message, ...]) -> bool:
        """Whether the trainer's chat template opens the reasoning; none is applied to a prompt that is plain text."""
        if self._template_opens is None:
            tokenizer = getattr(trainer, "processing_class", None)
            self._template_opens = opens_reasoning(tokenizer, getattr(trainer, "chat_template_kwargs", None))
        return self._template_opens and not isinstance(prompt, str)

    def answer_of(self, text: str, opened: bool) -> str:
        """What of a completion's text is judged, where a template opened the reasoning or did not."""
        return text if self.thinking == "keep" else final_answer(text, opened or self.thinking == "opened")

    def _now(self, mode: str, trainer_state: Any) -> _Moment:
        """A trainer that tells no step is taken to make one with each call."""
        with self._lock:
            told = getattr(trainer_state, "global_step", None)
            step = int(told) if told is not None else self._untold[mode]
            self._untold[mode] += told is None
            again = self._calls.get((mode, step), 0)
            self._calls[mode, step] = again + 1
            if len(self._calls) > STEPS_KEPT:
                del self._calls[next(iter(self._calls))]
            return _Moment(mode, step, again)

    # -- judging, over ranks --------------------------------------------------------------------------------------------

    def _score(
        self, prepare: Callable[[], list[_Row]], size: int, moment: _Moment, on_abstain: OnAbstain
    ) -> tuple[list[float | None], list[str], dict[str, list[float | None]]]:
        rank, world = rank_and_world()
        rows: list[_Row] = []

        def prepared() -> int:
            rows.extend(prepare())
            return len(rows)

        counts = gather_results(prepared, world)
        if sum(counts) % size:
            raise InputError(
                f"{sum(counts)} completions do not form groups of {size}: num_generations of the trainer and of this "
                "reward must be the same"
            )
        straddling = any(count % size for count in counts)
        offset = 0 if straddling else sum(counts[:rank])  # of the rows judged here, in the global order
        known = [row for share in gather(rows, world) for row in share] if straddling else rows
        mine = range(rank if straddling else 0, len(known) // size, world if straddling else 1)
        results = gather_results(
            lambda: self._judge_blocks(known, mine, size, moment, offset // size, on_abstain), world
        )
        if len(weights := {result.weights_checksum for result in results}) > 1:
            raise EngineError(
                f"the judge's weights differ between ranks (checksums {', '.join(sorted(weights))}), so that ranks would "
                "reward by different judges: check that all ranks load the same files, or use a server (base_url)"
            )
        self.last_stats = sum((result.stats for result in results), JudgeStats())
        self.last_canaries = next((r.canaries for r in results if r.canaries is not None), self.last_canaries)
        rewards_of: dict[int, tuple[float | None, ...]] = {}
        verdicts_of: dict[int, str] = {}
        criteria_of: dict[int, dict[str, tuple[float | None, ...]]] = {}
        for result in results if straddling else [results[rank]]:
            rewards_of |= result.rewards
            verdicts_of |= result.verdicts
            criteria_of |= result.criteria
        blocks = range(len(known) // size)
        rewards = [reward for block in blocks for reward in rewards_of[block]]
        verdicts = [verdicts_of[block] for block in blocks for _ in range(size)]
        local = slice(sum(counts[:rank]), sum(counts[: rank + 1])) if straddling else slice(None)
        names = dict.fromkeys(name for found in criteria_of.values() for name in found)
        unknown = ((0.0 if on_abstain == "group_mean" else None),) * size
        criteria = {
            name: [reward for block in blocks for reward in criteria_of.get(block, {}).get(name, unknown)][local]
            for name in names
        }
        return rewards[local], verdicts[local], criteria

    def _judge_blocks(
        self,
        rows: Sequence[_Row],
        blocks: Sequence[int],
        size: int,
        moment: _Moment,
        first_block: int,
        on_abstain: OnAbstain,
    ) -> _Judged:
        groups: dict[int, Group] = {}
        known: dict[int, list[JudgedRow]] = {}
        rewards: dict[int, tuple[float | None, ...]] = dict.fromkeys(blocks, (None,) * size)
        verdicts = dict.fromkeys(blocks, "not judged")
        criteria: dict[int, dict[str, tuple[float | None, ...]]] = {}
        blocks = [block for block in blocks if any(row.asked for row in rows[block * size : (block + 1) * size])]
        for block in blocks:
            members = rows[block * size : (block + 1) * size]
            if any(member.prompt != members[0].prompt for member in members):
                raise InputError(
                    f"rows {block * size}..{(block + 1) * size - 1} should answer one prompt and do not: check "
                    "num_generations, or set layout='halves' for OnlineDPO"
                )
            head = members[0]
            if not all(member.asked for member in members):
                raise InputError(f"judged_if is true for some rows of a group alone ({block * size}..)")
            found = [member.judged for member in members if member.judged is not None]
            if len(found) == size and all(one.judgement is found[0].judgement for one in found):
                known[block] = found
                continue
            answers = [member.answer for member in members]
            groups[block] = Group.of(
                head.prompt, answers, f"{moment.key}/{first_block + block}", head.reference, head.rubric
            )
        rank, _ = rank_and_world()
        step, engine = moment.step + 1, self.judge.engine
        with self._lock:
            due = rank == 0 and moment.mode == "train" and self._watch.due(step)
        measured = None
        with (
            nullcontext() if engine.concurrent_calls else self._judging,
            engine.session() if due else nullcontext(),  # a colocated judge wakes once for both
        ):
            fresh = dict(zip(groups, self.judge.judge(list(groups.values())), strict=True))
            if due:
                measured = self._watch.measure(self.judge, step)
        whole = {block: fresh[block] if block in fresh else known[block][0].judgement for block in blocks}
        self.last_judgements = list(whole.values())
        neutral = self.judge.rating.neutral or 0.0
        trained = [_among(known[block]) if block in known else whole[block] for block in blocks]
        lengths = [[row.length for row in rows[block * size : (block + 1) * size]] for block in blocks]
        for block, judgement, lengths_G in zip(blocks, trained, lengths, strict=True):
            rewards[block] = reward_group(judgement, self.shape, on_abstain, lengths_G, neutral).rewards_G
            criteria[block] = {
                one.criterion.name: component(one, judgement.forfeits, on_abstain == "group_mean")
                for one in judgement.criteria
            }
            verdicts[block] = verdict_line(judgement.played[0]) if judgement.played else "nothing to compare"
        shaped = [rewards[block] for block in blocks]
        with self._lock:
            self._watch.log(rank, step, moment.mode, self.judge, trained, shaped, lengths, measured)
        if measured is not None:
            self._watch.stop_if_asked(measured)
        # Of a rollout that judged more than is trained on, all of it counts.
        stats = JudgeStats.of(self.last_judgements) if known else JudgeStats.of(trained, shaped, lengths)
        return _Judged(rewards, verdicts, criteria, stats, measured, self.judge.engine.weights_checksum)

    # -- what goes out --------------------------------------------------------------------------------------------------

    def _log(
        self,
        verdicts: list[str],
        log_extra: Callable[[str, list[Any]], None] | None,
        log_metric: Callable[[str, float], None] | None,
        canaries: CanaryReport | None,
    ) -> None:
        stats = self.last_stats
        if stats.abstained or stats.failed:
            logger.warning(
                "%s: %d of %d judgements failed, %d of %d completions left without a score%s",
                self.__name__, stats.failed, stats.comparisons, stats.abstained, stats.candidates,
                f"; {stats.failures}; {stats.advice}" if stats.failures else "",
            )  # fmt: skip
        if log_metric is not None:
            for name, value in (stats.metrics() | (canaries.metrics() if canaries is not None else {})).items():
                log_metric(f"{self.__name__}/{name}", value)
            for criterion, found in stats.criteria.items():
                for name, value in found.metrics().items():
                    log_metric(f"{self.__name__}/criteria/{criterion}/{name}", value)
        if log_extra is not None:
            log_extra(f"{self.__name__}/verdict", verdicts)
