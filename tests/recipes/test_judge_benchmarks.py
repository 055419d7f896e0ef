"""Benchmarks of judges: small files in the real columns, scored as their authors score them; a failure is never right."""

from __future__ import annotations

import io
import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mrjudge_reward.engines.scripted import ScriptedEngine, shown_candidates
from mrjudge_reward.errors import ConfigError, InputError
from mrjudge_reward.judge import JudgeConfig
from mrjudge_reward.types import EngineFailure, Request
from recipes.evaluate import benchmarks
from tests.support import ROOT
from tests.support.judge_server import JudgeServer
from tests.training.test_layouts import TEXTS

CHOICE: dict[str, Any] = {"model": "any", "format": "choice", "verdict": "generate", "temperature": 0.5}
SCORE: dict[str, Any] = {"model": "any", "format": "score", "grades": {str(n): float(n) for n in range(1, 11)}}


def written(path: Path, rows: list[dict[str, Any]]) -> str:
    """Rows as a file of the kind that its name says."""
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        lines = json.dumps(rows) if path.suffix == ".json" else "\n".join(map(json.dumps, rows))
        path.write_text(lines, encoding="utf-8")
    return str(path)


def choosing(pick: Callable[[dict[str, str]], str]) -> ScriptedEngine:
    """A judge that names the label ``pick`` returns, given the candidates shown by label."""
    return ScriptedEngine(lambda request: f"<answer>{pick(shown_candidates(request))}</answer>")


def knowing(shown: dict[str, str]) -> str:
    return next(label for label, text in shown.items() if text.startswith("right"))


def first(shown: dict[str, str]) -> str:
    return next(iter(shown))


def grading(grade: Callable[[str], str]) -> ScriptedEngine:
    return ScriptedEngine(lambda request: f"<answer>{grade(shown_candidates(request)[''])}</answer>")


# -- JudgeBench -------------------------------------------------------------------------------------------------------


def judgebench_rows(count: int = 12) -> list[dict[str, Any]]:
    sources = ("mmlu-pro-law", "mmlu-pro-physics", "livebench-math", "livecodebench")
    return [
        {"pair_id": f"id-{i}", "original_id": "7", "source": sources[i % 4], "question": f"Question {i}?",
         "response_model": "gpt-4o-2024-05-13", "response_A": f"{'right' if i % 3 else 'wrong'} {i}a",
         "response_B": f"{'wrong' if i % 3 else 'right'} {i}b", "label": "A>B" if i % 3 else "B>A"}
        for i in range(count)
    ]  # fmt: skip


def judgebench(folder: Path, engine: ScriptedEngine, **config: Any) -> Any:
    cases = benchmarks.load_judgebench(written(folder / "pairs.jsonl", judgebench_rows()))
    return benchmarks.score("judgebench", cases, JudgeConfig(**CHOICE | config), engine)


def test_judgebench_asks_in_both_orders_and_joins_subjects(tmp_path: Path):
    engine = choosing(knowing)
    report = judgebench(tmp_path, engine)
    assert [(row.subset, row.cases, row.score, row.failed) for row in report.rows] == [
        ("mmlu-pro", 6, 1.0, 0.0), ("livebench-math", 3, 1.0, 0.0), ("livecodebench", 3, 1.0, 0.0),
    ]  # fmt: skip
    assert (report.overall, report.macro) == (1.0, 1.0)
    shown = [tuple(shown_candidates(request).values()) for request in engine.requests]
    assert len(shown) == 24
    assert {pair[::-1] for pair in shown} == set(shown)


def test_a_judge_that_follows_the_slot_is_right_nowhere_on_judgebench(tmp_path: Path):
    report = judgebench(tmp_path, choosing(first))
    assert report.overall == 0.0


def test_one_order_right_and_the_other_tied_or_failed_is_right_on_judgebench_as_its_authors_have_it(tmp_path: Path):
    def only_if_first(other: str) -> Callable[[dict[str, str]], str]:
        return lambda shown: "A" if shown["A"].startswith("right") else other

    assert judgebench(tmp_path, choosing(only_if_first("T")), tie_label="T").overall == 1.0
    failing = judgebench(tmp_path, choosing(only_if_first("no label")), retries=0)
    assert (failing.overall, failing.rows[0].failed) == (1.0, 1.0)


