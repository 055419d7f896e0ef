"""Where reasoning ends and an answer begins, in what a judge or a policy wrote; the marks of models stand here alone.

A mark is closed by its own counterpart: what is quoted inside reasoning, a verdict or another family's mark, is part of it.
A close that nothing opened ends reasoning as well, because chat templates open it for the model. Types and subscripts in
code are no marks, here and where outside text is sanitized.

>>> split_reasoning("[THINK]It praises </think> itself.[/THINK]Hello")
('Hello', False)
>>> split_reasoning("<think>Perhaps <answer>A</answer>, or rather")
('', True)

Some tokenizers hold these marks as special tokens, which decoding usually skips, so that reasoning would be read as the
answer: ``hidden_tokens`` names the others, and ``decode_marked`` and ``without_hidden`` drop these alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"

# Tags of Qwen, DeepSeek, GLM and most others; of EXAONE, Claude, Reflection, Seed and MiniMax; and what prompts ask for.
_TAGS = ("think", "thinking", "thought", "thoughts", "reasoning", "reflection", "scratchpad", "seed:think", "mm:think")
_PAIRS = {f"<{tag}>": f"</{tag}>" for tag in _TAGS} | {
    "[think]": "[/think]",  # Magistral
    "◁think▷": "◁/think▷",  # Kimi-VL
    "<|begin_of_thought|>": "<|end_of_thought|>",  # Sky-T1, OpenThinker
    "<|start_thinking|>": "<|end_thinking|>",  # Cohere
    "<|inner_prefix|>": "<|inner_suffix|>",  # Apertus
    "<|channel>": "<channel|>",  # Gemma 4
    "<|open|>think<|sep|>": "<|close|>think<|sep|>",  # Kimi K3
}
_OPENED_BY = {close: opening for opening, close in _PAIRS.items()}
_HARMONY = "<|channel|>"  # gpt-oss: every channel but the final one is reasoning
# In code a type, as in Promise<Thought> or std::vector<Thought>, and a subscript, as in rows[think], are no marks. A mark in
# capitals, or right behind a letter of another script, is one: many models write no space before it.
_BEHIND_A_NAME = r"(?:(?<=[A-Za-z0-9_]<)|(?<=::<))"
TYPE_IN_CODE = rf"{_BEHIND_A_NAME}[A-Z][a-z]+>"
"""Pattern of a type in code behind its ``<``; as verdicts are asked for in small letters, ``Best<answer>`` is none."""
MARK_PATTERN = (
    rf"<(?=[/|a-zA-Z])(?!{TYPE_IN_CODE})(?:/?(?i:{'|'.join(_TAGS)})[ \t]*>|channel\|>|\|(?:"
    r"(?i:(?:begin|end)_of_thought|(?:start|end)_thinking|inner_(?:pre|suf)fix)\|>|channel>|(?:open|close)\|>think<\|sep\|>"
    r"|channel\|>(?:\s*final\b[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>)?))"
    rf"|\[(?!(?<=[A-Za-z0-9_\])]\[)think\])/?(?i:think)\]|◁/?(?i:think)▷"
)
_MARK = re.compile(MARK_PATTERN)
_CODE_OR_MARK = re.compile(rf"(?:```.*?```|`[^`\n]+`)|{MARK_PATTERN}", re.DOTALL)
_AROUND = re.compile(r"<\|(?i:(?:begin|end)_of_solution|(?:start|end)_response)\|>")
_MESSAGE_END = re.compile(r"<\|(?:return|end|call|start)\|>")
# Harmony when decoding skipped its special tokens. "analysis: A is ..." is a word, "analysisWe need to" is a channel.
_BARE_HARMONY = re.compile(
    r"\s*(?:assistant)?(?:analysis|commentary)(?:[^\W_]|[<\[\"'(*]|(?=.*assistantfinal))", re.DOTALL
)
_CHANNEL = "<|channel"
_CHANNEL_MARKS = re.compile(
    r"<\|(?:start|channel|constrain)\|>[^<]{0,99}(?=<\|(?:channel|constrain|message)\|>)"
    r"|<\|(?:start|channel|constrain|message|end|return|call)\|>|<\|channel>(?:thought\b)?|<channel\|>"
)
_BARE_TURN = re.compile(r"assistant(?=analysis|commentary|final)")
_HARMONY_TOKENS = {"<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|constrain|>", "<|return|>", "<|call|>"}


def split_reasoning(text: str, opened: bool = False, code: bool = False) -> tuple[str, bool]:
    """What follows the reasoning, and whether reasoning was (again) left open.

    Args:
        text: what a model wrote.
        opened: the chat template opened the reasoning, with whatever mark.
        code: marks inside code, outside reasoning, are part of the text. Without it only an opening mark directly between
            backticks is: a judge's verdict must not come out of what may be reasoning.
    """
    if not opened and _BARE_HARMONY.match(text):
        final = _BARE_TURN.split(text)[-1]
        return (final.removeprefix("final"), False) if final.startswith("final") else ("", True)
    start, end, inside = 0, 0, "any" if opened else ""
    for mark, inside in _turns(text, opened, code):
        start, end = (start, mark.start()) if inside else (mark.end(), end)
    answer = _AROUND.sub("", text[start:end] if inside else text[start:])
    return (_MESSAGE_END.split(answer, 1)[0] if _HARMONY in text else answer), bool(inside)


def _turns(text: str, opened: bool = False, code: bool = False) -> Iterator[tuple[re.Match[str], str]]:
    """The marks that open or close reasoning, each with the family that is open after it; empty where none is."""
    inside, at = "any" if opened else "", 0
    while mark := (_CODE_OR_MARK if code and not inside else _MARK).search(text, at):
        at = mark.end()
        if mark[0].startswith("`"):
            continue
        family, closes = _meaning(mark[0])
        quoted = _quoted(text, mark)
        if (closes and inside in ("any", family) and not quoted) if inside else (closes or not quoted):
            inside = "" if closes else family
            yield mark, inside


def thoughts_in(text: str) -> str:
    """All that a text says before its answer, without the marks of reasoning; a mark that is quoted there stays.

    >>> thoughts_in("<think>Perhaps B.</think> Hmm. <think>No, A.</think>A")
    'Perhaps B.\\n\\nHmm.\\n\\nNo, A.'
    """
    if _BARE_HARMONY.match(text):
        said = [re.sub(r"\s*(?:analysis|commentary|final)", "", turn, count=1) for turn in _BARE_TURN.split(text)[:-1]]
    else:
        marks = [mark for mark, _ in _turns(text)]
        spans = [(0, 0), *(mark.span() for mark in marks)]
        said = [text[end:start] for (_, end), (start, _) in pairwise(spans)]
        if any(mark[0].startswith(_CHANNEL) for mark in marks):
            said = _CHANNEL_MARKS.split(text[: spans[-1][1]])
    return "\n\n".join(filter(None, (_AROUND.sub("", one).strip() for one in said)))


@lru_cache(maxsize=256)
def _meaning(mark: str) -> tuple[str, bool]:
    """The family of a mark, and whether it closes."""
    said = "".join(mark.lower().split())
    if said.startswith(_HARMONY):
        return _HARMONY, said != _HARMONY
    return _OPENED_BY.get(said, said), said in _OPENED_BY


def _quoted(text: str, mark: re.Match[str]) -> bool:
    return text[max(0, mark.start() - 1) : mark.start()] == "`" == text[mark.end() : mark.end() + 1]


def is_thought(part: Mapping[str, Any]) -> bool:
    """Whether a part of a message holds reasoning that was set apart, as Claude, Mistral, Gemini and servers write it."""
    kind = str(part.get("type") or "").lower()
    return part.get("thought") is True or any(word in kind for word in ("thinking", "reasoning", "thought"))


def opened_by_template(prompt: str) -> str:
    """The mark with which a rendered prompt opens the model's reasoning; empty if it opens none."""
    end = prompt.rstrip()
    return next((end[-len(mark) :] for mark in _PAIRS if end.lower().endswith(mark)), "")


