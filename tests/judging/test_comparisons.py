"""How a comparison is asked: seeds, reads that came to nothing, answers opened after what the judge wrote, auto."""

from __future__ import annotations

import logging
import math
import random
from dataclasses import replace
from typing import Any

import pytest

from mrjudge_reward.cache import ReplyCache
from mrjudge_reward.engines.label_tokens import SharedTokenError
from mrjudge_reward.engines.openai.engine import OpenAIEngine
from mrjudge_reward.engines.scripted import ScriptedEngine, shown_candidates
from mrjudge_reward.judge import Judge
from mrjudge_reward.prompting.formats import Choice, PairScores
from mrjudge_reward.scoring.alarms import FailureAlarm
from mrjudge_reward.scoring.stats import JudgeStats
from mrjudge_reward.scoring.tally import position_consistency
from mrjudge_reward.types import EngineFailure, Group, NoVerdict, Preference, Reply, Request, Usage
from tests.support.judge_server import JudgeServer

NEVER = FailureAlarm(1.0)
WRITES: dict[str, Any] = {"verdict": "generate", "format": "choice", "schedule": "all_pairs", "alarm": NEVER}
READS: dict[str, Any] = {"verdict": "logprobs", "schedule": "all_pairs", "alarm": NEVER}
AUTO: dict[str, Any] = {"schedule": "all_pairs", "alarm": NEVER}


def groups(count: int, size: int = 3) -> list[Group]:
    return [Group.of(f"question {g}", [f"answer {g}.{c}" for c in range(size)], str(g)) for g in range(count)]


def better(request: Request) -> str:
    shown = shown_candidates(request)
    return max(shown, key=lambda label: shown[label])


def probabilities(request: Request, mass: float = 0.9) -> dict[str, float]:
    best = better(request)
    return {label: mass * (0.8 if label == best else 0.2) for label in request.labels}


# -- seeds ------------------------------------------------------------------------------------------------------------


def seeds(engine: ScriptedEngine) -> list[int | None]:
    return [request.seed for request in engine.requests]


def test_every_request_has_a_seed_of_its_own_and_the_same_request_the_same() -> None:
    first, again = (ScriptedEngine(lambda _: "<answer>A</answer>") for _ in range(2))
    for engine in (first, again):
        Judge(engine, **WRITES).judge(groups(6, 5))
    assert len(set(seeds(first))) == len(first.requests) == 6 * 20
    assert seeds(first) == seeds(again)


def test_a_seed_depends_on_the_request_its_vote_its_attempt_and_the_runs_seed_alone() -> None:
    engine = ScriptedEngine(lambda _: "I would rather not say.", reads=False)
    Judge(engine, votes=2, retries=1, **WRITES).judge(groups(1, 2))
    assert len(set(seeds(engine))) == 8, "two orders, two votes, two attempts"
    others = [
        WRITES | {"seed": 1}, WRITES | {"temperature": 0.7}, WRITES | {"max_tokens": 7}, WRITES | {"format": "ranking"},
    ]  # fmt: skip
    for settings in others:
        other = ScriptedEngine(lambda _: "I would rather not say.", reads=False)
        Judge(other, retries=0, **settings).judge(groups(1, 2))
        assert set(seeds(other)).isdisjoint(seeds(engine))
    elsewhere = ScriptedEngine(lambda _: "I would rather not say.", reads=False)
    moved = [replace(group, key=f"elsewhere {group.key}") for group in groups(1, 2)]
    Judge(elsewhere, votes=2, retries=1, **WRITES).judge(moved)
    assert set(seeds(elsewhere)).isdisjoint(seeds(engine)), "the key of a group decides the code of its section marks"


