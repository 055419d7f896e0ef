"""The judge's training configs, those for GPUs too: their trainers take them, and two CPU ranks train as one does.

Nothing here needs a GPU. Where a trainer's config would refuse bfloat16 without one, ``use_cpu`` is the only override.
"""

from __future__ import annotations

import json
import os
import random
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from recipes.common.config import read_config
from recipes.data.judge_data import TaskConfig, asked_tasks
from recipes.judge.train_rl import RLRecipe
from recipes.judge.train_sft import SFTRecipe
from tests.support import ROOT
from tests.support.small_models import small_text_model
from tests.support.warm_python import run_python, warm_python

pytestmark = pytest.mark.usefixtures("vllm_hidden")

CONFIGS = ROOT / "recipes" / "judge"
TRAINED = sorted(path.stem for path in CONFIGS.glob("*.yaml") if path.stem.startswith(("sft_", "rl_")))
LAUNCH = sorted(path.stem for path in (CONFIGS / "accelerate").glob("*.yaml"))
GPUS = 8


def trainer_config(name: str, training: Mapping[str, Any]) -> Any:
    from trl import GRPOConfig, SFTConfig

    settings = {"report_to": "none", **training, "use_cpu": True}
    return GRPOConfig(**settings) if name.startswith("rl_") else SFTConfig(**settings)


def settings_of(name: str, *overrides: str) -> RLRecipe | SFTRecipe:
    """A config as its recipe reads it."""
    values = read_config(str(CONFIGS / f"{name}.yaml"), overrides)
    return RLRecipe(**values) if name.startswith("rl_") else SFTRecipe(**values)


def commands(path: Path) -> list[list[str]]:
    """The commands in the comment on top of a config."""
    comment = "\n".join(
        line.removeprefix("#") for line in path.read_text(encoding="utf-8").splitlines() if line[:1] == "#"
    )
    joined = comment.replace("\\\n", " ")
    return [shlex.split(line) for line in joined.splitlines() if line.startswith(("   python ", "   accelerate "))]


# -- what is written in them ------------------------------------------------------------------------------------------


def test_there_is_a_config_for_text_and_for_images_in_each_stage() -> None:
    assert {"sft_7b", "sft_vl_7b", "rl_7b", "rl_vl_7b"} <= set(TRAINED)
    assert {"ddp", "zero2", "zero3"} == set(LAUNCH)


@pytest.mark.parametrize("name", TRAINED)
def test_the_real_trainers_take_the_settings(name: str) -> None:
    from peft import LoraConfig

    recipe = settings_of(name)
    taken = trainer_config(name, recipe.training)
    assert type(taken.learning_rate) is float  # 1e-5 without a point is a text in YAML
    assert 0 < taken.learning_rate < 1e-2
    if recipe.lora is not None:
        assert LoraConfig(task_type="CAUSAL_LM", **recipe.lora).r == recipe.lora["r"]
    assert asked_tasks(recipe.tasks) or recipe.examples


@pytest.mark.parametrize("name", [name for name in TRAINED if name.endswith("7b")])
def test_every_command_in_a_config_is_one_that_runs(name: str) -> None:
    from accelerate.commands.launch import launch_command_parser
    from peft import LoraConfig

    found = commands(CONFIGS / f"{name}.yaml")
    assert found
    for program, *arguments in found:
        if program == "accelerate":
            parsed = launch_command_parser().parse_args(arguments[1:])
            assert (ROOT / parsed.config_file).is_file()
            assert parsed.module
            module, config, *rest = parsed.training_script, *parsed.training_script_args
        else:
            assert arguments[0] == "-m"
            _, module, config, *rest = arguments
        if module == "recipes.judge.cost":
            assert config == f"recipes/judge/{name}.yaml"
            continue
        assert module == f"recipes.judge.train_{name.split('_')[0]}"
        assert config == f"recipes/judge/{name}.yaml"
        overrides = [argument for argument in rest if argument != "--set"]
        recipe = settings_of(name, *overrides)
        goes_on = getattr(recipe, "adapter", None) is not None  # in a LoRA that is there
        given = {override.partition("=")[0] for override in overrides}
        whole = {"lora=null", "adapter=null"} & set(overrides) or (name == "sft_vl_7b" and "lora.r" not in given)
        assert (recipe.lora is None and not goes_on) == bool(whole and not goes_on)
        if recipe.lora is not None:
            assert LoraConfig(task_type="CAUSAL_LM", **recipe.lora).target_modules
        # All weights are shared out, or 8 GPUs of 80 GB do not hold them.
        assert program != "accelerate" or ("zero3" in parsed.config_file) == bool(whole and not goes_on)
        assert type(trainer_config(name, recipe.training).learning_rate) is float


