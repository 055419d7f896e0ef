"""Real TRL trainers, a real policy, the embedded judge."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from datasets import Dataset
from peft import LoraConfig
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer
from trl.trainer.utils import nanstd

from mrjudge_reward.engines.scripted import ScriptedEngine
from mrjudge_reward.errors import ConfigError
from mrjudge_reward.integrations.trl import JudgeReward
from mrjudge_reward.judge import Judge, JudgeConfig
from mrjudge_reward.monitoring.canaries import Canaries
from mrjudge_reward.monitoring.run_log import read_run
from mrjudge_reward.prompting.formats import Choice, Score
from mrjudge_reward.scoring.alarms import FailureAlarm
from mrjudge_reward.scoring.stats import METRICS
from mrjudge_reward.types import EngineFailure, Request
from tests.support.trl_setup import PROMPTS, common, grpo_like, logged, prompt_dataset, tiny_policy


@pytest.fixture
def policy(request: pytest.FixtureRequest, smol_path: Path, smol_tokenizer: Any) -> Any:
    if getattr(request, "param", "tiny") == "tiny":
        return tiny_policy(smol_tokenizer)
    return transformers.AutoModelForCausalLM.from_pretrained(smol_path, dtype=torch.float32)


@pytest.fixture
def embedded_judge(smol_engine: Any) -> Judge:
    return JudgeConfig().build(smol_engine)


def lora() -> LoraConfig:
    return LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")


def is_changed(trainer: Any) -> bool:
    """Whether training moved the adapter: B starts at zero."""
    return any(
        bool(parameter.abs().sum() > 0) for name, parameter in trainer.model.named_parameters() if "lora_B" in name
    )


@pytest.mark.parametrize(
    ("trainer_class", "config_class", "policy"),
    [(GRPOTrainer, GRPOConfig, "embedded"), (RLOOTrainer, RLOOConfig, "tiny")],
    indirect=["policy"],
)
def test_a_policy_trains_on_the_embedded_judge(
    trainer_class: Any, config_class: Any, policy: Any, smol_tokenizer: Any, embedded_judge: Judge, tmp_path: Path
) -> None:
    reward = JudgeReward(embedded_judge, num_generations=4, name="judge")
    trainer = trainer_class(
        model=policy,
        processing_class=smol_tokenizer,
        reward_funcs=reward,
        train_dataset=prompt_dataset(),
        peft_config=lora(),
        args=config_class(**grpo_like(tmp_path, log_completions=False)),
    )
    trainer.train()
    assert is_changed(trainer)
    for metric in METRICS:
        assert len(logged(trainer, f"judge/{metric}")) == 2, metric
    assert all(spread > 0 for spread in logged(trainer, "rewards/judge/std"))
    assert logged(trainer, "judge/failed_rate") == [0.0, 0.0]
    assert all(calls > 0 for calls in logged(trainer, "judge/calls"))
    verdicts = trainer._logs["extra"]["judge/verdict"]
    assert len(verdicts) >= 8
    assert all("[#" in verdict for verdict in verdicts)


def test_a_policy_trains_on_listwise_choices(
    policy: Any, smol_tokenizer: Any, smol_engine: Any, tmp_path: Path
) -> None:
    judge = JudgeConfig(format="choice", schedule="listwise", both_orders=True, verdict="read").build(smol_engine)
    reward = JudgeReward(judge, num_generations=4, name="judge")
    trainer = GRPOTrainer(
        model=policy,
        processing_class=smol_tokenizer,
        reward_funcs=[reward],
        train_dataset=prompt_dataset(),
        peft_config=lora(),
        args=GRPOConfig(**grpo_like(tmp_path) | {"max_steps": 1}),
    )
    trainer.train()
    (consistency,) = logged(trainer, "judge/position_consistency")
    assert 0 <= consistency <= 1
    assert logged(trainer, "judge/calls") == [8.0]


def test_evaluation_may_use_another_group_size(smol_tokenizer: Any, embedded_judge: Judge, tmp_path: Path) -> None:
    reward = JudgeReward(embedded_judge, num_generations=4, num_generations_eval=2, name="judge")
    trainer = GRPOTrainer(
        model=tiny_policy(smol_tokenizer),
        processing_class=smol_tokenizer,
        reward_funcs=reward,
        train_dataset=prompt_dataset(),
        eval_dataset=prompt_dataset(),
        args=GRPOConfig(
            **grpo_like(
                tmp_path, num_generations_eval=2, per_device_eval_batch_size=8, eval_strategy="steps", eval_steps=2
            )
        ),
    )
    trainer.train()
    assert len(logged(trainer, "eval_judge/calls")) == 1
    assert len(logged(trainer, "judge/calls")) == 2
    assert reward.last_stats.groups == 4  # the last evaluation batch: 8 rows in groups of 2


def test_a_group_size_that_differs_from_the_trainers_is_refused(
    smol_tokenizer: Any, embedded_judge: Judge, tmp_path: Path
) -> None:
    trainer = GRPOTrainer(
        model=tiny_policy(smol_tokenizer),
        processing_class=smol_tokenizer,
        reward_funcs=JudgeReward(embedded_judge, num_generations=2),
        train_dataset=prompt_dataset(),
        args=GRPOConfig(**grpo_like(tmp_path)),
    )
    with pytest.raises(ConfigError, match="num_generations is 4, this reward was made for 2"):
        trainer.train()


def failing_judge(share_that_works: int) -> tuple[Judge, ScriptedEngine]:
    """A judge that answers only comparisons of a prompt's first few candidates, by the length of their texts."""
    working = ScriptedEngine.by_utility(len)

    def script(request: Request) -> Any:
        if share_that_works == 0:
            return EngineFailure("down")
        seen = len(engine.requests)
        return working.script(request) if seen % 3 else EngineFailure("down")

    engine = ScriptedEngine(script)
    return Judge(engine, Choice(), schedule="ring", retries=0, alarm=FailureAlarm(max_fraction=1.0)), engine


