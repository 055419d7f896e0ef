"""Whether a judge fits the device, said before anything is loaded.

``judge needs x, the device has y free, do z``. The model's size is counted on torch's meta device from its config alone:
no weights are read, and of a model on the hub only ``config.json`` is fetched. What a policy takes on the device counts
as far as it holds it when the plan is made, so plan where the judge will wake: with the policy's rollout engine asleep.

Estimates, as such: a quantised model is taken to hold its linear layers and experts (but not its head) at the config's
bits; a sliding window is taken for full attention; one GiB is set aside for activations, CUDA graphs and the allocator.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mrjudge_reward.engines.local.model import sharded_by_trainer
from mrjudge_reward.errors import EngineError, require

GIB = 2**30
WORKING_BYTES = GIB
"""Set aside beside weights and cache."""

_KEEPS_BYTES = int(0.6 * GIB)  # a sleeping process: its CUDA context
_HOST_MARGIN = 1.1


@dataclass(frozen=True)
class ModelSize:
    """How large a model is.

    Attributes:
        parameters: numbers, tied ones once.
        weight_bytes: of all of them.
        cache_bytes_per_token: keys and values of all layers.
        context_tokens: the most that the model takes; None if its config does not say.
    """

    parameters: int
    weight_bytes: int
    cache_bytes_per_token: int
    context_tokens: int | None


@dataclass(frozen=True)
class Room:
    """Memory of a device.

    Attributes:
        name: e.g. ``"cuda:0 (NVIDIA H100)"``.
        total_bytes, free_bytes: of each of ``count`` devices; the least of them.
        count: devices that share the model.
    """

    name: str
    total_bytes: int
    free_bytes: int
    count: int = 1


@dataclass(frozen=True)
class MemoryPlan:
    """What a judge takes, what there is, and what to do.

    Attributes:
        size: of the model.
        room: on the device.
        takes_bytes: of each device while the judge is awake.
        cache_tokens: tokens of prefix cache in that.
        host_needs_bytes, host_free_bytes: what the sleeping judges of this machine keep in the CPU's memory.
        sleep_level: of vLLM: 1 keeps weights in the CPU's memory, 2 reads them again. 0 for an engine that does not sleep.
        fits: whether it can be loaded now.
        advice: what to do; empty if it fits.
    """

    size: ModelSize
    room: Room
    takes_bytes: int
    cache_tokens: int
    host_needs_bytes: int
    host_free_bytes: int
    sleep_level: int
    fits: bool
    advice: str

    def __str__(self) -> str:
        room, size = self.room, self.size
        each = f" on each of {room.count} devices" if room.count > 1 else ""
        said = (
            f"needs {gib(self.takes_bytes)}{each}: weights {gib(size.weight_bytes // room.count)} "
            f"({size.parameters / 1e9:.2g}B parameters), room for {self.cache_tokens:,} tokens of cache; "
            f"{room.name} has {gib(room.free_bytes)} of {gib(room.total_bytes)} free now"
        )
        if self.sleep_level:
            kept = "weights in the CPU's memory" if self.sleep_level == 1 else "weights dropped, read again to wake"
            said += (
                f"; asleep about {gib(_KEEPS_BYTES)} stays, {kept} (level {self.sleep_level}: "
                f"{gib(self.host_needs_bytes)} of {gib(self.host_free_bytes)} there)"
            )
        return said + (f". {self.advice}" if self.advice else "")


def gib(count: int) -> str:
    """Bytes for a reader.

    >>> gib(3 * 2**29)
    '1.5 GiB'
    """
    return f"{count / GIB:.1f} GiB"


def model_size(model: str, dtype: str | None, options: Mapping[str, Any] | None = None) -> ModelSize:
    """Count a model without loading it.

    Args:
        model: hub name or path.
        dtype: e.g. ``"bfloat16"``; None for what it was saved in.
        options: for transformers, e.g. ``revision`` and ``trust_remote_code``.

    Raises:
        EngineError: if there is no such model, or transformers cannot build it.
    """
    torch = require("torch", extra="transformers")
    transformers = require("transformers", extra="transformers")
    if sharded_by_trainer():
        raise EngineError(f"the size of {model!r:.200} cannot be told in a process that trains with DeepSpeed ZeRO-3")
    options = {"trust_remote_code": False, **(options or {})}  # unset, transformers would ask on the terminal
    try:
        config = transformers.AutoConfig.from_pretrained(model, **options)
        # Some name it for the text model alone. Looked up before the building, which sets it.
        saved = getattr(config, "dtype", None) or getattr(config.get_text_config(), "dtype", None)
        with torch.device("meta"):
            built = built_empty(config, bool(options["trust_remote_code"]))
        return _size_of(built, config, getattr(torch, dtype or "", None) or saved or torch.float32)
    except Exception as error:  # whatever a config lacks
        raise EngineError(f"the size of {model!r:.200} cannot be told: {type(error).__name__}: {error}") from error


def _size_of(built: Any, config: Any, stored: Any) -> ModelSize:
    torch = require("torch", extra="transformers")
    text = config.get_text_config()
    bits, quantised = _quantised_bits(config), set()
    if bits:
        linear = (
            module
            for name, module in built.named_modules()
            if isinstance(module, torch.nn.Linear) and name != "lm_head"
        )
        quantised = {id(module.weight) for module in linear}
        quantised |= {id(p) for p in built.parameters() if p.ndim == 3}  # the experts of a layer, in one tensor
    parameters = list(built.parameters())  # tied ones come once
    weights = sum(p.numel() * (bits / 8 if id(p) in quantised else stored.itemsize) for p in parameters)
    return ModelSize(
        sum(p.numel() for p in parameters),
        int(weights),
        cache_numbers(text) * (stored.itemsize if stored.is_floating_point else 2),
        getattr(text, "max_position_embeddings", None),
    )


def built_empty(config: Any, trust_remote_code: bool = False) -> Any:
    """The model of a config, with weights on torch's current device: the meta device, to have none."""
    transformers = require("transformers", extra="transformers")
    try:
        return transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    except ValueError:  # not among them
        return transformers.AutoModelForImageTextToText.from_config(config, trust_remote_code=trust_remote_code)


