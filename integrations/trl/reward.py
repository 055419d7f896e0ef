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
  reward function or each is normalised by itself (``multi_objective_aggregation="normalize_then_sum"``), and the group's
  mean elsewhere: also where a trainer's state comes without the trainer, so that nobody knows what else rewards. Called as
  a plain function, without either, it gives None. A judge that failed never becomes a score.
* With ``environment_factory`` what ``reset()`` says may differ from rollout to rollout. The judge is then asked what their
  prompts begin with, in whole messages, and told the rest beside each completion. All other rows of a group must have one
  prompt.
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

from mrjudge_reward.completions import View
from mrjudge_reward.config import JudgeSettings
from mrjudge_reward.errors import ConfigError, EngineError, InputError
from mrjudge_reward.judge import Judge, JudgeConfig
from mrjudge_reward.monitoring.canaries import Canaries, CanaryReport
from mrjudge_reward.monitoring.explain import verdict_line
from mrjudge_reward.monitoring.monitor import RunMonitor
from mrjudge_reward.prompting.rendering import check_places
from mrjudge_reward.reranker import part_of
from mrjudge_reward.scoring.criteria import component
from mrjudge_reward.scoring.rewards import OnAbstain, RewardShape, check_anchors, reward_group
from mrjudge_reward.scoring.stats import JudgeStats
from mrjudge_reward.types import Group, Judgement

from .distributed import check_timeout, gather, gather_results, rank_and_world
from .rows import Completion, JudgedRow, Prompt, Row, RowReader, Thinking, alike, common_prompt, prompts_of

if TYPE_CHECKING:
    from .callback import RunLogCallback
    from .components import CriterionReward

logger = logging.getLogger(__name__)

_instances = itertools.count(1)

Layout: TypeAlias = Literal["blocks", "halves"]
Abstain: TypeAlias = Literal["auto", "none", "group_mean"]

STEPS_KEPT = 256
"""Steps whose calls are counted: those of a trainer that runs ahead may come mixed, and none comes from long ago."""


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


