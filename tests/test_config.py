"""One configuration: what it refuses, and what it resolves to."""

from __future__ import annotations

import importlib
import pickle
import re
from pathlib import Path
from typing import Any

import pytest

from mrjudge_reward.config import JudgeConfig
from mrjudge_reward.engines.engine_config import EngineConfig
from mrjudge_reward.engines.scripted import ScriptedEngine
from mrjudge_reward.errors import ConfigError
from mrjudge_reward.judge import Judge
from mrjudge_reward.prompting.formats import SENTIMENT, Choice, PairScores, Ranking, Score
from mrjudge_reward.scoring.rewards import RewardShape
from mrjudge_reward.types import Sampling


def build(**settings: Any) -> Judge:
    return JudgeConfig(**settings).build(ScriptedEngine.by_utility(len))


# -- what it refuses --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shedule": "ring"}, "unknown setting 'shedule'; did you mean 'schedule'?"),
        ({"temprature": 1.0}, "did you mean 'temperature'?"),
        ({"maxtokens": 5}, "did you mean 'max_tokens'?"),
        ({"zzzz": 1}, "unknown setting 'zzzz'; known are model, engine"),
        ({"api_key": "sk-secret"}, "unknown setting 'api_key'; did you mean 'api_key_env'?"),
    ],
)
def test_an_unknown_setting_is_refused_with_the_nearest_known_one(settings: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=re.escape(message)):
        JudgeConfig(**settings)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model", 7), ("model", None), ("votes", "3"), ("votes", 1.5), ("votes", True), ("temperature", "hot"),
        ("seed", "0"), ("centre", "yes"), ("both_orders", 1), ("extra_body", ["a"]), ("labels", "ABC"),
        ("labels", {"good": "high"}), ("adapter", 3), ("max_concurrency", None), ("cache", True),
        ("engine_kwargs", ["enforce_eager"]), ("tensor_parallel_size", "2"), ("colocated", "yes"),
        ("sleep_level", 3), ("turn_wait_s", 0.0), ("turn_wait_s", float("inf")),
    ],
)  # fmt: skip
def test_a_value_of_the_wrong_type_is_refused_by_name(name: str, value: Any):
    with pytest.raises(ConfigError, match=rf"{name}: .*\(got "):
        JudgeConfig(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("engine", "sglang"), ("format", "essay"), ("schedule", "shuffle"), ("rating", "elo"), ("verdict", "guessed"),
        ("temperature", -0.1), ("temperature", 6.0), ("top_p", 0.0), ("top_p", 1.1), ("max_tokens", 0),
        ("thinking_tokens", -1), ("cascade_margin", -1.0), ("votes", 0), ("retries", -1), ("budget", 0),
        ("max_slots", 1), ("max_candidate_tokens", 0), ("max_failed_fraction", 1.1), ("failure_window", 0),
        ("length_weight", -0.5), ("max_concurrency", 0), ("deadline_s", 0.0), ("context_tokens", 0),
        ("batch_size", 0), ("batch_tokens", 0), ("gpu_memory_utilization", 0.0), ("gpu_memory_utilization", 1.1),
        ("tensor_parallel_size", 0),
    ],
)  # fmt: skip
def test_a_value_out_of_range_is_refused_by_name(name: str, value: Any):
    with pytest.raises(ConfigError, match=rf"{name}: .*\(got "):
        JudgeConfig(**{name: value})


