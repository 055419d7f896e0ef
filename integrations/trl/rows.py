"""What comes in from TRL: rows of prompts, completions and columns, as one completion each that a judge can be shown."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any, Literal, TypeAlias

from mrjudge_reward.completions import Candidate, View, judged, own_words, readable
from mrjudge_reward.errors import InputError
from mrjudge_reward.images import known_as
from mrjudge_reward.messages import Message, TextPart, as_messages, calls_in, final_answer
from mrjudge_reward.reasoning import (
    THINK_OPEN,
    decode_marked,
    hidden_tokens,
    opened_by_template,
    opens_reasoning,
    split_reasoning,
)
from mrjudge_reward.rubrics.criteria import Rubric
from mrjudge_reward.training.items import with_images
from mrjudge_reward.types import Judgement

from .columns import anchor_texts, column, shown_rubrics, shown_texts

Thinking: TypeAlias = Literal["strip", "opened", "keep"]
Prompt: TypeAlias = str | Sequence[Mapping[str, Any]]
Completion: TypeAlias = str | Sequence[Mapping[str, Any]]

JUDGED = "mrjudge_judged"
"""The column in which a rollout hands over what it has judged already."""


@dataclass(frozen=True)
class JudgedRow:
    """A completion that a rollout has judged, maybe among more than are trained on: candidate ``index`` of the judgement."""

    judgement: Judgement
    index: int


@dataclass(frozen=True)
class Row:
    """One completion, as it travels between ranks."""

    prompt: tuple[Message, ...]
    answer: Candidate
    length: int
    reference: str | None
    rubric: str | Rubric | None
    judged: JudgedRow | None
    asked: bool
    of_environment: bool
    anchors: tuple[str, ...] | None


@dataclass
class RowReader:
    """Reads rows. Its attributes are the settings of ``JudgeReward`` of the same names, and whether a judge has criteria."""

    reference_column: str | None
    rubric_column: str | None
    judged_if: str | Callable[[Mapping[str, Any]], bool] | None
    thinking: Thinking
    view: View
    by_criteria: bool = False
    anchor_column: str | None = None

    def rows(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[Completion],
        completion_ids: Sequence[Sequence[int]] | None,
        columns: Mapping[str, Any],
        trainer: Any,
    ) -> list[Row]:
        """The rows of a call, in its order.

        Args:
            prompts, completions, completion_ids: parallel lists, as TRL passes them. Length n.
            columns: the dataset's other columns, each of length n.
            trainer: that called; None where nobody knows.

        Raises:
            InputError: if prompts and completions are not as many, or a row is not what a rollout judged.
            ConfigError: if a column is missing.
        """
        if len(prompts) != len(completions):
            raise InputError(f"{len(prompts)} prompts for {len(completions)} completions")
        texts = completion_texts(completions, completion_ids, trainer)
        read = [_with_text(said, text) for said, text in zip(completions, texts, strict=True)]
        opened = self.opened(trainer, prompts)
        if self.thinking == "strip" and completion_ids is not None and trainer is not None:
            for row, ids in enumerate(completion_ids):
                read[row] = _unless_cut(read[row], ids, trainer) if opened[row] else read[row]
        answers = [  # of turns the parser made something of its own, and they were looked at above
            judged(said, self.view, partial(self.answer_of, opened=within and isinstance(said, str)))
            for said, within in zip(read, opened, strict=True)
        ]
        if completion_ids is None:
            lengths = [len(own_words(answer.text)) for answer in answers]
        else:
            lengths = [own_length(*row, trainer) for row in zip(completions, completion_ids, strict=True)]
        references = shown_texts(columns, self.reference_column, len(prompts), "reference")
        rubrics = shown_rubrics(columns, self.rubric_column, len(prompts), self.by_criteria)
        known: Sequence[JudgedRow | None] = columns.get(JUDGED) or [None] * len(prompts)
        for row, (one, answer) in enumerate(zip(known, answers, strict=True)):
            if one is not None and one.judgement.group.candidates[one.index] != answer.text:
                raise InputError(
                    f"row {row} is not the text that the rollout judged: the trainer parses completions in its own way "
                    "(a response template?); leave out rollout_func"
                )
        shown = [_with_images(prompt, columns, index) for index, prompt in enumerate(prompts)]
        asked = self._asked(columns, len(prompts))
        environments = [one is not None for one in columns.get("environments") or [None] * len(prompts)]
        anchors = [
            None if texts is None else tuple(map(self.anchor_of, texts))
            for texts in anchor_texts(columns, self.anchor_column, len(prompts))
        ]
        return list(map(Row, shown, answers, lengths, references, rubrics, known, asked, environments, anchors))

    def _asked(self, columns: Mapping[str, Any], count: int) -> list[bool]:
        if callable(self.judged_if):
            return [bool(self.judged_if({name: of[i] for name, of in columns.items()})) for i in range(count)]
        return [True] * count if self.judged_if is None else list(map(bool, column(columns, self.judged_if)))

    def opened(self, trainer: Any, prompts: Sequence[Prompt]) -> list[bool]:
        """Whether reasoning is open where each prompt ends: text that is gone on with shows it, else the chat template."""
        own = {"chat_template": getattr(trainer, "chat_template", None)}
        kwargs = own | (getattr(trainer, "chat_template_kwargs", None) or {})
        by_template = opens_reasoning(getattr(trainer, "processing_class", None), kwargs)
        begun = [_begun(prompt, trainer) for prompt in prompts]
        return [by_template if text is None else bool(opened_by_template(text)) for text in begun]

    def answer_of(self, text: str, opened: bool = False) -> str:
        """What of a completion's text is judged, where its prompt opened the reasoning or did not."""
        return text if self.thinking == "keep" else final_answer(text, opened or self.thinking == "opened")

    def anchor_of(self, text: str) -> str:
        """What of an anchor is judged. No template opened a reasoning in it."""
        return text if self.thinking == "keep" else final_answer(text)