@pytest.mark.parametrize("name", [name for name in TRAINED if name.endswith("7b")])
def test_each_7b_config_has_a_command_for_a_lora_and_one_for_all_weights(name: str) -> None:
    kinds = set()
    for program, *arguments in commands(CONFIGS / f"{name}.yaml"):
        if program == "accelerate":
            recipe = settings_of(name, *(one for one in arguments[arguments.index("-m") + 3 :] if one != "--set"))
            kinds.add(recipe.lora is None and getattr(recipe, "adapter", None) is None)
    assert kinds == {True, False}


@pytest.mark.parametrize("name", ["rl_7b", "rl_vl_7b"])
def test_reinforcement_watches_dev_accuracy_and_keeps_the_best_checkpoint(name: str) -> None:
    recipe = settings_of(name)
    taken = trainer_config(name, {**recipe.training, "load_best_model_at_end": True})  # as train_rl sets it
    assert isinstance(recipe, RLRecipe)
    assert recipe.patience is not None
    assert (taken.eval_strategy, taken.eval_steps) == ("steps", taken.save_steps)
    assert {TaskConfig(**values).eval_count for values in recipe.tasks.values()} == {100}


@pytest.mark.parametrize("name", LAUNCH)
def test_accelerate_takes_the_launch_file(name: str) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    loaded = load_config_from_file(str(CONFIGS / "accelerate" / f"{name}.yaml"))
    assert loaded.num_processes == GPUS
    assert loaded.mixed_precision == "bf16"
    assert loaded.distributed_type.value == ("MULTI_GPU" if name == "ddp" else "DEEPSPEED")
    if name != "ddp":
        assert loaded.deepspeed_config["zero_stage"] == int(name[-1])


@pytest.mark.parametrize("name", ["rl_7b", "rl_vl_7b"])
def test_groups_are_whole_on_one_gpu_and_on_eight(name: str) -> None:
    taken = trainer_config(name, settings_of(name).training)  # checks this for one
    rows = taken.per_device_train_batch_size * GPUS
    assert rows * taken.gradient_accumulation_steps == 256  # as the comment says
    assert rows * taken.steps_per_generation % taken.num_generations == 0
    assert taken.vllm_max_model_length > taken.max_completion_length
    assert taken.mask_truncated_completions is False


@pytest.mark.parametrize("name", ["rl_7b", "rl_vl_7b"])
def test_every_file_that_a_config_reads_is_written_by_a_command_of_another(name: str) -> None:
    """``runs/...`` that is read here stands behind ``--out`` or ``output_dir`` somewhere."""
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "recipes").rglob("*.yaml")]
    written = {folder for text in texts for folder in re.findall(r"(?:--out |output_dir: )(runs/[\w-]+)", text)}
    for config in (name, name.replace("rl_", "sft_")):
        read = set(re.findall(r"^\s*(?:model|adapter|path|examples|source): (runs/[\w-]+)", config_text(config), re.M))
        assert read
        assert read <= written | {"runs/synthetic"}  # of the last the README has the command


def config_text(name: str) -> str:
    return (CONFIGS / f"{name}.yaml").read_text(encoding="utf-8")