def opens_reasoning(tokenizer: Any, kwargs: Mapping[str, Any] | None = None) -> bool:
    """Whether a tokenizer's chat template opens the reasoning for the model; False where no template renders a user turn.

    Args:
        tokenizer: of transformers, or a processor.
        kwargs: passed to the template.
    """
    if not getattr(tokenizer, "chat_template", None):
        return False
    asked = [{"role": "user", "content": "?"}]
    try:
        prompt = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True, **(kwargs or {}))
    except Exception:  # noqa: BLE001  a template raises what it likes
        return False
    return bool(opened_by_template(str(prompt)))


def closing_of(opening: str) -> str:
    """The mark that closes an opening one, in its case."""
    close = _PAIRS[opening.lower()]
    return close.upper() if opening.isupper() or "START_" in opening else close


def thought_in(text: str) -> str:
    """The reasoning that a text begins with, without its marks, whether it has any or not."""
    text = text.lstrip()
    opening = next((mark for mark in _PAIRS if text.lower().startswith(mark)), "")
    closes = [_PAIRS[opening]] if opening else _OPENED_BY
    return re.split("|".join(map(re.escape, closes)), text[len(opening) :], maxsplit=1, flags=re.IGNORECASE)[0].strip()


def hidden_tokens(tokenizer: Any) -> dict[int, str]:
    """Special tokens that are no marks of reasoning, by id; empty where no mark is a special token.

    Where it is empty, decoding may skip special tokens as usual.
    """
    known = getattr(tokenizer, "added_tokens_decoder", {}).items()
    special = {number: str(token) for number, token in known if getattr(token, "special", False)}
    contents = set(special.values())
    marks = {content for content in contents if _MARK.fullmatch(content)}
    if {"<|open|>", "<|close|>", "<|sep|>"} <= contents:
        marks |= {"<|open|>", "<|close|>", "<|sep|>"}
    if _HARMONY in contents:
        marks |= _HARMONY_TOKENS
    return {number: content for number, content in special.items() if content not in marks} if marks else {}


def decode_marked(tokenizer: Any, ids: Sequence[int], hidden: Mapping[int, str] | None = None) -> str:
    """Text of tokens without special ones, except marks of reasoning.

    Args:
        tokenizer: of transformers.
        ids: what was written.
        hidden: ``hidden_tokens(tokenizer)``, if it is at hand.
    """
    hidden = hidden_tokens(tokenizer) if hidden is None else hidden
    if not hidden:
        return str(tokenizer.decode(ids, skip_special_tokens=True))
    return str(tokenizer.decode([token for token in map(int, ids) if token not in hidden], skip_special_tokens=False))


def without_hidden(text: str, hidden: Mapping[int, str]) -> str:
    """A text that was decoded with all its special tokens, without the hidden ones."""
    for content in hidden.values():
        text = text.replace(content, "")
    return text
