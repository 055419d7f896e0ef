"""The command line, mostly with a scripted judge; the embedded model judges in a process of its own, and in doctor."""

from __future__ import annotations

import gzip
import json
import math
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from mrjudge_reward.cli import app, doctor
from mrjudge_reward.cli.lines import say
from mrjudge_reward.engines.scripted import ScriptedEngine
from mrjudge_reward.judge import JudgeConfig
from mrjudge_reward.monitoring.explain import verdict_line
from mrjudge_reward.scoring.tally import MAX_GROUP
from mrjudge_reward.types import (
    Comparison,
    EngineFailure,
    JudgedComparison,
    NoVerdict,
    RankOrder,
    Request,
    Tie,
    Verdict,
)
from tests.support import ROOT
from tests.support.judge_server import JudgeServer, longest_wins, prompt_text

SCRIPTED = ("--set", "model=scripted")
GROUPS = [{"id": f"g{i}", "prompt": f"Question {i}?", "candidates": ["a", f"a long one {i}", "abc"]} for i in range(5)]


def by_length() -> ScriptedEngine:
    return ScriptedEngine.by_utility(len)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> ScriptedEngine:
    """The judge of every run in this test; it prefers long texts."""
    return use(by_length(), monkeypatch)


def use(engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch) -> ScriptedEngine:
    monkeypatch.setattr(JudgeConfig, "build_engine", lambda self: engine)
    return engine


def run(*arguments: str | Path, stdin: str | bytes = "") -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)


def rank(*arguments: str | Path, stdin: str | bytes = "") -> Result:
    return run("rank", *arguments, *SCRIPTED, stdin=stdin)


def jsonl(*records: Any) -> str:
    return "".join((record if isinstance(record, str) else json.dumps(record)) + "\n" for record in records)


def records(text: str | Path) -> list[dict[str, Any]]:
    content = text.read_text(encoding="utf-8") if isinstance(text, Path) else text
    return [json.loads(line) for line in content.splitlines()]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    path.write_text(jsonl(*GROUPS), encoding="utf-8")
    return path


# -- rank -----------------------------------------------------------------------------------------------------------------


def test_results_come_in_input_order_with_scores_that_follow_the_judge(source: Path, engine: ScriptedEngine) -> None:
    result = rank(source, "--chunk", "2", "--set", "verdict=generate", "--set", "format=choice")
    assert result.exit_code == 0, result.stderr
    lines = records(result.stdout)
    assert [line["id"] for line in lines] == ["g0", "g1", "g2", "g3", "g4"]
    for line in lines:
        assert line["order"] == [1, 2, 0]
        assert line["best"] == 1
        assert line["scores"][1] > line["scores"][2] > line["scores"][0]
        assert line["rationale"].startswith("<think>compared")
        assert line["failed"] == 0
        assert line["calls"] == len(line["verdicts"]) > 0
        assert {"candidates", "outcome", "probabilities", "rationale"} == set(line["verdicts"][0])
    assert sum(line["calls"] for line in lines) == len(engine.requests)


def test_the_chunk_does_not_change_the_results(source: Path, engine: ScriptedEngine) -> None:
    assert rank(source, "--chunk", "1").stdout == rank(source, "--chunk", "100").stdout


def test_stdin_is_read_when_no_input_or_a_dash_is_given(engine: ScriptedEngine) -> None:
    one = rank(stdin=jsonl(*GROUPS))
    assert one.exit_code == 0
    assert len(records(one.stdout)) == 5
    assert rank("-", stdin=jsonl(*GROUPS)).stdout == one.stdout


def part(image: Any) -> dict[str, Any]:
    return {"type": "image", "image": image}


def test_images_of_a_line_are_relative_to_its_file_and_a_bad_one_costs_its_line(
    tmp_path: Path, engine: ScriptedEngine
) -> None:
    (tmp_path / "set/pictures").mkdir(parents=True)
    source = tmp_path / "set/in.jsonl"
    for name, width in (("a", 8), ("b", 9)):
        Image.new("RGB", (width, 8), "red").save(tmp_path / f"set/pictures/{name}.png")
    gif = "data:image/gif;base64,R0lGODdhAgACAIAAAP8AAP8AACwAAAAAAgACAAACAoRRADs="
    asks = {"role": "user", "content": [part("pictures/a.png"), {"type": "text", "text": "What?"}, part(gif)]}
    lines = [
        {"id": "parts", "prompt": [asks], "candidates": ["x", "yy"]},
        {"id": "beside", "prompt": "What?", "images": ["pictures/a.png", "pictures/b.png"], "candidates": ["x", "yy"]},
        {"id": "missing", "prompt": "What?", "images": ["pictures/no.png"], "candidates": ["x", "yy"]},
        {"id": "drawn", "prompt": "Draw.", "candidates": [[part("pictures/a.png")], [part("pictures/b.png")]]},
        {"id": "no place", "prompt": [{"role": "user", "content": [{"type": "image"}]}], "candidates": ["x", "yy"]},
        {"id": "no part", "prompt": "Draw.", "candidates": ["x", [{"type": "text"}]]},
    ]
    source.write_text(jsonl(*lines), encoding="utf-8")
    result = rank(source, "-o", tmp_path / "out.jsonl")
    assert result.exit_code == 1, "two bad lines"
    parts, beside, missing, drawn, place, kind = records(tmp_path / "out.jsonl")
    assert (parts["best"], beside["best"], missing["best"]) == (1, 1, None)
    assert missing["scores"] == [None, None]
    assert missing["verdicts"][0]["reason"] == "image"
    assert str(tmp_path / "set/pictures/no.png") in missing["verdicts"][0]["detail"]
    assert "does not exist" in missing["verdicts"][0]["detail"]
    assert len(drawn["verdicts"]) >= 1
    assert drawn["failed"] == 0
    assert "prompt: 0 images for 1 places" in place["error"]
    assert "candidates[1]: a message part must be" in kind["error"]
    widths = {tuple(p.image.width for m in request.messages for p in m.images) for request in engine.requests}
    assert widths == {(8, 2), (8, 9), (9, 8)}
    Image.new("RGB", (10, 8), "red").save(tmp_path / "set/pictures/a.png")
    again = rank(source, "-o", tmp_path / "out.jsonl")
    assert again.exit_code == 2, "results of another picture are not taken for this one's"
    assert "line 1 is no result of the input's line 1" in again.stderr


def test_a_conversation_a_reference_and_a_rubric_reach_the_judge(engine: ScriptedEngine) -> None:
    chat = [{"role": "user", "content": "Ping?"}, {"role": "assistant", "content": "Pong."}]
    line = {"prompt": chat, "candidates": ["x", "yy"], "reference": "REFERENCE", "rubric": "RUBRIC", "more": 1}
    assert rank(stdin=jsonl(line)).exit_code == 0
    shown = engine.requests[0].messages[-1].text
    assert all(text in shown for text in ("Ping?", "Pong.", "REFERENCE", "RUBRIC"))


