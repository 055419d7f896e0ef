"""Runs trained side by side end where each would have ended alone, learn from TRL's losses, and are read as judges are."""

from __future__ import annotations

import importlib
import itertools
import json
import re
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from mrjudge_reward.errors import ConfigError
from mrjudge_reward.prompting.formats import SENTIMENT, Choice
from mrjudge_reward.training.items import from_choice, from_ratings
from mrjudge_reward.training.tasks import Problem
from recipes.common.config import read_config
from recipes.data.judge_data import TaskConfig
from recipes.judge import train_rl
from recipes.judge.train_rl import RLRecipe, VerdictReward
from recipes.judge.train_sft import SFTRecipe
from recipes.studies import side_by_side_commands, side_by_side_runs, train_side_by_side
from recipes.studies.side_by_side_model import Base, logprobs
from recipes.studies.side_by_side_rows import HONOURED, INDIFFERENT, Plan, Rows, batches, plan_of, prompt_rows
from recipes.studies.side_by_side_runs import Run, one_step, reward, train
from recipes.studies.train_side_by_side import SideBySideRecipe, settings_of
from tests.support import ROOT
from tests.support.small_models import small_text_model
from tests.support.warm_python import run_python

pytestmark = pytest.mark.usefixtures("vllm_hidden")

LORA = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "down_proj"], "layers_to_transform": [1]}
VOCABULARY = 64
PAIR = Choice(labels=("A", "B"), template="glance")


def tiny() -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, num_key_value_heads=1, **sizes)).eval()


def plan(kind: Any, **values: Any) -> Plan:
    usual: dict[str, Any] = {
        "kind": kind, "steps": 3, "batch": 4, "learning_rate": 0.05, "beta2": 0.95, "schedule": "cosine", "warmup": 1,
        "clip": 1.0, "seed": 0, "generations": 4, "bonus": 0.5, "start": None, "lora": LORA,
    }  # fmt: skip
    return Plan(**usual | values)


def sft_rows(seed: int) -> Rows:
    draw = np.random.default_rng(seed)
    lengths = draw.integers(5, 12, size=10)
    return Rows.of([draw.integers(1, VOCABULARY, size=n).tolist() for n in lengths], [n - 3 for n in lengths])


def rl_rows(seed: int) -> Rows:
    draw = np.random.default_rng(seed)
    lengths = draw.integers(5, 12, size=10)
    return Rows.of(
        [draw.integers(1, VOCABULARY, size=n).tolist() for n in lengths],
        lengths.tolist(),
        [[(token, float(token % 2), token - 3) for token in range(3, 3 + 40)] for _ in lengths],
        [True] * 10,
    )


def written(folder: Path, runs: dict[str, tuple[Plan, Rows]]) -> Path:
    for name, (how, rows) in runs.items():
        (folder / name).mkdir(parents=True)
        rows.save(folder / name / "rows.npz")
        (folder / name / "plan.json").write_text(json.dumps(asdict(how)))
    return folder


RUNS = {
    "a": (plan("sft"), sft_rows(1)),
    "b": (plan("sft", seed=5, steps=2, learning_rate=0.01), sft_rows(2)),
    "c": (plan("rl", seed=7), rl_rows(3)),
    "d": (plan("rl", start="b", steps=2), rl_rows(4)),
}


def adapters(out: Path, names: Any = RUNS) -> dict[str, torch.Tensor]:
    base = Base.of(tiny(), LORA)
    return {name: base.load(out / name) for name in names}


def test_a_run_ends_where_it_would_have_ended_alone(tmp_path: Path):
    together = written(tmp_path / "together", RUNS)
    assert train(Base.of(tiny(), LORA), together, list(RUNS), "cpu", None)
    alone = written(tmp_path / "alone", RUNS)
    for name in RUNS:
        assert train(Base.of(tiny(), LORA), alone, [name], "cpu", None)
    found, wanted = adapters(together), adapters(alone)
    for name in RUNS:
        assert torch.allclose(found[name], wanted[name], atol=2e-6), name
        assert not torch.equal(wanted[name], wanted["a" if name != "a" else "b"])


