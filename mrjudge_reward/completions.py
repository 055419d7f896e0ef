"""What a completion is, the same for every trainer: what of a policy's doing is judged, and how it stands in a candidate.

A completion is a text, or the chat from the prompt's end: the policy's turns, its calls of tools, their results, and what
else was said to it. ``view`` says what of it is judged:

* ``"transcript"``, the default: all of it. Of a completion that is one turn that is the same as ``"final"``.
* ``"final"``: the last turn of the policy alone; before it only what was said before its first turn, as the setting of an
  environment.

Either way each turn is what follows its reasoning, a call is its name and its arguments as JSON, and a turn that only calls
is not empty. What the policy did not write, results and messages, is context: a judge is shown it under marks that say so.

A candidate is a text (``Group.candidates``), in which marks stand for all that is no text of the policy, each a U+FFFC and
a word in brackets: ``[call 1]``, ``[result 1]`` and ``[said]``, each up to ``[end]``; ``[image <id>]``; ``[unshown audio]``.
Where a text holds the like by itself, a backslash is put in, and taken out again before a judge is shown it. The marks that
a judge sees are others, which carry the code of their group (``prompting.candidates``).

>>> judged([{"role": "assistant", "content": "<think>Hm.</think>Cold, I guess."}]).text
'Cold, I guess.'
>>> call = {"role": "assistant", "tool_calls": [{"function": {"name": "weather", "arguments": {"city": "Oslo"}}}]}
>>> print(readable(judged([call, {"role": "tool", "content": "-3 C"}, {"role": "assistant", "content": "Cold."}]).text))
[Tool call 1]
weather {"city": "Oslo"}
[End of tool call 1]
[Tool result 1, not written by the responder]
-3 C
[End of tool result 1]
Cold.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from .errors import InputError
from .fields import plain as as_python
from .images import known_as
from .messages import (
    RESULTS,
    CallPart,
    ImagePart,
    Message,
    Part,
    TextPart,
    UnshownPart,
    as_messages,
    as_part,
    final_answer,
    without_thoughts,
)

View: TypeAlias = Literal["transcript", "final"]

_KINDS = r"(?:call|result) \d+|said|end|image [0-9a-f]{32}|unshown \w+"
_MARK = re.compile(rf"\ufffc\[({_KINDS})\]")
_LIKE_ONE = re.compile(rf"\ufffc(?=\\*\[(?:{_KINDS})\])")
_MADE_LIKE_ONE = re.compile(rf"\ufffc\\(?=\\*\[(?:{_KINDS})\])")
_IMAGE = re.compile(r"\ufffc\[image ([0-9a-f]{32})\]")
_UNSHOWN = re.compile(r"\ufffc\[unshown (\w+)\]")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A candidate of a group.

    Attributes:
        text: with marks.
        images: what its marks of images stand for, by number.
    """

    text: str
    images: tuple[tuple[str, ImagePart], ...] = ()

    def after(self, said: Sequence[Message]) -> Candidate:
        """The same candidate after what was said to this one alone, which it did not write."""
        images = dict(self.images)
        before = "".join(_context("said", _said(message, images)) for message in said)
        return Candidate(before + self.text, tuple(images.items()))


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of a candidate.

    Attributes:
        kind: ``"text"`` of the policy, ``"call"`` by it; ``"result"`` and ``"said"``, which it did not write.
        number: of the call; 0 of a result of none.
        parts: texts, and numbers of images as ``("image", number)``.
    """

    kind: Literal["text", "call", "result", "said"]
    number: int
    parts: tuple[str | tuple[str, str], ...]

    @property
    def own(self) -> bool:
        """Whether the policy wrote it."""
        return self.kind in ("text", "call")

    def headings(self, code: str = "") -> tuple[str, str]:
        """The lines before and after it, with the code of a group's section marks; of a text there are none."""
        if self.kind == "text":
            return "", ""
        name = "message" if self.kind == "said" else f"tool {self.kind}"
        name += f" {self.number}" if self.number else ""
        outside = "" if self.own else ", not written by the responder"
        code = f" {code}" if code else ""
        return f"[{name.capitalize()}{outside}{code}]", f"[End of {name}{code}]"


# -- from a completion ----------------------------------------------------------------------------------------------------


