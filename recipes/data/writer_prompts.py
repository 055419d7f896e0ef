"""Prompts of the models that write training data: from a template file and untrusted texts to a chat, and back.

Templates (``recipes/data/templates/*.txt``) are files of sections like those of the judge. They are filled in one pass, and
every outside text is guarded as it is for a judge: section marks carry a code that it cannot hold, and it loses the markers
of this recipe and special tokens.

A writer puts its text between ``<written>`` and ``</written>``; what is not there is not taken, so that no "Sure, here is
..." gets into the data. What it thinks before ``</think>`` is dropped.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from mrjudge_reward.errors import ConfigError
from mrjudge_reward.messages import ImagePart, Message, Part, TextPart
from mrjudge_reward.prompting.parsing import answers_in
from mrjudge_reward.prompting.rendering import marked
from mrjudge_reward.prompting.sanitizing import Sanitizer, section_code, verdict_marks
from mrjudge_reward.types import EngineFailure, NoVerdict, Reply

WRITTEN_OPEN, WRITTEN_CLOSE = "<written>", "</written>"
_SECTION = re.compile(r"^=== (\w+) ===$", re.MULTILINE)
_PLACEHOLDER = re.compile(r"\{(\w+)\}")
FOLDER = Path(__file__).resolve().parent / "templates"


@dataclass(frozen=True)
class Wording:
    """A template file: its sections."""

    name: str
    sections: Mapping[str, str]


@lru_cache(maxsize=32)
def load_wording(name: str) -> Wording:
    """A template of this folder by name.

    Raises:
        ConfigError: if there is none, or it has no sections.
    """
    path = FOLDER / f"{name}.txt"
    if not path.is_file():
        raise ConfigError(f"there is no template {path}")
    pieces = _SECTION.split(path.read_text(encoding="utf-8"))
    sections = {title: body.strip("\n") for title, body in zip(pieces[1::2], pieces[2::2], strict=True)}
    if not sections:
        raise ConfigError(f"template {path} has no section (=== name ===)")
    return Wording(name, sections)


def filled(section: str, values: Mapping[str, str]) -> str:
    """A section with its placeholders replaced, in one pass: what stands in a value stays what it is."""
    return _PLACEHOLDER.sub(lambda match: values[match[1]], section)


def writer_guard(guard: Sanitizer) -> Sanitizer:
    """The same guard, that also neutralises the markers of this recipe."""
    return replace(guard, reserved=guard.reserved | verdict_marks(WRITTEN_OPEN))  # read in any case


def chat(
    wording: Wording,
    outside: Mapping[str, str],
    guard: Sanitizer,
    ours: Mapping[str, str] | None = None,
    images: tuple[ImagePart, ...] = (),
) -> tuple[Message, ...]:
    """The chat that a writer sees.

    Args:
        wording: with the sections ``system`` and ``user``.
        outside: placeholder → a text from outside.
        guard: what these pass through.
        ours: placeholder → a text of this recipe.
        images: shown before the text.
    """
    code = section_code(guard.seed, repr(outside))
    values = {name: guard(text, code) for name, text in outside.items()} | dict(ours or {})
    user: tuple[Part, ...] = (*images, TextPart(filled(marked(wording.sections["user"], code), values)))
    return (Message("system", (TextPart(wording.sections["system"]),)), Message("user", user))


def between_marks(reply: Reply | EngineFailure) -> Reply | EngineFailure:
    """What a writer whose turn was opened would have said if it had opened and closed it itself."""
    if isinstance(reply, EngineFailure):
        return reply
    text, _, _ = reply.text.partition(WRITTEN_CLOSE)
    return replace(reply, text=f"{WRITTEN_OPEN}{text}{WRITTEN_CLOSE}")


def written(reply: Reply | EngineFailure) -> str | NoVerdict:
    """What a writer wrote between its marks."""
    if isinstance(reply, EngineFailure):
        return NoVerdict(f"engine: {reply.reason}", reply.detail, reply.transient)
    if reply.finish == "length":
        return NoVerdict("truncated")
    texts = answers_in(reply.text, WRITTEN_OPEN, WRITTEN_CLOSE)
    if isinstance(texts, NoVerdict):
        return NoVerdict("nothing between the marks")
    return texts[-1]
