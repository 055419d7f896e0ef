"""Judge training: what a judge is asked, and what is right, in the same formats that later score policies.

A **problem** shows some candidates of an item (see ``items``), in some order, in a format: it renders to the very chat
that scoring renders, it knows the answer a perfect judge would give, and it verifies a judge's reply through the format's
own parser, so that training and scoring cannot drift apart.

The verifiable reward by format, after the papers:

===========  =====================================================================  ==================================
format       accuracy of a verdict                                                  source
===========  =====================================================================  ==================================
Choice       1 if the best candidate is named                                       MR. Judge (arXiv 2505.13403)
Score        1 - distance to the right grade / length of the scale, which for two   MT-RL-Judge (arXiv 2603.11665),
             grades is right or wrong                                               binary
PairScores   share of the pairs that differ in worth and are graded in that order   J1 (arXiv 2505.10320), for pairs
Ranking      the same of its order (PPJD, arXiv 2606.02578, takes the edit          ours
             distance, which does not know ties)
===========  =====================================================================  ==================================

``reward = 0.9 accuracy + 0.1 format``, and 0 for a reply that ran into the cap (MR. Judge, section on training). A judge
that wrote no verdict is wrong here: this is the judge's own reward, not a response's. A tie where worths differ is wrong
too, or a judge could always say so; so is a preference where all are equal.

**Splits** are by a hash of a text, so that it is on one side for ever, whoever builds what from it.
"""

from __future__ import annotations

import hashlib
import math
import random
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from statistics import fmean
from typing import Any, Literal, TypeAlias, TypeVar

from mrjudge_reward.errors import ConfigError, InputError
from mrjudge_reward.messages import Message
from mrjudge_reward.prompting.formats import Choice, Format, PairScores, Ranking, Score, read_reply
from mrjudge_reward.prompting.sanitizing import Sanitizer
from mrjudge_reward.types import Grades, NoVerdict, Outcome, Preference, RankOrder, Reply

from .items import Item

T = TypeVar("T")
Split: TypeAlias = Literal["train", "dev", "test"]
FORMAT_WEIGHT = 0.1
"""Share of the reward for a well-formed verdict; 0.1 in MR. Judge."""


def split_of(text: str) -> Split:
    """On which side a text is: 80 % train, 10 % dev, 10 % test, by content; case, spaces and how accents are encoded
    make no difference.

    >>> split_of("A fine film.") == split_of("a  fine film. ")
    True
    """
    content = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    content_hash = hashlib.blake2b(content.encode(errors="surrogatepass"), digest_size=8)
    place = int.from_bytes(content_hash.digest(), "big") % 10
    return "train" if place < 8 else "dev" if place == 8 else "test"


