"""What a judge asks of an engine: two calls, a few facts, and hooks that an engine may leave as they are."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, runtime_checkable

from mrjudge_reward.credentials import without_credentials
from mrjudge_reward.images import Picture
from mrjudge_reward.special_tokens import ANY_FAMILY, Reserved
from mrjudge_reward.types import EngineFailure, Reply, Request

_FOLDERS = re.compile(r"/(?:[^/\s+]+/)+")


@runtime_checkable
class Engine(Protocol):
    """Whatever runs the judge model; an engine of one's own is a subclass.

    A list goes in, a list of the same order and length comes out. An engine never raises for one bad request: a
    ``EngineFailure`` stands in its place.

    Attributes:
        identity: everything that decides what the judge says (model, revision, adapter, precision, tokenizer), and not
            where it runs; part of the cache key. Shown to nobody: see ``name``.
        can_read: whether ``label_logprobs`` works, as far as is known (see ``reads_labels``).
        repeats_reads: whether a request read again has the same probabilities, as with a model of one's own. What could
            not be read is then not read again.
        reserved: strings that its tokenizer turns into special tokens; rendering neutralises them. Those of all model
            families unless it says so.
        context_tokens: the most tokens a request and its reply may hold together; None if unknown. An engine that has to
            ask does so when this is looked at.
        concurrent_calls: whether calls may come from several threads at once. The judge then lets groups go through
            their rounds side by side.
        weights_may_change: whether one identity can stand for different weights, as of a model that trains. No cache
            keeps its replies.
        weights_checksum: of the weights that this engine loaded in this process, the same on every rank; empty where it
            loaded none.
        structured_output: whether, and how, ``generate`` holds a judge to a request's form. Without it no form is sent.
    """

    identity: str
    can_read: bool
    repeats_reads: bool = True
    reserved: Reserved = ANY_FAMILY
    context_tokens: int | None = None
    concurrent_calls: bool = False
    weights_may_change: bool = False
    weights_checksum: str = ""
    structured_output: str | None = None

    def generate(self, requests: Sequence[Request]) -> list[Reply | EngineFailure]:
        """Let the judge write."""
        ...

    def label_logprobs(self, requests: Sequence[Request]) -> list[Reply | EngineFailure]:
        """Read how likely each label is right after the prefill."""
        ...

    def count_tokens(self, text: str) -> int:
        """How many tokens a text takes; an upper estimate where the tokenizer is out of reach."""
        ...

    def close(self) -> None:
        """Release connections and devices; safe to call twice."""
        ...

    @property
    def name(self) -> str:
        """What is logged and shown: no folder of this machine, no credentials, no fields of requests."""
        return _FOLDERS.sub("", without_credentials(self.identity))

    # -- hooks --------------------------------------------------------------------------------------------------------

    def session(self) -> AbstractContextManager[Any]:
        """Held around all calls of one judging, so that an engine that sleeps wakes once for all of them."""
        return nullcontext()

    def reads_labels(self) -> bool | None:
        """Whether ``label_logprobs`` works; a server that was never asked is asked. None if it does not answer."""
        return self.can_read

    def image_tokens(self, picture: Picture) -> int | None:
        """How many tokens a loaded image takes; None where only an estimate can be made."""
        return None

    def prompt_text(self, request: Request) -> str | None:
        """A request as the model reads it, its chat template applied; None where that is out of reach. To be looked at."""
        return None
