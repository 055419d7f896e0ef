"""One configuration: what it refuses, and what it resolves to."""

from __future__ import annotations

import importlib
import pickle
import re
from importlib import resources
from pathlib import Path
from random import Random
from typing import Any, get_args

import numpy as np
import pytest

from mrjudge_reward.cache import ReplyCache
from mrjudge_reward.config import ONLY, SECTIONS, JudgeSettings
from mrjudge_reward.engines import engine_config
from mrjudge_reward.engines.scripted import ScriptedEngine
from mrjudge_reward.errors import ConfigError
from mrjudge_reward.judge import Judge, JudgeConfig
from mrjudge_reward.prompting.formats import SENTIMENT, Choice, Format, PairScores, Ranking, Score
from mrjudge_reward.scoring.alarms import FailureAlarm
from mrjudge_reward.scoring.ratings import Rating
from mrjudge_reward.scoring.rewards import RewardShape
from mrjudge_reward.scoring.schedules import Limits, Plan, Schedule
from mrjudge_reward.types import Sampling


def build(**settings: Any) -> Judge:
    return JudgeConfig(**settings).build(ScriptedEngine.by_utility(len))


def ways(judge: Judge) -> tuple[Format, str, str]:
    return judge.format, judge.schedule.name, judge.settings.verdict_mode


# -- what it refuses --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shedule": "ring"}, "unknown setting 'shedule'; did you mean 'schedule'?"),
        ({"temprature": 1.0}, "did you mean 'temperature'?"),
        ({"maxtokens": 5}, "did you mean 'max_tokens'?"),
        ({"zzzz": 1}, "unknown setting 'zzzz'; known are "),
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
        ("labels", {"good": 1.0}), ("grades", {"good": "high"}), ("grades", ["1", "2"]), ("adapter", 3),
        ("max_concurrency", None), ("cache", True),
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


@pytest.mark.parametrize("name", [1, 0, -1, 1.0, 2.5, True, None, (1, 2), 10**20])
@pytest.mark.parametrize("format", ["score", "pair_scores"])
def test_a_grade_without_quotes_is_refused_and_told_how_to_write_it(format: str, name: Any):
    with pytest.raises(ConfigError, match=rf"^grades: .*put it in quotes, as in .*is {re.escape(repr(name))} "):
        JudgeConfig(model="m", format=format, grades={"5": 5, name: 1})


def test_every_fault_is_named_at_once():
    with pytest.raises(ConfigError, match=r"votes: .*; top_p: |top_p: .*; votes: "):
        JudgeConfig(votes=0, top_p=2.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"engine": "openai", "model": "m"}, "needs base_url"),
        (
            {"engine": "transformers", "model": "m", "base_url": "http://x/v1"},
            "it is for 'openai'",
        ),
        ({"engine": "vllm", "model": "m", "base_url": "http://x/v1"}, "base_url does nothing with engine 'vllm'"),
        ({"engine": "vllm_server", "model": "m", "base_url": "http://x/v1"}, "base_url does nothing"),
        (
            {"engine_kwargs": {"enforce_eager": True}},
            "it is for 'vllm', 'vllm_server'",
        ),
        ({"model": "m", "tensor_parallel_size": 2}, "tensor_parallel_size does nothing"),
        (
            {"model": "m", "engine": "transformers", "gpu_memory_utilization": 0.5},
            "gpu_memory_utilization does nothing",
        ),
        ({"base_url": "http://x/v1", "model": "m", "colocated": True}, "colocated does nothing with engine 'openai'"),
        ({"engine": "transformers", "colocated": True}, "it is for 'vllm_server', 'vllm', 'offload'"),
        ({"engine": "offload", "sleep_level": 1}, "sleep_level does nothing with engine 'offload'"),
        ({"engine": "vllm_server", "adapter": "a", "sleep_level": 2}, "use level 1"),
        ({"engine": "vllm_server", "device": "cuda:1", "tensor_parallel_size": 2}, "first visible GPUs"),
        ({"engine": "shared_base"}, "SharedBaseJudgeReward"),
        ({"engine": "vllm", "device": "cuda:1"}, "CUDA_VISIBLE_DEVICES"),
        ({"base_url": "http://x/v1"}, "name the model that the server knows"),
        ({"base_url": "http://x/v1", "model": "m", "adapter": "a"}, "a server is told to load it"),
        ({"format": "ranking", "tie_label": "T"}, "tie_label does nothing here: it is for format choice"),
        ({"tie_label": "T"}, "tie_label does nothing here"),
        ({"format": "choice", "labels": ["A", "B"], "tie_label": "B"}, "labels must be"),
        ({"format": "choice", "labels": ["A"]}, "labels must be at least 2"),
        ({"format": "choice", "grades": {"A": 1.0}}, "grades does nothing here: it is for formats that grade"),
        ({"format": "score", "labels": ["1", "2"]}, "labels does nothing here"),
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
    assert ways(judge) == (SENTIMENT, "pointwise", "logprobs")


