"""The calculated cost of training: each formula beside what a library counts or estimates, and the shipped configs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from mrjudge_reward.engines.embedded import embedded_adapter_path
from mrjudge_reward.errors import ConfigError
from recipes.judge.cost import (
    GB,
    Machine,
    Sizes,
    activations,
    forward_flops,
    layer_bytes,
    main,
    memory,
    model_states,
    report,
    sizes_of,
    times,
    values_of,
)
from tests.support import ROOT

CONFIGS = ROOT / "recipes" / "judge"
TEXT = {
    "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
    "num_attention_heads": 28, "num_key_value_heads": 4,
}  # fmt: skip
"""The config of Qwen2.5-7B, and the text side of Qwen2.5-VL-7B."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Configs alone, without weights."""
    import transformers

    text, seeing = (tmp_path_factory.mktemp(name) for name in ("qwen", "qwen-vl"))
    transformers.Qwen2Config(**TEXT, tie_word_embeddings=False).save_pretrained(text)
    vision = {
        "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584,
        "fullatt_block_indexes": [7, 15, 23, 31],
    }  # fmt: skip
    rope = {"rope_scaling": {"rope_type": "default", "mrope_section": [16, 24, 24]}}
    transformers.Qwen2_5_VLConfig(
        text_config={**TEXT, **rope}, vision_config=vision, tie_word_embeddings=False
    ).save_pretrained(seeing)
    return {"7b": str(text), "vl_7b": str(seeing)}


def test_parameters_are_those_that_the_models_are_published_with(folders: dict[str, str]):
    text, seeing = sizes_of(folders["7b"]), sizes_of(folders["vl_7b"])
    assert text.parameters == text.trained == 7_615_616_512
    assert seeing.parameters == 8_292_166_656
    assert text.embedding == text.largest == 152064 * 3584
    assert text.cache == 2 * 2 * 28 * 4 * 128  # keys and values, two bytes, layers, heads, width


@pytest.mark.parametrize(
    ("name", "modules"),
    [
        ("7b", "all-linear"),
        ("vl_7b", r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"),
    ],
)
def test_a_loras_parameters_are_those_of_its_pairs_of_matrices(name: str, modules: str, folders: dict[str, str]):
    width, inner, kv = TEXT["hidden_size"], TEXT["intermediate_size"], 4 * 128
    pairs = 2 * (width + width) + 2 * (width + kv) + 3 * (width + inner)
    found = sizes_of(folders[name], {"r": 32, "target_modules": modules})
    assert found.trained == 32 * 28 * pairs


def sizes(parameters: int, trained: int, largest: int = 0) -> Sizes:
    return Sizes(parameters, trained, 0, largest, 28, 3584, 18944, 57344)


@pytest.mark.parametrize("gpus", [1, 2, 4, 8, 16])
@pytest.mark.parametrize(
    ("parameters", "largest"), [(135_000_000, 28_000_000), (7_615_616_512, 544_997_376), (10**10, 1)]
)
def test_all_weights_take_what_deepspeed_estimates(parameters: int, largest: int, gpus: int):
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

    size = sizes(parameters, parameters, largest)
    _, two = estimate_zero2_model_states_mem_needs(parameters, gpus, 1, cpu_offload=False)
    _, three, _ = estimate_zero3_model_states_mem_needs(parameters, largest, gpus, 1, False, False)
    for zero, estimate in ((2, two), (3, three)):
        ours = sum(line.value for line in model_states(size, Machine(gpus=gpus, zero=zero)))
        assert ours == pytest.approx(estimate, rel=1e-6)


def test_without_deepspeed_a_lora_is_in_float32_and_all_weights_are_in_their_own_precision():
    lora = {line.what: line.value for line in model_states(sizes(7_000_000_000, 80_000_000), Machine())}
    assert lora == {"weights": 14.32e9, "gradients": 0.32e9, "optimiser": 0.64e9}
    assert sum(line.value for line in model_states(sizes(10**9, 10**9), Machine())) == 8e9


# -- what a layer keeps, and what a token takes, counted by torch ----------------------------------------------------------


def small(width: int, inner: int, heads: int, kv: int, layers: int = 1, attention: str = "sdpa") -> Any:
    import transformers

    torch.manual_seed(0)
    config = transformers.Qwen2Config(
        hidden_size=width, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=kv, vocab_size=256, tie_word_embeddings=False,
    )  # fmt: skip
    return transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attention).to(torch.bfloat16)


