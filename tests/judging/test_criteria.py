"""Groups judged by the criteria of a rubric: calls, failures, totals, dropout, and the one verdict over all of them."""

from __future__ import annotations

import json
import math
import pickle
import re
from dataclasses import replace
from typing import Any

import pytest

from mrjudge_reward import Group, InputError, Judge, Judgement, JudgeStats, Reranker, ScriptedEngine
from mrjudge_reward.config import JudgeSettings
from mrjudge_reward.engines.scripted import shown_candidates
from mrjudge_reward.judging.criteria import with_rubric
from mrjudge_reward.monitoring.canaries import Canary, measure
from mrjudge_reward.reranker import part_of
from mrjudge_reward.rubrics.criteria import Criterion, Rubric
from mrjudge_reward.types import EngineFailure, Reply, Request
from tests.support.criteria_judge import ByUtilities, shown_criteria

LONG, EXCLAIMS, DOSE = "Is long.", "Exclaims.", "Names a dose."
UTILITIES = {
    LONG: len,
    EXCLAIMS: lambda text: 2 * text.count("!") - 1,
    DOSE: lambda text: 2 * text.count("mg") - 1,
}
RUBRIC = [
    {"title": "long", "description": LONG, "weight": 1},
    {"title": "exclaims", "description": EXCLAIMS, "weight": -3},
    {"title": "dose", "description": DOSE, "weight": 2},
]
ANSWERS = ["take 5 mg", "take some!", "take 5 mg of it!", "take it with water", "no"]


HONEST = ByUtilities(UTILITIES)


def judge(script: Any = HONEST, reads: bool | None = None, **settings: Any) -> Judge:
    engine = ScriptedEngine(script, reads=reads)
    ours = {"criteria": "comparative", "rubric": RUBRIC, "verdict": "generate", **settings}
    if ours["criteria"] == "comparative":
        ours.setdefault("schedule", "ring")
    return Judge(engine, **ours)


def asked(judge: Judge) -> list[Request]:
    requests: list[Request] = judge.engine.requests  # type: ignore[attr-defined]
    return requests


def scores(judgement: Judgement) -> dict[str, tuple[float | None, ...]]:
    return {one.criterion.name: one.scores_G for one in judgement.criteria}


@pytest.mark.parametrize(
    ("settings", "calls"),
    [
        ({}, 3 * 10),
        ({"criteria_per_call": 2}, 2 * 10),
        ({"criteria_per_call": 3}, 10),
        ({"criteria_per_call": 99}, 10),
        ({"schedule": "listwise"}, 3 * 4),
        ({"schedule": "listwise", "criteria_per_call": 3}, 4),
        ({"criteria": "absolute"}, 3 * 5),
        ({"criteria": "absolute", "criteria_per_call": 3}, 5),
    ],
)
def test_criteria_of_one_call_cost_one_call(settings: dict[str, Any], calls: int):
    ours = judge(**settings)
    judgement = ours.rank("How?", ANSWERS)
    assert judgement.calls == len(asked(ours)) == calls
    assert judgement.cache_hits == 0
    each = max(1, min(3, int(settings.get("criteria_per_call", 1))))
    assert {len(shown_criteria(request)) for request in asked(ours)} <= {each, 3 % each or each}
    assert len(judgement.played) == sum(one.comparisons for one in judgement.criteria)
    assert JudgeStats.of([judgement]).failed == 0


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("how", ["comparative", "rankings", "absolute"])
def test_the_total_weighs_each_criterion_s_own_scores(how: str, k: int):
    ours = {"criteria": "comparative", "schedule": "listwise"} if how == "rankings" else {"criteria": how}
    judgement = judge(criteria_per_call=k, **ours).rank("How?", ANSWERS)
    found = scores(judgement)
    assert list(found) == ["long", "exclaims", "dose"], "in the rubric's order, whatever was asked first"
    for name, text in (("exclaims", EXCLAIMS), ("dose", DOSE)):
        values = [UTILITIES[text](answer) for answer in ANSWERS]
        of = [score or 0.0 for score in found[name]]
        assert (max(values) > min(values)) == (max(of) > min(of))
        assert all(a > b for a, x in zip(of, values, strict=True) for b, y in zip(of, values, strict=True) if x > y)
    weights = {"long": 1, "exclaims": -3, "dose": 2}
    for index, total in enumerate(judgement.scores_G):
        assert total == pytest.approx(sum(w * (found[n][index] or 0.0) for n, w in weights.items()) / 6, abs=1e-8)
    assert judgement.best == 0, "it names a dose and does not exclaim"
    exclaims = judgement.criteria[1]
    assert exclaims.rewards_G == tuple(-(score or 0.0) for score in exclaims.scores_G)


