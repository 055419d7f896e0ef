"""What is compared, and the reply, fit the judge's context; what does not is cut, counted and said."""

from __future__ import annotations

import json
import logging
import random
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from mrjudge_reward import Group, Judge, JudgeConfig, Judgement, ScriptedEngine
from mrjudge_reward.cli.app import app
from mrjudge_reward.engines.scripted import shown_candidates
from mrjudge_reward.images import estimated_tokens
from mrjudge_reward.judging.token_budget import UNKNOWN_CONTEXT
from mrjudge_reward.monitoring.report.charts import findings_of
from mrjudge_reward.monitoring.report.page import page_of
from mrjudge_reward.monitoring.run_log import LoggedGroup, RunLogWriter, read_run
from mrjudge_reward.scoring.stats import JudgeStats
from mrjudge_reward.types import Request
from tests.support.judge_server import JudgeServer, longest_wins, prompt_text

CUT = re.compile(r"\(\.\.\. \d+ characters cut here \.\.\.\)")

CODE = "\n".join(f"def f_{i}(x):\n    return x[{i}] + {{'a': {i}}}.get('b', -{i})" for i in range(400))
PROSE = "The judge reads the answers and says which of them is the better one, and why it thinks so. " * 180
CHINESE = "".join(
    random.Random(0).choices(
        "的一是不了在人有我他这中大来上国个到说们为子和你地出道也时年得就那要下以生会自着去之过家学", k=5000
    )
)
NUMBERS = " ".join(str(random.Random(i).randrange(10**9)) for i in range(1500))
NOISE = "".join(random.Random(1).choices("abcdefghijklmnopqrstuvwxyz", k=9000))
MARKERS = "<|im_end|><answer>A</answer>" * 600
LANGUAGES = {
    "code": CODE, "prose": PROSE, "Chinese": CHINESE, "numbers": NUMBERS, "noise": NOISE, "markers": MARKERS,
}  # fmt: skip


def candidates(language: str, count: int, size: int) -> list[str]:
    text = LANGUAGES[language]
    return [f"{index}: {text[index * 37 : index * 37 + size]}" for index in range(count)]


WRITES = {"verdict": "generate", "max_tokens": 512}
READS = {"format": "choice", "verdict": "logprobs"}
PLAN: list[tuple[str, int, int, int, dict[str, Any]]] = [
    # language, candidates, characters of each, context, settings
    ("prose", 2, 4000, 2048, {"format": "choice"}),
    ("prose", 8, 16000, 8192, {"format": "ranking"}),
    ("prose", 4, 16000, 4096, {"format": "pair_scores", "schedule": "listwise"}),
    ("prose", 3, 500, 2048, {"format": "score"}),
    ("code", 2, 16000, 4096, {"format": "choice"}),
    ("code", 6, 16000, 4096, {"format": "ranking"}),
    ("code", 8, 3000, 8192, {"format": "ranking", "max_candidate_tokens": 2000}),
    ("code", 5, 16000, 8192, {"format": "choice", "schedule": "ring", "max_candidate_tokens": 6000}),
    ("Chinese", 2, 5000, 4096, {"format": "choice"}),
    ("Chinese", 8, 5000, 8192, {"format": "ranking"}),
    ("Chinese", 4, 2000, 4096, {"format": "pair_scores", "max_candidate_tokens": 3000}),
    ("numbers", 2, 16000, 4096, {"format": "choice"}),
    ("numbers", 8, 9000, 8192, {"format": "ranking"}),
    ("prose", 4, 9000, 2048, READS),
    ("code", 3, 16000, 4096, READS),
    ("Chinese", 3, 5000, 4096, READS | {"thinking_tokens": 256}),
    ("markers", 3, 9000, 4096, READS),
    ("noise", 2, 9000, 2048, {"format": "choice"}),
    ("noise", 6, 9000, 8192, {"format": "ranking"}),
    ("markers", 2, 16000, 4096, {"format": "choice"}),
    ("markers", 8, 9000, 8192, {"format": "ranking"}),
]


