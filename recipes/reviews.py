"""Sentences from real film reviews with human ratings, from a package on the Python index.

Source: movie-review snippets of Hutto & Gilbert (ICWSM 2014), in the source distribution of ``vaderSentiment`` 3.3.2
(MIT): 10,605 sentences, each with the mean of about twenty human sentiment ratings from -4 to 4. The archive is fetched
with pip on first use and kept in the user's cache.
"""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

from mrjudge_reward.embedded import cache_dir
from mrjudge_reward.errors import InputError

PACKAGE = "vaderSentiment==3.3.2"
_ARCHIVE = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
_FILE = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"


@dataclass(frozen=True)
class Review:
    """One sentence of a review and the mean of its human ratings, from -4 to 4."""

    text: str
    rating: float


def _source_distribution() -> Path:
    folder = cache_dir() / "data"
    found = sorted(folder.glob("vader*entiment-3.3.2.tar.gz"))
    if found:
        return found[0]
    folder.mkdir(parents=True, exist_ok=True)
    print(f"Fetching {PACKAGE} (film reviews with human ratings) ...", file=sys.stderr)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
    done = subprocess.run([*command, "--dest", str(folder), PACKAGE], capture_output=True, text=True, check=False)
    found = sorted(folder.glob("vader*entiment-3.3.2.tar.gz"))
    if done.returncode != 0 or not found:
        raise InputError(f"pip could not fetch {PACKAGE}: {done.stderr.strip()[-500:]}")
    return found[0]


def load_reviews() -> list[Review]:
    """All sentences, in the file's order.

    Raises:
        InputError: if the package cannot be fetched.
    """
    with tarfile.open(_source_distribution()) as outer:
        packed = outer.extractfile(_ARCHIVE)
        assert packed is not None
        with tarfile.open(fileobj=io.BytesIO(packed.read())) as inner:
            table = inner.extractfile(_FILE)
            assert table is not None
            lines = table.read().decode("utf-8").splitlines()
    fields = [line.split("\t") for line in lines]
    return [Review(text.strip(), float(rating)) for _, rating, text in (f for f in fields if len(f) == 3)]


def openings(words: int = 6, least_words: int = 10) -> list[str]:
    """The first words of each sentence that goes on after them: prompts for a policy to continue. No duplicates."""
    texts = [review.text.split() for review in load_reviews()]
    return list(dict.fromkeys(" ".join(text[:words]) for text in texts if len(text) >= least_words))
