"""The real data that judges are trained on: nothing is on two sides, and what is right earns all of the reward."""

from __future__ import annotations

import json
import random
import re
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from mrjudge_reward.errors import ConfigError, InputError, MissingPackageError
from mrjudge_reward.judging.tournament import is_degenerate
from mrjudge_reward.prompting.formats import SENTIMENT, Choice, PairScores, Ranking, Score
from mrjudge_reward.prompting.rendering import conversation_text
from mrjudge_reward.training.items import from_ratings
from mrjudge_reward.training.tasks import Item, verify
from mrjudge_reward.types import Reply
from recipes.data import judge_data, reviews

SPLITS = ("train", "dev", "test")
CHOICE = {"format": "choice"}


def shared(item: Item) -> set[str]:
    """What an item must not have in common with one of another side."""
    return {" ".join(text.casefold().split()) for text in item.group.candidates}


# -- rated texts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("domain", "count", "unknown"),
    [("film reviews", 10605, 0), ("tweets", 4200, 199), ("editorials", 5190, 0), ("Amazon reviews", 3708, 0)],
)
def test_every_text_comes_with_the_ratings_that_its_mean_is_of(domain: str, count: int, unknown: int):
    texts = reviews.load_reviews(domain)
    assert len(texts) == count
    assert sum(not text.scores for text in texts) == unknown
    for text in texts:
        assert text.text
        assert not text.text.startswith("\ufeff")
        assert -4 <= text.rating <= 4
        if text.scores:
            assert len(text.scores) >= 15
            assert fmean(text.scores) == pytest.approx(text.rating, abs=1e-3)
    shown = reviews.rated_texts(domain)
    assert len({" ".join(text.text.split()) for text in shown}) == len(shown) > 0.97 * count
    assert not any(is_degenerate(text.text) for text in shown)


def test_an_unknown_domain_names_the_known_ones():
    with pytest.raises(InputError, match="no domain 'films'; there are film reviews, tweets"):
        reviews.load_reviews("films")


def test_what_pip_cannot_fetch_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("MRJUDGE_CACHE", str(tmp_path))
    with pytest.raises(InputError, match="could not fetch no-such==1"):
        reviews.fetched("no-such==1", "no-such-*.whl", "nothing", "--no-index")
    assert [path.name for path in (tmp_path / "data").iterdir() if path.suffix != ".lock"] == []


@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_text_is_on_one_side_alone_in_whichever_task(size: int):
    sides: dict[str, set[str]] = {}
    for split in SPLITS:
        made = [
            item
            for gap in (0.5, 1.0)
            for item in judge_data.items(
                judge_data.TaskConfig(
                    source="tweets", size=size, gap=gap, count=300, eval_count=60, seed=int(10 * gap)
                ),
                split,
            )
        ]
        assert len(made) == (600 if split == "train" else 120)
        sides[split] = set().union(*map(shared, made))
    assert not sides["train"] & sides["dev"]
    assert not sides["train"] & sides["test"]
    assert not sides["dev"] & sides["test"]


def test_items_and_problems_are_the_same_every_time_and_keep_their_gap():
    task = judge_data.TaskConfig(source="film reviews", judge=CHOICE, count=400, gap=1.5, both_orders=True, seed=3)
    made = judge_data.task_problems(task, "train")
    assert made == judge_data.task_problems(judge_data.TaskConfig(**task.model_dump()), "train")
    assert made != judge_data.task_problems(task.model_copy(update={"seed": 4}), "train")
    assert len(made) == 800
    assert all(abs(problem.gold_K[0] - problem.gold_K[1]) >= 1.5 - 1e-9 for problem in made)
    assert all(there.slots == back.slots[::-1] for there, back in zip(made[::2], made[1::2], strict=True))
    assert 300 < sum(problem.right() == "<answer>A</answer>" for problem in made) < 500
    assert made[0].item.group.prompt[0].text == "Write a positive sentence about a film."


