"""The whole chain on a small LLaVA: synthesis, warm-up, reinforcement, measuring, a judge. At each joint pictures arrive.

Every picture is of one colour, so what reaches the vision tower can be told by its pixels.
"""

from __future__ import annotations

import json
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mrjudge_reward.engines.scripted import ScriptedEngine
from mrjudge_reward.images import load_picture, opened
from mrjudge_reward.judge import JudgeConfig
from mrjudge_reward.prompting.rendering import conversation_text
from mrjudge_reward.training.items import with_images
from mrjudge_reward.training.tasks import split_of
from mrjudge_reward.types import Group, Preference
from recipes.data.synthesis_recipe import ROLES
from recipes.data.synthesize import synthesize
from recipes.evaluate.judge import EvaluationRecipe, evaluate
from recipes.judge.train_rl import RLRecipe
from recipes.judge.train_rl import train as reinforce
from recipes.judge.train_sft import SFTRecipe
from recipes.judge.train_sft import train as warm_up
from tests.recipes.test_synthesize import played, recipe_of, role_of
from tests.support import ROOT, vision_setup
from tests.support.seen_pictures import Seen
from tests.support.small_models import small_tokenizer

pytestmark = pytest.mark.usefixtures("vllm_hidden")

COLOURS = {
    "train": ["red", "lime", "blue", "yellow"], "dev": ["cyan"], "test": ["magenta", "black", "orange"],
}  # fmt: skip
EVERY = [colour for colours in COLOURS.values() for colour in colours]
GREY = "grey"
"""What a picture is blanked with."""
CHOICE = {"format": "choice", "labels": ["A", "B"]}
LORA = {"r": 2, "target_modules": r".*language_model.*\.(q_proj|v_proj)"}
TRAINING = {"max_steps": 2, "use_cpu": True, "bf16": False, "gradient_checkpointing": False, "save_strategy": "no"}


@pytest.fixture
def folder(smol_tokenizer: Any, tmp_path: Path) -> str:
    wordings = [path.read_text("utf-8") for path in (ROOT / "mrjudge_reward/prompting/templates").glob("*.txt")]
    return vision_setup.saved(
        vision_setup.llava(small_tokenizer(smol_tokenizer, wordings, tmp_path / "words")), tmp_path / "llava"
    )


@pytest.fixture
def seen(folder: str, monkeypatch: pytest.MonkeyPatch) -> Seen:
    from transformers import AutoProcessor, CLIPVisionModel

    found = Seen(AutoProcessor.from_pretrained(folder), [*EVERY, GREY])
    monkeypatch.setattr(CLIPVisionModel, "forward", found.watching(CLIPVisionModel.forward))
    return found


def samples(folder: Path) -> list[dict[str, Any]]:
    """Questions with good answers about pictures; each falls on the side that its colour is listed for."""
    rows = []
    for side, colours in COLOURS.items():
        for colour in colours:
            path = folder / f"{colour}.png"
            Image.new("RGB", (28, 28), colour).save(path)
            asked = (f"What is in picture {n}?" for n in count(len(rows) * 1000))
            question = next(q for q in asked if split_of(conversation_text(with_images(q, [str(path)]))) == side)
            rows.append({"prompt": question, "answer": f"It is a card in {colour}.", "images": [str(path)]})
    return rows


def test_a_picture_reaches_the_model_in_every_stage_from_synthesis_to_the_judge(
    folder: str, seen: Seen, tmp_path: Path
):
    source, made = tmp_path / "source.jsonl", tmp_path / "synthetic"
    source.write_text("\n".join(map(json.dumps, samples(tmp_path))))

    # Synthesis: its writer and describer see each picture, and both of its files hold them.
    writers = ScriptedEngine(played())
    synthesize(recipe_of(str(source), negatives=[1, 1]), made, dict.fromkeys(ROLES, writers))
    for role in ("writer", "describer"):
        shown = [
            part.image for r in writers.requests if role_of(r) == role for turn in r.messages for part in turn.images
        ]
        assert {colour_of(image) for image in shown} == set(EVERY), role
    for name, key in (("items", "prompt"), ("examples", "messages")):
        rows = [json.loads(line) for line in (made / f"{name}.jsonl").read_text().splitlines()]
        parts = [part for row in rows for turn in row[key] for part in turn["content"] if isinstance(part, dict)]
        images = [part["image"] for part in parts if part["type"] == "image"]
        assert sorted(map(colour_of, images)) == sorted(EVERY), name

    # Warm-up on its examples, those of the training side.
    training = {**TRAINING, "output_dir": str(tmp_path / "sft"), "per_device_train_batch_size": 2, "max_length": 2048}
    warm_up(SFTRecipe(model=folder, examples=str(made / "examples.jsonl"), lora=LORA, training=training))
    assert tuple(map(set, seen.since())) == ({*COLOURS["train"]}, set()), "warm-up"

    # Reinforcement of that adapter on its items: the training side is sampled and learned from, the dev side measured.
    tasks = {"cards": {"source": "items", "path": str(made / "items.jsonl"), "judge": CHOICE, "both_orders": True}}
    training = {
        **TRAINING, "output_dir": str(tmp_path / "rl"), "per_device_train_batch_size": 8, "per_device_eval_batch_size": 2,
        "num_generations": 2, "max_completion_length": 4, "eval_strategy": "steps", "eval_steps": 2,
        "load_best_model_at_end": False,
    }  # fmt: skip
    reinforce(RLRecipe(model=folder, adapter=str(tmp_path / "sft"), tasks=tasks, joint_orders=True, training=training))
    assert tuple(map(set, seen.since())) == ({*COLOURS["train"]}, {*COLOURS["train"], *COLOURS["dev"]}), "reinforcement"

    # Measured on the test side, with each picture, with it painted over, and with another's in its place.
    judge = {
        "model": folder, "adapter": str(tmp_path / "rl"), "verdict": "logprobs", "min_label_mass": 0.0, "device": "cpu",
    }  # fmt: skip
    report = evaluate(EvaluationRecipe(judge=judge, tasks=tasks, resamples=20))
    assert tuple(map(set, seen.since())) == (set(), {*COLOURS["test"], GREY}), "evaluation"
    row = report["tasks"]["cards"]
    assert (row["items"], row["problems"], row["failed"]) == (3, 6, 0)
    assert {"accuracy", "blanked", "swapped", "seen"} <= row.keys()

    # A judge of what was trained, as a user builds it: it receives pixels, and they bear on its verdict.
    built = JudgeConfig(**{**judge, **CHOICE}, schedule="all_pairs").build()
    verdicts = []
    for colour in COLOURS["test"][:2]:
        image = {"type": "image", "image": str(tmp_path / f"{colour}.png")}
        prompt = [{"role": "user", "content": [image, {"type": "text", "text": "What is it?"}]}]
        (judgement,) = built.judge([Group.of(prompt, ["a card", "a cup"])])
        assert tuple(map(set, seen.since())) == (set(), {colour}), "judge"
        assert all(isinstance(played.verdict.outcome, Preference) for played in judgement.played)
        verdicts.append([played.verdict.outcome for played in judgement.played])
    assert verdicts[0] != verdicts[1]
    built.close()


def colour_of(image: Any) -> str:
    pixel = opened(load_picture(image)).getpixel((14, 14))
    return next(n for n in EVERY if Image.new("RGB", (1, 1), n).getpixel((0, 0)) == pixel)
