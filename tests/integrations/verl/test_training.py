"""verl trains: two steps of its real trainers on a CPU, started as a user starts the recipes."""

from __future__ import annotations

import json
import math
import os
import re
import statistics
import subprocess
import sys
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from datasets import Dataset
from transformers import AutoTokenizer

from mrjudge_reward.messages import as_messages
from mrjudge_reward.monitoring.run_log import read_run
from mrjudge_reward.scoring.stats import METRICS
from mrjudge_reward.streaming.groups import INFO_KEYS
from mrjudge_reward.types import Request
from recipes.verl.cpu.run import ENVIRONMENT
from tests.support import ROOT
from tests.support.criteria_judge import THREE_CRITERIA, calls_in
from tests.support.small_models import small_text_model
from tests.support.tool_runs import QUESTIONS, chat_template, expected, shown
from tests.support.verl_judges import count_score

RUN = ROOT / "recipes" / "verl" / "cpu" / "run.py"
MARK = "MRJUDGE_TEST_RUN"
GROUPED = (
    "+actor_rollout_ref.rollout.agent.agent_loop_manager_class="
    "mrjudge_reward.integrations.verl.agent_loop.GroupAgentLoopManager"
)
SHORT = "data.max_response_length=16"
LOGGED = "trainer.logger=[console,file]"

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def tiny(smol_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    """How a policy learns is up to verl, and what it is paid does not depend on its size."""
    return small_text_model(smol_tokenizer, tmp_path_factory.mktemp("tiny"))


def marked(mark: str) -> list[psutil.Process]:
    """Processes of a run: all that carry its mark in their environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def train(recipe: str, policy: str, out: Path, *overrides: str) -> list[dict[str, float]]:
    """The metrics of each step that verl printed. The run has to end well, and to leave no process behind."""
    mark = uuid.uuid4().hex
    paths = os.pathsep.join(
        map(str, filter(None, (ROOT / "tests/support/quick_workers", ROOT, os.environ.get("PYTHONPATH"))))
    )
    printed = out / "printed.txt"
    try:
        with printed.open("w", encoding="utf-8") as file:
            command = [sys.executable, str(RUN), recipe, "--out", str(out), f"actor_rollout_ref.model.path={policy}"]
            done = subprocess.run(
                [*command, SHORT, LOGGED, f"+mrjudge.log_dir={out}/judge", *overrides],
                env=os.environ | {MARK: mark, "PYTHONPATH": paths, "VERL_FILE_LOGGER_PATH": str(out / "verl.jsonl")},
                stdout=file, stderr=subprocess.STDOUT, timeout=800, check=False,
            )  # fmt: skip
        text = printed.read_text(encoding="utf-8")
        assert done.returncode == 0, text[-5000:]
        deadline = time.monotonic() + 30
        while (left := marked(mark)) and time.monotonic() < deadline:
            time.sleep(0.5)
        assert not left, [process.cmdline() for process in left]
    finally:
        for process in marked(mark):
            process.kill()
    return steps_in(text)


def steps_in(printed: str) -> list[dict[str, float]]:
    """The metrics in the lines ``step:1 - critic/score/mean:0.5 - training/num_turns/max:np.int32(2) ...``."""
    metric = re.compile(r"([\w/@.-]+):(?:np\.\w+\()?([-+\w.]+)")
    lines = re.findall(r"step:\d+ - (.*training/global_step.*)", printed)
    return [{key: float(value) for key, value in metric.findall(line)} for line in lines]


def scores_of(out: Path, step: int) -> list[list[float]]:
    """The scores of each prompt's group in a step, as verl dumped them."""
    groups = defaultdict(list)
    for line in (out / "rollouts" / f"{step}.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        groups[row["input"]].append(row["score"])
    return list(groups.values())


def check_steps(steps: Sequence[dict[str, float]], out: Path, groups: int, size: int) -> None:
    assert [step["training/global_step"] for step in steps] == [1, 2]
    for number, step in enumerate(steps, 1):
        scores = scores_of(out, number)
        assert [len(group) for group in scores] == [size] * groups
        assert all(len({*group}) > 1 for group in scores)
        assert step["critic/score/max"] == pytest.approx(max(map(max, scores)), abs=1e-5)
        assert step["critic/score/min"] == pytest.approx(min(map(min, scores)), abs=1e-5)
        assert step["actor/grad_norm"] > 0


def check_judge_metrics(out: Path, groups: Sequence[int], validated: int = 0) -> None:
    """What verl's file logger holds of the judge is what its own log says of the same step."""
    rows = [json.loads(line) for line in (out / "verl.jsonl").read_text(encoding="utf-8").splitlines()]
    logged = {(batch.mode, batch.step): batch.stats for batch in read_run(out / "judge").batches}
    assert {place: stats.groups for place, stats in logged.items()} == {
        ("train", 1): groups[0],
        ("train", 2): groups[1],
    } | ({("eval", 1): validated} if validated else {})
    for row in rows:
        mode, step, prefix = ("train", row["step"], "judge/") if row["step"] else ("eval", 1, "val-judge/")
        told = {key.removeprefix(prefix): value for key, value in row["data"].items() if key.startswith(prefix)}
        known = {name: value for name, value in told.items() if value is not None}  # NaN is null in verl's file
        want = {name: value for name, value in logged[mode, step].metrics().items() if not math.isnan(value)}
        assert known == pytest.approx(want)
        assert told.keys() == set(METRICS)
        assert known["calls"] > 0
    assert len(rows) == 2 + bool(validated)


def check_grpo(steps: Sequence[dict[str, float]], out: Path, groups: int, size: int) -> None:
    """Every token's advantage is its sample's score, centred and scaled within the group."""
    check_steps(steps, out, groups, size)
    for number, step in enumerate(steps, 1):
        advantages = [
            (score - statistics.mean(group)) / (statistics.stdev(group) + 1e-6)
            for group in scores_of(out, number)
            for score in group
        ]
        assert step["critic/advantages/max"] == pytest.approx(max(advantages), rel=1e-3)
        assert step["critic/advantages/min"] == pytest.approx(min(advantages), rel=1e-3)


def about_the_weather(out: Path) -> list[str]:
    """Overrides for the questions of ``tool_runs``, to train and to validate on, and the tool that they ask for."""
    rows = [
        {
            "data_source": "weather", "prompt": [{"role": "user", "content": question}],
            "reward_model": {"style": "model", "ground_truth": ""}, "extra_info": {"index": index},
        }
        for index, question in enumerate(QUESTIONS)
    ]  # fmt: skip
    Dataset.from_list(rows).to_parquet(out / "asked.parquet")
    return [
        "actor_rollout_ref.rollout.agent.default_agent_loop=tool_agent",
        f"actor_rollout_ref.rollout.multi_turn.function_tool_path={ROOT / 'tests/support/verl_tools.py'}",
        f"data.train_files={out}/asked.parquet", f"data.val_files={out}/asked.parquet", "trainer.total_epochs=2",
        "data.max_prompt_length=384", "data.max_response_length=256", "actor_rollout_ref.rollout.max_model_len=704",
        "actor_rollout_ref.rollout.max_num_batched_tokens=704",
    ]  # fmt: skip


def test_grpo_trains_on_streamed_rewards_of_tool_users_and_validates_on_groups_of_another_size(
    smol_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The judge is shown of calls and results what it is shown in TRL of the same run (``trl/test_tools.py``)."""
    tokenizer = AutoTokenizer.from_pretrained(smol_path)
    tokenizer.chat_template = chat_template()
    seen = tmp_path / "seen.jsonl"
    monkeypatch.setenv("MRJUDGE_TEST_SEEN", str(seen))
    validation = (
        "trainer.val_before_train=True",
        "data.val_max_samples=2",
        "actor_rollout_ref.rollout.val_kwargs.n=2",
        "actor_rollout_ref.rollout.val_kwargs.do_sample=True",
        "actor_rollout_ref.rollout.val_kwargs.temperature=1.0",
        GROUPED,
    )
    judged = (
        "+mrjudge.judge.model=x", "+mrjudge.judge.audit=False", "+mrjudge.factory=tests.support.verl_judges:recording_judge"
    )  # fmt: skip
    policy = small_text_model(tokenizer, tmp_path / "caller")
    steps = train("grpo", policy, tmp_path, *about_the_weather(tmp_path), *validation, *judged)
    check_grpo(steps, tmp_path, groups=2, size=4)
    printed = (tmp_path / "printed.txt").read_text(encoding="utf-8")
    means = dict(re.findall(r"val-\w+/weather/(\w+)/mean@2:np\.\w+\(([-.\w]+)\)", printed))
    assert means.keys() >= {"reward", *INFO_KEYS}
    assert float(means["judge_partial"]) == float(means["judge_failed"]) == 0
    assert float(means["judge_games"]) == 2, "each of two met the other, in both orders"
    check_judge_metrics(tmp_path, groups=(2, 2), validated=2)
    assert steps[0]["training/num_turns/max"] == 6
    requests = [Request(as_messages(json.loads(line)[0])) for line in seen.read_text(encoding="utf-8").splitlines()]
    assert shown(requests) == {f"What is the weather in {city}?": expected(city) for city in ("Oslo", "Rome")}
    for number in (1, 2):
        for group in scores_of(tmp_path, number):
            worst, poor, good, best = sorted(group)
            assert worst <= poor < 0 < good <= best, "those that looked it up"


def of_two_sources(out: Path) -> list[str]:
    """Overrides for rows of two sources with two references each."""
    rows = [
        {
            "data_source": source, "prompt": [{"role": "user", "content": f"{number} {source}"}],
            "reward_model": {"style": "rule", "ground_truth": ["one", "two"]}, "extra_info": {"index": number},
        }
        for number, source in enumerate(["sums", "essays"] * 4)
    ]  # fmt: skip
    Dataset.from_list(rows).to_parquet(out / "mixed.parquet")
    return [f"data.train_files={out}/mixed.parquet", "+mrjudge.reference_field=reward_model.ground_truth"]


COMPONENTS = {
    **{f"judge_criterion_{one['name']}": abs(one.get("weight", 1)) for one in THREE_CRITERIA},
    "rule_reward": 0.5,
}
"""GDPO's keys and weights; a pitfall's sign is turned in its rewards."""


def test_the_trainer_before_mixes_judge_and_rule_per_data_source_and_normalises_each_criterion_by_itself(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GDPO, which the newer trainer of verl 0.9.1 gives no components; with several references in a row."""
    monkeypatch.setenv("MRJUDGE_TEST_CALLS", str(calls := tmp_path / "calls.txt"))
    monkeypatch.setenv("MRJUDGE_TEST_ADVANTAGES", str(advantages := tmp_path / "advantages.jsonl"))
    monkeypatch.setenv(
        "VERL_USE_EXTERNAL_MODULES", ENVIRONMENT["VERL_USE_EXTERNAL_MODULES"] + ",tests.support.verl_advantages"
    )
    settings = {"adapter": "embedded", "criteria": "comparative", "budget": 4, "rubric": THREE_CRITERIA}
    (tmp_path / "judge.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    weights = {"sums": (0.0, 1.0), "essays": (0.5, 0.25)}
    steps = train(
        "grpo", tiny, tmp_path, "+mrjudge.factory=tests.support.verl_judges:referring_judge", "trainer.use_v1=False",
        f"mrjudge.judge={tmp_path}/judge.yaml", *of_two_sources(tmp_path), "data.shuffle=False",
        "+mrjudge.judge_weight={sums:0.0,essays:0.5}", "+mrjudge.rule_weight={sums:1.0,essays:0.25}",
        "reward.custom_reward_function.path=pkg://tests.support.verl_judges",
        "reward.custom_reward_function.name=count_score", "algorithm.adv_estimator=gdpo",
        f"+algorithm.gdpo_reward_keys=[{','.join(COMPONENTS)}]",
        f"+algorithm.gdpo_reward_weights={[*COMPONENTS.values()]}",
    )  # fmt: skip
    check_steps(steps, tmp_path, groups=2, size=4)
    rows = [json.loads(line) for line in advantages.read_text("utf-8").splitlines()]
    judged = [row["parts"] for row in rows if any(row["parts"][:-1])]
    assert all(len({*values}) > 2 for values in zip(*judged, strict=True)), "each component tells answers apart"
    for number, step in enumerate(steps, 1):
        told = [json.loads(line) for line in (tmp_path / f"rollouts/{number}.jsonl").read_text("utf-8").splitlines()]
        sources = ["sums" if "sums" in row["input"] else "essays" for row in told]
        assert sorted(sources) == ["essays"] * 4 + ["sums"] * 4
        for source, row in zip(sources, told, strict=True):
            of_judge, of_rule = weights[source]
            assert row["rule_reward"] == pytest.approx(count_score(source, row["output"], ["one", "two"]))
            assert row["score"] == pytest.approx(of_judge * row["judge_reward"] + of_rule * row["rule_reward"])
            assert (row["judge_games"] > 0) == (source == "essays")
            assert row["judge_failed"] == 0
        for key in COMPONENTS:
            assert step[f"gdpo/{key}/max"] == pytest.approx(max(row[key] for row in told), abs=1e-5)
        mine, rows = rows[: len(told)], rows[len(told) :]
        assert [row["parts"] for row in mine] == [pytest.approx([row[key] for key in COMPONENTS]) for row in told]
        check_gdpo(mine, [*COMPONENTS.values()])
    assert not rows
    assert calls_in(calls) == {one["name"]: 2 * 4 for one in THREE_CRITERIA}, "a group of each step, judged once"
    check_judge_metrics(tmp_path, groups=(1, 1))


def check_gdpo(rows: Sequence[dict[str, Any]], weights: Sequence[float]) -> None:
    """Every token's advantage is its row's weighted sum of parts, each centred and scaled in its group; scaled over all."""
    groups = defaultdict(list)
    for row in rows:
        groups[row["group"]].append(row["parts"])

    def total(row: dict[str, Any]) -> float:
        columns = zip(weights, row["parts"], zip(*groups[row["group"]], strict=True), strict=True)
        return sum(
            weight * (own - statistics.mean(all)) / (statistics.stdev(all) + 1e-6) for weight, own, all in columns
        )

    tokens = [total(row) for row in rows for _ in row["advantages"]]
    mean, deviation = statistics.mean(tokens), statistics.stdev(tokens)
    for row in rows:
        assert row["advantages"] == pytest.approx([(total(row) - mean) / deviation] * len(row["advantages"]), abs=1e-3)


def check_ppo(steps: Sequence[dict[str, float]], out: Path, groups: int, size: int) -> None:
    check_steps(steps, out, groups, size)
    for step in steps:
        assert step["critic/vf_loss"] > 0
        assert step["critic/grad_norm"] > 0
        assert step["critic/returns/max"] == pytest.approx(step["critic/score/max"], abs=1e-4)  # gamma = lambda = 1
        assert step["critic/advantages/min"] < 0 < step["critic/advantages/max"]
        assert step["critic/advantages/mean"] == pytest.approx(0, abs=1e-3)  # whitened over the batch's tokens


def overrides_of(values: Mapping[str, Any], name: str) -> list[str]:
    """A part of a config as overrides."""
    inner = [(f"{name}.{key}", value) for key, value in values.items()]
    parts = [overrides_of(value, path) if isinstance(value, dict) else [f"++{path}={value}"] for path, value in inner]
    return [line for part in parts for line in part]


PPO = yaml.safe_load((RUN.parent / "ppo.yaml").read_text(encoding="utf-8"))
CRITIC = (*overrides_of(PPO["critic"], "critic"), *overrides_of(PPO["algorithm"], "algorithm"))


@pytest.mark.parametrize(
    ("critic", "check"),
    [(CRITIC, check_ppo), pytest.param((), check_grpo, marks=pytest.mark.scale)],
    ids=["ppo", "grpo"],
)
def test_it_trains_with_a_reward_model_on_the_policys_devices(
    critic: Sequence[str], check: Callable[..., None], tiny: str, tmp_path: Path
) -> None:
    carried = ("+mrjudge.rule_weight=0.25", "reward.custom_reward_function.path=pkg://tests.support.verl_judges")
    scored_by = "reward.custom_reward_function.name=count_score"
    judged = ("+mrjudge.judge.min_label_mass=0.0", "mrjudge.judge.format=choice")
    steps = train(
        "grpo_colocated", tiny, tmp_path, *critic, *judged, GROUPED, *carried, scored_by, *of_two_sources(tmp_path)
    )
    check(steps, tmp_path, groups=2, size=4)
    assert all(step["timing_s/reward"] > 0 for step in steps)
    shown = {group.reference for batch in read_run(tmp_path / "judge").batches for group in batch.groups}
    assert shown == {"Reference 1 of 2: one\nReference 2 of 2: two"}, "the prompts carry what verl does not pass"
    check_judge_metrics(tmp_path, groups=(2, 2))


@pytest.mark.scale
def test_the_ppo_recipe_trains_its_critic_on_the_rewards(tiny: str, tmp_path: Path) -> None:
    steps = train("ppo", tiny, tmp_path, "+mrjudge.factory=tests.support.verl_judges:scripted_judge")
    check_ppo(steps, tmp_path, groups=2, size=2)