@pytest.mark.parametrize(
    ("anchors", "scores", "error"),
    [
        ("rrrr", (-1, 1), None),
        (["rrrr"], (-1, 1), None),
        (["rrrr", "ssss"], (-1, 1), None),
        ("r", (1, 1), None),
        (12345678901, (-1, -1), None),
        ("xx", (0, 1), None),
        ("...", None, "anchors: none of them says anything"),
        (["\u200b", "?"], None, "anchors: none of them says anything"),
        (["rrrr", "the reference"], None, "anchors: one is the reference too"),
        (["r" * n for n in range(1, MAX_GROUP)], None, "candidates and anchors: at most 4096 are judged together"),
        (None, None, None),
        ([], None, "anchors: none of them says anything"),
        (["", " "], None, "anchors: none of them says anything"),
        ({"text": "rrrr"}, None, "the anchor must be text, a number, or a list of these; got dict"),
        ([["rrrr"], [{"a": 1}]], None, "the anchor must be text"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_scores_of_a_line_with_anchors_are_relative_to_these(
    anchors: Any, scores: Any, error: str | None, engine: ScriptedEngine
) -> None:
    line = {"prompt": "q", "candidates": ["xx", "yyyyyyy"], "anchors": anchors}
    if anchors == ["rrrr", "the reference"]:
        line["reference"] = "the reference"
    result = rank(
        "--set", "schedule=all_pairs", "--set", "format=choice", "--set", "max_failed_fraction=1.0", stdin=jsonl(line)
    )
    (record,) = records(result.stdout)
    if error is not None:
        assert error in record["error"]
        return
    signs = [score and math.copysign(1, score) for score in record["scores"]]
    if scores is None:
        assert "anchors" not in record
        assert signs == [-1, 1]
        return
    assert signs == list(scores)
    assert len(record["anchors"]) == (2 if anchors == ["rrrr", "ssss"] else 1)
    if scores[0] is not None:
        shown = {slot for verdict in record["verdicts"] for slot in verdict["candidates"]}
        assert shown <= {0, 1, -1, -2}
        assert record["calls"] == len(engine.requests) == len(record["verdicts"])


def test_a_line_with_other_anchors_is_another_line(tmp_path: Path, engine: ScriptedEngine) -> None:
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    for anchors, says in (("rrrr", ""), ("rrrr", "1 of them found"), ("ssss", "is no result of the input's line 1")):
        source.write_text(jsonl({"prompt": "q", "candidates": ["xx", "yyyyyyy"], "anchors": anchors}))
        assert says in rank(source, "-o", output).stderr


def test_lines_are_judged_by_the_criteria_they_bring_and_a_line_without_is_a_bad_line(engine: ScriptedEngine) -> None:
    dose = [{"title": "dose", "description": "Names it.", "weight": 2}]
    rubrics = [dose, '["Names it.", "Is kind."]', "- one", None, "[{"]
    lines = [{"prompt": "q", "candidates": ["x", "yyyyy"], "rubric": rubric} for rubric in rubrics]
    result = run("rank", "--set", "model=judge", "--set", "criteria=absolute", stdin=jsonl(*lines))
    assert result.exit_code == 1, result.stderr
    own, text, one, none, torn = [json.loads(line) for line in result.stdout.splitlines()]
    assert [criterion["name"] for criterion in own["criteria"]] == ["dose"]
    assert own["criteria"][0]["scores"] == own["scores"]
    assert own["scores"][0] < own["scores"][1]
    assert [verdict["criterion"] for verdict in text["verdicts"]] == ["criterion 1"] * 2 + ["criterion 2"] * 2
    assert len(one["criteria"]) == 1
    assert "has no rubric to judge it by" in none["error"]
    assert "not JSON" in torn["error"]


def test_several_references_are_shown_and_those_without_a_place_are_a_fault_of_their_line(
    tmp_path: Path, engine: ScriptedEngine
) -> None:
    line = {"prompt": "q", "candidates": ["x", "yy"], "reference": [42, "forty-two"]}
    assert rank(stdin=jsonl(line)).exit_code == 0
    assert "Reference 1 of 2: 42\nReference 2 of 2: forty-two" in engine.requests[0].messages[-1].text
    own = tmp_path / "own.txt"
    own.write_text(
        "=== system ===\nChoose.\n=== user ===\n{question}\n{responses}\n{labels} {form}\n"
        "=== response ===\n[Response {label}]\n{text}\n[End of response {label}]\n"
    )
    result = rank("--set", f"template={own}", stdin=jsonl(line, GROUPS[0]))
    assert result.exit_code == 1, result.stderr
    assert "has a reference that the judge would not see" in records(result.stdout)[0]["error"]
    assert records(result.stdout)[1]["best"] == 1


BAD = [
    ("{oops", "not JSON"),
    ('{"prompt": "q", "candidates": ["a", NaN]}', "candidates[1]: must be text; got None"),
    ("[" * 100_000, "not JSON"),
    ("[1]", "must be an object"),
    ({"candidates": ["a"]}, "prompt: missing"),
    ({"prompt": "q"}, "candidates: missing"),
    ({"prompt": 3, "candidates": ["a"]}, "prompt: must be text or"),
    ({"prompt": "", "candidates": ["a"]}, "prompt: must not be empty"),
    ({"prompt": [{"content": "no role"}], "candidates": ["a"]}, "prompt: a chat message needs 'role'"),
    ({"prompt": [{"role": "user", "content": [5]}], "candidates": ["a"]}, "prompt: "),
    ({"prompt": "q", "candidates": []}, "candidates: must be 1 to"),
    ({"prompt": "q", "candidates": "abc"}, "candidates: must be a list"),
    ({"prompt": "q", "candidates": ["a", 7]}, "candidates[1]: must be text; got 7"),
    ({"prompt": "q", "candidates": ["a"], "rubric": {"x": 1}}, "the rubric must be text, a number, or a list of these"),
    ({"prompt": "q", "candidates": ["a"], "id": {"x": 1}}, "id: must be text or a whole number"),
]


@pytest.mark.parametrize(("bad", "fault"), BAD, ids=[fault for _, fault in BAD])
def test_a_bad_line_is_named_and_the_others_are_judged(
    bad: Any, fault: str, tmp_path: Path, engine: ScriptedEngine
) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(jsonl(GROUPS[0], "", bad, GROUPS[1]), encoding="utf-8")
    result = rank(path)
    assert result.exit_code == 1
    assert f"{path}, line 3: {fault}" in result.stderr
    assert "3 lines, 1 bad" in result.stderr
    first, error, last = records(result.stdout)
    assert (first["id"], first["best"], last["id"], last["best"]) == ("g0", 1, "g1", 1)
    assert error["line"] == 3
    assert fault in error["error"]
    assert set(error) == {"id", "line", "error", "input"}


def test_a_bad_line_keeps_its_id_and_bytes_that_are_not_utf8_are_a_bad_line(engine: ScriptedEngine) -> None:
    result = rank(stdin=b'\xff\n{"id": 12, "prompt": "q"}\n')
    assert result.exit_code == 1
    assert [line["id"] for line in records(result.stdout)] == [1, 12]
    assert engine.requests == []  # nothing to judge


def test_text_of_any_script_goes_through_as_it_is(tmp_path: Path, engine: ScriptedEngine) -> None:
    path, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    line = {"id": "雪 ☃", "prompt": "Grüße?", "candidates": ["да", "🙂🙂🙂"]}
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(line, ensure_ascii=False).encode())  # BOM, no newline at the end
    assert rank(path, "-o", output).exit_code == 0
    assert "雪 ☃" in output.read_text(encoding="utf-8")
    assert "да" in engine.requests[0].messages[-1].text


@pytest.mark.parametrize("way", ["file", "stdin"])
@pytest.mark.parametrize(
    "packed", [lambda data: data, gzip.compress, lambda data: b"\xef\xbb\xbf" + data.replace(b"\n", b"\r\n\r\n")]
)
def test_input_is_read_packed_or_with_other_line_ends(
    tmp_path: Path, engine: ScriptedEngine, packed: Callable[[bytes], bytes], way: str
) -> None:
    data, path = packed(jsonl(*GROUPS).encode()), tmp_path / "in"
    path.write_bytes(data)
    result = rank(path) if way == "file" else rank(stdin=data)
    assert result.exit_code == 0, result.stderr
    assert [line["best"] for line in records(result.stdout)] == [1] * 5


@pytest.mark.parametrize("way", ["file", "stdin"])
@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"PAR1\0\0", "is a Parquet file, not JSON lines"),
        (json.dumps(GROUPS[0], indent=1).encode(), "is a pretty-printed JSON document, not JSON lines"),
        (json.dumps(GROUPS, indent=1).encode(), "is one JSON array, not JSON lines"),
        (jsonl(GROUPS[0]).encode("utf-16"), "is UTF-16 text, not JSON lines; save it as UTF-8"),
        (gzip.compress(jsonl(*GROUPS).encode(), mtime=0)[:40], "the gzip data are cut off or damaged"),
    ],
)
def test_another_kind_of_input_is_named_and_nothing_is_judged(
    tmp_path: Path, engine: ScriptedEngine, data: bytes, said: str, way: str
) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(data)
    result = rank(path) if way == "file" else rank(stdin=data)
    assert result.exit_code == 2
    assert f"{path if way == 'file' else 'standard input'}" in result.stderr
    assert said in result.stderr
    assert engine.requests == []


