"""From a template file and untrusted texts to the chat that a judge reads.

A template file holds comment lines (``#``; one of them may be ``ALONE``), then sections opened by ``=== name ===``:
``system`` and ``user`` make the two chat turns; ``response``, ``reference`` and ``rubric`` are the blocks put into them, the
last two only where the group has such a text. Placeholders are filled in one pass over the template alone, so braces or
placeholders inside a candidate stay what they are. A word in braces that is no placeholder of its section is refused, and
so is a group with a reference or rubric for which the wording has no place; all other braces (``{"a": 1}``,
``\\boxed{A}``) are text.

The lines in square brackets around a block, and others of their own, mark sections. Each gets a code drawn from the
judge's seed and the group's key: ``[Response {label}]`` becomes ``[Response A qcgmnqcr]``. All comparisons of a group have
the same one, so that what they share is computed once. Whatever comes from outside (question, candidates, reference,
rubric) passes a :class:`Sanitizer`, which lets no text hold that code.

Images of the prompt come before its text, in order; those of a candidate stand where it shows them. What is written inside
an image is beyond any guard.
"""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import resources
from pathlib import Path

from mrjudge_reward.errors import ConfigError, InputError
from mrjudge_reward.messages import ImagePart, Message, Part, TextPart
from mrjudge_reward.types import Group

from .candidates import shown_candidate
from .sanitizing import Sanitizer, section_code, verdict_marks

_SECTION = re.compile(r"^=== (\w+) ===$", re.MULTILINE)
_PLACEHOLDER = re.compile(r"\{([^\W\d]\w*)\}")
_TEX = re.compile(r"\\[a-z]+$", re.IGNORECASE)
_TURN = ("question", "labels", "kind", "grades", "form", "reference", "rubric")
_KNOWN = {
    "system": _TURN, "user": (*_TURN, "responses"), "response": ("label", "text"),
    "reference": ("text",), "rubric": ("label", "text"),
}  # fmt: skip
"""Section → the placeholders that are filled there."""
ALONE = "# shows: responses alone"
"""Line above the sections of a wording that shows neither question nor reference nor rubric."""
_NEEDED = {"user": "{responses}", "response": "{text}", "reference": "{text}", "rubric": "{text}"}
_MARK = re.compile(r"^\[[^\[\]\n]*\w[^\[\]\n]*(?=\])", re.MULTILINE)
_OWN_LINE = re.compile(r"^\[[^\[\]{}\n]*\w[^\[\]{}\n]*(?=\]$)", re.MULTILINE)


@dataclass(frozen=True)
class Template:
    """A parsed template file; ``alone`` is one that shows neither question nor reference nor rubric, and says so."""

    name: str
    system: str
    user: str
    response: str
    reference: str
    rubric: str
    alone: bool = False

    @lru_cache(maxsize=1024)  # noqa: B019  templates are few, and a group's comparisons ask for the same
    def marked(self, code: str) -> Template:
        """The same wording with a code in its section marks."""

        def block(wording: str) -> str:
            return _MARK.sub(rf"\g<0> {code}", wording)

        return replace(
            self, user=marked(self.user, code), response=block(self.response),
            reference=block(self.reference), rubric=block(self.rubric),
        )  # fmt: skip


def marked(wording: str, code: str) -> str:
    """A wording with a code in each of its section marks: lines of their own in square brackets, without placeholders."""
    return _OWN_LINE.sub(rf"\g<0> {code}", wording)


@lru_cache(maxsize=64)
def load_template(name: str) -> Template:
    """Load a built-in template by name, or any file by path (a name with a slash or ending in ``.txt``).

    Raises:
        ConfigError: if there is no such template or it lacks a section.
    """
    if "/" in name or name.endswith(".txt"):
        path = Path(name)
        if not path.is_file():
            raise ConfigError(f"template file {name!r} does not exist")
        text = path.read_text(encoding="utf-8")
    else:
        entry = resources.files("mrjudge_reward.prompting.templates").joinpath(f"{name}.txt")
        if not entry.is_file():
            folder = resources.files("mrjudge_reward.prompting.templates")
            known = sorted(item.name[:-4] for item in folder.iterdir() if item.name.endswith(".txt"))
            raise ConfigError(f"no template {name!r}; built in are {', '.join(known)}, or give the path of a .txt file")
        text = entry.read_text(encoding="utf-8")
    pieces = _SECTION.split(text)
    sections = {title: body.strip("\n") for title, body in zip(pieces[1::2], pieces[2::2], strict=True)}
    missing = [f"section {section}" for section in ("system", "user", "response") if section not in sections]
    for section, placeholder in _NEEDED.items():
        if section in sections and placeholder not in sections[section]:
            missing.append(f"{placeholder} in section {section}")
    if missing:
        raise ConfigError(f"template {name!r} lacks {', '.join(missing)}")
    unknown = sections.keys() - _KNOWN.keys()
    if unknown:
        raise ConfigError(
            f"template {name!r} has the unknown section {', '.join(sorted(unknown))}; known are {', '.join(_KNOWN)}"
        )
    _check_placeholders(name, sections)
    lines = sections["response"].split("\n")
    if not all(_MARK.match(line) and "{text}" not in line for line in (lines[0], lines[-1])):
        raise ConfigError(
            f"template {name!r}: section response must begin and end with a line of its own that opens with brackets, "
            "such as [Response {label}] and [End of response {label}]: these get a code, and other marks could be forged"
        )
    return Template(
        name, sections["system"], sections["user"], sections["response"],
        sections.get("reference", ""), sections.get("rubric", ""), ALONE in pieces[0].splitlines(),
    )  # fmt: skip