SHAPES = [(256, 1024, 4, 4), (448, 2368, 7, 1), (256, 688, 4, 2), (896, 4864, 14, 2), (512, 2048, 8, 2)]


@pytest.mark.parametrize(("width", "inner", "heads", "kv"), SHAPES)
def test_a_layer_keeps_what_torch_saves_for_its_backward_pass(width: int, inner: int, heads: int, kv: int):
    model, tokens = small(width, inner, heads, kv), 64
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    saved: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    inputs = torch.randn(1, tokens, width, dtype=torch.bfloat16, requires_grad=True)
    places = torch.arange(tokens)[None]
    turned = model.model.rotary_emb(inputs, places)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.model.layers[0](inputs, position_embeddings=turned, position_ids=places)
    counted = sum(saved.values()) / tokens
    calculated = layer_bytes(Sizes(1, 1, 0, 0, 1, width, inner, 1))
    assert calculated == pytest.approx(counted, rel=0.12)
    size = Sizes(1, 1, 0, 0, 1, width, inner, 1)
    assert sum(line.value for line in activations(size, tokens, checkpointing=False)) == calculated * tokens


@pytest.mark.parametrize(("width", "inner", "heads", "kv"), SHAPES)
def test_a_forward_pass_takes_the_flops_that_torch_counts(width: int, inner: int, heads: int, kv: int):
    from torch.utils.flop_counter import FlopCounterMode

    model, tokens = small(width, inner, heads, kv, 3, "eager"), 128
    embedding = model.get_input_embeddings().weight.numel()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, tokens, dtype=torch.long))
    size = Sizes(parameters, parameters, embedding, 0, 3, width, inner, 1)
    # Written out, attention is the whole square, of which a causal kernel takes half.
    attention = 2 * 3 * width * tokens
    assert (forward_flops(size, tokens) + attention) * tokens == pytest.approx(counter.get_total_flops(), rel=0.02)


# -- a config as a whole --------------------------------------------------------------------------------------------------


ON_LANGUAGE = r"lora.target_modules=.*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
SHIPPED = [
    ("sft_7b", "LoRA", [], 80_740_352),
    ("sft_7b", "all", ["lora=null"], 7_615_616_512),
    ("rl_7b", "LoRA", [], 80_740_352),
    ("rl_7b", "all", ["adapter=null"], 7_615_616_512),
    ("sft_vl_7b", "LoRA", ["lora.r=32", ON_LANGUAGE], 80_740_352),
    ("sft_vl_7b", "all", [], 8_292_166_656),
    ("rl_vl_7b", "LoRA", [], 80_740_352),
    ("rl_vl_7b", "all", ["lora=null"], 8_292_166_656),
]


@pytest.mark.parametrize(("config", "trained", "overrides", "count"), SHIPPED)
def test_a_shipped_config_fits_eight_gpus_of_80_gb_and_takes_what_the_readme_says(
    config: str, trained: str, overrides: list[str], count: int, folders: dict[str, str]
):
    model = folders["vl_7b" if "vl" in config else "7b"]
    values = values_of(CONFIGS / f"{config}.yaml", [*overrides, f"model={model}"])
    machine = Machine(zero=0 if trained == "LoRA" else 3)
    said = report(values, machine, prompt_tokens=1024, reply_tokens=None)
    assert said.startswith("Calculated, not measured: ")
    assert f"T = {count:,} of them trained" in said
    peak, seconds = (re.search(wanted, said) for wanted in (r"At most ([\d.]+) of 80 GB: it fits\.", SUM))
    assert peak
    assert seconds
    row = f"| `{config}` | {trained} | {float(peak[1]):.0f} | {float(seconds[1]):.0f} |"
    assert row in (CONFIGS / "README.md").read_text(encoding="utf-8")
    assert ("decoding" in said) == config.startswith("rl_")
    assert "CPU" not in said, "asleep at level 2, vLLM drops its weights"
    less = report(values, Machine(gpus=1, memory=16 * GB, zero=machine.zero), prompt_tokens=1024, reply_tokens=None)
    assert "it does NOT fit" in less