def cache_numbers(text: Any) -> int:
    """Numbers that a token leaves in the cache."""
    if getattr(text, "kv_lora_rank", None):  # multi-head latent attention
        return int(text.num_hidden_layers * (text.kv_lora_rank + text.qk_rope_head_dim))
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return int(2 * text.num_hidden_layers * heads * width)


def _quantised_bits(config: Any) -> int:
    """Bits of a linear layer's weight; 0 for a model that is not quantised."""
    how = getattr(config, "quantization_config", None)
    if how is None:
        return 0
    values: Mapping[str, Any] = how if isinstance(how, Mapping) else how.to_dict()
    if values.get("load_in_4bit") or "4" in str(values.get("quant_method")):  # mxfp4, nvfp4
        return 4
    for group in (values.get("config_groups") or {}).values():  # compressed-tensors
        return int((group.get("weights") or {}).get("num_bits") or 8)
    return int(values.get("bits") or values.get("w_bit") or 8)


def host_free_bytes() -> int:
    """The CPU's memory that this process may still take: what the machine has, or its control group is allowed."""
    psutil = require("psutil", extra="transformers")
    free = int(psutil.virtual_memory().available)
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            allowed, taken = (int(Path("/sys/fs/cgroup", name).read_text()) for name in (limit, used))
        except (OSError, ValueError):  # no control groups here, or no limit ("max")
            continue
        free = min(free, max(0, allowed - taken))
    return free