def test_single_texts_are_plainly_good_or_plainly_bad():
    task = judge_data.TaskConfig(source="Amazon reviews", size=1, gap=2.0, judge={"format": "sentiment"}, eval_count=50)
    made = judge_data.task_problems(task, "test")
    assert len(made) == 50
    assert all(abs(problem.gold_K[0]) >= 1 for problem in made)
    assert {problem.right() for problem in made} == {"Sentiment: positive", "Sentiment: negative"}
    assert all((problem.right() == "Sentiment: positive") == (problem.gold_K[0] > 0) for problem in made)


def test_a_domain_held_out_is_test_as_a_whole_and_nobody_may_train_on_it():
    held = judge_data.TaskConfig(source="Amazon reviews", held_out="source", eval_count=500)
    tested = set().union(*map(shared, judge_data.items(held, "test")))
    assert {judge_data.split_of(text) for text in tested} == set(SPLITS)
    for split in ("train", "dev"):
        with pytest.raises(ConfigError, match=f"held out: it has no {split} items"):
            judge_data.items(held, split)
    film = judge_data.TaskConfig(source="film reviews")
    ranked = judge_data.TaskConfig(source="film reviews", judge={"format": "ranking"}, held_out="task")
    judge_data.check_tasks({"film": film, "amazon": held, "ranked": ranked})
    with pytest.raises(ConfigError, match="'also' trains on Amazon reviews, which task 'amazon' holds out"):
        judge_data.check_tasks({"amazon": held, "also": judge_data.TaskConfig(source="Amazon reviews")})


def test_a_format_held_out_has_dev_and_test_items_of_the_usual_sides():
    ranked = judge_data.TaskConfig(source="film reviews", judge={"format": "ranking"}, held_out="task", eval_count=20)
    with pytest.raises(ConfigError, match="no train items"):
        judge_data.items(ranked, "train")
    for split in ("dev", "test"):
        made = judge_data.items(ranked, split)
        assert {judge_data.split_of(text) for item in made for text in item.group.candidates} == {split}


# -- the raters' own agreement ----------------------------------------------------------------------------------------


def test_raters_who_never_disagree_agree_and_opposite_ones_do_not():
    item = from_ratings("Q", ["good", "bad"], [2.0, -2.0], scale=(-4, 4))
    sure = reviews.rater_agreement([item], {"good": [2, 2, 2], "bad": [-2, -2, -2, -2]})
    assert (sure.right, sure.tied, sure.chosen, sure.pairs) == (1.0, 0.0, 1.0, 1)
    same = reviews.rater_agreement([item], {"good": [1, 1], "bad": [1, 1]})
    assert (same.right, same.tied, same.chosen) == (0.0, 1.0, 0.5)


def test_a_rater_is_left_out_of_the_mean_that_he_must_meet():
    item = from_ratings("Q", ["a", "b"], [1.0, 0.0], scale=(-4, 4))
    ratings = {"a": [4, -1, 0], "b": [0, 0, 0]}
    # The 4 says a > b against the rest (-1, 0), which says b > a; the -1 meets (4, 0), and the 0 ties.
    agreement = reviews.rater_agreement([item], ratings)
    assert (agreement.right, agreement.tied) == (0.0, pytest.approx(1 / 3))


def test_agreement_is_that_of_all_rater_pairs_one_by_one():
    draw = random.Random(0)
    ratings = {text: [draw.randint(-4, 4) for _ in range(draw.randint(3, 9))] for text in "abc"}
    item = from_ratings("Q", list("abc"), [0.0, 0.0, 0.0], scale=(-4, 4))
    right: list[float] = []
    for one, two in (("a", "b"), ("a", "c"), ("b", "c")):
        met = []
        for i, first in enumerate(ratings[one]):
            for j, second in enumerate(ratings[two]):
                rest = [fmean(r[:k] + r[k + 1 :]) for r, k in ((ratings[one], i), (ratings[two], j))]
                met.append(float((rest[0] - rest[1]) * (first - second) > 0))
        right.append(fmean(met))
    agreement = reviews.rater_agreement([item], ratings)
    assert agreement.right == pytest.approx(fmean(right))
    assert agreement.pairs == 3


