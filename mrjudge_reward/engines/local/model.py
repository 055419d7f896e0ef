"""What the engines that load a model themselves have in common."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from mrjudge_reward.errors import require

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


def sharded_by_trainer() -> bool:
    """Whether transformers would shard any model that it makes in this process (DeepSpeed ZeRO-3)."""
    return bool(require("transformers.integrations", extra="transformers").is_deepspeed_zero3_enabled())