def judged(
    completion: str | Sequence[Mapping[str, Any] | Message],
    view: View = "transcript",
    answer_of: Callable[[str], str] = final_answer,
) -> Candidate:
    """What of a completion is judged.

    Args:
        completion: its text, or messages from the prompt's end.
        view: see the module.
        answer_of: what of a turn's text is its answer.

    Raises:
        InputError: if it is neither text nor messages.
    """
    if isinstance(completion, str):
        return plain(answer_of(completion))
    images: dict[str, ImagePart] = {}
    turns = as_messages(completion, unshown=True, nulls=True)
    results = _results(completion, turns)
    own = [index for index, turn in enumerate(turns) if turn.role == "assistant"]
    shown: Iterable[int] = range(len(turns))
    if view == "final":
        shown = [*range(own[0] if own else len(turns)), *own[-1:]]
    said, calls = "", 0
    for index, turn in enumerate(turns):
        made = [part for part in turn.content if isinstance(part, CallPart)] if turn.role == "assistant" else []
        first, calls = calls + 1, calls + len(made)
        if index not in shown:
            continue
        if turn.role != "assistant":
            kind = f"result {results[index]}" if index in results else "said"
            said += _context(kind, _said(turn, images) if kind == "said" else _written(turn.content, images, "\n"))
            continue
        answer = _answer([part for part in turn.content if not isinstance(part, CallPart)], images, answer_of)
        between = "\n\n" if said and answer and not said.endswith("\ufffc[end]") else ""
        said += between + answer + "".join(_section(f"call {first + n}", call.said) for n, call in enumerate(made))
    return Candidate(said, tuple(images.items()))


def _results(given: Sequence[Mapping[str, Any] | Message], turns: Sequence[Message]) -> dict[int, int]:
    """Message → the number of the call that it answers, of all results; 0 where there is none.

    It is told by ``tool_call_id``, else by the tool's name, else by the order; servers and trainers give what they like.
    """
    found: dict[int, int] = {}
    waiting: list[tuple[int, str | None, str]] = []
    calls = 0
    for index, (turn, raw) in enumerate(zip(turns, given, strict=True)):
        fields: Mapping[str, Any] = raw if isinstance(raw, Mapping) else {}
        if turn.role == "assistant":
            made = [part for part in turn.content if isinstance(part, CallPart)]
            waiting = [(calls + number, call.id, call.name) for number, call in enumerate(made, 1)]
            calls += len(made)
        elif turn.role in RESULTS:
            named, name = fields.get("tool_call_id"), fields.get("name")
            answers = (
                [call for call in waiting if named is not None and call[1] == named]
                or [call for call in waiting if name is not None and call[2] == name]
                or waiting
            )
            found[index] = answers[0][0] if answers else 0
            waiting = [call for call in waiting if call not in answers[:1]]
    return found


def _answer(parts: Sequence[Part], images: dict[str, ImagePart], answer_of: Callable[[str], str]) -> str:
    """What of a turn's parts is its answer."""
    texts = [part.text for part in parts if isinstance(part, TextPart) and not isinstance(part, UnshownPart)]
    # Where images stand is marked afterwards: what is taken out of a text must not leave a mark behind.
    unused = (char for char in map(chr, range(0xE000, 0xF900)) if not any(char in text for text in texts))
    others = {next(unused): part for part in parts if isinstance(part, ImagePart | UnshownPart)}
    places = iter(others)
    said = ""
    for part in parts:
        if isinstance(part, TextPart) and not isinstance(part, UnshownPart):
            said += "\n" if said and said[-1] not in others else ""
            said += part.text
        else:
            said += next(places)
    found = re.split(f"([{''.join(others)}])", answer_of(said)) if others else [answer_of(said)]
    return _written([others[one] if one in others else TextPart(one) for one in found], images, "")


def _said(message: Message, images: dict[str, ImagePart]) -> str:
    """A message to the policy, led by its role."""
    return f"{_escaped(message.role)}: {_written(message.content, images, chr(10))}"


def written(parts: Sequence[Mapping[str, Any] | Part]) -> Candidate:
    """A candidate made of text and image parts, which stand as they are; parts of reasoning are dropped.

    Raises:
        InputError: if one is no part.
    """
    images: dict[str, ImagePart] = {}
    text = _written([as_part(part, unshown=True) for part in without_thoughts(parts)], images, "")
    return Candidate(text, tuple(images.items()))


