"""What a session of verl's agent loops did, message by message, carried to where it is rewarded.

verl tells a reward the tokens of a whole session, what tools returned among them, and neither its messages nor its mask of
who wrote what. ``ToolAgentLoop`` has the messages: ``TellingToolAgentLoop`` keeps them in the session's output. Of any other
loop the mask tells which tokens the policy wrote; a loop of one's own may put messages, from the prompt's end, into
``output.extra_fields["mrjudge_completion"]`` itself. The workers of ``agent_loop`` carry them from there.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import groupby
from typing import Any

from verl.experimental.agent_loop.tool_agent_loop import ToolAgentLoop

from mrjudge_reward.reasoning import decode_marked, hidden_tokens, split_reasoning, without_hidden

from .settings import COMPLETION


class TellingToolAgentLoop(ToolAgentLoop):  # type: ignore[misc]
    """verl's tool agent, which tells what was said after the prompt.

    verl keeps no message of a turn that ends the session by its length or number, no call beyond ``max_parallel_calls``, and
    nothing of one that it cannot read. Here all is told that the policy wrote, as far as it is trained on. Results that had
    no room in the response, so that the policy never saw them, are not.
    """

    async def _handle_generating_state(self, agent_data: Any, *args: Any, **kwargs: Any) -> Any:
        told: list[dict[str, Any]] = agent_data.extra_fields.get(COMPLETION, {}).get("messages", [])
        before = len(agent_data.messages)
        if not told:
            agent_data.prompt_turns = before
        state = await super()._handle_generating_state(agent_data, *args, **kwargs)
        over = max(0, len(agent_data.response_mask) - self.response_length)
        ids = agent_data.response_ids[: len(agent_data.response_ids) - over]
        if len(agent_data.messages) > before:
            content, calls = agent_data.messages[before]["content"], agent_data.tool_calls
        else:
            active: Any = getattr(agent_data, "_active_tools", self.tools)
            content, calls = await self.tool_parser.extract_tool_calls(
                ids, [tool.tool_schema for tool in active.values()]
            )
        between = agent_data.messages[agent_data.prompt_turns + len(told) : before]
        told = [*told, *between, self._turn(ids, content, calls)]
        agent_data.extra_fields[COMPLETION] = {"messages": told, "as_sampled": True}
        return state

    def _turn(self, ids: Sequence[int], content: str, calls: Sequence[Any]) -> dict[str, Any]:
        """A turn of the policy with all its calls, run or not; as it was written where verl's parser left out some of it."""
        hidden = hidden_tokens(self.tokenizer)
        text = decode_marked(self.tokenizer, ids, hidden)
        if not calls:
            return {"role": "assistant", "content": text}
        answer, unfinished = split_reasoning(text)
        content = without_hidden(content, hidden or dict(enumerate(self.tokenizer.all_special_tokens)))
        if not unfinished and answer and text.endswith(answer) and split_reasoning(content) == (content, False):
            content = text.removesuffix(answer) + content  # dropped reasoning, which a template may have opened
        if answer.strip() and _left_out(text, content, calls):
            return {"role": "assistant", "content": text}
        return {"role": "assistant", "content": content, "tool_calls": [_call(call) for call in calls]}


def _call(call: Any) -> dict[str, Any]:
    arguments: Any = None
    with suppress(ValueError):
        arguments = json.loads(call.arguments)
    given = arguments if isinstance(arguments, dict) else call.arguments
    return {"type": "function", "function": {"name": call.name, "arguments": given}, "id": call.tool_call_id}


# What stands around names and arguments in the forms that verl's parsers read.
_MARKUP = re.compile(
    r"</?(?:\w+:|｜\w+｜)?(?:tool_calls?|function|invoke|parameter|arg_key|arg_value)\b(?: name)?"
    r"|string=\"(?:true|false)\"|\"(?:name|arguments)\"\s*:"
    r"|<\|start\|>\s*assistant|<\|channel\|>\s*commentary(?: to=functions)?|<\|constrain\|>\s*json"
    r"|<\|[\w\"]+\|?>(?:call:)?|<\w+\|>"
)
_WORD = re.compile(r"\w+|[^\w\s!-~]")  # symbols beyond ASCII too
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|(.))", re.DOTALL)


def _left_out(text: str, content: str, calls: Sequence[Any]) -> bool:
    """Whether a turn has words that are neither in the content nor in the calls that a parser made of it.

    A parser drops what it cannot read, and many drop all that follows the first call. Each has its own form, so words
    are counted instead. One too many, of a number that was written in another way, say, costs the form of a call alone.
    """
    names = (f"{call.name} {call.tool_call_id or ''} {_unescaped(call.arguments)}" for call in calls)
    known = _words("\n".join((content, *names)))
    written = _MARKUP.sub(" ", text)
    return all(_words(one) - known for one in (written, _unescaped(written)))


def _words(text: str) -> Counter[str]:
    return Counter(_WORD.findall(text.casefold()))


def _unescaped(text: str) -> str:
    """Text with what JSON's escapes stand for, a blank for each that is no part of a word."""
    return _ESCAPE.sub(
        lambda found: chr(int(found[1], 16)) if found[1] else " " if found[2] in "nrtbf" else found[2], text
    )


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
