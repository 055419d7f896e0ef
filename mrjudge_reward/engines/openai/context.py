"""How many tokens a judge behind a server can hold: asked of the server, in the ways that servers have of telling.

==================================  ================================================================================
asked                               told by
==================================  ================================================================================
``/v1/models``                      vLLM and SGLang (``max_model_len``, of an adapter that of its parent), llama.cpp
                                    (``meta.n_ctx``), OpenRouter, Together (``context_length``), Groq
                                    (``context_window``), Mistral (``max_context_length``), Anthropic
                                    (``max_input_tokens``)
``/props``                          older llama.cpp: ``default_generation_settings.n_ctx``, of one slot
``/info``                           TGI: ``max_total_tokens``, ``max_input_tokens``
``/api/v0/models``                  LM Studio: ``loaded_context_length``
``/api/ps``                         Ollama: ``context_length`` of a model that is loaded
==================================  ================================================================================

Of several numbers the smallest holds. What a model was trained for (``n_ctx_train``) is no more than a bound, taken where
nothing else is told.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .facts import AGAIN_S, fact

if TYPE_CHECKING:
    from openai import AsyncOpenAI

_NAMES = (
    "max_model_len", "n_ctx", "context_length", "context_window", "max_context_length", "loaded_context_length",
    "max_total_tokens", "max_input_tokens",
)  # fmt: skip
_INSIDE = ("meta", "top_provider", "default_generation_settings")
_ELSEWHERE = ("/props", "/info", "/api/v0/models", "/api/ps")


def context_of(payload: Any, model: str, names: tuple[str, ...] = _NAMES) -> int | None:
    """What a server's answer says about a model's context; None if it says nothing.

    Args:
        payload: the decoded answer: a list of models under ``data`` or ``models``, or facts about the only one.
        model: its name on the server. Where that is not listed, what all listed models have in common counts.
        names: of the fields that hold a context.
    """
    found = payload if isinstance(payload, Mapping) else {}
    listed = next((found[name] for name in ("data", "models") if isinstance(found.get(name), list)), [found])
    cards = [card for card in listed if isinstance(card, Mapping)]
    mine = [card for card in cards if _is_of(card, model)]
    if mine and not any(_numbers(card, names) for card in mine):
        parents = {str(card.get("parent") or card.get("root")) for card in mine}
        mine = [card for card in cards if any(_is_of(card, parent) for parent in parents)]
    if mine:
        return min((number for card in mine for number in _numbers(card, names)), default=None)
    told = {min(numbers) if (numbers := list(_numbers(card, names))) else None for card in cards}
    return told.pop() if len(told) == 1 else None


def _is_of(card: Mapping[str, Any], model: str) -> bool:
    names = {str(card.get(name)) for name in ("id", "name", "model")}
    return not names.isdisjoint({model, f"{model}:latest"})


def _numbers(card: Mapping[str, Any], names: tuple[str, ...]) -> list[int]:
    places = [card, *(inside for name in _INSIDE if isinstance(inside := card.get(name), Mapping))]
    values: Iterator[Any] = (place.get(name) for place in places for name in names)
    return [value for value in values if type(value) is int and value > 0]


@dataclass
class ContextWindow:
    """The context of one model, as far as it is known.

    Attributes:
        model: as the server names it.
        base_url: up to and including ``/v1``.
        given: what the user says; None for nothing. The smaller one holds.
        told: what the server says; None if it does not, or was not asked.
    """

    model: str
    base_url: str
    given: int | None = None
    told: int | None = field(default=None, init=False)
    _answered: bool = field(default=False, init=False)
    _asked_at: float | None = field(default=None, init=False)

    @property
    def known(self) -> int | None:
        """The most tokens of a request and its reply together; None if nobody says."""
        return min((size for size in (self.given, self.told) if size is not None), default=None)

    @property
    def is_due(self) -> bool:
        """Whether the server is to be asked now: it was not yet, or could not be and some time has passed."""
        now = time.monotonic()
        return not self._answered and (self._asked_at is None or not 0 <= now - self._asked_at < AGAIN_S)

    async def ask(self, client: AsyncOpenAI, timeout_s: float) -> None:
        """Ask the server, once it answers never again."""
        bound: int | None = None
        for path in (f"{self.base_url}/models", *(self.base_url.removesuffix("/v1") + way for way in _ELSEWHERE)):
            said = await fact(client, path, timeout_s=timeout_s)
            self._answered, self.told = said.answered, context_of(said.payload, self.model)
            bound = bound or context_of(said.payload, self.model, ("n_ctx_train",))
            if self.told is not None or not said.answered:
                break
        if self._answered:
            self.told = self.told or bound
        self._asked_at = time.monotonic()
