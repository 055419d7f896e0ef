"""Engines: what runs the judge model. See ``mrjudge_reward.engines.contract.Engine`` for the contract."""

from __future__ import annotations

from collections.abc import Sequence

from mrjudge_reward.messages import Message, TextPart


def fold_system(messages: Sequence[Message]) -> tuple[Message, ...]:
    """The same chat for a model without a system role: its system text opens the first user turn, a blank line apart.

    >>> from mrjudge_reward.messages import as_messages
    >>> chat = [{"role": "system", "content": "Be fair."}, {"role": "user", "content": "Which?"}]
    >>> [(message.role, message.text) for message in fold_system(as_messages(chat))]
    [('user', 'Be fair.\\n\\nWhich?')]
    """
    system = "\n\n".join(message.text for message in messages if message.role == "system")
    turns = [message for message in messages if message.role != "system"]
    if not system:
        return tuple(turns)
    first = next((index for index, turn in enumerate(turns) if turn.role == "user"), None)
    if first is None:
        return (Message("user", (TextPart(system),)), *turns)
    turns[first] = Message("user", (TextPart(system + "\n"), *turns[first].content))  # parts are a line apart
    return tuple(turns)