def test_an_interrupted_run_goes_on_to_the_same_end(tmp_path: Path):
    whole, parts = written(tmp_path / "whole", RUNS), written(tmp_path / "parts", RUNS)
    train(Base.of(tiny(), LORA), whole, list(RUNS), "cpu", None)
    calls = 0
    while not train(Base.of(tiny(), LORA), parts, list(RUNS), "cpu", 0.0):
        calls += 1
        assert calls < 10
    assert calls >= 3, "a deadline that is over lets one step happen"
    for name, adapter in adapters(parts).items():
        assert torch.allclose(adapter, adapters(whole)[name], atol=2e-6), name
    assert not list(parts.glob("*/state.pt")), "what is done needs no state"


def test_the_warm_up_learns_from_the_loss_of_transformers(tmp_path: Path):
    from peft import LoraConfig, get_peft_model

    rows = sft_rows(1)
    base = Base.of(tiny(), LORA)
    run = Run.begin("a", written(tmp_path, {"a": (plan("sft", learning_rate=1.0), rows)}) / "a", base, "cpu")
    run.adapter.data = torch.randn_like(run.adapter) * 0.3
    chosen = [0, 3, 4, 7]
    width = int(rows.lengths[chosen].max())
    ids = torch.from_numpy(rows.padded(chosen, width))
    base.place(run.adapter[None])
    at = torch.tensor(run.targets(chosen)).T
    loss, _ = run.loss(base.model.get_output_embeddings()(base.hidden(ids)[at[0], at[1]]).float(), chosen, ids)
    loss.backward()

    model = get_peft_model(tiny(), LoraConfig(task_type="CAUSAL_LM", **LORA))
    named = dict(model.named_parameters())
    sizes = [a * b for a, b in base.shapes]
    parameters = [named[name.replace(".weight", ".default.weight")] for name in base.names()]
    for parameter, part, shape in zip(parameters, run.adapter.data.split(sizes), base.shapes, strict=True):
        parameter.data = part.view(shape).clone()
    labels = ids.clone()
    for place, row in enumerate(chosen):
        labels[place, : rows.answers[row]] = -100
        labels[place, rows.lengths[row] :] = -100
    wanted = model(input_ids=ids, attention_mask=(torch.arange(width) < torch.tensor(rows.lengths[chosen])[:, None]),
                   labels=labels).loss  # fmt: skip
    wanted.backward()
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)
    assert torch.allclose(run.adapter.grad, torch.cat([p.grad.flatten() for p in parameters]), atol=1e-6)


def test_reinforcement_makes_what_pays_more_likely_and_learns_nothing_from_equal_rewards(tmp_path: Path):
    base = Base.of(tiny(), LORA)
    rows = rl_rows(3)
    run = Run.begin("c", written(tmp_path, {"c": (plan("rl", generations=64), rows)}) / "c", base, "cpu")
    logits = torch.zeros(4, VOCABULARY, requires_grad=True)
    loss, accuracy = run.loss(logits, [0, 1, 2, 3], torch.zeros(4, 1, dtype=torch.long))
    loss.backward()
    right, wrong = list(range(3, 43, 2)), [0, 1, 2, *range(43, VOCABULARY)]
    assert logits.grad is not None
    assert (logits.grad[:, right].sum(1) < 0).all(), "descent raises the verdicts that are right"
    assert (logits.grad[:, wrong].sum(1) > 0).all()
    assert 0 < accuracy < 1
    certain = torch.full((4, VOCABULARY), -30.0)
    certain[:, 3] = 30.0
    certain.requires_grad_()
    run.loss(certain, [0, 1, 2, 3], torch.zeros(4, 1, dtype=torch.long))[0].backward()
    assert certain.grad is not None
    assert certain.grad.abs().max() == 0