def counts_none_as_zero(trainer: Any) -> bool:
    """Whether a None of ours would count as a reward of 0: beside another reward function that scores the row. Where each
    function is normalised by itself it counts as the group's mean, and leaves the others' spread alone."""
    alone = trainer is not None and len(getattr(trainer, "reward_funcs", [0, 0])) < 2
    return not alone and getattr(trainer, "multi_objective_aggregation", "") != "normalize_then_sum"


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
        shape: centring and length term; None for those in the judge's settings.
        reference_column, rubric_column: dataset columns, or dotted paths to fields in them, shown to the judge as reference
            answers and criteria: texts, numbers, or lists of these (see ``fields``).
        anchor_column: the same for answers that are judged along with each group's completions, such as references or an
            earlier policy's: rewards are then relative to theirs, 0 is as good (see ``scoring.levels``). A group without
            any abstains.
        judged_if: which groups are judged at all: a column that is true for them, or a function of a row's columns (to be
            picklable, of a module). The others get None, so that a verifiable reward beside the judge stands alone there.
        thinking: what becomes of the policy's own reasoning: ``"strip"`` judges what follows it (``final_answer``); where
            the trainer's chat template or a plain-text prompt opens it, a completion that never closes it holds no answer.
            ``"opened"`` is for a caller whose template opens it and is not to be seen, ``"keep"`` judges everything.
        view: ``"transcript"`` judges all that a policy did, its calls with their results and its words between them,
            ``"final"`` its last turn alone (see ``completions``). Of a completion of one turn they are the same.
        name: of the metrics; every instance has its own.
        log_dir: folder for the run's log, which ``mrjudge report`` shows (see ``monitoring.run_log``); the trainer's
            ``output_dir`` is a good one. What the trainer logs goes in too. None for no log.
        canaries: groups of known order that are judged now and then (see ``monitoring.canaries``). The first rank judges
            them, in the judge's own turn on its device; what comes of it reaches all ranks.

    Attributes:
        last_stats: of the latest call, over all ranks.
        last_judgements: of the latest call, those made on this rank; with ``SelectingRollout`` they are of all candidates.
        abstained_rows: rows of the latest call that were to be judged and have no reward.
        last_canaries: the latest measurement with canaries; None before any.

    Raises:
        ConfigError: if a setting is unknown, a number of generations is below 1, ``halves`` goes with anything but 2, the
            judge's wording has no place for what a column brings, or anchors would do nothing.
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
        anchor_column: str | None = None,
        judged_if: str | Callable[[Mapping[str, Any]], bool] | None = None,
        thinking: Thinking = "strip",
        view: View = "transcript",
        name: str | None = None,
        log_dir: str | os.PathLike[str] | None = None,
        canaries: Canaries | None = None,
    ) -> None:
        self._config = judge if isinstance(judge, JudgeConfig) else JudgeConfig() if judge is None else None
        self._judge = judge if isinstance(judge, Judge) else None
        self._lock, self._judging = threading.RLock(), threading.Lock()
        self.num_generations = num_generations
        self.num_generations_eval = num_generations_eval if num_generations_eval is not None else num_generations
        if min(self.num_generations, self.num_generations_eval) < 1:
            raise ConfigError("num_generations must be at least 1")
        choices = (
            ("layout", layout, Layout), ("on_abstain", on_abstain, Abstain), ("thinking", thinking, Thinking),
            ("view", view, View),
        )  # fmt: skip
        for setting, value, known in choices:
            if value not in get_args(known):
                raise ConfigError(f"{setting} must be one of {', '.join(get_args(known))}; got {value!r}")
        if layout == "halves" and (self.num_generations, self.num_generations_eval) != (2, 2):
            raise ConfigError("layout 'halves' is for OnlineDPO, which generates 2 completions per prompt")
        self.layout = layout
        self.on_abstain = on_abstain
        self.shape = shape or self.judge_settings.reward_shape
        check_places(
            judge.format if isinstance(judge, Judge) else (judge or JudgeConfig()).judge_format,
            reference=reference_column and f"reference_column={reference_column!r}",
            rubric=rubric_column and f"rubric_column={rubric_column!r}",
        )
        check_anchors(f"anchor_column={anchor_column!r}", anchor_column, reference_column, self.shape)
        if anchor_column is not None and layout == "halves":
            raise ConfigError(
                "anchor_column does nothing with layout 'halves': a pair's order is the same at any level"
            )
        self.reader = RowReader(
            reference_column, rubric_column, judged_if, thinking, view, self.judge_settings.criteria is not None,
            anchor_column,
        )  # fmt: skip
        number = next(_instances)
        self.__name__ = name or ("judge" if number == 1 else f"judge_{number}")
        self.last_stats = JudgeStats()
        self.last_judgements: list[Judgement] = []
        self.abstained_rows: tuple[int, ...] = ()
        self.pairs_can_be_left_out = False
        self.last_canaries: CanaryReport | None = None
        self._watch = RunMonitor(log_dir, self.__name__, canaries)
        self._untold: Counter[str] = Counter()
        self._calls: dict[tuple[str, int], int] = {}

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
        return state | ({"_judge": None} if self._config is not None else {})

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
            log_extra, log_metric: TRL's loggers; OnlineDPO has none of its own.
            columns: the dataset's other columns, each of length n.

        Returns:
            n rewards, None where the framework's "not scored" must stand.

        Raises:
            InputError: if the rows do not form groups.
            ConfigError: if ``num_generations`` differs from the trainer's, or its ``ddp_timeout`` is less than the judge may
                take for one comparison.
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
            prompts, completions = prompts_of(columns.get("messages")), prompts
        trainer: Any = getattr(log_metric, "__self__", None)
        training = bool(trainer.model.training) if hasattr(trainer, "model") else True
        size = self.num_generations if training else self.num_generations_eval
        asked: list[bool] = []

        def prepare() -> list[Row]:
            self._check_trainer(trainer, training, size)
            check_timeout(trainer, self.judge_settings, rank_and_world()[1])
            rows = self.reader.rows(prompts, completions, completion_ids, columns, trainer)
            asked.extend(row.asked for row in rows)
            half = len(rows) // 2
            pairs = zip(rows[:half], rows[half:], strict=True) if self.layout == "halves" else ()
            return [row for pair in pairs for row in pair] or rows

        moment = self._now("train" if training else "eval", trainer_state)
        on_abstain: OnAbstain = "none"
        if self.on_abstain != "auto":
            on_abstain = self.on_abstain
        elif self.layout == "blocks" and not (trainer is trainer_state is None) and counts_none_as_zero(trainer):
            on_abstain = "group_mean"
        follower = self._following(trainer)
        before = self.last_canaries
        rewards, verdicts, criteria = self._score(prepare, size, moment, on_abstain)
        if follower is not None:
            follower.judged(began, time.perf_counter())
        canaries = self.last_canaries if self.last_canaries is not before else None
        self._log(verdicts, log_extra, log_metric, canaries)
        if self.layout == "halves":
            rewards = [*rewards[0::2], *rewards[1::2]]
        self.abstained_rows = tuple(i for i, reward in enumerate(rewards) if reward is None and asked[i])
        return rewards, criteria

    def _following(self, trainer: Any) -> RunLogCallback | None:
        """What logs what a trainer logs, and where its seconds go: one with each trainer. None where nothing is logged."""
        writer = self._watch.writer(rank_and_world()[0]) if hasattr(trainer, "callback_handler") else None
        if writer is None:
            return None
        from .callback import RunLogCallback

        for callback in trainer.callback_handler.callbacks:
            if isinstance(callback, RunLogCallback) and callback.log is writer:
                return callback
        trainer.add_callback(follower := RunLogCallback(writer))
        return follower

    # -- who calls, and when --------------------------------------------------------------------------------------------

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
        self, prepare: Callable[[], list[Row]], size: int, moment: _Moment, on_abstain: OnAbstain
    ) -> tuple[list[float | None], list[str], dict[str, list[float | None]]]:
        rank, world = rank_and_world()
        rows: list[Row] = []

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
        settings = self.judge_settings
        rubric = settings.rubric if settings.criteria != "implicit" else None
        of_run = rubric.names if rubric is not None else ()
        names = dict.fromkeys([*of_run, *(name for found in criteria_of.values() for name in found)])
        left_out = ((0.0 if on_abstain == "group_mean" else None),) * size  # the same for all of a judged group

        def of_block(block: int, name: str) -> tuple[float | None, ...]:
            """A group that was not judged has no reward by any criterion, as it has none in all."""
            return criteria_of[block].get(name, left_out) if block in criteria_of else (None,) * size

        criteria = {name: [reward for block in blocks for reward in of_block(block, name)][local] for name in names}
        return rewards[local], verdicts[local], criteria

    def _judge_blocks(
        self,
        rows: Sequence[Row],
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
            head, prompt, answers = members[0], members[0].prompt, [member.answer for member in members]
            if not all(alike(member.prompt, prompt) for member in members):
                if not all(member.of_environment for member in members):
                    raise InputError(
                        f"rows {block * size}..{(block + 1) * size - 1} should answer one prompt and do not: check "
                        "num_generations, or set layout='halves' for OnlineDPO. Only the environments of a trainer "
                        "(environment_factory) may ask each rollout something of its own"
                    )
                prompt, asked = common_prompt([member.prompt for member in members])
                answers = [answer.after(own) for answer, own in zip(answers, asked, strict=True)]
            if any(member.anchors != head.anchors for member in members):
                raise InputError(
                    f"rows {block * size}..{(block + 1) * size - 1} are one group and bring different anchors "
                    f"({self.reader.anchor_column}): check num_generations"
                )
            if not all(member.asked for member in members):
                raise InputError(f"judged_if is true for some rows of a group alone ({block * size}..)")
            found = [member.judged for member in members if member.judged is not None]
            if len(found) == size and all(one.judgement is found[0].judgement for one in found):
                known[block] = found
                continue
            groups[block] = Group.of(
                prompt,
                answers,
                f"{moment.key}/{first_block + block}",
                head.reference,
                head.rubric,
                anchors=head.anchors,
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
            # Of rubrics of rows there would be names without end, and one would stand for many criteria.
            rubric = self.judge_settings.rubric
            for criterion, key in zip(rubric.names, rubric.keys, strict=True) if rubric is not None else ():
                for name, value in stats.criteria[criterion].metrics().items() if criterion in stats.criteria else ():
                    log_metric(f"{self.__name__}/criteria/{key}/{name}", value)
        if log_extra is not None:
            log_extra(f"{self.__name__}/verdict", verdicts)