def _placeholders(text: str) -> list[str]:
    """Words in braces, without those that are an argument of a TeX command."""
    return [found[1] for found in _PLACEHOLDER.finditer(text) if not _TEX.search(text[: found.start()])]


def _check_placeholders(name: str, sections: Mapping[str, str]) -> None:
    """Raise ConfigError where a wording could not show what it is given."""
    turns = {section: _placeholders(text) for section, text in sections.items()}
    for section, found in turns.items():
        if strange := [word for word in found if word not in _KNOWN[section]]:
            raise ConfigError(
                f"template {name!r}: {{{strange[0]}}} in section {section} is not filled; those that are there are "
                f"{', '.join(f'{{{word}}}' for word in _KNOWN[section])} (braces that are text: {{ {strange[0]} }})"
            )
    if turns["user"].count("responses") > 1:
        raise ConfigError(f"template {name!r}: section user must hold {{responses}} once")
    for block in ("reference", "rubric"):
        placed = block in (*turns["system"], *turns["user"])
        if placed and block not in sections:
            raise ConfigError(
                f"template {name!r} has {{{block}}} without a section {block}, which says how it is shown"
            )
        if block in sections and not placed:
            raise ConfigError(
                f"template {name!r} has a section {block} that is not placed: put {{{block}}} into section user"
            )


def check_shown(template: Template, group: Group) -> None:
    """Whether a wording has a place for all that a group brings; one that shows responses alone needs none.

    Raises:
        InputError: if not.
    """
    for block, text, section in (
        ("reference", group.reference, template.reference), ("rubric", shown_rubric(group), template.rubric),
    ):  # fmt: skip
        if text and text.strip() and not section and not template.alone:
            raise InputError(
                f"group {group.key!r} has a {block} that the judge would not see: template {template.name!r} has no "
                f"section {block}. Add one and put {{{block}}} into section user (see the built-in templates), or leave "
                f"the {block} out"
            )


def check_places(form: object, **setting_of: str | None) -> None:
    """Whether a format's wording has a place for what settings bring to every group. Of a format without a ``template``
    nothing is known.

    Args:
        setting_of: for ``reference`` and ``rubric``, the setting that brings it, as it was given; None where it is not set.

    Raises:
        ConfigError: if not, or if the wording shows responses alone.
    """
    if (name := getattr(form, "template", None)) is None:
        return
    template = load_template(name)
    for block, setting in setting_of.items():
        if setting is not None and not getattr(template, block):
            raise ConfigError(
                f"{setting} brings a {block} that the judge would not see: template {name!r} "
                f"{'shows responses alone' if template.alone else f'has no section {block}'}. Choose a wording that places "
                f"{{{block}}} (formats choice, ranking, pair_scores and score do), or leave {setting.partition('=')[0]} out"
            )


def asks_for(template: str, marker: str) -> bool:
    """Whether a wording shows the judge this marker."""
    wording = load_template(template)
    asked = wording.system + wording.user
    return "{form}" in asked or marker in asked


def _fill(text: str, values: Mapping[str, str]) -> str:
    return _PLACEHOLDER.sub(lambda found: values.get(found[1], found[0]), text)


def conversation_text(prompt: tuple[Message, ...]) -> str:
    """A prompt as the judge reads it: the bare text of a single user turn, otherwise turns led by their role.

    Images are shown before it; of several, ``(image 2)`` stands where the second was, e.g. a frame after its time.
    """
    several = sum(len(message.images) for message in prompt) > 1
    numbers = itertools.count(1)

    def text(message: Message) -> str:
        if not several:
            return message.text
        parts = (p.text if isinstance(p, TextPart) else f"(image {next(numbers)})" for p in message.content)
        return "\n".join(parts)

    if len(prompt) == 1 and prompt[0].role == "user":
        return text(prompt[0])
    return "\n\n".join(f"{message.role}: {text(message)}" for message in prompt)


