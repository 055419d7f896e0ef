"""What the engines that load a model themselves have in common."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mrjudge_reward.credentials import reply_fields_hash
from mrjudge_reward.errors import EngineError, require

_SAMPLES = 64
_EFFICIENT = "FSDP_CPU_RAM_EFFICIENT_LOADING"
_loading = threading.Lock()

_ENDLESS = 10**9  # tokenizers that know no bound say 10**30


def folder_version(source: Any) -> str:
    """Sizes and times of a local model's files, so that a model trained anew in its place is another one to a cache."""
    folder = Path(source) if isinstance(source, str) else None
    if folder is None or not folder.is_dir():
        return ""
    files = sorted((f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in folder.iterdir() if f.is_file())
    return " " + hashlib.blake2b(repr(files).encode(), digest_size=6).hexdigest()


def context_of(config: Any, tokenizer: Any) -> int | None:
    """The most tokens that a model takes: as its config says, else its tokenizer; None if neither does."""
    size = getattr(config, "max_position_embeddings", None) or getattr(tokenizer, "model_max_length", None)
    return int(size) if size and size < _ENDLESS else None


def template_kwargs_version(kwargs: Mapping[str, Any] | None) -> str:
    """Hash of what a chat template is told; a name is shown, and holds no fields."""
    return f" chat_template_kwargs {reply_fields_hash({'chat_template_kwargs': kwargs})}" if kwargs else ""


def tokenizer_version(tokenizer: Any) -> str:
    """Hash of a tokenizer's vocabulary and chat template: with others, a judge of the same weights says something else."""
    content = tokenizer.chat_template, sorted(tokenizer.get_vocab().items()), sorted(tokenizer.all_special_tokens)
    return " " + hashlib.blake2b(repr(content).encode(errors="surrogatepass"), digest_size=6).hexdigest()


def sharded_by_trainer() -> bool:
    """Whether transformers would shard any model that it makes in this process (DeepSpeed ZeRO-3)."""
    return bool(require("transformers.integrations", extra="transformers").is_deepspeed_zero3_enabled())


@contextmanager
def loaded_whole() -> Iterator[None]:
    """A model that is loaded inside has its weights on every rank.

    ``accelerate launch`` with FSDP asks transformers to load on the first rank of a machine alone and to leave zeros on
    the others (``modeling_utils``, ``is_fsdp_enabled``), to which the trainer sends the weights. Nobody sends a judge's.
    """
    with _loading:
        before = os.environ.get(_EFFICIENT)
        os.environ[_EFFICIENT] = "false"
        try:
            yield
        finally:
            if before is None:
                del os.environ[_EFFICIENT]
            else:
                os.environ[_EFFICIENT] = before


def _sample(parameter: Any) -> Any:
    flat = parameter.detach().reshape(-1)
    return flat[:: max(1, flat.numel() // _SAMPLES)][:_SAMPLES].cpu().contiguous()


def fingerprint(parameters: Sequence[Any]) -> str:
    """A hash of 64 entries of each tensor: the same wherever the same weights lie, another one after any training."""
    torch = require("torch", extra="transformers")
    digest = hashlib.blake2b(digest_size=8)
    for parameter in parameters:
        shape = f"{tuple(parameter.shape)} {parameter.dtype}"
        digest.update(shape.encode() + _sample(parameter).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def check_weights(model: Any, source: str) -> None:
    """Whether a model that was loaded has weights.

    Raises:
        EngineError: if some are nowhere (on the device ``meta``), or most matrices hold zeros or what is no number.
    """
    matrices = [(name, parameter) for name, parameter in model.named_parameters() if parameter.dim() > 1]
    nowhere = [name for name, parameter in matrices if parameter.is_meta]
    samples = {name: _sample(parameter) for name, parameter in matrices if not parameter.is_meta}
    empty = [name for name, sample in samples.items() if not sample.any() or not sample.isfinite().all()]
    if nowhere or len(empty) > len(matrices) // 2:
        raise EngineError(
            f"the judge model {source!r} was loaded without its weights: {len(nowhere or empty)} of {len(matrices)} "
            f"matrices are {'nowhere' if nowhere else 'zeros or no numbers'} (first: {(nowhere or empty)[0]}). Something in "
            "this process changes how models are loaded, such as a trainer that shards them: use engine vllm_server, or a "
            "server (base_url)"
        )