def prompts_of(chats: Sequence[Prompt] | None) -> list[Prompt]:
    """The prompts of chats that end in what is judged.

    Raises:
        InputError: if there are none.
    """
    if chats is None:
        raise InputError(
            "one list came, without the column 'messages': a reward function is called with prompts and completions (TRL), "
            "or with completions and messages=[...] (ms-swift)"
        )
    ends = [isinstance(chat[-1], Mapping) and chat[-1].get("role") == "assistant" for chat in chats]
    return [chat[:-1] if answered else chat for chat, answered in zip(chats, ends, strict=True)]


def completion_texts(
    completions: Sequence[Completion], ids: Sequence[Sequence[int]] | None, trainer: Any
) -> list[str | None]:
    """Texts of completions, with marks of reasoning that TRL skipped in decoding because they are special tokens.

    None for a completion that is more than a text: of several turns, say, or with calls.
    """
    texts = [_only_text(completion) for completion in completions]
    tokenizer = _tokenizer(trainer)
    hidden = hidden_tokens(tokenizer)
    if not hidden or ids is None:
        return texts
    return [  # where TRL did more than decode, as with tools, its text stands
        decode_marked(tokenizer, row, hidden) if tokenizer.decode(row, skip_special_tokens=True) == text else text
        for text, row in zip(texts, ids, strict=True)
    ]


def _only_text(completion: Completion) -> str | None:
    if isinstance(completion, str):
        return completion
    if len(completion) != 1 or completion[0].get("role") != "assistant" or calls_in(completion[0]):
        return None
    content = completion[0].get("content") if not completion[0].get("refusal") else None
    return content if isinstance(content, str) else None


_TOKENS_OF = "_get_tool_suffix_ids"
"""``GRPOTrainer``'s own answer to which tokens it puts in for messages of tools."""


