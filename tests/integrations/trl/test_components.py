"""A reward function per criterion of a rubric, out of one judging."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from trl import GRPOConfig, GRPOTrainer

from mrjudge_reward.engines.scripted import ScriptedEngine
from mrjudge_reward.errors import ConfigError, InputError, JudgeUnreliableError
from mrjudge_reward.integrations.trl import JudgeReward
from mrjudge_reward.judge import Judge, JudgeConfig
from mrjudge_reward.types import EngineFailure, Request
from tests.support.criteria_judge import THREE_CRITERIA, ByUtilities, ThreeCriteriaEngine, calls_in, shown_criteria
from tests.support.trl_setup import grpo_like, prompt_dataset, tiny_policy

LONG, EXCLAIMS = "Is long.", "Exclaims."
RUBRIC = [
    {"title": "long", "description": LONG, "weight": 2},
    {"title": "exclaims!", "description": EXCLAIMS, "weight": -1},
]
HONEST = ByUtilities({LONG: lambda text: len(text) - 4.5, EXCLAIMS: lambda text: 2 * text.count("!") - 1})
PROMPTS, ANSWERS = ["a"] * 4 + ["b"] * 4, ["so long", "short", "no", "hm!", "yes!", "well, yes", "no", "maybe"]


def reward_of(script: Any = HONEST, **settings: Any) -> JudgeReward:
    ours = {"criteria": "absolute", "rubric": RUBRIC, "verdict": "generate", "max_failed_fraction": 1.0, **settings}
    return JudgeReward(Judge(ScriptedEngine(script), **ours), num_generations=4, name="judge")


def counted(reward: JudgeReward, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of groups of each judging."""
    batches: list[int] = []
    judge = reward.judge.judge

    def counting(groups: Any, *more: Any, **named: Any) -> Any:
        batches.append(len(groups))
        return judge(groups, *more, **named)

    monkeypatch.setattr(reward.judge, "judge", counting)
    return batches


def test_each_criterion_is_a_reward_function_and_a_batch_is_judged_once(monkeypatch: pytest.MonkeyPatch):
    reward = reward_of()
    batches = counted(reward, monkeypatch)
    long, exclaims = reward.components()
    assert (long.__name__, exclaims.__name__) == ("judge_long", "judge_exclaims")
    assert (long.weight, exclaims.weight) == (2, 1)
    assert long(PROMPTS, ANSWERS) == [1.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 1.0]
    assert exclaims(PROMPTS, ANSWERS) == [0.0, 0.0, 0.0, -1.0, -1.0, 0.0, 0.0, 0.0], "a pitfall's sign is turned"
    assert batches == [2]
    assert reward.last_stats.calls == 2 * 8
    exclaims(PROMPTS, ANSWERS)
    long(PROMPTS, ANSWERS)
    assert batches == [2, 2], "the same batch once more is judged once more"


def test_the_parts_add_up_to_the_total():
    reward = reward_of()
    parts = [part(PROMPTS, ANSWERS) for part in reward.components()]
    total = reward_of()(PROMPTS, ANSWERS)
    assert total == pytest.approx([(2 * a + b) / 3 for a, b in zip(*parts, strict=True)])


@pytest.mark.parametrize("of_rows", [False, True])
def test_metrics_by_criterion_have_the_names_of_the_runs_rubric_alone(of_rows: bool):
    told: dict[str, float] = {}
    if of_rows:
        judge = reward_of(rubric=None).judge
        reward = JudgeReward(judge, num_generations=4, name="judge", rubric_column="rubric")
        reward(PROMPTS, ANSWERS, log_metric=told.__setitem__, rubric=[RUBRIC] * 8)
    else:
        reward_of()(PROMPTS, ANSWERS, log_metric=told.__setitem__)
    named = {name.split("/")[2] for name in told if name.startswith("judge/criteria/")}
    assert named == (set() if of_rows else {"long", "exclaims"})
    assert told["judge/calls"] == 16


@pytest.mark.parametrize("on_abstain", ["none", "group_mean", "auto"])
@pytest.mark.parametrize("asked", [(True, False), (False, True), (False, False)])
def test_a_group_that_is_not_judged_has_no_reward_by_any_criterion(asked: tuple[bool, bool], on_abstain: Any):
    reward = JudgeReward(reward_of().judge, num_generations=4, judged_if="asked", on_abstain=on_abstain)
    column = [one for one in asked for _ in range(4)]
    for part in reward.components():
        assert [one is not None for one in part(PROMPTS, ANSWERS, asked=column)] == column


def test_batches_that_come_in_threads_are_judged_once_each(monkeypatch: pytest.MonkeyPatch):
    reward = reward_of()
    batches = counted(reward, monkeypatch)
    parts = reward.components()
    jobs = [(part, [f"{answer} {n}" for answer in ANSWERS]) for n in range(12) for part in parts]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda job: job[0](PROMPTS, job[1]), jobs))
    assert batches == [2] * 12
    assert all(row == [0.0, 0.0, 0.0, -1.0, -1.0, 0.0, 0.0, 0.0] for row in found[1::2])
    assert not parts[0].shared._batches, "nothing is kept of what was fetched"


def fails(told: str, answer: str) -> Callable[[Request], Any]:
    """A judge that gives no verdict on this criterion of this answer."""

    def script(request: Request) -> Any:
        lost = any(told in criterion for criterion in shown_criteria(request).values())
        if lost and f"\n{answer}\n" in request.messages[-1].text:
            return EngineFailure("timeout", transient=False)
        return HONEST(request)

    return script


