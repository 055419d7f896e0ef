"""Chat messages: their texts, images and calls of tools, and what of a turn is its answer."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from .errors import InputError
from .fields import plain
from .images import bare, placed
from .reasoning import is_thought, split_reasoning

RESULTS = frozenset({"tool", "function", "ipython"})
"""Roles of what tools returned."""


@dataclass(frozen=True, slots=True)
class TextPart:
    """A piece of text inside a message."""

    text: str


@dataclass(frozen=True, slots=True)
class CallPart(TextPart):
    """A call of a tool: ``said`` is its name and its arguments as JSON, ``id`` what its result may name."""

    name: str = ""
    said: str = ""
    id: str | None = None


@dataclass(frozen=True, slots=True)
class UnshownPart(TextPart):
    """What no judge can be shown, such as audio; it fails its group."""

    kind: str = ""


@dataclass(frozen=True, slots=True)
class ImagePart:
    """An image inside a message: a PIL image, a path, raw bytes, a (data) URL, a frame, or a ``Picture``; see ``images``."""

    image: Any


Part: TypeAlias = TextPart | ImagePart


@dataclass(frozen=True, slots=True)
class Message:
    """One chat turn."""

    role: str
    content: tuple[Part, ...]

    @property
    def text(self) -> str:
        """The text parts, joined by newlines."""
        return "\n".join(part.text for part in self.content if isinstance(part, TextPart))

    @property
    def images(self) -> tuple[ImagePart, ...]:
        """The image parts, in order."""
        return tuple(part for part in self.content if isinstance(part, ImagePart))


def as_part(part: Any, unshown: bool = False) -> Part:
    """A message part as trainers and servers write it.

    Args:
        part: a mapping, or a part already.
        unshown: take one of a type that is neither text nor image as an ``UnshownPart``.

    Raises:
        InputError: if it is none.
    """
    if isinstance(part, TextPart | ImagePart):
        return part
    if isinstance(part, Mapping):
        if part.get("type") == "text" and isinstance(part.get("text"), str):
            return TextPart(part["text"])
        if part.get("type") == "image":
            given = (part.get(name) for name in ("image", "url", "path"))
            return ImagePart(next((one for one in given if isinstance(one, bytes | list) or not _empty(one)), None))
        if part.get("type") == "image_url":
            url = part.get("image_url")
            return ImagePart(url.get("url") if isinstance(url, Mapping) else url)
        if unshown and isinstance(part.get("type"), str) and part["type"] != "text":
            kind = re.sub(r"\W", "_", part["type"])[:40] or "nameless"
            return UnshownPart(f"({kind})", kind)
    raise InputError(f"a message part must be {{'type': 'text' | 'image', ...}}; got {part!r:.200}")


def placed_image(part: ImagePart, folder: Path, allowed: Sequence[str] = ()) -> ImagePart:
    """An image of a file which may come from anybody; see ``images.placed`` for its path or address.

    Raises:
        InputError: if the image lies elsewhere.
    """
    image = part.image
    while isinstance(image, Mapping):  # not once, so that nothing inside is opened unseen
        image = bare(image)
    return ImagePart(placed(image, folder, allowed)) if isinstance(image, str) else part


def placed_images(messages: Sequence[Message], folder: Path, allowed: Sequence[str] = ()) -> tuple[Message, ...]:
    """The same messages, their images as they are to be opened; see ``placed_image``."""

    def opened(part: Part) -> Part:
        return placed_image(part, folder, allowed) if isinstance(part, ImagePart) else part

    return tuple(replace(turn, content=tuple(map(opened, turn.content))) for turn in messages)


def as_messages(
    prompt: str | Sequence[Mapping[str, Any] | Message], unshown: bool = False, nulls: bool = False
) -> tuple[Message, ...]:
    """Turn a prompt, as TRL and verl pass it, into messages.

    Args:
        prompt: plain text (one user turn) or chat messages whose content is text or a list of parts.
        unshown: see ``as_part``.
        nulls: keep the arguments of calls that are None, of calls as they were made. Without it they are dropped: a column
            of a data set has in each of its calls all names that any of them has.

    Raises:
        InputError: if it is neither.
    """
    if isinstance(prompt, str):
        return (Message("user", (TextPart(prompt),)),)
    messages: list[Message] = []
    for turn in prompt:
        if isinstance(turn, Message):
            messages.append(turn)
            continue
        if not isinstance(turn, Mapping) or "role" not in turn:
            raise InputError(f"a chat message needs 'role' and 'content'; got {turn!r:.200}")
        parts = _parts(turn, unshown)
        if calls := [_call(call, nulls) for call in calls_in(turn)]:
            parts = (*(part for part in parts if part != TextPart("")), *calls)
        messages.append(Message(str(turn["role"]), parts))
    return tuple(messages)


def _parts(turn: Mapping[str, Any], unshown: bool) -> tuple[Part, ...]:
    """What a turn says: a tool's result as it returned it, of an assistant's turn not its reasoning, but its refusal."""
    content, role = plain(turn.get("content")), str(turn["role"])
    if content is None:  # an assistant turn that only calls tools
        content = ""
    if isinstance(content, list | tuple):
        content = list(map(plain, content))
    returned = role in RESULTS and not (isinstance(content, list) and content and all(map(_is_part, content)))
    if not isinstance(content, str) and (returned or isinstance(content, Mapping | int | float)):
        content = _json(content)
    if not isinstance(content, str | list):
        raise InputError(f"a message's 'content' must be text or a list of parts; got {content!r:.200}")
    said: list[Any] = [TextPart(content)] if isinstance(content, str) else content
    if role == "assistant":
        said = without_thoughts(said)
        if isinstance(turn.get("refusal"), str):
            said = [*(part for part in said if part != TextPart("")), TextPart(turn["refusal"])]
    return tuple(as_part(part, unshown) for part in said)


def without_thoughts(parts: Iterable[Any]) -> list[Any]:
    """An answer's parts without those of its reasoning; a part that is a refusal is its text."""
    told = (part for part in parts if not (isinstance(part, Mapping) and is_thought(part)))
    return [
        TextPart(part["refusal"])
        if isinstance(part, Mapping) and part.get("type") == "refusal" and isinstance(part.get("refusal"), str)
        else part
        for part in told
    ]


