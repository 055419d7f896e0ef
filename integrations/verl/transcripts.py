"""What a session of verl's agent loops did, message by message, carried to where it is rewarded.

verl tells a reward the tokens of a whole session, what tools returned among them, and neither its messages nor its mask of
who wrote what. ``ToolAgentLoop`` has the messages: ``TellingToolAgentLoop`` keeps them in the session's output. Of any other
loop the mask tells which tokens the policy wrote; a loop of one's own may put messages, from the prompt's end, into
``output.extra_fields["mrjudge_completion"]`` itself. The workers of ``agent_loop`` carry them from there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from verl.experimental.agent_loop.tool_agent_loop import ToolAgentLoop

from mrjudge_reward.reasoning import decode_marked, hidden_tokens, without_hidden

from .settings import COMPLETION


class TellingToolAgentLoop(ToolAgentLoop):  # type: ignore[misc]
    """verl's tool agent, which tells what was said after the prompt.

    verl keeps no message of a turn that ends the session by its length or number. It is told here, as far as it is trained
    on. Results that had no room in the response, so that the policy never saw them, are not.
    """

    async def _handle_generating_state(self, agent_data: Any, *args: Any, **kwargs: Any) -> Any:
        told: list[dict[str, Any]] = agent_data.extra_fields.get(COMPLETION, {}).get("messages", [])
        before = len(agent_data.messages)
        if not told:
            agent_data.prompt_turns = before
        state = await super()._handle_generating_state(agent_data, *args, **kwargs)
        turns = list(agent_data.messages)
        if len(turns) == before:
            turns.append(await self._last_turn(agent_data))
        turns[before] = self._without_special_tokens(turns[before])
        told = [*told, *turns[agent_data.prompt_turns + len(told) :]]
        agent_data.extra_fields[COMPLETION] = {"messages": told, "as_sampled": True}
        return state

    async def _last_turn(self, agent_data: Any) -> dict[str, Any]:
        over = max(0, len(agent_data.response_mask) - self.response_length)
        ids = agent_data.response_ids[: len(agent_data.response_ids) - over]
        active: Any = getattr(agent_data, "_active_tools", self.tools)
        tools = [tool.tool_schema for tool in active.values()]
        content, agent_data.tool_calls = await self.tool_parser.extract_tool_calls(ids, tools)
        message: dict[str, Any] = self._build_assistant_message(content, agent_data)
        return message

    def _without_special_tokens(self, message: dict[str, Any]) -> dict[str, Any]:
        """verl's parsers decode with all of them."""
        content = message["content"]
        if not isinstance(content, str):
            return message
        hidden = hidden_tokens(self.tokenizer) or dict(enumerate(self.tokenizer.all_special_tokens))
        return {**message, "content": without_hidden(content, hidden)}


def told_of(output: Any, tokenizer: Any) -> dict[str, Any] | None:
    """What an agent loop's output says of its session; None where all of it is one turn of the policy's.

    ``messages``, from the prompt's end; ``as_sampled``, whether a turn's reasoning stands in its text, maybe without the
    mark with which a chat template opened it; ``length``, in tokens of the policy alone.
    """
    told = output.extra_fields.pop(COMPLETION, None)
    if told is None and all(output.response_mask):
        return None
    if told is None:
        told = {"messages": by_mask(output.response_ids, output.response_mask, tokenizer), "as_sampled": True}
    elif not isinstance(told, Mapping):  # of a loop of one's own
        told = {"messages": told, "as_sampled": False}
    return {**told, "length": sum(output.response_mask)}


def by_mask(ids: Sequence[int], mask: Sequence[int], tokenizer: Any) -> list[dict[str, Any]]:
    """Messages made of tokens: where the mask is 1 turns of the policy, between them what was said to it."""
    hidden = hidden_tokens(tokenizer)
    runs = [(wrote, [one for one, _ in run]) for wrote, run in groupby(zip(ids, mask, strict=True), lambda one: one[1])]
    return [
        {"role": "assistant" if wrote else "environment", "content": decode_marked(tokenizer, run, hidden)}
        for wrote, run in runs
    ]


def told_in(row: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What was carried of a row's session, in whichever of verl's ways."""
    extra = row.get("tool_extra_fields")
    told = extra.get(COMPLETION) if isinstance(extra, Mapping) else None
    return told if told is not None else row.get(COMPLETION)