def always_on(completions: list[str], **_: Any) -> list[float]:
    return [10.0 * (index % 4) for index in range(len(completions))]


@pytest.mark.parametrize("works", [0, 1])
def test_abstention_next_to_a_second_reward_is_not_turned_into_zero(
    works: int, smol_tokenizer: Any, tmp_path: Path
) -> None:
    """TRL adds up what is there: None from the judge would count as 0. The group's mean has no effect instead."""
    judge, _ = failing_judge(works)
    reward = JudgeReward(judge, num_generations=4, name="judge")
    trainer = GRPOTrainer(
        model=tiny_policy(smol_tokenizer),
        processing_class=smol_tokenizer,
        reward_funcs=[reward, always_on],
        train_dataset=prompt_dataset(),
        args=GRPOConfig(**grpo_like(tmp_path, scale_rewards="none")),
    )
    trainer.train()
    table = trainer._logs["rewards"]["judge"]
    rows = [list(table)[i : i + 4] for i in range(0, len(table), 4)]
    advantages = list(trainer._logs["advantages"])
    groups = [advantages[i : i + 4] for i in range(0, len(advantages), 4)]
    assert not any(math.isnan(value) for row in rows for value in row)
    if works == 0:  # nothing is known: only the second reward speaks
        assert all(len(set(row)) == 1 for row in rows)
        assert groups == [pytest.approx([-15.0, -5.0, 5.0, 15.0], abs=1e-4) for _ in groups]
    for row, advantage in zip(rows, groups, strict=True):
        mean = sum(row) / 4
        expected = [value - mean + 10.0 * index - 15.0 for index, value in enumerate(row)]
        assert advantage == pytest.approx(expected, abs=1e-3)