def test_flex_judge_is_trained_as_its_paper_says() -> None:
    recipe = settings_of("sft_vl_7b")
    taken = trainer_config("sft_vl_7b", recipe.training)
    assert (recipe.model, recipe.lora) == ("Qwen/Qwen2.5-VL-7B-Instruct", None)
    assert (taken.learning_rate, taken.num_train_epochs, taken.max_length) == (1e-5, 1, 4096)
    assert (taken.lr_scheduler_type, taken.warmup_steps, taken.weight_decay) == ("cosine", 0.05, 1e-4)
    assert (taken.adam_beta1, taken.adam_beta2) == (0.9, 0.95)


# -- a vision-language model of three million parameters --------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny_vision(smol_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Qwen2.5-VL with random weights, the embedded model's tokenizer and no image processor."""
    import transformers

    path = tmp_path_factory.mktemp("vision")
    torch.manual_seed(0)
    ends = {
        "eos_token_id": smol_tokenizer.eos_token_id, "bos_token_id": smol_tokenizer.bos_token_id,
        "pad_token_id": smol_tokenizer.pad_token_id,
    }  # fmt: skip
    config = transformers.Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(smol_tokenizer), "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
            "rope_scaling": {"rope_type": "default", "mrope_section": [2, 3, 3]}, **ends,
        },
        vision_config={
            "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64,
            "fullatt_block_indexes": [1],
        },
    )  # fmt: skip
    transformers.Qwen2_5_VLForConditionalGeneration(config).save_pretrained(path)
    smol_tokenizer.save_pretrained(path)
    return path


def test_the_vision_judges_adapter_leaves_the_vision_tower_alone(tiny_vision: Path) -> None:
    import transformers
    from peft import LoraConfig, get_peft_model

    lora = settings_of("rl_vl_7b").lora
    base = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(tiny_vision)
    adapted = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **lora))
    trained = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    assert len(trained) == 2 * 2 * 7  # A and B of seven matrices in two layers
    assert all("language_model" in name for name in trained)


# -- two ranks --------------------------------------------------------------------------------------------------------