def test_half_a_surrogate_pair_is_judged_and_stays_valid_json(engine: ScriptedEngine) -> None:
    result = rank(stdin=jsonl({"id": "x\ud800", "prompt": "q\ud800", "candidates": ["a\ud800", "bbb"]}))
    assert result.exit_code == 0
    assert records(result.stdout)[0]["best"] == 1
    assert records(result.stdout)[0]["id"] == "x\ud800"


def test_an_empty_input_gives_an_empty_output_without_loading_a_judge(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    result = rank("-o", output, "--set", "adapter=/nowhere", stdin="\n\n")
    assert result.exit_code == 0
    assert output.read_bytes() == b""


def test_a_lone_candidate_has_no_score(engine: ScriptedEngine) -> None:
    (line,) = records(rank(stdin=jsonl({"prompt": "q", "candidates": ["only"]})).stdout)
    assert (line["scores"], line["order"], line["best"]) == ([None], [], None)


def test_equal_ids_are_two_results_and_a_missing_id_is_the_line_number(engine: ScriptedEngine) -> None:
    line = {"prompt": "q", "candidates": ["a", "bb"]}
    result = rank(stdin=jsonl(line | {"id": 7}, line | {"key": 7}, line))
    assert [record["id"] for record in records(result.stdout)] == [7, 7, 3]


def failing_for(text: str) -> ScriptedEngine:
    """Prefers long texts, and fails wherever a text is shown."""
    inner = by_length()

    def script(request: Request) -> Any:
        shown = text in request.messages[-1].text
        return EngineFailure("http 500", "crash", transient=False) if shown else inner.script(request)

    return ScriptedEngine(script, inner.identity)


def test_a_run_in_which_too_many_comparisons_failed_ends_with_code_3_and_its_results_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    path.write_text(jsonl(*GROUPS[:2], "oops"), encoding="utf-8")
    use(failing_for("Question 0?"), monkeypatch)
    assert rank(path).exit_code == 1  # half of all failed, and that may fail
    first = rank(path, "-o", output, "--set", "max_failed_fraction=0.4")
    assert first.exit_code == 3
    assert "comparisons failed, more than max_failed_fraction (40%)" in first.stderr
    assert [record.get("best") for record in records(output)] == [None, 1, None]
    again = rank(path, "-o", output, "--set", "max_failed_fraction=0.4")
    assert again.exit_code == 3  # nothing is judged anew, and the results are no better
    assert rank(path, "-o", output, "--set", "max_failed_fraction=1").exit_code == 1


def test_best_is_null_where_different_texts_tie_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    use(ScriptedEngine(lambda request: "<answer>A</answer>"), monkeypatch)
    settings = ("--set", "schedule=all_pairs")
    (line,) = records(rank(*settings, stdin=jsonl({"prompt": "q", "candidates": ["a", "b"]})).stdout)
    assert (line["order"], line["best"]) == ([0, 1], None)


def test_no_control_character_of_a_judge_reaches_the_output(monkeypatch: pytest.MonkeyPatch) -> None:
    written = "<think>\x1b[2J \x7f\x85\x9b31m é\u202e</think><answer>A</answer>"
    use(ScriptedEngine(lambda request: written), monkeypatch)
    output = rank(stdin=jsonl({"id": "\x9bx", "prompt": "q", "candidates": ["a", "b"]})).stdout
    assert not {*"\x1b\x7f\x85\x9b"} & {*output}
    assert "\\u009b31m é\u202e" in output
    (line,) = records(output)
    assert (line["id"], line["rationale"]) == ("\x9bx", written)


def test_a_verdict_line_shows_how_strong_each_step_is() -> None:
    order = RankOrder(((1,), (0, 2)), (2,))
    assert verdict_line(JudgedComparison(Comparison((4, 5, 6)), Verdict(order))) == "[#4 #5 #6] #5 >> #4 = #6"


def test_a_verdict_line_shows_control_characters_and_bidi_overrides_instead_of_obeying_them() -> None:
    written = "a\x1b]0;title\x07b\x7f\x9b2J\u202ec\u2066d\ne"
    line = verdict_line(JudgedComparison(Comparison((0, 1)), Verdict(Tie(), written)))
    assert line == "[#0 #1] tie | a�]0;title�b��2J�c�d e"
    failed = verdict_line(JudgedComparison(Comparison((0, 1)), Verdict(NoVerdict("odd\x1b"))))
    assert failed == "[#0 #1] failed: odd�"


def test_messages_obey_no_escape_sequence(capsys: pytest.CaptureFixture[str]) -> None:
    say("the judge wrote \x1b[2J\nand more")
    assert capsys.readouterr().err == "mrjudge: the judge wrote �[2J and more\n"


def test_failed_comparisons_are_counted_and_leave_scores_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    use(ScriptedEngine(lambda request: EngineFailure("http 500", "crash", transient=False)), monkeypatch)
    result = rank("--set", "max_failed_fraction=1", stdin=jsonl(GROUPS[0]))
    (line,) = records(result.stdout)
    assert result.exit_code == 0
    assert line["scores"] == [None, None, None]
    assert line["failed"] == len(line["verdicts"])
    assert line["verdicts"][0]["reason"] == "http 500"
    assert line["rationale"] == ""


# -- rank: settings -------------------------------------------------------------------------------------------------------


def test_settings_come_from_yaml_and_the_command_line_wins(
    source: Path, tmp_path: Path, engine: ScriptedEngine
) -> None:
    settings = tmp_path / "judge.yaml"
    settings.write_text("model: scripted\nverdict: generate\nmax_tokens: 7\ntemperature: 0.5\n", encoding="utf-8")
    assert run("rank", source, "--config", settings, "--set", "temperature=1", "--set", "top_p=0.5").exit_code == 0
    sampling = engine.requests[0].sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p) == (7, 1, 0.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "shedule=ring"], "did you mean 'schedule'?"),
        (["--set", "temperature=hot"], "temperature: Input should be a valid number"),
        (["--set", "temperature"], "--set takes KEY=VALUE"),
        (["--set", "labels=[a"], "the value is not YAML"),
        (["--config", "/nowhere.yaml"], "/nowhere.yaml"),
        (["--set", "schedule=pointwise"], "does not fit format Choice"),
    ],
)
def test_wrong_settings_end_in_one_clear_line_and_code_2(
    arguments: list[str], message: str, source: Path, engine: ScriptedEngine
) -> None:
    result = rank(source, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert result.stdout == ""


def test_a_missing_input_or_an_output_that_is_the_input_is_refused(source: Path, engine: ScriptedEngine) -> None:
    before = source.read_bytes()
    assert rank(source.parent / "none.jsonl").exit_code == 2
    result = rank(source, "-o", source, "--overwrite")
    assert result.exit_code == 2
    assert "is the input" in result.stderr
    assert source.read_bytes() == before


# -- rank: resuming -------------------------------------------------------------------------------------------------------


def interrupting(at: int, error: Callable[[], BaseException]) -> ScriptedEngine:
    """Prefers long texts, and raises at the ``at``-th request."""
    inner = by_length()

    def script(request: Request) -> Any:
        if len(engine.requests) >= at:
            raise error()
        return inner.script(request)

    engine = ScriptedEngine(script, by_length().identity)
    return engine


def test_a_half_written_line_is_dropped_and_only_what_is_missing_is_asked(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, whole = tmp_path / "out.jsonl", tmp_path / "whole.jsonl"
    use(by_length(), monkeypatch)
    rank(source, "-o", whole)
    complete = whole.read_bytes()
    lines = complete.splitlines(keepends=True)
    output.write_bytes(b"".join(lines[:3]) + lines[3][:-20])
    engine = use(by_length(), monkeypatch)
    result = rank(source, "-o", output)
    assert result.exit_code == 0
    assert output.read_bytes() == complete
    assert len(engine.requests) == sum(record["calls"] for record in records(whole)[3:])
    assert "3 of them found" in result.stderr


@pytest.mark.parametrize("length", [0, 1, 5, 300])
def test_a_file_that_holds_nothing_but_a_torn_line_is_started_anew(
    length: int, source: Path, tmp_path: Path, engine: ScriptedEngine
) -> None:
    output = tmp_path / "out.jsonl"
    rank(source, "-o", output)
    complete = output.read_bytes()
    output.write_bytes(complete[:length])
    assert rank(source, "-o", output).exit_code == 0
    assert output.read_bytes() == complete


def test_a_finished_output_loads_no_judge_and_bad_lines_still_give_code_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    path.write_text(jsonl(GROUPS[0], "oops"), encoding="utf-8")
    use(by_length(), monkeypatch)
    assert rank(path, "-o", output).exit_code == 1
    before = output.read_bytes()
    engine = use(by_length(), monkeypatch)
    again = rank(path, "-o", output)
    assert again.exit_code == 1
    assert f"{path}, line 2: not JSON" in again.stderr
    assert engine.batches == []
    assert output.read_bytes() == before


def test_input_that_grew_is_continued(source: Path, tmp_path: Path, engine: ScriptedEngine) -> None:
    output = tmp_path / "out.jsonl"
    rank(source, "-o", output)
    with source.open("a", encoding="utf-8") as file:
        file.write(jsonl({"id": "new", "prompt": "q", "candidates": ["a", "bb"]}))
    assert rank(source, "-o", output).exit_code == 0
    assert [line["id"] for line in records(output)] == ["g0", "g1", "g2", "g3", "g4", "new"]


def test_speed_and_alarm_settings_may_change_between_runs(source: Path, tmp_path: Path, engine: ScriptedEngine) -> None:
    output = tmp_path / "out.jsonl"
    rank(source, "-o", output)
    asked = len(engine.requests)
    more = ("--set", "batch_size=2", "--set", "max_failed_fraction=1", "--set", f"cache={tmp_path / 'cache.db'}")
    assert rank(source, "-o", output, *more).exit_code == 0
    assert len(engine.requests) == asked


def served(server: JudgeServer, login: str = "") -> list[str]:
    address = f"http://{login}127.0.0.1:{server.port}/v1"
    return ["--set", "model=judge", "--set", f"base_url={address}", "--set", "verdict=generate"]


def test_a_judge_that_moves_keeps_its_results_and_its_replies(source: Path, tmp_path: Path) -> None:
    output, cached = tmp_path / "out.jsonl", ["--set", f"cache={tmp_path / 'cache.db'}"]
    with JudgeServer() as one, JudgeServer() as two:
        assert run("rank", source, "-o", output, *cached, *served(one)).exit_code == 0
        before = output.read_bytes()
        more = ["--set", "extra_headers={X-Key: abc}", "--set", "extra_body={metadata: {run: second}}"]
        assert run("rank", source, "-o", output, *cached, *served(two, "ann:pw@"), *more).exit_code == 0
        assert output.read_bytes() == before, "no line was judged again"
        output.unlink()
        assert run("rank", source, "-o", output, *cached, *served(two, "ann:pw@"), *more).exit_code == 0
        assert len(one.requests) > 0
        assert two.requests == [], "nor asked again"
        thinks = ["--set", "extra_body={chat_template_kwargs: {enable_thinking: true}}"]
        again = run("rank", source, "-o", output, *cached, *served(two), *thinks)
        assert again.exit_code == 2
        assert "with these settings" in again.stderr


def test_a_second_writer_of_an_output_is_refused_and_told_who_writes(
    source: Path, tmp_path: Path, engine: ScriptedEngine
) -> None:
    output = tmp_path / "out.jsonl"
    code = "import sys, time; from mrjudge_reward.sole_writer import SoleWriter; held = SoleWriter(sys.argv[1]); "
    code += "print(1, flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code, output], stdout=subprocess.PIPE, cwd=ROOT) as other:
        assert other.stdout is not None
        other.stdout.readline()
        for more in ([], ["--overwrite"]):
            result = rank(source, "-o", output, *more)
            assert result.exit_code == 2
            assert f"{output} is being written by process {other.pid} (python" in result.stderr
        assert output.read_bytes() == b""
        assert engine.requests == []
        other.kill()
    assert rank(source, "-o", output).exit_code == 0, "who dies gives it back"


OUTSIDE = [
    ("../secret.png", "is not below"),
    ("pictures/../../secret.png", "is not below"),
    ("{tmp}/secret.png", "is not below"),
    ("file://{tmp}/secret.png", "is not below"),
    ("FILE://{tmp}/secret.png", "is not below"),
    ("file://{tmp}/set/%2e%2e/secret.png", "is not below"),
    ("link.png", "is not below"),
    ("linked/secret.png", "is not below"),
    ("/etc/hostname", "is not below"),
    ("pictures/../../set-too/x.png", "is not below"),
    ("bad\u0000name.png", "is no path"),
    ("loop.png", ""),
    ("http://169.254.169.254/latest/meta-data/", "for this machine or its network alone"),
    ("http://2852039166/", "169.254.169.254"),
    ("http://0xA9.0xFE.0xA9.0xFE/", "169.254.169.254"),
    ("http://0251.0376.0251.0376/", "169.254.169.254"),
    ("http://[::ffff:169.254.169.254]/", "169.254.169.254"),
    ("http://[fe80::1%25eth0]/x.png", "fe80::1"),
    ("http://[::1]:8000/x.png", "::1"),
    ("HTTP://127.1/x.png", "127.0.0.1"),
    ("http://localhost/x.png", "localhost"),
    ("http://ann:pw@169.254.169.254/", "169.254.169.254"),
    ("http://metadata.google.internal/", "metadata.google.internal"),
]


def in_candidate(place: str, image: str) -> list[Any]:
    """A candidate with an image in a part of its own, in a turn, or in the result of a tool."""
    shown = {"type": "image_url", "image_url": {"url": image}} if "url" in place else part(image)
    text = {"type": "text", "text": "Drawn."}
    if "bytes" in place:
        shown = part({"bytes": image})
    if "result" in place:
        calls = [{"function": {"name": "draw", "arguments": {}}}]
        result = {"role": "tool", "name": "draw", "content": [text, shown]}
        return [{"role": "assistant", "tool_calls": calls}, result, {"role": "assistant", "content": "Done."}]
    return [{"role": "assistant", "content": [text, shown]}] if "turn" in place else [shown]


IN_CANDIDATES = [
    "candidate", "candidate bytes", "candidate url", "candidate turn", "candidate turn url",
    "candidate turn bytes", "candidate result", "candidate result url",
]  # fmt: skip


@pytest.mark.parametrize("place", ["prompt", "images", "path", "bytes", "url", *IN_CANDIDATES])
@pytest.mark.parametrize(("image", "fault"), OUTSIDE)
def test_an_image_from_elsewhere_costs_its_line_and_is_not_opened(
    image: str, fault: str, place: str, tmp_path: Path, engine: ScriptedEngine
) -> None:
    folder = tmp_path / "set"
    (folder / "pictures").mkdir(parents=True)
    Image.new("RGB", (8, 8), "red").save(tmp_path / "secret.png")
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "linked").symlink_to(tmp_path)
    (folder / "loop.png").symlink_to("loop.png")
    image = image.replace("{tmp}", str(tmp_path))
    line: dict[str, Any] = {"prompt": "What?", "candidates": ["x", "yy"]}
    if place == "images":
        line["images"] = [image]
    elif place in IN_CANDIDATES:
        line["candidates"] = ["x", in_candidate(place, image)]
    else:
        shown = {"prompt": part(image), "path": part({"path": image}), "bytes": part({"bytes": image})}
        url = {"type": "image_url", "image_url": {"url": image}}
        line["prompt"] = [{"role": "user", "content": [shown.get(place, url)]}]
    (folder / "in.jsonl").write_text(jsonl(line), encoding="utf-8")
    (said,) = records(rank(folder / "in.jsonl").stdout)
    assert fault in said.get("error", ""), said
    assert "best" not in said or said["best"] is None
    assert engine.requests == []
    assert "pw" not in said.get("error", "")


@pytest.mark.parametrize("place", IN_CANDIDATES)
@pytest.mark.parametrize("image", ["pictures/own.png", "./pictures/own.png", "{tmp}/pictures/own.png"])
def test_an_image_of_a_candidate_is_found_beside_the_input(
    image: str, place: str, tmp_path: Path, engine: ScriptedEngine
) -> None:
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (8, 9), "red").save(tmp_path / "pictures" / "own.png")
    shown = in_candidate(place, image.replace("{tmp}", str(tmp_path)))
    (tmp_path / "in.jsonl").write_text(jsonl({"prompt": "Draw.", "candidates": ["x", shown]}), encoding="utf-8")
    (line,) = records(rank(tmp_path / "in.jsonl").stdout)
    assert line["failed"] == 0
    seen = {picture.image.height for request in engine.requests for m in request.messages for picture in m.images}
    assert seen == {9}