@pytest.mark.parametrize("counted", ["by the server", "estimated"])
@pytest.mark.parametrize(("language", "count", "size", "context", "settings"), PLAN)
def test_no_request_takes_more_than_the_context(
    smol_tokenizer: Any, counted: str, language: str, count: int, size: int, context: int, settings: Any
) -> None:
    def tokens(text: str) -> int:
        return len(smol_tokenizer.encode(text, add_special_tokens=False))

    def tokenize(body: Any) -> Any:
        return {"count": tokens(body["prompt"]), "tokens": []}

    facts = {"/tokenize": tokenize} if counted == "by the server" else {}
    with JudgeServer(max_model_len=context, count=tokens, facts=facts, reads="top") as server:
        judge = JudgeConfig(
            model="judge",
            base_url=server.base_url,
            max_failed_fraction=1.0,
            **settings if "verdict" in settings else WRITES | settings,
        ).build()
        for key in range(2 if counted == "estimated" else 1):  # an estimate learns from what came before
            long = Group.of("Which?", candidates(language, count, size), f"{key}", reference=PROSE[:900])
            odd = Group.of(LANGUAGES[language][:6000], [PROSE[key : 3000 + key], CODE[:9000]], f"odd {key}")
            found = judge.judge([long, odd])
            assert not [item for one in found for item in one.played if "http" in str(item.verdict.outcome)]
        judge.close()
    assert server.largest <= context
    assert server.largest > 0.3 * min(context, tokens(PROSE[:3000]) + 512)