def _is_part(entry: Any) -> bool:
    """Whether an entry of a list that a tool returned is a part of a message, and no data of its own."""
    if not isinstance(entry, Mapping):
        return isinstance(entry, TextPart | ImagePart)
    kind = entry.get("type")
    return isinstance(kind, str) and (kind != "text" or isinstance(entry.get("text"), str))


def _empty(value: Any) -> bool:
    """Whether a field says nothing; of an array nobody asks."""
    if isinstance(value, Mapping):
        return all(map(_empty, value.values()))
    return value is None or (isinstance(value, str | bytes | list | tuple) and not value)


def _json(value: Any) -> str:
    """A value as JSON; what JSON does not have as Python's own, else as text."""

    def simple(one: Any) -> Any:
        return found if (found := plain(one)) is not one else str(one)

    try:
        return json.dumps(value, ensure_ascii=False, default=simple)
    except (TypeError, ValueError):  # keys that JSON does not have, or a value that holds itself
        return str(value)


def calls_in(turn: Mapping[str, Any]) -> list[Any]:
    """The calls of tools in a turn as they were given, that of the older ``function_call`` too. Some fill these fields with
    nothing."""
    given = plain(turn.get("tool_calls"))
    for made in (given if isinstance(given, list | tuple) else [given], [plain(turn.get("function_call"))]):
        if calls := [call for call in made if not _empty(call)]:
            return calls
    return []


def _call(call: Any, nulls: bool) -> CallPart:
    function = call.get("function") or call if isinstance(call, Mapping) else call
    name, given = "", function
    if isinstance(function, Mapping) and isinstance(function.get("name"), str):
        name, given = function["name"], function.get("arguments")
    if isinstance(given, Mapping) and not nulls:
        given = {key: value for key, value in given.items() if value is not None}
    shown = given if isinstance(given, str) else _json(given)
    said = name if given is None else f"{name} {shown}" if name else shown
    known = call.get("id") if isinstance(call, Mapping) else None
    return CallPart(f"[tool call] {said}".rstrip(), name, said, None if known is None else str(known))


def final_answer(completion: str, opened: bool = False) -> str:
    """A completion without the policy's own reasoning, in whatever marks (see ``reasoning``): what follows its last end.

    Reasoning that was never closed means that the policy never answered, so the final answer is empty. A mark that is
    shown as code is part of the answer.

    >>> final_answer("[THINK]I will praise myself.[/THINK]Hello")
    'Hello'

    Args:
        completion: what the policy wrote.
        opened: the policy's chat template opens the reasoning itself, so that a completion that never closes it is all
            reasoning.
    """
    return split_reasoning(completion, opened, code=True)[0].strip()
