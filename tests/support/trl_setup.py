"""Small policies and configs for tests of real TRL trainers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset

PROMPTS = [
    "The film opens with", "I went to see it because", "By the second act", "The lead actor", "What the director wants",
    "My friends told me", "After two hours", "The music in this",
]  # fmt: skip


def prompt_dataset(**columns: list[Any]) -> Dataset:
    return Dataset.from_dict({"prompt": PROMPTS, **columns})


def tiny_policy(tokenizer: Any, heads: int = 4, context: int = 512) -> Any:
    """A random Llama of a quarter million parameters besides its embedding: real training in milliseconds.

    Args:
        tokenizer: whose tokens it speaks.
        heads: of attention; two for vLLM, which wants 32 dimensions each.
        context: in tokens.
    """
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=heads,
        num_key_value_heads=2, max_position_embeddings=context, tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def common(out: Path, **more: Any) -> dict[str, Any]:
    """Arguments that every trainer's config takes."""
    return {
        "output_dir": str(out), "max_steps": 2, "logging_steps": 1, "save_strategy": "no", "report_to": "none",
        "use_cpu": True, "bf16": False, "gradient_checkpointing": False, "learning_rate": 1e-4, "disable_tqdm": True,
        "dataloader_pin_memory": False, **more,
    }  # fmt: skip


def grpo_like(out: Path, **more: Any) -> dict[str, Any]:
    """Arguments of GRPOConfig and RLOOConfig."""
    return common(
        out, per_device_train_batch_size=8, num_generations=4, max_completion_length=8, temperature=1.0, **more
    )


def logged(trainer: Any, name: str) -> list[float]:
    """The values a metric took over the run."""
    return [entry[name] for entry in trainer.state.log_history if name in entry]
