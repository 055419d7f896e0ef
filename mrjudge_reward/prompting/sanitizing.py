"""Outside text made safe to stand in a judge's prompt.

Whatever comes from outside (question, candidates, reference, rubric) passes a :class:`Sanitizer`, which

1. loses its invisible format characters, which would hide a marker from the next step and not from the judge;
2. neutralises markers: the judge's tags, the template's own section headers (lines that begin with ``[``) and
   chat-template tokens get a round bracket for their opening character (``<|im_end|>`` becomes ``(|im_end|>``), so that
   no text can close its section, speak for the judge, or produce a special token;
3. bounds the length in tokens by cutting the middle and saying so in the text.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache

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
class Sanitizer:
    """Makes outside text safe and short enough to stand in a prompt; remembers the texts it has seen.

    Attributes:
        count_tokens: the judge's tokenizer, or an upper estimate.
        max_tokens: bound of one text.
        reserved: further strings to neutralise, such as the tokenizer's special tokens.
        sanitized: takes up the texts in which there was a marker to neutralise.
        candidate_tokens: a further bound, of candidates alone.
        cut: takes up the texts that were too long, each with the bound that it was cut to.
    """

    count_tokens: Callable[[str], int]
    max_tokens: int
    reserved: frozenset[str] = frozenset()
    sanitized: set[str] = field(default_factory=set, repr=False, compare=False)
    candidate_tokens: int | None = None
    cut: set[tuple[str, int]] = field(default_factory=set, repr=False, compare=False)
    _seen: dict[tuple[str, tuple[str, ...], int], str] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __call__(self, text: str, headers: Iterable[str] = (), bound: int | None = None) -> str:
        """The text, without live markers and bounded; empty where not even the note about a cut would fit.

        Args:
            text: from outside.
            headers: words that open a section of the template.
            bound: of this text, where it is not ``max_tokens``.
        """
        key = text, tuple(headers), self.max_tokens if bound is None else bound
        if key not in self._seen:
            self._seen[key] = self._guarded(*key)
        return self._seen[key]

    @property
    def most_of_candidate(self) -> int:
        """Bound of a candidate."""
        return self.max_tokens if self.candidate_tokens is None else min(self.max_tokens, self.candidate_tokens)

    def _guarded(self, text: str, headers: tuple[str, ...], most: int) -> str:
        given, text = text, visible(text.encode(errors="replace").decode())  # no tokenizer takes a lone surrogate
        # A token rarely spans 16 characters: far longer texts are cut before they are tokenized at all.
        keep = max(0, min(len(text), most * 16))
        while True:
            # A cut may complete a marker and a marker sanitized takes more tokens: so cut, neutralise, then count.
            bounded = _cut_middle(text, keep)
            safe = neutralise(bounded, self.reserved, headers)
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
    while (sanitized := pattern.sub("(", text)) != text:
        text = sanitized
    return text
