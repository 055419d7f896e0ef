"""The token that comes next after each prompt of a batch; what all of them begin with is computed once.

Prompts of one judge begin alike: with its instructions, and where a batch is of one group also with the policy's prompt and
its images. That beginning goes through the model alone, and its keys and values serve every prompt of the batch. The
probabilities are those of whole prompts, up to floating point.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from mrjudge_reward.errors import require

from .batches import Prompt

GREEDY: dict[str, Any] = {
    "do_sample": False, "temperature": None, "top_p": None, "top_k": None, "repetition_penalty": 1.0,
}  # fmt: skip
"""How ``generate`` takes the likeliest token, whatever the model's own generation config says."""

WORTHWHILE = 16
"""Tokens of a beginning that are worth a forward pass of their own."""

Padded: TypeAlias = Callable[[Sequence[Prompt]], tuple[Any, Any]]
"""Token ids and attention mask of a batch, both (B, T)."""
Shown: TypeAlias = Callable[[Sequence[Prompt], Any], dict[str, Any]]
"""What the model takes of a batch's images, given its token ids."""


def shared_beginning(prompts: Sequence[Prompt]) -> int:
    """How many tokens all prompts of a batch begin with; 0 if it is not worthwhile.

    Each prompt keeps a token of its own, and the beginning holds all images of every prompt: they must be the same.
    """
    images = prompts[0].seen
    if len(prompts) < 2 or any(list(map(id, prompt.seen)) != list(map(id, images)) for prompt in prompts):
        return 0
    ids = [prompt.ids for prompt in prompts]
    shortest = min(map(len, ids)) - 1
    outermost = zip(min(ids), max(ids), strict=False)  # in the order of lists: what these two share, all do
    shared = next((place for place, (one, other) in enumerate(outermost) if one != other), shortest)
    shared = min(shared, shortest)
    return shared if shared >= max(WORTHWHILE, prompts[0].images_end) else 0


def next_logits(model: Any, prompts: Sequence[Prompt], padded: Padded, shown: Shown, pad: int | None) -> Any:
    """Logits of the next token, (B, V).

    Args:
        model: in eval mode, without gradients.
        prompts: of the batch. Length B.
        padded, shown: make the model's inputs.
        pad: token for padding of a model that takes images; None for one of text alone.
    """
    # A prompt-tuning adapter puts its own beginning in front of whatever it is given, so it would come twice.
    whole = any(adapter.is_prompt_learning for adapter in getattr(model, "peft_config", {}).values())
    shared = 0 if whole else shared_beginning(prompts)
    if shared and (logits := _after(shared, model, prompts, padded, shown)) is not None:
        return logits
    ids, mask = padded(prompts)
    if pad is None:
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        return model(
            input_ids=ids, attention_mask=mask, position_ids=positions, logits_to_keep=1, use_cache=False
        ).logits[:, -1]
    # Each family counts positions around images in its own way, and ``generate`` knows it.
    return model.generate(
        input_ids=ids, attention_mask=mask, **shown(prompts, ids), max_new_tokens=1, pad_token_id=pad,
        return_dict_in_generate=True, output_logits=True, **GREEDY,
    ).logits[0]  # fmt: skip


def _after(shared: int, model: Any, prompts: Sequence[Prompt], padded: Padded, shown: Shown) -> Any:
    """Logits by way of the shared beginning; None if the model keeps something else than keys and values of all tokens."""
    torch = require("torch", extra="transformers")
    layer = require("transformers.cache_utils", extra="transformers").DynamicLayer
    first = Prompt(prompts[0].ids[:shared], prompts[0].seen, _cut(prompts[0].types, shared))
    ids, mask = padded([first])
    images = shown([first], ids)
    begun = model(input_ids=ids, attention_mask=mask, **images, logits_to_keep=1, use_cache=True)
    cache = begun.past_key_values
    if any(type(kept) is not layer for kept in getattr(cache, "layers", [None])):
        return None
    # Qwen's families count an image by its rows and columns, so that text goes on elsewhere than at the number of tokens.
    moved = int(begun.rope_deltas[0]) if images and getattr(begun, "rope_deltas", None) is not None else 0
    cache.batch_repeat_interleave(len(prompts))
    ids, mask = padded([Prompt(prompt.ids[shared:]) for prompt in prompts])
    positions = shared + moved + (mask.cumsum(-1) - 1).clamp(min=0)  # (B, T - shared)
    whole = torch.cat([mask.new_ones(len(prompts), shared), mask], dim=1)
    return model(
        input_ids=ids,
        attention_mask=whole,
        position_ids=positions,
        past_key_values=cache,
        logits_to_keep=1,
        use_cache=True,
    ).logits[:, -1]


def _cut(types: dict[str, list[int]] | None, end: int) -> dict[str, list[int]] | None:
    return None if types is None else {name: values[:end] for name, values in types.items()}
