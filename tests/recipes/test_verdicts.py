"""The study of wordings, with a scripted judge that knows which answer is longer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mrjudge_reward.engines.scripted import ScriptedEngine
from mrjudge_reward.errors import ConfigError
from mrjudge_reward.types import Comparison, Grades, NoVerdict, Preference, RankOrder, Request, Tie, Verdict
from recipes.common.config import read_config
from recipes.studies.asking import sides
from recipes.studies.verdicts import VerdictStudy, cells_of, markdown, measures, run
from tests.support import ROOT

CONFIG = str(ROOT / "recipes" / "studies" / "verdicts.yaml")
TINY: dict[str, Any] = {
    "judge": {"model": "scripted"},
    "formats": ["choice", "score", "ranking"],
    "verdicts": {"once": {"verdict": "logprobs"}, "written": {"verdict": "generate", "retries": 0}},
    "tasks": {"gym": {"source": "reasoning_gym", "eval_count": 5, "generators": ["chain_sum"]}},
    "chunk": 2,
    "resamples": 50,
}


def judge() -> ScriptedEngine:
    return ScriptedEngine.by_utility(lambda text: float(text) if text.lstrip("-").isdigit() else 0.0)


def test_a_study_has_a_row_for_all_that_goes_together_and_goes_on_where_it_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = run(VerdictStudy(**TINY), tmp_path, judge())
    rows = {(row["format"], row["verdict"]): row for row in report["rows"]}
    assert set(rows) == {
        ("choice", "once"),
        ("choice", "written"),
        ("score", "once"),
        ("score", "written"),
        ("ranking", "written"),
    }
    assert "left out: ranking, once" in capsys.readouterr().out
    choice = rows["choice", "written"]
    assert (choice["pairs"], choice["failed"], choice["why"], choice["mass"]) == (5, 0.0, None, None)
    assert choice["both"] == choice["one"] == choice["decided"], "that judge has no position bias"
    assert choice["consistent"][0] == 1
    assert rows["choice", "once"]["mass"] == pytest.approx(1)
    assert rows["choice", "once"]["decided"][0] == choice["decided"][0]
    assert "both" not in rows["score", "once"]
    assert rows["ranking", "written"]["failed"] == 1, "it writes no ranking"
    assert rows["ranking", "written"]["why"] == "wrong count 10"
    kept = (tmp_path / "progress.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(kept) == 15, "three chunks for each row"
    (tmp_path / "progress.jsonl").write_text("\n".join(kept[:9]) + "\n" + kept[9][:20], encoding="utf-8")
    again = judge()
    assert [r["both"] for r in run(VerdictStudy(**TINY), tmp_path, again)["rows"] if "both" in r] == [
        r["both"] for r in report["rows"] if "both" in r
    ]
    assert 0 < len(again.requests) < 40
    assert run(VerdictStudy(**TINY), tmp_path, judge())["rows"] != []
    assert "| gym | choice | once | own | 5 |" in markdown(report)
    json.dumps(report)


def test_a_wording_that_is_not_followed_shows(tmp_path: Path) -> None:
    def script(request: Request) -> str | dict[str, float]:
        return dict.fromkeys(request.labels, 0.01) if request.labels else "The best response is B."

    study = VerdictStudy(**{**TINY, "formats": ["choice"], "wordings": {"own": {}, "short": {"choice": "glance"}}})
    rows = run(study, tmp_path, ScriptedEngine(script))["rows"]
    assert [(row["wording"], row["verdict"]) for row in rows] == [
        ("own", "once"), ("own", "written"), ("short", "once"), ("short", "written"),
    ]  # fmt: skip
    assert [row["mass"] for row in rows if row["verdict"] == "once"] == pytest.approx([0.02, 0.02])
    assert {row["why"] for row in rows if row["verdict"] == "written"} == {"no verdict 10"}
    assert all(row["decided"][0] == row["consistent"][0] == 0 for row in rows)


PAIR = [Comparison((0, 1)), Comparison((1, 0))]
ALONE = [Comparison((0,)), Comparison((1,))]


@pytest.mark.parametrize(
    ("outcomes", "orders", "expected"),
    [
        ((Preference((0.8, 0.2)), Preference((0.7, 0.3))), PAIR, [0.8, 0.3]),
        ((Preference((1.0, 0.0)), NoVerdict("truncated")), PAIR, [1.0, None]),
        ((Tie(), Preference((0.0, 1.0))), PAIR, [0.5, 1.0]),
        ((Grades.sampled((3, 1)), Grades.sampled((3, 1))), PAIR, [1.0, 0.0]),
        ((Grades.sampled((2, 2)), Grades.sampled((1, 3))), PAIR, [0.5, 1.0]),
        ((RankOrder(((0,), (1,))), RankOrder(((0,), (1,)))), PAIR, [1.0, 0.0]),
        ((RankOrder(((0, 1),)), RankOrder(((1,), (0,)))), PAIR, [0.5, 1.0]),
        ((Grades.sampled((4,)), Grades.sampled((2,))), ALONE, [1.0]),
        ((Grades.sampled((2,)), Grades.sampled((2,))), ALONE, [0.5]),
        ((Grades.sampled((2,)), NoVerdict("truncated")), ALONE, [None]),
    ],
)
def test_every_verdict_is_for_one_candidate_or_none(
    outcomes: Any, orders: list[Comparison], expected: list[Any]
) -> None:
    assert sides([Verdict(outcome) for outcome in outcomes], orders) == expected


def test_a_tie_and_a_failure_are_not_right() -> None:
    entry = {"right": [[0.9, 0.8], [0.9, 0.3], [0.5, 0.5], [None, 0.9], [None, None]], "reasons": {"truncated": 3},
             "masses": [], "verdicts": 10, "tokens": 50, "seconds": 5.0}  # fmt: skip
    row = measures([entry], 50, 0)
    shares = {name: row[name][0] for name in ("one", "both", "decided", "consistent")}
    assert shares == pytest.approx({"one": 0.4, "both": 0.2, "decided": 0.6, "consistent": 0.2})
    assert (row["failed"], row["tokens"], row["seconds"], row["tied"]) == (0.3, 5, 0.5, 0.2)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"split": "train"}, "dev or test"),
        ({"formats": ["ranking"], "verdicts": {"once": {"verdict": "logprobs"}}}, "no format goes with"),
        ({"tasks": {"three": {"source": "reasoning_gym", "size": 3}}}, "other items than pairs"),
        ({"formats": []}, "formats"),
        ({"wording": {}}, "unknown setting 'wording'"),
    ],
)
def test_a_study_that_could_not_work_is_refused(change: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=says):
        run(VerdictStudy(**{**TINY, **change}), tmp_path, judge())


def test_the_config_asks_the_embedded_model_in_all_formats() -> None:
    cells = cells_of(VerdictStudy(**read_config(CONFIG)))
    assert len(cells) == 2 * (2 * 3 + 2)
    assert {cell.format for cell in cells} == {"choice", "score", "pair_scores", "ranking"}