def test_where_each_reward_is_normalised_by_itself_abstention_counts_as_the_mean_of_what_is_known(
    smol_tokenizer: Any, tmp_path: Path
) -> None:
    """GDPO. A group's mean in the place of None would lower the judge's own spread, and so raise the others of its group."""

    def graded(_: Request) -> Any:
        seen = len(engine.requests)
        return f"<answer>{1 + seen % 5}</answer>" if seen % 4 else EngineFailure("down")

    engine = ScriptedEngine(graded)
    judge = Judge(engine, Score(), schedule="pointwise", verdict="generate", retries=0, alarm=None)
    trainer = GRPOTrainer(
        model=tiny_policy(smol_tokenizer),
        processing_class=smol_tokenizer,
        reward_funcs=[JudgeReward(judge, num_generations=4, name="judge"), always_on],
        train_dataset=prompt_dataset(),
        args=GRPOConfig(
            **grpo_like(tmp_path, multi_objective_aggregation="normalize_then_sum", reward_weights=[0.5, 2.0])
        ),
    )
    trainer.train()
    rewards = torch.tensor([list(trainer._logs["rewards"][name]) for name in ("judge", "always_on")]).view(2, -1, 4)
    assert rewards[0].isnan().sum(dim=1).tolist() == [1, 1]
    parts = (rewards - rewards.nanmean(dim=2, keepdim=True)) / (nanstd(rewards, dim=2, keepdim=True) + 1e-4)
    total = 0.5 * parts[0].nan_to_num(0.0) + 2.0 * parts[1]
    advantages = (total - total.mean()) / (total.std() + 1e-4)
    assert list(trainer._logs["advantages"]) == pytest.approx(advantages.flatten().tolist(), abs=1e-4)


def test_abstention_of_the_only_reward_leaves_rows_out(smol_tokenizer: Any, tmp_path: Path) -> None:
    judge, _ = failing_judge(0)
    reward = JudgeReward(judge, num_generations=4, name="judge")
    trainer = GRPOTrainer(
        model=tiny_policy(smol_tokenizer),
        processing_class=smol_tokenizer,
        reward_funcs=reward,
        train_dataset=prompt_dataset(),
        args=GRPOConfig(**grpo_like(tmp_path)),
    )
    trainer.train()
    assert all(math.isnan(value) for value in trainer._logs["rewards"]["judge"])
    assert all(value == 0.0 for value in trainer._logs["advantages"])
    assert logged(trainer, "judge/abstained_rate") == [1.0, 1.0]
    assert logged(trainer, "judge/failed_rate") == [1.0, 1.0]


def chat(begun: str = "") -> list[dict[str, str]]:
    """A question in messages, and what the assistant's turn begins with."""
    turns = [{"role": "user", "content": "Capital?"}]
    return [*turns, {"role": "assistant", "content": begun}] if begun else turns


def second_is_better(completions: list[Any], **_: Any) -> list[float]:
    return [float(index) for index in range(len(completions))]


