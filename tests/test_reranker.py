"""Best of N, votes, and the choice of what a group is trained on."""

from __future__ import annotations

import math
import re
from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mrjudge_reward import (
    Choice,
    ConfigError,
    EngineFailure,
    FailureAlarm,
    Group,
    InputError,
    Judge,
    Judgement,
    Request,
    ScriptedEngine,
)
from mrjudge_reward.engines.scripted import shown_candidates
from mrjudge_reward.judging.tournament import digest
from mrjudge_reward.reranker import Reranker, combined, part_of, select


def judge_by(utility: Any = len, **settings: Any) -> Judge:
    return Judge(ScriptedEngine.by_utility(utility), Choice(), **{"schedule": "ring", **settings})


def failing(**settings: Any) -> Judge:
    engine = ScriptedEngine(lambda request: EngineFailure("timeout", transient=False))
    return Judge(engine, Choice(), schedule="ring", alarm=FailureAlarm(1.0), **settings)


def vote(candidates: list[str], *scores: float | None) -> Judgement:
    return Judgement(Group.of("p", candidates), scores, (1.0,) * len(scores), ())


# -- best of N --------------------------------------------------------------------------------------------------------


def test_the_best_answer_is_returned_whole_though_the_judge_sees_it_without_the_reasoning():
    judge = judge_by()
    answers = ["<think>" + "x" * 50 + "</think>short", "rather longer", "mid"]
    assert Reranker(judge).best_of_n("p", answers) == "rather longer"
    seen = {text for request in judge.engine.requests for text in shown_candidates(request).values()}  # type: ignore[attr-defined]
    assert seen == {"short", "rather longer", "mid"}


def test_all_votes_on_all_groups_are_one_engine_batch():
    judge = judge_by()
    groups = [Group.of(f"p{i}", ["a", "bb", "ccc"], f"g{i}") for i in range(5)]
    ranked = Reranker(judge, votes=3).rank_groups(groups)
    assert len(judge.engine.batches) == 1  # type: ignore[attr-defined]
    assert [one.order for one in ranked] == [(2, 1, 0)] * 5
    assert all(
        judgement.group is group for one, group in zip(ranked, groups, strict=True) for judgement in one.judgements
    )


def test_the_first_vote_is_what_the_judge_says_alone():
    alone = judge_by().rank("p", ["a", "bb", "ccc"], "key")
    assert Reranker(judge_by(), votes=3).rank("p", ["a", "bb", "ccc"], "key").judgements[0].scores_G == alone.scores_G


def test_votes_differ_in_their_seeds_and_in_who_stands_first():
    judge = judge_by(verdict="generate", temperature=1.0, both_orders=False, budget=3)
    Reranker(judge, votes=8).rank("p", ["a", "bb", "ccc"])
    requests: list[Request] = judge.engine.requests  # type: ignore[attr-defined]
    assert len({request.seed for request in requests}) == len(requests) == 24
    first = Counter(next(iter(shown_candidates(request).values())) for request in requests)
    assert len(first) == 3


def test_votes_outvote_a_judge_that_is_right_more_often_than_not():
    def noisy(request: Request) -> str:
        shown = shown_candidates(request)
        right = digest(request.seed, *sorted(shown.values())) % 10 < 7
        return f"<answer>{max(shown, key=lambda label: len(shown[label]) if right else -len(shown[label]))}</answer>"

    def share(votes: int) -> float:
        judge = Judge(ScriptedEngine(noisy), Choice(), schedule="all_pairs", both_orders=False,
                      temperature=1.0)  # fmt: skip
        groups = [Group.of(f"p{i}", [f"{i}", f"{i} {i} much better"], f"g{i}") for i in range(80)]
        return sum(one.best == 1 for one in Reranker(judge, votes).rank_groups(groups)) / 80

    assert share(9) > share(1) + 0.1


def test_a_judge_that_only_fails_has_no_best_however_many_votes():
    reranker = Reranker(failing(), votes=3)
    assert reranker.best_of_n("p", ["a", "b"]) is None
    ranked = reranker.rank("p", ["a", "b"])
    assert (ranked.order, ranked.best, ranked.tied, ranked.scores_G) == ((), None, (), (None, None))
    assert ranked.votes_G == (0.0, 0.0)


def test_a_candidate_about_which_nothing_is_known_is_never_placed():
    ranked = combined([vote(["a", "b", "c"], None, -2.0, -3.0), vote(["a", "b", "c"], None, None, -1.0)])
    assert set(ranked.order) == {1, 2}
    assert ranked.scores_G == (None, -2.0, -2.0)
    assert ranked.votes_G == (0.0, 1.0, 1.0)


def test_more_votes_win_over_a_higher_mean():
    votes = [vote(["a", "b"], 1.0, 0.0), vote(["a", "b"], 1.0, 0.0), vote(["a", "b"], 0.0, 9.0)]
    assert combined(votes).order == (0, 1)
    assert combined(votes).votes_G == (2.0, 1.0)