def test_images_from_elsewhere_are_taken_where_that_is_allowed(tmp_path: Path, engine: ScriptedEngine) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    Image.new("RGB", (8, 8), "red").save(tmp_path / "other.png")
    Image.new("RGB", (8, 8), "red").save(folder / "own.png")
    (folder / "link.png").symlink_to(tmp_path / "other.png")
    images = ["own.png", str(folder / "own.png"), f"file://{folder}/own.png", "../other.png", "link.png"]
    lines = [{"prompt": "What?", "images": [image], "candidates": ["x", "yy"]} for image in images]
    (folder / "in.jsonl").write_text(jsonl(*lines), encoding="utf-8")
    own = records(rank(folder / "in.jsonl").stdout)
    assert [line.get("best") for line in own] == [1, 1, 1, None, None]
    allowed = records(rank(folder / "in.jsonl", "--images", tmp_path).stdout)
    assert [line.get("best") for line in allowed] == [1, 1, 1, 1, 1]
    web = "http://127.0.0.1:9/pictures/x.png"
    (folder / "in.jsonl").write_text(
        jsonl({"prompt": "What?", "images": [web], "candidates": ["x", "yy"]}), encoding="utf-8"
    )
    for more, error in (([], True), (["--images", "http://127.0.0.1:9/other"], True), (["--images", web[:22]], False)):
        (line,) = records(rank(folder / "in.jsonl", *more).stdout)
        assert ("error" in line) is error