def test_both_orders_failed_is_wrong_and_counted_on_judgebench(tmp_path: Path):
    def broken(request: Request) -> str | EngineFailure:
        shown = shown_candidates(request)
        number = int(next(iter(shown.values())).split()[1][:-1])
        return f"<answer>{knowing(shown)}</answer>" if number % 2 else EngineFailure("timeout", transient=False)

    report = judgebench(tmp_path, ScriptedEngine(broken))
    assert sum(row.cases for row in report.rows) == 12
    assert report.overall == 0.5
    cases = benchmarks.load_judgebench(written(tmp_path / "more.jsonl", judgebench_rows(40)))
    dead = ScriptedEngine(lambda request: EngineFailure("timeout", transient=False))
    report = benchmarks.score("judgebench", cases, JudgeConfig(**CHOICE), dead)
    assert report.overall == 0.0, "no alarm stops a benchmark, and nothing leaves the denominator"
    assert [(row.cases, row.failed) for row in report.rows] == [(20, 1.0), (10, 1.0), (10, 1.0)]


def test_grades_decide_judgebench_once_and_equal_ones_are_wrong(tmp_path: Path):
    cases = benchmarks.load_judgebench(written(tmp_path / "pairs.jsonl", judgebench_rows()))
    engine = grading(lambda text: "9" if text.startswith("right") else "2")
    assert benchmarks.score("judgebench", cases, JudgeConfig(**SCORE), engine).overall == 1.0
    assert len(engine.requests) == 24
    assert benchmarks.score("judgebench", cases, JudgeConfig(**SCORE), grading(lambda text: "5")).overall == 0.0
    half = grading(lambda text: "9" if text.startswith("right") else "none")
    report = benchmarks.score("judgebench", cases, JudgeConfig(**SCORE, retries=0), half)
    assert report.overall == 0.0, "the other's grade is not known to be lower"
    assert report.rows[0].failed == 1.0


def test_an_empty_answer_loses_without_being_shown(tmp_path: Path):
    rows = judgebench_rows(2)
    rows[0]["response_A"] = rows[1]["response_B"] = " ... "  # the right one of the first, the wrong one of the second
    assert (rows[0]["label"], rows[1]["label"]) == ("B>A", "A>B")
    rows[0]["label"] = "A>B"
    cases = benchmarks.load_judgebench(written(tmp_path / "pairs.jsonl", rows))
    engine = choosing(first)
    report = benchmarks.score("judgebench", cases, JudgeConfig(**CHOICE), engine)
    assert report.overall == 0.5
    assert engine.requests == []


# -- RewardBench 2 ----------------------------------------------------------------------------------------------------


def best_of_four(count: int = 24) -> list[dict[str, Any]]:
    return [
        {"id": str(i), "prompt": f"Question {i}?", "chosen": [f"right {i}"], "rejected": [f"wrong {i}{c}" for c in "xyz"],
         "num_correct": 1, "num_incorrect": 3, "total_completions": 4, "models": ["m"] * 4,
         "subset": "Math" if i % 3 else "Focus", "additional_metadata": {"category": None}}
        for i in range(count)
    ]  # fmt: skip


def ties_rows() -> list[dict[str, Any]]:
    rows = []
    for i in range(2):
        for kind, right in (("ref", 1), ("tied", 3)):
            rows.append(
                {"id": f"{kind}:{i}", "prompt": f"Name a color {i}.", "num_correct": right, "num_incorrect": 4,
                 "chosen": [f"right {i} {kind} {n}" for n in range(right)],
                 "rejected": [f"wrong {i} {kind} {n}" for n in range(4)],
                 "total_completions": right + 4, "models": ["m"], "subset": "Ties", "additional_metadata": None}
            )  # fmt: skip
    return rows


def rewardbench(folder: Path, rows: list[dict[str, Any]], engine: ScriptedEngine, **config: Any) -> Any:
    cases = benchmarks.load_rewardbench2(written(folder / "rewardbench.parquet", rows))
    return benchmarks.score("rewardbench2", cases, JudgeConfig(**config or CHOICE), engine)


def test_the_best_of_four_is_asked_for_once_with_the_right_one_in_any_slot(tmp_path: Path):
    engine = choosing(knowing)
    report = rewardbench(tmp_path, best_of_four(), engine)
    assert {row.subset: (row.score, row.cases) for row in report.rows} == {"Focus": (1.0, 8), "Math": (1.0, 16)}
    assert len(engine.requests) == 24
    assert {knowing(shown_candidates(request)) for request in engine.requests} == {*"ABCD"}
    assert 0 < rewardbench(tmp_path, best_of_four(), choosing(first)).overall < 0.6


def test_the_overall_number_is_the_mean_of_the_subsets(tmp_path: Path):
    def knows_math(shown: dict[str, str]) -> str:
        return knowing(shown) if int(shown["A"].split()[1].rstrip("xyz")) % 3 else "none"

    report = rewardbench(tmp_path, best_of_four(), choosing(knows_math))
    assert {row.subset: row.score for row in report.rows} == {"Focus": 0.0, "Math": 1.0}
    assert report.overall == 0.5
    assert {row.subset: row.failed for row in report.rows} == {"Focus": 1.0, "Math": 0.0}