def test_a_criterion_with_grades_of_its_own_is_graded_by_them():
    rubric = [{"title": "dose", "description": DOSE, "grades": {"none": "no dose", "range": "", "exact": "the dose"}}]
    said = {"take 5 mg": "exact", "no": "none"}
    ours = judge(
        lambda request: f"<answer>{said.get(shown_candidates(request)[''], 'range')}</answer>", criteria="absolute"
    )
    judgement = ours.judge([Group.of("How?", ANSWERS, rubric=rubric)])[0]
    assert judgement.scores_G == (1.0, 0.5, 0.5, 0.5, 0.0)


def lossy(lost: str) -> Any:
    """A judge that leaves a criterion out of every reply."""

    def script(request: Request) -> str:
        gone = [number for number, told in shown_criteria(request).items() if lost in told]
        return re.sub(rf"<answer>({'|'.join(map(str, gone)) or 'x'}): [^<]*</answer>", "", HONEST(request))

    return script


@pytest.mark.parametrize("how", ["comparative", "absolute"])
def test_a_criterion_that_replies_leave_out_abstains_alone(how: str):
    whole = judge(criteria=how, criteria_per_call=3).rank("How?", ANSWERS)
    part = judge(lossy(DOSE), criteria=how, criteria_per_call=3, max_failed_fraction=1.0).rank("How?", ANSWERS)
    assert scores(part)["dose"] == (None,) * 5
    assert {name: scores(part)[name] for name in ("long", "exclaims")} == {
        name: scores(whole)[name] for name in ("long", "exclaims")
    }
    assert {one.criterion.name: one.failed for one in part.criteria} == {
        "long": 0, "exclaims": 0, "dose": part.criteria[2].comparisons,
    }  # fmt: skip
    for index, total in enumerate(part.scores_G):
        of = [scores(part)[name][index] or 0.0 for name in ("long", "exclaims")]
        assert total == pytest.approx((of[0] - 3 * of[1]) / 4, abs=1e-8), "over what is known"
    assert {item.criterion for item in part.played if item.verdict.failed} == {"dose"}


def test_only_the_criterion_that_failed_is_asked_again_and_the_others_keep_their_verdicts():
    seen: set[str] = set()

    def script(request: Request) -> str:
        whole = HONEST(request)
        text = request.messages[-1].text
        if text in seen:  # the second time the judge has changed its mind about all it is asked
            return whole.replace(": A<", ": B<")
        seen.add(text)
        return lossy(DOSE)(request)

    ours = judge(script, criteria_per_call=3)
    judgement = ours.rank("How?", ANSWERS)
    assert judgement.calls == 20, "ten requests, and ten for what they left out"
    first = judge(criteria_per_call=3).rank("How?", ANSWERS)
    assert scores(judgement)["long"] == scores(first)["long"]
    assert None not in scores(judgement)["dose"]


def test_a_dead_judge_scores_nothing_by_any_criterion():
    def script(request: Request) -> EngineFailure:
        return EngineFailure("timeout", transient=False)

    judgement = judge(script, max_failed_fraction=1.0).rank("How?", [*ANSWERS, ""])
    assert judgement.scores_G == (None,) * 6
    assert judgement.best is None


