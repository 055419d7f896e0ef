"""The memory plan: sizes that are those of the loaded model, and advice that works when it is followed."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mrjudge_reward.engines import memory as memory_plan
from mrjudge_reward.engines.memory import GIB, ModelSize, Room, device_room, host_free_bytes, model_size, plan_memory
from mrjudge_reward.errors import ConfigError, EngineError
from mrjudge_reward.judge import JudgeConfig

EIGHT_B = ModelSize(8_200_000_000, 16_400_000_000, 147_456, 40_960)
H100 = Room("cuda:0 (H100)", 80 * GIB, 60 * GIB)


def planned(size: ModelSize = EIGHT_B, room: Room = H100, **more: Any) -> memory_plan.MemoryPlan:
    settings = {"share": 0.4, "cache_tokens": 8192, "sleeps": True, "host_free": 500 * GIB, "judges_per_host": 1}
    return plan_memory(size, room, **{**settings, **more})


# -- sizes ------------------------------------------------------------------------------------------------------------


def test_a_model_is_counted_as_large_as_it_is_when_loaded(smol_path: str):
    import torch
    import transformers

    size = model_size(smol_path, "float32")
    model = transformers.AutoModelForCausalLM.from_pretrained(smol_path, dtype=torch.float32)
    assert size.parameters == sum(p.numel() for p in model.parameters()) == 134_515_008
    assert size.weight_bytes == sum(p.numel() * p.element_size() for p in model.parameters())
    assert size.context_tokens == 8192
    ids = torch.ones((1, 7), dtype=torch.long)
    cache = model(ids, use_cache=True).past_key_values
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert size.cache_bytes_per_token * 7 == held


def test_without_a_dtype_it_counts_as_it_was_saved(smol_path: str):
    assert model_size(smol_path, None).weight_bytes == 2 * 134_515_008


@pytest.mark.parametrize(
    ("how", "bits"),
    [
        ({"quant_method": "awq", "bits": 4}, 4),
        ({"quant_method": "gptq", "bits": 8}, 8),
        ({"quant_method": "fp8"}, 8),
        ({"quant_method": "mxfp4"}, 4),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, 4),
        ({"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": {"num_bits": 4}}}}, 4),
        (None, 0),
    ],
)
def test_the_bits_of_a_quantised_model_are_those_of_its_config(how: Any, bits: int):
    assert memory_plan._quantised_bits(SimpleNamespace(quantization_config=how)) == bits


def test_a_quantised_model_holds_its_linear_layers_at_their_bits(smol_path: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(memory_plan, "_quantised_bits", lambda config: 4)
    embeddings_and_norms = 134_515_008 - 106_168_320  # 30 layers of 3,538,944 numbers in linear layers
    assert model_size(smol_path, None).weight_bytes == 2 * embeddings_and_norms + 106_168_320 // 2


def test_latent_attention_caches_what_it_compresses_to():
    text = SimpleNamespace(num_hidden_layers=10, kv_lora_rank=512, qk_rope_head_dim=64)
    assert memory_plan.cache_numbers(text) == 5760


def test_a_model_that_is_not_there_is_an_error_that_says_so(tmp_path: Path):
    with pytest.raises(EngineError, match=r"the size of .* cannot be told"):
        model_size(str(tmp_path / "nothing"), None)


def test_the_cpu_has_what_its_control_group_allows(monkeypatch: pytest.MonkeyPatch):
    room = device_room(["cpu"])
    assert 0 < room.free_bytes <= room.total_bytes
    files = {"memory.max": str(5 * GIB), "memory.current": str(4 * GIB)}

    def read_text(path: Path, *args: Any, **more: Any) -> str:
        if path.name not in files:
            raise FileNotFoundError(path)
        return files[path.name]

    monkeypatch.setattr(Path, "read_text", read_text)
    assert host_free_bytes() == GIB
    files["memory.max"] = "max"
    assert host_free_bytes() > GIB


@pytest.mark.parametrize("name", ["MambaConfig", "T5Config"])
def test_a_config_that_lacks_what_is_counted_has_no_plan_and_is_no_other_error(name: str, tmp_path: Path):
    import transformers

    getattr(transformers, name)(num_layers=1).save_pretrained(tmp_path)
    with pytest.raises(EngineError, match=r"the size of .* cannot be told"):
        model_size(str(tmp_path), None)


SMALL = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "vocab_size": 100, "intermediate_size": 64,
}  # fmt: skip


def test_experts_of_a_quantised_model_are_quantised_too(tmp_path: Path):
    import torch
    import transformers

    config = transformers.Qwen3MoeConfig(**SMALL, num_experts=64, moe_intermediate_size=64, dtype=torch.bfloat16)
    config.save_pretrained(tmp_path)
    plain = model_size(str(tmp_path), None).weight_bytes
    config.quantization_config = {"quant_method": "awq", "bits": 4}
    config.save_pretrained(tmp_path)
    assert model_size(str(tmp_path), None).weight_bytes < 0.3 * plain


def test_a_dtype_that_the_text_model_alone_names_is_taken(tmp_path: Path):
    import transformers

    vision = {"depth": 1, "hidden_size": 32, "num_heads": 2, "intermediate_size": 32, "out_hidden_size": 64}
    config = transformers.Qwen3VLConfig(
        text_config={**SMALL, "vocab_size": 200, "dtype": "bfloat16"},
        vision_config={**vision, "deepstack_visual_indexes": [0]},
    )
    config.save_pretrained(tmp_path)
    size = model_size(str(tmp_path), None)
    assert size.weight_bytes == 2 * size.parameters


# -- plans ------------------------------------------------------------------------------------------------------------


def test_a_judge_that_fits_needs_no_advice():
    plan = planned()
    assert plan.fits
    assert not plan.advice
    assert plan.takes_bytes == int(0.4 * 80 * GIB)
    assert str(plan) == (
        "needs 32.0 GiB: weights 15.3 GiB (8.2B parameters), room for 114,515 tokens of cache; "
        "cuda:0 (H100) has 60.0 GiB of 80.0 GiB free now; "
        "asleep about 0.6 GiB stays, weights in the CPU's memory (level 1: 15.3 GiB of 500.0 GiB there)"
    )


@pytest.mark.parametrize(
    ("share", "what"),
    [
        (0.9, "0.9 takes 72.0 GiB, 60.0 GiB are free"),
        (0.1, "too little for the weights alone"),
        (0.2, "too little for one request at full length"),
    ],
)
def test_advice_on_a_share_holds_at_both_ends_of_the_range_it_names(share: float, what: str):
    plan = planned(share=share)
    assert not plan.fits
    assert what in plan.advice
    found = re.search(r"Set it between (\S+) and (\S+)\.", plan.advice)
    assert found
    for end in found.groups():
        assert planned(share=float(end)).fits, end


def test_where_no_share_helps_the_advice_names_other_ways():
    plan = planned(room=Room("cuda:0 (A10)", 24 * GIB, 10 * GIB))
    assert not plan.fits
    assert "10.0 GiB are free" in plan.advice
    assert "vllm_enable_sleep_mode" in plan.advice
    assert "LoRA on the policy's own base" in plan.advice
    assert "Set it between" not in plan.advice


def test_no_range_is_named_that_is_empty_when_it_is_rounded():
    size = ModelSize(1, 36 * GIB, 1024, 8192)
    plan = planned(size, Room("cuda:0", 80 * GIB, int(40.5 * GIB)), share=0.9, cache_tokens=int(3.3 * GIB / 1024))
    assert "Set it between" not in plan.advice
    assert "or take a smaller" in plan.advice


@pytest.mark.parametrize(("chosen", "host_gib", "fits"), [(1, 1, False), (2, 1, True), (2, 500, True), (1, 500, True)])
def test_a_level_that_was_chosen_is_the_one_that_is_planned(chosen: int, host_gib: int, fits: bool):
    plan = planned(sleep_level=chosen, host_free=host_gib * GIB)
    assert (plan.sleep_level, plan.fits) == (chosen, fits)


def test_devices_that_share_a_model_need_a_part_each():
    assert not planned(room=Room("cuda:0 (A10)", 24 * GIB, 16 * GIB), share=0.6).fits
    plan = planned(room=Room("cuda:0 (A10)", 24 * GIB, 16 * GIB, count=2), share=0.6)
    assert plan.fits
    assert "on each of 2 devices: weights 7.6 GiB" in str(plan)


@pytest.mark.parametrize(
    ("host_gib", "judges", "must_keep", "level", "fits"),
    [
        (500, 8, False, 1, True),
        (100, 8, False, 2, True),  # eight judges would keep 122 GiB
        (100, 1, False, 1, True),
        (100, 8, True, 1, False),
    ],
)
def test_the_sleep_level_follows_the_memory_that_all_judges_of_the_machine_need(
    host_gib: int, judges: int, must_keep: bool, level: int, fits: bool
):
    plan = planned(host_free=host_gib * GIB, judges_per_host=judges, must_keep=must_keep)
    assert (plan.sleep_level, plan.fits) == (level, fits)
    if not fits:
        assert "merge an adapter" in plan.advice


def test_the_judges_of_a_machine_are_as_many_as_the_launcher_says(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert planned(judges_per_host=None).host_needs_bytes == 4 * EIGHT_B.weight_bytes


def test_an_engine_that_stays_awake_has_no_sleep_level():
    plan = planned(sleeps=False)
    assert plan.sleep_level == 0
    assert "asleep" not in str(plan)


# -- of a config ------------------------------------------------------------------------------------------------------


def test_a_server_has_a_plan_of_its_own():
    assert JudgeConfig(model="m", base_url="http://127.0.0.1:1/v1").plan() is None


@pytest.mark.usefixtures("smol_path")
def test_the_plan_of_a_config_follows_its_engine(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)
    plain = JudgeConfig(device="cpu").plan()
    offloaded = JudgeConfig(engine="offload", device="cpu").plan()
    shared = JudgeConfig(engine="vllm_server", colocated=True, gpu_memory_utilization=0.25).plan()
    assert plain
    assert offloaded
    assert shared
    assert plain.size.weight_bytes == 4 * 134_515_008, "float32 on a CPU"
    assert plain.cache_tokens >= JudgeConfig().batch_tokens
    assert offloaded.size == plain.size
    assert shared.sleep_level == 0, "nothing sleeps on a CPU"
    assert shared.size.weight_bytes == 2 * 134_515_008, "as it was saved"
    assert shared.takes_bytes == int(0.25 * shared.room.total_bytes)
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "2")
    small = JudgeConfig(engine="vllm").plan()
    assert small
    assert small.takes_bytes == pytest.approx(small.size.weight_bytes + 3 * GIB, rel=1e-3)


@pytest.fixture
def eight_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 8)
    monkeypatch.setattr("mrjudge_reward.engines.vllm.setup.cpu_build", lambda: False)
    monkeypatch.setenv("LOCAL_RANK", "7")


@pytest.mark.usefixtures("eight_gpus")
def test_a_ranks_judge_is_loaded_to_the_device_that_is_locked_and_planned(monkeypatch: pytest.MonkeyPatch):
    given: dict[str, Any] = {}
    monkeypatch.setattr(
        "mrjudge_reward.engines.local.engine.TransformersEngine", lambda model, **settings: given.update(settings)
    )
    config = JudgeConfig(model="m", engine="transformers")
    config._load()
    assert [given["device"]] == config.devices() == ["cuda:7"]


@pytest.mark.usefixtures("eight_gpus")
def test_devices_are_the_first_for_a_model_over_several_and_one_that_is_not_there_is_refused():
    assert JudgeConfig(model="m", engine="vllm_server", tensor_parallel_size=2).devices() == ["cuda:0", "cuda:1"]
    for settings in ({"device": "cuda:9"}, {"tensor_parallel_size": 9}):
        with pytest.raises(ConfigError, match=r"9 is not to be had: there are 8 visible GPUs"):
            JudgeConfig(model="m", engine="vllm_server", **settings).devices()


@pytest.mark.usefixtures("eight_gpus")
@pytest.mark.parametrize(
    ("rank", "ranks", "gpus", "devices"),
    [
        (0, 1, 4, [0, 1, 2, 3]),
        (0, 2, 4, [0, 1, 2, 3]),
        (1, 2, 4, [4, 5, 6, 7]),
        (3, 4, 2, [6, 7]),
        (1, 2, 2, [2, 3]),
        (0, 8, 2, None),
        (1, 4, 4, None),
    ],
)
def test_each_rank_has_a_judge_over_gpus_of_its_own_or_none(
    monkeypatch: pytest.MonkeyPatch, rank: int, ranks: int, gpus: int, devices: list[int] | None
):
    monkeypatch.setenv("LOCAL_RANK", str(rank))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
    config = JudgeConfig(model="m", engine="vllm_server", tensor_parallel_size=gpus)
    if devices is not None:
        assert config.devices() == [f"cuda:{number}" for number in devices]
        return
    with pytest.raises(ConfigError, match=rf"{ranks} ranks .* over {gpus} GPUs .* 8 are visible: .* set base_url"):
        config.devices()


def test_without_a_gpu_a_vllm_for_gpus_is_left_to_fail_by_itself(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("mrjudge_reward.engines.vllm.setup.cpu_build", lambda: False)
    assert JudgeConfig(model="m", engine="vllm_server").devices() == ["cpu"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sleep_level": 1}, "set colocated: true"),
        ({"engine_kwargs": {"tensor_parallel_size": 2}}, "set tensor_parallel_size instead"),
        ({"engine_kwargs": {"max_model_len": 2}}, "set context_tokens instead"),
    ],
)
def test_what_the_plan_would_not_see_is_refused(settings: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        JudgeConfig(model="m", engine="vllm_server", **settings)
