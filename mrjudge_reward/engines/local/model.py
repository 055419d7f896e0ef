"""What the engines that load a model themselves have in common."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mrjudge_reward.errors import EngineError, require
from mrjudge_reward.types import Request


def folder_version(source: Any) -> str:
    """Sizes and times of a local model's files, so that a model trained anew in its place is another one to a cache."""
    folder = Path(source) if isinstance(source, str) else None
    if folder is None or not folder.is_dir():
        return ""
    files = sorted((f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in folder.iterdir() if f.is_file())
    return " " + hashlib.blake2b(repr(files).encode(), digest_size=6).hexdigest()


def first_label_tokens(encode: Callable[[str], list[int]], request: Request) -> list[int]:
    """First token of each label as it would follow the prefill.

    Raises:
        EngineError: if two labels begin with the same token, so that one token cannot tell them apart.
    """
    before = encode(request.prefill)
    ids: list[int] = []
    for label in request.labels:
        after = encode(request.prefill + label)
        # Where the tokenizer would merge label and prefill, the label's own first token is what a model can write.
        ids.append(after[len(before)] if after[: len(before)] == before else encode(label)[0])
    if len(set(ids)) != len(ids):
        raise EngineError(
            f"the labels {request.labels!r} do not differ in their first token for this tokenizer, so they cannot be "
            "read; choose other labels (single letters, or one-digit grades), or verdict='generate'"
        )
    return ids


def sharded_by_trainer() -> bool:
    """Whether transformers would shard any model that it makes in this process (DeepSpeed ZeRO-3)."""
    return bool(require("transformers.integrations", extra="transformers").is_deepspeed_zero3_enabled())