def test_a_tie_is_said_and_decided_by_the_text_not_by_the_place():
    for first, second in (("x", "y"), ("y", "x")):
        ranked = combined([vote([first, second], 1.0, 1.0)])
        assert ranked.tied in ((0, 1), (1, 0))
        assert ranked.votes_G == (0.5, 0.5)
        chosen = ranked.judgements[0].group.candidates[ranked.best or 0]
        assert chosen == ranked.judgements[0].group.candidates[ranked.order[0]]
    winners = {text[combined([vote(text, 1.0, 1.0)]).order[0]] for text in (["x", "y"], ["y", "x"])}
    assert len(winners) == 1
    places = {combined([vote([f"{i}", f"{i}!"], 1.0, 1.0)]).best for i in range(20)}
    assert places == {0, 1}


def test_twins_share_their_votes_and_one_text_needs_no_judge():
    ranked = Reranker(judge_by()).rank("p", ["aaa", "b", "aaa"])
    assert ranked.votes_G == (1.0, 0.0, 1.0)
    assert Reranker(failing()).best_of_n("p", ["same", "same"]) == "same"
    assert Reranker(failing()).best_of_n("p", ["alone"]) == "alone"


def test_no_candidates_have_no_best():
    assert Reranker(judge_by()).best_of_n("p", []) is None
    assert Reranker(judge_by()).rank_groups([]) == []


def test_an_empty_answer_never_wins_over_a_real_one():
    judge = judge_by(lambda text: -len(text))
    assert Reranker(judge).best_of_n("p", ["", "something long", "  "]) == "something long"


def test_what_cannot_be_votes_is_refused():
    with pytest.raises(ConfigError, match="votes must be at least 1; got 0"):
        Reranker(judge_by(), votes=0)
    with pytest.raises(InputError, match="no judgement"):
        combined([])
    with pytest.raises(InputError, match="same candidates"):
        combined([vote(["a", "b"], 1.0, 2.0), vote(["b", "a"], 1.0, 2.0)])
    with pytest.raises(InputError, match="candidate 1 must be text"):
        Reranker(judge_by()).rank("p", ["a", 3])  # type: ignore[list-item]


# -- what a group is trained on ---------------------------------------------------------------------------------------


def test_extremes_are_the_best_and_the_worst_and_spread_goes_over_the_quantiles():
    scores = [3.0, 0.0, 5.0, 1.0, 4.0, 2.0, 6.0]  # by rank: 1 3 5 0 4 2 6
    assert select(scores, 4) == (1, 2, 3, 6)
    assert select(scores, 3) == (1, 2, 6)
    assert select(scores, 1) == (6,)
    assert select(scores, 3, "spread") == (0, 1, 6)
    assert select(scores, 1, "spread") == (0,)
    assert select(scores, 7, "spread") == tuple(range(7))


def test_the_unscored_come_in_only_where_scores_are_short():
    scores = [None, 1.0, None, 2.0, math.nan]
    assert select(scores, 2) == (1, 3)
    for seed in range(20):
        three = select(scores, 3, seed=seed)
        assert {1, 3} < set(three)
    assert {select(scores, 3, seed=seed) for seed in range(20)} == {(0, 1, 3), (1, 2, 3), (1, 3, 4)}
    assert {select([None, None, None], 1, seed=seed) for seed in range(20)} == {(0,), (1,), (2,)}


def test_equal_scores_are_taken_at_random_and_the_same_seed_takes_the_same():
    assert len({select([0.0] * 8, 4, seed=seed) for seed in range(10)}) > 5
    assert select([0.0] * 8, 4, seed=3) == select([0.0] * 8, 4, seed=3)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a busy machine is no fault
@given(st.lists(st.one_of(st.none(), st.floats(allow_nan=False)), min_size=1, max_size=40), st.data())
def test_a_selection_has_the_size_wanted_and_holds_the_extremes(scores: list[float | None], data: Any):
    keep = data.draw(st.integers(1, len(scores)))
    for how in ("extremes", "spread"):
        chosen = select(scores, keep, how, seed=1)  # type: ignore[arg-type]
        assert len(set(chosen)) == keep
        assert list(chosen) == sorted(chosen)
        known = [score for score in scores if score is not None]
        kept = [scores[i] for i in chosen if scores[i] is not None]
        assert len(kept) == min(keep, len(known))
        if keep > 1 and known:
            assert max(known) in kept
            assert min(known) in kept or keep == 1


def test_what_cannot_be_selected_is_refused():
    for keep in (0, 3):
        with pytest.raises(InputError, match=f"cannot keep {keep} of 2 completions"):
            select([1.0, 2.0], keep)
    with pytest.raises(ConfigError, match="how must be one of extremes, spread; got 'best'"):
        select([1.0], 1, "best")  # type: ignore[arg-type]


def test_a_part_of_a_judgement_keeps_scores_and_the_comparisons_within_it():
    whole = judge_by(schedule="all_pairs").rank("p", ["a", "", "ccc", "dddd"])
    part = part_of(whole, [3, 1, 0])
    assert part.group.candidates == ("dddd", "", "a")
    assert part.scores_G == (whole.scores_G[3], whole.scores_G[1], whole.scores_G[0])
    assert part.forfeits == (1,)
    assert part.calls == 0
    shown = {item.comparison.slots for item in part.played}
    assert shown == {(0, 2), (2, 0)}
    assert not re.search("ccc", repr(part))
