"""The judge's reinforcement: rewards from the shared parser, twins in one batch, a prompt computed once, resumption."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mrjudge_reward.errors import ConfigError, InputError
from mrjudge_reward.prompting.formats import SENTIMENT, Choice, Ranking
from mrjudge_reward.training.items import from_choice, from_ratings
from mrjudge_reward.training.tasks import Problem, split_of
from recipes.common.config import read_config
from recipes.judge import train_rl
from tests.support import ROOT
from tests.support.interrupted import interrupted
from tests.support.joining_tokenizer import joining_tokenizer
from tests.support.small_models import small_text_model
from tests.support.warm_python import run_python

pytestmark = pytest.mark.usefixtures("vllm_hidden")

CONFIG = ROOT / "recipes/judge/rl_cpu.yaml"
PAIR = Choice(labels=("A", "B"))
END = 2


def loaded(*overrides: str) -> train_rl.RLRecipe:
    return train_rl.RLRecipe(**read_config(str(CONFIG), overrides))


def pair(question: str = "Which?") -> tuple[Problem, Problem]:
    item = from_choice(question, ["good", "bad"], gold=0)
    return Problem(item, (0, 1), PAIR), Problem(item, (1, 0), PAIR)


def rewards(reward_func: Any, rows: Sequence[tuple[int, str]], whole: bool = True) -> list[float]:
    chats = [[{"role": "assistant", "content": text}] for _, text in rows]
    found: list[float] = reward_func(
        completions=chats,
        completion_ids=[[1, END if whole else 1]] * len(rows),
        problem=[number for number, _ in rows],
    )
    return found


def test_a_right_verdict_earns_all_a_wrong_one_the_format_and_none_nothing():
    reward_func = train_rl.VerdictReward([("pairs", pair()[0])], frozenset({END}))
    said = ["<think>x</think><answer>A</answer>", "<answer>B</answer>", "A is best", "<answer>C</answer>", ""]
    assert rewards(reward_func, [(0, text) for text in said]) == pytest.approx([1.0, 0.1, 0.0, 0.0, 0.0])


def test_a_reply_that_ran_into_the_cap_earns_nothing():
    reward_func = train_rl.VerdictReward([("pairs", pair()[0])], frozenset({END}))
    assert rewards(reward_func, [(0, "<answer>A</answer>")], whole=False) == [0.0]
    assert reward_func(completions=["<answer>A</answer>"], completion_ids=[[]], problem=[0]) == [0.0]


def test_the_bonus_is_for_being_right_in_both_orders():
    problems = [("pairs", problem) for problem in (*pair(), *pair("Another?"))]
    reward_func = train_rl.VerdictReward(problems, frozenset({END}), bonus=0.5)
    first, second = "<answer>A</answer>", "<answer>B</answer>"
    # First order: right, right. Opposite order: right, wrong. Another pair: wrong in the one order that is asked.
    rows = [(0, first), (0, first), (1, second), (1, first), (2, second)]
    assert rewards(reward_func, rows) == pytest.approx([1.25, 1.25, 1.5, 0.1, 0.1])
    # One that always names the first slot is right half of the time and never earns the bonus.
    assert rewards(reward_func, [(0, first), (1, first)]) == pytest.approx([1.0, 0.1])


def test_the_same_order_asked_twice_is_no_twin():
    one, _ = pair()
    reward_func = train_rl.VerdictReward([("a", one), ("b", one)], frozenset({END}), bonus=0.5)
    assert rewards(reward_func, [(0, "<answer>A</answer>"), (1, "<answer>A</answer>")]) == pytest.approx([1.0, 1.0])


A, B, NONE = "<answer>A</answer>", "<answer>B</answer>", "neither"


@pytest.mark.parametrize(
    ("scale", "first", "second", "expected"),
    [
        # Apart, a judge that always names the first slot earns 1 in all replies to one order and .1 in all to the other.
        ("none", [A, A], [A, A], [0.45, 0.45, -0.45, -0.45]),
        ("none", [B, B], [B, B], [-0.45, -0.45, 0.45, 0.45]),
        ("none", [A, A], [B, B], [0.0, 0.0, 0.0, 0.0]),  # right in both
        ("none", [B, B], [A, A], [0.0, 0.0, 0.0, 0.0]),  # wrong in both
        ("none", [A, B], [B, B], [0.225, -0.675, 0.225, 0.225]),
        ("none", [A, NONE], [B, A], [0.475, -0.525, 0.475, -0.425]),
        ("none", [NONE, NONE], [NONE, NONE], [0.0, 0.0, 0.0, 0.0]),
        ("group", [A, A], [A, A], [0.866, 0.866, -0.866, -0.866]),  # over sqrt(4 / 3) * .45
        ("group", [A, B], [B, B], [0.5, -1.5, 0.5, 0.5]),
        ("group", [A, A], [B, B], [0.0, 0.0, 0.0, 0.0]),
        ("batch", [A, A], [A, A], [0.866, 0.866, -0.866, -0.866]),  # the pair is the batch
    ],
)
def test_both_orders_may_have_one_baseline(scale: str, first: list[str], second: list[str], expected: list[float]):
    reward_func = train_rl.VerdictReward([("pairs", one) for one in pair()], frozenset({END}), bonus=0.0, scale=scale)
    rewards(reward_func, [(0, said) for said in first] + [(1, said) for said in second])
    assert reward_func.advantages == pytest.approx(expected, abs=1e-3)


def test_a_baseline_is_of_one_pair_alone_and_a_batchs_spread_of_all():
    book = [("pairs", one) for question in ("Why?", "How?") for one in pair(question)]
    said = [(0, A), (0, A), (1, A), (1, A), (2, A), (2, B), (3, B), (3, B)]
    for scale, spread in (("none", 1.0), ("batch", 0.4657)):
        reward_func = train_rl.VerdictReward(book, frozenset({END}), bonus=0.0, scale=scale)
        rewards(reward_func, said)
        expected = [0.45, 0.45, -0.45, -0.45, 0.225, -0.675, 0.225, 0.225]
        assert reward_func.advantages == pytest.approx([value / spread for value in expected], abs=1e-3)
    reward_func = train_rl.VerdictReward(book, frozenset({END}))
    rewards(reward_func, said)
    assert reward_func.advantages == [], "TRL's own, unless they are asked for"


@pytest.mark.parametrize("scale", ["none", "group", "batch"])
@pytest.mark.parametrize("said", [[(0, A)], [(0, B)], [(0, NONE)], [(0, A), (2, B)], [(0, B), (2, B), (3, B)]], ids=str)
def test_a_lone_reply_to_a_pair_has_no_advantage(scale: str, said: list[tuple[int, str]]):
    """As on the dev side, where each problem of one order may have one reply."""
    book = [("pairs", one) for question in ("Why?", "How?") for one in pair(question)]
    reward_func = train_rl.VerdictReward(book, frozenset({END}), bonus=0.0, scale=scale)
    rewards(reward_func, said)
    assert reward_func.advantages[0] == 0.0
    assert len(reward_func.advantages) == len(said)


@pytest.mark.parametrize(
    ("scale", "training", "expected"),
    [("none", True, [0.45, 0.45, -0.45, -0.45]), ("none", False, [0.0] * 4), (None, True, [0.0] * 4)],
)
def test_the_trainer_learns_from_the_joint_advantages(
    scale: str | None, training: bool, expected: list[float], monkeypatch: pytest.MonkeyPatch
):
    import torch
    from trl import GRPOTrainer

    scored = "_generate_and_score_completions"
    monkeypatch.setattr(
        GRPOTrainer, scored, lambda self, inputs: {"advantages": torch.zeros(4)}
    )  # TRL's own, of each order
    reward_func = train_rl.VerdictReward([("pairs", one) for one in pair()], frozenset({END}), bonus=0.0, scale=scale)
    rewards(reward_func, [(0, A), (0, A), (1, A), (1, A)])
    kind = train_rl.trainer_class(reward_func, pictured=True)
    trainer = kind.__new__(kind)
    trainer.model = SimpleNamespace(training=training)
    assert getattr(trainer, scored)([])["advantages"].tolist() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("said", "reward"),
    [("A", 1.0), (" A", 1.0), ("B", 0.1), (" B", 0.1), ("C", 0.0), ("", 0.0), ("AB", 0.0), ("\nA", 0.0), ("a", 0.0),
     (" ", 0.0)],
)  # fmt: skip
def test_an_opened_answer_is_a_label_as_reading_counts_it(said: str, reward: float):
    reward_func = train_rl.VerdictReward([("pairs", pair()[0])], frozenset({END}), opened=True)
    assert reward_func(completions=[said], completion_ids=[[7]], problem=[0]) == pytest.approx([reward])


def test_an_opened_grade_is_marked_as_a_grade():
    item = from_ratings("Write a positive sentence.", ["Lovely."], [3.0], "films", scale=(-4.0, 4.0))
    reward_func = train_rl.VerdictReward([("alone", Problem(item, (0,), SENTIMENT))], frozenset({END}), opened=True)
    assert reward_func(
        completions=[" positive", " negative"], completion_ids=[[7], [8]], problem=[0, 0]
    ) == pytest.approx([1.0, 0.1])


def test_dev_accuracy_is_per_task_and_weighs_tasks_alike():
    reward_func = train_rl.VerdictReward([("a", pair()[0]), ("b", pair("Another?")[0])], frozenset({END}))
    rewards(reward_func, [(0, "<answer>A</answer>"), (0, "<answer>A</answer>"), (0, "?"), (1, "<answer>B</answer>")])
    assert reward_func.take() == pytest.approx({"accuracy/a": 2 / 3, "accuracy/b": 0.0, "accuracy": 1 / 3})
    assert reward_func.take() == {}
    assert reward_func.__name__ == "verdict", "what TRL logs the reward as"


def test_twins_are_neighbours_and_never_parted_by_an_even_batch(smol_tokenizer: Any):
    recipe = loaded("adapter=null", "tasks.film_pairs.count=9", "tasks.tweet_pairs.count=4", "tasks.film_alone.count=7")
    asked = train_rl.asked(recipe, "train", smol_tokenizer)
    assert len(asked) % 2 == 0
    for (name, one), (other_name, other) in zip(asked[::2], asked[1::2], strict=True):
        assert name == other_name
        if name != "film_alone":
            assert one.twins == other.twins
            assert one.slots == other.slots[::-1]
    assert {name for name, _ in asked} == {"film_pairs", "tweet_pairs", "film_alone"}
    assert asked == train_rl.asked(recipe, "train", smol_tokenizer), "every process must see the same list"


def test_a_held_out_task_is_neither_trained_on_nor_watched(smol_tokenizer: Any):
    recipe = loaded("tasks.film_alone.held_out=task", "tasks.film_pairs.count=4", "tasks.tweet_pairs.count=4")
    for split in ("train", "dev"):
        assert {name for name, _ in train_rl.asked(recipe, split, smol_tokenizer)} == {"film_pairs", "tweet_pairs"}


def test_items_that_are_all_of_the_training_side_are_trained_on_and_not_measured(
    smol_tokenizer: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    questions = [f"Which of these two is number {number}?" for number in range(40)]
    rows = [{"prompt": q, "candidates": ["a", "b"], "gold": [1, 0]} for q in questions if split_of(q) == "train"]
    file = tmp_path / "items.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    hard = f"tasks.hard={{source: items, path: {file}, judge: {{format: choice, labels: [A, B]}}, both_orders: true}}"
    recipe = loaded(hard, "tasks.film_pairs.count=4", "tasks.tweet_pairs.count=4", "tasks.film_alone.count=4")
    assert "hard" in {name for name, _ in train_rl.asked(recipe, "train", smol_tokenizer)}
    assert "hard" not in {name for name, _ in train_rl.asked(recipe, "dev", smol_tokenizer)}
    assert f"task hard is not measured: {file} has no items of the dev side" in capsys.readouterr().out
    alone = loaded(hard, *(f"tasks.{name}=null" for name in ("film_pairs", "tweet_pairs", "film_alone")))
    with pytest.raises(ConfigError, match="no task has items of the dev side"):
        train_rl.asked(alone, "dev", smol_tokenizer)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["training.per_device_train_batch_size=24"], "even number"),
        (["training.max_completion_length=5"], "one token"),
        (["training.eval_strategy=no"], "never measured"),
        (["lora={r: 8}"], "not both"),
        (["adapter=nowhere"], "no adapter at nowhere"),
        (["modle=x"], "did you mean 'model'"),
    ],
)
def test_what_cannot_be_trained_is_refused_with_the_reason(
    overrides: list[str], message: str, smol_path: str, tmp_path: Path
):
    from trl import GRPOConfig

    def build() -> None:
        recipe = loaded(*overrides)
        settings = GRPOConfig(**{**recipe.training, "output_dir": str(tmp_path)})
        train_rl.checked(recipe, settings)
        train_rl.model_of(recipe.model, recipe.adapter, recipe.lora, settings.model_init_kwargs)

    with pytest.raises(ConfigError, match=message):
        build()


@pytest.mark.parametrize(
    ("labels", "message"),
    [(("A", "B"), ""), (("X", "Y"), ""), (("A", "X"), ""), (("1", "2"), ""), (("A", "BB"), "'BB' is not one token")],
)
def test_a_label_that_a_tokenizer_joins_to_the_marker_can_be_opened(labels: tuple[str, str], message: str):
    problem = Problem(from_choice("Which?", ["good", "bad"], gold=0), (0, 1), Choice(labels=labels))
    with pytest.raises(ConfigError, match=message) if message else nullcontext():
        train_rl.rows_of([("a", problem)], 0, joining_tokenizer(), loaded())


def test_a_label_of_several_tokens_cannot_be_opened(smol_path: str):
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(smol_path)
    item = from_choice("Which?", ["good", "bad"], gold=0)
    problem = Problem(item, (0, 1), Choice(labels=("Alpha and omega", "B")))
    with pytest.raises(ConfigError, match="not one token"):
        train_rl.rows_of([("a", problem)], 0, tokenizer, loaded())
    with pytest.raises(ConfigError, match="cannot be read"):
        train_rl.rows_of([("a", Problem(item, (0, 1), Ranking()))], 0, tokenizer, loaded())


def pictured(image: Any) -> Problem:
    from mrjudge_reward.training.items import with_images

    return Problem(from_choice(with_images("Which?", [image]), ["good", "bad"], gold=0), (0, 1), PAIR)


def test_a_picture_that_cannot_be_shown_is_refused_and_its_item_named(smol_path: str, tmp_path: Path):
    import transformers

    from recipes.judge.chat_rows import processing_class
    from tests.support.vision_setup import encoded, picture

    tokenizer = transformers.AutoTokenizer.from_pretrained(smol_path)
    whole = tmp_path / "red.png"
    whole.write_bytes(encoded(picture()))
    (tmp_path / "cut.png").write_bytes(whole.read_bytes()[:60])
    rows = train_rl.rows_of([("a", pictured(str(whole)))], 0, tokenizer, loaded("opened=false"))
    assert rows[0]["prompt"][-1]["content"][0]["type"] == "image"
    assert rows[0]["images"] == [{"bytes": whole.read_bytes(), "path": None}]
    with pytest.raises(
        InputError, match=r"the tasks show images, and the processor of .*; the first is of task a, item \w+$"
    ):
        processing_class(smol_path, tokenizer, rows)
    for image in ("https://example.org/a.png", str(tmp_path / "none.png"), str(tmp_path / "cut.png"), b"no picture"):
        one = pictured(image)
        with pytest.raises(InputError, match=f"task a, item {one.item.group.key}: "):
            train_rl.rows_of([("a", one)], 0, tokenizer, loaded("opened=false"))
    one = pictured(str(whole))
    with pytest.raises(
        InputError, match=f"item {one.item.group.key} has images, and TRL opens no answer after an image"
    ):
        train_rl.rows_of([("a", one)], 0, tokenizer, loaded())


def test_prompts_that_leave_no_room_for_a_reply_are_left_out_in_twos_and_counted(
    smol_tokenizer: Any, capsys: pytest.CaptureFixture[str]
):
    from recipes.judge.chat_rows import fitting, lengths

    asked = [("a", problem) for question in ("Why?", "Why " * 300, "How?") for problem in pair(question)]
    rows = train_rl.rows_of(asked, 0, smol_tokenizer, loaded("opened=false"))
    sizes = lengths(rows, smol_tokenizer)
    for row, size in zip(rows, sizes, strict=True):
        ids = smol_tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=True)[
            "input_ids"
        ]
        assert size == len(ids)
    twins = partial(train_rl.are_twins, asked)
    kept = fitting(rows, smol_tokenizer, max(sizes) - 1, twins)
    assert [row["problem"] for row in kept] == [0, 1, 4, 5]
    said = capsys.readouterr().out
    assert (
        f"2 of 6 examples are left out, being longer than {max(sizes) - 1} tokens; the longest has {max(sizes)}" in said
    )
    assert fitting(rows, smol_tokenizer, max(sizes), twins) == fitting(rows, smol_tokenizer, None) == rows
    assert capsys.readouterr().out == ""
    with pytest.raises(InputError, match="all 6 examples are longer than 10 tokens"):
        fitting(rows, smol_tokenizer, 10)


@pytest.mark.parametrize(
    ("questions", "left"),  # P asks in both orders, s in one; a capital L is too long
    [
        ("s s s s", "s0 s1 s2 s3"),
        ("s Ls s s", "s0 s2"),  # the last of an odd number has no neighbour
        ("Ls s Ls s", "s1 s3"),
        ("Ls s s Ls s s", "s1 s2 s4 s5"),
        ("Ls Ls s s", "s2 s3"),
        ("P LP P", "P0 P0 P2 P2"),
        ("P Ls s P s s", "P0 P0 P3 P3 s2 s4"),
        ("s Ls LP s s", "s0 s3"),
        ("LP P s s", "P1 P1 s2 s3"),
        ("s s Ls s P P Ls s", "s0 s1 P4 P4 P5 P5 s3 s7"),
    ],
)
def test_a_prompt_that_is_too_long_takes_its_twin_with_it_and_nobody_else(
    smol_tokenizer: Any, questions: str, left: str
):
    from recipes.judge.chat_rows import fitting

    problems = [
        problem
        for number, kind in enumerate(questions.split())
        for problem in pair(f"{kind[-1]}{number}{'?' * 900 * kind.startswith('L')}")[: 2 if kind[-1] == "P" else 1]
    ]
    asked = [("a", problem) for unit in train_rl.units_of(problems) for problem in unit]
    rows = train_rl.rows_of(asked, 0, smol_tokenizer, loaded("opened=false"))
    kept = fitting(rows, smol_tokenizer, 500, partial(train_rl.are_twins, asked))
    shown = [asked[row["problem"]][1] for row in kept]
    assert sorted(str(one.item.group.prompt[0].text) for one in shown) == sorted(left.split())
    for one, other in zip(shown[::2], shown[1::2], strict=True):
        assert one.item.group.prompt[0].text[0] == "s" or (one.twins == other.twins and one.slots != other.slots)


@pytest.mark.parametrize(
    ("settings", "bound"),
    [
        ({"max_completion_length": 100}, 8192 - 100),  # what the model holds
        ({"max_completion_length": 1024, "use_vllm": True, "vllm_max_model_length": 4096}, 3072),
        ({"max_completion_length": 1024, "use_vllm": True}, 8192 - 1024),
        ({"max_completion_length": 1024, "vllm_max_model_length": 4096}, 8192 - 1024),  # vLLM does not sample
    ],
)
def test_a_prompt_may_be_as_long_as_the_engine_takes(settings: dict[str, Any], bound: int, smol_path: str):
    whole = {"use_vllm": False, "vllm_max_model_length": None, **settings}
    assert train_rl.longest_prompt(smol_path, SimpleNamespace(**whole)) == bound


# -- a prompt computed once ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trainers(smol_path: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """TRL's trainer and ours, on the same model with the same LoRA, which is not zero."""
    import datasets
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    from recipes.judge.shared_prompt import SharedPromptTrainer

    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(smol_path, dtype=torch.float32)
    model = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    tokenizer = AutoTokenizer.from_pretrained(smol_path, padding_side="left")
    made = []
    for kind in (GRPOTrainer, SharedPromptTrainer):
        made.append(
            kind(
                model=model,
                reward_funcs=lambda completions, **_: [0.0] * len(completions),
                train_dataset=datasets.Dataset.from_dict({"prompt": ["a"]}),
                processing_class=tokenizer,
                args=GRPOConfig(
                    output_dir=str(tmp_path_factory.mktemp("run")), per_device_train_batch_size=6, num_generations=3,
                    max_completion_length=6, temperature=0.7, top_k=1, use_cpu=True, bf16=False, report_to="none",
                    gradient_checkpointing=False,
                ),
            )
        )  # fmt: skip
    return made[0], made[1]


