"""What a rubric is written from: a question with answers known to be good, or with a better and a worse one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mrjudge_reward.errors import InputError
from mrjudge_reward.fields import plain, shown_text
from mrjudge_reward.judging.tournament import is_degenerate
from mrjudge_reward.messages import Message, as_messages, final_answer
from mrjudge_reward.prompting.rendering import conversation_text
from mrjudge_reward.training.items import from_choice, with_images
from mrjudge_reward.training.layouts import compared

from .synthesis_filters import is_refusal, normalised
from .synthesis_rows import images_of, prompt_and_answer


@dataclass(frozen=True)
class Material:
    """A question with the answers that a rubric is written from.

    Attributes:
        row: its number, from 1.
        key: of its content.
        prompt: the question.
        as_text: it as it stood in the row, if that was a text alone.
        answers: references, or the better and the worse answer.
    """

    row: int
    key: str
    prompt: tuple[Message, ...]
    as_text: str | None
    answers: tuple[str, ...]


def material_of(
    row: Mapping[str, Any], number: int, kind: Literal["references", "preference"], prompt: str, answer: str
) -> Material:
    """What a row holds.

    Args:
        row: of a data set.
        number: its number, from 1.
        kind, prompt, answer: ``material``, ``prompt`` and ``answer`` of the recipe.

    Raises:
        InputError: if there is no prompt, or there are no answers of the kind that is asked for.
        UnicodeEncodeError: if a text holds half a surrogate pair.
    """
    messages, answers = _pair_of(row) if kind == "preference" else _references_of(row, prompt, answer)
    "\n".join((conversation_text(messages), *answers)).encode()
    text = row.get(prompt)
    as_text = text if isinstance(text, str) and messages == as_messages(text) else None
    return Material(number, from_choice(messages, answers or ("",), 0).group.key, messages, as_text, answers)


def _pair_of(row: Mapping[str, Any]) -> tuple[tuple[Message, ...], tuple[str, ...]]:
    found = compared(row)
    ranked = sorted(zip(found.gold_G, found.answers_G, strict=True), key=lambda pair: pair[0])
    return with_images(found.prompt, found.images), (ranked[-1][1], ranked[0][1])


def _references_of(
    row: Mapping[str, Any], prompt_at: str, answer_at: str
) -> tuple[tuple[Message, ...], tuple[str, ...]]:
    """The prompt, and those of its references that differ and answer something."""
    prompt, given = prompt_and_answer(row, prompt_at, answer_at)
    texts = [text for text in map(final_answer, _texts(given)) if not is_degenerate(text) and not is_refusal(text)]
    first = {normalised(text): text for text in reversed(texts)}
    return with_images(prompt, images_of(row)), tuple(first.values())[::-1]


def _texts(given: Any) -> list[str]:
    """References as texts: one or several, of any depth, or an assistant's turn."""
    given = plain(given)
    if not isinstance(given, list | tuple):
        text = shown_text(given, "reference")
        return [] if text is None else [text]
    if given and all(isinstance(turn, Mapping | Message) for turn in given):
        turns = as_messages(given)
        if len(turns) != 1 or turns[0].role != "assistant" or turns[0].images:
            raise InputError(f"a reference must be a text or one assistant turn of text; got {given!r:.100}")
        return [turns[0].text]
    return [text for one in given for text in _texts(one)]


def fault_of(material: Material) -> str:
    """Why no rubric can be written from it; empty if one can."""
    if not material.answers:
        return "no usable reference"  # empty, or a refusal
    return "empty answer" if any(map(is_degenerate, material.answers)) else ""