def test_consistency_differs_over_seeds_by_no_more_than_chance() -> None:
    """A judge whose verdict is nothing but the noise of its seed: with one seed for all it named one slot everywhere."""

    def noise(request: Request) -> str:
        return f"<answer>{random.Random(request.seed).choice('AB')}</answer>"

    shares = []
    for seed in range(30):
        judged = Judge(ScriptedEngine(noise), seed=seed, **WRITES).judge(groups(16, 4))
        counts = [position_consistency(judgement.played) for judgement in judged]
        agreeing, mirrored = (sum(column) for column in zip(*counts, strict=True))
        assert mirrored == 16 * 6
        shares.append(agreeing / mirrored)
    deviation = math.sqrt(0.25 / 96)
    assert all(abs(share - 0.5) < 4 * deviation for share in shares)
    chi = sum(((share - 0.5) / deviation) ** 2 for share in shares)
    assert 13 < chi < 54, "chi-square of 30 degrees of freedom, 0.5 % at either end"


# -- auto -------------------------------------------------------------------------------------------------------------


def test_auto_reads_where_the_engine_reads_and_else_has_each_response_graded() -> None:
    reading = Judge(ScriptedEngine(probabilities), **AUTO)
    assert reading.judge(groups(1))[0].order == (2, 1, 0)
    assert (reading.format, reading.settings.verdict_mode) == (Choice(), "logprobs")

    def graded(request: Request) -> str:
        return "".join(f"<answer>{2 + int(text[-1])}</answer>" for text in shown_candidates(request).values())

    writing = Judge(ScriptedEngine(graded), **AUTO)
    assert writing.judge(groups(1))[0].order == (2, 1, 0)
    assert (writing.format, writing.settings.verdict_mode) == (PairScores(), "generate")


@pytest.mark.parametrize("reads", [False, True])
def test_a_server_is_asked_once_whether_it_gives_probabilities(reads: bool) -> None:
    with JudgeServer() as server:
        engine = OpenAIEngine("judge", server.base_url, can_read=None if reads else False)
        judge = Judge(engine, **AUTO)
        (judgement,) = judge.judge(groups(1, 2))
        judge.judge(groups(2, 2))
        assert not any(item.verdict.failed for item in judgement.played)
        assert judge.settings.verdict_mode == ("logprobs" if engine.can_read else "generate")
        engine.close()


def test_a_server_without_probabilities_is_found_out_and_the_judge_writes() -> None:
    with JudgeServer(reads="none") as server:
        judge = Judge(OpenAIEngine("judge", server.base_url), **AUTO)
        judged = judge.judge(groups(4, 3))
        assert judge.settings.verdict_mode == "generate"
        assert not any(item.verdict.failed for judgement in judged for item in judgement.played)
        judge.close()


def test_a_server_that_does_not_answer_leaves_open_what_it_can() -> None:
    judge = Judge(OpenAIEngine("judge", "http://127.0.0.1:9/v1", deadline_s=0.3), **AUTO)
    (judgement,) = judge.judge(groups(1, 2))
    assert all(item.verdict.failed for item in judgement.played)
    assert judgement.scores_G == (None, None)
    assert judge.engine.reads_labels() is None
    judge.close()


# -- what could not be read -------------------------------------------------------------------------------------------


class Unsteady(ScriptedEngine):
    """A server whose answers differ from one time to the next."""

    repeats_reads = False


def test_a_verdict_that_auto_could_not_read_is_written() -> None:
    def script(request: Request) -> Any:
        if request.labels:
            return dict.fromkeys(request.labels, 1e-06)
        return f"<answer>{better(request)}</answer>"

    engine = ScriptedEngine(script, reads=True)
    (judgement,) = Judge(engine, **AUTO).judge(groups(1))
    assert engine.batches == [6, 6]
    assert judgement.order == (2, 1, 0)
    assert not any(item.verdict.failed for item in judgement.played)
    (unread,) = Judge(ScriptedEngine(script, reads=True), retries=0, **AUTO).judge(groups(1))
    assert unread.scores_G == (None,) * 3