# -- problems ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Problem:
    """One judge call of training or testing.

    Attributes:
        item: what it is about.
        slots: candidates shown, in order.
        format: in which the judge is asked.
    """

    item: Item
    slots: tuple[int, ...]
    format: Format

    @property
    def gold_K(self) -> tuple[float, ...]:
        """Worth of each slot."""
        return tuple(self.item.gold_G[slot] for slot in self.slots)

    @property
    def twins(self) -> tuple[str, frozenset[int], Format]:
        """The same for all orders in which the same candidates are shown in the same format."""
        return self.item.group.key, frozenset(self.slots), self.format

    def render(self, guard: Sanitizer) -> tuple[Message, ...]:
        """The chat that the judge sees."""
        texts = tuple(self.item.group.candidates[slot] for slot in self.slots)
        return self.format.render(self.item.group, texts, guard)

    def right(self, space: str = "") -> str:
        """The verdict that is right, as the judge would write it, its opening marker included.

        Args:
            space: between the markers and what stands in them.

        Raises:
            ConfigError: if the format cannot say it, or is none of ours.
        """
        form, gold_K = self.format, self.gold_K
        match form:
            case Choice():
                tied = form.tie_label and len(set(gold_K)) == 1
                said = [form.tie_label.strip() if tied else form.labels[gold_K.index(max(gold_K))]]
            case Ranking():
                order = sorted(range(len(gold_K)), key=lambda slot: -gold_K[slot])
                said = [form.labels[order[0]].strip()]
                for above, below in pairwise(order):
                    said[0] += f" {'=' if gold_K[above] == gold_K[below] else '>'} {form.labels[below].strip()}"
            case Score() | PairScores():
                said = [label for label, _ in _right_grades(gold_K, self.item.scale, form.grades)]
            case _:
                raise ConfigError(f"format {type(form).__name__} has no right verdict")
        return "".join(f"{form.answer_open}{space}{text}{space}{form.answer_close}" for text in said)

    def accuracy(self, outcome: Outcome) -> float:
        """How right a verdict is, from 0 to 1; see the module."""
        gold_K, equal = self.gold_K, len(set(self.gold_K)) == 1
        match outcome:
            case Preference(probabilities_K):
                top = max(probabilities_K)
                named = [slot for slot, value in enumerate(probabilities_K) if value == top]
                return float(not equal and len(named) == 1 and gold_K[named[0]] == max(gold_K))
            case Grades(values_K) if isinstance(self.format, Score):
                ((_, right),) = _right_grades(gold_K, self.item.scale, self.format.grades)
                grades = [grade for _, grade in self.format.grades]
                return 1 - min(1.0, abs(values_K[0] - right) / (max(grades) - min(grades)))
            case Grades(values_K):
                return _pairs_in_order(values_K, gold_K)
            case RankOrder(tiers):
                place = {slot: float(-tier) for tier, slots in enumerate(tiers) for slot in slots}
                return _pairs_in_order([place[slot] for slot in range(len(gold_K))], gold_K)
            case NoVerdict():
                return 0.0
            case _:  # a tie
                return float(equal)

    @property
    def chance(self) -> float:
        """Expected accuracy of a well-formed verdict drawn at random; a random ranking ties nothing.

        Raises:
            ConfigError: if the format is none of ours.
        """
        form, gold_K = self.format, self.gold_K
        equal = len(set(gold_K)) == 1
        match form:
            case Choice():
                right = bool(form.tie_label) if equal else gold_K.count(max(gold_K))
                return right / (len(gold_K) + bool(form.tie_label))
            case Ranking():
                return 0.0 if equal else 0.5
            case PairScores():
                grades = len(form.grades)
                return float(grades ** (1 - len(gold_K))) if equal else (1 - 1 / grades) / 2
            case Score():
                return fmean(self.accuracy(Grades.sampled([value])) for _, value in form.grades)
            case _:
                raise ConfigError(f"format {type(form).__name__} has no right verdict")


def _right_grades(
    gold_K: Sequence[float], scale: tuple[float, float], grades: Sequence[tuple[str, float]]
) -> list[tuple[str, float]]:
    """The grade of each worth: the nearest, once the scales lie over each other.

    Where that would give two worths one grade, those grades in the right order that lie nearest, all distances added.
    """
    ladder = sorted({value: label for label, value in reversed(grades)}.items())
    (low, high), bottom, top = scale, ladder[0][0], ladder[-1][0]
    tiers = sorted(set(gold_K))
    if len(tiers) > len(ladder):
        raise ConfigError(f"{len(ladder)} grades cannot tell {len(tiers)} candidates of different worth apart")
    # Distance and places of the best choice for the tiers so far, out of no grade, the lowest, the two lowest, ...
    best: list[tuple[float, tuple[int, ...]]] = [(0.0, ())] * (len(ladder) + 1)
    for worth in tiers:
        wanted = bottom + (worth - low) / (high - low) * (top - bottom)
        before, best = best, [(math.inf, ())]
        for place, (value, _) in enumerate(ladder):
            distance, chosen = before[place]
            best.append(min(best[-1], (distance + abs(value - wanted), (*chosen, place))))
    right = {worth: ladder[place] for worth, place in zip(tiers, best[-1][1], strict=True)}
    return [(right[worth][1], right[worth][0]) for worth in gold_K]


def _pairs_in_order(values_K: Sequence[float], gold_K: Sequence[float]) -> float:
    pairs = [(i, j) for i, j in combinations(range(len(gold_K)), 2) if gold_K[i] != gold_K[j]]
    right = sum((values_K[i] - values_K[j]) * (gold_K[i] - gold_K[j]) > 0 for i, j in pairs)
    return right / len(pairs) if pairs else float(len(set(values_K)) == 1)


