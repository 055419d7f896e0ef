"""The leak test finds a style that was planted, finds none where there is none, and never sees the question."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from mrjudge_reward.errors import InputError
from mrjudge_reward.training.items import from_choice, from_preference, from_ratings
from recipes.data import style_leak
from tests.support.warm_python import run_python

WORDS = ["river", "stone", "light", "green", "walks", "under", "seven", "paper", "north", "glass", "quiet", "table"]


def sentence(draw: random.Random, count: int = 8) -> str:
    return " ".join(draw.choices(WORDS, k=count)).capitalize() + "."


def sets(count: int = 60, best: Any = lambda text: text, other: Any = lambda text: text, others: int = 1):
    draw = random.Random(5)
    return [
        style_leak.Told(f"question {i}", best(sentence(draw)), tuple(other(sentence(draw)) for _ in range(others)))
        for i in range(count)
    ]


@pytest.mark.parametrize(
    ("best", "cue"),
    [
        (lambda text: f"**{text}**\n- {text}\n- {text}", "bold"),  # longer, with markdown
        (lambda text: text.replace(" ", ", ", 2), "commas"),  # of the same words
        (lambda text: "Indeed " + text.lower(), "'indeed'"),  # an opening word
    ],
)
def test_a_planted_style_is_found_and_named(best: Any, cue: str):
    leak = style_leak.measure(sets(best=best, others=2), resamples=200)
    assert leak.accuracy[0] > 0.95
    assert leak.chance == pytest.approx(1 / 3)
    assert any(cue in named for named in (*leak.cues, *leak.words))
    with pytest.raises(InputError, match=r"max_leak 0\.8: style alone finds"):
        style_leak.check(leak, 0.8)


def test_no_leak_is_found_where_best_and_others_are_drawn_alike():
    leak = style_leak.measure(sets(150), resamples=500)
    assert leak.accuracy[1] < 0.5 < leak.accuracy[2]
    assert leak.chance == 0.5
    style_leak.check(leak, 0.65)
    style_leak.check(leak, None)


def test_lengths_count_within_an_item_though_they_differ_more_between_items():
    draw = random.Random(1)
    lengths = [draw.randrange(5, 200) for _ in range(100)]
    made = [
        style_leak.Told(str(i), sentence(draw, n + 1 + n // 10), (sentence(draw, n),)) for i, n in enumerate(lengths)
    ]
    leak = style_leak.measure(made, resamples=200)
    assert leak.accuracy[0] > 0.85
    assert leak.longest > 0.85


def test_items_of_one_question_are_never_on_both_sides_of_a_fold():
    """Each question has its own sign of the best answer, which can be learnt only from its other items."""
    draw = random.Random(2)
    letters = "bcdfghjklmnpqrstvwxz"
    signs = ["".join(draw.sample(letters, 12)) for _ in range(60)]
    made = [
        style_leak.Told(f"q{q}", f"{sentence(draw)} {signs[q]}", (f"{sentence(draw)} {signs[q + 30]}",))
        for q in range(30)
        for _ in range(4)
    ]
    assert style_leak.measure(made, resamples=200).accuracy[1] < 0.6
    apart = [style_leak.Told(f"{i}", one.best, one.others) for i, one in enumerate(made)]
    assert style_leak.measure(apart, resamples=200).accuracy[0] > 0.95


def test_the_same_seed_gives_the_same_figures():
    assert style_leak.measure(sets(40), seed=3, resamples=50) == style_leak.measure(sets(40), seed=3, resamples=50)


@pytest.mark.parametrize("longer", [True, False])
def test_matching_leaves_out_those_first_whose_lengths_differ_most(longer: bool):
    texts = [("x" * 10, "x" * (9 - i)) if longer else ("x" * (9 - i), "x" * 10) for i in range(6)]
    texts += [("x" * 5, "x" * 6), ("x" * 6, "x" * 5)]
    sets = [style_leak.Told(str(i), best, (other,)) for i, (best, other) in enumerate(texts)]
    assert style_leak.length_matched(sets) == [True] + [False] * 5 + ([True, False] if longer else [False, True])
    assert style_leak.length_matched(sets[6:]) == [True, True]
    assert style_leak.length_matched([]) == []


def test_answers_of_one_length_say_nothing_and_stay():
    texts = [("x" * 5, "y" * 5)] * 30 + [("x" * 6, "y" * 5)] * 10 + [("x" * 5, "y" * 6)] * 20
    sets = [style_leak.Told(str(i), best, (other,)) for i, (best, other) in enumerate(texts)]
    kept = style_leak.length_matched(sets)
    assert (sum(kept[:30]), sum(kept[30:40]), sum(kept[40:])) == (30, 10, 10)
    three = [style_leak.Told(str(i), "x" * 5, ("y" * 5, "z" * 3)) for i in range(30)]  # half of the time the longest
    assert style_leak.length_matched(three).count(True) == 0, (
        "each leans the same way, and a third of the time is chance"
    )


def test_too_few_questions_are_refused():
    with pytest.raises(InputError, match="1 different questions are too few"):
        style_leak.measure([style_leak.Told("the same", f"{i}", ("x",)) for i in range(50)])


def test_texts_without_words_are_measured_all_the_same():
    leak = style_leak.measure([style_leak.Told(f"{i}", " ", ("   ",)) for i in range(30)], resamples=50)
    assert leak.accuracy[0] == 1  # the shorter
    assert (
        style_leak.measure([style_leak.Told(f"{i}", " ", (" ",)) for i in range(30)], resamples=50).accuracy[0] == 0.5
    )


def test_the_question_is_kept_from_the_classifier_and_joins_items():
    item = style_leak.told(from_choice("Why  so?", ["a", "b"], 1))
    assert item == style_leak.Told("why so?", "b", ("a",))
    assert style_leak.told(from_ratings("Q", ["a", "b", "c"], [1, 1, 0], scale=(0, 1))) is None


def test_items_and_preferences_are_both_read_and_a_bad_row_is_named(tmp_path: Path):
    preference = {"prompt": "Q", "chosen": "yes", "rejected": "no"}
    item = {"prompt": [{"role": "user", "content": "Q"}], "candidates": ["no", "yes"], "gold": [0.0, 1.0]}
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(preference) + "\n" + json.dumps(item) + "\n", encoding="utf-8")
    one, two = style_leak.read_items(str(path))
    assert one == from_preference(preference)
    assert two.gold_G == (0.0, 1.0)
    path.write_text(json.dumps(preference) + "\n" + json.dumps({"candidates": ["x"]}) + "\n", encoding="utf-8")
    with pytest.raises(InputError, match="line 2: a preference needs"):
        style_leak.read_items(str(path))


def test_the_command_prints_writes_and_fails_above_the_limit(tmp_path: Path):
    draw = random.Random(0)
    path, out = tmp_path / "p.jsonl", tmp_path / "leak.json"
    rows = [{"prompt": f"Q{i}", "chosen": f"**{sentence(draw)}**", "rejected": sentence(draw)} for i in range(30)]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    done = run_python("-m", "recipes.data.style_leak", "--preferences", path, "--out", out, "--max-leak", "0.6")
    assert done.returncode == 1
    assert "style_leak: style leak above max_leak 0.6" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout.startswith("style alone finds the best answer of 30 items in 1.000")
    assert json.loads(out.read_text())["accuracy"][0] == 1


def test_the_command_measures_what_is_left_when_lengths_are_matched(tmp_path: Path):
    draw = random.Random(0)
    path = tmp_path / "p.jsonl"
    rows = []
    for i in range(60):
        short, long = sentence(draw), f"{sentence(draw)} {sentence(draw)}, {sentence(draw)}"
        chosen, rejected = (long, short) if i < 45 else (short, long)
        rows.append({"prompt": f"Q{i}", "chosen": chosen, "rejected": rejected})
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    for flags, items in (([], 60), (["--match-length"], 30)):
        done = run_python("-m", "recipes.data.style_leak", "--preferences", path, *flags, check=True)
        assert f"of {items} items" in done.stdout