def test_every_fault_is_named_at_once():
    with pytest.raises(ConfigError, match=r"votes: .*; top_p: |top_p: .*; votes: "):
        JudgeConfig(votes=0, top_p=2.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"engine": "openai", "model": "m"}, "needs base_url"),
        ({"engine": "transformers", "model": "m", "base_url": "http://x/v1"}, "base_url is for engine 'openai'"),
        ({"engine": "vllm", "model": "m", "base_url": "http://x/v1"}, "base_url is for engine 'openai'"),
        ({"engine": "vllm_server", "model": "m", "base_url": "http://x/v1"}, "base_url is for engine 'openai'"),
        ({"engine_kwargs": {"enforce_eager": True}}, "engine_kwargs is for engines 'vllm', 'vllm_server'"),
        ({"model": "m", "tensor_parallel_size": 2}, "tensor_parallel_size is for engines"),
        ({"model": "m", "engine": "transformers", "gpu_memory_utilization": 0.5}, "gpu_memory_utilization is for"),
        ({"base_url": "http://x/v1", "model": "m", "colocated": True}, "colocated is for engines"),
        ({"engine": "transformers", "colocated": True}, "colocated is for engines 'vllm_server', 'vllm', 'offload'"),
        ({"engine": "offload", "sleep_level": 1}, "sleep_level is for engines 'vllm', 'vllm_server'"),
        ({"engine": "vllm_server", "adapter": "a", "sleep_level": 2}, "use level 1"),
        ({"engine": "vllm_server", "device": "cuda:1", "tensor_parallel_size": 2}, "first visible GPUs"),
        ({"engine": "shared_base"}, "SharedBaseJudgeReward"),
        ({"engine": "vllm", "device": "cuda:1"}, "CUDA_VISIBLE_DEVICES"),
        ({"base_url": "http://x/v1"}, "name the model that the server knows"),
        ({"base_url": "http://x/v1", "model": "m", "adapter": "a"}, "adapter is for engines that load a model"),
        ({"format": "ranking", "tie_label": "T"}, "tie_label belongs to format 'choice'"),
        ({"tie_label": "T"}, "tie_label belongs to format 'choice'"),
        ({"format": "choice", "labels": ["A", "B"], "tie_label": "B"}, "labels must be"),
        ({"format": "choice", "labels": ["A"]}, "labels must be at least 2"),
        ({"format": "choice", "labels": {"A": 1.0}}, "must be a list"),
        ({"format": "score", "labels": ["1", "2"]}, "must map each label to its value"),
        ({"format": "choice", "template": "no-such-template"}, "no template 'no-such-template'"),
        ({"schedule": "ring"}, "does not fit format Score"),
        ({"model": "m", "schedule": "pointwise"}, "does not fit format Choice"),
        ({"model": "m", "format": "ranking", "verdict": "read"}, "cannot be read"),
        ({"verdict": "cascade"}, "has no order"),
        ({"model": "m", "rating": "mean_score"}, "needs a format that grades"),
        ({"model": "m", "votes": 3, "temperature": 0.0}, "raise the temperature"),
        ({"model": "m", "votes": 3, "verdict": "read"}, "set thinking_tokens"),
        ({"model": "m", "votes": 3, "budget": 2}, "budget must be at least 3"),
    ],
)
def test_settings_that_contradict_each_other_are_refused_before_a_model_is_loaded(
    settings: dict[str, Any], message: str
):
    with pytest.raises(ConfigError, match=re.escape(message)):
        JudgeConfig(**settings)


def test_the_default_config_refuses_nothing():
    config = JudgeConfig()
    assert config.embedded
    assert config.build(ScriptedEngine.by_utility(len)).rank("q", ["short", "a longer one"]).order == (1, 0)


def test_a_config_cannot_be_changed_afterwards():
    with pytest.raises(ValueError, match="frozen"):
        JudgeConfig().votes = 2  # type: ignore[misc]


# -- reading ----------------------------------------------------------------------------------------------------------


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "judge.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_yaml_file_holds_the_same_settings(tmp_path: Path):
    path = written(tmp_path, "model: org/judge\nschedule: ring\ntemperature: 1\nlabels: [A, B]\n")
    assert JudgeConfig.load(path) == JudgeConfig(model="org/judge", schedule="ring", temperature=1.0, labels=["A", "B"])
    assert JudgeConfig.load(str(path)) == JudgeConfig.load(path)


@pytest.mark.parametrize("text", ["", "# only a comment\n", "---\n", "{}\n"])
def test_an_empty_file_is_the_default(tmp_path: Path, text: str):
    assert JudgeConfig.load(written(tmp_path, text)) == JudgeConfig()