@pytest.mark.parametrize("k", [1, 3])
def test_an_essential_criterion_is_graded_where_others_are_compared_and_gates_the_total(k: int):
    rubric = [{**one, "essential": one["title"] == "dose"} for one in RUBRIC]
    ours = judge(criteria_per_call=k, rubric=rubric)
    judgement = ours.rank("How?", ANSWERS)
    alone = [request for request in asked(ours) if len(shown_candidates(request)) == 1]
    assert len(alone) == 5
    assert {told for request in alone for told in shown_criteria(request).values()} == {f"dose: {DOSE}"}
    assert judgement.criteria[2].grades_G == (1.0, 0.0, 1.0, 0.0, 0.0)
    met, unmet = [judgement.scores_G[i] or 0.0 for i in (0, 2)], {judgement.scores_G[i] for i in (1, 3, 4)}
    assert len(unmet) == 1
    assert min(met) > (unmet.pop() or 0.0)


def test_a_budget_of_comparisons_leaves_no_essential_grade_out():
    rubric = [{**one, "essential": one["title"] == "dose"} for one in RUBRIC]
    judgement = judge(rubric=rubric, budget=3).rank("How?", ANSWERS)
    assert None not in judgement.criteria[2].grades_G
    assert judgement.calls == 2 * 3 + 5


def test_of_whom_an_essential_grade_is_unknown_nothing_is_known():
    rubric = [{**one, "essential": one["title"] == "dose"} for one in RUBRIC]

    def script(request: Request) -> str:
        shown = shown_candidates(request)
        return "?" if list(shown.values()) == ["take 5 mg"] else HONEST(request)

    judgement = judge(script, rubric=rubric).rank("How?", ANSWERS)
    assert judgement.scores_G[0] is None
    assert None not in judgement.scores_G[1:]
    assert scores(judgement)["long"][0] is not None


@pytest.mark.parametrize("how", ["comparative", "absolute"])
def test_an_empty_answer_is_never_best_even_by_pitfalls_alone(how: str):
    rubric = [RUBRIC[1]]
    judgement = judge(criteria=how, rubric=rubric).rank("How?", ["a!", "b!", "", "..."])
    assert judgement.forfeits == (2, 3)
    real, empty = [judgement.scores_G[i] or 0.0 for i in (0, 1)], [judgement.scores_G[i] or 0.0 for i in (2, 3)]
    assert max(empty) <= min(real)


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("how", ["comparative", "absolute"])
def test_permuting_the_candidates_permutes_totals_and_scores(how: str, k: int):
    ours = judge(criteria=how, criteria_per_call=k)
    order = [3, 0, 4, 2, 1]
    one, other = ours.rank("How?", ANSWERS), ours.rank("How?", [ANSWERS[i] for i in order])
    assert other.scores_G == tuple(one.scores_G[i] for i in order)
    for a, b in zip(one.criteria, other.criteria, strict=True):
        assert b.scores_G == tuple(a.scores_G[i] for i in order)


def test_criteria_are_read_one_a_call_and_share_the_prompt_before_them():
    def script(request: Request) -> dict[str, float]:
        best = HONEST.verdict(shown_criteria(request)[1], shown_candidates(request))
        return {label: 0.8 if label == best else 0.1 for label in request.labels}

    ours = judge(script, reads=True, verdict="auto")
    judgement = ours.rank("How?", ANSWERS)
    assert all(request.labels == ("A", "B", "tie") for request in asked(ours))
    assert {len(shown_criteria(request)) for request in asked(ours)} == {1}
    before = {request.messages[-1].text.split("[Criterion")[0] for request in asked(ours)}
    assert len(before) <= 20, "every pair at most in both orders, for all criteria together"
    first, second, third, *others = (score or 0.0 for score in scores(judgement)["dose"])
    assert min(first, third) > 1 + max(second, *others), "that most pairs are ties makes no slips of the others"