@pytest.mark.parametrize("auto", [True, False])
def test_grades_that_one_token_cannot_tell_apart_are_written_under_auto_and_else_an_error(auto: bool) -> None:
    class Local(ScriptedEngine):
        def label_logprobs(self, requests: Any) -> Any:
            raise SharedTokenError("the labels 1, 10 do not differ in their first token")

    engine = Local(lambda _: "<answer>10</answer>", reads=True)
    settings: dict[str, Any] = {"format": "score", "grades": {str(n): float(n) for n in range(1, 11)}}
    judge = Judge(engine, **settings, **({} if auto else {"verdict": "logprobs"}), rating="mean_score", alarm=NEVER)
    if auto:
        assert judge.rank("q", ["one", "two"]).scores_G == (10.0, 10.0)
    else:
        with pytest.raises(SharedTokenError):
            judge.rank("q", ["one", "two"])


@pytest.mark.parametrize(
    "reason",
    [
        "label not in top logprobs",
        "labels share a token",
        "no log-probabilities",
        "malformed reply",
        "unreadable label",
    ],
)
def test_a_read_is_tried_again_where_it_may_come_out_otherwise(reason: str, tmp_path: Any) -> None:
    seen: set[str] = set()

    def script(request: Request) -> Any:
        text = request.messages[-1].text
        if text in seen:
            return probabilities(request)
        seen.add(text)
        return EngineFailure(reason, transient=False)

    cache = ReplyCache(tmp_path / "replies.db")
    engine = Unsteady(script, reads=True)
    (judgement,) = Judge(engine, cache=cache, **READS).judge(groups(1))
    assert engine.batches == [6, 6]
    assert judgement.order == (2, 1, 0)
    cache.close()

    seen.clear()
    steady = ScriptedEngine(script, reads=True)
    (lost,) = Judge(steady, **READS).judge(groups(1))
    assert steady.batches == [6], "it would say the same"
    assert lost.scores_G == (None,) * 3


def test_improbable_labels_are_read_again_past_the_cache(tmp_path: Any) -> None:
    asked = 0

    def script(request: Request) -> Any:
        nonlocal asked
        asked += 1
        return probabilities(request, 1e-7 if asked <= 2 else 0.9)

    with_cache = ReplyCache(tmp_path / "replies.db")
    (judgement,) = Judge(Unsteady(script, reads=True), cache=with_cache, **READS).judge(groups(1, 2))
    assert (asked, judgement.order) == (4, (1, 0))
    with_cache.close()


def test_another_thought_may_lead_to_a_verdict() -> None:
    def script(request: Request) -> Any:
        if not request.labels:
            return f"thought {request.seed}"
        first = f"thought {seeds_of_first.setdefault(request.messages[-1].text, request.prefill)}"
        return probabilities(request, 1e-7 if request.prefill in first else 0.9)

    seeds_of_first: dict[str, str] = {}
    (judgement,) = Judge(ScriptedEngine(script, reads=True), thinking_tokens=8, **READS).judge(groups(1, 2))
    assert judgement.order == (1, 0)


# -- answers opened after what the judge wrote ------------------------------------------------------------------------

WROTE_NO_VERDICT = [
    "B is better.",
    "The best response is B.",
    "<think>B says more.</think>",
    "<think>B says more.</think>\n\nSo: B",
    "<think>B says more, and it goes on",
    "I compared both and prefer the second.",
    "",
    "B is better. <answer>",
    "Final answer: B\n\n",
    "<think>Perhaps <answer>A</answer>, or rather",
]