def problems_asked() -> list[tuple[str, Problem]]:
    problems = []
    for question in ("One?", "Two?"):
        item = from_choice(question, ["good", "bad"], gold=0)
        problems += [("pairs", Problem(item, (0, 1), PAIR)), ("pairs", Problem(item, (1, 0), PAIR))]
    for text, worth in (("fine", 3.0), ("awful", -2.0)):
        problems.append(("alone", Problem(from_ratings("q", [text], [worth], scale=(-4, 4)), (0,), SENTIMENT)))
    return problems


def test_replies_are_paid_what_the_other_recipe_pays(smol_tokenizer: Any):
    problems = problems_asked()
    rows = prompt_rows(problems, smol_tokenizer)
    assert rows.twins.tolist() == [True] * 4 + [False] * 2
    tokens, accuracies, _ = rows.verdicts(range(6))
    said = [
        smol_tokenizer.encode(text)[0] for text in ("A", " A", "B", " B", " positive", " negative", "Positive", "C")
    ]
    replies = torch.tensor([said] * 6)
    paid, accuracy = reward(
        replies, torch.from_numpy(tokens), torch.from_numpy(accuracies), torch.from_numpy(rows.twins), 0.5
    )
    reward_func = VerdictReward(problems, frozenset(), opened=True, bonus=0.5)
    numbers = [number for number in range(6) for _ in said]
    texts = [smol_tokenizer.decode([token]) for _ in range(6) for token in said]
    wanted = reward_func(completions=texts, completion_ids=[[t] for _ in range(6) for t in said], problem=numbers)
    assert paid.flatten().tolist() == pytest.approx(wanted)
    assert accuracy[0].tolist() == [1, 1, 0, 0, 0, 0, 0, 0], (
        "a label counts with a space before it, as it does in reading"
    )
    assert accuracy[5].tolist() == [0, 0, 0, 0, 0, 1, 0, 0]


def test_verdicts_are_read_as_the_engine_reads_them(smol_path: str, smol_tokenizer: Any):
    from transformers import AutoModelForCausalLM

    from mrjudge_reward.engines.embedded import embedded_adapter_path
    from mrjudge_reward.engines.local.engine import TransformersEngine
    from mrjudge_reward.prompting.sanitizing import Sanitizer
    from mrjudge_reward.types import Reply, Request

    problems = problems_asked()
    config = json.loads((embedded_adapter_path() / "adapter_config.json").read_text())
    lora = {name: config[name] for name in ("r", "lora_alpha", "target_modules", "layers_to_transform")}
    base = Base.of(AutoModelForCausalLM.from_pretrained(smol_path, dtype=torch.float32), lora)
    trained = base.load(embedded_adapter_path())
    rows = prompt_rows(problems, smol_tokenizer)
    none, found = logprobs(base, torch.stack([torch.zeros_like(trained), trained]), rows, "cpu", 700)

    engine = TransformersEngine(smol_path, adapter=str(embedded_adapter_path()), device="cpu", dtype="float32")
    guard = Sanitizer(engine.count_tokens, 500, engine.reserved)
    requests = [
        Request(one.render(guard), prefill=one.format.answer_open, labels=one.format.read_labels(len(one.slots)))
        for _, one in problems
    ]
    replies = engine.label_logprobs(requests)
    for row, reply in zip(found, replies, strict=True):
        assert isinstance(reply, Reply)
        assert row.tolist() == pytest.approx(reply.label_logprobs, abs=2e-3)
    assert np.abs(none - found).max() > 1


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(2, 60),
    batch=st.sampled_from([2, 4, 8]),
    kind=st.sampled_from(["sft", "rl"]),
    seed=st.integers(0, 9),
)
def test_all_rows_come_before_any_comes_again_and_two_orders_stay_together(
    count: int, batch: int, kind: str, seed: int
):
    draw = np.random.default_rng(seed)
    rows = Rows.of([[1] * int(n) for n in draw.integers(1, 9, size=count)], [1] * count)
    how = plan(kind, batch=batch)
    window = 8 * batch
    steps = list(itertools.islice(batches(rows, how), 16))
    assert steps == list(itertools.islice(batches(rows, how), 16)), "the same order each time"
    assert all(len(step) == batch for step in steps)
    usable = count - count % 2 if kind == "rl" else count
    shown = [row for step in steps[:8] for row in step]
    times = [shown.count(row) for row in range(usable)]
    assert max(times) - min(times) <= 1
    assert sum(times) == window
    if kind == "rl":
        assert all(b == a + 1 and a % 2 == 0 for step in steps for a, b in zip(step[::2], step[1::2], strict=True))


