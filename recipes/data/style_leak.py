"""Leak test: can the best answer be told by its style alone, without the question?

    python -m recipes.data.style_leak --preferences FILE                 # chosen and rejected, or items of synthesize.py
    python -m recipes.data.style_leak --preferences FILE --max-leak 0.6  # exit status 1 above that
    python -m recipes.data.style_leak --preferences FILE --match-length  # of what ``length_matched`` would keep

Where it can, a judge trained on the set may learn the style and nothing else; for sets made by reverse candidate
synthesis (MR. Judge, arXiv 2505.13403) this is likely, because one answer comes from a data set and the others from a
model. The paper reports no such test; this one is ours.

The classifier is a logistic regression on differences of two answers' features: lengths, punctuation and formatting, and
TF-IDF of character and word n-grams. It never sees the question. Each item's answers are ranked by a classifier that was
fitted on other questions (grouped cross-validation), and counts as right if the best answer comes first; equal scores
share. Next to it stand chance, the share in which the best answer is the longest, and what gives it away. The interval
is a bootstrap over questions. What it finds is there; that it finds nothing shows only that these features do not tell.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import compress
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from mrjudge_reward.errors import InputError, MRJudgeError, require
from mrjudge_reward.prompting.rendering import conversation_text
from mrjudge_reward.training.items import Item, from_preference
from recipes.common.intervals import Interval, interval
from recipes.common.rows import placed_rows

FEWEST = 20
"""Questions below which the test says nothing."""

_COUNTED = {
    "characters": r"(?s).",
    "words": r"\w+",
    "lines": r"\n",
    "sentences": r"[.!?](?:\s|$)",
    "commas": r",",
    "exclamation marks": r"!",
    "question marks": r"\?",
    "colons": r"[:;]",
    "quotes": r"[\"“”«»]",
    "brackets": r"[()\[\]{}]",
    "dashes": r"\s[-–—]\s|—",
    "digits": r"\d",
    "capitals": r"[A-Z]",
    "bold": r"\*\*|__",
    "headings": r"(?m)^\s*#{1,6}\s",
    "bullets": r"(?m)^\s*[-*•]\s",
    "numbered lines": r"(?m)^\s*\d+[.)]\s",
    "code": r"`",
    "formulas": r"\$|\\[a-zA-Z(\[]",
    "other alphabets and emoji": r"[^\x00-\x7f]",
}
_PATTERNS = {name: re.compile(pattern) for name, pattern in _COUNTED.items()}
_RATIOS = ("word length", "different words", "ends in a full stop", "opens with a capital")
STYLE = (*_PATTERNS, *_RATIOS)
"""Names of the features beside the n-grams."""


@dataclass(frozen=True)
class Told:
    """The answers of an item: which is best, and the question that it shares a fold with."""

    question: str
    best: str
    others: tuple[str, ...]


@dataclass(frozen=True)
class Leak:
    """How well style alone tells.

    Attributes:
        accuracy: share of items whose best answer the classifier puts first, with its 95 % interval.
        chance: the same for a guess.
        longest: share of items whose best answer is the longest.
        items: how many.
        cues: style features that weigh most, ``+`` for the best answers, in standard deviations.
        words: n-grams of words that weigh most, likewise.
    """

    accuracy: Interval
    chance: float
    longest: float
    items: int
    cues: tuple[str, ...]
    words: tuple[str, ...]

    def __str__(self) -> str:
        """One line for a reader."""
        share, low, high = self.accuracy
        return (
            f"style alone finds the best answer of {self.items} items in {share:.3f} [{low:.3f}, {high:.3f}]; "
            f"chance {self.chance:.3f}; the longest is the best in {self.longest:.3f}; "
            f"cues: {', '.join((*self.cues, *self.words))}"
        )


def style_of(text: str) -> list[float]:
    """Lengths, punctuation, formatting; in the order of ``STYLE``."""
    words = re.findall(r"\w+", text.casefold())
    counts = [float(np.log1p(len(pattern.findall(text)))) for pattern in _PATTERNS.values()]
    length = fmean(map(len, words)) if words else 0.0
    return [
        *counts,
        length,
        len(set(words)) / max(1, len(words)),
        text.rstrip()[-1:] == ".",
        text.lstrip()[:1].isupper(),
    ]


def told(item: Item) -> Told | None:
    """What the test needs of an item; None where several answers are best."""
    best = [text for text, worth in zip(item.group.candidates, item.gold_G, strict=True) if worth == max(item.gold_G)]
    others = tuple(text for text in item.group.candidates if text not in best)
    if len(best) != 1 or not others:
        return None
    return Told(" ".join(conversation_text(item.group.prompt).casefold().split()), best[0], others)


class _Features:
    """What the classifier sees of a text, fitted to the texts of the training folds."""

    def __init__(self, texts: Sequence[str]) -> None:
        text_module = require("sklearn.feature_extraction.text", extra="dev")
        settings = {"sublinear_tf": True, "max_features": 30_000, "min_df": 2 if len(texts) > 200 else 1}
        self.words = text_module.TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"\w+|[^\w\s]", **settings)
        self.characters = text_module.TfidfVectorizer(
            analyzer="char_wb", ngram_range=(2, 4), lowercase=False, **settings
        )
        self.kept = [self.words, self.characters]
        for vectorizer in list(self.kept):
            try:
                vectorizer.fit(texts)
            except ValueError:  # nothing but blanks, or no n-gram that stands twice
                self.kept.remove(vectorizer)
        style = np.array([style_of(text) for text in texts])
        spread = style.std(axis=0)
        self.spread = np.where(spread > 0, spread, 1.0)

    def __call__(self, texts: Sequence[str]) -> Any:
        """A sparse row per text; the features of ``STYLE`` come first."""
        sparse = require("scipy.sparse", extra="dev")
        style = sparse.csr_matrix(np.array([style_of(text) for text in texts]) / self.spread)
        return sparse.hstack([style, *(vectorizer.transform(texts) for vectorizer in self.kept)], format="csr")


def _fitted(train: Sequence[Told], seed: int) -> tuple[_Features, Any]:
    linear = require("sklearn.linear_model", extra="dev")
    sparse = require("scipy.sparse", extra="dev")
    pairs = [(one.best, other, 1 / len(one.others)) for one in train for other in one.others]
    features = _Features([text for one in train for text in (one.best, *one.others)])
    ahead = features([best for best, _, _ in pairs]) - features([other for _, other, _ in pairs])
    weight = [share for _, _, share in pairs]
    model = linear.LogisticRegression(
        fit_intercept=False, solver="liblinear", max_iter=2000, tol=1e-3, random_state=seed
    )
    model.fit(sparse.vstack([ahead, -ahead]), [1] * len(pairs) + [0] * len(pairs), sample_weight=weight * 2)
    return features, model.coef_[0]


def first_share(values: Sequence[float]) -> float:
    """1 if the first value is the greatest, its part if others are as great.

    >>> first_share([2.0, 1.0]), first_share([1.0, 1.0]), first_share([0.0, 1.0])
    (1.0, 0.5, 0.0)
    """
    top = max(values)
    return 1 / sum(value == top for value in values) if values[0] == top else 0.0


def measure(sets: Sequence[Told], folds: int = 5, resamples: int = 2000, seed: int = 0, most: int = 4000) -> Leak:
    """The leak test.

    Args:
        sets: answers of each item.
        folds: of the cross-validation; all items of a question are in one.
        resamples: of the bootstrap.
        seed: of folds and bootstrap.
        most: items that are looked at; of more, a random part.

    Raises:
        InputError: if there are too few different questions to tell.
        MissingPackageError: without scikit-learn.
    """
    require("sklearn", extra="dev")
    draw = random.Random(seed)
    chosen = list(sets) if len(sets) <= most else draw.sample(list(sets), most)
    questions = list(dict.fromkeys(one.question for one in chosen))
    if len(questions) < max(FEWEST, folds):
        raise InputError(f"{len(questions)} different questions are too few for a leak test; it takes {FEWEST}")
    draw.shuffle(questions)
    fold_of = {question: place % folds for place, question in enumerate(questions)}
    right: dict[str, list[float]] = defaultdict(list)
    for fold in range(folds):
        features, weights = _fitted([one for one in chosen if fold_of[one.question] != fold], seed)
        for one in (one for one in chosen if fold_of[one.question] == fold):
            scores = features((one.best, *one.others)) @ weights
            right[one.question].append(first_share(scores.round(9).tolist()))
    features, weights = _fitted(chosen, seed)
    vocabulary = features.words.get_feature_names_out() if features.words in features.kept else []
    return Leak(
        interval(list(right.values()), resamples, seed),
        fmean(1 / (1 + len(one.others)) for one in chosen),
        fmean(first_share([float(len(text)) for text in (one.best, *one.others)]) for one in chosen),
        len(chosen),
        _strongest(STYLE, weights[: len(STYLE)]),
        _strongest([repr(str(word)) for word in vocabulary], weights[len(STYLE) : len(STYLE) + len(vocabulary)]),
    )


def _strongest(names: Sequence[str], weights: Any, count: int = 6) -> tuple[str, ...]:
    order = sorted(range(len(names)), key=lambda i: (-abs(weights[i]), names[i]))[:count]
    return tuple(f"{names[i]} {weights[i]:+.2f}" for i in order if abs(weights[i]) > 0.005)


def length_matched(sets: Sequence[Told]) -> list[bool]:
    """Which items to keep so that the best answer is the longest as often as a guess would have it.

    Of the side that there is too much of, those go first whose lengths differ most. Where several answers are the longest
    the best one has its part of that; two answers of one length say nothing and stay.
    """
    leans = [first_share([len(one.best), *map(len, one.others)]) - 1 / (1 + len(one.others)) for one in sets]
    side = 1 if sum(leans) > 0 else -1
    gaps = [abs(np.log((len(one.best) + 1) / (fmean(map(len, one.others)) + 1))) for one in sets]
    kept, excess = [True] * len(sets), side * sum(leans)
    for i in sorted((i for i, lean in enumerate(leans) if side * lean > 1e-9), key=lambda i: (-gaps[i], i)):
        if excess <= 1e-9:
            break
        kept[i] = False
        excess -= side * leans[i]
    return kept


def item_of(row: dict[str, Any]) -> Item:
    """An item of a row that ``synthesize.py`` wrote (``prompt``, ``candidates``, ``gold``), or of a preference.

    Raises:
        InputError: if it is neither.
    """
    return from_preference(row, str(row.get("domain", "preferences")))


def read_items(path: str, split: str = "train") -> list[Item]:
    """Items of a preference set, or of ``synthesize.py``.

    Raises:
        InputError: naming the first row that is none.
    """
    items = []
    for place, row in placed_rows(path, split):
        try:
            items.append(item_of(row))
        except InputError as error:
            raise InputError(f"{path}, {place}: {error}") from error
    return items


def check(leak: Leak, limit: float | None) -> None:
    """Raise InputError if style tells more than is allowed."""
    if limit is not None and leak.accuracy[0] > limit:
        raise InputError(f"style leak above max_leak {limit}: {leak}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--preferences", required=True, metavar="FILE", help="JSON lines, JSON, Parquet or a hub data set"
    )
    parser.add_argument("--split", default="train", help="of a hub data set")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-leak", type=float)
    parser.add_argument("--match-length", action="store_true", help="leave out what makes the best answer the longest")
    parser.add_argument("--out", metavar="FILE", help="write the figures as JSON")
    args = parser.parse_args()
    try:
        if args.folds < 2:
            raise InputError(f"a cross-validation needs at least 2 folds; got {args.folds}")
        items = read_items(args.preferences, args.split)
        sets = [one for one in map(told, items) if one is not None]
        if args.match_length:
            sets = list(compress(sets, length_matched(sets)))
        leak = measure(sets, args.folds, seed=args.seed)
        print(leak)
        if args.out:
            Path(args.out).write_text(json.dumps(asdict(leak), indent=2), encoding="utf-8")
        check(leak, args.max_leak)
    except MRJudgeError as error:
        raise SystemExit(f"style_leak: {error}") from error


if __name__ == "__main__":
    main()