def test_more_raters_agree_better_and_unknown_ones_are_left_out():
    made = judge_data.items(judge_data.TaskConfig(source="tweets", eval_count=60), "test")
    ratings = reviews.ratings_of("tweets")
    single, seven = (reviews.rater_agreement(made, ratings, panel=panel, draws=20) for panel in (1, 7))
    assert 0.8 < single.right < single.chosen < seven.right <= 1
    assert single.pairs < 60
    with pytest.raises(InputError, match="more than 1 known ratings"):
        reviews.rater_agreement(made, {})


# -- questions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "count", "options"),
    [("quartz", 3828, {2}), ("social_iqa", 2203, {2, 3}), ("mmlu", 999, {3, 4}), ("emotional", 86, {4, 5})],
)
def test_questions_are_read_whole_with_right_answers_in_every_slot(source: str, count: int, options: set[int]):
    task = judge_data.TaskConfig(source=source, judge=CHOICE, size=5, count=10**6, eval_count=10**6)
    made = {split: judge_data.items(task, split) for split in SPLITS}
    everything = [item for items in made.values() for item in items]
    assert len(everything) == count
    assert {len(item.gold_G) for item in everything} == options
    asked = [{conversation_text(item.group.prompt) for item in items} for items in made.values()]
    assert not asked[0] & asked[1]
    assert not (asked[0] | asked[1]) & asked[2]
    places = [item.gold_G.index(1.0) for item in everything]
    for place in range(max(options)):
        assert places.count(place) > count / max(options) / 4
    for item in everything:
        assert item.gold_G.count(1.0) == 1
        assert len(set(item.group.candidates)) == len(item.group.candidates)
        for text in item.group.candidates:
            assert text == text.strip() != ""
            assert not re.search(r"(^|[\n;] ?)\(?[A-Ea-e][.:)] |Answer:", text)
            assert source not in ("social_iqa", "emotional") or not text.endswith(".") or ". " in text, (
                "the last option would show"
            )
    for problem in judge_data.task_problems(task, "test"):
        assert verify(problem, Reply(problem.right())).reward == 1.0


def test_fewer_options_always_hold_the_right_one():
    for item in judge_data.items(judge_data.TaskConfig(source="mmlu", size=2), "dev"):
        assert sorted(item.gold_G) == [0.0, 1.0]


def test_experts_order_of_answers_is_a_ranking():
    task = judge_data.TaskConfig(source="emotional", size=4, judge={"format": "ranking"}, count=10**6)
    written = [problem.right() for problem in judge_data.task_problems(task, "train")]
    assert any("=" not in text for text in written)
    assert any(re.search(r"> .* = .* = ", text) for text in written)


# -- generated --------------------------------------------------------------------------------------------------------


def test_generated_answers_are_right_and_their_rivals_wrong_by_the_generators_own_scorer():
    import reasoning_gym

    task = judge_data.TaskConfig(
        source="reasoning_gym",
        judge=CHOICE,
        size=3,
        count=60,
        eval_count=12,
        generators=["chain_sum", "time_intervals"],
    )
    made = {split: judge_data.items(task, split) for split in SPLITS}
    assert {split: len(items) for split, items in made.items()} == {"train": 60, "dev": 12, "test": 12}
    assert made["dev"] == judge_data.items(task, "dev")
    asked = [{conversation_text(item.group.prompt) for item in items} for items in made.values()]
    assert len(asked[0] | asked[1] | asked[2]) == 84
    known = {}
    for name in task.generators:
        questions = reasoning_gym.create_dataset(name, size=600, seed=0)
        known |= {entry["question"]: (questions, entry) for entry in (questions[i] for i in range(600))}
    for item in made["train"][:30]:
        questions, entry = known[conversation_text(item.group.prompt)]
        for text, worth in zip(item.group.candidates, item.gold_G, strict=True):
            assert (questions.score_answer(text, entry) == 1) == (worth == 1)
    assert {item.gold_G.index(1.0) for item in made["train"]} == {0, 1, 2}