def test_batches_of_different_sizes_cannot_share_a_pass(tmp_path: Path):
    base = Base.of(tiny(), LORA)
    out = written(tmp_path, {"a": RUNS["a"], "b": (replace(RUNS["b"][0], batch=2), RUNS["b"][1])})
    runs = [Run.begin(name, out / name, base, "cpu") for name in ("a", "b")]
    with pytest.raises(ConfigError, match=r"one size; got \[2, 4\]"):
        one_step(base, runs, "cpu")


def test_a_setting_that_cannot_be_honoured_is_refused():
    recipe = SFTRecipe(training={"gradient_accumulation_steps": 4, "learning_rate": 1e-4}, lora=LORA)
    with pytest.raises(ConfigError, match=r"training\.gradient_accumulation_steps"):
        plan_of("sft", recipe, None, sft_rows(1), None, LORA)
    with pytest.raises(ConfigError, match="needs lora"):
        plan_of("sft", SFTRecipe(training={}), None, sft_rows(1), None, None)
    joint = RLRecipe(tasks={"a": {}}, joint_orders=True, opened=True, training={})
    with pytest.raises(ConfigError, match="do without joint_orders"):
        plan_of("rl", joint, SimpleNamespace(num_generations=2, per_device_train_batch_size=4), sft_rows(1), None, LORA)


@pytest.mark.parametrize(
    ("starts", "message"),
    [({"a": "b", "b": "a"}, "no run before it"), ({"a": "c", "b": None}, "'c-seed0'"), ({"a": "a"}, "no run before")],
)
def test_runs_that_wait_for_each_other_are_refused(starts: dict[str, str | None], message: str):
    runs = {name: {"kind": "sft", "recipe": "x.yaml", "start": start} for name, start in starts.items()}
    with pytest.raises(ConfigError, match=message):
        SideBySideRecipe(lora=LORA, runs=runs, evaluation="y.yaml").all_runs()


def test_the_table_of_the_recipes_names_runs_that_start_from_their_own_seed():
    recipe = SideBySideRecipe(**read_config(str(ROOT / "recipes/studies/table.yaml")))
    runs = recipe.all_runs()
    assert len(runs) == len(recipe.runs) * 2
    assert runs["sft-multi-rl-seed2"].start == "sft-multi-seed2"
    assert "training.seed=2" in runs["sft-multi-seed2"].set


SMALL = """
model: MODEL
lora: {r: 2, lora_alpha: 4, target_modules: [q_proj], layers_to_transform: [1]}
evaluation: RECIPES/evaluate/eval_cpu.yaml
evaluation_set: [tasks.film_pairs.eval_count=2, tasks.film_alone=null, tasks.amazon_pairs.eval_count=2,
  tasks.amazon_alone=null]
runs:
  warm:
    kind: sft
    recipe: RECIPES/judge/sft_cpu.yaml
    set: [tasks.film_pairs.count=4, tasks.tweet_pairs=null, tasks.editorial_pairs=null, tasks.film_alone=null,
      training.max_steps=1, training.per_device_train_batch_size=2]
  reinforced:
    kind: rl
    recipe: RECIPES/judge/rl_cpu.yaml
    start: warm
    set: [adapter=null, tasks.film_pairs.count=2, tasks.tweet_pairs=null, tasks.film_alone=null, training.max_steps=1,
      training.per_device_train_batch_size=4, training.num_generations=2]
"""