def test_log_probabilities_entropies_and_gradients_are_trls(trainers: tuple[Any, Any]):
    import torch

    generator = torch.Generator().manual_seed(1)
    prompts = torch.randint(1000, 40000, (2, 9), generator=generator)
    mask = torch.ones(6, 14, dtype=torch.long)
    mask[:3, :4] = 0  # the first prompt is shorter
    mask[1, 12:] = 0  # a completion that ended
    ids = torch.cat(
        [prompts.repeat_interleave(3, dim=0), torch.randint(1000, 40000, (6, 5), generator=generator)], dim=1
    ).masked_fill(mask == 0, 2)
    shuffled = torch.tensor([4, 0, 3, 1, 5, 2])  # as TRL shuffles a batch
    ids, mask = ids[shuffled], mask[shuffled]
    weight = torch.randn(6, 5, generator=generator) * mask[:, -5:]
    found = []
    for trainer in trainers:
        model = trainer.model
        model.zero_grad()
        said, entropy, _ = trainer._get_per_token_logps_and_entropies(model, ids, mask, 5, compute_entropy=True)
        (said * weight).sum().backward()
        grads = [p.grad.clone() for p in model.parameters() if p.requires_grad and p.grad is not None]
        found.append((said.detach() * mask[:, -5:], entropy.detach() * mask[:, -5:], grads))
    (theirs, their_entropy, their_grads), (ours, our_entropy, our_grads) = found
    torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=2e-4)
    torch.testing.assert_close(our_entropy, their_entropy, atol=2e-4, rtol=2e-4)
    assert their_grads
    assert len(our_grads) == len(their_grads)
    for mine, other in zip(our_grads, their_grads, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-3 * float(other.abs().max()), rtol=1e-2)