def test_a_missing_generator_package_is_named_with_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)  # as if it were not installed
    with pytest.raises(MissingPackageError, match="reasoning_gym is needed"):
        judge_data.items(judge_data.TaskConfig(source="reasoning_gym"), "dev")


@pytest.mark.parametrize(
    "answer", ["-4", "12", "00:34:28", "mother-in-law", "['52.2', '30.0']", "Friday", "7", "a b c", ""]
)
def test_flaws_are_different_texts_of_the_same_kind(answer: str):
    made = judge_data.flaws(answer, ["7", "other", answer], random.Random(0))
    assert answer not in made
    assert len(set(made)) == len(made) >= 2
    assert made == judge_data.flaws(answer, ["7", "other", answer], random.Random(0))
    if answer == "00:34:28":
        assert sum(bool(re.fullmatch(r"\d\d:\d\d:\d\d", text)) for text in made) >= 5


# -- preferences ------------------------------------------------------------------------------------------------------


def preference_file(folder: Path, suffix: str) -> tuple[Path, int]:
    rows: list[dict[str, Any]] = [
        {"prompt": f"Question {i}?", "chosen": f"Right {i}.", "rejected": f"Wrong {i}."} for i in range(200)
    ]
    rows += [{"prompt": "Question 3?", "chosen": "Better.", "rejected": "Worse."}]  # of one prompt, on one side
    path = folder / f"pairs{suffix}"
    if suffix == ".jsonl":
        path.write_text("\n\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    elif suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), path)
    return path, len(rows)


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
def test_preferences_of_a_file_are_split_by_their_prompts(tmp_path: Path, suffix: str):
    path, count = preference_file(tmp_path, suffix)
    task = judge_data.TaskConfig(source="preferences", path=str(path), judge=CHOICE, eval_count=300)
    made = {split: judge_data.items(task, split) for split in SPLITS}
    assert sum(map(len, made.values())) == count
    prompts = [{conversation_text(item.group.prompt) for item in items} for items in made.values()]
    assert len(prompts[0]) + len(prompts[1]) + len(prompts[2]) == 200, "no prompt on two sides"
    assert all(verify(e, Reply(e.right())).reward == 1.0 for e in judge_data.task_problems(task, "train"))


def test_a_folder_that_the_hub_library_reads_is_read_by_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    folder = tmp_path / "set"
    folder.mkdir()
    preference_file(folder, ".jsonl")
    task = judge_data.TaskConfig(source="preferences", path=str(folder), judge=CHOICE)
    assert len(judge_data.items(task, "train")) > 100


def test_rows_that_are_no_preference_are_left_out_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"Q{i}", "chosen": "a", "rejected": "a" if i == 4 else "b"} for i in range(50)]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    task = judge_data.TaskConfig(source="preferences", path=str(path), judge=CHOICE)
    assert sum(len(judge_data.items(task, split)) for split in SPLITS) == 49
    assert "1 of 50 rows left out; first line 5: chosen and rejected are the same answer" in capsys.readouterr().err
    path.write_text(json.dumps(rows[4]), encoding="utf-8")
    with pytest.raises(InputError, match="has no preference; line 1: chosen and rejected are the same"):
        judge_data.items(task, "train")


def test_lists_of_rated_answers_are_narrowed_to_the_best_and_worse_ones(tmp_path: Path):
    path = tmp_path / "lists.jsonl"
    rows = [
        {"prompt": f"Q{i}", "answers": [{"answer": f"{i} {n}", "rank": max(n, 1)} for n in range(7)]} for i in range(40)
    ]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    for size in (2, 4, 7):
        task = judge_data.TaskConfig(source="preferences", path=str(path), judge=CHOICE, size=size)
        made = judge_data.items(task, "train")
        assert {len(item.gold_G) for item in made} == {size}
        assert all(item.gold_G.count(1.0) == (2 if size == 7 else 1) for item in made), "two share the first place"
        assert made == judge_data.items(task, "train")
    pair = judge_data.TaskConfig(source="preferences", path=str(path), judge=CHOICE)
    assert len({item.group.candidates[item.gold_G.index(1.0)][-1] for item in judge_data.items(pair, "train")}) == 2


