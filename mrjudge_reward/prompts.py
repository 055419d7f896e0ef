"""From a template file and untrusted texts to the chat that a judge reads.

A template file holds comment lines (``#``), then sections opened by ``=== name ===``: ``system`` and ``user`` make the
two chat turns; ``response``, ``reference`` and ``rubric`` are the blocks put into them, the last two only where the
group has such a text. Placeholders are filled in one pass over the template alone, so braces or placeholders inside a
candidate stay what they are.

Whatever comes from outside (question, candidates, reference, rubric) passes a :class:`TextGuard`, which

1. loses its invisible format characters, which would hide a marker from the next step and not from the judge;
2. neutralises markers: the judge's tags, the template's own section headers (lines that begin with ``[``) and
   chat-template tokens get a round bracket for their opening character (``<|im_end|>`` becomes ``(|im_end|>``), so that
   no text can close its section, speak for the judge, or produce a special token;
3. bounds the length in tokens by cutting the middle and saying so in the text.

Images of the prompt come before its text, in order; those of a candidate stand where it shows them. What is written inside
an image is beyond any guard.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from importlib import resources
from pathlib import Path

from .errors import ConfigError
from .types import IMAGE_MARK, Group, ImagePart, Message, Part, TextPart

_SECTION = re.compile(r"^=== (\w+) ===$", re.MULTILINE)
_PLACEHOLDER = re.compile(r"\{(question|responses|labels|grades|reference|rubric|label|text)\}")
_NEEDED = {"user": "{responses}", "response": "{text}", "reference": "{text}", "rubric": "{text}"}
_HEADER = re.compile(r"^\[(?=[^\[\]{}\n]*[^\W_])([^\[\]{}\n]+)", re.MULTILINE)

_JOINERS = re.compile(r"(?<=[\x00-\x7f])[\u200c\u200d]+|[\u200c\u200d]+(?=[\x00-\x7f])")
_SHOWN = frozenset("\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2\U000110bd\U000110cd")
"""Signs of Arabic, Syriac and Kaithi that are format characters by category, and yet are seen."""

# What may stand unseen between the letters of a header: joiners, fillers and variation selectors (emoji need these, so
# they are not removed). Between its words there may be more: white space, hyphens, dashes, underscores.
_UNSEEN = r"\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200c\u200d\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef"
_BETWEEN = r"\s_\-\u2010-\u2015\u2212"

# Tokens of common chat templates, for judges whose tokenizer is out of reach (a remote server); a local engine names
# its tokenizer's own list besides. Sources: the tokenizer configs of the Llama, Qwen, Mistral, Gemma, DeepSeek, Phi,
# GLM and SmolLM families.
_CHAT_TOKENS = (
    r"<\|[^|<>\n]{1,60}\|>|<｜[^｜<>\n]{1,60}｜>|</?s>|\[/?INST\]|<</?SYS>>"
    r"|\[/?(?:SYSTEM_PROMPT|[A-Z]+_TOOLS|TOOL_[A-Z]+|IMG[A-Z_]*|THINK|[gs]?MASK)\]"
    r"|</?(?:bos|eos|bos_token|eos_token|pad|unk|mask|sop|eop|start_of_turn|end_of_turn|start_of_image|end_of_image"
    r"|image|video|audio|img|tool_call|tool_response|think|thinking|answer|reasoning)\s*>"
)


@dataclass(frozen=True)
class Template:
    """A parsed template file."""

    name: str
    system: str
    user: str
    response: str
    reference: str
    rubric: str

    @property
    def headers(self) -> tuple[str, ...]:
        """Words that open a section of this template, e.g. ``"Response"`` and ``"End of response"``."""
        found = _HEADER.findall("\n".join((self.user, self.response, self.reference, self.rubric)))
        return tuple(dict.fromkeys(header.strip() for header in found))


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
        entry = resources.files("mrjudge_reward.templates").joinpath(f"{name}.txt")
        if not entry.is_file():
            folder = resources.files("mrjudge_reward.templates")
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
    unknown = sections.keys() - {"system", *_NEEDED}
    if unknown:
        raise ConfigError(
            f"template {name!r} has the unknown section {', '.join(sorted(unknown))}; "
            f"known are system, {', '.join(_NEEDED)}"
        )
    lines = sections["response"].split("\n")
    if not all(_HEADER.match(line) and "{text}" not in line for line in (lines[0], lines[-1])):
        raise ConfigError(
            f"template {name!r}: section response must begin and end with a line of its own that opens with a bracket "
            "and a word, such as [Response {label}] and [End of response {label}]; other headers could be forged by a "
            "candidate, because nothing tells them from text"
        )
    return Template(
        name, sections["system"], sections["user"], sections["response"],
        sections.get("reference", ""), sections.get("rubric", ""),
    )  # fmt: skip


def _fill(text: str, values: Mapping[str, str]) -> str:
    return _PLACEHOLDER.sub(lambda match: values.get(match.group(1), ""), text)


@dataclass(frozen=True)
class TextGuard:
    """Makes outside text safe and short enough to stand in a prompt; remembers the texts it has seen.

    Attributes:
        count_tokens: the judge's tokenizer, or an upper estimate.
        max_tokens: bound of one text.
        reserved: further strings to neutralise, such as the tokenizer's special tokens.
        disarmed: takes up the texts in which there was a marker to neutralise.
    """

    count_tokens: Callable[[str], int]
    max_tokens: int
    reserved: frozenset[str] = frozenset()
    disarmed: set[str] = field(default_factory=set, repr=False, compare=False)
    _seen: dict[tuple[str, tuple[str, ...]], str] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __call__(self, text: str, headers: Iterable[str] = ()) -> str:
        """The text, without live markers and bounded; empty where not even the note about a cut would fit."""
        key = text, tuple(headers)
        if key not in self._seen:
            self._seen[key] = self._guarded(*key)
        return self._seen[key]

    def _guarded(self, text: str, headers: tuple[str, ...]) -> str:
        given, text = text, visible(text.encode(errors="replace").decode())  # no tokenizer takes a lone surrogate
        # A token rarely spans 16 characters: far longer texts are cut before they are tokenized at all.
        keep = max(0, min(len(text), self.max_tokens * 16))
        while True:
            # A cut may complete a marker and a marker disarmed takes more tokens: so cut, neutralise, then count.
            bounded = _cut_middle(text, keep)
            safe = neutralise(bounded, self.reserved, headers)
            if safe != bounded:
                self.disarmed.add(given)
            if keep == len(text) and most_tokens(safe) <= self.max_tokens:
                return safe
            count = self.count_tokens(safe)
            if count <= self.max_tokens:
                return safe
            if keep == 0:
                return ""
            keep = int(keep * self.max_tokens / count * 0.95)


def most_tokens(text: str) -> int:
    """More tokens than any tokenizer makes of a text; next to free, where counting takes most of our own time.

    A tokenizer makes at most a token of a byte, after it has taken the character apart (33 bytes at worst, U+FDFA).
    """
    in_ascii = len(text.encode("ascii", errors="ignore"))
    return 4 * in_ascii + 40 * (len(text) - in_ascii)


def _cut_middle(text: str, keep: int) -> str:
    if keep >= len(text):
        return text
    head = keep * 2 // 3
    tail = len(text) - (keep - head)
    return f"{text[:head]}\n(... {len(text) - keep} characters cut here ...)\n{text[tail:]}"


def visible(text: str) -> str:
    """A text without invisible format characters (Unicode category Cf), such as U+200B and the bidi overrides.

    The joiners U+200C and U+200D stay between characters that are not ASCII: emoji and many scripts need them there.
    """
    if text.isascii():
        return text
    found = set(text)  # far fewer than the text is long
    unseen = [c for c in found if unicodedata.category(c) == "Cf" and c not in "\u200c\u200d" and c not in _SHOWN]
    if unseen:
        text = text.translate(dict.fromkeys(map(ord, unseen)))
    return text if found.isdisjoint("\u200c\u200d") else _JOINERS.sub("", text)


def _any_of(texts: set[str]) -> str:
    """A pattern for any of these texts, as a tree of prefixes: some vocabularies reserve thousands of tokens."""
    if "" in texts:  # the shortest decides
        return ""
    tails: dict[str, set[str]] = {}
    for text in texts:
        tails.setdefault(text[0], set()).add(text[1:])
    branches = [re.escape(first) + _any_of(rest) for first, rest in sorted(tails.items())]
    return branches[0] if len(branches) == 1 else f"(?:{'|'.join(branches)})"


def _header_pattern(header: str) -> str:
    """A section header as a reader would take it for one: in either width of bracket, however its words are joined."""
    words = (f"[{_UNSEEN}]*".join(map(re.escape, word)) for word in re.split(f"[{_BETWEEN}]+", header) if word)
    between = f"[{_BETWEEN}{_UNSEEN}]*"
    return rf"[\[\uff3b]{between}{between.join(words)}(?![^\W_])"


@lru_cache(maxsize=256)
def _markers(reserved: frozenset[str], headers: tuple[str, ...]) -> re.Pattern[str]:
    patterns = [_CHAT_TOKENS, *map(_header_pattern, headers)]
    literals = {token for token in reserved if token.strip()}
    words = {token for token in literals if "<" not in token and "[" not in token}
    if literals > words:
        patterns.append(_any_of(literals - words))
    if words:  # "Sentiment:" is a marker and "the sentiment: great" is prose
        patterns.append(f"(?-i:{_any_of(words)})")
    # Matches the opening character alone, so that one pass finds markers that overlap. It is looked for by itself first:
    # to try all patterns at every character takes longer than all else that is done to a text.
    openings = re.escape("".join(sorted({"<", "[", "\uff3b", *(literal[0] for literal in literals)})))
    return re.compile(f"[{openings}](?<=(?=(?:{'|'.join(patterns)})).)", re.IGNORECASE | re.DOTALL)


def neutralise(text: str, reserved: frozenset[str] = frozenset(), headers: tuple[str, ...] = ()) -> str:
    """Put a round bracket for the opening character of every marker in a text, leaving the rest readable.

    Repeats until none is left, because a bracket may complete another marker; each pass leaves fewer characters that
    are not brackets, so it ends (a reserved string that itself begins with a round bracket stays).
    """
    pattern = _markers(reserved, headers)
    while (disarmed := pattern.sub("(", text)) != text:
        text = disarmed
    return text


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
    guard: TextGuard,
    grades: str = "",
    tie_label: str = "",
    marker: str = "",
) -> tuple[Message, ...]:
    """Render one comparison: shared text first (system, question, images), candidates last.

    Args:
        template: the wording.
        group: for its prompt, reference and rubric.
        candidates: texts in slot order. Shape (K,).
        labels: label of each slot. Shape (K,).
        guard: what every outside text passes through.
        grades: the allowed grades, for formats that score.
        tie_label: a further option besides the labels, meaning that none is better.
        marker: what opens the judge's verdict, neutralised in outside texts.
    """
    headers = template.headers
    guard = guard if marker in guard.reserved else replace(guard, reserved=guard.reserved | {marker})
    labels = tuple(label.strip() for label in labels)
    tie_label = tie_label.strip()

    def block(section: str, text: str | None, label: str = "") -> str:
        return _fill(section, {"text": guard(text, headers), "label": label}) + "\n" if text and section else ""

    responses = _responses(template, group, candidates, labels, guard)
    values = {
        "question": guard(conversation_text(group.prompt), headers),
        "reference": block(template.reference, group.reference),
        "rubric": block(template.rubric, group.rubric),
        "labels": ", ".join(labels) + (f"; or {tie_label} if none is better than the others" if tie_label else ""),
        "grades": grades,
    }
    images: tuple[ImagePart, ...] = tuple(image for message in group.prompt for image in message.images)
    before, _, after = template.user.partition("{responses}")
    user = _merged([*images, TextPart(_fill(before, values)), *responses, TextPart(_fill(after, values))])
    system = _fill(template.system, values)
    return (Message("system", (TextPart(system),)), Message("user", user)) if system else (Message("user", user),)


def _responses(
    template: Template, group: Group, candidates: tuple[str, ...], labels: tuple[str, ...], guard: TextGuard
) -> list[Part]:
    """The candidates' blocks, a line apart."""
    images = dict(group.images)
    parts: list[Part] = []
    for candidate, label in zip(candidates, labels, strict=True):
        pieces = [piece for piece in IMAGE_MARK.split(candidate) if piece] if images else [candidate]
        shown = [images.get(piece[7:-1]) if IMAGE_MARK.fullmatch(piece) else None for piece in pieces]
        share = max(1, len(pieces) - sum(image is not None for image in shown))
        own = guard if share == 1 else replace(guard, max_tokens=guard.max_tokens // share)
        opening, _, closing = template.response.partition("{text}")
        parts.append(TextPart(("\n" if parts else "") + _fill(opening, {"label": label})))
        parts += [
            TextPart(own(piece, template.headers)) if image is None else image
            for piece, image in zip(pieces, shown, strict=True)
        ]
        parts.append(TextPart(_fill(closing, {"label": label})))
        if not guard.disarmed.isdisjoint(pieces):  # what holds for a part of it holds for the candidate
            guard.disarmed.add(candidate)
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
