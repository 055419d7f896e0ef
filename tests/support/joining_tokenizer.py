"""A tokenizer that, as Qwen's does, joins a label to the bracket before it: ``>A`` is one token."""

from __future__ import annotations

import string
from typing import Any


def joining_tokenizer(letters: str = "ABC") -> Any:
    """Letters by themselves, ``" A"`` and ``">A"`` as one token each, for these letters."""
    from tokenizers import Tokenizer
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    merges = [(before, letter) for before in "> " for letter in letters]
    words = [*string.printable, *(before + letter for before, letter in merges), "<|end|>"]
    model = BPE(vocab={word: number for number, word in enumerate(words)}, merges=merges)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), eos_token="<|end|>", pad_token="<|end|>")
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
    return tokenizer