def problems(
    items: Sequence[Item], format: Format, *, slots: int | None = None, both_orders: bool = False, seed: int = 0
) -> list[Problem]:
    """Problems of items in a format.

    Args:
        items: what to ask about. One of which no format's verdict would be right is left out: where several are best,
            a choice can only say that all are equal, and only with a label for it.
        format: how to ask. One that grades alone asks about every candidate.
        slots: candidates shown at once, one of the best among them; None for as many as the format can show.
        both_orders: show each selection also in the opposite order, right after.
        seed: of the selection and its order.

    Raises:
        ConfigError: if ``slots`` is not a number that the format can show.
    """
    if slots is not None and not format.min_slots <= slots <= format.max_slots:
        raise ConfigError(f"{type(format).__name__} shows {format.min_slots} to {format.max_slots} slots; got {slots}")
    made: list[Problem] = []
    for item in items:
        draw = random.Random(f"{seed} {item.group.key}")
        size = len(item.gold_G)
        if format.max_slots == 1:
            made += [Problem(item, (slot,), format) for slot in range(size)]
            continue
        # A selection without the best would mostly be of equals, in a set where one candidate is right.
        best = draw.choice([slot for slot, worth in enumerate(item.gold_G) if worth == max(item.gold_G)])
        others = [slot for slot in range(size) if slot != best]
        chosen = [best, *draw.sample(others, min(slots or format.max_slots, size, format.max_slots) - 1)]
        draw.shuffle(chosen)
        gold_K = [item.gold_G[slot] for slot in chosen]
        one_best, equal = gold_K.count(max(gold_K)) == 1, len(set(gold_K)) == 1
        sayable = not isinstance(format, Choice) or one_best or (equal and format.tie_label)
        if len(chosen) < format.min_slots or not sayable:
            continue
        made.append(Problem(item, tuple(chosen), format))
        if both_orders:
            made.append(Problem(item, tuple(chosen[::-1]), format))
    return made


def with_twins(problems: Sequence[Problem]) -> list[tuple[Problem, ...]]:
    """Problems that show the same candidates in different orders, joined, so that a mixture keeps them together."""
    found: dict[Any, list[Problem]] = {}
    for problem in problems:
        found.setdefault(problem.twins, []).append(problem)
    return [tuple(twins) for twins in found.values()]


def balanced(
    tasks: Mapping[str, Sequence[T]], count: int, seed: int = 0, weights: Mapping[str, float] | None = None
) -> list[tuple[str, T]]:
    """A mixture in which each task has its share, in random order.

    A task is gone through, in random order, before one of its examples comes again.

    Args:
        tasks: name → examples.
        count: of the mixture.
        seed: of the order.
        weights: name → weight; 1 where none is named. A task's share is its part of all weights, rounded.

    Raises:
        InputError: if there is no task, an empty one, or a weight that is not above zero.
    """
    if not tasks:
        raise InputError("a mixture needs at least one task")
    weight = {name: 1.0 if weights is None else weights.get(name, 1.0) for name in tasks}
    if not all(0 < value < math.inf for value in weight.values()):
        raise InputError(f"weights of tasks must be above zero; got {weight}")
    draw = random.Random(seed)
    mixture: list[tuple[str, T]] = []
    ahead = 0.0
    for name, examples in tasks.items():
        if not examples:
            raise InputError(f"task {name!r} has no examples")
        ahead += weight[name]
        share = round(count * ahead / sum(weight.values())) - len(mixture)
        deck: list[T] = []
        while len(deck) < share:
            deck += draw.sample(list(examples), len(examples))
        mixture += [(name, example) for example in deck[:share]]
    draw.shuffle(mixture)
    return mixture


# -- rewards ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verified:
    """What a judge's reply to a problem is worth.

    Attributes:
        accuracy: from 0 to 1.
        formed: whether there is a verdict.
        reward: for RL.
    """

    accuracy: float
    formed: bool
    reward: float


def verify(problem: Problem, reply: Reply) -> Verified:
    """Verify a reply; one that ran into its token cap is worth nothing, whatever it says."""
    outcome = read_reply(problem.format, reply, len(problem.slots)).outcome
    formed = not isinstance(outcome, NoVerdict)
    accuracy = problem.accuracy(outcome)
    return Verified(accuracy, formed, (1 - FORMAT_WEIGHT) * accuracy + FORMAT_WEIGHT * formed)
