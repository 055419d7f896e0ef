"""What the prompts of a batch begin with is computed once, and nothing comes out differently."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import transformers

from mrjudge_reward.engines.local.batches import Prompt, Seen, padded
from mrjudge_reward.engines.local.reading import WORTHWHILE, next_logits, shared_beginning

BEGINNING = list(range(1, 25))
SIZES: dict[str, Any] = {
    "vocab_size": 99, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "pad_token_id": 0,
}  # fmt: skip


def prompts(*ends: Sequence[int]) -> list[Prompt]:
    return [Prompt([*BEGINNING, *end]) for end in ends]


def test_a_beginning_is_what_all_share_and_leaves_each_prompt_a_token():
    assert shared_beginning(prompts([50], [51, 52])) == len(BEGINNING)
    assert shared_beginning(prompts([50, 51], [50, 52], [50])) == len(BEGINNING)
    assert shared_beginning(prompts([], [1])) == len(BEGINNING) - 1
    assert shared_beginning(prompts([7, 7], [7, 7])) == len(BEGINNING) + 1, "equal prompts"
    assert shared_beginning([*prompts([50]), Prompt([9, *BEGINNING])]) == 0


def test_a_prompt_alone_or_a_beginning_too_short_is_read_whole():
    assert shared_beginning(prompts([50])) == 0
    short = BEGINNING[: WORTHWHILE - 1]
    assert shared_beginning([Prompt([*short, 50]), Prompt([*short, 51])]) == 0


def test_a_beginning_holds_all_images_of_all_prompts_or_is_none():
    cat, dog = (Seen([5, 5], {}, {}, 8) for _ in "12")
    ids = [[*BEGINNING, end] for end in (50, 51)]
    assert shared_beginning([Prompt(i, (cat,), None, 6) for i in ids]) == len(BEGINNING)
    assert shared_beginning([Prompt(i, (cat,), None, len(BEGINNING) + 1) for i in ids]) == 0, "an image behind it"
    assert shared_beginning([Prompt(i, (image,), None, 6) for i, image in zip(ids, (cat, dog), strict=True)]) == 0
    assert shared_beginning([Prompt(ids[0], (cat,), None, 6), Prompt(ids[1])]) == 0


@pytest.mark.parametrize(
    ("config", "passes"),
    [
        (transformers.LlamaConfig(**SIZES), 2),
        (transformers.MistralConfig(**SIZES, sliding_window=8), 2),
        (transformers.MistralConfig(**SIZES, sliding_window=None), 2),
    ],
    ids=["Llama", "Mistral, window of 8", "Mistral, no window"],
)
def test_logits_are_those_of_whole_prompts_where_the_model_keeps_what_it_needs_for_it(config: Any, passes: int):
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    batch = prompts([50], [51, 52, 53, 54, 55], [60, 61])
    sizes: list[tuple[int, ...]] = []
    forward = model.forward

    def counted(*args: Any, input_ids: Any, **more: Any) -> Any:
        sizes.append(tuple(input_ids.shape))
        return forward(*args, input_ids=input_ids, **more)

    model.forward = counted
    with torch.no_grad():
        together = next_logits(model, batch, lambda some: padded(some, 0, "cpu"), lambda *_: {}, None)
        assert len(sizes) == passes
        assert sizes[0] == (1, len(BEGINNING))
        assert sizes[1] == (
            (3, len(BEGINNING) + 5) if config.model_type == "mistral" and config.sliding_window else (3, 5)
        )
        alone = torch.cat([forward(torch.tensor([prompt.ids])).logits[:, -1] for prompt in batch])
    assert torch.allclose(together, alone, atol=1e-5)
    assert not torch.allclose(together[0], together[1], atol=1e-3)


def test_a_prompt_tuning_adapter_stands_before_each_prompt_once():
    import peft

    torch.manual_seed(0)
    base = transformers.AutoModelForCausalLM.from_config(transformers.LlamaConfig(**SIZES))
    model = peft.get_peft_model(base, peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)).eval()
    batch = prompts([50], [51, 52, 53])
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Position ids are not supported")
        together = next_logits(model, batch, lambda some: padded(some, 0, "cpu"), lambda *_: {}, None)
        alone = torch.cat([model(input_ids=torch.tensor([prompt.ids])).logits[:, -1] for prompt in batch])
    assert torch.allclose(together[1], alone[1], atol=1e-5), "the longest, which has no padding"