@pytest.mark.parametrize("wrote", WROTE_NO_VERDICT)
@pytest.mark.parametrize("finish", ["stop", "length"])
def test_the_answer_is_opened_after_what_a_judge_wrote_without_a_verdict(wrote: str, finish: Any) -> None:
    def script(request: Request) -> Any:
        if request.labels:
            reply = tuple(math.log(p) for p in probabilities(request).values())
            return Reply(label_logprobs=reply, usage=Usage(10, 0, 1))
        return Reply(wrote, finish, usage=Usage(10, 0, 5))

    engine = ScriptedEngine(script, reads=True)
    (judgement,) = Judge(engine, **WRITES).judge(groups(1, 2))
    assert engine.batches == [2, 2], "not written again"
    assert judgement.order == (1, 0)
    assert judgement.usage == Usage(40, 0, 12)
    for item in judgement.played:
        assert (item.verdict.opened, item.verdict.rationale) == (True, wrote)
        assert isinstance(item.verdict.outcome, Preference)
    assert JudgeStats.of([judgement]).metrics()["opened_rate"] == 1
    for request in engine.requests[2:]:
        assert request.prefill.endswith("<answer>")
        assert request.prefill.count("<answer>") == 1 + ("Perhaps" in wrote)
        assert wrote.removesuffix("<answer>").removeprefix("<think>").strip() in request.prefill
        assert request.prefill.count("<think>") == request.prefill.count("</think>")


@pytest.mark.parametrize(
    ("wrote", "reason"),
    [
        ("<answer>C</answer>", "off-menu label"),
        ("<answer>A or B</answer>", "off-menu label"),
        ("<answer></answer>", "off-menu label"),
    ],
)
def test_a_verdict_that_was_written_and_makes_no_sense_is_not_replaced(wrote: str, reason: str) -> None:
    engine = ScriptedEngine(lambda request: probabilities(request) if request.labels else wrote, reads=True)
    (judgement,) = Judge(engine, temperature=0, **WRITES).judge(groups(1, 2))
    assert {item.verdict.outcome.reason for item in judgement.played} == {reason}  # type: ignore[union-attr]
    assert engine.batches == [2]


def test_where_the_opened_answer_is_not_read_either_the_first_reason_stands_and_it_is_written_again() -> None:
    def script(request: Request) -> Any:
        if request.labels:
            return dict.fromkeys(request.labels, 1e-09)
        return "I would rather not say."

    engine = ScriptedEngine(script, reads=True)
    (judgement,) = Judge(engine, **WRITES).judge(groups(1, 2))
    assert engine.batches == [2, 2, 2, 2]
    outcomes = [item.verdict.outcome for item in judgement.played]
    assert [o.reason for o in outcomes if isinstance(o, NoVerdict)] == ["no verdict"] * 2
    assert JudgeStats.of([judgement]).metrics()["opened_rate"] == 0


@pytest.mark.parametrize(
    "settings", [{"retries": 0}, {"format": "ranking"}, {"format": "pair_scores"}, {"engine_reads": False}]
)
def test_no_answer_is_opened_where_none_can_be_read_or_nothing_is_asked_again(settings: dict[str, Any]) -> None:
    settings = dict(settings)
    engine = ScriptedEngine(
        lambda request: probabilities(request) if request.labels else "B.", reads=settings.pop("engine_reads", True)
    )
    Judge(engine, **(WRITES | settings)).judge(groups(1, 2))
    assert not any(request.labels for request in engine.requests)


# -- label mass -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mass", "warns"), [(0.9, False), (0.2, False), (0.05, True), (0.004, True)])
def test_the_labels_mass_is_a_metric_and_a_low_one_warns_once_with_what_the_judge_would_write(
    mass: float, warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    def script(request: Request) -> Reply:
        logprobs = tuple(math.log(p) for p in probabilities(request, mass).values())
        return Reply("Response", label_logprobs=logprobs)

    judge = Judge(ScriptedEngine(script, reads=True), **READS)
    with caplog.at_level(logging.WARNING):
        judged = [*judge.judge(groups(8)), *judge.judge(groups(8))]
    assert JudgeStats.of(judged).metrics()["label_mass"] == pytest.approx(mass)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == warns
    assert all(f"held {mass:.2g}" in text and "'Response' (48)" in text for text in said)


def test_the_mass_of_nothing_read_is_unknown() -> None:
    judged = Judge(ScriptedEngine.by_utility(len), **WRITES).judge(groups(2))
    assert math.isnan(JudgeStats.of(judged).metrics()["label_mass"])