def test_keyword_arguments_override_the_file(tmp_path: Path):
    path = written(tmp_path, "model: org/judge\nvotes: 3\n")
    config = JudgeConfig.load(path, votes=1, seed=7)
    assert (config.model, config.votes, config.seed) == ("org/judge", 1, 7)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- model\n- votes\n", "must hold settings (key: value); got list"),
        ("just words\n", "must hold settings (key: value); got str"),
        ("model: [unclosed\n", "judge.yaml"),
        ("vote: 3\n", "did you mean 'votes'?"),
        ("votes: many\n", "votes: "),
        ("3: three\n", "unknown setting '3'"),
    ],
)
def test_a_file_of_anything_else_is_refused(tmp_path: Path, text: str, message: str):
    with pytest.raises(ConfigError, match=re.escape(message)):
        JudgeConfig.load(written(tmp_path, text))


def test_a_file_that_is_missing_or_not_text_is_refused_by_name(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"nowhere\.yaml"):
        JudgeConfig.load(tmp_path / "nowhere.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(ConfigError, match=r"binary\.yaml"):
        JudgeConfig.load(tmp_path / "binary.yaml")


def test_an_override_of_an_unknown_setting_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="did you mean 'votes'"):
        JudgeConfig.load(written(tmp_path, ""), vote=1)


# -- what it resolves to ----------------------------------------------------------------------------------------------


def test_the_embedded_model_is_read_pointwise_for_sentiment():
    judge = build()
    assert (judge.format, judge.schedule, judge.asker.verdict) == (SENTIMENT, "pointwise", "read")


def test_any_other_model_writes_its_choices_and_meets_adaptively():
    judge = build(model="org/judge")
    assert (judge.format, judge.schedule, judge.asker.verdict) == (Choice(), "adaptive", "sampled")
    assert judge.asker.sampling == Sampling(0.6, 0.95, 1024)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"model": "m", "format": "score"}, (Score(), "pointwise", "sampled")),
        ({"model": "m", "format": "score", "verdict": "read"}, (Score(), "pointwise", "read")),
        ({"model": "m", "format": "ranking", "schedule": "listwise"}, (Ranking(), "listwise", "sampled")),
        ({"model": "m", "format": "pair_scores"}, (PairScores(), "adaptive", "sampled")),
        ({"model": "m", "verdict": "cascade"}, (Choice(), "adaptive", "cascade")),
        ({"model": "m", "format": "sentiment"}, (SENTIMENT, "pointwise", "sampled")),
        ({"format": "choice"}, (Choice(), "adaptive", "read")),
        ({"format": "ranking"}, (Ranking(), "adaptive", "sampled")),
        ({"base_url": "http://127.0.0.1:1/v1", "model": "m"}, (Choice(), "adaptive", "sampled")),
    ],
)
def test_auto_follows_the_format_and_the_model(settings: dict[str, Any], expected: tuple[Any, str, str]):
    judge = build(**settings)
    assert (judge.format, judge.schedule, judge.asker.verdict) == expected


@pytest.mark.parametrize(
    ("settings", "format"),
    [
        ({"model": "m", "labels": ["1", "2", "3"]}, Choice(labels=("1", "2", "3"))),
        ({"model": "m", "tie_label": "tie"}, Choice(tie_label="tie")),
        ({"model": "m", "format": "ranking", "labels": ["x", "y"]}, Ranking(labels=("x", "y"))),
        ({"model": "m", "format": "score", "labels": {"bad": 0, "good": 1.0}}, Score(grades=(("bad", 0.0), ("good", 1.0)))),
        ({"labels": {" bad": 0.0, " good": 1.0}}, Score("sentiment", ((" bad", 0.0), (" good", 1.0)), "Sentiment:", "")),
        ({"model": "m", "template": "ranking"}, Choice(template="ranking")),
    ],
)  # fmt: skip
def test_labels_and_wording_reach_the_format(settings: dict[str, Any], format: Any):
    assert JudgeConfig(**settings).build_format() == format