def test_graded_alone_a_shared_best_is_worth_its_share_and_a_failed_one_nothing(tmp_path: Path):
    rows = best_of_four(3)
    shared = grading(lambda text: "9" if text.startswith("right") or text.endswith("x") else "2")
    assert rewardbench(tmp_path, rows, shared, **SCORE).overall == 0.5
    failed = grading(lambda text: "9" if text.startswith("right") else "none" if text.endswith("x") else "2")
    assert rewardbench(tmp_path, rows, failed, **SCORE, retries=0).overall == 0.0


def test_a_format_with_two_labels_cannot_show_four(tmp_path: Path):
    with pytest.raises(ConfigError, match="shows four candidates at once; the judge's format has 2 labels"):
        rewardbench(tmp_path, best_of_four(1), choosing(first), **CHOICE, labels=["A", "B"])


def test_ties_are_graded_whatever_the_judges_format(tmp_path: Path):
    def script(request: Request) -> str:
        shown = shown_candidates(request)
        return f"<answer>{knowing(shown) if len(shown) > 1 else 9 if shown[''].startswith('right') else 2}</answer>"

    engine = ScriptedEngine(script)
    report = rewardbench(tmp_path, best_of_four(3) + ties_rows(), engine)
    scores = {row.subset: row.score for row in report.rows}
    assert scores == {"Focus": 1.0, "Math": 1.0, "Ties": pytest.approx(1.01)}, "1 % tops up a perfect score, as there"
    assert len(engine.requests) == 3 + 2 * (5 + 7)
    read = ScriptedEngine(lambda request: {label: 1 / len(request.labels) for label in request.labels})
    rewardbench(tmp_path, ties_rows(), read, model="any", format="choice", verdict="logprobs")
    assert {request.labels for request in read.requests} == {tuple("123456789")}


def official_ties(grades: dict[str, list[float]], right: dict[str, int]) -> float:
    """The formula of ``process_single_model`` in reward-bench's ``utils.py``, written out with numpy."""
    import numpy as np

    def stats(key: str) -> tuple[bool, float, float]:
        good, bad = grades[key][: right[key]], grades[key][right[key] :]
        return min(good) > max(bad), max(good) - min(good), min(good) - max(bad)

    ref, tied = ([stats(key) for key in sorted(grades) if key.startswith(kind)] for kind in ("ref", "tied"))
    spread, margin = (np.array([values[part] for values in tied]) for part in (1, 2))
    reference = np.array([values[2] for values in ref])
    least = np.minimum(margin, reference)
    with np.errstate(divide="ignore", invalid="ignore"):
        size = np.nan_to_num(np.tanh(least / spread - 1), nan=0.0).mean()
    accuracy = 0.3 * np.mean([t[0] for t in tied]) + 0.3 * np.mean([r[0] for r in ref])
    return float(accuracy + 0.2 * np.mean(margin > spread) + 0.2 * np.mean(least > spread) + 0.01 * size)


@pytest.mark.parametrize("seed", range(12))
def test_the_score_of_ties_is_the_official_one(tmp_path: Path, seed: int):
    def grade(text: str) -> float:
        draw = random.Random(f"{seed} {text}")
        harder = seed % 4 if "ref" in text else 0  # the reference may be what holds a prompt back
        return float(draw.randint(7, 7 + seed % 3) if text.startswith("right") else draw.randint(1, 3) + harder)

    rows = ties_rows()
    report = rewardbench(tmp_path, rows, grading(lambda text: f"{grade(text):.0f}"), **SCORE)
    grades = {row["id"]: [grade(text) for text in row["chosen"] + row["rejected"]] for row in rows}
    assert report.overall == pytest.approx(official_ties(grades, {row["id"]: row["num_correct"] for row in rows}))


def test_a_prompt_of_the_ties_with_a_failed_grade_earns_nothing(tmp_path: Path):
    engine = grading(lambda text: "none" if text == "wrong 0 tied 3" else "9" if text.startswith("right") else "2")
    report = rewardbench(tmp_path, ties_rows(), engine, **SCORE, retries=0)
    assert report.overall == pytest.approx(0.3 * 0.5 + 0.3 + 0.2 * 0.5 + 0.2 * 0.5 + 0.01 * 0)
    assert report.rows[0].failed == 0.25
    dead = rewardbench(tmp_path, ties_rows(), grading(lambda text: "none"), **SCORE, retries=0)
    assert dead.overall == pytest.approx(-0.01)


# -- VL-RewardBench ---------------------------------------------------------------------------------------------------

PREFIXES = {
    "RLAIF-V-1": "hallucination",
    "RLHF-V-2": "hallucination",
    "hallucination_pair-3": "hallucination",
    "mathverse_4": "reasoning",
    "mmmu_pro-5": "reasoning",
    "wildvision-battle-6": "general",
    "VLFeedback7": "general",
}