def test_the_order_of_criteria_is_drawn_for_each_group_and_the_same_in_every_run():
    def orders(seed: int) -> list[tuple[str, ...]]:
        ours = judge(criteria_per_call=3, seed=seed)
        ours.judge([Group.of("How?", ANSWERS[:2], key=str(number)) for number in range(12)])
        return [tuple(shown_criteria(request).values()) for request in asked(ours)]

    assert orders(0) == orders(0) != orders(1)
    assert len(set(orders(0))) > 3


def test_a_share_of_criteria_is_left_out_of_each_group_never_an_essential_one():
    rubric = [
        {"title": f"c{number}", "description": f"Is good, {number}.", "essential": number == 3} for number in range(10)
    ]
    ours = judge(lambda request: "<answer>partly</answer>", criteria="absolute", rubric=rubric, rubric_dropout=0.4)
    judgements = ours.judge([Group.of("How?", ["a", "b"], key=f"train/{step}") for step in range(40)])
    kept = [tuple(scores(judgement)) for judgement in judgements]
    assert {len(names) for names in kept} == {6}
    assert all("c3" in names for names in kept)
    assert len(set(kept)) > 30
    assert {name for names in kept for name in names} == {f"c{number}" for number in range(10)}
    assert all(judgement.calls == 12 for judgement in judgements), "what is left out is not asked"
    alone = judge(criteria="absolute", rubric=RUBRIC[:1], rubric_dropout=0.99).rank("How?", ANSWERS)
    assert len(alone.criteria) == 1, "one is always kept"


def test_contrast_takes_the_weight_from_criteria_on_which_the_group_is_alike():
    rubric = [{"title": "long", "description": LONG, "weight": 9}, {"title": "dose", "description": DOSE}]
    same = ["5 mg", "a lot", "a bit"]
    judgement = judge(criteria="absolute", rubric=rubric, contrast=True).rank("How?", same)
    assert [one.weight for one in judgement.criteria] == [0.0, 2.0]
    assert judgement.scores_G == (1.0, 0.0, 0.0)


def test_each_prompt_may_have_its_own_rubric_and_else_has_the_run_s():
    own = [{"criterion": DOSE, "points": 5}]
    ours = judge(criteria="absolute")
    groups = [Group.of("How?", ANSWERS, "0", rubric=own), Group.of("How?", ANSWERS, "1")]
    first, second = ours.judge(groups)
    assert [one.criterion.name for one in first.criteria] == ["criterion 1"]
    assert [one.criterion.name for one in second.criteria] == ["long", "exclaims", "dose"]
    assert first.group.rubric == Rubric((Criterion("criterion 1", DOSE, 5),))
    text = ours.judge([Group.of("How?", ANSWERS, "0", rubric=f"- {DOSE}\n- {LONG}")])[0]
    assert [one.criterion.description for one in text.criteria] == [DOSE, LONG]
    assert pickle.loads(pickle.dumps(first)) == first


@pytest.mark.parametrize("how", ["comparative", "absolute", "implicit"])
def test_a_group_without_any_rubric_or_with_a_bad_one_is_refused_by_name(how: str):
    ours = Judge(ScriptedEngine(HONEST), criteria=how, verdict="generate")
    with pytest.raises(InputError, match="group 'g7' has no rubric"):
        ours.rank("How?", ANSWERS, "g7")
    with pytest.raises(InputError, match="rubric of group 'g7': not JSON"):
        ours.rank("How?", ANSWERS, "g7", rubric='[{"criterion": ')
    with pytest.raises(InputError, match="rubric of group 'g7', criterion 1: points must be"):
        ours.rank("How?", ANSWERS, "g7", rubric=[{"criterion": DOSE, "points": 0}])