def changed_input(source: Path, output: Path) -> list[str]:
    source.write_text(source.read_text(encoding="utf-8").replace("Question 1", "Another"), encoding="utf-8")
    return []


def changed_settings(source: Path, output: Path) -> list[str]:
    return ["--set", "seed=1"]


def shorter_input(source: Path, output: Path) -> list[str]:
    source.write_text(jsonl(*GROUPS[:2]), encoding="utf-8")
    return []


def foreign_lines(source: Path, output: Path) -> list[str]:
    output.write_text("my notes\n", encoding="utf-8")
    return []


def foreign_text_without_newline(source: Path, output: Path) -> list[str]:
    output.write_text("my notes", encoding="utf-8")
    return []


def foreign_json(source: Path, output: Path) -> list[str]:
    output.write_text("[]\n", encoding="utf-8")
    return []


@pytest.mark.parametrize(
    "change",
    [changed_input, changed_settings, shorter_input, foreign_lines, foreign_text_without_newline, foreign_json],
)
def test_an_output_that_does_not_match_is_left_alone_unless_overwritten(
    change: Callable[[Path, Path], list[str]], source: Path, tmp_path: Path, engine: ScriptedEngine
) -> None:
    output = tmp_path / "out.jsonl"
    rank(source, "-o", output)
    arguments = change(source, output)
    before, asked = output.read_bytes(), len(engine.requests)
    refused = rank(source, "-o", output, *arguments)
    assert refused.exit_code == 2
    assert "--overwrite" in refused.stderr
    assert str(output) in refused.stderr
    assert output.read_bytes() == before
    assert len(engine.requests) == asked
    assert rank(source, "-o", output, "--overwrite", *arguments).exit_code == 0
    assert output.read_text(encoding="utf-8") == rank(source, *arguments).stdout