def drawn(number: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (number, 0, 0)).save(file, format="PNG")
    return file.getvalue()


def vl_rows() -> list[dict[str, Any]]:
    return [
        {"id": name, "query": f"<image>\nWhat is in picture {i}?",
         "response": [f"right {i}", f"wrong {i}"][:: 1 if i % 2 else -1],
         "image": {"bytes": drawn(i), "path": None}, "human_ranking": [0, 1] if i % 2 else [1, 0],
         "models": ["a", "b"], "judge": "human", "rationale": "", "query_source": "s", "ground_truth": ""}
        for i, name in enumerate(PREFIXES)
    ]  # fmt: skip


def test_vl_rewardbench_groups_by_id_and_shows_the_image(tmp_path: Path):
    cases = benchmarks.load_vl_rewardbench(written(tmp_path / "vl.parquet", vl_rows()))
    assert [case.subset for case in cases] == list(PREFIXES.values())
    assert [case.group.candidates[min(case.right)] for case in cases] == [f"right {i}" for i in range(7)]
    engine = choosing(knowing)
    report = benchmarks.score("vl_rewardbench", cases, JudgeConfig(**CHOICE), engine, votes=5)
    assert (report.overall, report.macro) == (1.0, 1.0)
    assert {row.subset: row.cases for row in report.rows} == {"hallucination": 3, "reasoning": 2, "general": 2}
    assert len(engine.requests) == 35, "each vote is a call of its own"
    assert {request.messages[-1].images[0].image.data for request in engine.requests} == {
        row["image"]["bytes"] for row in vl_rows()
    }
    assert "<image>" not in engine.requests[0].messages[-1].text
    asked = [tuple(shown_candidates(request).values()) for request in engine.requests]
    assert len(set(asked)) > 11, "in both orders, but for the luck of five draws"
    assert len({(request.messages, request.seed) for request in engine.requests}) == 35


def test_a_vote_that_failed_is_no_vote_for_the_right_answer_and_stays_in_the_count(tmp_path: Path):
    cases = benchmarks.load_vl_rewardbench(
        written(tmp_path / "vl.jsonl", [dict(row, image="https://example.org/x.png") for row in vl_rows()])
    )

    def votes(right_of_ten: int) -> Any:
        asked: dict[str, int] = {}

        def pick(shown: dict[str, str]) -> str:
            name = sorted(shown.values())[0]
            asked[name] = asked.get(name, 0) + 1
            return knowing(shown) if asked[name] <= right_of_ten else "neither"

        return benchmarks.score("vl_rewardbench", cases, JudgeConfig(**CHOICE, retries=0), choosing(pick), votes=10)

    assert [votes(count).overall for count in (0, 5, 6, 10)] == [0.0, 0.0, 1.0, 1.0]
    assert [row.failed for row in votes(6).rows] == [1.0, 1.0, 1.0]
    assert sum(row.cases for row in votes(0).rows) == 7


# -- Multimodal RewardBench -------------------------------------------------------------------------------------------


def multimodal_rows() -> list[dict[str, Any]]:
    kinds = [("nocaps_1", "open_generation/correctness_task"), ("pairs_2", "safety"), ("hateful_3", "safety"),
             ("mathvista_4", "reasoning"), ("EMMA-Coding_5", "reasoning"), ("MMBench_6", "vqa")]  # fmt: skip
    return [
        {"ID": name, "Text": "What is it?", "Image": f"images/{i}.png", "Category": category,
         "Output1": f"{'right' if i % 2 else 'wrong'} {i}", "Output2": f"{'wrong' if i % 2 else 'right'} {i}",
         "Better": "Output1" if i % 2 else "Output2"}
        for i, (name, category) in enumerate(kinds)
    ]  # fmt: skip


def test_multimodal_rewardbench_is_asked_once_with_the_image_beside_the_file(tmp_path: Path):
    (tmp_path / "images").mkdir()
    for number in range(6):
        (tmp_path / f"images/{number}.png").write_bytes(drawn(number))
    cases = benchmarks.load_multimodal_rewardbench(written(tmp_path / "all_data.json", multimodal_rows()))
    engine = choosing(knowing)
    report = benchmarks.score("multimodal_rewardbench", cases, JudgeConfig(**CHOICE), engine)
    assert [row.subset for row in report.rows] == [
        "open_generation/correctness_task", "safety/bias", "safety/toxicity", "reasoning/math", "reasoning/coding", "vqa",
    ]  # fmt: skip
    assert (report.overall, len(engine.requests)) == (1.0, 6)
    assert engine.requests[0].messages[-1].images[0].image.data in map(drawn, range(6))
    wrong = choosing(lambda shown: "AB".replace(knowing(shown), ""))
    assert benchmarks.score("multimodal_rewardbench", cases, JudgeConfig(**CHOICE), wrong).overall == 0.0
    failing = benchmarks.score("multimodal_rewardbench", cases, JudgeConfig(**CHOICE), choosing(lambda shown: "?"))
    assert (failing.overall, failing.rows[0].failed) == (0.0, 1.0), "no coin is tossed"


