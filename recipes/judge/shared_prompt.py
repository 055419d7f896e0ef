"""GRPO without a GPU: what the completions of a prompt share is computed once.

TRL runs a prompt through the model once per completion, to sample and again to train, and without a GPU it computes the
logits of every position besides (``trl/trainer/grpo_trainer.py``, ``_generate_single_turn`` and
``_get_per_token_logps_and_entropies``). A judge's prompt is long and its verdict short, so nearly all of that is the same
numbers over and over. Here the prompt runs once, and its keys and values serve all its completions; gradients flow back
through them. Loss and gradients are TRL's, up to rounding (``tests/recipes/test_train_rl.py``).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from trl import GRPOTrainer


def once(prompt: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Each different prompt once.

    Returns:
        Prompts and masks (R, T), and for every row (B,) which of them it has. TRL shuffles the rows of a batch.
    """
    rows, which = torch.unique(torch.cat([prompt, mask], dim=1), dim=0, return_inverse=True)
    return rows[:, : prompt.size(1)], rows[:, prompt.size(1) :], which


def places(mask: Tensor) -> Tensor:
    """Positions (B, T) of tokens in sequences padded on the left."""
    return (mask.cumsum(-1) - 1).clamp(min=0)


class SharedPromptTrainer(GRPOTrainer):  # type: ignore[misc]
    """``GRPOTrainer`` for text prompts on one CPU process."""

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        **images: Any,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        if compute_aux_loss or any(value is not None for value in images.values()):
            result: tuple[Tensor, Tensor | None, Tensor | None] = super()._get_per_token_logps_and_entropies(
                model,
                input_ids,
                attention_mask,
                logits_to_keep,
                batch_size,
                compute_entropy,
                compute_aux_loss,
                **images,
            )
            return result
        prompt, completion = input_ids[:, :-logits_to_keep], input_ids[:, -logits_to_keep:]
        prompt_mask = attention_mask[:, :-logits_to_keep]
        prompts, masks, which = once(prompt, prompt_mask)
        shared = model(
            input_ids=prompts,
            attention_mask=masks,
            position_ids=places(masks),
            logits_to_keep=1,
            use_cache=True,
        )
        logits = shared.logits[which]
        if logits_to_keep > 1:
            cache = shared.past_key_values
            cache.batch_select_indices(which)
            rest = model(
                input_ids=completion[:, :-1],
                attention_mask=attention_mask[:, :-1],
                position_ids=places(attention_mask[:, :-1])[:, -(logits_to_keep - 1) :],
                past_key_values=cache,
                use_cache=True,
            )
            logits = torch.cat([logits, rest.logits], dim=1)
        said = (logits.float() / self.temperature).log_softmax(dim=-1)
        chosen = said.gather(-1, completion.unsqueeze(-1)).squeeze(-1)
        entropy = -(said.exp() * said).sum(dim=-1) if compute_entropy else None
        return chosen, entropy, None

    def _generate_single_turn(
        self, prompt_ids: Any, images: Any, multimodal_fields: Any, num_generations: int, has_tool_images: bool = False
    ) -> tuple[list[list[int]], None]:
        if images is not None or multimodal_fields or self.use_vllm:
            other: tuple[list[list[int]], None] = super()._generate_single_turn(
                prompt_ids, images, multimodal_fields, num_generations, has_tool_images
            )
            return other
        width = max(map(len, prompt_ids))
        pad = self.processing_class.pad_token_id
        prompt = torch.tensor([[pad] * (width - len(ids)) + list(ids) for ids in prompt_ids])
        mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompt_ids])
        prompts, masks, which = once(prompt, mask)
        model = self.accelerator.unwrap_model(self.model_wrapped)
        training = model.training
        model.eval()
        try:
            with torch.no_grad():
                # All but the last token, which ``generate`` takes itself.
                cache = model(
                    input_ids=prompts[:, :-1],
                    attention_mask=masks[:, :-1],
                    position_ids=places(masks[:, :-1]),
                    logits_to_keep=1,
                    use_cache=True,
                ).past_key_values
                cache.batch_select_indices(which)
                output = model.generate(
                    input_ids=prompt,
                    attention_mask=mask,
                    past_key_values=cache,
                    generation_config=self.generation_config,
                )
        finally:
            model.train(training)
        ends = set(self.eos_token_ids)
        written = []
        for ids in output[:, width:].tolist():
            stop = next((place for place, token in enumerate(ids) if token in ends), len(ids) - 1)
            written.append(ids[: stop + 1])
        return written, None
