"""A tokenizer's chat template as a judge needs it: what it refuses is worked around, what it opens is known.

Templates of models that take images come in two kinds: some keep the order of texts and images in a turn, others write all
images first. The latter cannot show which candidate an image belongs to, so a turn with an image behind a text is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from mrjudge_reward.engines import fold_system
from mrjudge_reward.errors import EngineError, InputError
from mrjudge_reward.messages import ImagePart, Message, TextPart
from mrjudge_reward.reasoning import THINK_CLOSE, THINK_OPEN, closing_of, opened_by_template
from mrjudge_reward.types import EngineFailure, Reply, Request

_SYSTEM, _USER = Message("system", (TextPart("be the judge"),)), Message("user", (TextPart("which is better"),))
_BETWEEN = Message("user", (TextPart("the first one"), ImagePart(""), TextPart("the second one")))


class ChatTemplate:
    """Renders requests.

    Args:
        tokenizer: with a chat template; or a processor.
        name: of the model, for errors.
        kwargs: passed to the template.

    Attributes:
        folds_system: the template refuses or drops a system turn (Gemma, early Mistral), so its text goes into the
            user's.
        opened: the mark with which the template opens the reasoning itself (``<think>``: R1 distills, QwQ); or empty.

    Raises:
        EngineError: if there is no template, or it takes no user turn.
    """

    def __init__(self, tokenizer: Any, name: str, kwargs: Mapping[str, Any]) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise EngineError(f"the tokenizer of {name} has no chat template, so it cannot be asked to judge")
        self._tokenizer, self._kwargs = tokenizer, dict(kwargs)
        self.folds_system = self._listed = False
        try:  # templates of models that take images may drop a content that is no list of parts
            self._listed = _USER.text not in self._rendered((_USER,))
        except Exception:  # noqa: BLE001  a template raises what it likes
            self._listed = True
        try:
            self.folds_system = _SYSTEM.text not in self._rendered((_SYSTEM, _USER))  # some drop it silently
        except Exception:  # noqa: BLE001  a template raises what it likes
            self.folds_system = True
        try:
            text = self._rendered((_SYSTEM, _USER))
        except Exception as error:
            raise EngineError(f"the chat template of {name} cannot render a user turn: {error}") from error
        self.opened = opened_by_template(text)

    def _rendered(self, messages: Sequence[Message]) -> str:
        turns = fold_system(messages) if self.folds_system else messages
        text: str = self._tokenizer.apply_chat_template(
            [
                {"role": turn.role, "content": _parts(turn) if self._listed or turn.images else turn.text}
                for turn in turns
            ],
            tokenize=False,
            add_generation_prompt=True,
            **self._kwargs,
        )
        return text

    @cached_property
    def _keeps_order(self) -> bool:
        before, _, after = self._rendered((_BETWEEN,)).partition("the first one")
        return after.strip().removeprefix("the second one") == after.strip() and "the second one" not in before

    def text(self, request: Request) -> str:
        """The whole prompt, up to and including the prefill.

        Raises:
            InputError: if an image stands behind a text and the template would put it in front.
        """
        if any(_behind_text(turn) for turn in request.messages) and not self._keeps_order:
            raise InputError("this judge's chat template puts all images in front, so they cannot be told apart")
        text, prefill = self._rendered(request.messages), request.prefill
        if not prefill or not self.opened:
            return text + prefill
        if prefill.startswith(THINK_OPEN):  # the template opened it already, perhaps with a mark of its own
            begun = prefill.removeprefix(THINK_OPEN).lstrip("\n")
            return text + begun.replace(THINK_CLOSE, closing_of(self.opened), 1)
        return f"{text}\n{closing_of(self.opened)}\n\n{prefill}"  # an answer must not stand inside the reasoning

    def whole_reply(self, request: Request, reply: Reply | EngineFailure) -> Reply | EngineFailure:
        """A reply as its reader must see it: where the template opened the reasoning, the judge wrote the rest of it."""
        if self.opened and not request.prefill and isinstance(reply, Reply):
            return replace(reply, text=self.opened + reply.text)
        return reply


def _parts(turn: Message) -> list[dict[str, str]]:
    return [{"type": "text", "text": p.text} if isinstance(p, TextPart) else {"type": "image"} for p in turn.content]


def _behind_text(turn: Message) -> bool:
    kinds = [type(part) for part in turn.content]
    return ImagePart in kinds[kinds.index(TextPart) :] if TextPart in kinds else False