def test_every_setting_of_the_judge_reaches_it(tmp_path: Path):
    judge = build(
        model="m", schedule="ring", rating="borda", verdict="cascade", temperature=0.3, top_p=0.5, max_tokens=99,
        cascade_margin=0.5, budget=12, both_orders=True, max_slots=4, votes=2, retries=3, seed=5,
        cache=str(tmp_path / "replies.sqlite"), max_candidate_tokens=77, max_failed_fraction=0.25, failure_window=64,
    )  # fmt: skip
    assert (judge.schedule, judge.rating, judge.asker.verdict) == ("ring", "borda", "cascade")
    assert judge.asker.sampling == Sampling(0.3, 0.5, 99)
    assert (judge.limits.budget, judge.limits.both_orders, judge.limits.max_slots) == (5, True, 4)
    assert (judge.asker.cascade_margin, judge.votes, judge.asker.retries, judge.seed) == (0.5, 2, 3, 5)
    assert judge.asker.max_candidate_tokens == 77
    assert (judge.alarm.max_fraction, judge.alarm.window) == (0.25, 64)
    assert judge.cache is not None
    judge.close()


def test_a_config_alone_makes_no_cache_file(tmp_path: Path):
    JudgeConfig(cache=str(tmp_path / "replies.sqlite"))
    assert list(tmp_path.iterdir()) == []


def test_the_shape_of_rewards_is_part_of_it():
    assert JudgeConfig(centre=True, length_weight=0.5).reward_shape == RewardShape(True, 0.5)


def test_the_server_and_its_key_reach_the_engine(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("JUDGE_KEY", "sk-secret")
    config = JudgeConfig(model="m", base_url="http://127.0.0.1:1/v1", api_key_env="JUDGE_KEY", context_tokens=4096)
    engine = config.build_engine()
    assert engine.context_tokens == 4096
    assert "sk-secret" not in repr(config) + engine.identity
    engine.close()


@pytest.mark.parametrize(("engine", "module", "name"), [
    ("vllm", "vllm", "VLLMEngine"), ("vllm_server", "vllm_server", "VLLMServerEngine"),
])  # fmt: skip
def test_the_settings_of_vllm_reach_its_engine(monkeypatch: pytest.MonkeyPatch, engine: str, module: str, name: str):
    built: dict[str, Any] = {}

    def build_engine(model: str, **settings: Any) -> Any:
        built.update(settings, model=model)

    monkeypatch.setattr(importlib.import_module(f"mrjudge_reward.engines.{module}"), name, build_engine)
    given = {
        "model": "m", "adapter": "a", "dtype": "bfloat16", "gpu_memory_utilization": 0.5,
        "engine_kwargs": {"seed": 1}, "chat_template_kwargs": {"enable_thinking": True},
    }  # fmt: skip
    of_the_server: dict[str, Any] = {"device": "cuda:1", "max_concurrency": 3, "deadline_s": 9.0}
    given |= of_the_server if engine == "vllm_server" else {}
    JudgeConfig(engine=engine, context_tokens=4096, **given).build_engine()
    awake = {"tensor_parallel_size": 1, "enable_sleep_mode": False, "sleep_level": 1}
    assert built == {**given, **awake, "max_model_len": 4096}


def test_a_config_survives_pickling_and_compares_by_value():
    config = JudgeConfig(model="m", labels=["A", "B"], extra_body={"a": {"b": 1}})
    assert pickle.loads(pickle.dumps(config)) == config
    assert config == JudgeConfig(model="m", labels=["A", "B"], extra_body={"a": {"b": 1}})
    assert config != JudgeConfig(model="m", labels=["A", "C"], extra_body={"a": {"b": 1}})


@pytest.mark.parametrize("name", list(JudgeConfig.model_fields))
def test_every_setting_is_documented(name: str):
    entries = re.findall(r"^        ([\w, ]+): \S", f"{EngineConfig.__doc__}{JudgeConfig.__doc__}", re.MULTILINE)
    assert name in {word for entry in entries for word in entry.split(", ")}
