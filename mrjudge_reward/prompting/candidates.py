"""A candidate as a judge is shown it: its words, images, calls and their results, within its bound of tokens.

What is no text of the policy stands between lines of its own, which carry the code of the group's section marks, so that no
text can pass for another's: ``[Tool call 1 qcgmnqcr]``, ``[Tool result 1, not written by the responder qcgmnqcr]``.

What is too long is cut so that calls and results stay what they are: first results and messages, to what room the policy's
own words leave, then these. Where not even the lines have room, whole results are left out, from the middle, then calls,
then words.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from mrjudge_reward.completions import Piece, pieces
from mrjudge_reward.messages import ImagePart, Part, TextPart

from .sanitizing import Sanitizer, most_tokens

LEAST = 16
"""Tokens that a stretch of a candidate must at least get; the note about a cut takes some twelve."""


def shown_candidate(candidate: str, images: Mapping[str, ImagePart], guard: Sanitizer, code: str) -> list[Part]:
    """The parts between a candidate's section marks; what was cut or made safe is noted in the guard.

    Args:
        candidate: its text, with marks.
        images: what the marks of images stand for.
        guard: what every text passes through.
        code: of the group's section marks.
    """
    stretches = pieces(candidate)
    if stretches == [Piece("text", 0, (candidate,))]:
        return [TextPart(guard(candidate, code, guard.most_of_candidate))]
    bounds = _bounds(stretches, guard, code)
    lines = _Lines()
    left_out = 0
    for piece, bound in zip([*stretches, None], [*bounds, None], strict=True):
        if piece is not None and bound is None:
            left_out += 1
            continue
        if left_out:
            lines.line(_left_out(left_out, code))
            left_out = 0
        if piece is not None and bound is not None:
            _show(piece, bound, images, guard, code, lines)
    own = {part for piece in stretches if piece.own for part in piece.parts}
    if not guard.sanitized.isdisjoint(own):  # what holds for a part of it holds for the candidate
        guard.sanitized.add(candidate)
    given = ((part, bound) for piece, bound in zip(stretches, bounds, strict=True) for part in piece.parts)
    if None in bounds or any((part, bound) in guard.cut for part, bound in given):
        guard.cut.add((candidate, guard.most_of_candidate))
    return lines.parts


class _Lines:
    """Parts that are put together, some of them lines of their own."""

    def __init__(self) -> None:
        self.parts: list[Part] = []
        self._begun, self._ended = False, False

    def add(self, part: Part) -> None:
        if self._ended:
            self.parts.append(TextPart("\n"))
        self._ended, self._begun = False, True
        self.parts.append(part)

    def line(self, text: str) -> None:
        if self._begun:
            self.parts.append(TextPart("\n"))
        self._begun, self._ended = True, True
        self.parts.append(TextPart(text))


def _show(
    piece: Piece, bound: int, images: Mapping[str, ImagePart], guard: Sanitizer, code: str, lines: _Lines
) -> None:
    opening, closing = piece.headings(code)
    if opening:
        lines.line(opening)
    for part in piece.parts or ("",):
        lines.add(TextPart(guard(part, code, bound)) if isinstance(part, str) else _image(part, images))
    if closing:
        lines.line(closing)


def _image(part: tuple[str, str], images: Mapping[str, ImagePart]) -> Part:
    return images.get(part[1]) or TextPart(f"({part[0] if part[0] == 'image' else part[1]})")


def _left_out(count: int, code: str) -> str:
    return f"[{count} {'part' if count == 1 else 'parts'} left out here {code}]"


def _texts(piece: Piece) -> list[str]:
    return [part for part in piece.parts if isinstance(part, str)]


def _bounds(stretches: Sequence[Piece], guard: Sanitizer, code: str) -> list[int | None]:
    """Most tokens of each text of a stretch; None for a stretch that is left out."""
    room = guard.most_of_candidate
    lines = ["\n".join(piece.headings(code)) + "\n\n" for piece in stretches]
    if sum(map(most_tokens, lines)) + sum(most_tokens(text) for piece in stretches for text in _texts(piece)) <= room:
        return [room] * len(stretches)

    def size(text: str) -> int:
        return guard.count_tokens(guard(text, code, sys.maxsize))

    marks = [
        guard.count_tokens(line) if piece.kind != "text" else 0 for piece, line in zip(stretches, lines, strict=True)
    ]
    sizes = [[size(text) for text in _texts(piece)] for piece in stretches]
    kept = set(range(len(stretches)))

    def needed(least: int) -> int:
        texts = sum(min(least, one) for index in kept for one in sizes[index])
        gaps = sum(index not in kept and index - 1 in kept for index in range(1, len(stretches))) + (0 not in kept)
        return sum(marks[index] for index in kept) + texts + gaps * guard.count_tokens(_left_out(99, code))

    middle = (len(stretches) - 1) / 2
    order = {"result": 0, "said": 0, "call": 1, "text": 2}
    for index in sorted(kept, key=lambda one: (order[stretches[one].kind], abs(one - middle))):
        if needed(LEAST) <= room or len(kept) == 1:
            break
        kept.remove(index)
    room -= needed(0)
    own = [one for index in kept if stretches[index].own for one in sizes[index]]
    context = [one for index in kept if not stretches[index].own for one in sizes[index]]
    least = sum(min(LEAST, one) for one in context)
    of_context = common_length(max(least, room - sum(own)), context)
    of_own = common_length(room - sum(min(of_context, one) for one in context), own)
    return [(of_own if piece.own else of_context) if index in kept else None for index, piece in enumerate(stretches)]


def common_length(room: int, sizes: Sequence[int]) -> int:
    """To which length texts of these sizes are cut so that together they fit: short ones leave their share to the rest."""
    level, left = room, room
    for index, size in enumerate(sorted(sizes)):
        level = left // (len(sizes) - index)
        if size > level:
            break
        left -= size
    return level