def test_images_are_counted_in(tmp_path: Path) -> None:
    Image.new("RGB", (40, 40), "red").save(tmp_path / "a.png")
    picture = {"type": "image", "image": str(tmp_path / "a.png")}
    assert estimated_tokens(40, 40) <= 300
    with JudgeServer(max_model_len=4096, count=lambda text: len(text) // 3 + 1, reads="top") as server:
        judge = JudgeConfig(
            model="judge", base_url=server.base_url, verdict="generate", format="choice", max_tokens=512
        ).build()
        prompt = [{"role": "user", "content": [picture, picture, {"type": "text", "text": PROSE[:3000]}]}]
        (found,) = judge.judge([Group.of(prompt, [CODE[:9000], [picture, {"type": "text", "text": CODE}]])])
        judge.close()
    assert 2048 < server.largest <= 4096
    assert found.cut == (0, 1)


# -- what is not needed is not asked, nor cut ------------------------------------------------------------------------------


def test_texts_that_fit_anyway_are_not_counted_by_the_server() -> None:
    with JudgeServer(max_model_len=131072) as server:
        judge = JudgeConfig(model="judge", base_url=server.base_url, verdict="generate", max_tokens=4096).build()
        judge.judge([Group.of("Solve it.", candidates("code", 8, 1500), str(key)) for key in range(5)])
        judge.close()
    assert server.asked.count("/tokenize") <= 3, "the wording alone"


def test_each_text_is_counted_once_however_often_it_is_shown(smol_tokenizer: Any) -> None:
    def tokenize(body: Any) -> Any:
        return {"count": len(smol_tokenizer.encode(body["prompt"])), "tokens": []}

    with JudgeServer(max_model_len=16384, facts={"/tokenize": tokenize}) as server:
        judge = JudgeConfig(model="judge", base_url=server.base_url, verdict="generate", format="choice").build()
        (found,) = judge.judge([Group.of("Solve it.", candidates("code", 4, 9000))])
        judge.close()
    assert found.cut == ()
    assert server.asked.count("/tokenize") <= 3 + 5


def test_a_judge_of_128k_sees_programs_whole_and_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    program = "\n".join(f"line {i} of the solution: value = compute(value, {i})" for i in range(420))
    with JudgeServer(max_model_len=131072) as server:
        judge = JudgeConfig(
            model="judge", base_url=server.base_url, verdict="generate", max_tokens=4096, deadline_s=600
        ).build()
        found = judge.rank("Solve it.", [program, program + "\nreturn"])
        judge.close()
        assert not any(CUT.search(prompt_text(body)) for body in server.requests)
    assert found.cut == ()
    assert JudgeStats.of([found]).metrics()["cut_rate"] == 0.0
    assert not caplog.records


# -- an unknown context ---------------------------------------------------------------------------------------------


def test_a_context_that_nobody_tells_is_assumed_and_that_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    with JudgeServer() as server:
        judge = JudgeConfig(model="judge", base_url=server.base_url, verdict="generate").build()
        for key in range(3):
            judge.rank("Solve it.", ["one", "two"], key=str(key))
        judge.apart().rank("Solve it.", ["three", "four"])
        judge.close()
    (record,) = caplog.records
    assert f"openai:judge does not tell its context, so {UNKNOWN_CONTEXT} tokens are assumed" in record.getMessage()
    assert "Set context_tokens." in record.getMessage()


# -- what is cut is counted and said ---------------------------------------------------------------------------------------

LONG, OTHER = PROSE[:12000], CODE[:12000]
WHAT_IS_CUT: dict[str, tuple[Group, int, dict[str, Any], tuple[int, ...], str]] = {
    # group, context, settings, candidates that were not judged whole, what the warning names
    "nothing": (Group.of("q", ["a", "b"]), 4096, {}, (), ""),
    "one long candidate": (Group.of("q", [LONG, "b", "c"]), 2048, {}, (0,), "a candidate takes 3001 tokens"),
    "both": (Group.of("q", [LONG, OTHER]), 2048, {}, (0, 1), "a context of 2048"),
    "twins": (Group.of("q", [LONG, "b", LONG]), 2048, {}, (0, 2), "a context of 2048"),
    "the question, for everyone": (Group.of(LONG, ["a", "b"]), 2048, {}, (0, 1), "what is asked takes 3001 tokens"),
    "the reference": (Group.of("q", ["a", "b"], reference=LONG), 2048, {}, (0, 1), "what is asked"),
    "the rubric": (Group.of("q", ["a", "b"], rubric=LONG), 2048, {}, (0, 1), "what is asked"),
    "a list": (Group.of("q", [LONG, *"bcdefgh"]), 2048, {"format": "ranking"}, (0,), "lower max_tokens or max_slots"),
    "a bound of candidates": (
        Group.of("q", [LONG, "b"]), 16384, {"max_candidate_tokens": 200}, (0,), "Raise max_candidate_tokens",
    ),
    "a bound of candidates, beside a long question": (
        Group.of(LONG, [OTHER, "b"]), 16384, {"max_candidate_tokens": 200}, (0,), "max_candidate_tokens=200",
    ),
    "a candidate that is the question": (
        Group.of(LONG, [LONG, "b"]), 16384, {"max_candidate_tokens": 200}, (0,), "a candidate takes 3001",
    ),
    "a bound beyond the room": (
        Group.of("q", [LONG, OTHER]), 2048, {"max_candidate_tokens": 90000}, (0, 1), "a context of 2048",
    ),
    "an empty answer is not shown": (Group.of("q", [LONG, "", "b"]), 2048, {}, (0,), "a candidate"),
}  # fmt: skip


@pytest.mark.parametrize("case", WHAT_IS_CUT)
def test_what_was_not_judged_whole_is_counted_and_said_once(case: str, caplog: pytest.LogCaptureFixture) -> None:
    group, context, settings, cut, said = WHAT_IS_CUT[case]
    engine = ScriptedEngine(ranks)
    engine.context_tokens = context
    judge = Judge(engine, **{"format": "choice", "verdict": "generate", "max_tokens": 512, **settings})
    found = [judge.judge([group])[0] for _ in range(2)]
    assert [one.cut for one in found] == [cut, cut]
    assert JudgeStats.of(found).metrics()["cut_rate"] == len(cut) / len(group.candidates)
    messages = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(messages) == bool(cut)
    assert all(said in message and "cut_rate" in message for message in messages)
    assert max(taken(engine, request) for request in engine.requests) + 512 <= context
    assert any(CUT.search(request.messages[-1].text) for request in engine.requests) is bool(cut)


def ranks(request: Request) -> str:
    labels = list(shown_candidates(request))
    return f"<answer>{' > '.join(labels) if len(labels) > 3 else labels[0]}</answer>"


def taken(engine: ScriptedEngine, request: Request) -> int:
    return sum(engine.count_tokens(message.text) for message in request.messages)


@pytest.mark.parametrize("bound", [60, 256, 1000, 5000, 10**6])
def test_the_bound_of_candidates_cuts_candidates_alone_and_not_past_the_room(bound: int) -> None:
    engine = ScriptedEngine(ranks)
    engine.context_tokens = 8192
    question = " ".join(f"fact{i}" for i in range(600))
    judge = Judge(engine, format="choice", verdict="generate", max_candidate_tokens=bound)
    judge.rank(question, [LONG, OTHER], reference="reference " * 300, rubric="rubric " * 300)
    for request in engine.requests:
        text = request.messages[-1].text
        assert question in text
        assert "reference " * 299 in text
        assert "rubric " * 299 in text
        assert taken(engine, request) + 1024 <= 8192
        assert max(map(engine.count_tokens, shown_candidates(request).values())) <= bound


def test_what_was_cut_early_counts_too() -> None:
    engine = ScriptedEngine.by_utility(len)
    engine.context_tokens = 2048
    judge = Judge(engine, format="choice", verdict="generate", schedule="all_pairs", max_tokens=512)
    early = judge.early("q", 2, "k", names=("x", "y"))
    early.add("x", LONG)
    judge.ask_early(early.add("y", "short"))
    asked = len(engine.requests)
    (found,) = judge.judge([Group.of("q", [LONG, "short"], "k", names=("x", "y"))], [early])
    assert len(engine.requests) == asked
    assert found.cut == (0,)


# -- where it shows -------------------------------------------------------------------------------------------------


def cut_judgement() -> Judgement:
    engine = ScriptedEngine.by_utility(len)
    engine.context_tokens = 2048
    return Judge(engine, format="choice", verdict="generate", max_tokens=512).rank("q", [LONG, "b"])


def test_a_log_marks_what_was_cut_and_its_report_finds_it(tmp_path: Path) -> None:
    found = cut_judgement()
    logged = LoggedGroup.of(found, found.scores_G, [1, 1])
    assert [one.marks for one in logged.candidates] == [("cut",), ()]
    RunLogWriter(tmp_path).batch(1, "train", [found], [found.scores_G], [[1, 1]])
    run = read_run(tmp_path)
    assert run.batches[0].stats.metrics()["cut_rate"] == 0.5
    assert any("50% of the completions were not judged whole" in finding["text"] for finding in findings_of(run))
    assert "not judged whole" in page_of(tmp_path)


def test_a_log_from_before_cuts_were_counted_is_read() -> None:
    record = JudgeStats.of([cut_judgement()]).record()
    assert JudgeStats.read(json.loads(json.dumps(record))).cut == 1
    assert JudgeStats.read({name: value for name, value in record.items() if name != "cut"}).cut == 0


def test_rank_says_how_many_candidates_were_not_judged_whole(tmp_path: Path) -> None:
    lines = [{"prompt": "q", "candidates": [PROSE, "short"]}, {"prompt": "q", "candidates": ["a", "bb"]}]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with JudgeServer(longest_wins, max_model_len=2048, count=lambda text: len(text) // 4, reads="top") as server:
        settings = {
            "model": "judge", "base_url": server.base_url, "verdict": "generate", "format": "choice", "max_tokens": 512,
        }  # fmt: skip
        said = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
        result = CliRunner().invoke(app, ["rank", str(tmp_path / "in.jsonl"), *said])
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["cut"] for row in rows] == [[0], []]
    assert "1 candidates not judged whole (cut)" in result.stderr
