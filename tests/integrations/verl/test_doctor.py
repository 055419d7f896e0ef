"""``mrjudge doctor --verl``: each trap of a verl config is found, in configs that verl's own loader composes."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import platform
import socket
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import Result
from typer.testing import CliRunner

from mrjudge_reward.cli import app
from mrjudge_reward.cli.doctor import Check
from mrjudge_reward.errors import ConfigError
from mrjudge_reward.integrations.verl.doctor import versions as verl_doctor_versions
from mrjudge_reward.integrations.verl.doctor.checks import MANAGER, MODULE, examine_verl
from mrjudge_reward.integrations.verl.doctor.groups import AGENT_LOOP_MANAGER
from mrjudge_reward.integrations.verl.doctor.load import load_verl_config
from mrjudge_reward.integrations.verl.settings import VALIDATION_SPLITS

STREAMING = f"""
hydra: {{searchpath: [pkg://verl.trainer.config]}}
defaults: [ppo_trainer, _self_]
mrjudge:
  judge: {{model: some/judge, engine: vllm_server, context_tokens: 16384}}
  actor_options: {{num_gpus: 0.5}}
algorithm: {{adv_estimator: grpo}}
data: {{train_batch_size: 64, max_prompt_length: 512, max_response_length: 1024}}
actor_rollout_ref:
  rollout: {{name: vllm, n: 4, val_kwargs: {{n: 4, do_sample: true, temperature: 1.0}}}}
reward:
  reward_manager: {{source: importlib, name: {MANAGER}, module: {{path: {MODULE}}}}}
"""
"""Nothing fails in it."""

UNNAMED = ("~mrjudge.judge.model", "~mrjudge.judge.context_tokens", "~mrjudge.judge.engine")

SERVED = (
    *UNNAMED,
    "~mrjudge.actor_options",
    "reward.reward_model.enable=True",
    "reward.reward_model.model_path=some/judge",
    "reward.reward_model.rollout.name=vllm",
    f"reward.custom_reward_function.path={MODULE}",
)
"""Overrides by which verl serves the judge, on the trainer's GPUs."""

STANDALONE = (
    *SERVED,
    "reward.reward_model.enable_resource_pool=True",
    "reward.reward_model.nnodes=1",
    "reward.reward_model.n_gpus_per_node=4",
    "reward.reward_model.rollout.free_cache_engine=False",
)

AGENT = "+actor_rollout_ref.rollout.agent.agent_loop_manager_class"
GDPO = (
    "algorithm.adv_estimator=gdpo",
    "trainer.use_v1=False",
    "+mrjudge.judge.criteria=comparative",
    '+mrjudge.judge.rubric=[{name:dose,description:Names the dose.},{name:"no alarm!",description:Alarms.,weight:-1}]',
)
KEYS = "+algorithm.gdpo_reward_keys"
UNEQUAL = ("actor_rollout_ref.rollout.val_kwargs.n=2",)


@pytest.fixture(autouse=True)
def _without_trl(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the TRL of this environment has what verl imports from it has tests of its own."""
    monkeypatch.setattr(verl_doctor_versions, "_home_of_trl", lambda: None)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("verl") / "run.yaml"
    path.write_text(STREAMING, encoding="utf-8")
    return path


def found(checks: Iterable[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


def examined(config: Path, *overrides: str) -> dict[str, Check]:
    return found(examine_verl(str(config), overrides))


def failed(checks: dict[str, Check]) -> list[str]:
    return [check.name for check in checks.values() if check.status == "failed"]


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["doctor", *(str(argument) for argument in arguments)])


# -- a good config ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overrides", [(), SERVED, STANDALONE], ids=["local", "colocated", "standalone"])
def test_nothing_fails_in_a_good_config_and_every_detail_says_something(config: Path, overrides: Sequence[str]) -> None:
    checks = examined(config, *overrides)
    assert failed(checks) == []
    assert all(check.detail for check in checks.values())
    for name in (
        "reward manager",
        "manager called",
        "reward workers",
        "group size",
        "validation",
        "context",
        "deadline",
    ):
        assert checks[name].status == "ok", checks[name]
    if overrides:
        assert checks["reply length"].status == "ok"
        assert "cannot be asked before" in checks["judge"].detail
        assert ("GPUs of its own" in checks["reward model"].detail) == (overrides is STANDALONE)


def test_a_critic_that_learns_from_grades_and_loggers_that_are_told(config: Path) -> None:
    graded = ("+mrjudge.judge.format=score", "+mrjudge.judge.rating=mean_score")
    checks = examined(config, "algorithm.adv_estimator=gae", *graded)
    assert checks["critic"].status == checks["judge's metrics"].status == "ok"
    assert "critic" not in examined(config)


def test_a_verl_that_logs_otherwise_is_told(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from verl.utils.tracking import Tracking

    monkeypatch.setattr(Tracking, "log", lambda self, data, step, commit: None)
    check = examined(config)["judge's metrics"]
    assert check.status == "note"
    assert "another" in check.detail


def test_a_resolved_dump_gives_the_same_findings_and_takes_the_same_overrides(config: Path, tmp_path: Path) -> None:
    dump = tmp_path / "dump.yaml"
    dump.write_text(yaml.safe_dump(load_verl_config(str(config))), encoding="utf-8")
    change = ("actor_rollout_ref.rollout.n=1", "+mrjudge.deadline_s=5")
    assert examine_verl(str(dump)) == examine_verl(str(config))
    assert examine_verl(str(dump), change) == examine_verl(str(config), change)


# -- traps ------------------------------------------------------------------------------------------------------------

TRAPS: list[tuple[str, Sequence[str], str, str, Sequence[str]]] = [
    # what it is, overrides, check, status, what the detail names
    (
        "a manager of verl's own",
        ["reward.reward_manager.source=register", "reward.reward_manager.name=naive"],
        "reward manager",
        "failed",
        ["source=register, name=naive", "never asked", f"name: {MANAGER}", MODULE],
    ),
    (
        "no module path",
        ["reward.reward_manager.module.path=null"],
        "reward manager",
        "failed",
        ["without module.path", MODULE],
    ),
    (
        "another class of a module that can be loaded",
        ["reward.reward_manager.module.path=pkg://mrjudge_reward.judge", "reward.reward_manager.name=Judge"],
        "reward manager",
        "failed",
        [f"Judge of pkg://mrjudge_reward.judge is not {MANAGER}"],
    ),
    (
        "a module that cannot be loaded",
        ["reward.reward_manager.module.path=pkg://no.such.module"],
        "reward manager",
        "failed",
        ["cannot be loaded", "ModuleNotFoundError"],
    ),
    (
        "a function instead of the judge",
        [
            "reward.reward_manager.source=register",
            "reward.reward_manager.name=naive",
            "reward.custom_reward_function.path=/my/reward.py",
        ],
        "reward manager",
        "failed",
        ["compute_score of /my/reward.py then scores each sample alone", "The judge is never asked"],
    ),
    (
        "a function beside the judge",
        ["reward.custom_reward_function.path=/my/reward.py"],
        "manager called",
        "note",
        ["/my/reward.py", "never called"],
    ),
    (
        "a served judge without a function path",
        [*SERVED, "reward.custom_reward_function.path=null"],
        "manager called",
        "failed",
        ["/classify", "calls no manager", "reward.custom_reward_function.path", MODULE],
    ),
    (
        "several workers of another manager",
        ["reward.reward_manager.source=register", "reward.reward_manager.name=dapo"],
        "reward workers",
        "note",
        ["8 reward workers", "parts of groups"],
    ),
    (
        "keys of older verl",
        ["custom_reward_function.path=/my/reward.py", "reward_model.enable=True"],
        "old keys",
        "failed",
        ["reward_model.enable, custom_reward_function.path", "no longer reads", "below reward"],
    ),
    ("the section in the wrong place", ["+reward.mrjudge.deadline_s=9"], "old keys", "failed", ["top of the config"]),
    (
        "more requests wanted than the judge sends",
        [*STANDALONE, "+mrjudge.judge.max_concurrency=2"],
        "judge concurrency",
        "note",
        ["max_concurrency=2", "4 completions"],
    ),
    (
        "replies slower than their deadline",
        [*STANDALONE, "+mrjudge.judge.deadline_s=20.0"],
        "request deadline",
        "note",
        ["1024 tokens within 20 s", "51 tokens a second for each", "Raise mrjudge.judge.deadline_s to 103"],
    ),
    (
        "a critic that has nothing to learn",
        ["algorithm.adv_estimator=gae"],
        "critic",
        "note",
        ["the same mean in every group", "learns a constant", "rating: mean_score"],
    ),
    (
        "a critic that has nothing to learn, of grades",
        ["algorithm.adv_estimator=gae", "+mrjudge.judge.format=score"],
        "critic",
        "note",
        ["log_odds has the same mean"],
    ),
    (
        "grades without their level",
        [
            "algorithm.adv_estimator=gae",
            "+mrjudge.judge.format=score",
            "+mrjudge.judge.rating=mean_score",
            "+mrjudge.judge.centre=true",
        ],
        "critic",
        "note",
        ["centred in each group"],
    ),
    (
        "several nodes",
        ["trainer.nnodes=2", "mrjudge.judge.model=/models/judge", "+mrjudge.log_dir=runs"],
        "nodes",
        "note",
        ["/models/judge (model)", "RAY_ADDRESS"],
    ),
    (
        "a log that moves with the actor",
        ["trainer.nnodes=2", "+mrjudge.log_dir=runs"],
        "nodes' folders",
        "note",
        ["runs (mrjudge.log_dir)", "shared folder", "node:IP"],
    ),
    (
        "loggers in another process",
        ["+async_training={}"],
        "judge's metrics",
        "note",
        ["fully asynchronous", "mrjudge report"],
    ),
    (
        "nothing to compare",
        ["actor_rollout_ref.rollout.n=1"],
        "group size",
        "failed",
        ["rollout.n=1", "nothing to be compared", "Set n to 4 or more"],
    ),
    (
        "a group of one graded, in GRPO",
        ["actor_rollout_ref.rollout.n=1", "+mrjudge.judge.format=score"],
        "group size",
        "failed",
        ["adv_estimator=grpo", "its own baseline"],
    ),
    (
        "a group of one graded, in PPO",
        ["actor_rollout_ref.rollout.n=1", "+mrjudge.judge.format=score", "algorithm.adv_estimator=gae"],
        "group size",
        "ok",
        ["graded"],
    ),
    (
        "a group of one compared with anchors, in PPO",
        ["actor_rollout_ref.rollout.n=1", "+mrjudge.anchor_field=extra_info.x", "algorithm.adv_estimator=gae"],
        "group size",
        "ok",
        ["compared"],
    ),
    (
        "a critic that learns from anchors",
        ["+mrjudge.anchor_field=extra_info.x", "algorithm.adv_estimator=gae"],
        "critic",
        "ok",
        ["relative to anchors have a level"],
    ),
    (
        "anchors whose level is taken out again",
        ["+mrjudge.anchor_field=extra_info.x", "+mrjudge.judge.centre=true"],
        "judge settings",
        "failed",
        ["anchor_field='extra_info.x' gives rewards a level, and centre takes it out again"],
    ),
    (
        "groups that never fill",
        ["+mrjudge.group_size=8"],
        "group size",
        "failed",
        ["mrjudge.group_size=8", "rollout.n=4", "no group ever fills", "Remove mrjudge.group_size"],
    ),
    ("groups in parts", ["+mrjudge.group_size=2"], "group size", "failed", ["judged in parts"]),
    (
        "validation groups of another size than drawn",
        ["+mrjudge.validation_group_size=2"],
        "validation",
        "failed",
        ["mrjudge.validation_group_size=2", "val_kwargs.n=4"],
    ),
    (
        "validation with nothing to compare",
        ["actor_rollout_ref.rollout.val_kwargs.n=1"],
        "validation",
        "note",
        ["val_kwargs.n=1", "neutral", "trainer.test_freq=-1"],
    ),
    (
        "validation of copies",
        ["actor_rollout_ref.rollout.val_kwargs.do_sample=False"],
        "validation",
        "note",
        ["do_sample=False", "tie"],
    ),
    (
        "validation that may be taken for training",
        UNEQUAL,
        "validation told apart",
        "note",
        [
            "rollout.n=4",
            "val_kwargs.n=2",
            "until the deadline",
            AGENT_LOOP_MANAGER,
            "extra_info.split",
            "cannot be read",
        ],
    ),
    (
        "validation told apart",
        [*UNEQUAL, f"{AGENT}={AGENT_LOOP_MANAGER}"],
        "validation told apart",
        "ok",
        ["agent-loop"],
    ),
    (
        "the agent loop of the other trainer",
        [*UNEQUAL, f"{AGENT}={AGENT_LOOP_MANAGER}", "trainer.use_v1=False"],
        "agent loop",
        "failed",
        [f"it is {AGENT_LOOP_MANAGER}V0"],
    ),
    (
        "tools without a manager that tells",
        ["actor_rollout_ref.rollout.agent.default_agent_loop=tool_agent"],
        "agent loop",
        "failed",
        ["which of their tokens the policy wrote", AGENT_LOOP_MANAGER],
    ),
    (
        "no validation",
        [*UNEQUAL, "trainer.val_before_train=False", "trainer.test_freq=-1"],
        "validation",
        "ok",
        ["none in this run"],
    ),
    (
        "responses that must be cut",
        ["data.max_response_length=16384"],
        "context",
        "note",
        ["of 16384", "2 x response 16384", "prompt 512", "middles cut out", "lower data.max_response_length"],
    ),
    (
        "responses of which nothing is left",
        ["data.max_response_length=16384", "mrjudge.judge.context_tokens=2048"],
        "context",
        "failed",
        ["of 2048", "tokens of each text"],
    ),
    (
        "candidates bounded beyond the room, in which the smaller bound holds",
        ["+mrjudge.judge.max_candidate_tokens=9000", "data.max_response_length=16384"],
        "context",
        "note",
        ["tokens of each text"],
    ),
    (
        "a list of candidates",
        ["+mrjudge.judge.format=ranking", "+mrjudge.judge.schedule=listwise", "data.max_response_length=4096"],
        "context",
        "note",
        ["4 x response 4096"],
    ),
    (
        "an unknown context",
        ["mrjudge.judge.context_tokens=null"],
        "context",
        "ok",
        ["of 16384 (assumed"],
    ),
    (
        "the context of a served judge",
        [*STANDALONE, "reward.reward_model.rollout.max_model_len=3000"],
        "context",
        "note",
        ["of 3000", "max_model_len"],
    ),
    (
        "replies cut by verl",
        [*STANDALONE, "+mrjudge.judge.max_tokens=4096"],
        "reply length",
        "failed",
        ["response_length=2048", "mrjudge.judge.max_tokens=4096", "Raise response_length to 4096"],
    ),
    ("an unknown setting", ["+mrjudge.deadline=9"], "mrjudge section", "failed", ["did you mean 'deadline_s'?"]),
    ("a bad value", ["+mrjudge.deadline_s=soon"], "mrjudge section", "failed", ["deadline_s", "soon"]),
    ("an unknown setting of the judge", ["+mrjudge.judge.shedule=ring"], "judge settings", "failed", ["'schedule'"]),
    (
        "a contradiction in the judge",
        ["+mrjudge.judge.schedule=pointwise"],
        "judge settings",
        "failed",
        ["does not fit format Choice"],
    ),
    (
        "a judge file that is not there",
        ["mrjudge.judge=/no/judge.yaml"],
        "judge settings",
        "failed",
        ["/no/judge.yaml"],
    ),
    ("no section", ["~mrjudge"], "mrjudge section", "note", ["set mrjudge.judge"]),
    (
        "a reference that verl does not pass",
        [*SERVED, "+mrjudge.reference_field=reward_model.ground_truth"],
        "fields of a row",
        "failed",
        ["mrjudge.reference_field", "enable_resource_pool=True"],
    ),
    (
        "anchors that verl does not pass",
        [*SERVED, "+mrjudge.anchor_field=reward_model.ground_truth"],
        "fields of a row",
        "failed",
        ["mrjudge.anchor_field", "enable_resource_pool=True"],
    ),
    ("a short deadline", ["+mrjudge.deadline_s=30"], "deadline", "note", ["deadline_s=30", "slow response"]),
    (
        "a colocated judge of rollouts that never pause",
        [*SERVED, "trainer.v1.trainer_mode=separate_async"],
        "trainer",
        "failed",
        ["separate_async", "enable_resource_pool=True", "base_url"],
    ),
    (
        "a colocated judge in fully asynchronous training",
        [*SERVED, "+async_training.staleness_threshold=1"],
        "trainer",
        "failed",
        ["fully asynchronous", "enable_resource_pool=True"],
    ),
    ("the old trainer", ["trainer.use_v1=False"], "trainer", "note", ["V0"]),
    (
        "a pool without GPUs",
        [*STANDALONE, "reward.reward_model.nnodes=0"],
        "reward model",
        "failed",
        ["no GPU", "reward.reward_model.nnodes"],
    ),
    (
        "a pool whose engines sleep for ever",
        [*STANDALONE, "reward.reward_model.rollout.free_cache_engine=True"],
        "reward model",
        "failed",
        ["to sleep at the start", "set reward.reward_model.rollout.free_cache_engine=False"],
    ),
    (
        "replicas that do not divide the GPUs",
        [*STANDALONE, "reward.reward_model.rollout.tensor_model_parallel_size=3"],
        "reward model",
        "failed",
        ["4 GPUs", "replicas of 3"],
    ),
    (
        "a served judge without model and engine",
        [*SERVED, "reward.reward_model.model_path=null", "reward.reward_model.rollout.name=???"],
        "reward model",
        "failed",
        ["model_path is empty", "rollout.name is empty"],
    ),
    (
        "groups filtered before a colocated judge scores them",
        [*SERVED, "algorithm.filter_groups.enable=True"],
        "reward model",
        "failed",
        ["algorithm.filter_groups", "enable_resource_pool=True"],
    ),
    (
        "a served judge that nobody asks",
        [*SERVED, "+mrjudge.judge.model=another/judge"],
        "served judge",
        "failed",
        ["some/judge", "nobody asks it", "another/judge inside the judge actor"],
    ),
    (
        "a local judge without a GPU",
        ["~mrjudge.actor_options"],
        "judge",
        "note",
        ["some/judge", "on the CPU", "mrjudge.actor_options={num_gpus: 0.2}"],
    ),
    ("a local judge with a GPU", [], "judge", "ok", ["'num_gpus': 0.5"]),
    (
        "components of the newer trainer",
        [*GDPO, "trainer.use_v1=True", f"{KEYS}=[judge_criterion_dose]"],
        "components",
        "failed",
        ["set trainer.use_v1=False"],
    ),
    (
        "components without names",
        GDPO,
        "components",
        "failed",
        ["gdpo_reward_keys is empty", "judge_reward, judge_criterion_dose, judge_criterion_no_alarm"],
    ),
    (
        "a component that no row has",
        [*GDPO, f"{KEYS}=[judge_criterion_dose,judge_criterion_alarm]"],
        "components",
        "failed",
        ["not every row has judge_criterion_alarm; its rewards are", "judge_criterion_no_alarm"],
    ),
    (
        "a component of a rule that is not called",
        [*GDPO, f"{KEYS}=[judge_reward,rule_reward]"],
        "components",
        "failed",
        ["not every row has rule_reward"],
    ),
    (
        "a component of each prompt's own rubric",
        [*GDPO[:3], f"{KEYS}=[judge_criterion_dose]"],
        "components",
        "failed",
        ["not every row has judge_criterion_dose; its rewards are judge_reward"],
    ),
    (
        "components that may be NaN",
        [*GDPO, "+mrjudge.rule_weight=1", f"{KEYS}=[judge_score,rule_score]"],
        "components",
        "failed",
        ["judge_score may be NaN", "rule_score may be NaN"],
    ),
    (
        "fewer weights than components",
        [*GDPO, f"{KEYS}=[judge_criterion_dose,judge_criterion_no_alarm]", "+algorithm.gdpo_reward_weights=[1.0]"],
        "components",
        "failed",
        ["1 weights for 2 keys"],
    ),
    (
        "components that are there",
        [
            *GDPO,
            "+mrjudge.rule_weight=1",
            f"{KEYS}=[judge_criterion_dose,judge_criterion_no_alarm,rule_reward]",
            "+algorithm.gdpo_reward_weights=[2.0,1.0,0.5]",
        ],
        "components",
        "ok",
        ["judge_criterion_dose, judge_criterion_no_alarm, rule_reward"],
    ),
    (
        "a component that a rule tells of every row",
        [*GDPO, "+mrjudge.rule_weight=1", "+mrjudge.rule_info=[format_ok]", f"{KEYS}=[judge_reward,format_ok]"],
        "components",
        "ok",
        ["judge_reward, format_ok"],
    ),
    (
        "a component that a rule tells of some rows",
        [
            *GDPO,
            "+mrjudge.rule_weight={sums:1.0,default:0.0}",
            "+mrjudge.rule_info=[format_ok]",
            f"{KEYS}=[judge_reward,format_ok]",
        ],
        "components",
        "failed",
        ["not every row has format_ok"],
    ),
    (
        "components of a judge built in the run",
        [*GDPO, "+mrjudge.factory=mine:judge", f"{KEYS}=[judge_criterion_else]"],
        "components",
        "ok",
        ["judge_criterion_else"],
    ),
    ("the embedded judge", UNNAMED, "judge", "note", ["sentiment"]),
    ("a judge built in the run", ["+mrjudge.factory=mine:judge"], "judge", "note", ["mine:judge"]),
]


@pytest.mark.parametrize(
    ("overrides", "name", "status", "needles"), [trap[1:] for trap in TRAPS], ids=[trap[0] for trap in TRAPS]
)
def test_a_trap_is_found_and_named(
    overrides: Sequence[str], name: str, status: str, needles: Sequence[str], config: Path
) -> None:
    check = examined(config, *overrides)[name]
    assert check.status == status, check
    assert [needle for needle in needles if needle not in check.detail] == [], check.detail


def test_a_manager_derived_from_ours_is_ours(config: Path, tmp_path: Path) -> None:
    module = tmp_path / "mine.py"
    module.write_text(f"class {MANAGER}: ...\nclass Mine({MANAGER}): ...\n", encoding="utf-8")
    overrides = (f"reward.reward_manager.module.path={module}", "reward.reward_manager.name=Mine")
    assert examined(config, *overrides)["reward manager"].status == "ok"


def test_more_samples_than_ray_lets_in_are_fatal_only_where_the_limit_cannot_be_raised(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray.actor

    many = ("data.train_batch_size=512", "reward.num_workers=2")
    raised = examined(config, *many)["samples in flight"]
    assert (raised.status, raised.data["samples"]) == ("ok", 2048)
    assert "2 reward workers hold 2000; the reward manager raises that limit" in raised.detail
    monkeypatch.delattr(ray.actor, "DEFAULT_MAX_CONCURRENCY_ASYNC")
    stuck = examined(config, *many)["samples in flight"]
    assert stuck.status == "failed"
    assert "reward.num_workers=5" in stuck.detail
    assert examined(config)["samples in flight"].status == "ok"  # 256 of 8,000
    assert examined(config, *many, *SERVED)["samples in flight"].status == "ok"  # one call per worker


@pytest.mark.parametrize(
    ("train", "val", "status"),
    [
        ("train", "test", "ok"),
        (None, "val", "ok"),  # what does not tell counts as training
        ("train", None, "failed"),
        ("train", "train", "failed"),
        ("train", "holdout", "failed"),
        ("test", "test", "failed"),
    ],
)
def test_the_dataset_is_asked_whether_it_tells_validation_apart(
    train: str | None, val: str | None, status: str, config: Path, tmp_path: Path
) -> None:
    overrides = list(UNEQUAL)
    for name, split in (("train", train), ("val", val)):
        path = tmp_path / f"{name}.parquet"
        write_rows(path, split)
        overrides.append(f"data.{name}_files={path}")
    check = examined(config, *overrides)["validation told apart"]
    assert check.status == status, check
    if status == "failed":
        assert "_files is " in check.detail


def write_rows(path: Path, split: str | None) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [{"prompt": "?", "extra_info": {"index": 0, "split": split}}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def test_the_doctor_and_the_reward_manager_know_the_same_words_for_validation() -> None:
    from mrjudge_reward.integrations.verl import reward_manager as verl_reward

    assert verl_reward.VALIDATION_SPLITS == VALIDATION_SPLITS
    assert "train" not in VALIDATION_SPLITS


@pytest.mark.filterwarnings(
    "ignore:.* engine is not available:UserWarning"
)  # verl warns of engines that nobody asked for
def test_the_names_that_configs_must_hold_are_those_of_the_modules() -> None:
    from mrjudge_reward.integrations.verl import agent_loop as verl_agent_loop
    from mrjudge_reward.integrations.verl import reward_manager as verl_reward

    exported = importlib.import_module(MODULE.removeprefix("pkg://"))
    assert exported.JudgeRewardManager is verl_reward.JudgeRewardManager
    assert verl_reward.JudgeRewardManager.__name__ == MANAGER
    assert callable(exported.compute_score)
    for manager, name in (
        (verl_agent_loop.GroupAgentLoopManager, AGENT_LOOP_MANAGER),
        (verl_agent_loop.GroupAgentLoopManagerV0, f"{AGENT_LOOP_MANAGER}V0"),
    ):
        assert f"{manager.__module__}.{manager.__name__}" == name


REMOTE = ("~mrjudge.judge.engine",)


# -- the judge's server -----------------------------------------------------------------------------------------------


def test_a_server_is_asked_and_one_that_does_not_answer_fails(config: Path) -> None:
    from tests.support.judge_server import JudgeServer

    with JudgeServer() as server:
        asked = examined(config, *REMOTE, f"+mrjudge.judge.base_url={server.base_url}", "mrjudge.judge.model=judge")
        assert server.requests  # a label was read
    assert failed(asked) == []
    assert asked["server"].status == "ok"
    assert asked["can read labels"].status == "ok"
    assert "smoke test" not in asked
    with socket.socket() as closed:  # bound and not listening: connections are refused
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/v1"
        refused = examined(config, *REMOTE, f"+mrjudge.judge.base_url={url}")
    assert failed(refused) == ["server"]
    assert f"{url} cannot be reached" in refused["server"].detail


def test_a_server_beside_a_model_that_verl_serves_is_noted(config: Path) -> None:
    from tests.support.judge_server import JudgeServer

    with JudgeServer() as server:
        named = ("+mrjudge.judge.model=judge", f"+mrjudge.judge.base_url={server.base_url}")
        checks = examined(config, *STANDALONE, *named)
    assert checks["served judge"].status == "note"
    assert server.base_url in checks["served judge"].detail
    assert "reply length" not in checks  # that server's replies are not cut by verl


# -- versions ---------------------------------------------------------------------------------------------------------

RUN = {
    "actor_rollout_ref": {"rollout": {"name": "vllm"}, "actor": {"strategy": "fsdp2"}},
    "reward": {"reward_model": {"rollout": {"name": "???"}}},
}


def versions(monkeypatch: pytest.MonkeyPatch, **planted: str | None) -> dict[str, Check]:
    """The findings if these packages had these versions; None is not installed."""
    real = importlib.metadata.version

    def version(name: str) -> str:
        found_here = planted[name] if name in planted else real(name)
        if found_here is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return found_here

    with monkeypatch.context() as patched:
        patched.setattr(importlib.metadata, "version", version)
        return found(verl_doctor_versions.installed(RUN))


@pytest.mark.parametrize(
    ("name", "version", "status", "needle"),
    [
        ("transformers", "5.9.0", "note", "this adapter was run with"),
        ("transformers", "5.11.0", "failed", "<5.11"),
        ("transformers", "5.6.0", "failed", "pip install 'transformers==5.9.0'"),
        ("tensordict", "0.10.1", "failed", "<=0.10.0"),
        ("numpy", "1.26.4", "failed", ">=2.0.0"),
        ("ray", "2.40.0", "failed", ">=2.41.0"),
        ("ray", None, "note", "not installed"),
        ("ray", "2.61.0", "note", "run with 2.60.0"),
        ("torch", "2.11.0+cu130", "note", "run with"),
        ("torch", "2.12.0", "note", "vllm extra pins ==2.11.0"),
        ("vllm", None, "note", "pip install 'vllm==0.24.0'"),
        ("vllm", "0.24.0", "ok", "0.24.0"),
        ("vllm", "0.33.0", "note", "pins ==0.24.0"),
        ("verl", "0.9.2", "note", "run with 0.9.1"),
    ],
)
def test_versions_are_held_against_what_verl_accepts_and_what_was_run(
    name: str, version: str | None, status: str, needle: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = versions(monkeypatch, **{name: version})[name]
    assert check.status == status, check
    assert needle in check.detail
    assert check.data["found"] == version


def test_a_python_that_verl_does_not_accept_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "python_version", lambda: "3.13.2")
    check = versions(monkeypatch)["Python"]
    assert check.status == "failed"
    assert "3.11 or 3.12" in check.detail


def test_the_module_that_keeps_trl_from_verl_does() -> None:
    from verl.utils.import_utils import is_trl_available

    code = "import verl; from verl.utils.import_utils import is_trl_available; print(is_trl_available())"
    environment = os.environ | {"VERL_USE_EXTERNAL_MODULES": verl_doctor_versions.WITHOUT_TRL}
    without = subprocess.check_output([sys.executable, "-c", code], text=True, env=environment).split()[-1]
    assert (is_trl_available(), without) == (True, "False")


def test_a_trl_without_the_class_that_verl_imports_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verl_doctor_versions, "_home_of_trl", lambda: tmp_path)
    lacking = versions(monkeypatch, trl="1.16.0")["trl"]
    assert lacking.status == "failed"
    assert "1.16.0 has no AutoModelForCausalLMWithValueHead" in lacking.detail
    assert f"VERL_USE_EXTERNAL_MODULES={verl_doctor_versions.WITHOUT_TRL}" in lacking.detail
    monkeypatch.setenv("VERL_USE_EXTERNAL_MODULES", "stand_in")
    assert versions(monkeypatch, trl="1.16.0")["trl"].status == "note"
    monkeypatch.setenv("VERL_USE_EXTERNAL_MODULES", f"other,{verl_doctor_versions.WITHOUT_TRL}")
    assert versions(monkeypatch, trl="1.16.0")["trl"].status == "ok"
    monkeypatch.delenv("VERL_USE_EXTERNAL_MODULES")
    (tmp_path / "experimental" / "ppo").mkdir(parents=True)
    (tmp_path / "experimental" / "ppo" / "__init__.py").write_text("AutoModelForCausalLMWithValueHead = 1\n")
    assert versions(monkeypatch, trl="0.29.0")["trl"].status == "ok"
    monkeypatch.setattr(verl_doctor_versions, "_home_of_trl", lambda: None)
    assert versions(monkeypatch)["trl"].status == "ok"


# -- configs that cannot be read --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("a: [", (), "run.yaml"),
        ("just text", (), "must hold a config"),
        ("mrjudge: {}", (), "no whole verl config"),
        ("actor_rollout_ref: {rollout: {n: 4}}", (), "data.train_batch_size"),
        ("defaults: [ppo_trainer, _self_]", (), "ppo_trainer"),  # without the search path
        (STREAMING, ("actor_rollout_ref.rollout.nn=3",), "nn"),
        (STREAMING, ("no equals",), "no equals"),
        ("a: 1", ("~a",), "a dump takes KEY=VALUE"),
        (STREAMING + "trainer: {project_name: '${oc.env:NO_SUCH_VARIABLE}'}", (), "NO_SUCH_VARIABLE"),
    ],
)
def test_a_config_that_cannot_be_composed_ends_in_one_clear_line_and_code_2(
    text: str, overrides: Sequence[str], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        examine_verl(str(path), overrides)
    result = run("--verl", path, *(part for setting in overrides for part in ("--verl-set", setting)))
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert result.stdout == ""


def test_a_missing_config_is_named() -> None:
    result = run("--verl", "/no/run.yaml")
    assert result.exit_code == 2
    assert "/no/run.yaml" in result.stderr


# -- the command line -------------------------------------------------------------------------------------------------


def test_the_exit_code_says_whether_a_check_failed(config: Path) -> None:
    good = run("--verl", config)
    assert good.exit_code == 0, good.stdout
    assert "The verl config works." in good.stdout
    bad = run("--verl", config, "--verl-set", "actor_rollout_ref.rollout.n=1")
    assert bad.exit_code == 1
    assert "The verl config does not work" in bad.stdout


def test_json_holds_every_check(config: Path) -> None:
    result = run(
        "--verl", config, "--json", "--verl-set", "reward.num_workers=3", "--verl-set", "+mrjudge.group_size=9"
    )
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    assert report["works"] is False
    checks: dict[str, dict[str, Any]] = {check["name"]: check for check in report["checks"]}
    assert [name for name, check in checks.items() if check["status"] == "failed"] == ["group size"]
    assert checks["group size"]["data"] == {"n": 4, "group_size": 9, "compares": True}
    assert checks["reward workers"]["data"] == {"workers": 3}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--verl", "run.yaml", "--set", "model=x"), "--verl-set +mrjudge.judge.KEY=VALUE"),
        (("--verl-set", "a=b"), "belongs to --verl"),
    ],
)
def test_settings_of_the_two_doctors_do_not_mix(arguments: Sequence[str], message: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr


def test_without_verl_the_pip_line_is_named(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "verl", None)
    result = run("--verl", config)
    assert result.exit_code == 2
    assert "pip install 'mrjudge-reward[verl]'" in result.stderr
