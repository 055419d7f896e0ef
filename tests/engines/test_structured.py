"""Structured output: what is asked of a server, and what a reply in JSON becomes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from mrjudge_reward.engines.openai.engine import OpenAIEngine
from mrjudge_reward.engines.structured import fields, pattern, schema
from mrjudge_reward.engines.vllm.setup import VLLMSetup
from mrjudge_reward.errors import ConfigError
from mrjudge_reward.judge import Judge, JudgeConfig
from mrjudge_reward.prompting.formats import Choice, Format, PairScores, Ranking, Score
from mrjudge_reward.types import Grades, Preference, RankOrder, VerdictForm
from tests.support.judge_server import JudgeServer

AB = VerdictForm("<answer>", "</answer>", ("A", "B"))
WAYS = ("structured_outputs", "guided", "response_format")


def test_each_way_has_its_field() -> None:
    assert fields(AB, "structured_outputs") == {"structured_outputs": {"regex": pattern(AB)}}
    assert fields(AB, "guided") == {"guided_regex": pattern(AB)}
    held = fields(AB, "response_format")["response_format"]
    assert held["type"] == "json_schema"
    assert held["json_schema"]["strict"] is True
    assert held["json_schema"]["schema"] == schema(AB)
    assert schema(AB)["properties"]["answer"] == {"type": "string", "enum": ["A", "B"]}
    assert list(schema(AB)["properties"]) == ["reasoning", "answer"], "first the reasoning"
    assert fields(None, "guided") == fields(AB, None) == {}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("form", "answer", "kind"),
    [
        (Choice(), "B", Preference),
        (Ranking(), "B > A", RankOrder),
        (PairScores(), ["3", "7"], Grades),
        (Choice(answer_open="[[", answer_close="]]"), "B", Preference),
    ],
)
def test_a_judge_behind_a_server_is_held_to_its_form(way: Any, form: Format, answer: Any, kind: type) -> None:
    bodies: list[Mapping[str, Any]] = []

    def reply(body: Mapping[str, Any]) -> str:
        bodies.append(body)
        if way == "response_format":
            return json.dumps({"reasoning": "The second says more.", "answer": answer})
        answers = answer if isinstance(answer, list) else [answer]
        marks = "".join(f"{form.answer_open}{one}{form.answer_close}" for one in answers)
        return f"<think>The second says more.</think>{marks}"

    with JudgeServer(reply) as server:
        settings = {"model": "judge", "base_url": server.base_url, "structured_output": way, "schedule": "all_pairs"}
        judge = JudgeConfig(format=form, verdict="generate", **settings).build()
        played = judge.rank("q", ["one", "two"]).played
        judge.close()
    assert all(isinstance(one.verdict.outcome, kind) for one in played)
    assert all(one.verdict.rationale.startswith("<think>The second says more.</think>") for one in played)
    held = form.form(2)
    assert all({**body, **fields(held, way)} == body for body in bodies), bodies


def test_reads_and_the_reasoning_before_them_are_not_held() -> None:
    with JudgeServer() as server:
        engine = OpenAIEngine("judge", server.base_url, structured_output="guided")
        judge = Judge(engine, verdict="logprobs", thinking_tokens=8)
        judge.rank("q", ["one", "two"])
        Judge(engine, verdict="generate").rank("q", ["one", "two"])
        engine.close()
    held = ["guided_regex" in body for body in server.requests if not body.get("logprobs")]
    assert held[0] is False
    assert held[-1] is True, "an engine that is given holds its judge as well"


def test_replies_held_to_a_form_are_kept_apart_from_free_ones() -> None:
    plain, held = (OpenAIEngine("judge", structured_output=way) for way in (None, "guided"))
    assert plain.identity != held.identity
    assert plain.name == held.name


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"model": "m"}, "structured_output does nothing with engine 'transformers'.*cannot hold a model to a form"),
        ({"model": "m", "engine": "offload"}, "structured_output does nothing with engine 'offload'"),
        ({}, "structured_output does nothing with engine 'transformers'"),
        ({"model": "m", "engine": "vllm", "structured_output": "guided"}, "is for other servers"),
        ({"model": "m", "engine": "vllm_server", "structured_output": "response_format"}, "is for other servers"),
        ({"model": "m", "base_url": "http://x/v1", "verdict": "logprobs"}, "no verdict is written"),
        ({"model": "m", "base_url": "http://x/v1", "format": "ranking", "schedule": "listwise"}, "set max_slots"),
        ({"model": "m", "base_url": "http://x/v1", "structured_output": "json"}, "structured_output"),
    ],
)
def test_where_nothing_can_be_held_the_setting_is_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        JudgeConfig(**{"structured_output": "structured_outputs", **settings})


def test_where_something_can_it_is_taken() -> None:
    server = {"model": "m", "base_url": "http://x/v1"}
    for settings in (
        *({**server, "structured_output": way} for way in WAYS),
        {**server, "structured_output": "guided", "format": "ranking", "schedule": "listwise", "max_slots": 5},
        {**server, "structured_output": "guided", "format": "score"},
        {**server, "structured_output": "guided", "verdict": "cascade"},
        {"model": "m", "engine": "vllm", "structured_output": "structured_outputs"},
    ):
        JudgeConfig(**settings)
    assert "structured" in VLLMSetup("no such model", structured_output="structured_outputs").identity("vllm")


def test_a_format_of_ones_own_without_a_form_is_not_held() -> None:
    class Own:
        min_slots, max_slots, readable, answer_open = 2, 2, False, "<answer>"
        render, parse = Choice().render, Choice().parse

    with pytest.raises(ConfigError, match="needs a format that can list its verdicts"):
        JudgeConfig(model="m", base_url="http://x/v1", structured_output="guided", format=Own())
    assert Score().form(1).answers == ("1", "2", "3", "4", "5")