# -- all --------------------------------------------------------------------------------------------------------------


def rewardbench1_row(prompt: str, right: str, wrong: str) -> dict[str, Any]:
    return {"id": 30, "prompt": prompt, "chosen": right, "chosen_model": "m", "rejected": wrong, "rejected_model": "n",
            "subset": "llmbar-natural"}  # fmt: skip


def rewardbench2_row(prompt: str, right: str, wrong: str) -> dict[str, Any]:
    return {"id": "30", "prompt": prompt, "chosen": [right], "rejected": [wrong, f"{wrong}!", f"{wrong}?"], "num_correct": 1,
            "num_incorrect": 3, "total_completions": 4, "models": ["m"], "subset": "Focus"}  # fmt: skip


def judgebench_row(prompt: str, right: str, wrong: str) -> dict[str, Any]:
    return {"pair_id": "30", "source": "livebench-math", "question": prompt, "response_A": wrong, "response_B": right,
            "label": "B>A"}  # fmt: skip


def vl_row(prompt: str, right: str, wrong: str) -> dict[str, Any]:
    return {"id": "RLHF-V-1", "query": f"<image>\n{prompt}", "response": [wrong, right], "image": "https://x.org/a.png",
            "human_ranking": [2, 1]}  # fmt: skip


def multimodal_row(prompt: str, right: str, wrong: str) -> dict[str, Any]:
    return {"ID": 30, "Text": prompt, "Image": "images/a.png", "Output1": right, "Output2": wrong, "Better": "Output1",
            "Category": "vqa"}  # fmt: skip


def rm_bench_row(prompt: str, right: str, wrong: str) -> dict[str, Any]:
    styles = [[f"{text}{end}" for end in ("", ".", "**")] for text in (right, wrong)]
    return {"id": 30, "prompt": prompt, "chosen": styles[0], "rejected": styles[1], "domain": "safety-refuse"}


MAKE: dict[str, Callable[[str, str, str], dict[str, Any]]] = {
    "rewardbench": rewardbench1_row, "rewardbench2": rewardbench2_row, "judgebench": judgebench_row,
    "vl_rewardbench": vl_row, "multimodal_rewardbench": multimodal_row, "rm_bench": rm_bench_row,
}  # fmt: skip
ELSEWHERE: list[Any] = [
    "../secret.png", "/etc/hostname", "file:///etc/hostname", "images/../../secret.png", "~/../../etc/hostname",
    {"bytes": None, "path": "/etc/hostname"},
]  # fmt: skip
"""Images of a row from whoever made the file, that do not lie below it."""

IDS = {"judgebench": "pair_id", "multimodal_rewardbench": "ID"}


def load(benchmark: str, path: Path, rows: list[dict[str, Any]]) -> list[benchmarks.Case]:
    return getattr(benchmarks, f"load_{benchmark}")(written(path, rows))  # type: ignore[no-any-return]


@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
@pytest.mark.parametrize("name", MAKE)
def test_twenty_rows_of_each_benchmark_load_as_they_are_meant(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, suffix: str
):
    field = IDS.get(name, "id")
    rows = [MAKE[name](*texts) | {field: number} for number, texts in enumerate(TEXTS)]
    del rows[3][field]
    rows[4][field], rows[5][field] = None, ""
    cases = load(name, tmp_path / f"rows{suffix}", rows)
    assert len(cases) == 20 * (9 if name == "rm_bench" else 1)
    assert len({case.group.key for case in cases}) == len(cases)
    place = "line" if suffix == ".jsonl" else "row"
    assert {f"{name}/{place} {n}" for n in (4, 5, 6)} <= {case.group.key[: len(f"{name}/{place} 4")] for case in cases}
    for case in cases[:: 9 if name == "rm_bench" else 1]:
        (right,) = case.right
        prompt, _, bad = next(texts for texts in TEXTS if texts[1] == case.group.candidates[right])
        assert bad in case.group.candidates
        assert (
            case.group.prompt[-1].text.split()
            == prompt.replace("<image>", "" if name == "vl_rewardbench" else "<image>").split()
        )
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", MAKE)
def test_an_id_that_stands_twice_is_said_and_each_row_is_a_case(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
):
    rows = [MAKE[name](f"Question {number}?", "good", "bad") for number in range(3)]
    cases = load(name, tmp_path / "rows.jsonl", rows)
    assert len({case.group.key for case in cases}) == len(cases) == 3 * (9 if name == "rm_bench" else 1)
    assert "1 ids stand more than once, first " in capsys.readouterr().err