def build_chat(
    template: Template,
    group: Group,
    candidates: tuple[str, ...],
    labels: tuple[str, ...],
    guard: Sanitizer,
    grades: str = "",
    tie_label: str = "",
    marker: str = "",
    form: str = "",
    criteria: tuple[str, ...] = (),
) -> tuple[Message, ...]:
    """Render one comparison: shared text first (system, question, images), candidates last.

    Args:
        template: the wording.
        group: for its prompt, reference and rubric.
        candidates: texts in slot order. Shape (K,).
        labels: label of each slot. Shape (K,).
        guard: what every outside text passes through; its seed and the group's key decide the code of section marks.
        grades: the allowed grades, for formats that score.
        tie_label: a further option besides the labels, meaning that none is better.
        marker: what opens the judge's verdict, neutralised in outside texts.
        form: the verdicts that can be written, as they are written.
        criteria: each shown in a block of its own, by number, in place of the group's rubric, which holds them all.

    Raises:
        InputError: if the group has a reference or rubric for which the wording has no place.
    """
    check_shown(template, group)
    code = section_code(guard.seed, group.key)
    template = template.marked(code)
    if not (marks := verdict_marks(marker)) <= guard.reserved:
        guard = replace(guard, reserved=guard.reserved | marks)
    labels = tuple(label.strip() for label in labels)
    tie_label = tie_label.strip()

    def block(section: str, text: str | None, label: str = "") -> str:
        return _fill(section, {"text": guard(text, code), "label": label}) + "\n" if text and section else ""

    responses = _responses(template, group, candidates, labels, guard, code)
    rubric = shown_rubric(group)
    values = {
        "question": guard(conversation_text(group.prompt), code),
        "reference": block(template.reference, group.reference),
        "rubric": _criteria(template, rubric or "", criteria, guard, code) or block(template.rubric, rubric),
        "labels": ", ".join(labels) + (f"; or {tie_label} if none is better than the others" if tie_label else ""),
        "kind": _kind((*labels, tie_label) if tie_label else labels),
        "grades": grades,
        "form": form,
    }
    images: tuple[ImagePart, ...] = tuple(image for message in group.prompt for image in message.images)
    before, _, after = template.user.partition("{responses}")
    user = _merged([*images, TextPart(_fill(before, values)), *responses, TextPart(_fill(after, values))])
    system = sys.intern(_fill(template.system, values))  # of thousands of requests in flight, mostly the same
    return (Message("system", (TextPart(system),)), Message("user", user)) if system else (Message("user", user),)


def shown_rubric(group: Group) -> str | None:
    """A group's rubric as a judge reads it."""
    return None if group.rubric is None else str(group.rubric)


def _criteria(template: Template, rubric: str, criteria: tuple[str, ...], guard: Sanitizer, code: str) -> str:
    """The criteria's blocks; where all of them are too long together, each gets an even share."""
    guard(rubric, code)
    bound = guard.max_tokens // (len(criteria) or 1) if (rubric, guard.max_tokens) in guard.cut else None
    return "".join(
        _fill(template.rubric, {"text": guard(text, code, bound), "label": str(number)}) + "\n"
        for number, text in enumerate(criteria, 1)
    )


def _kind(labels: Sequence[str]) -> str:
    """What labels are: "the letter alone" is understood by small models that take "the label" for a word."""
    if all(len(label) == 1 and label.isalpha() for label in labels):
        return "letter"
    return "number" if all(label.isdecimal() for label in labels) else "label"


def _responses(
    template: Template, group: Group, candidates: tuple[str, ...], labels: tuple[str, ...], guard: Sanitizer, code: str
) -> list[Part]:
    """The candidates' blocks, a line apart."""
    images = dict(group.images)
    opening, _, closing = template.response.partition("{text}")
    parts: list[Part] = []
    for candidate, label in zip(candidates, labels, strict=True):
        parts.append(TextPart(("\n" if parts else "") + _fill(opening, {"label": label})))
        parts += shown_candidate(candidate, images, guard, code)
        parts.append(TextPart(_fill(closing, {"label": label})))
    return parts


def _merged(parts: Iterable[Part]) -> tuple[Part, ...]:
    """Neighbouring texts as one, empty ones left out."""
    merged: list[Part] = []
    for part in parts:
        if isinstance(part, TextPart) and merged and isinstance(merged[-1], TextPart):
            merged[-1] = TextPart(merged[-1].text + part.text)
        elif not isinstance(part, TextPart) or part.text:
            merged.append(part)
    return tuple(merged)
