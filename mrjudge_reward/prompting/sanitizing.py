"""Outside text made safe to stand in a judge's prompt, and otherwise shown as it stands.

Sections of a prompt are marked by lines that carry a code drawn from the judge's seed and the group's key
(:func:`section_code`), so a text that does not hold it can close no section. What comes from outside (question, candidates,
reference, rubric) passes a :class:`Sanitizer`, which

1. neutralises what could still be taken for something else: that code, the mark of a verdict, marks of reasoning (a judge
   that copies one would be misread), and the judge's own special tokens. Their first character becomes a round bracket:
   ``<|im_end|>`` becomes ``(|im_end|>``. They are found in full-width letters and through characters that are not seen;
2. bounds the length in tokens by cutting the middle and saying so in the text.

Two texts that a reader cannot tell apart are the same in :func:`visible`.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache

from mrjudge_reward.reasoning import MARK_PATTERN, TYPE_IN_CODE
from mrjudge_reward.special_tokens import ANY_FAMILY, Reserved

_CODE_LETTERS = "bcdfghjklmnpqrstvwxz"  # no vowels, so it is in no word; as letters it takes few tokens


@lru_cache(maxsize=1024)
def section_code(seed: int, key: str) -> str:
    """The code of a group's section marks, the same on every machine and in every run."""
    number = int.from_bytes(hashlib.blake2b(repr(("sections", seed, key)).encode(), digest_size=8).digest(), "big")
    return "".join(_CODE_LETTERS[number // len(_CODE_LETTERS) ** place % len(_CODE_LETTERS)] for place in range(8))


@lru_cache(maxsize=256)
def verdict_marks(opening: str) -> Reserved:
    """What an outside text must not hold, so that no judge that copies it speaks a verdict.

    Parsing takes tags and brackets in any case, and words in their own: "the sentiment: great" is prose. In another case
    than its own a tag may be a type in code (``Promise<Answer>``), for parsing as well.
    """
    if tag := re.fullmatch(r"<([\w:.-]+)>", opening):
        return frozenset({re.compile(_tag(tag[1]))})
    if opening.startswith(("<", "[")):
        return frozenset({re.compile(rf"{re.escape(opening[0])}(?i:{re.escape(opening[1:])})")})
    return frozenset({opening})


def _tag(name: str) -> str:
    name = re.escape(name)
    return rf"<(?:{name}>|(?!{TYPE_IN_CODE})(?i:/?{name})\s*>)"


@dataclass(frozen=True)
class Sanitizer:
    """Makes outside text safe and short enough to stand in a prompt; remembers the texts it has seen.

    Attributes:
        count_tokens: the judge's tokenizer, or an upper estimate.
        max_tokens: bound of one text.
        reserved: the judge's special tokens, and what else must not be in a text.
        sanitized: takes up the texts in which there was something to neutralise.
        seed: the judge's; the codes of section marks depend on it.
        candidate_tokens: a further bound, of candidates alone.
        cut: takes up the texts that were too long, each with the bound that it was cut to.
    """

    count_tokens: Callable[[str], int]
    max_tokens: int
    reserved: Reserved = ANY_FAMILY
    sanitized: set[str] = field(default_factory=set, repr=False, compare=False)
    seed: int = 0
    candidate_tokens: int | None = None
    cut: set[tuple[str, int]] = field(default_factory=set, repr=False, compare=False)
    _seen: dict[tuple[str, str, int], str] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __call__(self, text: str, code: str = "", bound: int | None = None) -> str:
        """The text, without live markers and bounded; empty where not even the note about a cut would fit.

        Args:
            text: from outside.
            code: of the section marks around it.
            bound: of this text, where it is not ``max_tokens``.
        """
        key = text, code, self.max_tokens if bound is None else bound
        if key not in self._seen:
            self._seen[key] = self._guarded(*key)
        return self._seen[key]

    @property
    def most_of_candidate(self) -> int:
        """Bound of a candidate."""
        return self.max_tokens if self.candidate_tokens is None else min(self.max_tokens, self.candidate_tokens)

    def _guarded(self, text: str, code: str, most: int) -> str:
        given, text = text, encodable(text)
        # A token rarely spans 16 characters: far longer texts are cut before they are tokenized at all.
        keep = max(0, min(len(text), most * 16))
        while True:
            # A cut may complete a marker and a marker sanitized takes more tokens: so cut, neutralise, then count.
            bounded = _cut_middle(text, keep)
            safe = neutralise(bounded, self.reserved, code)
            if safe != bounded:
                self.sanitized.add(given)
            if keep < len(text):
                self.cut.add((given, most))
            elif most_tokens(safe) <= most:
                return safe
            count = self.count_tokens(safe)
            if count <= most:
                return safe
            if keep == 0:
                self.cut.add((given, most))
                return ""
            keep = int(keep * most / count * 0.95)


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


def encodable(text: str) -> str:
    """A text with a question mark for each lone surrogate, which no tokenizer takes."""
    return text if text.isascii() else text.encode(errors="replace").decode()


# -- neutralising -------------------------------------------------------------------------------------------------------

_FILLERS = "\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef"
_FORMATTING = frozenset(
    "\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2\U000110bd\U000110cd"
    + "".join(map(chr, range(0x13430, 0x13440)))
)
"""Format characters by category that are seen: signs of Arabic, Syriac and Kaithi, and Egyptian joiners."""
_UNSEEN = re.compile(f"[{_FILLERS}]")


@lru_cache(maxsize=4096)
def _unseen(char: str) -> bool:
    """Whether nothing is drawn for a character itself."""
    return bool(_UNSEEN.match(char)) or (unicodedata.category(char) == "Cf" and char not in _FORMATTING)


@lru_cache(maxsize=4096)
def _plain_char(char: str) -> str | None:
    """The ASCII character that another one is a variant of (full-width, say), itself, or None if it is not seen."""
    if char.isascii():
        return char
    if _unseen(char):
        return None
    compatible = unicodedata.normalize("NFKC", char)
    return compatible if len(compatible) == 1 and compatible.isascii() else char


def _plain(text: str) -> tuple[str, list[int] | None]:
    """A text as markers are looked for in it, and where its characters stand in the text, unless at the same places."""
    if text.isascii():
        return text, None
    table = {ord(char): _plain_char(char) for char in set(text) if _plain_char(char) != char}
    if None not in table.values():
        return text.translate(table), None
    kept = [place for place, char in enumerate(text) if table.get(ord(char), "") is not None]
    return text.translate(table), kept


def _any_of(texts: set[str]) -> str:
    """A pattern for any of these texts, as a tree of prefixes: some vocabularies reserve thousands of tokens."""
    if "" in texts:  # the shortest decides
        return ""
    tails: dict[str, set[str]] = {}
    for text in texts:
        tails.setdefault(text[0], set()).add(text[1:])
    branches = [re.escape(first) + _any_of(rest) for first, rest in sorted(tails.items())]
    return branches[0] if len(branches) == 1 else f"(?:{'|'.join(branches)})"


_OPENINGS = "<[\u25c1"
# gpt-oss without its special tokens: what follows would be read as another channel.
_BARE_CHANNEL = "assistant(?=analysis|commentary|final)"


def _without_names(text: str, plain: str, places: list[int] | None) -> str:
    """A text as markers are looked for in it, without the names before a type that parsing would not take for one.

    A mark behind a name is a type in code, but parsing reads text as it is written: it knows no full-width names, nor any
    through characters that are not seen.
    """
    if plain == text:
        return plain
    chars = list(plain)
    for opening in re.finditer(f"[{re.escape(_OPENINGS)}]", plain):
        at = opening.start()
        place = at if places is None else places[at]
        reach = 2 if plain[at - 1 : at] == ":" else 1
        if at and not text[max(0, place - reach) : place].isascii():
            chars[at - 1] = " "
    return "".join(chars)


@lru_cache(maxsize=256)
def _markers(reserved: Reserved) -> tuple[tuple[re.Pattern[str], ...], str]:
    """Patterns of all that is to be neutralised, and the character that takes the place of their first one."""
    literals = {_plain(token)[0] for token in reserved if isinstance(token, str) and token.strip()} - {""}
    tags = {token for token in literals if token[0] in _OPENINGS}
    patterns = sorted(token.pattern for token in reserved if isinstance(token, re.Pattern))
    marks = "|".join([MARK_PATTERN, _tag("answer"), *patterns, *([_any_of(tags)] if tags else [])])
    words = _BARE_CHANNEL + (f"|{_any_of(literals - tags)}" if literals > tags else "")
    bracket = next(sign for sign in "({\u2039" if not any(literal.startswith(sign) for literal in literals))
    # Of a tag the opening character alone is matched, so that one pass finds those that overlap. It is looked for by itself
    # first: to try all patterns at every character takes longer than all else that is done to a text.
    tag = re.compile(f"[{re.escape(_OPENINGS)}](?<=(?=(?:{marks})).)", re.DOTALL)
    return (tag, re.compile(words)), bracket


def neutralise(text: str, reserved: Reserved = ANY_FAMILY, code: str = "") -> str:
    """Put a round bracket for the first character of every marker in a text, leaving the rest as it stands.

    Repeats until none is left, because a bracket may complete another marker; each pass leaves fewer characters that
    are not brackets, so it ends. (It is another bracket where a marker begins with a round one.)

    Args:
        text: from outside.
        reserved: the judge's special tokens, and what else must not be in a text.
        code: of the section marks around it.
    """
    patterns, bracket = _markers(reserved)
    if code:
        patterns = (*patterns, re.compile(code, re.IGNORECASE))
    while True:
        plain, places = _plain(text)
        readings = {plain, _without_names(text, plain, places)}
        found = {match.start() for read in readings for pattern in patterns for match in pattern.finditer(read)}
        if not found:
            return text
        chars = list(text)
        for place in found:
            chars[places[place] if places is not None else place] = bracket
        text = "".join(chars)


# -- what a reader sees ---------------------------------------------------------------------------------------------------

_DIRECTIONS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_SELECTORS = re.compile("[\u180b-\u180d\u180f\ufe00-\ufe0f\U000e0100-\U000e01ef]")
_FLAG = re.compile("(?<=\U0001f3f4)[\U000e0020-\U000e007e]+\U000e007f")
_CONTROLS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_BLANK = "\u115f\u1160\u3164\uffa0\u2800"  # fillers of Hangul, the empty pattern of Braille
_SPACES = _BLANK + "".join(char for char in map(chr, range(0x3001)) if char.isspace() and char != "\n")


def visible(text: str) -> str:
    """What a reader sees of a text: the same for all texts that look the same. To tell texts apart, not to be shown.

    Left out are white space at the end of lines and around the whole (but for the indent of a first line among several),
    controls, and format characters where nothing is seen of them. Joiners, variation selectors, tags and marks of
    direction stay where they are seen: in emoji, flags, Persian, Hindi, right-to-left text. Lines end in ``\\n``, accents
    are composed (NFC), a no-break space is a space. Look-alikes of different scripts are seen as different.

    >>> visible("Hel\\u200blo! \\r\\n") == visible("Hello!")
    True
    """
    text = encodable(text).replace("\r\n", "\n").replace("\r", "\n")
    if not text.isascii():
        text = _drawn(unicodedata.normalize("NFC", text.replace("\xa0", " ")))
    lines = [line.rstrip(_SPACES) for line in _CONTROLS.sub("", text).split("\n")]
    text = "\n".join(lines).strip("\n")
    return text if "\n" in text else text.lstrip(_SPACES)


def _drawn(text: str) -> str:
    """A text without the characters that nothing is seen of where they stand."""
    found = {char for char in set(text) if _unseen(char) and char not in _BLANK}
    if not found:
        return text
    turned = any(unicodedata.bidirectional(char) in ("R", "AL", "RLE", "RLO", "LRO", "RLI") for char in set(text))
    flags = {place for flag in _FLAG.finditer(text) for place in range(*flag.span())}
    kept = [""]
    for place, char in enumerate(text):
        after = text[place + 1 : place + 2]
        if (
            char not in found
            or place in flags
            or (turned and char in _DIRECTIONS)
            or (char in "\u200c\u200d" and _joins(char, kept[-1], after))
            or (_SELECTORS.match(char) and _selects(kept[-1], after))
        ):
            kept.append(char)
    return "".join(kept)


def _joins(joiner: str, before: str, after: str) -> bool:
    """Whether a joiner changes how its neighbours are drawn: letters of a cursive script, conjuncts, emoji."""
    if any(char and unicodedata.combining(char) == 9 for char in (before, after)):  # a virama
        return True
    joined = [bool(char) and (_cursive(char) or _pictured(char)) for char in (before, after)]
    return all(joined) or (joiner == "\u200d" and before != "" and _cursive(before))


def _cursive(char: str) -> bool:
    return unicodedata.bidirectional(char) in ("R", "AL") or "\u1800" <= char <= "\u18af"


def _pictured(char: str) -> bool:
    return unicodedata.category(char) in ("So", "Sk", "Sm") or char in "\ufe0e\ufe0f"


def _selects(before: str, after: str) -> bool:
    """Whether a variation selector changes how the character before it is drawn: an emoji, an ideograph, a key."""
    if not before or before.isascii():
        return before != "" and after == "\u20e3"  # a key is a digit, U+FE0F and a frame
    return unicodedata.category(before) not in ("Ll", "Lu", "Mn", "Zs")