def items_file(folder: Path, *rows: dict[str, Any]) -> str:
    made = [
        {"prompt": f"Question {n}?", "candidates": ["good", "bad"], "gold": [1, 0], **row} for n, row in enumerate(rows)
    ]
    (folder / "items.jsonl").write_text("\n".join(map(json.dumps, made)))
    return str(folder / "items.jsonl")


def all_of(path: str, **more: Any) -> list[Any]:
    return judge_data.items(judge_data.TaskConfig(source="items", path=path, held_out="source", **more), "test")


@pytest.mark.parametrize(
    ("bounds", "kept"),
    [
        (None, [0.0, 0.25, 0.5, 1.0]),
        ([0.0, 0.75], [0.0, 0.25, 0.5]),  # wrong, or unsure of
        ([0.1, 0.9], [0.25, 0.5]),  # those whose replies differ
        ([1, 1], [1.0]),
        ([0, 1], [0.0, 0.25, 0.5, 1.0]),
        ([0.6, 0.9], []),
    ],
)
def test_items_are_chosen_by_how_often_a_judge_was_right(bounds: Any, kept: list[float], tmp_path: Path):
    path = items_file(tmp_path, *({"accuracy": share} for share in (0.0, 0.25, 0.5, 1.0)))
    numbers = [int(item.group.prompt[0].text.split()[1][:-1]) for item in all_of(path, accuracy=bounds)]
    assert sorted([0.0, 0.25, 0.5, 1.0][number] for number in numbers) == kept


@pytest.mark.parametrize(
    ("row", "more", "fault"),
    [
        ({"candidates": ["good"]}, {}, "line 2: "),
        ({"candidates": ["", "bad"]}, {}, "line 2: "),
        ({"gold": [1]}, {}, "line 2: "),
        ({"gold": [1, 1]}, {}, "line 2: "),  # a tie
        ({"prompt": None}, {}, "line 2: "),
        ({}, {"accuracy": [0, 1]}, "line 2: accuracy must be a number"),
        ({"accuracy": "often"}, {"accuracy": [0, 1]}, "line 2: accuracy must be a number"),
        ({"split": "validation"}, {}, "line 2: split must be train, dev, test; got 'validation'"),
        ({"split": ["train"]}, {}, "line 2: split must be"),
    ],
)
def test_a_line_of_items_that_is_none_is_an_error_and_not_left_out(row: Any, more: Any, fault: str, tmp_path: Path):
    with pytest.raises(InputError, match=fault):
        all_of(items_file(tmp_path, {"accuracy": 0.5}, row), **more)


@pytest.mark.parametrize("said", [*SPLITS, None])
def test_items_stay_on_the_side_that_they_name_and_others_go_by_their_prompt(said: str | None, tmp_path: Path):
    rows = [{"split": said} if said else {} for _ in range(40)]
    task = judge_data.TaskConfig(source="items", path=items_file(tmp_path, *rows), count=99)
    for split in SPLITS:
        prompts = [conversation_text(item.group.prompt) for item in judge_data.items(task, split)]
        wanted = [n for n in range(40) if split == (said or judge_data.split_of(f"Question {n}?"))]
        assert sorted(prompts) == sorted(f"Question {n}?" for n in wanted)


def test_a_column_of_a_preference_set_that_is_named_split_is_not_ours(tmp_path: Path):
    path = items_file(tmp_path, *({"split": "train_prefs"} for _ in range(9)))
    task = judge_data.TaskConfig(source="preferences", path=path, held_out="source")
    assert len(judge_data.items(task, "test")) == 9