def test_one_verdict_over_all_criteria_shows_them_in_one_section():
    ours = Judge(
        ScriptedEngine.by_utility(len), criteria="implicit", rubric=RUBRIC, schedule="ring", verdict="generate",
        format="choice",
    )  # fmt: skip
    judgement = ours.rank("How?", ANSWERS)
    assert judgement.criteria == ()
    assert judgement.calls == 10
    text = asked(ours)[0].messages[-1].text
    assert re.search(r"\[Criteria \w{8}\]\n1\. long: Is long\. \(weight 1\)\n2\. exclaims: .*counts against", text)
    assert judgement.best == 3


def test_a_rubric_is_shown_as_text_to_a_judge_that_does_not_judge_by_criteria():
    ours = Judge(ScriptedEngine.by_utility(len), format="choice", verdict="generate")
    ours.rank("How?", ANSWERS, rubric=RUBRIC)
    assert "2. exclaims: Exclaims. (weight -3: counts against an answer)" in asked(ours)[0].messages[-1].text


def test_further_votes_are_other_requests_and_part_of_a_judgement_keeps_its_criteria():
    ours = judge(criteria_per_call=3, temperature=1.0)
    (reranked,) = Reranker(ours, votes=2).rank_groups([Group.of("How?", ANSWERS)])
    assert reranked.best == 0
    assert len(asked(ours)) == 20
    whole = reranked.judgements[0]
    part = part_of(whole, [3, 0])
    assert scores(part)["long"] == (scores(whole)["long"][3], scores(whole)["long"][0])
    assert {item.criterion for item in part.played} <= {"long", "exclaims", "dose"}


def test_positions_are_compared_within_a_criterion_alone():
    """Of one criterion the first slot wins always, of the other the answer."""

    def script(request: Request) -> Reply:
        said = {
            number: "A" if LONG in told else HONEST.verdict(told, shown_candidates(request))
            for number, told in shown_criteria(request).items()
        }
        return Reply("".join(f"<answer>{number}: {one}</answer>" for number, one in said.items()))

    judgement = judge(script, rubric=RUBRIC[:2], criteria_per_call=2, schedule="all_pairs").rank("How?", ANSWERS)
    stats = JudgeStats.of([judgement])
    assert (stats.mirrored, stats.agreeing) == (20, 10)
    alone = replace(judgement, played=tuple(item for item in judgement.played if item.criterion == "long"))
    assert JudgeStats.of([alone]).agreeing == 0


@pytest.mark.parametrize("how", ["comparative", "absolute", "implicit"])
def test_a_judge_is_measured_with_groups_of_ours_that_have_no_rubric(how: str):
    ours = Judge(ScriptedEngine.by_utility(len), criteria=how, verdict="logprobs")
    canary = Canary("length", Group.of("How?", ["a longer one", "short"], "0"))
    report = measure(ours, [canary])
    assert (report.kinds["length"].right, report.failed) == (1, 0)
    assert with_rubric(Group.of("q", ["a"]), JudgeSettings(model="m")).rubric is None


def test_counts_are_kept_by_criterion_add_up_and_go_through_json():
    ours = judge(lossy(DOSE), criteria_per_call=3, max_failed_fraction=1.0, schedule="all_pairs")
    judgements = [ours.rank("How?", ANSWERS, key) for key in ("a", "b")]
    stats = JudgeStats.of(judgements)
    assert JudgeStats.read(json.loads(json.dumps(stats.record()))).criteria == stats.criteria
    assert (JudgeStats.of(judgements[:1]) + JudgeStats.of(judgements[1:])).criteria == stats.criteria
    dose, exclaims = stats.criteria["dose"].metrics(), stats.criteria["exclaims"].metrics()
    assert (dose["failed_rate"], exclaims["failed_rate"]) == (1.0, 0.0)
    assert math.isnan(dose["reward"])
    assert exclaims["position_consistency"] == 1.0
    assert exclaims["spread"] > 0.5
    assert stats.criteria["long"].groups == 2
    many = [Group.of("How?", ["a", "b"], str(n), rubric=[{"title": f"c{n}", "description": LONG}]) for n in range(40)]
    assert len(JudgeStats.of(judge(criteria="absolute").judge(many)).criteria) == 32, "names of prompts are no end"
