"""How many tokens a text takes for a judge behind a server: counted by the server, or an upper estimate.

Servers count with ``/tokenize``, in the words of vLLM and SGLang (``prompt``), llama.cpp (``content``) or TGI
(``inputs``); which, is found out with a first sentence that is asked about in all of them. A count is remembered.

The estimate takes a token for four letters of a word, for each digit, sign and line, and for each byte beyond ASCII. Random
letters take more, which shows in how badly they compress: a tokenizer is a compressor too. So an estimate is at least what
``zlib`` makes of the ASCII text. Measured with SmolLM2's vocabulary of 49k on 27 kinds of code, prose, data, scripts and
noise: the true count is 0.4 to 1.0 of it, mostly two thirds. What servers say of their prompts (``usage``) then corrects
it, apart for ASCII, characters of two bytes and of more, because vocabularies differ in these: upwards at once, downwards
with a margin and never far, because the next text may be of another kind.
"""

from __future__ import annotations

import hashlib
import math
import re
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from .facts import AGAIN_S, fact

if TYPE_CHECKING:
    from openai import AsyncOpenAI

Name: TypeAlias = Literal["prompt", "content", "inputs"]

SAMPLE = "How many tokens are these, 1 or 20?"
"""What a server is asked about to find out how it counts."""

_PIECE = re.compile(r"[A-Z]?[a-z]+|[A-Z]+| (?![A-Za-z])[ \t]*|[^A-Za-z ]")  # of ASCII
_TWO_BYTES = re.compile(r"[\x80-\u07ff]+")
_KEPT = 4096  # counts that are remembered
_LEAST = 1000  # tokens of a request that tells something about texts: shorter ones are mostly wording and chat template
_ALL_OF, _ONE_OF = 64, 16
_MARGIN = (1.15, 1.4, 1.4)
_LOWEST = (0.95, 0.3, 0.3)
_HIGHEST = 2.0


def raw_estimate(text: str) -> tuple[int, int, int]:
    """Tokens before any correction: of what is ASCII, and of characters of two bytes and of more in UTF-8, their bytes."""
    two = more = 0
    if not text.isascii():
        plain = text.encode("ascii", errors="ignore").decode()
        two = 2 * sum(map(len, _TWO_BYTES.findall(text)))
        more = len(text.encode("utf-8", errors="surrogatepass")) - len(plain) - two
        text = plain
    pieces = sum(map(_tokens_of, _PIECE.findall(text)))
    return max(pieces, math.ceil(1.05 * (len(zlib.compress(text.encode())) - 11))), two, more


def _tokens_of(piece: str) -> int:
    size = len(piece)
    if piece[0].isalpha():
        return -(-size // 4) if size <= 16 else -(-size // 2)
    return 1 + size // 16  # of blanks; all else stands alone


class Estimate:
    """An upper estimate of token counts, corrected by what prompts were found to take. Several threads may share one."""

    def __init__(self) -> None:
        self._factors = [1.1, 1.0, 1.0]  # of the three numbers of a raw estimate
        self._seen = [0.0, 0.0, 0.0]  # the greatest ratios so far
        self._told = 0

    def __call__(self, text: str) -> int:
        """At most about so many tokens."""
        return math.ceil(self._corrected(raw_estimate(text)))

    def _corrected(self, raw: Sequence[int]) -> float:
        return sum(factor * size for factor, size in zip(self._factors, raw, strict=True))

    def learn(self, texts: Sequence[str], taken: int) -> None:
        """A prompt of these texts took so many tokens, its chat template included. Of many, a sample is looked at."""
        self._told += 1
        if self._told > _ALL_OF and self._told % _ONE_OF:
            return
        raw = [sum(sizes) for sizes in zip(*map(raw_estimate, texts), strict=True)]
        if min(taken, sum(raw)) < _LEAST:
            return
        kind = max((0, 1, 2), key=raw.__getitem__)
        rest = sum(raw) - raw[kind]
        if rest <= (0.05 if kind == 0 else 1.0) * raw[kind]:  # a prompt in any script has a wording in ASCII
            ratio = (taken - 0.5 * rest) / raw[kind]
            self._seen[kind] = max(self._seen[kind], ratio)
            self._factors[kind] = max(_LOWEST[kind], _MARGIN[kind] * self._seen[kind])
        short = max(1.0, taken / self._corrected(raw))
        self._factors = [min(_HIGHEST, factor * short) for factor in self._factors]


@dataclass
class ServerCounts:
    """Counts that a server makes, each once.

    Attributes:
        model: as the server names it.
        url: of its ``/tokenize``.
        name: what it calls the text; None as long as that is not known.
        absent: whether it has no ``/tokenize`` that can be used.
    """

    model: str
    url: str
    name: Name | None = None
    absent: bool = False
    _known: dict[bytes, int] = field(default_factory=dict, init=False, repr=False)
    _silent_at: float | None = field(default=None, init=False, repr=False)

    def known(self, text: str) -> int | None:
        """What was counted before."""
        return self._known.get(_key(text))

    @property
    def can_be_asked(self) -> bool:
        """Whether to ask the server now; one that did not answer is left alone for a while."""
        silent = self._silent_at is not None and 0 <= time.monotonic() - self._silent_at < AGAIN_S
        return not self.absent and not silent

    @property
    def is_understood(self) -> bool:
        """Whether it is known how the server is asked, and it counts."""
        return self.name is not None and not self.absent

    async def ask(self, client: AsyncOpenAI, text: str) -> None:
        """Count a text, which is ``known`` afterwards unless the server cannot count it."""
        if self.is_understood and (count := await self._counted(client, text)) is not None:
            if len(self._known) >= _KEPT:
                self._known = {}
            self._known[_key(text)] = count

    async def find_out(self, client: AsyncOpenAI) -> None:
        """Find out how the server counts, unless that is known."""
        if not self.is_understood and self.can_be_asked:
            count = await self._counted(client, SAMPLE)
            self.absent = self._silent_at is None and not self._makes_sense(count)

    def _makes_sense(self, count: int | None) -> bool:
        return self.is_understood and count is not None and 0 < count <= len(SAMPLE) + 1

    async def _counted(self, client: AsyncOpenAI, text: str) -> int | None:
        names = (self.name,) if self.name is not None else ("prompt", "content", "inputs")
        said = text.encode(errors="replace").decode()  # JSON holds no lone surrogates
        body = {"model": self.model, "add_special_tokens": False, **dict.fromkeys(names, said)}
        found = await fact(client, self.url, body)
        self._silent_at = None if found.answered else time.monotonic()
        if self.name is None:
            self.name = name_used(found.payload)
        return count_of(found.payload)


def name_used(payload: Any) -> Name | None:
    """What a server calls a text, by the shape of its answer; None if that is no answer of ``/tokenize``."""
    if isinstance(payload, list):
        return "inputs"
    if isinstance(payload, Mapping) and "tokens" in payload:
        return "prompt" if "count" in payload else "content"
    return None


def count_of(payload: Any) -> int | None:
    """How many tokens an answer of ``/tokenize`` names; None if it is none."""
    if isinstance(payload, Mapping):
        tokens = payload.get("tokens")
        count = payload.get("count", len(tokens) if isinstance(tokens, list) else None)
        return count if type(count) is int and count >= 0 else None
    return len(payload) if isinstance(payload, list) else None


def _key(text: str) -> bytes:
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest()