class TestOnlineDPO:
    @pytest.fixture
    def build(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
        monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
        from trl.experimental.online_dpo import OnlineDPOConfig

        from mrjudge_reward.integrations.trl import JudgeOnlineDPOTrainer

        def make(
            model: Any,
            tokenizer: Any,
            reward: Any,
            cls: Any = JudgeOnlineDPOTrainer,
            peft_config: Any = None,
            data: Dataset | None = None,
            say: list[str] | None = None,
            **more: Any,
        ) -> Any:
            class Saying(cls):  # type: ignore[misc]
                def _generate(self, *args: Any, **kwargs: Any) -> Any:
                    """As generated, or the first and the second completion of each pair as told, padded as TRL pads."""
                    prompts, mask, ids, completed, vision = super()._generate(*args, **kwargs)
                    if say is not None:
                        spoken = tokenizer(say, padding=True, padding_side="right", return_tensors="pt")
                        rows = torch.arange(len(ids)) // (len(ids) // 2)
                        ids, completed = spoken["input_ids"][rows], spoken["attention_mask"][rows]
                    return prompts, mask, ids, completed, vision

            arguments = common(tmp_path, per_device_train_batch_size=4, max_new_tokens=8, **more)
            return Saying(
                model=model, processing_class=tokenizer, reward_funcs=reward, train_dataset=data or prompt_dataset(),
                peft_config=peft_config, args=OnlineDPOConfig(**arguments),
            )  # fmt: skip

        return make

    def test_a_policy_trains_on_pairs(
        self, build: Any, policy: Any, smol_tokenizer: Any, embedded_judge: Judge
    ) -> None:
        reward = JudgeReward(embedded_judge, num_generations=2, layout="halves", name="judge")
        trainer = build(policy, smol_tokenizer, reward, peft_config=lora())
        trainer.train()
        assert is_changed(trainer)
        assert len(logged(trainer, "judge/position_consistency")) == 2
        assert all(margin > 0 for margin in logged(trainer, "objective/scores_margin"))

    def test_a_pair_that_was_not_judged_moves_nothing(self, build: Any, smol_tokenizer: Any) -> None:
        judge, _ = failing_judge(0)
        reward = JudgeReward(judge, num_generations=2, layout="halves", name="judge")
        model = tiny_policy(smol_tokenizer)
        before = {name: value.detach().clone() for name, value in model.named_parameters()}
        trainer = build(model, smol_tokenizer, reward, weight_decay=0.0)
        trainer.train()
        assert logged(trainer, "judge/undecided_pairs") == [4.0, 4.0]
        for name, value in trainer.model.named_parameters():
            assert torch.equal(before[name], value.cpu()), name

    @pytest.mark.parametrize(
        ("prompt", "ending", "say", "judged"),
        [
            (chat(), "<think>\n", ["an unfinished plan", "plan</think>Rome."], ("", "Rome.")),
            (chat(), "<think>\n", ["plan</think>Paris.", "plan</think>Rome."], ("Paris.", "Rome.")),
            (chat(), "", ["<think>plan</think>Paris.", "Rome."], ("Paris.", "Rome.")),
            (chat(), "<think>\n\n</think>\n\n", ["Paris.", "Rome, I think."], ("Paris.", "Rome, I think.")),
            (chat(), "", ["[THINK]plan[/THINK]Paris.", "[THINK]an unfinished plan"], ("Paris.", "")),
            (chat(), "[THINK]", ["plan[/THINK]Paris.", "an unfinished plan"], ("Paris.", "")),
            (chat("<think>\n"), "", ["an unfinished plan", "plan</think>Rome."], ("", "Rome.")),
            (chat("Well,"), "<think>\n", ["Paris.", "Rome, I think."], ("Paris.", "Rome, I think.")),
            ("Capital?\n<think>", "", ["an unfinished plan", "plan</think>Rome."], ("", "Rome.")),
            ("Capital?", "<think>\n", ["Paris.", "[THINK]plan[/THINK]Rome."], ("Paris.", "Rome.")),
        ],
    )
    def test_of_reasoning_as_much_is_judged_as_with_the_other_trainers(
        self, build: Any, smol_tokenizer: Any, prompt: Any, ending: str, say: list[str], judged: tuple[str, str]
    ) -> None:
        """Marks that are special tokens are lost in TRL's decoding."""
        tokenizer = copy.deepcopy(smol_tokenizer)
        tokenizer.chat_template += ending
        tokenizer.add_special_tokens({"additional_special_tokens": ["[THINK]", "[/THINK]"]})
        judge = JudgeConfig(model="x", audit=False).build(ScriptedEngine.by_utility(len))
        reward = JudgeReward(judge, num_generations=2, layout="halves", name="judge")
        data = Dataset.from_dict({"prompt": [prompt] * 4})
        trainer = build(tiny_policy(tokenizer), tokenizer, reward, data=data, say=say, max_steps=1)
        trainer.train()
        assert {judgement.group.candidates for judgement in reward.last_judgements} == {judged}

    @pytest.mark.parametrize(
        ("say", "preferred"),
        [(["so much longer than that", "no"], 1), (["no", "so much longer than that"], 0), (["yes", "no"], None)],
    )
    def test_a_completion_is_as_long_as_what_was_written(
        self, build: Any, smol_tokenizer: Any, say: list[str], preferred: int | None
    ) -> None:
        judge = JudgeConfig(model="x", audit=False, length_weight=1.0).build(ScriptedEngine.by_utility(lambda _: 1.0))
        reward = JudgeReward(judge, num_generations=2, layout="halves", name="judge")
        lengths: list[int] = []

        def other(completion_ids: list[list[int]], **_: Any) -> list[float]:
            lengths.extend(map(len, completion_ids))
            return [0.0] * len(completion_ids)

        trainer = build(tiny_policy(smol_tokenizer), smol_tokenizer, [reward, other], say=say, max_steps=1)
        trainer.train()
        first, second = (len(smol_tokenizer.encode(text)) for text in say)
        assert lengths == [first] * 4 + [second] * 4
        assert logged(trainer, "judge/undecided_pairs") == [4.0 if preferred is None else 0.0]
        assert (logged(trainer, "objective/scores_margin")[0] > 0) == (preferred is not None)

    @pytest.mark.parametrize(
        ("asked", "fails", "beside", "undecided"),
        [
            ([False] * 4, False, True, 0),  # the rule stands alone
            ([False] * 4, True, True, 0),
            ([False] * 4, False, False, 4),  # nothing stands there
            ([True] * 4, False, True, 0),
            ([True] * 4, True, True, 4),  # the judge was asked and told nothing
            ([True] * 4, True, False, 4),
            ([True, False, False, True], False, True, 0),
            ([True, False, False, True], False, False, 2),
            ([True, False, False, True], True, True, 2),
            ([True, False, False, False], True, True, 1),
        ],
    )
    def test_pairs_that_a_judge_was_not_asked_about_are_left_to_the_other_reward(
        self, build: Any, smol_tokenizer: Any, asked: list[bool], fails: bool, beside: bool, undecided: int
    ) -> None:
        script = (lambda _: EngineFailure("down")) if fails else ScriptedEngine.by_utility(len).script
        judge = Judge(ScriptedEngine(script), Choice(), schedule="ring", retries=0, alarm=None)
        reward = JudgeReward(judge, num_generations=2, layout="halves", name="judge", judged_if="open")
        data = Dataset.from_dict({"prompt": PROMPTS[:4], "open": asked})
        rewards = [reward, second_is_better] if beside else reward
        say = ["long enough", "so much longer than that"]
        trainer = build(tiny_policy(smol_tokenizer), smol_tokenizer, rewards, data=data, say=say, max_steps=1)
        trainer.train()
        assert logged(trainer, "judge/undecided_pairs") == [undecided]
        assert (logged(trainer, "grad_norm")[0] > 0) == (undecided < 4)

    def test_metrics_that_come_now_and_then_are_logged_when_they_come(
        self, build: Any, smol_tokenizer: Any, tmp_path: Path
    ) -> None:
        judge = JudgeConfig(model="x", audit=False).build(ScriptedEngine.by_utility(len))
        reward = JudgeReward(
            judge, num_generations=2, layout="halves", name="judge", canaries=Canaries(every=2), log_dir=tmp_path
        )
        trainer = build(tiny_policy(smol_tokenizer), smol_tokenizer, reward, max_steps=3)
        trainer.train()
        assert len(logged(trainer, "judge/canary_right")) == 2, "before training and after the second step"
        assert len(logged(trainer, "judge/calls")) == 3
        assert sorted(read_run(tmp_path).trainer) == [1, 2, 3], "what the trainer logs is in the run's log"

    def test_the_stock_trainer_is_refused(self, build: Any, smol_tokenizer: Any, embedded_judge: Judge) -> None:
        from trl.experimental.online_dpo import OnlineDPOTrainer

        reward = JudgeReward(embedded_judge, num_generations=2, layout="halves")
        trainer = build(tiny_policy(smol_tokenizer), smol_tokenizer, reward, cls=OnlineDPOTrainer)
        with pytest.raises(ConfigError, match="JudgeOnlineDPOTrainer"):
            trainer.train()


def test_prompts_of_this_module_are_all_different() -> None:
    assert len(set(PROMPTS)) == len(PROMPTS)
