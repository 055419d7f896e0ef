"""Requests in the words of the OpenAI chat protocol; no network here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mrjudge_reward.engines import fold_system
from mrjudge_reward.engines.structured import StructuredOutput, fields
from mrjudge_reward.images import data_url, is_web_address, load_picture
from mrjudge_reward.messages import Message, TextPart
from mrjudge_reward.types import Request


def image_url(image: Any) -> str:
    """An image as something a server can open: web addresses stay, all else becomes a data URL of a normalised picture.

    Args:
        image: whatever ``images.load_picture`` takes, or a web address.

    Raises:
        InputError: if it is no image that can be shown.
        MissingPackageError: if Pillow is missing.
    """
    return str(image) if is_web_address(image) else data_url(load_picture(image))


def chat_messages(
    messages: Sequence[Message], prefill: str = "", encoded: dict[int, str] | None = None
) -> list[dict[str, Any]]:
    """Messages as the protocol writes them, ending in the judge's begun turn if there is a prefill.

    Args:
        messages: the chat.
        prefill: text with which the judge's own turn begins.
        encoded: image URLs already made, by ``id`` of the image; the images of one question are in every comparison.
    """
    encoded = {} if encoded is None else encoded
    chat: list[dict[str, Any]] = []
    for message in messages:
        if not message.images:
            chat.append({"role": message.role, "content": message.text})
            continue
        parts: list[dict[str, Any]] = []
        for part in message.content:
            if isinstance(part, TextPart):
                parts.append({"type": "text", "text": part.text})
                continue
            if id(part.image) not in encoded:
                encoded[id(part.image)] = image_url(part.image)
            parts.append({"type": "image_url", "image_url": {"url": encoded[id(part.image)]}})
        chat.append({"role": message.role, "content": parts})
    if prefill:
        chat.append({"role": "assistant", "content": prefill})
    return chat


@dataclass(frozen=True)
class ChatBody:
    """The body of a chat request.

    Attributes:
        model: the judge's name on the server.
        token_parameter: field that bounds the reply.
        extra: further fields, which win; ``None`` removes a field.
        fold_system: whether system text goes into the first user turn.
        structured_output: how the server holds a judge to its form.
    """

    model: str
    token_parameter: str
    extra: Mapping[str, Any]
    fold_system: bool = False
    structured_output: StructuredOutput | None = None

    def of(self, request: Request, encoded: dict[int, str], **own: Any) -> dict[str, Any]:
        """A request's body; ``own`` fields win over everything."""
        messages = fold_system(request.messages) if self.fold_system else request.messages
        body: dict[str, Any] = {
            "model": self.model,
            "messages": chat_messages(messages, request.prefill, encoded),
            "temperature": request.sampling.temperature,
            "top_p": request.sampling.top_p,
            self.token_parameter: request.sampling.max_tokens,
            "stop": list(request.stop) or None,
            "seed": request.seed,
        }
        if request.prefill:
            body |= {"continue_final_message": True, "add_generation_prompt": False}
        body |= fields(request.form, self.structured_output) | dict(self.extra)
        return {name: value for name, value in (body | own).items() if value is not None}
