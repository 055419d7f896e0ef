"""A tokenizer's chat template as a judge needs it: what it refuses is worked around, what it opens is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import EngineError
from ..types import Message, Request, TextPart
from . import fold_system

_SYSTEM, _USER = Message("system", (TextPart("be the judge"),)), Message("user", (TextPart("which is better"),))


class ChatTemplate:
    """Renders requests.

    Args:
        tokenizer: with a chat template.
        name: of the model, for errors.
        kwargs: passed to the template.

    Attributes:
        folds_system: the template refuses or drops a system turn (Gemma, early Mistral), so its text goes into the
            user's.
        opens_thinking: the template opens ``<think>`` itself (R1 distills, QwQ).

    Raises:
        EngineError: if there is no template, or it takes no user turn.
    """

    def __init__(self, tokenizer: Any, name: str, kwargs: Mapping[str, Any]) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise EngineError(f"the tokenizer of {name} has no chat template, so it cannot be asked to judge")
        self._tokenizer, self._kwargs = tokenizer, dict(kwargs)
        self.folds_system = False
        try:
            self.folds_system = _SYSTEM.text not in self._rendered((_SYSTEM, _USER))  # some drop it silently
        except Exception:  # noqa: BLE001  a template raises what it likes
            self.folds_system = True
        try:
            text = self._rendered((_SYSTEM, _USER))
        except Exception as error:
            raise EngineError(f"the chat template of {name} cannot render a user turn: {error}") from error
        self.opens_thinking = text.rstrip().endswith("<think>")

    def _rendered(self, messages: Sequence[Message]) -> str:
        turns = fold_system(messages) if self.folds_system else messages
        text: str = self._tokenizer.apply_chat_template(
            [{"role": turn.role, "content": turn.text} for turn in turns],
            tokenize=False,
            add_generation_prompt=True,
            **self._kwargs,
        )
        return text

    def text(self, request: Request) -> str:
        """The whole prompt, up to and including the prefill."""
        text, prefill = self._rendered(request.messages), request.prefill
        if not prefill or not self.opens_thinking:
            return text + prefill
        if prefill.startswith("<think>"):  # the template opened it already
            return text + prefill.removeprefix("<think>").lstrip("\n")
        return f"{text}\n</think>\n\n{prefill}"  # an answer must not stand inside the reasoning