def test_items_keep_their_domain_and_more_than_two_candidates_where_the_task_shows_them(tmp_path: Path):
    path = items_file(tmp_path, {"candidates": ["a", "b", "c", "d"], "gold": [0, 0, 1, 0], "domain": "charts"})
    (item,) = all_of(path, size=4)
    assert (item.domain, item.gold_G) == ("charts", (0.0, 0.0, 1.0, 0.0))
    assert len(all_of(path)[0].gold_G) == 2


@pytest.mark.parametrize("source", ["items", "preferences"])
def test_an_image_is_found_beside_the_file_that_names_it(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/a.png").write_bytes(b"png")
    beside, elsewhere = "pictures/a.png", str(tmp_path / "pictures/a.png")
    rows = [
        {"images": [one]}
        for one in (beside, elsewhere, "none.png", "https://example.org/a.png", "data:image/png;base64,AA")
    ]
    path = items_file(tmp_path, *rows)
    monkeypatch.chdir("/")
    task = judge_data.TaskConfig(source=source, path=path, held_out="source")
    found = {
        item.group.prompt[0].text[-2]: item.group.prompt[0].images[0].image for item in judge_data.items(task, "test")
    }
    assert found == {
        "0": elsewhere, "1": elsewhere, "2": "none.png", "3": "https://example.org/a.png", "4": "data:image/png;base64,AA",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("balance", "expected"),
    [
        ([], [1, 3, 1, 1]),
        (["format"], [0.2, 0.6, 0.2, 1.0]),
        (["modality"], [0.2, 0.6, 1.0, 0.2]),
        (["format", "modality"], [0.25, 0.75, 1.0, 1.0]),
        (["modality", "format"], [0.25, 0.75, 1.0, 1.0]),
    ],
)
def test_kinds_of_tasks_may_have_the_same_share(balance: Any, expected: list[float]):
    make, choice, ranking = judge_data.TaskConfig, {"format": "choice"}, {"format": "ranking"}
    tasks = {
        "a": make(source="quartz", judge=choice), "b": make(source="tweets", judge=choice, weight=3),
        "seen": make(source="quartz", judge=choice), "order": make(source="tweets", judge=ranking),
    }  # fmt: skip
    pictured = {name: name == "seen" for name in tasks}
    assert list(judge_data.mixture_weights(tasks, pictured, balance).values()) == pytest.approx(expected)


# -- the config -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"source": "films"}, "no source 'films'; there are film reviews"),
        ({"source": "quartz", "sise": 2}, "unknown setting 'sise' in a task; did you mean 'size'"),
        ({"source": "quartz", "count": 0}, "count"),
        ({"source": "quartz", "size": 1}, "at least 2 candidates"),
        ({"source": "quartz", "path": "x"}, "path belongs to source 'preferences'"),
        ({"source": "preferences"}, "path belongs to source 'preferences'"),
        ({"source": "items"}, "path belongs to source 'preferences', 'items' or 'captions'"),
        ({"source": "preferences", "path": "x", "accuracy": [0, 1]}, "accuracy belongs to source 'items'"),
        ({"source": "items", "path": "x", "accuracy": [0.5]}, "accuracy"),
        ({"source": "quartz", "without": {"a": "test"}}, "without belongs to sources 'preferences' and 'items'"),
        ({"source": "quartz", "question": "x"}, "question belongs to rated texts"),
        (
            {"source": "quartz", "judge": {"model": "x"}},
            "a task's judge has format, template, labels, grades, tie_label; got model",
        ),
        ({"source": "quartz", "judge": {"format": "chioce"}}, "format"),
        ({"source": "quartz", "judge": {"format": "choice", "labels": ["A"]}}, "labels"),
        ({"source": "quartz", "held_out": "yes"}, "held_out"),
        ({"source": "reasoning_gym", "generators": []}, "generators"),
    ],
)
def test_a_task_that_cannot_be_is_refused(values: dict[str, Any], fault: str):
    with pytest.raises(ConfigError, match=re.escape(fault)):
        judge_data.TaskConfig(**values)