def plain(text: str) -> Candidate:
    """A candidate that is a text, whatever it holds."""
    return Candidate(_escaped(text))


def candidate_of(given: Any) -> Candidate:
    """A candidate as it is given to ``Group.of``: text, text and image parts, or a completion in messages.

    Raises:
        InputError: if it is none of these.
    """
    if isinstance(given, Candidate):
        return given
    if isinstance(given, str):
        return plain(given)
    given = as_python(given)
    if not isinstance(given, list | tuple):
        raise InputError(f"must be text or a list of parts; got {type(given).__name__}")
    if given and (isinstance(given[0], Message) or (isinstance(given[0], Mapping) and "role" in given[0])):
        return judged(given)
    return written(given)


def _written(parts: Sequence[Part], images: dict[str, ImagePart], between: str) -> str:
    """Parts as a text with marks; neighbouring texts have ``between`` between them."""
    said, text = "", None
    for part in (*parts, None):
        if isinstance(part, TextPart) and not isinstance(part, UnshownPart):
            text = part.text if text is None else f"{text}{between}{part.text}"
            continue
        said, text = said + _escaped(text or ""), None
        if isinstance(part, UnshownPart):
            said += f"\ufffc[unshown {part.kind}]"
        elif part is not None:
            number = known_as(part.image)
            images.setdefault(number, part)
            said += f"\ufffc[image {number}]"
    return said


def _section(mark: str, text: str) -> str:
    return _context(mark, _escaped(text))


def _context(mark: str, marked: str) -> str:
    return f"\ufffc[{mark}]{marked}\ufffc[end]"


def _escaped(text: str) -> str:
    return _LIKE_ONE.sub(lambda found: f"{found[0]}\\", text) if "\ufffc" in text else text


def _unescaped(text: str) -> str:
    return _MADE_LIKE_ONE.sub("\ufffc", text) if "\ufffc" in text else text


# -- to what is shown -----------------------------------------------------------------------------------------------------


def pieces(candidate: str) -> list[Piece]:
    """What a candidate's text stands for, in order; texts as they were given."""
    if "\ufffc" not in candidate:
        return [Piece("text", 0, (candidate,))]
    found: list[Piece] = []
    kind: Any = "text"
    number, parts = 0, list[str | tuple[str, str]]()
    for place, said in enumerate([*_MARK.split(candidate), "end"]):
        if place % 2 == 0:
            parts += [_unescaped(said)] if said else []
            continue
        name, _, of = said.partition(" ")
        if name in ("image", "unshown"):
            parts.append((name, of))
            continue
        if parts or kind != "text":
            found.append(Piece(kind, number, tuple(parts)))
        kind, number, parts = ("text", 0, []) if name == "end" else (name, int(of or 0), [])
    return found or [Piece("text", 0, ("",))]


def own_words(candidate: str) -> str:
    """What of a candidate its policy wrote, images as U+FFFC."""
    if "\ufffc" not in candidate:
        return candidate
    return "\n".join(
        _text_of(piece, {"image": "\ufffc", "unshown": "\ufffc"}) for piece in pieces(candidate) if piece.own
    )


def readable(candidate: str, code: str = "") -> str:
    """A candidate as one text, for people and to be counted: as a judge is shown it, images as ``(image)``."""
    if "\ufffc" not in candidate:
        return candidate
    said: list[str] = []
    for piece in pieces(candidate):
        text = _text_of(piece, {"image": "(image)"})
        opening, closing = piece.headings(code)
        said += [opening, text, closing] if opening else [text]
    return "\n".join(said)


def _text_of(piece: Piece, instead: Mapping[str, str]) -> str:
    return "".join(part if isinstance(part, str) else instead.get(part[0], f"({part[1]})") for part in piece.parts)


def image_numbers(candidates: Iterable[str]) -> list[str]:
    """Numbers of the images that candidates show, in order."""
    return [number for text in candidates if "\ufffc" in text for number in _IMAGE.findall(text)]


def unshown(candidates: Iterable[str]) -> str:
    """The type of the first part of these candidates that no judge can be shown; empty if there is none."""
    found = (_UNSHOWN.search(text) for text in candidates if "\ufffc" in text)
    return next((one[1] for one in found if one), "")
