"""What synthetic texts are dropped for, each filter with a reason that is counted. Pure functions.

Phrases that refuse or leak are looked for in English alone.

=============================  ========================================================================================
reason                         a negative that
=============================  ========================================================================================
empty                          holds no letter, number or symbol
refusal                        declines to answer
announces its flaw             says that it is wrong, or on purpose so, in words that neither question nor reference use
same as the reference          is it, but for case, spaces, emphasis and punctuation at its ends
nearly the reference           shares most words with it, in order, and all numbers
length                         is much longer or shorter than the reference
duplicate                      is another negative of the item
=============================  ========================================================================================

=============================  ========================================================================================
reason                         a trace that
=============================  ========================================================================================
markers                        holds the judge's own marks or special tokens
too short                      reasons in too few words
rewritten                      came back from an editor much longer or shorter than it went there
hint leaked                    speaks of a hint or of being told, or repeats four words of the hint in order
description leaked             speaks of a description of the image
=============================  ========================================================================================

Filters can be strict where that costs only rows: a trace about a riddle that has "hints" is dropped too.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from mrjudge_reward.judging.tournament import is_degenerate

NEGATIVE_FILTERS = (
    "empty", "refusal", "announces its flaw", "same as the reference", "nearly the reference", "length", "duplicate",
)  # fmt: skip
TRACE_FILTERS = ("markers", "too short", "rewritten", "hint leaked", "description leaked", "right verdict")

_LENGTH_SLACK = 20
"""Characters that are added to both lengths of a ratio, so that "4" and "forty-two" do not differ nine times."""
_HINT_GRAM = 4
_CONTENT_WORDS = 5
"""Words from which on a text that stands in two items is no coincidence."""

SIGN = "[\u3005\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff]"
"""A character of Chinese or Japanese, which put no spaces between words."""
_MARKS = "".join(one for one in map(chr, range(0x300, 0x1F000)) if unicodedata.category(one)[0] == "M")
_WORD = re.compile(rf"{SIGN}|(?:(?!{SIGN})\w[{_MARKS}\u200c\u200d]*)+")

_APOSTROPHE = "['’]?"
_REFUSAL = re.compile(
    rf"(?i)^\W*(?:(?:i{_APOSTROPHE} ?a?m )?(?:(?:very |so )?sorry|afraid)\b|i apologi[sz]e"
    rf"|as an ai\b|as a (?:large )?language model"
    rf"|i(?: am|{_APOSTROPHE}m)(?: not able| unable)\b"
    rf"|i (?:can ?not|can{_APOSTROPHE}t|won{_APOSTROPHE}t|will not|must decline|am not comfortable)\b"
    r"(?!.{0,20}\b(?:say|stress|recommend|emphasi[sz]e) enough)|i refuse)"
)
_BAD = r"(?:wrong|incorrect|inaccurate|flaw\w*|error\w*|mistake\w*|false|misread\w*|omi(?:t|ss)\w*|hallucinat\w*)"
_ON_PURPOSE = r"(?:on purpose|(?:deliberate|intentional|purpose|purposeful)(?:ly)?)"
_ANNOUNCED = re.compile(
    r"(?i)\b(?:incorrect|wrong|flawed|false|erroneous|misleading|deceptive|bad|inaccurate|incomplete|hallucinated|worse)"
    r" (?:answer|response|version|reply)\b"
    rf"|\b{_BAD}\W+(?:\w+\W+){{0,2}}{_ON_PURPOSE}\b|\b{_ON_PURPOSE}\W+(?:\w+\W+){{0,3}}{_BAD}\b"
    r"|\bplausible but\b|\b(?:good|reference) answer\b|\bhallucinat\w+"
    r"|\b(?:note|disclaimer|warning)\s*:\s*(?:this|the above|the answer)\b"
    r"|\bthis (?:answer|response|reply) (?:is|contains|has|leaves|omits|misses|misreads)\b"
    r"|\bsubtle (?:error|mistake|flaw)\b"
)
_HINTED = re.compile(
    r"(?i)\bhint(?:s|ed|ing)?\b|\bcareful readers\b|\bthe remark\b|\bground[- ]truth\b|\b(?:answer|solution) key\b"
    r"|\b(?:i|we)(?: a|['’]?)(?:m|re)? ?(?:was|were|am|are|have been|['’]ve been|had been)?"
    r" ?(?:told|informed|instructed|tipped|pointed)\b"
    r"|\b(?:been|was|were) (?:told|informed|given|tipped|pointed to)\b|\bas (?:told|instructed)\b"
    r"|\b(?:given|knowing|since (?:we|i) know|assuming) (?:that )?the (?:correct|right|best|expected|true|preferred)"
    r" (?:answer|response|option|choice|one)\b"
    r"|\b(?:provided|expected|given|supplied|suggested|known|reference|gold|official) (?:correct )?"
    r"(?:answer|solution|verdict|label|preference)\b"
    r"|\baccording to the (?:note|prompt|instructions?|user|system|reference)\b"
    r"|\bleaned towards?\b"
)
_DESCRIBED = re.compile(
    r"(?i)\b(?:the|this|that|a|an|provided|given|image|picture|visual|photo) descriptions? (?:says?|states?|mentions?|notes?"
    r"|tells?|indicates?|describes?|shows?|specif\w+|does|doesn['’]?t|only|also|explicitly|clearly|provided|given|of the"
    r" (?:image|picture|photo))\b"
    r"|\b(?:image|picture|photo|visual) descriptions?\b"
    r"|\b(?:according to|based on|from|in|per|by|match(?:es)?|contradicts?|with|to|against) the"
    r" (?:provided |given )?description\b"
    r"|\bas described\b|\bthe described (?:image|picture|scene|photo)\b|\b(?:image|picture|photo) is described\b"
)


@dataclass(frozen=True)
class Limits:
    """How near and how far a negative may be; fields as in ``SynthesisRecipe``."""

    length_ratio: tuple[float, float]
    max_similarity: float


def normalised(text: str) -> str:
    """A text without what makes no difference: case, white space, emphasis, punctuation at its ends."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    plain = re.sub(r"\*\*|__|`|^\s*(?:#+|[-*•])\s", " ", plain, flags=re.MULTILINE)
    return " ".join(plain.split()).strip(" .!?,;:\"'")


def similarity(one: str, two: str) -> float:
    """Share of words that two texts have in common in order; 0 where their numbers differ.

    >>> similarity("It takes 12 days.", "It takes 21 days."), similarity("a b c d", "a b c e")
    (0.0, 0.75)
    """
    pattern = re.compile(r"\d+(?:[.,]\d+)*")
    if pattern.findall(one) != pattern.findall(two):
        return 0.0
    return SequenceMatcher(None, normalised(one).split(), normalised(two).split(), autojunk=False).ratio()


def is_refusal(text: str) -> bool:
    """Whether an answer opens by declining."""
    return _REFUSAL.match(text) is not None


def announces(text: str, material: str) -> bool:
    """Whether a text gives itself away in words that the material does not use either."""
    known = material.casefold()
    return any(match[0].casefold() not in known for match in _ANNOUNCED.finditer(text))


def negative_fault(text: str, question: str, reference: str, others: Iterable[str], limits: Limits) -> str | None:
    """Why a negative is dropped; None if it is kept.

    Args:
        text: the negative.
        question: that it answers.
        reference: the best answer.
        others: negatives of the item that are kept.
        limits: of length and similarity.
    """
    if is_degenerate(text):
        return "empty"
    if is_refusal(text):
        return "refusal"
    if announces(text, f"{question}\n{reference}"):
        return "announces its flaw"
    if normalised(text) == normalised(reference):
        return "same as the reference"
    if similarity(text, reference) >= limits.max_similarity:
        return "nearly the reference"
    least, most = limits.length_ratio
    if not least <= (len(text) + _LENGTH_SLACK) / (len(reference) + _LENGTH_SLACK) <= most:
        return "length"
    return "duplicate" if normalised(text) in map(normalised, others) else None


def content_of(text: str) -> str | None:
    """What two items must not share; None for a text so short that they may."""
    plain = normalised(text)
    return plain if len(plain.split()) >= _CONTENT_WORDS else None


def words(text: str) -> list[str]:
    """The words of a text in lower case; of Chinese and Japanese, which put no spaces, each sign."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def grams(said: Sequence[str], size: int) -> set[tuple[str, ...]]:
    """All runs of so many words, of which a sign of Chinese or Japanese is half a one."""
    found: set[tuple[str, ...]] = set()
    end, held = 0, 0.0
    for start in range(len(said)):
        while held < size and end < len(said):
            held += _weight(said[end])
            end += 1
        if held < size:
            break
        found.add(tuple(said[start:end]))
        held -= _weight(said[start])
    return found


def _weight(word: str) -> float:
    return 0.5 if re.fullmatch(SIGN, word) else 1.0


def hint_leaks(trace: str, hint: str) -> bool:
    """Whether a trace shows that its writer had a hint."""
    return bool(_HINTED.search(trace)) or bool(grams(words(trace), _HINT_GRAM) & grams(words(hint), _HINT_GRAM))


def description_leaks(trace: str) -> bool:
    """Whether a trace shows that its writer had a description in the place of the image."""
    return _DESCRIBED.search(trace) is not None


def rewritten(before: str, after: str, ratio: tuple[float, float]) -> bool:
    """Whether an editor did more than it was asked to, by the length of what came back."""
    return not ratio[0] * len(before) <= len(after) <= ratio[1] * len(before)
