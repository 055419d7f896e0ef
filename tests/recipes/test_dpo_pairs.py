"""Preference pairs: only what holds in both orders, length balanced, resumable, and what TRL's DPO trains on."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrjudge_reward import (
    Choice,
    ConfigError,
    EngineFailure,
    FailureAlarm,
    Group,
    InputError,
    Judge,
    JudgeUnreliableError,
    Ranking,
    Score,
    ScriptedEngine,
)
from mrjudge_reward.engines.scripted import shown_candidates
from recipes.policy import dpo_pairs
from recipes.policy.policies import Completion
from tests.support.trl_setup import common, tiny_policy


def worth(text: str) -> float:
    """Of answers such as ``"3 so so"``: the number in front."""
    return float(text.split()[0])


def judge_by(utility: Any = worth, bias: float = 0.0, **settings: Any) -> Judge:
    engine = ScriptedEngine.by_utility(utility, position_bias=bias)
    return Judge(engine, Choice(), **{"verdict": "logprobs", "schedule": "ring", **settings})


def file_of(path: Path, *records: Any) -> str:
    path.write_text(
        "".join(f"{record if isinstance(record, str) else json.dumps(record)}\n" for record in records), "utf-8"
    )
    return str(path)


def made(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "pairs.jsonl").read_text("utf-8").splitlines()]


def build(tmp_path: Path, records: list[Any], judge: Judge, **settings: Any) -> list[dict[str, Any]]:
    source = file_of(tmp_path / "in.jsonl", *records)
    dpo_pairs.build(dpo_pairs.PairsRecipe(candidates=source, **settings), tmp_path / "out", judge)
    return made(tmp_path / "out")


def test_the_pair_of_the_largest_margin_is_written_with_where_it_comes_from(tmp_path: Path):
    records = [{"prompt": "p", "candidates": ["2 a", "5 b", "1 c"]}, {"prompt": "q", "candidates": ["0 x", "9 y"]}]
    first, second = build(tmp_path, records, judge_by())
    assert (first["prompt"], first["chosen"], first["rejected"]) == ("p", "5 b", "1 c")
    assert (first["line"], first["candidates"], first["judge"]) == (1, [1, 2], "scripted-utility")
    assert first["score_chosen"] > first["score_rejected"]
    assert first["writer"] == str(tmp_path / "in.jsonl")
    assert (second["chosen"], second["rejected"], second["line"]) == ("9 y", "0 x", 2)


def test_only_what_wins_in_both_orders_is_a_pair(tmp_path: Path):
    records = [{"prompt": "p", "candidates": ["1 a", "2 b", "9 c"]}]
    found = build(tmp_path, records, judge_by(bias=3.0), per_prompt=9)
    assert {(one["chosen"], one["rejected"]) for one in found} == {("9 c", "1 a"), ("9 c", "2 b")}
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["twos shown in both orders"] == 3
    assert report["twos that hold in both orders"] == 2


def test_pairs_by_score_alone_can_be_had_of_the_same_folder_without_asking_again(tmp_path: Path):
    records = [{"prompt": "p", "candidates": ["1 a", "2 b", "9 c"]}]
    held = build(tmp_path, records, judge_by(bias=3.0), per_prompt=9)
    silent = judge_by(bias=3.0)
    found = build(tmp_path, records, silent, per_prompt=9, both_orders=False)
    assert {(one["chosen"], one["rejected"]) for one in found} == {("9 c", "1 a"), ("9 c", "2 b"), ("2 b", "1 a")}
    assert silent.engine.batches == []  # type: ignore[attr-defined]
    assert build(tmp_path, records, silent, per_prompt=9) == held


def test_what_the_ranking_asked_is_not_asked_again_and_all_prompts_are_one_batch(tmp_path: Path):
    judge = judge_by(schedule="all_pairs", both_orders=True)
    records = [{"prompt": f"p{n}", "candidates": ["1 a", "2 b", "3 c"]} for n in range(4)]
    build(tmp_path, records, judge)
    assert judge.engine.batches == [4 * 6]  # type: ignore[attr-defined]
    other = judge_by(schedule="anchor", both_orders=False)
    (tmp_path / "second").mkdir()
    build(tmp_path / "second", records, other)
    assert len(other.engine.batches) == 2  # type: ignore[attr-defined]


def voting(votes: dict[bool, str], **settings: Any) -> Judge:
    """A judge with as many votes in each order: ``+`` for the better answer, ``-`` against it, ``=`` a tie, ``?`` none.

    Args:
        votes: by whether the better answer is shown first.
    """
    asked: Counter[bool] = Counter()

    def script(request: Any) -> str:
        shown = shown_candidates(request)
        better = max(shown, key=lambda label: worth(shown[label]))
        (other,) = shown.keys() - {better}
        first = better == min(shown)
        vote = votes[first][asked[first] % len(votes[first])]
        asked[first] += 1
        return "<think>hm" if vote == "?" else f"<answer>{ {'+': better, '-': other, '=': 'T'}[vote] }</answer>"

    form = Choice(labels=("A", "B"), tie_label="T")
    given = {
        "verdict": "generate",
        "temperature": 1.0,
        "votes": len(votes[True]),
        "retries": 0,
        "alarm": FailureAlarm(1.0),
    }
    return Judge(ScriptedEngine(script), form, **{**given, **settings})


HOLDS = [
    ("+++", "+++", 1),
    ("++?", "++?", 1),
    ("?++", "+?+", 1),
    ("??+", "+??", 1),
    ("++-", "+-+", 1),
    ("-++", "+++", 1),
    ("+=?", "++=", 1),
    ("+++", "--+", None),
    ("--+", "--+", 0),
    ("+-?", "+++", None),
    ("===", "+++", None),
    ("???", "+++", None),
    ("+++++", "???--", None),
    ("++--+", "-+-++", 1),
    ("+", "+", 1),
    ("+", "-", None),
    ("+", "?", None),
]


@pytest.mark.parametrize("both_orders", [True, False])
@pytest.mark.parametrize(("first", "second", "wins"), HOLDS)
def test_all_votes_that_came_to_a_verdict_decide_whether_a_pair_holds(
    first: str, second: str, wins: int | None, both_orders: bool
):
    """Both where the schedule asked both orders, and where one of them is asked afterwards."""
    judge = voting({True: first, False: second}, schedule="all_pairs", both_orders=both_orders)
    (found,) = dpo_pairs.judged(judge, [Group.of("p", ["1 a", "2 b"], "k")], 0.0, 6)
    assert [pair["chosen"] for pair in found["pairs"] if pair["holds"]] == ([] if wins is None else [wins])
    if wins is not None:
        assert len(judge.engine.requests) == 2 * len(first), "as many votes in each order"  # type: ignore[attr-defined]


@pytest.mark.parametrize("criteria", ["comparative", "absolute"])
def test_a_judge_by_criteria_is_refused_before_anything_is_asked(tmp_path: Path, criteria: Any):
    source = file_of(tmp_path / "in.jsonl", {"prompt": "p", "candidates": ["1 a", "2 b"]})
    settings = {"rubric": [{"name": "a", "description": "Says it."}], "criteria": criteria}
    with pytest.raises(ConfigError, match=f"criteria='{criteria}' and gives a verdict on each criterion"):
        dpo_pairs.PairsRecipe(candidates=source, judge=settings)
    judge = Judge(ScriptedEngine.by_utility(worth), **settings)
    with pytest.raises(ConfigError, match="use criteria='implicit'"):
        dpo_pairs.build(dpo_pairs.PairsRecipe(candidates=source), tmp_path / "out", judge)
    assert judge.engine.requests == []  # type: ignore[attr-defined]
    assert not (tmp_path / "out").exists()
    implicit = Judge(ScriptedEngine.by_utility(worth), **settings | {"criteria": "implicit"})
    assert dpo_pairs.build(dpo_pairs.PairsRecipe(candidates=source), tmp_path / "out", implicit)["pairs"] == 1


def test_a_judge_that_grades_alone_decides_by_its_scores_and_a_ranking_judge_by_both_orders(tmp_path: Path):
    records = [{"prompt": "p", "candidates": ["-9 a", "0 b", "9 c"]}]
    alone = Judge(ScriptedEngine.by_utility(worth), Score(), schedule="pointwise", rating="mean_score")
    (one,) = build(tmp_path, records, alone)
    assert (one["chosen"], one["rejected"]) == ("9 c", "-9 a")
    assert alone.engine.batches == [3]  # type: ignore[attr-defined]

    def ranked(request: Any) -> str:
        shown = shown_candidates(request)
        return f"<answer>{' > '.join(sorted(shown, key=lambda label: -worth(shown[label])))}</answer>"

    (tmp_path / "ranking").mkdir()
    (one,) = build(tmp_path / "ranking", records, Judge(ScriptedEngine(ranked), Ranking(), schedule="listwise"))
    assert (one["chosen"], one["rejected"]) == ("9 c", "-9 a")


def test_no_pair_of_equal_empty_or_unjudged_answers(tmp_path: Path):
    records = [
        {"prompt": "same", "candidates": ["3 a", "3 a"]},
        {"prompt": "even", "candidates": ["3 a", "3 b"]},
        {"prompt": "one", "candidates": ["3 a"]},
        {"prompt": "none", "candidates": []},
        {"prompt": "empty", "candidates": ["3 a", "", "   ", "<think>9 never closed"]},
        {"prompt": "close", "candidates": ["3 a", "3.5 b"]},
    ]
    assert build(tmp_path, records, judge_by(), margin=1.0) == []


def test_reasoning_is_kept_in_the_pair_and_hidden_from_the_judge(tmp_path: Path):
    records = [{"prompt": "p", "candidates": ["<think>why</think>1 a", "<think>hm</think>2 b"]}]
    judge = judge_by()
    (one,) = build(tmp_path, records, judge)
    assert one["chosen"] == "<think>hm</think>2 b"
    assert all("hm" not in request.messages[-1].text for request in judge.engine.requests)  # type: ignore[attr-defined]


def test_a_bad_line_costs_itself_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    good = {"prompt": "p", "candidates": ["1 a", "2 b"]}
    chat = {"prompt": [{"role": "user", "content": "q"}], "candidates": ["1 a", "2 b"]}
    picture = {"prompt": [{"role": "user", "content": [{"type": "image", "image": "x.png"}]}], "candidates": ["1", "2"]}
    bad = ["{", "[1]", {"prompt": "p"}, {"prompt": 3, "candidates": []}, {"prompt": "p", "candidates": ["a", 2]},
           {"prompt": "p\ud800", "candidates": ["1 a", "2 b"]}, chat, picture, {"prompt": "", "candidates": ["1"]},
           {"prompt": "p", "candidates": ["1"] * 5000}, "[" * 100_000]  # fmt: skip
    found = build(tmp_path, [good, *bad, "", good], judge_by())
    assert [one["line"] for one in found] == [1, 14]
    said = capsys.readouterr().err
    assert [f"line {number}:" in said for number in range(1, 15)] == [False, *[True] * 11, False, False]
    assert json.loads((tmp_path / "out" / "report.json").read_text())["prompts that could not be used"] == 11


def test_bytes_that_are_no_text_cost_their_line(tmp_path: Path):
    source = tmp_path / "in.jsonl"
    source.write_bytes(
        b'{"prompt": "p\xff", "candidates": ["1 a", "2 b"]}\n{"prompt": "p", "candidates": ["1 a", "2 b"]}\n'
    )
    dpo_pairs.build(dpo_pairs.PairsRecipe(candidates=str(source)), tmp_path / "out", judge_by())
    assert [one["line"] for one in made(tmp_path / "out")] == [2]


def test_an_interrupted_run_goes_on_and_asks_nothing_twice(tmp_path: Path):
    records = [{"prompt": f"p{n}", "candidates": [f"{n} a", f"{n + 1} b"]} for n in range(6)]
    source = file_of(tmp_path / "in.jsonl", *records)
    recipe = dpo_pairs.PairsRecipe(candidates=source, chunk=2)

    class Breaks(ScriptedEngine):
        def label_logprobs(self, requests: Any) -> Any:
            if len(self.batches) == 2:
                raise KeyboardInterrupt
            return super().label_logprobs(requests)

    engine = Breaks(ScriptedEngine.by_utility(worth).script, "scripted-utility")
    with pytest.raises(KeyboardInterrupt):
        dpo_pairs.build(recipe, tmp_path / "out", Judge(engine, Choice(), verdict="logprobs", schedule="ring"))
    assert not (tmp_path / "out" / "pairs.jsonl").exists()
    again = judge_by()
    dpo_pairs.build(recipe, tmp_path / "out", again)
    asked = {request.messages[-1].text for request in again.engine.requests}  # type: ignore[attr-defined]
    assert not any("p0" in text or "p1" in text for text in asked)
    whole = made(tmp_path / "out")
    assert [one["line"] for one in whole] == [1, 2, 3, 4, 5, 6]
    idle = judge_by()
    dpo_pairs.build(dpo_pairs.PairsRecipe(candidates=source, chunk=2, per_prompt=3, count=4), tmp_path / "out", idle)
    assert idle.engine.requests == [], "how many are drawn is decided from what is there"  # type: ignore[attr-defined]
    assert [one["line"] for one in made(tmp_path / "out")] == [1, 2, 3, 4]
    with pytest.raises(ConfigError, match="other settings"):
        dpo_pairs.build(dpo_pairs.PairsRecipe(candidates=source, chunk=2, margin=2.0), tmp_path / "out", judge_by())
    file_of(tmp_path / "in.jsonl", *records[:3])
    with pytest.raises(ConfigError, match="changed: content"):
        dpo_pairs.build(recipe, tmp_path / "out", judge_by())


def test_what_a_judge_found_nothing_out_about_is_asked_again_by_the_same_command(tmp_path: Path):
    source = file_of(tmp_path / "in.jsonl", {"prompt": "p", "candidates": ["1 a", "2 b"]})
    recipe = dpo_pairs.PairsRecipe(candidates=source)
    broken = ScriptedEngine(lambda request: EngineFailure("timeout", transient=False))
    judge = Judge(broken, Choice(), verdict="logprobs", schedule="ring", alarm=FailureAlarm(1.0))
    assert dpo_pairs.build(recipe, tmp_path / "out", judge)["prompts the judge found out nothing about"] == 1
    assert made(tmp_path / "out") == []
    dpo_pairs.build(recipe, tmp_path / "out", judge_by())
    assert len(made(tmp_path / "out")) == 1


def test_a_judge_that_fails_too_often_stops_the_run_and_keeps_what_was_made(tmp_path: Path):
    records = [{"prompt": f"p{n}", "candidates": ["1 a", "2 b"]} for n in range(40)]
    source = file_of(tmp_path / "in.jsonl", *records)
    good = ScriptedEngine.by_utility(worth).script

    def late(request: Any) -> Any:
        return good(request) if any(f"p{n}\n" in request.messages[-1].text for n in range(4)) else EngineFailure("dead")

    judge = Judge(
        ScriptedEngine(late), Choice(), verdict="logprobs", schedule="ring", alarm=FailureAlarm(0.5, 8), retries=0
    )
    with pytest.raises(JudgeUnreliableError):
        dpo_pairs.build(dpo_pairs.PairsRecipe(candidates=source, chunk=4), tmp_path / "out", judge)
    assert len((tmp_path / "out" / "progress.jsonl").read_text().splitlines()) == 4


Pair = dict[str, Any]


@given(
    st.lists(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=4), max_size=12), st.integers(1, 3)
)
def test_chosen_answers_are_not_longer_together_and_no_prompt_gives_too_many(
    lengths: list[list[tuple[int, int]]], per_prompt: int
):
    offered = [
        [{"chosen": "c" * c, "rejected": "r" * r, "of": (n, k)} for k, (c, r) in enumerate(row)]
        for n, row in enumerate(lengths)
    ]
    drawn: list[Pair] = dpo_pairs.drawn(offered, per_prompt, True)
    assert sum(len(pair["chosen"]) - len(pair["rejected"]) for pair in drawn) <= 0
    of = [pair["of"] for pair in drawn]
    assert len(set(of)) == len(of), "no pair twice"
    assert all(sum(prompt == n for prompt, _ in of) <= per_prompt for n in range(len(lengths)))
    free: list[Pair] = dpo_pairs.drawn(offered, per_prompt, False)
    assert free == [pair for row in offered for pair in row[:per_prompt]]
    if sum(len(pair["chosen"]) - len(pair["rejected"]) for pair in free) <= 0:
        assert drawn == free, "what is balanced is left alone"


def test_a_pair_that_is_too_long_gives_way_to_a_spare_one_of_its_prompt():
    long, spare = {"chosen": "c" * 9, "rejected": "r"}, {"chosen": "c", "rejected": "r" * 3}
    assert dpo_pairs.drawn([[long, spare]], 1, True) == [spare]
    assert dpo_pairs.drawn([[long]], 1, True) == []


def test_settings_that_cannot_give_pairs_are_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="at least 2 samples"):
        dpo_pairs.PairsRecipe(samples=1)
    with pytest.raises(ConfigError, match="raise it"):
        dpo_pairs.PairsRecipe(temperature=0.0)
    with pytest.raises(InputError, match="nowhere"):
        dpo_pairs.build(dpo_pairs.PairsRecipe(candidates=str(tmp_path / "nowhere.jsonl")), tmp_path / "o", judge_by())
    with pytest.raises(InputError, match="holds no prompt that can be used; not JSON"):
        dpo_pairs.build(
            dpo_pairs.PairsRecipe(candidates=file_of(tmp_path / "x.jsonl", "{")), tmp_path / "o", judge_by()
        )


def written_by(monkeypatch: pytest.MonkeyPatch, answers: list[tuple[str, bool]]) -> None:
    """A policy that writes these to each prompt, with whether each ended by itself."""
    monkeypatch.setattr(dpo_pairs, "load_policy", lambda model, adapter: (None, None))
    monkeypatch.setattr(
        dpo_pairs,
        "complete",
        lambda model, tokenizer, prompts, *rest, **sampling: [
            Completion(text, (), ended) for text, ended in answers * (len(prompts) // len(answers))
        ],
    )


def prompts_in(folder: Path, count: int = 40) -> str:
    return file_of(folder / "prompts.jsonl", *({"prompt": f"p{n}"} for n in range(count)))


@pytest.mark.parametrize(
    ("ended", "pair"),
    [
        ("1111", ("4 d", "1 a")), ("1110", ("3 c", "1 a")), ("0111", ("4 d", "2 b")), ("0110", ("3 c", "2 b")),
        ("1001", ("4 d", "1 a")), ("1010", ("3 c", "1 a")), ("0011", ("4 d", "3 c")), ("1000", None), ("0001", None),
        ("0000", None),
    ],
)  # fmt: skip
def test_an_answer_that_was_cut_off_is_shown_to_nobody_and_in_no_pair(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], ended: str, pair: Any
):
    texts = ["1 a", "2 b", "3 c", "4 d"]
    written_by(monkeypatch, [(text, flag == "1") for text, flag in zip(texts, ended, strict=True)])
    recipe = dpo_pairs.PairsRecipe(prompts=prompts_in(tmp_path), max_new_tokens=7)
    judge = judge_by(schedule="all_pairs", both_orders=True)
    report = dpo_pairs.build(recipe, tmp_path / "out", judge)
    count, cut = report["prompts"], ended.count("0")
    assert count > 20
    rows = made(tmp_path / "out")
    assert [(row["chosen"], row["rejected"]) for row in rows] == [pair] * (count if pair else 0)
    assert all(row["candidates"] == [texts.index(row["chosen"]), texts.index(row["rejected"])] for row in rows)
    assert (report["answers"], report["answers cut at max_new_tokens"]) == (4 * count, cut * count)
    assert report["prompts the judge found out nothing about"] == 0
    shown = {text for request in judge.engine.requests for text in shown_candidates(request).values()}  # type: ignore[attr-defined]
    whole = {text for text, flag in zip(texts, ended, strict=True) if flag == "1"}
    assert shown == (whole if len(whole) > 1 else set())
    said = f"{cut * count} of {4 * count} answers did not end within max_new_tokens=7 and are in no pair"
    assert (said in capsys.readouterr().err) == (cut > 0)
    silent = judge_by()
    dpo_pairs.build(recipe, tmp_path / "out", silent)
    assert silent.engine.requests == [], "what was cut is not written or judged again"  # type: ignore[attr-defined]
    assert made(tmp_path / "out") == rows


def test_cut_answers_are_paired_where_that_is_asked_for_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    written_by(monkeypatch, [("1 a", True), ("2 b", False), ("9 c", False)])
    recipe = dpo_pairs.PairsRecipe(prompts=prompts_in(tmp_path), samples=3, keep_cut=True)
    report = dpo_pairs.build(recipe, tmp_path / "out", judge_by())
    assert {(row["chosen"], row["rejected"]) for row in made(tmp_path / "out")} == {("9 c", "1 a")}
    assert report["answers cut at max_new_tokens"] == 2 * report["prompts"]
    assert "did not end" not in capsys.readouterr().err
    with pytest.raises(ConfigError, match="changed: keep_cut"):
        dpo_pairs.build(recipe.model_copy(update={"keep_cut": False}), tmp_path / "out", judge_by())


def test_answers_of_a_file_count_as_whole(tmp_path: Path):
    build(tmp_path, [{"prompt": "p", "candidates": ["1 a", "2 b and then"]}], judge_by())
    (entry,) = map(json.loads, (tmp_path / "out" / "progress.jsonl").read_text("utf-8").splitlines())
    assert entry["ended"] == [True, True]


def test_a_folder_that_was_begun_before_it_was_known_which_answers_ended_is_refused(tmp_path: Path):
    source = file_of(tmp_path / "in.jsonl", {"prompt": "p", "candidates": ["1 a", "2 b"]})
    recipe = dpo_pairs.PairsRecipe(candidates=source)
    dpo_pairs.build(recipe, tmp_path / "out", judge_by())
    before = json.loads((tmp_path / "out" / "settings.json").read_text()) | {"version": 2}
    del before["keep_cut"]
    (tmp_path / "out" / "settings.json").write_text(json.dumps(before))
    with pytest.raises(
        ConfigError, match=r"other settings \(changed: keep_cut, version\).*name another folder, or remove"
    ):
        dpo_pairs.build(recipe, tmp_path / "out", judge_by())


@pytest.mark.parametrize("chat", [False, True])
def test_the_file_loads_into_trls_dpo_trainer_as_it_is_and_a_step_trains(
    chat: bool, smol_tokenizer: Any, tmp_path: Path
):
    from datasets import Dataset
    from peft import LoraConfig
    from trl import DPOConfig, DPOTrainer

    records = [
        {"prompt": [{"role": "user", "content": f"q{n}"}] if chat else f"q{n}", "candidates": [" 1 poor", " 2 good"]}
        for n in range(4)
    ]
    found = build(tmp_path, records, judge_by())
    assert found[0]["chosen"] == ([{"role": "assistant", "content": " 2 good"}] if chat else " 2 good")
    trainer = DPOTrainer(
        model=tiny_policy(smol_tokenizer),
        args=DPOConfig(**common(tmp_path / "dpo", max_steps=1, per_device_train_batch_size=4, learning_rate=1e-2)),
        train_dataset=Dataset.from_json(str(tmp_path / "out" / "pairs.jsonl")),
        processing_class=smol_tokenizer,
        peft_config=LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    trainer.train()
    moved = [bool(value.any()) for name, value in trainer.model.named_parameters() if "lora_B" in name]
    assert moved
    assert any(moved), "B starts at zero"
    assert fmean(entry["loss"] for entry in trainer.state.log_history if "loss" in entry) == pytest.approx(
        0.693, abs=0.01
    )
