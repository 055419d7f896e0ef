"""Policies trained on a judge, and measured by something else: every recipe runs, and its measures are what they say."""

from __future__ import annotations

import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from mrjudge_reward import ConfigError, Group, InputError
from mrjudge_reward.engines.embedded import embedded_adapter_path
from mrjudge_reward.judge import JudgeConfig
from mrjudge_reward.reranker import Reranker
from recipes.common.config import read_config
from recipes.policy import dpo_pairs, evaluate, policies, train
from recipes.policy.random_judge import random_judge
from recipes.studies import policy_study
from tests.support import ROOT
from tests.support.interrupted import interrupted
from tests.support.small_models import small_text_model
from tests.support.warm_python import warm_python

pytestmark = pytest.mark.usefixtures("vllm_hidden")

PROMPTS = [f"Opening number {n} of a film" for n in range(80)]


@pytest.fixture(scope="module")
def tiny(smol_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    return small_text_model(smol_tokenizer, tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def prompt_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS), "utf-8")
    return str(path)


def run(module: Any, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["recipe", *arguments])
    module.main()


def settings(*pairs: str) -> list[str]:
    return [word for pair in pairs for word in ("--set", pair)]


def graded(tiny: str) -> str:
    """A judge whose verdicts mean nothing, and which costs nothing: each text alone."""
    return f"{{model: {tiny}, format: sentiment, verdict: logprobs, min_label_mass: 0.0}}"


def compared(tiny: str) -> str:
    """The same, two texts at a time."""
    asked = "format: choice, schedule: ring, rating: bradley_terry, verdict: logprobs, min_label_mass: 0.0"
    return f"{{model: {tiny}, {asked}}}"


def online(tiny: str, prompts: str, out: Path, *more: str) -> list[str]:
    return [
        str(ROOT / "recipes/policy/policy_cpu.yaml"),
        *settings(
            f"model={tiny}", f"prompts={prompts}", f"training.output_dir={out}", f"judge={graded(tiny)}",
            "training.max_steps=2",
            "training.per_device_train_batch_size=8", "training.num_generations=4", "training.save_steps=1",
            "training.max_completion_length=4", *more,
        ),
    ]  # fmt: skip


def steps(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text("utf-8").splitlines()]


# -- training -----------------------------------------------------------------------------------------------------------