@pytest.mark.parametrize(("how", "stands"), [("sum_then_normalize", 1 / 3), ("normalize_then_sum", None)])
def test_what_is_unknown_is_left_to_the_framework_where_that_makes_it_the_mean(how: str, stands: float | None):
    reward = reward_of(fails(LONG, "short"))
    long, exclaims = reward.components()
    model = SimpleNamespace(training=True)
    trainer = SimpleNamespace(
        model=model, reward_funcs=[long, exclaims], multi_objective_aggregation=how, num_generations=4
    )

    class Logs(SimpleNamespace):
        def log(self, name: str, value: float) -> None:
            pass

    logs = Logs(**vars(trainer)).log
    found = long(PROMPTS, ANSWERS, log_metric=logs)
    assert found[1] == (stands if stands is None else pytest.approx(stands))
    assert exclaims(PROMPTS, ANSWERS, log_metric=logs)[1] == 0.0, "the other criterion is known"


def test_an_empty_answer_has_the_lowest_reward_of_a_pitfall_too():
    long, exclaims = reward_of().components()
    answers = ["", "short", "no!", "hm", *ANSWERS[4:]]
    assert long(PROMPTS, answers)[0] == 0.0
    assert exclaims(PROMPTS, answers)[:4] == [-1.0, 0.0, -1.0, 0.0]


def test_a_failing_judge_stops_every_component_and_the_next_call_judges_anew(monkeypatch: pytest.MonkeyPatch):
    reward = reward_of(
        lambda request: EngineFailure("timeout", transient=False), max_failed_fraction=0.1, failure_window=8
    )
    batches = counted(reward, monkeypatch)
    long, exclaims = reward.components()
    for part in (long, exclaims):
        with pytest.raises(JudgeUnreliableError):
            part(PROMPTS, ANSWERS)
    assert len(batches) == 2


def test_rubrics_of_rows_come_from_a_column_and_a_bad_one_is_named():
    reward = JudgeReward(
        Judge(ScriptedEngine(HONEST), criteria="absolute", verdict="generate"),
        num_generations=4,
        rubric_column="rubric",
    )
    own = [[{"criterion": LONG, "points": 5, "tags": ["x"]}]] * 4 + [[{"criterion": EXCLAIMS, "points": -5}]] * 4
    assert reward(PROMPTS, ANSWERS, rubric=own) == [1.0, 1.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0]
    as_json = ['["Is long."]'] * 8
    assert reward(PROMPTS, ANSWERS, rubric=as_json) == [1.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 1.0]
    bad = [[{"criterion": LONG, "points": 0}]] * 8
    with pytest.raises(InputError, match=r"rubric of row 0, criterion 1: points must be"):
        reward(PROMPTS, ANSWERS, rubric=bad)


@pytest.mark.parametrize(
    "settings", [{}, {"criteria": "implicit", "rubric": RUBRIC}, {"criteria": "absolute"}, {"criteria": "comparative"}]
)
def test_components_need_the_same_criteria_for_all_prompts(settings: dict[str, Any]):
    reward = JudgeReward(JudgeConfig(model="m", base_url="http://127.0.0.1:9/v1", **settings), num_generations=4)
    with pytest.raises(ConfigError, match="components need criteria that are the same for all prompts"):
        reward.components()


def test_components_are_picklable_together():
    config = JudgeConfig(model="m", base_url="http://127.0.0.1:9/v1", criteria="absolute", rubric=RUBRIC)
    long, exclaims = pickle.loads(pickle.dumps(JudgeReward(config, num_generations=4, name="r").components()))
    assert long.shared is exclaims.shared
    assert (long.__name__, exclaims.weight) == ("r_long", 1)


def test_gdpo_sums_what_each_criterion_alone_is_worth_and_a_batch_is_judged_once(
    smol_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config = JudgeConfig(adapter="embedded", device="cpu", criteria="comparative", rubric=THREE_CRITERIA, budget=3)
    calls = tmp_path / "calls.txt"
    reward = JudgeReward(
        config.build(ThreeCriteriaEngine(config.build_engine(), calls)), num_generations=3, name="judge"
    )
    batches = counted(reward, monkeypatch)
    parts = reward.components()
    steps: list[tuple[torch.Tensor, torch.Tensor]] = []

    class Recording(GRPOTrainer):  # type: ignore[misc]
        def _generate_and_score_completions(self, inputs: Any) -> Any:
            output = super()._generate_and_score_completions(inputs)
            logged = torch.tensor([list(self._logs["rewards"][part.__name__]) for part in parts])
            steps.append((logged.view(3, 2, 3), output["advantages"]))
            return output

    weights = [part.weight for part in parts]
    arguments = grpo_like(tmp_path, multi_objective_aggregation="normalize_then_sum", reward_weights=weights)
    arguments |= {"per_device_train_batch_size": 6, "num_generations": 3}
    Recording(
        model=tiny_policy(smol_tokenizer), processing_class=smol_tokenizer, reward_funcs=parts,
        train_dataset=prompt_dataset(), args=GRPOConfig(**arguments),
    ).train()  # fmt: skip
    assert batches == [2, 2], "both groups of a step, judged once for three criteria"
    assert calls_in(calls) == dict.fromkeys(("sentiment", "length", "keyword"), 2 * 2 * 3), "each pair once"
    assert weights == [2, 1, 1]
    for rewards, advantages in steps:  # by criterion, group, member
        assert rewards.std(2).max(1).values.min() > 0, "each criterion tells answers apart"
        own = (rewards - rewards.mean(2, keepdim=True)) / (rewards.std(2, keepdim=True) + 1e-4)
        total = torch.einsum("c,cgm->gm", torch.tensor(weights), own).flatten()
        assert torch.allclose(advantages, (total - total.mean()) / (total.std() + 1e-4), atol=1e-4)
    assert len(steps) == 2