SUM = r"\*\*together\*\* \| \| \*\*([\d.]+)\*\* \|\n\nn = "


def test_all_weights_of_7b_need_to_be_shared_out(folders: dict[str, str]):
    values = values_of(CONFIGS / "rl_7b.yaml", ["adapter=null", f"model={folders['7b']}"])
    assert "it does NOT fit" in report(values, Machine(zero=0), 1024, None)


def test_an_earlier_stage_says_what_is_gone_on_from(tmp_path: Path):
    assert values_of(CONFIGS / "rl_7b.yaml")["lora"]["r"] == 32
    assert values_of(CONFIGS / "rl_vl_7b.yaml")["model"] == "Qwen/Qwen2.5-VL-7B-Instruct"
    alone = tmp_path / "rl.yaml"
    alone.write_text("model: m\nadapter: runs/nowhere\ntasks: {}\ntraining: {}\n")
    with pytest.raises(ConfigError, match=r"no adapter at runs/nowhere, and no config beside .* writes it"):
        values_of(alone)


def test_the_adapter_of_the_package_is_one_to_go_on_from():
    values = values_of(CONFIGS / "rl_cpu.yaml", ["adapter=embedded", "lora=null"])
    assert values["lora"].r == json.loads((embedded_adapter_path() / "adapter_config.json").read_text())["r"]
    said = re.search(r"T = ([\d,]+) of them trained", report(values, Machine(), 300, None))
    assert said
    assert int(said[1].replace(",", "")) > 10**5


@pytest.mark.parametrize(
    ("config", "overrides", "said"),
    [
        ("rl_7b", ["model=nobody/nothing"], "couldn't connect"),
        ("rl_7b", ["model=./nowhere"], "nowhere"),
        ("rl_7b", ["adapter=runs/nowhere"], "no adapter at runs/nowhere, and no config beside"),
        ("rl_7b", ["training.num_iterations=2"], "training.num_iterations"),
        ("rl_7b", ["training=null"], "rl_7b.yaml holds no training"),
        ("rl_7b", ["training"], "an override is name=value"),
        ("nowhere", [], "nowhere.yaml"),
    ],
)
def test_the_command_says_what_is_wrong_in_one_line(
    config: str, overrides: list[str], said: str, monkeypatch: pytest.MonkeyPatch
):
    given = [word for override in overrides for word in ("--set", override)]
    monkeypatch.setattr("sys.argv", ["cost", str(CONFIGS / f"{config}.yaml"), *given])
    with pytest.raises(SystemExit, match=r"^cost: .*" + re.escape(said)) as ended:
        main()
    assert "\n" not in str(ended.value)


def grpo(**settings: Any) -> dict[str, Any]:
    training = {
        "max_completion_length": 1000, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "use_vllm": True,
        "vllm_gpu_memory_utilization": 0.5, "vllm_max_model_length": 2000, "vllm_enable_sleep_mode": True, "beta": 0.0,
    }  # fmt: skip
    return {"training": training | settings}


