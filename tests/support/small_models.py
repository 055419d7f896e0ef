"""A text model with the embedded model's tokenizer and random weights, for tests in which no verdict matters."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def small_text_model(tokenizer: Any, folder: Path) -> str:
    """A folder with SmolLM2's architecture at three million parameters, nearly all of them its embedding."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=1024, tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def small_tokenizer(tokenizer: Any, texts: list[str], folder: Path, size: int = 600) -> str:
    """A folder with a tokenizer of the same kind and few tokens: without a GPU TRL scores every token of the vocabulary at
    every place."""
    tokenizer.train_new_from_iterator(texts, size).save_pretrained(folder)
    return str(folder)