TINY = [
    "tasks={}", "training.max_steps=2", "training.logging_steps=1", "training.warmup_steps=0",
    "training.use_cpu=true", "training.bf16=false", "training.model_init_kwargs=null",
]  # fmt: skip
TWO = ["training.per_device_train_batch_size=1", "training.gradient_accumulation_steps=2"]
ONE = ["training.per_device_train_batch_size=4", "training.gradient_accumulation_steps=1"]
# Plain descent without clipping, so that what the weights have moved by is the gradient, its scale included.
PLAIN = [
    "training.optim=sgd", "training.learning_rate=0.1", "training.max_grad_norm=1.0e+9",
    "training.train_sampling_strategy=random", "lora.lora_dropout=0.0", "lora.r=4",
]  # fmt: skip


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight judgements of very different lengths, so that a mean of means is not the mean over tokens."""
    path = tmp_path_factory.mktemp("examples") / "examples.jsonl"
    draw = random.Random(0)
    words = ["film", "plot", "music", "scene", "fine", "dull"]
    rows = [
        {
            "messages": [{"role": "user", "content": " ".join(draw.choices(words, k=4 + 3 * number))}],
            "answer": f"<think>{'It is so. ' * (1 + number**2 % 11)}</think><answer>A</answer>",
        }
        for number in range(8)
    ]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def launcher(name: str) -> list[str]:
    """What starts two ranks by a file of ``recipes/judge/accelerate``."""
    if name == "ddp":  # accelerate starts one process where there is no GPU
        return ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    file = str(CONFIGS / "accelerate" / f"{name}.yaml")
    return ["-m", "accelerate.commands.launch", "--config_file", file, "--num_processes", "2", "--mixed_precision", "no",
            "--main_process_port", "0"]  # fmt: skip


def train(out: Path, config: str, examples: Path, launch: list[str], *overrides: str) -> list[tuple[float, float]]:
    """Train two steps; the loss and the norm of the gradient of each."""
    command = [*launch, "-m", "recipes.judge.train_sft", CONFIGS / f"{config}.yaml"]
    for override in (f"examples={examples}", f"training.output_dir={out}", *TINY, *overrides):
        command += ["--set", override]
    ranks = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHON_EXEC": warm_python()}
    done = run_python(*command, env=os.environ | ranks)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count("8 examples; saved to") == 1  # by one rank
    steps = re.findall(r"'loss': '([^']+)', 'grad_norm': '([^']+)'", done.stdout)
    assert len(steps) == 2, done.stdout[-2000:]
    return [(float(loss), float(norm)) for loss, norm in steps]


@pytest.fixture(scope="module")
def tiny_text(smol_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    return small_text_model(smol_tokenizer, tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def text_alone(
    tiny_text: str, examples: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[tuple[float, float]], Path]:
    out = tmp_path_factory.mktemp("alone")
    return train(out, "sft_7b", examples, [], f"model={tiny_text}", *PLAIN, *ONE), out


@pytest.mark.parametrize("name", ["ddp", "zero2"])
def test_two_ranks_learn_what_one_learns_from_the_same_batch(
    name: str, text_alone: tuple[list[tuple[float, float]], Path], examples: Path, tiny_text: str, tmp_path: Path
) -> None:
    expected, alone = text_alone
    steps = train(tmp_path, "sft_7b", examples, launcher(name), f"model={tiny_text}", *PLAIN, *TWO)
    assert steps == [pytest.approx(step, rel=1e-3) for step in expected]
    saved, wanted = (load_file(folder / "adapter_model.safetensors") for folder in (tmp_path, alone))
    assert saved.keys() == wanted.keys()
    moved = 0.0
    for key, weights in wanted.items():
        torch.testing.assert_close(saved[key], weights, rtol=0, atol=2e-6)
        moved = max(moved, float(weights.abs().max())) if "lora_B" in key else moved
    assert moved > 1e-3  # B was zero

    from peft import AutoPeftModelForCausalLM

    assert AutoPeftModelForCausalLM.from_pretrained(tmp_path).peft_config["default"].r == 4


@pytest.fixture(scope="module")
def vision_alone(
    tiny_vision: Path, examples: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[tuple[float, float]], Path]:
    out = tmp_path_factory.mktemp("vision-alone")
    return train(out, "sft_vl_7b", examples, [], f"model={tiny_vision}", *ONE), out


def test_two_ranks_under_zero3_train_all_weights_of_a_vision_language_model(
    vision_alone: tuple[list[tuple[float, float]], Path], tiny_vision: Path, examples: Path, tmp_path: Path
) -> None:
    import transformers

    expected, alone = vision_alone
    steps = train(tmp_path, "sft_vl_7b", examples, launcher("zero3"), f"model={tiny_vision}", *TWO)
    assert steps == [pytest.approx(step, rel=1e-3) for step in expected]
    before, after, wanted = (
        dict(transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(folder).named_parameters())
        for folder in (tiny_vision, tmp_path, alone)
    )
    for name, weights in after.items():
        # Adam's first steps are of the learning rate's size, however small a gradient is: 1e-5 and then half of it.
        torch.testing.assert_close(weights, wanted[name], rtol=0, atol=2e-6 if "visual" in name else 3.1e-5)
        still = torch.equal(weights, before[name])
        assert still == ("visual" in name), name


def test_every_token_weighs_the_same_however_a_batch_is_cut(
    vision_alone: tuple[list[tuple[float, float]], Path], tiny_vision: Path, examples: Path, tmp_path: Path
) -> None:
    cut = ["training.per_device_train_batch_size=1", "training.gradient_accumulation_steps=4"]
    steps = train(tmp_path, "sft_vl_7b", examples, [], f"model={tiny_vision}", *cut)
    assert steps == [pytest.approx(step, rel=1e-3) for step in vision_alone[0]]