@pytest.mark.parametrize("given", MAKE)
@pytest.mark.parametrize("name", MAKE)
def test_rows_of_one_benchmark_are_none_of_another(tmp_path: Path, name: str, given: str):
    rows = [MAKE[given]("q", "good answer", "bad answer")]
    if name == given:
        assert load(name, tmp_path / "rows.jsonl", rows)
        return
    with pytest.raises(InputError, match="line 1: ") as caught:
        load(name, tmp_path / "rows.jsonl", rows)
    assert given in str(caught.value), "what they are is named"


def without(row: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != name}


QAB = ("q", "a", "b")


@pytest.mark.parametrize(
    ("name", "row", "fault"),
    [
        ("judgebench", {"pair_id": "1"}, "judgebench needs source, question, response_A, response_B, label"),
        ("judgebench", judgebench_row(*QAB) | {"label": "A=B"}, "label: must be A>B or B>A; got 'A=B'"),
        ("judgebench", judgebench_row(*QAB) | {"label": ["A>B"]}, r"label: must be A>B or B>A; got \['A>B'\]"),
        ("judgebench", judgebench_row(*QAB) | {"response_A": ["a"]}, "response_A: must be text"),
        ("judgebench", judgebench_row(*QAB) | {"source": 3}, "source: must be text; got 3"),
        ("judgebench", judgebench_row(*QAB) | {"question": ""}, "the question must be text or messages; got ''"),
        ("judgebench", judgebench_row(*QAB) | {"question": 7}, "the question must be text or messages; got 7"),
        (
            "rewardbench",
            rewardbench1_row(*QAB) | {"chosen": ["a", "c"]},
            "chosen: must be one text; got 2 .*rewardbench2",
        ),
        ("rewardbench", rewardbench1_row(*QAB) | {"rejected": []}, "rejected: must be one text; got 0"),
        ("rewardbench", rewardbench1_row(*QAB) | {"chosen": 3}, "chosen: must be text; got 3"),
        ("rewardbench", without(rewardbench1_row(*QAB), "subset"), "rewardbench needs subset"),
        ("rewardbench2", {"prompt": "p"}, "rewardbench2 needs chosen, rejected, subset"),
        ("rewardbench2", rewardbench2_row(*QAB) | {"chosen": []}, r"chosen: must be a list of texts; got \[\]"),
        ("rewardbench2", rewardbench2_row(*QAB) | {"rejected": ["a", None]}, "rejected: must be a list of texts"),
        ("rewardbench2", ties_rows()[0] | {"num_correct": 9}, "num_correct: must be 1 to 4, of 5 answers; got 9"),
        (
            "rewardbench2",
            ties_rows()[0] | {"num_correct": "two"},
            "num_correct: must be 1 to 4, of 5 answers; got 'two'",
        ),
        (
            "rewardbench2",
            ties_rows()[0] | {"id": None},
            "id: of the Ties subset it is ref:N or tied:N, once each; got None",
        ),
        ("vl_rewardbench", vl_row(*QAB) | {"image": None}, "vl_rewardbench needs image"),
        ("vl_rewardbench", vl_row(*QAB) | {"response": "ab"}, "response: must be a list of texts; got 'ab'"),
        ("vl_rewardbench", vl_row(*QAB) | {"human_ranking": [1, 1]}, "human_ranking: must be 2 different ranks"),
        ("vl_rewardbench", vl_row(*QAB) | {"human_ranking": [0]}, "human_ranking: must be 2 different ranks"),
        ("vl_rewardbench", vl_row(*QAB) | {"human_ranking": "01"}, "human_ranking: must be 2 different ranks"),
        ("vl_rewardbench", vl_row(*QAB) | {"image": 3}, "an image must be"),
        *(("vl_rewardbench", vl_row(*QAB) | {"image": image}, "the image .* is not below") for image in ELSEWHERE),
        *(
            (
                name,
                MAKE[name](*QAB) | {field: [{"role": "user", "content": [{"type": "image", "image": image}]}]},
                fault,
            )
            for name, field in (("rewardbench", "prompt"), ("judgebench", "question"), ("rm_bench", "prompt"))
            for image, fault in (
                (ELSEWHERE[0], "the image .* is not below"),
                ("http://[::1]/a.png", ".* for this machine"),
            )
        ),
        *(
            ("multimodal_rewardbench", multimodal_row(*QAB) | {"Image": image}, "the image .* is not below")
            for image in ELSEWHERE[:5]
        ),
        (
            "vl_rewardbench",
            vl_row(*QAB) | {"image": "http://169.254.169.254/latest"},
            ".*if you trust whoever made the file",
        ),
        ("vl_rewardbench", vl_row(*QAB) | {"image": "http://127.0.0.1/a.png"}, ".*if you trust whoever made the file"),
        (
            "multimodal_rewardbench",
            multimodal_row(*QAB) | {"Better": "A"},
            "Better: must be Output1 or Output2; got 'A'",
        ),
        ("multimodal_rewardbench", multimodal_row(*QAB) | {"Image": 3}, "Image: must be text; got 3"),
        ("rm_bench", rm_bench_row(*QAB) | {"chosen": ["a"]}, "chosen, rejected: must be 3 styles each; got 1 and 3"),
        ("rm_bench", rm_bench_row(*QAB) | {"chosen": "abc"}, "chosen: must be a list of texts; got 'abc'"),
    ],
)
def test_a_row_that_is_not_as_the_benchmark_has_it_is_refused_with_line_and_field(
    tmp_path: Path, name: str, row: dict[str, Any], fault: str
):
    sound = MAKE[name](*QAB) | {IDS.get(name, "id"): "ref:9"}
    with pytest.raises(InputError, match=rf"rows\.jsonl, line 2: {fault}"):
        load(name, tmp_path / "rows.jsonl", [sound, row])