def test_grpo_on_selected_completions_runs_and_goes_on_where_it_was(
    tiny: str, prompt_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    arguments = online(tiny, prompt_file, tmp_path, "candidates=6", "how=spread")
    run(train, monkeypatch, *arguments)
    assert [row["step"] for row in steps(tmp_path)] == [1, 2]
    assert all(row["failed"] == 0 and row["generate_s"] > row["judge_s"] for row in steps(tmp_path)), (
        "what is judged while generating is not judged again"
    )
    assert (tmp_path / "adapter_model.safetensors").is_file()
    assert json.loads((tmp_path / "recipe.json").read_text())["candidates"] == 6
    assert "2 steps of grpo" in capsys.readouterr().out
    whole = (tmp_path / "adapter_model.safetensors").read_bytes()
    with pytest.raises(ConfigError, match=r"changed: training\.max_steps\)"):
        run(train, monkeypatch, *arguments, *settings("training.max_steps=3"))
    run(train, monkeypatch, *arguments)
    assert "it is finished: nothing is trained" in capsys.readouterr().out
    interrupted(tmp_path, steps=1)
    with (tmp_path / "log.jsonl").open("a", encoding="utf-8") as log:
        log.write('{"step": 3, "what": "a step after the last checkpoint, before a crash"}\n{"step": 4, "cut o')
    run(train, monkeypatch, *arguments)
    assert [row["step"] for row in steps(tmp_path)] == [1, 2]
    assert (tmp_path / "adapter_model.safetensors").read_bytes() == whole
    assert not (tmp_path / "checkpoint-3").exists()


def test_rloo_runs_from_the_same_config_and_the_judge_is_set_there(
    tiny: str, prompt_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    more = ("algorithm=rloo", "training.scale_rewards=null", "training.max_steps=1", f"judge={compared(tiny)}")
    run(train, monkeypatch, *online(tiny, prompt_file, tmp_path, *more))
    (row,) = steps(tmp_path)
    assert 0 <= row["consistency"] <= 1
    assert row["grade"] is None


def test_the_judge_that_is_in_the_package_judges_on_the_policys_own_base(
    smol_path: str, prompt_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    more = (
        "shared_base=true", "judge={adapter: embedded}", "training.max_steps=1", "training.save_steps=5",
        "training.per_device_train_batch_size=4",
    )  # fmt: skip
    run(train, monkeypatch, *online("embedded", prompt_file, tmp_path, *more))
    (row,) = steps(tmp_path)
    assert row["failed"] == 0
    assert row["spread"] > 0
    assert not [path for path in tmp_path.rglob("*") if path.name == "judge"], "the policy alone is saved"


def test_dpo_trains_on_pairs_that_were_built_by_the_recipe_before(
    tiny: str, prompt_file: str, smol_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run(
        dpo_pairs, monkeypatch, str(ROOT / "recipes/policy/dpo_pairs_cpu.yaml"), "--out", str(tmp_path),
        *settings(f"model={tiny}", f"prompts={prompt_file}", "count=8", "max_new_tokens=6", f"judge={graded(tiny)}",
                  "margin=0.0",
                  "chunk=4"),
    )  # fmt: skip
    pairs = tmp_path / "pairs.jsonl"
    rows = [json.loads(line) for line in pairs.read_text("utf-8").splitlines()]
    assert 2 <= len(rows) <= 8
    assert all(row["prompt"] in PROMPTS and row["score_chosen"] > row["score_rejected"] for row in rows)
    run(
        train, monkeypatch, str(ROOT / "recipes/policy/policy_dpo_cpu.yaml"),
        *settings(f"model={tiny}", f"pairs={pairs}", f"training.output_dir={tmp_path / 'dpo'}", "training.max_steps=2",
                  "training.per_device_train_batch_size=2", "training.save_steps=9"),
    )  # fmt: skip
    assert (tmp_path / "dpo" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"algorithm": "dpo"}, "pairs and algorithm 'dpo' go together"),
        ({"pairs": "x"}, "pairs and algorithm 'dpo' go together"),
        ({"algorithm": "rloo", "candidates": 9}, "GRPO alone"),
        ({"algorithm": "dpo", "pairs": "x", "judge": {"adapter": "embedded"}}, "DPO asks no judge"),
        ({"shared_base": True}, "needs it frozen"),
        ({"adapter": "x", "lora": {"r": 4}}, "not both"),
        ({"algoritm": "grpo"}, "did you mean 'algorithm'"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(values: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        train.PolicyRecipe(**{"training": {}, **values})


def test_a_judge_on_another_base_is_refused_and_the_packages_adapter_is_found(tmp_path: Path):
    from trl import GRPOConfig

    settings = GRPOConfig(str(tmp_path), num_generations=4, per_device_train_batch_size=4, use_cpu=True, bf16=False)
    recipe = train.PolicyRecipe(shared_base=True, lora={"r": 4}, judge={"model": "Qwen/Qwen3-0.6B"}, training={})
    with pytest.raises(ConfigError, match="cannot share a base"):
        train.reward_of(recipe, settings)
    own = train.PolicyRecipe(shared_base=True, lora={"r": 4}, judge={"adapter": "embedded"}, training={})
    assert train.reward_of(own, settings).adapter == str(embedded_adapter_path())


# -- what a policy writes -----------------------------------------------------------------------------------------------


def test_the_same_seed_writes_the_same_and_leaves_the_random_state_alone(tiny: str):
    model, tokenizer = policies.load_policy(tiny)
    prompts = [*PROMPTS[:33], [{"role": "user", "content": "q"}]]
    torch.manual_seed(5)
    first = policies.complete(model, tokenizer, prompts, 6, seed=1)
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(1))
    assert policies.complete(model, tokenizer, prompts, 6, seed=1) == first
    assert policies.complete(model, tokenizer, prompts, 6, seed=2) != first
    assert len(first) == 34
    assert all(len(one.ids) == 6 or one.ended for one in first)


def test_the_loss_of_a_completion_is_that_of_its_tokens_alone(tiny: str):
    model, tokenizer = policies.load_policy(tiny)
    prompts = ["A", "A much longer prompt than the other"]
    completions = [
        policies.Completion(text, tuple(tokenizer(text)["input_ids"]), False) for text in (" one two three", " no")
    ]
    found = policies.losses(model, tokenizer, prompts, [*completions[:1], policies.Completion("", (), True)])
    assert found[1] == 0
    for prompt, completion, loss in zip(
        prompts, completions, policies.losses(model, tokenizer, prompts, completions), strict=True
    ):
        ids = [*tokenizer(prompt)["input_ids"], *completion.ids]
        with torch.no_grad():
            logprobs = torch.log_softmax(model(torch.tensor([ids])).logits[0].float(), dim=-1)
        start = len(ids) - len(completion.ids)
        alone = -sum(logprobs[place - 1, ids[place]].item() for place in range(start, len(ids)))
        assert loss == pytest.approx(alone, rel=1e-4)


def test_prompts_are_cut_by_their_content_and_a_line_without_one_is_named(prompt_file: str, tmp_path: Path):
    sides = {split: policies.prompts_of(prompt_file, split) for split in ("train", "dev", "test")}
    assert sorted(prompt for side in sides.values() for prompt in side) == sorted(PROMPTS)
    assert len(sides["train"]) > 50
    for text, message in (
        ('{"prompt": 3}', "line 2: prompt must be text"),
        ("{", "line 2: "),
        (
            '{"prompt": [{"role": "user", "content": [{"type": "image", "image": "x"}]}]}',
            "line 2: prompt holds an image",
        ),
    ):
        bad = tmp_path / "bad.jsonl"
        bad.write_text(f'{{"prompt": "p"}}\n{text}\n', "utf-8")
        with pytest.raises(InputError, match=message):
            policies.prompts_of(str(bad), "train")
    with pytest.raises(ConfigError, match="no adapter at nowhere"):
        policies.load_policy("embedded", "nowhere")


# -- measuring ----------------------------------------------------------------------------------------------------------


def test_the_yardstick_knows_good_from_bad_and_nothing_that_judges_knows_the_yardstick():
    score = evaluate.yardstick()
    assert score("a wonderful, moving film") > 0.5
    assert score("a dull, horrible mess") < -0.5
    assert score("") == 0
    users = {
        str(path.relative_to(ROOT))
        for folder in ("mrjudge_reward", "integrations", "recipes")
        for path in (ROOT / folder).rglob("*.py")
        if "vaderSentiment.vaderSentiment" in path.read_text(encoding="utf-8")
    }
    assert users == {"recipes/policy/evaluate.py"}


def test_distinct_runs_of_words():
    assert evaluate.distinct(["a b a", "b a"], 1) == 2 / 5
    assert evaluate.distinct(["a b a", "b a"], 2) == 2 / 3
    assert evaluate.distinct(["a", ""], 2) is None


def test_a_share_of_the_gain_is_one_for_the_best_nothing_for_chance_and_less_for_the_worst():
    share = evaluate.share_of_gain
    values = [[0.0, 1.0], [0.5, 0.1], [0.2, 0.2]]
    best = share([1, 0, 0], values, 200, 0)
    assert best["share"] == (1.0, 1.0, 1.0)
    assert best["gain"][0] == pytest.approx((0.5 + 0.2 + 0) / 3)
    assert share([None] * 3, values, 200, 0) | {"yardstick": 0} == {
        "yardstick": 0, "gain": (0.0, 0.0, 0.0), "share": (0.0, 0.0, 0.0), "unknown": 3,
    }  # fmt: skip
    assert share([0, 1, 0], values, 200, 0)["share"][0] == pytest.approx(-1)
    assert share([0, 0], [[1.0, 1.0], [2.0, 2.0]], 200, 0)["share"] is None, "there was nothing to gain"


def test_a_random_judge_gains_nothing_and_another_seed_judges_otherwise():
    groups = [Group.of(f"p{n}", [f"{n} {k}" for k in range(4)], f"g{n}") for n in range(150)]
    values = [[float((7 * n + 3 * k) % 11) for k in range(4)] for n in range(150)]
    chosen = {}
    for seed in (0, 1):
        ranked = Reranker(random_judge(seed)).rank_groups(groups)
        chosen[seed] = [one.best for one in ranked]
        assert None not in chosen[seed]
        _, low, high = evaluate.share_of_gain(chosen[seed], values, 500, 0)["share"]
        assert low < 0 < high
    assert chosen[0] != chosen[1]


def test_differences_are_paired():
    noise = [[float(n), float(-n)] for n in range(-20, 20)]
    same = [[1.0, 1.0]] * 40
    before = {"yardstick": noise, "length": same, "ended": same, "loss": same}
    after = before | {"yardstick": [[a + 0.5 for a in row] for row in noise], "loss": [[2.0, 4.0]] * 40}
    found = evaluate.differences(before, after, 200, 0)
    assert found["yardstick"] == pytest.approx((0.5, 0.5, 0.5))
    assert found["length"] == (0, 0, 0)
    assert found["loss"] == pytest.approx((2, 2, 2))


@pytest.mark.usefixtures("smol_path")
def test_policies_and_best_of_n_are_measured_and_written(
    tiny: str, prompt_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from peft import LoraConfig, get_peft_model

    model, _ = policies.load_policy(tiny)
    get_peft_model(model, LoraConfig(r=4, init_lora_weights=False)).save_pretrained(tmp_path / "after")
    run(
        evaluate, monkeypatch, str(ROOT / "recipes/policy/policy_eval_cpu.yaml"),
        "--out", str(tmp_path / "report"),
        *settings(f"model={tiny}", f"after={tmp_path / 'after'}", f"prompts={prompt_file}", "split=dev", "count=4",
                  "seeds=[0, 1]", "max_new_tokens=5", "best_of=[2, 3]", "votes=[1, 2]", "best_of_count=3",
                  f"judge={compared(tiny)}", "resamples=50"),
    )  # fmt: skip
    report = json.loads((tmp_path / "report" / "report.json").read_text("utf-8"))
    rows = report["policies"]["policies"]
    for row in rows.values():
        assert row["perplexity"] == pytest.approx(math.exp(row["loss"][0]))
        assert -1 <= row["yardstick"][0] <= 1
    assert report["policies"]["difference"]["loss"][0] == pytest.approx(
        rows["after"]["loss"][0] - rows["before"]["loss"][0]
    )
    assert rows["before"]["yardstick"] != rows["after"]["yardstick"] or rows["before"]["loss"] != rows["after"]["loss"]
    for count in (2, 3):
        found = report["best of n"]["rows"][f"best of {count}"]
        assert set(found) == {
            "random choice", "the yardstick's own", "judge, 1 vote", "judge, 2 votes", "random judge, 1 vote",
            "random judge, 2 votes", "untrained embedded model, 1 vote",
        }  # fmt: skip
        top = found["the yardstick's own"]["yardstick"][0]
        assert all(row["yardstick"][0] <= top for row in found.values())
    text = (tmp_path / "report" / "report.md").read_text("utf-8")
    assert "| difference | " in text
    assert "| best of 3 | random judge, 2 votes | " in text


def test_the_yardstick_agrees_with_pairs_as_often_as_it_prefers_what_was_chosen(tmp_path: Path):
    def chat(text: str) -> list[dict[str, str]]:
        return [{"role": "assistant", "content": text}]

    rows = [("3", "1"), ("2", "5"), ("4", "4"), (chat("<think>0</think>7"), chat("6"))]
    file = tmp_path / "pairs.jsonl"
    file.write_text("\n".join(json.dumps({"chosen": a, "rejected": b}) for a, b in rows), "utf-8")
    found = evaluate.agreement(str(file), float, 100, 0)
    assert (found["pairs"], found["told apart"]) == (4, 3)
    assert found["agreement"][0] == pytest.approx(2 / 3)
    file.write_text(json.dumps({"chosen": "4", "rejected": "4"}), "utf-8")
    assert evaluate.agreement(str(file), float, 100, 0) == {"pairs": 1, "told apart": 0, "agreement": None}
    for bad, message in (('{"chosen": "1"}', "line 1: lacks 'rejected'"), ("", "holds no pair")):
        file.write_text(bad, "utf-8")
        with pytest.raises(InputError, match=message):
            evaluate.agreement(str(file), float, 100, 0)


def test_too_few_prompts_and_nothing_to_choose_from_are_refused(prompt_file: str):
    with pytest.raises(ConfigError, match="from 2 on"):
        evaluate.PolicyEvaluation(best_of=[1])
    with pytest.raises(InputError, match="5000 are wanted"):
        evaluate.evaluate(evaluate.PolicyEvaluation(prompts=prompt_file, count=5000))


# -- many policies ------------------------------------------------------------------------------------------------------


def test_a_study_trains_what_is_missing_and_compares_each_judge_with_the_base(
    tiny: str, prompt_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
):
    monkeypatch.setattr(sys, "executable", warm_python())  # of the trainings, each a process of its own
    for name in ("policy_cpu.yaml", "policy_eval_cpu.yaml"):
        shutil.copy(ROOT / "recipes/policy" / name, tmp_path)
    small = [
        f"model={tiny}", f"prompts={prompt_file}", "training.max_steps=1", "training.num_generations=2",
        "training.max_completion_length=3", "training.learning_rate=0.5",
    ]  # fmt: skip
    config = tmp_path / "study.yaml"
    runs = {"graded": [*small, f"judge={graded(tiny)}"], "random": [*small, "judge=random"]}
    content = {"train": "policy_cpu.yaml", "evaluation": "eval.yaml", "seeds": [3], "runs": runs}
    config.write_text(json.dumps(content), "utf-8")
    evaluation = {
        "model": tiny,
        "prompts": prompt_file,
        "split": "dev",
        "count": 5,
        "seeds": [0, 1],
        "max_new_tokens": 3,
    }
    (tmp_path / "eval.yaml").write_text(json.dumps(evaluation), "utf-8")
    command = [str(config), "--out", str(tmp_path / "out"), "--set", "training.per_device_train_batch_size=4"]
    run(policy_study, monkeypatch, *command, "--only", "random")
    assert "== random-seed3" in capfd.readouterr().out
    run(policy_study, monkeypatch, *command)
    said = capfd.readouterr().out
    assert "== graded-seed3" in said
    assert "== random" not in said, "nothing is trained twice"
    rows = json.loads((tmp_path / "out" / "report.json").read_text("utf-8"))["rows"]
    assert list(rows) == ["base", "graded", "random"]
    trained = json.loads((tmp_path / "out" / "graded-seed3" / "recipe.json").read_text("utf-8"))
    assert trained["training"]["per_device_train_batch_size"] == 4
    for name in ("graded", "random"):
        assert rows[name]["gain"][0] == pytest.approx(rows[name]["yardstick"] - rows["base"]["yardstick"][0])
        assert rows[name]["gains of seeds"] == [pytest.approx(rows[name]["gain"][0], abs=1e-3)]
        assert rows[name]["loss"][0] != 0, "a trained policy writes something else"
    assert rows["graded"]["calls"] == 4
    assert rows["graded"]["tokens"] > 40
    assert "| graded | 1 | " in (tmp_path / "out" / "report.md").read_text("utf-8")
    base, *others = (
        json.loads((tmp_path / "out" / name / "measured.json").read_text("utf-8"))
        for name in ("base", "graded-seed3", "random-seed3")
    )
    row = policy_study.row_of(others, base, [{"calls": 4.0}, {"calls": 8.0}], evaluate.PolicyEvaluation())
    assert (row["seeds"], row["calls"]) == (2, 6)
    assert row["gain"][0] == pytest.approx(sum(row["gains of seeds"]) / 2, abs=1e-3)
    content["runs"]["pairs"] = ["algorithm=dpo", "judge=null", "pairs=none.jsonl"]  # type: ignore[index]
    config.write_text(json.dumps(content), "utf-8")
    with pytest.raises(InputError, match=r"pairs learns from none.jsonl, which is not there"):
        run(policy_study, monkeypatch, *command)
    assert not (tmp_path / "out" / "pairs-seed3").exists()
    del content["runs"]["pairs"]  # type: ignore[attr-defined]
    content["runs"]["graded"].append("training.max_steps=2")  # type: ignore[index]
    config.write_text(json.dumps(content), "utf-8")
    with pytest.raises(ConfigError, match=r"other settings \(changed: training\.max_steps\)"):
        run(policy_study, monkeypatch, *command)
    with pytest.raises(ConfigError, match="no run is named best"):
        run(policy_study, monkeypatch, *command, "--only", "best")


def test_the_runs_of_the_study_are_settings_that_its_recipes_take():
    folder = ROOT / "recipes" / "studies"
    study = policy_study.PolicyStudy(**read_config(str(folder / "policy_study.yaml")))
    for name, overrides in study.runs.items():
        recipe = train.PolicyRecipe(**read_config(str(folder / study.train), overrides))
        if recipe.judge != "random":
            assert JudgeConfig(**recipe.judge).judge_format, name
    with pytest.raises(ConfigError, match="the model before training"):
        policy_study.PolicyStudy(train="a", evaluation="b", seeds=[0], runs={"base": []})
    with pytest.raises(ConfigError, match="no model that could share"):
        train.PolicyRecipe(judge="random", shared_base=True, lora={}, training={})