def device_room(devices: list[str]) -> Room:
    """Memory of devices that share a model."""
    if not devices[0].startswith("cuda"):
        psutil = require("psutil", extra="transformers")
        return Room("the CPU", int(psutil.virtual_memory().total), host_free_bytes())
    torch = require("torch", extra="transformers")
    found = [torch.cuda.mem_get_info(torch.device(device)) for device in devices]
    name = f"{devices[0]} ({torch.cuda.get_device_name(torch.device(devices[0]))})"
    return Room(name, min(total for _, total in found), min(free for free, _ in found), len(devices))


def plan_memory(
    size: ModelSize,
    room: Room,
    *,
    share: float | None,
    cache_tokens: int,
    sleeps: bool,
    must_keep: bool = False,
    sleep_level: int | None = None,
    host_free: int | None = None,
    judges_per_host: int | None = None,
) -> MemoryPlan:
    """Plan a judge.

    Args:
        size: of the model.
        room: of its devices.
        share: fraction of the device that the engine takes for everything (``gpu_memory_utilization``); None for one that
            takes what it needs.
        cache_tokens: tokens that must be in the cache at once: one request and its reply at least.
        sleeps: whether it is to leave the device between turns.
        must_keep: whether its weights must stay in the CPU's memory, as vLLM can read a model again but no adapter.
        sleep_level: that was chosen already; None to choose.
        host_free: bytes of the CPU's memory; None to look.
        judges_per_host: that sleep in it; None for the launcher's ``LOCAL_WORLD_SIZE``.
    """
    weights = size.weight_bytes // room.count
    per_token = max(1, size.cache_bytes_per_token // room.count)
    least = weights + cache_tokens * per_token + WORKING_BYTES
    takes = least if share is None else int(share * room.total_bytes)
    advice = _advice(least, takes, weights, room, share)
    host = host_free if host_free is not None else host_free_bytes()
    judges = judges_per_host if judges_per_host is not None else int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    kept, level = size.weight_bytes * judges if sleeps else 0, int(sleeps)
    if sleeps and sleep_level == 2:
        kept, level = 0, 2
    elif sleeps and kept * _HOST_MARGIN > host:
        if must_keep or sleep_level == 1:
            advice += (
                f" The CPU's memory has {gib(host)} for the {gib(kept)} of weights that sleeping judges keep there. Take "
                "sleep_level 2 of vLLM, which keeps none (merge an adapter into the model first), or a smaller judge."
            )
        else:
            kept, level = 0, 2
    cache = max(0, takes - weights - WORKING_BYTES) // per_token
    fits = not advice
    return MemoryPlan(size, room, takes, cache, kept, host, level, fits, advice.strip())


def _advice(least: int, takes: int, weights: int, room: Room, share: float | None) -> str:
    """What to do where it does not fit; empty where it does."""
    elsewhere = (
        "a smaller or quantised judge, a LoRA on the policy's own base, or a server on another device (base_url)"
    )
    total, free = room.total_bytes, room.free_bytes
    if least > free or (share is not None and float(_up(least / total)) > float(_down(free / total))):
        return (
            f"It does not fit: {gib(least)} is the least, {gib(free)} are free. Let the policy give memory back while the "
            "judge is awake (TRL: vllm_enable_sleep_mode, or a lower vllm_gpu_memory_utilization), or take "
            f"{elsewhere}."
        )
    if share is None:
        return ""
    between = f"Set it between {_up(least / total)} and {_down(free / total)}."
    if takes > free:
        return f"It does not fit: gpu_memory_utilization {share:g} takes {gib(takes)}, {gib(free)} are free. {between}"
    if takes < least:
        what = "the weights alone" if takes < weights else "one request at full length"
        return f"gpu_memory_utilization {share:g} is too little for {what}. {between}"
    return ""


def _up(fraction: float) -> str:
    return f"{min(1.0, -(-fraction * 100 // 1) / 100):.2f}"


def _down(fraction: float) -> str:
    return f"{fraction * 100 // 1 / 100:.2f}"
