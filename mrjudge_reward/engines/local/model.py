"""What the engines that load a model themselves have in common."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mrjudge_reward.credentials import reply_fields_hash
from mrjudge_reward.errors import require


def folder_version(source: Any) -> str:
    """Sizes and times of a local model's files, so that a model trained anew in its place is another one to a cache."""
    folder = Path(source) if isinstance(source, str) else None
    if folder is None or not folder.is_dir():
        return ""
    files = sorted((f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in folder.iterdir() if f.is_file())
    return " " + hashlib.blake2b(repr(files).encode(), digest_size=6).hexdigest()


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