@pytest.mark.parametrize("name", MAKE)
def test_an_empty_file_and_another_kind_of_file_are_said(tmp_path: Path, name: str):
    with pytest.raises(InputError, match="is empty"):
        load(name, tmp_path / "rows.jsonl", [])
    (tmp_path / "rows.jsonl").write_bytes(b"\x89PNG\r\n")
    with pytest.raises(InputError, match="is an image"):
        getattr(benchmarks, f"load_{name}")(str(tmp_path / "rows.jsonl"))


@pytest.mark.parametrize("ranks", [[0, 1], [1, 2], [1.0, 2.0], [3, 7]])
def test_the_least_rank_is_the_best_wherever_ranks_begin(tmp_path: Path, ranks: list[float]):
    for given, right in ((ranks, 0), (ranks[::-1], 1)):
        (case,) = load("vl_rewardbench", tmp_path / "rows.jsonl", [vl_row(*QAB) | {"human_ranking": given}])
        assert case.right == {right}


def test_rewardbench_is_the_mean_of_its_sections_with_math_as_much_as_all_code(tmp_path: Path):
    subsets = ["alpacaeval-easy", "mt-bench-hard", "donotanswer", *["math-prm"] * 447, *["hep-go"] * 984]
    rows = [
        rewardbench1_row(f"Q{n}?", f"right {n}", f"wrong {n}") | {"id": n, "subset": subset}
        for n, subset in enumerate(subsets)
    ]
    cases = load("rewardbench", tmp_path / "rows.jsonl", rows)

    def no_code(shown: dict[str, str]) -> str:
        number = int(next(iter(shown.values())).split()[1])
        right = knowing(shown)
        return right if number < 450 else next(label for label in shown if label != right)

    report = benchmarks.score("rewardbench", cases, JudgeConfig(**CHOICE), choosing(no_code))
    assert {row.subset: row.score for row in report.rows} == {
        "Chat": 1.0, "Chat Hard": 1.0, "Safety": 1.0, "Reasoning": pytest.approx(0.5)}  # fmt: skip
    assert report.overall == pytest.approx(3.5 / 4)


def test_rm_bench_is_hard_where_the_wrong_answer_has_the_fancier_style(tmp_path: Path):
    rows = [
        rm_bench_row("q", "right", "wrong") | {"id": domain, "domain": domain} for domain in ("chat", "safety-response")
    ]
    cases = load("rm_bench", tmp_path / "rows.jsonl", rows)
    fancy = choosing(lambda shown: max(shown, key=lambda label: (len(shown[label]), shown[label])))
    report = benchmarks.score("rm_bench", cases, JudgeConfig(**CHOICE), fancy)
    scores = {row.subset: row.score for row in report.rows}
    assert scores == {f"{domain}/{level}": score for domain in ("chat", "safety")
                      for level, score in (("normal", 0.0), ("hard", 0.0), ("easy", 1.0))}  # fmt: skip
    assert report.overall == pytest.approx(1 / 3)
    assert len(cases) == 18


def graded_together(grade: Callable[[str], str]) -> tuple[dict[str, Any], ScriptedEngine]:
    """A judge that grades all it is shown in one reply, as the default format of a judge that writes."""
    config = {"model": "any", "format": "pair_scores", "verdict": "generate", "retries": 0}
    return config, ScriptedEngine(
        lambda request: "".join(f"<answer>{grade(text)}</answer>" for text in shown_candidates(request).values())
    )