@pytest.mark.parametrize(
    ("own", "recipe", "expected"),
    [
        ({}, None, None),
        ({}, {"model": "m", "verdict": "generate"}, None),
        ({}, {"format": "auto"}, None),
        ({"format": "auto"}, {}, None),
        ({"labels": ["1", "2"]}, {"model": "m"}, None),
        ({"template": "glance"}, None, None),
        ({}, {"model": "m", "format": "pair_scores"}, PairScores()),
        ({}, {"format": "choice", "labels": ["A", "B"]}, Choice(labels=("A", "B"))),
        ({"labels": ["1", "2"]}, {"format": "choice", "labels": ["A", "B"]}, Choice(labels=("1", "2"))),
        ({"format": "ranking"}, {"format": "choice"}, Ranking()),
        ({"format": "score"}, {"grades": {"no": 0, "yes": 1}}, Score(grades=(("no", 0.0), ("yes", 1.0)))),
        ({"format": "sentiment"}, None, SENTIMENT),
    ],
)
def test_a_task_is_in_the_format_that_it_or_the_recipes_judge_names_and_in_no_other(
    own: dict[str, Any], recipe: dict[str, Any] | None, expected: Any
):
    if expected is None:
        with pytest.raises(ConfigError, match=r"(task 'q'|quartz) names no format.*write judge: \{format: choice\}"):
            judge_data.asked_tasks({"q": {"source": "quartz", "judge": own}}, recipe)
        with pytest.raises(ConfigError, match="quartz names no format"):
            judge_data.task_problems(judge_data.TaskConfig(source="quartz", judge=own), "dev")
    else:
        asked = judge_data.asked_tasks({"q": {"source": "quartz", "judge": own, "eval_count": 3}}, recipe)
        assert {problem.format for problem in judge_data.task_problems(asked["q"], "dev")} == {expected}


def test_what_is_only_read_or_described_needs_no_format():
    assert len(judge_data.items(judge_data.TaskConfig(source="quartz", eval_count=3), "dev")) == 3
    tasks = {"seen": {"source": "captions", "path": "x", "describe": True}, "q": {"source": "quartz", "judge": CHOICE}}
    asked = judge_data.asked_tasks(tasks)
    weights = judge_data.mixture_weights(asked, {"seen": True, "q": False}, ["format"])
    assert weights == {"seen": 1.0, "q": 1.0}


def test_a_task_is_asked_as_the_judge_later_is():
    judge = {"format": "choice", "labels": ["1", "2"], "tie_label": "0"}
    assert judge_data.TaskConfig(source="quartz", judge=judge).build_format() == Choice(
        labels=("1", "2"), tie_label="0"
    )
    graded = judge_data.TaskConfig(source="quartz", judge={"format": "score", "grades": {"no": 0, "yes": 1}})
    assert graded.build_format() == Score(grades=(("no", 0.0), ("yes", 1.0)))
    written = {problem.right() for problem in judge_data.task_problems(graded, "dev")}
    assert written == {"<answer>no</answer>", "<answer>yes</answer>"}


def test_reasoning_names_what_raters_said_in_the_order_shown():
    item = from_ratings("Q", ["good", "bad"], [1.84, -0.36], "films", scale=(-4.0, 4.0))
    pair = Choice(labels=("A", "B"))
    assert judge_data.reasoning(judge_data.Problem(item, (1, 0), pair)) == "<think>A: -0.4, B: +1.8</think>"
    assert judge_data.reasoning(judge_data.Problem(item, (0,), Score())) == "<think>+1.8</think>"
    both = judge_data.Problem(item, (1, 0), pair)
    assert verify(both, Reply(judge_data.reasoning(both) + both.right())).reward == 1


def test_a_task_whose_items_no_verdict_fits_is_an_error():
    task = judge_data.TaskConfig(source="film reviews", size=1, judge=CHOICE)
    with pytest.raises(InputError, match="no dev problem that its format can verify"):
        judge_data.task_problems(task, "dev")