def test_a_prompt_is_computed_once_however_the_rows_lie(trainers: tuple[Any, Any]):
    import torch

    _, ours = trainers
    shapes: list[torch.Size] = []
    hook = ours.model.get_base_model().model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    ids = torch.tensor([[7, 8, 9, 1], [5, 6, 9, 2], [7, 8, 9, 3], [5, 6, 9, 4], [7, 8, 9, 5], [5, 6, 9, 6]])
    try:
        ours._get_per_token_logps_and_entropies(ours.model, ids, torch.ones_like(ids), 1)
        assert shapes == [(2, 3)]
        shapes.clear()
        ours._generate_single_turn(ids[:, :3].tolist(), None, {}, 3)
        assert shapes[0] == (2, 2)
    finally:
        hook.remove()


def test_greedy_completions_are_trls(trainers: tuple[Any, Any]):
    tokenizer = trainers[0].processing_class
    texts = ["A film about love is", "A film about love is", "Yes. Now to something else: the weather today was"]
    prompts = [tokenizer.encode(text) for text in texts]
    theirs, ours = (trainer._generate_single_turn(prompts, None, {}, 2) for trainer in trainers)
    assert ours == theirs
    assert len(ours[0]) == 3
    assert ours[0][0] == ours[0][1]


# -- what TRL has, TRL does -----------------------------------------------------------------------------------------------