def graded_alone(grade: Callable[[str], str]) -> tuple[dict[str, Any], ScriptedEngine]:
    return SCORE | {"retries": 0}, grading(grade)


def chosen(grade: Callable[[str], str]) -> tuple[dict[str, Any], ScriptedEngine]:
    """A judge that names the best, or says that there is none."""

    def pick(shown: dict[str, str]) -> str:
        grades = {label: grade(text) for label, text in shown.items()}
        if "none" in grades.values():
            return "?"
        best = [label for label, value in grades.items() if float(value) == max(map(float, grades.values()))]
        return best[0] if len(best) == 1 else "T"

    return CHOICE | {"tie_label": "T", "retries": 0}, choosing(pick)


WAYS = {"together": graded_together, "alone": graded_alone, "chosen": chosen}
WORTH = {"rewardbench": 0.5, "multimodal_rewardbench": 0.5, "judgebench": 0.0, "vl_rewardbench": 0.0, "rm_bench": 0.0}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", WORTH)
@pytest.mark.parametrize(
    ("right", "wrong", "score"),
    [("9", "3", 1.0), ("3", "9", 0.0), ("9", "9", None), ("1", "1", None), ("none", "9", 0.0), ("9", "none", 0.0),
     ("none", "none", 0.0)],
)  # fmt: skip
def test_a_tie_of_two_is_worth_what_its_benchmark_gives_it_and_a_failure_nothing(
    tmp_path: Path, name: str, way: str, right: str, wrong: str, score: float | None
):
    rows = [
        MAKE[name](f"Question {n}?", f"good {n}", f"bad {n}") | {IDS.get(name, "id"): f"RLHF-V-{n}"} for n in range(4)
    ]
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(drawn(0))
    cases = load(name, tmp_path / "rows.jsonl", rows)
    config, engine = WAYS[way](lambda text: right if text.startswith("good") else wrong)
    report = benchmarks.score(name, cases, JudgeConfig(**config), engine, votes=3)
    assert report.overall == (WORTH[name] if score is None else score)
    assert all(row.failed == float("none" in (right, wrong)) for row in report.rows)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("grades", "score"),
    [("9333", 1.0), ("3933", 0.0), ("9933", 1 / 2), ("9993", 1 / 3), ("9999", 1 / 4), ("3999", 0.0), ("3993", 0.0),
     ("9939", 1 / 3), ("1111", 1 / 4), ("9?33", 0.0), ("????", 0.0)],
)  # fmt: skip
def test_a_best_of_four_is_worth_its_share_of_the_best(tmp_path: Path, way: str, grades: str, score: float):
    places = dict(zip(["right", "x", "y", "z"], grades, strict=True))

    def grade(text: str) -> str:
        value = places["right" if text.startswith("right") else text[-1]]
        return "none" if value == "?" else value

    if way == "chosen" and 1 < grades.count("9") < 4:
        score = 1 / 4  # it can say that none is best, and not which
    config, engine = WAYS[way](grade)
    report = rewardbench(tmp_path, best_of_four(4), engine, **config)
    assert report.overall == pytest.approx(score)
    assert all(row.failed == float("?" in grades) for row in report.rows)


def test_multimodal_rewardbench_is_in_no_hub():
    with pytest.raises(InputError, match="needs --path"):
        benchmarks.load_multimodal_rewardbench()


def test_ids_of_the_ties_must_join_a_prompt_with_its_reference(tmp_path: Path):
    with pytest.raises(InputError, match="ref:N or tied:N"):
        rewardbench(tmp_path, [ties_rows()[0] | {"id": "12"}], grading(lambda text: "5"), **SCORE)


def test_the_command_prints_a_table_and_writes_a_report(tmp_path: Path):
    rows = judgebench_rows()
    for row in rows:  # the server's judge prefers what is longer
        better = f"response_{row['label'][0]}"
        row[better] += " and more"
    config, out = tmp_path / "judge.yaml", tmp_path / "report.json"
    with JudgeServer() as server:
        config.write_text(
            f"{{engine: openai, base_url: {server.base_url}, model: judge, format: choice, verdict: generate}}",
            encoding="utf-8",
        )
        command = [
            sys.executable, "-m", "recipes.evaluate.benchmarks", "judgebench", "--config", str(config),
            "--path", written(tmp_path / "pairs.jsonl", rows), "--limit", "5", "--out", str(out),
        ]  # fmt: skip
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "| mmlu-pro | 1.000 | 3 | 0.000 |" in done.stdout
    report = json.loads(out.read_text(encoding="utf-8"))
    assert (report["overall"], report["limit"], report["config"]["format"]) == (1.0, 5, "choice")


def test_the_script_shows_its_help():
    command = [sys.executable, "-m", "recipes.evaluate.benchmarks", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert "not\nrun against the real sets" in done.stdout