def test_any_other_model_is_read_and_meets_adaptively():
    judge = build(model="org/judge")
    assert ways(judge) == (Choice(), "adaptive", "logprobs")
    assert judge.settings.sampling == Sampling(0.6, 0.95, 1024)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"model": "m", "format": "score"}, (Score(), "pointwise", "logprobs")),
        ({"model": "m", "format": "score", "verdict": "sampled"}, (Score(), "pointwise", "generate")),
        ({"model": "m", "verdict": "sampled"}, (PairScores(), "listwise", "generate")),
        ({"model": "m", "votes": 3}, (PairScores(), "listwise", "generate")),
        ({"model": "m", "votes": 3, "thinking_tokens": 8}, (Choice(), "adaptive", "logprobs")),
        ({"model": "m", "verdict": "sampled", "tie_label": "tie"}, (Choice(tie_label="tie"), "adaptive", "generate")),
        ({"model": "m", "verdict": "sampled", "template": "choice"}, (Choice(), "adaptive", "generate")),
        ({"model": "m", "format": "ranking", "schedule": "listwise"}, (Ranking(), "listwise", "generate")),
        ({"model": "m", "format": "pair_scores"}, (PairScores(), "listwise", "generate")),
        ({"model": "m", "verdict": "cascade"}, (Choice(), "adaptive", "cascade")),
        ({"model": "m", "format": "sentiment"}, (SENTIMENT, "pointwise", "logprobs")),
        ({"format": "choice"}, (Choice(), "adaptive", "logprobs")),
        ({"format": "ranking"}, (Ranking(), "listwise", "generate")),
        ({"base_url": "http://127.0.0.1:1/v1", "model": "m"}, (Choice(), "adaptive", "logprobs")),
    ],
)
def test_auto_follows_the_format_and_the_model(settings: dict[str, Any], expected: tuple[Any, str, str]):
    judge = build(**settings)
    assert ways(judge) == expected


@pytest.mark.parametrize(
    ("settings", "format"),
    [
        ({"model": "m", "labels": ["1", "2", "3"]}, Choice(labels=("1", "2", "3"))),
        ({"model": "m", "tie_label": "tie"}, Choice(tie_label="tie")),
        ({"model": "m", "format": "ranking", "labels": ["x", "y"]}, Ranking(labels=("x", "y"))),
        ({"model": "m", "format": "score", "grades": {"bad": 0, "good": 1.0}}, Score(grades=(("bad", 0.0), ("good", 1.0)))),
        ({"grades": {" bad": 0.0, " good": 1.0}}, Score("sentiment", ((" bad", 0.0), (" good", 1.0)), "Sentiment:", "")),
        ({"model": "m", "template": "ranking"}, Choice(template="ranking")),
    ],
)  # fmt: skip
def test_labels_and_wording_reach_the_format(settings: dict[str, Any], format: Any):
    assert JudgeConfig(**settings).judge_format == format


def test_every_setting_of_the_judge_reaches_it(tmp_path: Path):
    judge = build(
        model="m", schedule="listwise", rating="borda", verdict="cascade", temperature=0.3, top_p=0.5, max_tokens=99,
        cascade_margin=0.5, budget=12, both_orders=True, max_slots=4, votes=2, retries=3, seed=5,
        cache=str(tmp_path / "replies.sqlite"), max_candidate_tokens=77, max_failed_fraction=0.25, failure_window=64,
    )  # fmt: skip
    assert ways(judge) == (Choice(), "listwise", "cascade")
    settings = judge.settings
    assert (judge.rating.name, settings.sampling) == ("borda", Sampling(0.3, 0.5, 99))
    assert (settings.limits.budget, settings.limits.both_orders, settings.limits.max_slots) == (6, True, 4)
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
    ("vllm", "vllm.engine", "VLLMEngine"), ("vllm_server", "vllm.server", "VLLMServerEngine"),
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
    of_the_server: dict[str, Any] = {"device": "cuda:1", "max_concurrency": 3, "deadline_s": 9.0, "outage_wait_s": 5.0}
    given |= of_the_server if engine == "vllm_server" else {}
    JudgeConfig(engine=engine, context_tokens=4096, **given).build_engine()
    awake = {"tensor_parallel_size": 1, "enable_sleep_mode": False, "sleep_level": 1}
    assert built == {**given, **awake, "max_model_len": 4096}