OF_TRL: dict[str, tuple[Any, str, Any]] = {
    "beta": (0.01, "beta", 0.01),
    "epsilon": (0.1, "epsilon_low", 0.1),
    "epsilon_high": (0.3, "epsilon_high", 0.3),
    "loss_type": ("dr_grpo", "loss_type", "dr_grpo"),
    "scale_rewards": ("none", "scale_rewards", "none"),
    "max_completion_length": (8192, "max_completion_length", 8192),
    "num_generations": (4, "num_generations", 4),
    "num_iterations": (2, "num_iterations", 2),
    "temperature": (0.7, "temperature", 0.7),
    "top_p": (0.9, "top_p", 0.9),
    "importance_sampling_level": ("sequence", "importance_sampling_level", "sequence"),
    "mask_truncated_completions": (True, "mask_truncated_completions", True),
}
"""Field of ``GRPOConfig`` → a value that is not its default, and where TRL's trainer keeps it."""


def test_kl_clipping_and_the_replies_cap_are_handed_to_trls_trainer(
    smol_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from transformers import EarlyStoppingCallback
    from trl import GRPOTrainer

    class StoppedError(Exception):
        pass

    def stop(trainer: Any, **_: Any) -> None:
        raise StoppedError(trainer)

    monkeypatch.setattr(GRPOTrainer, "train", stop)
    model = small_text_model(smol_tokenizer, tmp_path / "model")
    monkeypatch.setattr(train_rl, "longest_prompt", lambda *_: None)  # the small one holds no such reply
    given = [f"training.{name}={value}" for name, (value, _, _) in OF_TRL.items()]
    with pytest.raises(StoppedError) as made:
        train_rl.train(
            loaded(
                f"model={model}", "adapter=null", "lora={r: 2, target_modules: [q_proj]}", "opened=false", "patience=3",
                f"training.output_dir={tmp_path / 'out'}", "tasks.film_pairs.count=4", "tasks.tweet_pairs.count=4",
                "tasks.film_alone.count=4", "training.per_device_train_batch_size=8", "dev_samples=2", *given,
            )
        )  # fmt: skip
    (trainer,) = made.value.args
    assert {name: getattr(trainer, place) for name, (_, place, _) in OF_TRL.items()} == {
        name: kept for name, (_, _, kept) in OF_TRL.items()
    }
    (early,) = (one for one in trainer.callback_handler.callbacks if isinstance(one, EarlyStoppingCallback))
    assert early.early_stopping_patience == 3
    assert (trainer.args.metric_for_best_model, trainer.args.greater_is_better) == ("eval_accuracy", True)
    assert trainer.args.load_best_model_at_end
    assert trainer.num_generations_eval == 2
    assert len(trainer.eval_dataset) > 0


# -- the whole recipe -----------------------------------------------------------------------------------------------------


def train(model: str, tmp_path: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    settings = [
        f"model={model}", "adapter=null", "lora={r: 4, target_modules: [q_proj, v_proj]}", f"training.output_dir={tmp_path}",
        "tasks.film_pairs.count=8", "tasks.tweet_pairs.count=4", "tasks.film_alone.count=4",
        "tasks.film_pairs.eval_count=2", "tasks.tweet_pairs.eval_count=2", "tasks.film_alone.eval_count=2",
        "training.per_device_train_batch_size=4", "training.num_generations=2", "training.per_device_eval_batch_size=10",
        "training.eval_steps=1", "training.save_steps=1", "training.logging_steps=1", *overrides,
    ]  # fmt: skip
    return run_python(
        "-m", "recipes.judge.train_rl", CONFIG, *(word for setting in settings for word in ("--set", setting))
    )


def test_it_trains_watches_dev_and_goes_on_where_it_was_interrupted(smol_tokenizer: Any, tmp_path: Path):
    model = small_text_model(smol_tokenizer, tmp_path / "model")
    tmp_path = tmp_path / "run"
    first = train(model, tmp_path, "training.max_steps=2")
    assert first.returncode == 0, first.stderr[-3000:]
    other = train(model, tmp_path, "training.max_steps=2", "both_orders_bonus=0.0")
    assert "changed: both_orders_bonus)" in other.stderr
    interrupted(tmp_path, steps=1)
    second = train(model, tmp_path, "training.max_steps=2")
    assert second.returncode == 0, second.stderr[-3000:]
    history = json.loads((tmp_path / "dev.json").read_text())
    assert [entry["step"] for entry in history] == [1, 2]
    for entry in history:
        tasks = [entry[f"eval_accuracy/{name}"] for name in ("film_pairs", "tweet_pairs", "film_alone")]
        assert entry["eval_accuracy"] == pytest.approx(sum(tasks) / 3)
    state = json.loads((tmp_path / "checkpoint-2" / "trainer_state.json").read_text())
    assert state["best_metric"] == max(entry["eval_accuracy"] for entry in history)
    assert (tmp_path / "adapter_model.safetensors").is_file()