@pytest.mark.parametrize(
    ("settings", "line", "there"),
    [
        ({"beta": 0.01}, "forward for the KL", True),
        ({}, "forward for the KL", False),
        ({"use_vllm": False}, "decoding", False),
        ({}, "decoding", True),
    ],
)
def test_a_step_has_the_passes_that_its_settings_ask_for(settings: dict[str, Any], line: str, there: bool):
    size = sizes(7 * 10**9, 10**8)
    found = [one.what for one in times(grpo(**settings), size, Machine(), 500, 250, 2e10)]
    assert (line in found) == there


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("vllm_mode=server", r"training\.vllm_mode: what colocate takes .*; got server"),
        ("vllm_tensor_parallel_size=2", r"training\.vllm_tensor_parallel_size: what 1 takes .*; got 2"),
        ("num_iterations=4", r"training\.num_iterations: what 1 takes .*; got 4"),
        ("fp16=true", r"training\.fp16"),
        ("model_init_kwargs.dtype=float32", r"training\.model_init_kwargs\.dtype: what bfloat16 takes .*; got float32"),
        ("model_init_kwargs.dtype=float16", "got float16"),
        ("model_init_kwargs.dtype=auto", "got auto"),
        ("model_init_kwargs.torch_dtype=float32", r"model_init_kwargs\.torch_dtype"),
    ],
)
def test_what_is_not_counted_is_refused_by_name(override: str, named: str, folders: dict[str, str]):
    values = values_of(CONFIGS / "rl_7b.yaml", [f"training.{override}", f"model={folders['7b']}"])
    with pytest.raises(ConfigError, match=named):
        report(values, Machine(), 1024, None)


@pytest.mark.parametrize(
    "override",
    [
        "vllm_mode=colocate", "vllm_tensor_parallel_size=1", "num_iterations=1", "fp16=false",
        "model_init_kwargs.dtype=bfloat16", "model_init_kwargs=null", "learning_rate=1.0e-4",
    ],
)  # fmt: skip
def test_what_is_counted_is_not_refused(override: str, folders: dict[str, str]):
    values = values_of(CONFIGS / "rl_7b.yaml", [f"training.{override}", f"model={folders['7b']}"])
    assert "Sampling is not counted" not in report(values, Machine(), 1024, None)


def test_without_vllm_it_says_that_sampling_is_not_counted(folders: dict[str, str]):
    values = values_of(CONFIGS / "rl_7b.yaml", ["training.use_vllm=false", f"model={folders['7b']}"])
    assert "Sampling is not counted, neither its memory nor its time" in report(values, Machine(), 1024, None)


def test_without_a_length_of_its_own_sft_takes_trls(folders: dict[str, str]):
    def said(length: str) -> str:
        overrides = [f"training.max_length={length}", f"model={folders['7b']}"]
        return report(values_of(CONFIGS / "sft_7b.yaml", overrides), Machine(), 300, None)

    assert said("null") == said("1024") != said("556")
    values = values_of(CONFIGS / "sft_7b.yaml", [f"model={folders['7b']}"])
    values["training"]["max_length"] = None
    with pytest.raises(ConfigError, match=r"training\.max_length: null"):
        report(values, Machine(), 300, None)


def test_what_grows_makes_it_longer_or_larger():
    size, machine = sizes(7 * 10**9, 10**8), Machine()

    def step(reply: int = 250, cache: float = 2e10, size: Sizes = size, **settings: Any) -> float:
        return sum(line.value for line in times(grpo(**settings), size, machine, 500, reply, cache))

    assert step() < step(reply=500) < step(reply=500, gradient_accumulation_steps=4)
    assert step() < step(cache=57344 * 750 * 2), "a small cache takes several waves"
    assert step() < step(size=sizes(7 * 10**9, 7 * 10**9)), "gradients of all weights"
    assert step(steps_per_generation=4) < step(), "weights are read once for two steps"

    def peak(**settings: Any) -> float:
        return max(sum(line.value for line in lines) for lines in memory(grpo(**settings), size, machine, 500))

    assert peak(vllm_enable_sleep_mode=False) > peak()
    assert peak(gradient_checkpointing=False) > peak(per_device_train_batch_size=4)
    learning, sampling = memory({"training": {"max_length": 4096}}, size, machine, 500)
    assert learning
    assert not sampling