def test_a_config_survives_pickling_and_compares_by_value():
    config = JudgeConfig(**SERVER, labels=["A", "B"], extra_body={"a": {"b": 1}})
    assert pickle.loads(pickle.dumps(config)) == config
    assert config == JudgeConfig(**SERVER, labels=["A", "B"], extra_body={"a": {"b": 1}})
    assert config != JudgeConfig(**SERVER, labels=["A", "C"], extra_body={"a": {"b": 1}})


# -- each setting once ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(JudgeConfig.model_fields))
def test_every_setting_is_documented_in_one_section(name: str):
    sections = [section for section in SECTIONS if name in section.__annotations__]
    assert len(sections) == 1
    assert len((JudgeConfig.model_fields[name].description or "").split()) > 2


ALWAYS = {
    "model", "engine", "format", "criteria", "verdict", "schedule", "rating", "max_candidate_tokens", "max_pixels", "votes",
    "retries", "seed", "budget", "centre", "length_weight", "cache", "max_failed_fraction", "failure_window",
}  # fmt: skip
"""Settings that hold for every judge."""


def test_it_is_known_of_every_setting_for_which_judges_it_holds():
    some = ONLY.keys() | engine_config.ONLY.keys()  # a setting may need both an engine and a format
    assert ALWAYS | some == set(JudgeConfig.model_fields)
    assert not ALWAYS & some
    engines = set(get_args(engine_config.EngineName)) - {"auto"}
    assert all(set(known) < engines for known in engine_config.ONLY.values())


SERVER = {"model": "m", "base_url": "http://127.0.0.1:9/v1"}
WRITES = {"model": "m", "verdict": "generate"}
READS = {"model": "m", "verdict": "logprobs"}
ALONE = {"model": "m", "format": "score"}


@pytest.mark.parametrize(
    ("judge", "ignored"),
    [
        (SERVER, {"chat_template_kwargs": {"enable_thinking": False}}), (SERVER, {"dtype": "float16"}),
        (SERVER, {"device": "cuda:3"}), (SERVER, {"batch_size": 1}), (SERVER, {"batch_tokens": 99}),
        (SERVER, {"revision": "main"}), (SERVER, {"engine_kwargs": {"seed": 1}}), (SERVER, {"turn_wait_s": 5.0}),
        ({}, {"context_tokens": 512}), ({}, {"extra_body": {"x": 1}}), ({}, {"deadline_s": 1.0}),
        ({}, {"max_concurrency": 3}), ({}, {"api_key_env": "KEY"}), ({}, {"fold_system": True}),
        ({}, {"token_parameter": "max_completion_tokens"}), ({}, {"top_logprobs": 5}), ({}, {"temperature": 0.0}),
        ({"model": "m", "engine": "vllm"}, {"deadline_s": 9.0}), ({"model": "m", "engine": "vllm"}, {"batch_size": 4}),
        ({"model": "m", "engine": "vllm"}, {"turn_wait_s": 9.0}),
        (WRITES, {"cascade_margin": 7.0}), (WRITES, {"min_label_mass": 0.1}), (WRITES, {"thinking_tokens": 9}),
        (READS, {"max_slots": 4}), (READS, {"grades": {"1": 1.0, "2": 2.0}}),
        (WRITES | {"tie_label": "tie"}, {"grades": {"1": 1.0, "2": 2.0}}),
        (READS, {"max_tokens": 7}), (READS, {"temperature": 0.0}), (READS, {"top_p": 0.5}),
        (ALONE, {"both_orders": True}), (ALONE, {"labels": ["1", "2"]}), (ALONE, {"audit": False}),
        ({"format": "sentiment"}, {"audit": False}), ({}, {"audit": False}), (ALONE | SERVER, {"audit": False}),
        ({"model": "m", "schedule": "pointwise", "format": Score()}, {"audit": False}),
        (SERVER | {"format": "ranking"}, {"top_logprobs": 5}), (SERVER | {"format": "pair_scores"}, {"top_logprobs": 5}),
        (SERVER | {"format": "pair_scores", "verdict": "generate"}, {"top_logprobs": 1}),
        (SERVER | {"format": "ranking", "schedule": "listwise"}, {"top_logprobs": 5}),
        ({"model": "m", "format": Choice()}, {"answer_open": "[["}),
        ({"model": "m", "format": Choice()}, {"labels": ["1", "2"]}),
    ],
)  # fmt: skip
def test_a_setting_that_would_do_nothing_is_refused_by_name(judge: dict[str, Any], ignored: dict[str, Any]):
    (name,) = ignored
    JudgeConfig(**judge)
    with pytest.raises(ConfigError, match=rf"^{name} .*it is for|{name} is for"):
        JudgeConfig(**judge, **ignored)