def _between(completion: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """Runs of messages that are not the policy's."""
    runs = groupby(completion, lambda turn: turn["role"] != "assistant")
    return [list(turns) for outside, turns in runs if outside]


def own_length(completion: Completion, ids: Sequence[int], trainer: Any) -> int:
    """How many of a completion's tokens the policy wrote.

    TRL keeps its mask of what tools returned to itself. ``GRPOTrainer`` says with which tokens it put such messages in;
    AsyncGRPO passes the policy's own tokens alone. Where nobody is asked, it is the share of characters.
    """
    if isinstance(completion, str):
        return len(ids)
    runs = _between(completion)
    if not runs:
        return len(ids)
    if (tokens_of := getattr(trainer, _TOKENS_OF, None)) is not None:
        return len(ids) - sum(len(tokens_of(run)) for run in runs)
    if trainer is not None:
        return len(ids)
    whole = judged(completion, answer_of=str).text
    return round(len(ids) * len(own_words(whole)) / max(1, len(readable(whole))))


def _begun(prompt: Prompt, trainer: Any) -> str | None:
    """The text that the policy goes on with: all of a plain prompt, or the turn it has begun; None where it begins one."""
    if isinstance(prompt, str):
        return prompt
    last = prompt[-1] if prompt and getattr(trainer, "continues_turns", False) else {}
    return str(last.get("content") or "") if last.get("role") == "assistant" else None


def _tokenizer(trainer: Any) -> Any:
    processor: Any = getattr(trainer, "processing_class", None)
    return getattr(processor, "tokenizer", processor)


def _with_text(completion: Completion, text: str | None) -> Completion:
    if text is None or isinstance(completion, str):
        return completion if text is None else text
    return [{**completion[0], "content": text}]


def _last_turn(completion: Sequence[Mapping[str, Any]], ids: Sequence[int], trainer: Any) -> Sequence[int] | None:
    """The tokens of a completion's last turn; None where nobody knows where they begin."""
    results = _between(completion)
    if not results:
        return ids
    if (tokens_of := getattr(trainer, _TOKENS_OF, None)) is not None:
        put_in = list(tokens_of(results[-1]))
        ends = (end for end in range(len(ids), len(put_in) - 1, -1) if list(ids[end - len(put_in) : end]) == put_in)
        return ids[next(ends, 0) :]
    # AsyncGRPO passes the policy's own tokens alone: the turn before ends in the last but one token that ends a turn,
    # or, where the last turn was cut, in the last.
    if not (closing := getattr(trainer, "eos_token_ids", None)):
        return None
    return ids[next((at + 1 for at in range(len(ids) - 2, -1, -1) if ids[at] in closing), 0) :]


def _unless_cut(completion: Completion, ids: Sequence[int], trainer: Any) -> Completion:
    """A chat whose last turn is an open reasoning, if the reasoning that its template opened was never closed.

    Of such a turn TRL's parser makes all content, and of one that was closed and empty too, so that the text does not tell.
    """
    if isinstance(completion, str) or not completion:
        return completion
    last = completion[-1]
    content = last.get("content")
    if last["role"] != "assistant" or calls_in(last) or not isinstance(content, str):
        return completion
    turn = _last_turn(completion, ids, trainer)
    if turn is None or not split_reasoning(decode_marked(_tokenizer(trainer), turn), opened=True)[1]:
        return completion
    return [*completion[:-1], {**last, "content": f"{THINK_OPEN}{content}"}]


def _with_images(prompt: Prompt, columns: Mapping[str, Sequence[Any]], row: int) -> tuple[Message, ...]:
    """A prompt with the images of its dataset columns, unless it shows images already (TRL puts them in for itself)."""
    messages = as_messages(prompt, unshown=True)
    images = columns["images"][row] if "images" in columns else None
    if images is None and "image" in columns and columns["image"][row] is not None:
        images = [columns["image"][row]]
    if not images or any(part.image is not None for message in messages for part in message.images):
        return messages
    return with_images(messages, images)


ITS_OWN = "(Each response was asked something of its own, which stands before it.)"
"""The question of a group whose prompts have nothing in common."""


def common_prompt(prompts: Sequence[tuple[Message, ...]]) -> tuple[tuple[Message, ...], list[tuple[Message, ...]]]:
    """What the prompts of a group have in common, whole messages from their beginning, and what each has besides."""
    same = 0
    while all(len(prompt) > same and alike(prompt[same], prompts[0][same]) for prompt in prompts):
        same += 1
    return prompts[0][:same] or (Message("user", (TextPart(ITS_OWN),)),), [prompt[same:] for prompt in prompts]


def alike(one: Any, other: Any) -> bool:
    """Whether two prompts or messages are the same."""
    try:
        return bool(one == other)
    except (ValueError, RuntimeError):  # arrays and tensors do not compare as a whole
        return _contents(one) == _contents(other)


def _contents(value: Any) -> bytes:
    class Contents(pickle.Pickler):
        def reducer_override(self, part: Any) -> Any:  # tensors of the same values are pickled in different ways
            return (str, (known_as(part),)) if hasattr(part, "detach") else NotImplemented

    written = io.BytesIO()
    Contents(written).dump(value)
    return written.getvalue()
