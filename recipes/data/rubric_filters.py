"""Criteria out of what a writer wrote, and what they are dropped for, each with a reason. Pure functions.

===================  ==================================================================================================
reason               a criterion that
===================  ==================================================================================================
malformed            is no object with a text and a weight, as ``rubrics.reading`` reads them
weight               weighs more than was asked for
not checkable        names nothing to be found: no letter, one bare word, or words of praise alone
names an answer      speaks of the reference, or of another answer, which a grader does not see
quotes an answer     repeats many words of an answer in order that the question does not have
overlap              asks what a heavier one asks (or the first of equals): most of their words that say what are the same
too many             is lighter than as many as a rubric may have
===================  ==================================================================================================

"not checkable" and "names an answer" know English alone. A sign of Chinese or Japanese counts as half a word, and pairs of
neighbours are compared for overlap.

What a criterion is true of, no filter knows. Filters can be strict where that costs only a criterion.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mrjudge_reward.errors import InputError
from mrjudge_reward.rubrics.criteria import Criterion
from mrjudge_reward.rubrics.reading import read_rubric

from .synthesis_filters import SIGN, grams, words

CRITERION_FILTERS = (
    "malformed", "weight", "not checkable", "names an answer", "quotes an answer", "overlap", "too many",
)  # fmt: skip

_LISTS = ("criteria", "rubrics", "rubric")
_LIST_OPENS = re.compile(r'\{\s*"(?:criteria|rubrics?)"\s*:\s*\[')
_JSON = json.JSONDecoder(strict=False)  # a line may end inside a text
_SIGNED = re.compile(r'("(?:weight|points)"\s*:\s*)\+(?=[\d.])')
_NUMBER = re.compile(r"\s*[+-]?\d{1,9}(?:\.\d{1,9})?\s*", re.ASCII)
_FENCE = re.compile(r"^\s*```\w*\s*$", re.MULTILINE)
_LONGEST_NAME = 60
"""Characters of a name, which stands in logs."""

_EMPTY = frozenset(words(
    "a an the is are be been being was were and or but nor of to in for with within that this these it its as by on "
    "at from if when where which who what how very quite overall all any every each some only also more most much "
    "no not never should must shall will would can could may might does do did has have had well than then there "
    "answer answers response responses reply text output solution candidate grader reader user question prompt give "
    "gives giving given provide provides providing show shows showing use uses using contain contains containing "
    "include includes including state states stating say says saying mention mentions mentioning name names naming "
    "explain explains explaining describe describes describing identify identifies identifying note notes noting "
    "specify specifies address addresses present presents fail fails omit omits lack lacks miss misses missing "
    "leave leaves out without correctly clearly accurately explicitly properly "
))  # fmt: skip
"""Words that do not say what a criterion asks for."""
_EMPTY_SIGNS = re.compile(
    "回答|答案|回复|回應|应该|应当|應該|必须|必須|需要|是否|正确|正確|准确|準確|明确|明確|清楚|说明|說明|指出|提到|提及|给出|給出|列出"
    "|解释|解釋|描述|介绍|介紹|阐述|包括|包含|没有|未能|未|不|了|地|该|該"
    "|正しく|述べて|述べる|挙げて|挙げる|示して|示す|含む|説明|言及|指摘|ている|いる|いない|して|する|こと|について|を|が|は"
)
_PRAISE = frozenset(words(
    "good bad better best worse worst great excellent poor nice wrong right clear clarity concise conciseness brief "
    "helpful helpfulness useful usefulness accurate accuracy correct correctness complete completeness "
    "comprehensive thorough detailed relevant relevance coherent coherence consistent consistency fluent fluency "
    "readable readability engaging informative insightful appropriate appropriately professional polite politeness "
    "kind friendly respectful natural logical logic quality high low style tone structured structure organised "
    "organized organisation organization easy understand understandable factual factually precise precision safe "
    "harmless honest honesty written creative creativity original interesting valid sound reasonable sensible "
    "satisfying proper inaccurate incorrect unclear vague incomplete irrelevant unhelpful confusing misleading "
))  # fmt: skip
"""Words that call an answer good or bad, and do not say what is to be found in it."""

_ANSWERS = r"(?:answer|response|reply|solution|completion|candidate)s?"
_WHICH = r"(?:reference|gold(?:en)?|ideal|expected|preferred|chosen|rejected|better|worse|first|second|other)"
_NAMED = re.compile(
    rf"\b(?i:{_WHICH}[ -]{_ANSWERS})\b"
    r"|\b(?i:the references?\b(?! (?:list|section|number|frame|point|range|value|interval|to|for|of)\b))"
    r"|\b(?i:answer|response|reply|solution|completion|candidate) [AB12]\b"
)


@dataclass(frozen=True)
class RubricLimits:
    """What a rubric may be; fields as in ``RubricRecipe``."""

    criteria: tuple[int, int]
    max_weight: float
    max_overlap: float
    quote_words: int


# -- reading ------------------------------------------------------------------------------------------------------------


def read_criteria(text: str) -> list[Criterion | None]:
    """The criteria of a rubric as a writer wrote it, None for each piece that is none.

    A JSON list of objects or texts, or an object that holds one, in a code fence or not. Of JSON that is broken, the objects
    that stand for themselves.

    >>> read_criteria('[{"name": "dose", "description": "Names the dose.", "weight": 2}, {"name": "dose", "weight": "two"}]')
    [Criterion(name='dose', description='Names the dose.', weight=2, grades=(), essential=False), None]
    """
    text = _SIGNED.sub(r"\1", text)
    try:
        entries = _entries(_JSON.decode(_FENCE.sub("", text).strip()))
    except (ValueError, RecursionError):
        entries = list(_objects(text))
    return [_criterion(entry) for entry in entries]


def _entries(value: Any) -> list[Any]:
    while isinstance(value, dict) and len(held := [value[name] for name in _LISTS if name in value]) == 1:
        value = held[0]
    return value if isinstance(value, list) else [value]


def _objects(text: str) -> Iterator[Any]:
    """What the JSON objects in a text hold, None for each that is broken."""
    place = text.find("{")
    while place >= 0:
        try:
            value, end = _JSON.raw_decode(text, place)
            yield from _entries(value)
        except (ValueError, RecursionError):
            end = place + 1
            if not _LIST_OPENS.match(text, place):
                yield None
        place = text.find("{", end)


def _criterion(entry: Any) -> Criterion | None:
    if isinstance(entry, Mapping):  # what was not asked for cannot spoil it, nor decide anything
        entry = {name: value for name, value in entry.items() if name not in ("grades", "essential")}
        for name in ("weight", "points"):
            if isinstance(weight := entry.get(name), str) and _NUMBER.fullmatch(weight):
                entry[name] = float(weight)
    try:
        (criterion,) = read_rubric([entry]).criteria
        f"{criterion.name}{criterion.description}".encode()  # half a surrogate pair would spoil the whole file
    except (InputError, UnicodeEncodeError):
        return None
    return criterion


# -- filters ------------------------------------------------------------------------------------------------------------


def filtered(
    criteria: Sequence[Criterion | None], question: str, answers: Sequence[str], limits: RubricLimits
) -> tuple[list[Criterion], Counter[str]]:
    """The criteria that are kept, each with a name of its own, and how many are dropped for which reason.

    Args:
        criteria: as ``read_criteria`` gives them.
        question: that is answered.
        answers: that the writer saw.
        limits: of the rubric.
    """
    dropped: Counter[str] = Counter()
    sound: list[Criterion] = []
    for one in criteria:
        fault = "malformed" if one is None else criterion_fault(one, question, answers, limits)
        if one is None or fault:
            dropped[fault] += 1
        else:
            sound.append(one)
    kept: list[int] = []
    for index in sorted(range(len(sound)), key=lambda index: -abs(sound[index].weight)):
        asks = sound[index].description
        if any(overlap(asks, sound[other].description) >= limits.max_overlap for other in kept):
            dropped["overlap"] += 1
        elif len(kept) == limits.criteria[1]:
            dropped["too many"] += 1
        else:
            kept.append(index)
    return _named([sound[index] for index in sorted(kept)]), dropped


def rubric_fault(criteria: Sequence[Criterion], limits: RubricLimits) -> str:
    """Why criteria are no rubric; empty if they are one."""
    if len(criteria) < limits.criteria[0]:
        return "too few criteria"
    # An answer that says nothing falls into no pitfall.
    return "pitfalls alone" if all(one.weight < 0 for one in criteria) else ""


def criterion_fault(one: Criterion, question: str, answers: Sequence[str], limits: RubricLimits) -> str:
    """Why a criterion is dropped, whatever others there are; empty if it is not."""
    if abs(one.weight) > limits.max_weight:
        return "weight"
    if not is_checkable(one.description):
        return "not checkable"
    if names_an_answer(one.told, question):
        return "names an answer"
    if any(quotes(one.told, answer, question, limits.quote_words) for answer in answers):
        return "quotes an answer"
    return ""


def is_checkable(description: str) -> bool:
    """Whether a description names something to be found, rather than calling an answer good.

    >>> is_checkable("Names the dose."), is_checkable("The response is clear and helpful."), is_checkable("Dosage")
    (True, False, False)
    """
    said = words(description)
    return bool(_content(description) - _PRAISE) and not (len(said) == 1 and said[0].isascii())


def names_an_answer(text: str, question: str) -> bool:
    """Whether a text speaks of an answer that is not the one that is graded, in words that the question does not use."""
    known = question.casefold()
    return any(match[0].casefold() not in known for match in _NAMED.finditer(text))


def quotes(text: str, answer: str, question: str, size: int) -> bool:
    """Whether a text repeats ``size`` words of an answer in order that the question does not have.

    What a shorter answer says is a fact, which a criterion must be able to ask for.
    """
    return bool(grams(words(text), size) & grams(words(answer), size) - grams(words(question), size))


def overlap(one: str, two: str) -> float:
    """Share of the words of two descriptions, of those that say what is asked, that both have; 0 where numbers differ.

    >>> overlap("Names the dose.", "Does not mention the doses."), overlap("Names the dose.", "Names the source.")
    (1.0, 0.0)
    """
    numbers = re.compile(r"\d+")
    if set(numbers.findall(one)) != set(numbers.findall(two)):
        return 0.0
    mine, theirs = _content(one), _content(two)
    return len(mine & theirs) / len(mine | theirs) if mine | theirs else 1.0


def _content(description: str) -> set[str]:
    said = (word for word in words(description) if word not in _EMPTY and not re.fullmatch(SIGN, word))
    spelt = {word[:-1] if len(word) > 3 and re.search("[^s]s$", word) else word for word in said}
    signs = re.findall(f"{SIGN}+", _EMPTY_SIGNS.sub("", unicodedata.normalize("NFKC", description)))
    return spelt | {run[at : at + 2] for run in signs for at in range(max(1, len(run) - 1))}


def _named(criteria: Sequence[Criterion]) -> list[Criterion]:
    """Criteria with names that a log can show, all different."""
    taken: set[str] = set()
    named: list[Criterion] = []
    for number, one in enumerate(criteria, 1):
        name = " ".join(one.name.split())
        if len(name) > _LONGEST_NAME or re.fullmatch(r"criterion \d+", name):
            name = f"criterion {number}"
        while name.casefold() in taken:
            name = f"{name} {number}"
        taken.add(name.casefold())
        named.append(replace(one, name=name))
    return named