@pytest.mark.parametrize(
    "settings",
    [
        READS | {"thinking_tokens": 64, "temperature": 0.2, "top_p": 0.5}, SERVER | {"context_tokens": 512},
        {"model": "m", "engine": "vllm_server", "deadline_s": 9.0, "outage_wait_s": 5.0, "revision": "v2"},
        {"model": "m", "engine": "offload", "turn_wait_s": 9.0, "batch_size": 4},
        SERVER | {"top_logprobs": 5}, SERVER | {"top_logprobs": 5, "verdict": "generate", "format": "choice"},
        SERVER | {"top_logprobs": 5, "format": "score"}, READS | {"audit": False}, WRITES | {"audit": False},
        {"model": "m", "format": "ranking", "schedule": "listwise", "audit": False}, ALONE | {"audit": True},
        {"model": "m", "schedule": "listwise", "max_slots": 4, "both_orders": True},
        SERVER | {"verdict": "logprobs", "answer_open": "[[", "answer_close": "]]"},
        SERVER | {"token_parameter": "max_completion_tokens", "answer_open": "<answer>", "answer_close": "</answer>"},
        {"model": "m", "format": "pair_scores", "grades": {"1": 1.0, "2": 2.0}, "labels": ["1", "2"]},
    ],
)  # fmt: skip
def test_where_it_does_something_it_is_taken(settings: dict[str, Any]):
    JudgeConfig(**settings)


def test_markers_that_the_wording_does_not_ask_for_are_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="go together"):
        JudgeConfig(model="m", answer_open="[[")
    markers = {"answer_open": "[[", "answer_close": "]]"}
    wording = resources.files("mrjudge_reward.prompting.templates").joinpath("choice.txt").read_text(encoding="utf-8")
    (tmp_path / "other.txt").write_text(wording.replace("{form}", "<answer>{labels}</answer>"), "utf-8")
    with pytest.raises(ConfigError, match="does not ask the judge to write"):
        JudgeConfig(model="m", template=str(tmp_path / "other.txt"), **markers)
    (tmp_path / "own.txt").write_text(wording.replace("{form}", "[[label]]"), "utf-8")
    for template in (None, str(tmp_path / "own.txt")):  # the built-in one asks for whatever markers there are
        engine = ScriptedEngine(lambda _: "[[A]]")
        judge = JudgeConfig(model="m", template=template, **markers).build(engine)
        assert not judge.rank("q", ["a", "b"]).played[0].verdict.failed
        assert "[[" in engine.requests[0].messages[-1].text.splitlines()[-1]


@pytest.mark.parametrize("address", ["localhost:8000", "127.0.0.1:8000/v1", "file:///etc", "", "//host/v1"])
def test_an_address_that_no_server_has_is_refused(address: str):
    with pytest.raises(ConfigError, match="base_url: must begin with http"):
        JudgeConfig(model="m", base_url=address)


@pytest.mark.parametrize(
    "grades", [{"1": 1.0, "2": 1.0}, {"1": 1.0}, {"a": 0.0, " a": 1.0}, {"1": float("nan"), "2": 1.0}]
)
def test_grades_that_tell_nothing_apart_are_refused(grades: dict[str, float]):
    with pytest.raises(ConfigError, match=r"grades|labels"):
        JudgeConfig(model="m", format="score", grades=grades)