def test_the_command_goes_from_recipes_to_a_table(smol_tokenizer: Any, tmp_path: Path):
    config = tmp_path / "small.yaml"
    model = small_text_model(smol_tokenizer, tmp_path / "model")
    config.write_text(SMALL.replace("RECIPES", str(ROOT / "recipes")).replace("MODEL", model))
    command = ["-m", "recipes.studies.train_side_by_side", str(config), "--out", str(tmp_path / "out")]
    early = run_python(*command, "--stages", "train")
    assert early.returncode != 0
    assert "run the stage prepare" in early.stderr
    done = run_python(*command)
    assert done.returncode == 0, done.stderr[-3000:]
    out = tmp_path / "out"
    for name in ("base", "warm-seed0", "reinforced-seed0"):
        report = json.loads((out / name / "report.json").read_text())
        assert report["tasks"].keys() == {"film_pairs", "amazon_pairs"}
        assert report["tasks"]["film_pairs"]["problems"] == 4
        assert json.loads((out / name / "dev" / "report.json").read_text())["tasks"].keys() == {"film_pairs"}
    assert (out / "reinforced-seed0" / "adapter_config.json").is_file()
    table = run_python("-m", "recipes.evaluate.table", out, check=True)
    assert "| reinforced | 1 | film_pairs |" in table.stdout


TRACE = {
    "messages": [{"role": "user", "content": "Which is best, A or B?"}], "trace": "A is round.", "verdict": "A",
    "gold": "A", "format": "choice", "task": "quartz",
}  # fmt: skip
WRITTEN = [
    "judge.engine=transformers", "judge.context_tokens=null", "judge.engine_kwargs=null", "judge.dtype=null",
    "judge.max_tokens=4", "tasks.quartz.eval_count=1", "tasks.reasoning_gym=null", "tasks.social_iqa=null",
    "tasks.mmlu=null", "tasks.quartz_alone=null", "tasks.social_iqa_ranking=null",
]  # fmt: skip
READ = ["tasks.quartz.eval_count=1", "tasks.quartz_alone.eval_count=1", *WRITTEN[-5:-2]]