def test_overwrite_keeps_the_old_results_until_there_are_new_ones(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out.jsonl"
    use(by_length(), monkeypatch)
    rank(source, "-o", output)
    before = output.read_bytes()
    use(interrupting(1, KeyboardInterrupt), monkeypatch)
    assert rank(source, "-o", output, "--overwrite").exit_code == 130
    assert output.read_bytes() == before


def when_asked(text: str, act: Callable[[], object]) -> ScriptedEngine:
    """Prefers long texts, and does something first wherever a text is shown."""
    inner = by_length()

    def script(request: Request) -> Any:
        if text in request.messages[-1].text:
            act()
        return inner.script(request)

    return ScriptedEngine(script, inner.identity, reads=True)


def wait_for_lines(output: Path, count: int) -> None:
    end = time.monotonic() + 30
    while not (output.exists() and len(output.read_bytes().splitlines()) >= count):
        assert time.monotonic() < end, f"{count} lines were expected in time"
        time.sleep(0.005)


@pytest.mark.parametrize("chunk", [1, 2, 5, None])
@pytest.mark.parametrize("at", [1, 2, 4])
def test_ctrl_c_keeps_what_was_written_and_the_same_command_goes_on(
    chunk: int | None, at: int, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out.jsonl"
    use(by_length(), monkeypatch)
    whole = rank(source).stdout
    calls = [record["calls"] for record in records(whole)]

    def interrupt() -> None:
        wait_for_lines(output, at)
        raise KeyboardInterrupt

    arguments = (source, "-o", output, *(() if chunk is None else ("--chunk", str(chunk))))
    use(when_asked(f"Question {at}?", interrupt), monkeypatch)
    stopped = rank(*arguments)
    assert stopped.exit_code == 130
    assert f"interrupted; {at} results are written, the same command goes on" in stopped.stderr
    assert output.read_text(encoding="utf-8") == "".join(whole.splitlines(keepends=True)[:at])
    engine = use(by_length(), monkeypatch)
    assert rank(*arguments).exit_code == 0
    assert len(engine.requests) == sum(calls[at:])
    assert output.read_text(encoding="utf-8") == whole


def test_a_slow_line_keeps_no_other_waiting_and_the_output_stays_in_order(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out.jsonl"
    use(by_length(), monkeypatch)
    whole = rank(source).stdout
    last_is_asked = threading.Event()
    slow = when_asked("Question 0?", lambda: last_is_asked.wait(30))
    fast = slow.script

    def script(request: Request) -> Any:
        if "Question 4?" in request.messages[-1].text and not last_is_asked.is_set():
            assert not output.exists() or not output.read_bytes(), "the first line is still to come"
            last_is_asked.set()
        return fast(request)

    slow.script = script
    use(slow, monkeypatch)
    assert rank(source, "-o", output, "--chunk", "2").exit_code == 0
    assert last_is_asked.is_set()
    assert output.read_text(encoding="utf-8") == whole


def test_a_model_in_this_process_judges_lines_in_batches(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = by_length()
    engine.concurrent_calls = False  # type: ignore[misc]
    use(engine, monkeypatch)
    assert rank(source, "--chunk", "2", "--set", "schedule=ring").exit_code == 0
    assert engine.batches == [12, 12, 6]


def test_an_unreliable_judge_stops_the_run_with_code_3_and_keeps_earlier_chunks(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out.jsonl"
    use(by_length(), monkeypatch)
    calls = records(rank(source).stdout)[0]["calls"]
    use(interrupting(calls + 1, lambda: RuntimeError("the judge is down")), monkeypatch)
    result = rank(source, "-o", output, "--chunk", "1", "--set", "failure_window=4")
    assert result.exit_code == 3
    assert "judgements failed" in result.stderr
    assert "RuntimeError" in result.stderr
    assert [record["id"] for record in records(output)] == ["g0"]


# -- doctor ---------------------------------------------------------------------------------------------------------------


def examined(result: Result) -> dict[str, dict[str, Any]]:
    return {check["name"]: check for check in json.loads(result.stdout)["checks"]}


def test_doctor_says_that_a_server_cannot_be_reached() -> None:
    with socket.socket() as closed:  # bound and not listening: connections are refused
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/v1"
        result = run("doctor", "--set", f"base_url={url}", "--set", "model=judge", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["works"] is False
    assert examined(result)["server"]["status"] == "failed"
    assert f"{url} cannot be reached" in examined(result)["server"]["detail"]


def test_doctor_asks_a_server_for_its_models_and_judges_in_both_orders() -> None:
    with JudgeServer() as server:
        judge = ("--set", f"base_url={server.base_url}", "--set", "model=judge", "--set", "verdict=generate")
        result = run("doctor", *judge, "--json")
    checks = examined(result)
    assert result.exit_code == 0, result.stdout
    assert checks["server"]["detail"].startswith("reachable")
    assert checks["can read labels"]["data"]["reads"] is True
    smoke = checks["smoke test"]
    assert smoke["data"]["orders_agree"] is True
    assert smoke["status"] == "note"  # that judge prefers the longest text
    assert "the worse candidate was preferred" in smoke["detail"]


def on(server: Any, *more: str) -> tuple[str, ...]:
    settings = (f"base_url={server.base_url}", "model=judge", *more)
    return tuple(part for setting in settings for part in ("--set", setting))


@pytest.mark.parametrize(
    ("status", "error", "says", "cure"),
    [
        (
            400,
            {"error": {"message": "This model's maximum context length is 16 tokens."}},
            "is 16 tokens",
            "context_tokens",
        ),
        (404, {"error": {"message": "The model `judge` does not exist."}}, "does not exist", "base_url ends in /v1"),
        (401, {"error": "Incorrect key"}, "Incorrect key", "api_key_env"),
        (429, {"error": {"code": "insufficient_quota", "message": "No credit"}}, "No credit", "pay"),
        (400, {"detail": "cannot be judged"}, "cannot be judged", "extra_body"),
    ],
)
def test_doctor_and_rank_print_the_servers_own_sentence_and_the_cure(
    status: int, error: Any, says: str, cure: str, source: Path
) -> None:
    from tests.support.judge_server import JudgeServer

    with JudgeServer(rejects=lambda body: error, rejects_with=status) as server:
        examining = run("doctor", *on(server, "verdict=generate"))
        ranking = rank(source, *on(server, "verdict=generate", "max_failed_fraction=0.9"))
    table = " ".join(examining.stdout.split())
    assert examining.exit_code == 1
    assert ranking.exit_code == 3
    for printed in (table, ranking.stderr):
        assert says in printed
        assert cure in printed


def test_rank_that_ends_well_says_what_failed_on_its_way(source: Path) -> None:
    from tests.support.judge_server import JudgeServer

    with JudgeServer(faults=["400"]) as server:
        result = rank(source, *on(server, "verdict=generate", "failure_window=4096", "max_failed_fraction=0.9"))
    assert result.exit_code == 0
    assert "what failed: http 400 (1); planned 400; the server's sentence says what it rejects" in result.stderr


def test_doctor_does_not_wait_for_a_server_that_hangs() -> None:
    from tests.support.judge_server import JudgeServer

    with JudgeServer() as server:
        server.all_fail = "hang"
        result = run("doctor", *on(server, "verdict=generate", "deadline_s=1"), "--json")
    assert result.exit_code == 1
    assert "no answer within 1 s" in examined(result)["smoke test"]["detail"]


def test_doctor_tells_the_flag_without_which_a_vllm_on_a_cpu_dies(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.support.judge_server import JudgeServer

    answers = {"models": {"data": [{"id": "judge", "owned_by": "vllm"}]}, "version": {"version": "0.31.0+cpu"}}
    monkeypatch.setattr(doctor, "_got", lambda config, access, url: answers[url.rpartition("/")[2]])
    with JudgeServer() as server:
        found = examined(run("doctor", *on(server), "--no-smoke", "--json"))["server"]
        answers["version"] = {"version": "0.31.0"}
        gpu = examined(run("doctor", *on(server), "--no-smoke", "--json"))["server"]
    assert found["status"] == "note"
    assert "vLLM 0.31.0+cpu: a vLLM server on a CPU ends" in found["detail"]
    assert "--no-enable-chunked-prefill" in found["detail"]
    assert gpu["status"] == "ok"


def test_doctor_tells_position_bias_apart_from_agreement(monkeypatch: pytest.MonkeyPatch) -> None:
    use(ScriptedEngine.by_utility(lambda text: -len(text)), monkeypatch)
    fair = run("doctor", *SCRIPTED, "--json")
    assert fair.exit_code == 0
    assert examined(fair)["smoke test"]["status"] == "ok"
    assert "both orders agree" in examined(fair)["smoke test"]["detail"]
    use(ScriptedEngine(lambda request: "<answer>A</answer>"), monkeypatch)
    biased = examined(run("doctor", *SCRIPTED, "--json"))["smoke test"]
    assert biased["status"] == "note"
    assert "contradict" in biased["detail"]


@pytest.mark.parametrize(
    "settings",
    [
        ("--set", "tie_label=T"),
        ("--set", "format=score", "--set", "grades={T: 1, U: 2}"),
        ("--set", "format=score", "--set", "grades={T: 1, U: 2}", "--set", "rating=mean_score"),
    ],
)
def test_doctor_notes_a_judge_that_cannot_tell_the_candidates_apart(
    settings: Sequence[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    use(ScriptedEngine(lambda request: "<answer>T</answer>"), monkeypatch)
    smoke = examined(run("doctor", *SCRIPTED, *settings, "--json"))["smoke test"]
    assert smoke["status"] == "note"
    assert "the judge cannot tell the two candidates apart" in smoke["detail"]


def test_doctor_notes_a_judge_that_graded_only_the_better_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def script(request: Request) -> str:
        return "no" if "The answer is five." in request.messages[-1].text else "<answer>5</answer>"

    use(ScriptedEngine(script), monkeypatch)
    settings = ("--set", "format=score", "--set", "rating=mean_score")
    smoke = examined(run("doctor", *SCRIPTED, *settings, "--json"))["smoke test"]
    assert smoke["status"] == "note"
    assert "cannot tell the two candidates apart" in smoke["detail"]


def test_doctor_fails_if_the_judge_gives_no_verdict_or_does_not_fit_the_settings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use(ScriptedEngine(lambda request: "I cannot tell."), monkeypatch)
    result = run("doctor", *SCRIPTED, "--json")
    assert result.exit_code == 1
    assert "no verdict" in examined(result)["smoke test"]["detail"]
    assert examined(result)["can read labels"]["status"] == "note"  # a sampled judge needs none
    reading = run("doctor", *SCRIPTED, "--set", "verdict=read", "--no-smoke", "--json")
    assert reading.exit_code == 1
    assert examined(reading)["can read labels"]["status"] == "failed"
    unable = use(by_length(), monkeypatch)
    unable.can_read = False
    unfit = run("doctor", *SCRIPTED, "--set", "verdict=read", "--no-smoke", "--json")
    assert unfit.exit_code == 1
    assert "cannot read label probabilities" in examined(unfit)["settings"]["detail"]


@pytest.mark.parametrize(
    ("better_first", "worse_first", "works"),
    [
        ("<answer>A</answer>", "<answer>B</answer>", True),
        ("<answer>A</answer>", "<answer>A</answer>", False),
        ("<answer>B</answer>", "<answer>A</answer>", False),
        ("<answer>A</answer>", "I cannot tell.", False),
    ],
    ids=["right", "one slot", "the worse one", "no verdict in one order"],
)
def test_doctor_says_that_a_judge_works_only_if_its_example_went_well(
    better_first: str, worse_first: str, works: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def script(request: Request) -> str:
        return worse_first if "five.\n[End of response A " in request.messages[-1].text else better_first

    use(ScriptedEngine(script), monkeypatch)
    result = run("doctor", *SCRIPTED, "--set", "retries=0")
    assert result.exit_code == 0, "no check failed"
    assert ("The judge works." in result.stdout) is works
    assert ("The judge works, with notes: see the smoke test." in result.stdout) is not works
    assert json.loads(run("doctor", *SCRIPTED, "--set", "retries=0", "--json").stdout)["works"] is works


@pytest.mark.parametrize(("mass", "status"), [(0.9, "ok"), (0.004, "note")])
def test_doctor_tells_what_the_wording_is_worth_with_a_judge_that_can_be_read(
    mass: float, status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def script(request: Request) -> str | dict[str, float]:
        if request.labels:
            return dict.fromkeys(request.labels, mass / 2)
        return "Response A is best" if request.prefill else "<answer>A</answer>"

    use(ScriptedEngine(script), monkeypatch)
    for how in ((), ("--set", "verdict=logprobs")):
        wording = examined(run("doctor", *SCRIPTED, *how, "--json"))["wording"]
        assert wording["status"] == status
        assert wording["data"]["label_mass"] == pytest.approx([mass, mass])
        assert f"{mass:.2g} of the probability" in wording["detail"]
        assert ("'Response A is best'" in wording["detail"]) is (status == "note")


def test_doctor_tells_nothing_of_labels_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    use(ScriptedEngine(lambda request: "<answer>A > B</answer>"), monkeypatch)
    assert "wording" not in examined(run("doctor", *SCRIPTED, "--json"))
    assert "wording" not in examined(run("doctor", *SCRIPTED, "--set", "format=ranking", "--json"))


@pytest.mark.parametrize("form", ["choice", "ranking", "score", "sentiment"])
def test_doctor_shows_what_the_judge_sees(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use(by_length(), monkeypatch)
    arguments = ("--set", f"format={form}", "--no-smoke", "--show-prompt")
    messages = examined(run("doctor", *SCRIPTED, *arguments, "--json"))["prompt"]["data"]["messages"]
    assert [message["role"] for message in messages] == ["system", "user"]
    assert "[Response" in messages[1]["text"]
    table = run("doctor", *SCRIPTED, *arguments).stdout
    assert "--- user ---" in table
    assert "the server's chat template is not seen from here" in table.replace("\n", " ")
    assert "prompt" not in examined(run("doctor", *SCRIPTED, "--no-smoke", "--json"))
    monkeypatch.setattr(
        ScriptedEngine, "prompt_text", lambda self, request: f"<|user|>{request.messages[-1].text}<|end|>"
    )
    shown = examined(run("doctor", *SCRIPTED, *arguments, "--json"))["prompt"]["detail"]
    assert shown.startswith("<|user|>")
    assert messages[1]["text"] in shown


def test_doctor_names_the_extra_that_brings_a_missing_package(
    engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    tested = {"no-such-package": ("1.0", "trl"), "numpy": ("0.0.1", "")}
    monkeypatch.setattr(doctor, "TESTED", tested)
    result = run("doctor", *SCRIPTED, "--no-smoke", "--json")
    checks = examined(result)
    assert result.exit_code == 0
    assert "pip install 'mrjudge-reward[trl]'" in checks["no-such-package"]["detail"]
    assert "tested with 0.0.1" in checks["numpy"]["detail"]
    assert "smoke test" not in checks
    table = run("doctor", *SCRIPTED, "--no-smoke")
    assert "'mrjudge-reward[trl]'" in table.stdout.replace("\n", " ")  # brackets are no markup
    assert "The judge works." in table.stdout


def test_doctor_finds_the_embedded_model_working_and_says_what_it_is() -> None:
    result = run("doctor", "--json")
    checks = examined(result)
    assert (result.exit_code, json.loads(result.stdout)["works"]) == (0, True), result.stdout
    assert "untrained and only orders texts by sentiment" in checks["judge model"]["detail"]
    assert checks["embedded model"]["data"]["package"] is True
    assert checks["can read labels"]["data"]["reads"] is True
    assert checks["context"]["data"]["tokens"] == 8192
    memory = checks["memory"]["data"]
    assert memory["fits"] is True
    assert 4 * 134_515_008 < memory["needs_bytes"] < memory["free_bytes"]
    first, second = checks["smoke test"]["data"]["scores"]
    assert first > second
    assert checks["smoke test"]["data"]["seconds"] > 0


# -- cache, version, help ---------------------------------------------------------------------------------------------------


def test_cache_shows_and_empties_what_rank_kept(source: Path, tmp_path: Path, engine: ScriptedEngine) -> None:
    path = tmp_path / "replies.db"
    rank(source, "--set", f"cache={path}")
    count = len(engine.requests)
    assert f"{count} replies" in run("cache", path).stdout
    refused = run("cache", path, "--clear", stdin="n\n")
    assert "Emptied" not in refused.stdout
    assert f"{count} replies" in run("cache", path).stdout
    assert "Emptied." in run("cache", path, "--clear", stdin="y\n").stdout
    assert "0 replies" in run("cache", path, "--clear", "--yes").stdout


def test_cache_leaves_a_file_alone_that_is_not_a_cache(tmp_path: Path) -> None:
    assert run("cache", tmp_path / "none.db").exit_code == 2
    assert not (tmp_path / "none.db").exists()
    text, other = tmp_path / "text", tmp_path / "other.db"
    text.write_text("not a database, and longer than a header would be", encoding="utf-8")
    connection = sqlite3.connect(other)
    connection.execute("CREATE TABLE mine (x)")
    connection.close()
    for path in (text, other):
        before = path.read_bytes()
        result = run("cache", path, "--clear", "--yes")
        assert result.exit_code == 2
        assert "is not a reply cache" in result.stderr
        assert path.read_bytes() == before


def test_version_and_help_need_no_heavy_package() -> None:
    assert process([mrjudge(), "--version"]).stdout.startswith(b"mrjudge-reward ")
    assert "rank" in run("--help").stdout
    assert "--overwrite" in run("rank", "--help").stdout
    code = "import sys, mrjudge_reward.cli; print(sorted({'torch', 'transformers', 'openai', 'trl'} & {*sys.modules}))"
    assert process([sys.executable, "-c", code]).stdout == b"[]\n"


# -- real processes ---------------------------------------------------------------------------------------------------------


def mrjudge() -> str:
    found = shutil.which("mrjudge", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    assert found is not None, "the package must be installed (pip install -e .)"
    return found


def process(command: Sequence[str], stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(command, input=stdin, capture_output=True, check=False, timeout=300)


@pytest.fixture(scope="session")
def ranked() -> subprocess.CompletedProcess[bytes]:
    lines = jsonl(
        {"id": "é", "prompt": "How was it?", "candidates": ["It was terrible.", "I loved it, wonderful! ☃", ""]},
        "oops",
        {"prompt": "How?", "candidates": ["Fine."]},
    )
    return process([mrjudge(), "rank"], lines.encode())


def test_the_embedded_model_ranks_stdin_in_a_process_of_its_own(ranked: subprocess.CompletedProcess[bytes]) -> None:
    assert ranked.returncode == 1, ranked.stderr.decode()
    first, bad, lone = records(ranked.stdout.decode("utf-8"))
    assert first["id"] == "é"
    assert first["order"][0] == 1
    assert first["scores"][1] > first["scores"][0]
    assert bad["line"] == 2
    assert lone["scores"] == [None]


def test_stderr_of_a_pipe_holds_messages_and_no_bar(ranked: subprocess.CompletedProcess[bytes]) -> None:
    messages = [line for line in ranked.stderr.decode().splitlines() if not line.startswith("Convert")]
    assert "untrained" in messages[0], "said with the first line that is judged"
    assert messages[1].startswith("mrjudge: standard input, line 2: not JSON")
    assert messages[-1] == "mrjudge: 3 lines, 1 bad, 3 calls, 0 failed comparisons"
    assert all(line.startswith("mrjudge: ") for line in messages)


@pytest.mark.skipif(os.name == "nt", reason="sends a signal: run it on Linux or macOS")
def test_a_real_interrupt_ends_with_code_130_and_no_traceback(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    script = (
        "import time; from mrjudge_reward import JudgeConfig, cli; from mrjudge_reward.engines.scripted import *\n"
        "def answer(request):\n"
        "    time.sleep(0.02); return '<answer>A</answer>'\n"
        "JudgeConfig.build_engine = lambda self: ScriptedEngine(answer)\n"
        "cli.main()"
    )
    command = [sys.executable, "-c", script, "rank", "-", "-o", str(output), "--chunk", "1", *SCRIPTED]
    lines = jsonl(*({"prompt": f"q{i}", "candidates": ["a", "b"]} for i in range(400))).encode()
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdin is not None
        running.stdin.write(lines)
        end = time.monotonic() + 60
        while not (output.exists() and output.stat().st_size) and time.monotonic() < end:
            time.sleep(0.01)
        running.send_signal(signal.SIGINT)
        _, stderr = running.communicate(timeout=60)
    assert running.returncode == 130, stderr.decode()
    assert b"Traceback" not in stderr
    assert b"interrupted" in stderr
    assert all("best" in record for record in records(output))


@pytest.mark.skipif(os.name == "nt", reason="sends a signal: run it on Linux or macOS")
def test_an_interrupt_cancels_what_a_server_is_still_thinking_about_and_the_run_goes_on_to_the_same_output(
    tmp_path: Path,
) -> None:
    source, output, whole = tmp_path / "in.jsonl", tmp_path / "out.jsonl", tmp_path / "whole.jsonl"
    source.write_text(jsonl(*({"prompt": f"Question {i}?", "candidates": ["a", "bb", "c"]} for i in range(40))))
    stuck = threading.Event()

    def answer(body: Mapping[str, Any]) -> str:
        if stuck.is_set() and any(f"Question {i}?" in prompt_text(body) for i in range(5, 30)):
            server.stopping.wait(100)
        return longest_wins(body)

    with JudgeServer(answer) as server:
        command = [
            sys.executable, "-m", "mrjudge_reward.cli", "rank", str(source), "--chunk", "4", "--set", "model=judge",
            "--set", f"base_url={server.base_url}", "--set", "verdict=generate", "--set", "temperature=0",
            "--set", "format=choice", "--set", "schedule=adaptive",
        ]  # fmt: skip
        assert process([*command, "-o", str(whole)]).returncode == 0
        stuck.set()
        with subprocess.Popen([*command, "-o", str(output)], stderr=subprocess.PIPE) as running:
            wait_for_lines(output, 5)
            assert server.wait_until(lambda server: server.in_flight >= 4)
            began = time.monotonic()
            running.send_signal(signal.SIGINT)
            _, stderr = running.communicate(timeout=60)
        assert time.monotonic() - began < 50, "it does not sit out the deadline of its requests"
        assert running.returncode == 130, stderr.decode()
        assert b"Traceback" not in stderr
        assert b"interrupted; 5 results are written" in stderr
        stuck.clear()
        assert process([*command, "-o", str(output)]).returncode == 0
    assert output.read_bytes() == whole.read_bytes()