@pytest.mark.parametrize("name", ["length_weight", "cascade_margin"])
@pytest.mark.parametrize("value", [float("inf"), float("nan"), -1.0])
def test_a_weight_is_a_number(name: str, value: float):
    with pytest.raises(ConfigError, match=f"{name}: "):
        JudgeConfig(model="m", verdict="cascade", **{name: value})


def test_a_judge_by_itself_has_the_defaults_of_a_config():
    engine = ScriptedEngine.by_utility(len)
    assert Judge(engine).settings == JudgeSettings(model=engine.name)
    assert Judge(engine, "score", seed=3).settings == JudgeSettings(model=engine.name, format="score", seed=3)
    with pytest.raises(ConfigError, match="not both"):
        Judge(engine, settings=JudgeSettings(model="m"), seed=3)


@pytest.mark.parametrize(("old", "new"), [("sampled", "generate"), ("read", "logprobs"), ("cascade", "cascade")])
def test_earlier_words_for_verdicts_are_taken(old: str, new: str):
    assert JudgeConfig(model="m", verdict=old).verdict == JudgeConfig(model="m", verdict=new).verdict == new


@pytest.mark.parametrize("name", ["verdict", "schedule", "rating", "format"])
@pytest.mark.parametrize("value", [["ring"], {"a": 1}, 7, None, 1.5, b"ring", True, (), Choice, len])
def test_what_is_neither_a_name_nor_an_object_is_refused_as_a_setting(name: str, value: Any):
    with pytest.raises(ConfigError, match=f"{name}: "):
        JudgeConfig(model="m", **{name: value})


def test_an_object_and_its_setting_are_not_given_both(tmp_path: Path):
    engine = ScriptedEngine.by_utility(len)
    for named in ({"max_failed_fraction": 0.1}, {"failure_window": 8}):
        with pytest.raises(ConfigError, match="would do nothing beside the FailureAlarm"):
            Judge(engine, alarm=FailureAlarm(), **named)
    cache = ReplyCache(tmp_path / "one.db")
    with pytest.raises(ConfigError, match="would do nothing beside the ReplyCache"):
        Judge(engine, cache=cache, settings=JudgeSettings(model="m", cache=str(tmp_path / "other.db")))
    cache.close()


@pytest.mark.parametrize(
    "slots", [(0, 0), (0, 3), (-1, 0), (1, 2, 1), (5, 6), (0, -3), (2, 2), (3,), (-1,), (0, 1, 2, 3)]
)
@pytest.mark.parametrize("late", [False, True])
def test_a_schedule_that_compares_what_is_not_there_is_refused(slots: tuple[int, ...], late: bool):
    def odd(size: int, limits: Limits, rng: Random) -> Plan:
        if late:
            yield [(0, 1)]
        yield [slots]

    with pytest.raises(ConfigError, match=re.escape(f"asks to compare {slots}")):
        Judge(ScriptedEngine.by_utility(len), schedule=Schedule("odd", odd, looks=True)).rank("q", ["a", "bb", "ccc"])


def test_a_rating_that_comes_to_nothing_leaves_candidates_without_a_score():
    for value in (float("nan"), float("inf"), float("-inf")):
        broken = Rating("broken", lambda tally, value=value: np.array([value, 1.0, 2.0]))
        scores = Judge(ScriptedEngine.by_utility(len), rating=broken).rank("q", ["a", "bb", "ccc"]).scores_G
        assert sorted(score for score in scores if score is not None) == [1.0, 2.0]
        assert scores.count(None) == 1


def test_a_schedule_a_rating_and_a_format_of_ones_own_are_taken():
    def chain(size: int, limits: Limits, rng: Random) -> Plan:
        yield [(i, i + 1) for i in range(size - 1)]

    firsts = Rating("wins", lambda tally: tally.wins_GG.sum(axis=1))
    judge = Judge(
        ScriptedEngine.by_utility(len),
        Choice(),
        schedule=Schedule("chain", chain),
        rating=firsts,
        verdict="generate",
        audit=False,
    )
    assert sorted(judge.rank("q", ["a", "bbb", "cc"]).scores_G) == [0.0, 1.0, 1.0]
    assert judge.settings.judge_schedule.name == "chain"
    with pytest.raises(ConfigError, match="or give a Schedule"):
        JudgeConfig(model="m", schedule=chain)