def test_the_study_of_reasoning_goes_from_traces_to_a_table(
    smol_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """As it stands, but for sizes; what other commands do is done in this process."""
    called: list[str] = []

    def here(module: str, config: Path, changes: list[str], *more: object) -> None:
        called.append(module)
        arguments = [str(config), *(part for change in changes for part in ("--set", change)), *map(str, more)]
        monkeypatch.setattr("sys.argv", [module, *arguments])
        importlib.import_module(module).main()

    monkeypatch.setattr(side_by_side_commands, "run", here)
    monkeypatch.chdir(ROOT)
    out, model = tmp_path / "out", small_text_model(smol_tokenizer, tmp_path / "model")
    small = ["tasks.quartz.count=2", "tasks.reasoning_gym=null", "training.max_steps=1"]
    study = read_config(str(ROOT / "recipes/studies/reasoning/study.yaml"))
    runs = {
        "sft": study["runs"]["sft"] | {"set": [*small, "training.per_device_train_batch_size=2"]},
        "sft-reasoned": study["runs"]["sft-reasoned"],
        "sft-rl-reasoned": study["runs"]["sft-rl-reasoned"] | {
            "set": [*small, "training.per_device_train_batch_size=4", "training.num_generations=2",
                    "training.max_completion_length=3"]
        },
    }  # fmt: skip
    runs["sft-reasoned"]["set"] += ["training.max_steps=1", "training.per_device_train_batch_size=2"]
    changes = {
        "model": model, "lora": LORA, "runs": runs, "evaluation_set": READ, "written_set": WRITTEN,
    }  # fmt: skip
    (out / "traces/judged").mkdir(parents=True)  # a small model of random weights has none that are right
    rows = [
        TRACE | {
            "messages": [{"role": "user", "content": f"Question {number}, A or B?"}],
            "trace": f"{right} is round, {number} times.", "verdict": right, "gold": right,
        }
        for number, right in enumerate("ABAAB")
    ]  # fmt: skip
    (out / "traces/judged/traces.jsonl").write_text("\n".join(map(json.dumps, [*rows, TRACE | {"verdict": "B"}])))
    config = str(ROOT / "recipes/studies/reasoning/study.yaml")
    command = ["x", config, "--out", str(out), *(f"--set={n}={json.dumps(v)}" for n, v in changes.items())]
    for stages in (["--stages", "traces"], [], []):
        monkeypatch.setattr("sys.argv", [*command, *stages])
        train_side_by_side.main()
    assert called == ["recipes.data.synthesize", "recipes.judge.train_rl", *["recipes.evaluate.judge"] * 3], "once each"
    warm_up = Rows.load(out / "sft-reasoned-seed1/rows.npz")
    learned = smol_tokenizer.decode(warm_up.padded([0], int(warm_up.lengths[0]))[0])
    assert len(warm_up) == 4, "as many of either label"
    assert re.search(r"([AB]) is round, \d times.</think><answer>\1</answer>", learned)
    started = read_config(str(out / "sft-rl-reasoned-seed1/run.yaml"))
    assert started["adapter"] == str(out / "sft-reasoned-seed1")
    capsys.readouterr()
    monkeypatch.setattr("sys.argv", ["x", str(out)])
    importlib.import_module("recipes.evaluate.table").main()
    lines = capsys.readouterr().out
    assert set(re.findall(r"\| (\S+) \| 1 \| quartz \|", lines)) == {
        "base", "base-written", "sft", "sft-reasoned", "sft-rl-reasoned"
    }  # fmt: skip


@pytest.mark.parametrize("study", ["table", "reasoning/study", "reasoning/large"])
def test_every_run_of_a_study_is_one_that_its_trainer_takes(study: str):
    from trl import GRPOConfig

    path = ROOT / f"recipes/studies/{study}.yaml"
    recipe = SideBySideRecipe(**read_config(str(path)))
    for name, run in recipe.all_runs().items():
        settings = settings_of(recipe, run, path, Path("runs"))
        found = SFTRecipe(**settings) if run.kind == "sft" else RLRecipe(**settings)
        for task in found.tasks.values():
            TaskConfig(**task)
        if run.alone:
            assert isinstance(found, RLRecipe)
            trainer = GRPOConfig(**found.training | {"use_cpu": True, "output_dir": "runs", "report_to": "none"})
            train_rl.checked(found, trainer)
        else:
            assert not found.training.keys() - HONOURED - INDIFFERENT, name


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ([{"kind": "sft", "verdict": "written"}], "name the evaluation"),
        ([{"kind": "sft", "alone": True}], "side by side"),
        (
            [{"kind": "rl", "alone": True}, {"kind": "rl", "start": "a"}],
            "run 'b-seed0' starts from 'a-seed0', which is trained after",
        ),
        (
            [{"kind": "rl", "alone": True, "start": "b"}, {"kind": "rl", "alone": True}],
            "'b-seed0', which is trained after it",
        ),
    ],
)
def test_a_run_that_cannot_be_trained_or_measured_so_is_refused(runs: list[dict[str, Any]], message: str):
    named = {name: run | {"recipe": "x.yaml"} for name, run in zip("ab", runs, strict=False)}
    with pytest.raises(ConfigError, match=message):
        SideBySideRecipe(lora=LORA, runs=named, evaluation="y.yaml")


def test_a_killed_run_goes_on_from_the_last_saved_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole, killed = written(tmp_path / "whole", RUNS), written(tmp_path / "killed", RUNS)
    train(Base.of(tiny(), LORA), whole, ["a"], "cpu", None)
    monkeypatch.setattr(side_by_side_runs, "SAVE_S", 0.0)
    steps = iter(range(3))

    def interrupted(*given: Any) -> Any:
        if next(steps) == 2:
            raise KeyboardInterrupt
        return one_step(*given)

    with monkeypatch.context() as patch:
        patch.setattr(side_by_side_runs, "one_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(Base.of(tiny(), LORA), killed, ["a"], "cpu", None)
    assert torch.load(killed / "a" / "state.pt", weights_only=True)["step"] == 2
    train(Base.of(tiny(), LORA), killed, ["a"], "cpu", None)
    assert torch.allclose(adapters(killed, ["a"])["a"], adapters(whole, ["a"])["a"], atol=2e-6)
