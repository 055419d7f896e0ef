"""Policies: loading one, letting it write, and what its texts cost the base model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from mrjudge_reward import json_lines
from mrjudge_reward.engines.embedded import embedded_model_path
from mrjudge_reward.errors import ConfigError, InputError
from mrjudge_reward.messages import as_messages
from mrjudge_reward.training.tasks import Split, split_of
from recipes.data.reviews import openings

Prompt: TypeAlias = str | list[dict[str, Any]]
BATCH = 32


@dataclass(frozen=True)
class Completion:
    """What a policy wrote.

    Attributes:
        text: without special tokens, as it follows the prompt (a leading space included).
        ids: its tokens, without the end.
        ended: whether the policy ended by itself.
    """

    text: str
    ids: tuple[int, ...]
    ended: bool


def load_policy(model: str, adapter: str | None = None) -> tuple[Any, Any]:
    """A model for inference, in float32 without a GPU, and its tokenizer (which pads on the left).

    Args:
        model: hub name, path, or ``"embedded"``.
        adapter: folder of a LoRA on it.

    Raises:
        ConfigError: if the adapter cannot be loaded.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    name = str(embedded_model_path()) if model == "embedded" else model
    on_gpu = torch.cuda.is_available()
    policy = AutoModelForCausalLM.from_pretrained(name, dtype=torch.bfloat16 if on_gpu else torch.float32)
    if adapter is not None:
        from peft import PeftModel

        try:
            policy = PeftModel.from_pretrained(policy, adapter)
        except (OSError, ValueError) as error:
            raise ConfigError(f"no adapter at {adapter}: {error}") from error
    tokenizer = AutoTokenizer.from_pretrained(name, padding_side="left")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return policy.to("cuda" if on_gpu else "cpu").eval(), tokenizer


def prompts_of(source: str, split: Split) -> list[Prompt]:
    """The prompts of :func:`rows_of`."""
    return [row["prompt"] for row in rows_of(source, split)]


def rows_of(source: str, split: Split) -> list[dict[str, Any]]:
    """Rows of one side of a source, cut by a hash of their prompt's text: a ``prompt``, and what else a reward looks at.

    Args:
        source: ``"openings"`` of film reviews, or a file of JSON lines, each with a ``prompt`` (text or messages).
        split: which side.

    Raises:
        InputError: naming the first line that holds no prompt, or if there is none on this side.
    """
    known = ({"prompt": opening} for opening in openings())
    found = known if source == "openings" else (record for _, record in read_prompt_rows(source))
    chosen = [row for row in found if split_of(written_prompt(row["prompt"])) == split]
    if not chosen:
        raise InputError(f"{source} has no prompt in split {split!r}")
    return chosen


def read_prompt_rows(path: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of a file of JSON lines, with the numbers of their lines.

    Raises:
        InputError: naming the line that holds no prompt.
    """
    for number, record in json_lines.read(path):
        with json_lines.placed(f"{path}, line {number}"):
            yield number, record | {"prompt": prompt_in(record)}


def prompt_in(record: Mapping[str, Any]) -> Prompt:
    """The prompt of a record: text, or chat messages of text.

    Raises:
        InputError: if it holds none.
    """
    prompt = record.get("prompt")
    if not isinstance(prompt, str | list) or not prompt:
        raise InputError(f"prompt must be text or a list of messages; got {prompt!r:.60}")
    if isinstance(prompt, list) and any(message.images for message in as_messages(prompt)):
        raise InputError("prompt holds an image, and this recipe writes from text alone")
    return prompt


def written_prompt(prompt: Prompt) -> str:
    """A prompt as one text."""
    return prompt if isinstance(prompt, str) else "\n".join(message.text for message in as_messages(prompt))


def _encoded(prompt: Prompt, tokenizer: Any) -> list[int]:
    if isinstance(prompt, str):
        ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    else:
        ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"]
    return list(ids)


def complete(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    max_new_tokens: int,
    seed: int = 0,
    **sampling: Any,
) -> list[Completion]:
    """One sampled completion per prompt; the same seed gives two policies the same random numbers.

    Args:
        model, tokenizer: of the policy; its mode and the global random state are left as they were.
        prompts: a prompt may come several times.
        max_new_tokens: cap.
        seed: of the sampling.
        sampling: fields of transformers' ``GenerationConfig``.
    """
    import torch

    ends = {tokenizer.eos_token_id, tokenizer.pad_token_id, *_as_list(model.generation_config.eos_token_id)}
    encoded = [_encoded(prompt, tokenizer) for prompt in prompts]
    was_training = model.training
    model.eval()
    found: list[Completion] = []
    try:
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(seed)
            for start in range(0, len(encoded), BATCH):
                batch = tokenizer.pad(
                    {"input_ids": encoded[start : start + BATCH]}, padding_side="left", return_tensors="pt"
                ).to(model.device)
                output = model.generate(
                    **batch,
                    max_new_tokens=max_new_tokens,
                    do_sample=True,
                    pad_token_id=tokenizer.pad_token_id,
                    **sampling,
                )
                for row in output[:, batch["input_ids"].shape[1] :].tolist():
                    end = next((place for place, token in enumerate(row) if token in ends), None)
                    ids = row[:end]
                    text = tokenizer.decode(ids, skip_special_tokens=True)
                    found.append(Completion(text, tuple(ids), end is not None))
    finally:
        model.train(was_training)
    return found


def _as_list(value: int | list[int] | None) -> list[int]:
    return [] if value is None else [value] if isinstance(value, int) else value


def losses(model: Any, tokenizer: Any, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float]:
    """Minus the log-probability of each completion after its prompt, summed over its tokens; 0 for an empty one."""
    import torch

    found: list[float] = []
    encoded = [_encoded(prompt, tokenizer) for prompt in prompts]
    with torch.no_grad():
        for start in range(0, len(encoded), BATCH):
            rows = list(zip(encoded[start : start + BATCH], completions[start : start + BATCH], strict=True))
            batch = tokenizer.pad(
                {"input_ids": [[*ids, *written.ids] for ids, written in rows]}, padding_side="left", return_tensors="pt"
            ).to(model.device)
            positions = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)
            kept = max(len(written.ids) for _, written in rows) + 1
            logits = model(**batch, position_ids=positions, logits_to_keep=kept, use_cache=False).logits
            logprobs = torch.log_softmax(
                logits[:, :-1].float(), dim=-1
            )  # (B, kept - 1, V), for the last kept - 1 tokens
            for row, (_, written) in enumerate(rows):
                count = len(written.ids)
                own = logprobs[row, logprobs.shape[1] - count :]
                chosen = own.gather(1, torch.tensor(written.ids, dtype=torch.long, device=own.device).unsqueeze(1))
                found.append(float(-chosen.sum()))
    return found
