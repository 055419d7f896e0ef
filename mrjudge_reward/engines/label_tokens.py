"""Which tokens say a label right after a prefill, for engines that read label probabilities.

A label counts as it is and with a space before it, which parsing drops as well: many instruct models write
``<answer> A </answer>``, and then hold next to nothing for the bare letter.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from mrjudge_reward.errors import EngineError
from mrjudge_reward.types import Request


class SharedTokenError(EngineError):
    """Two labels begin with the same token, so that one token cannot tell them apart."""


def spellings(label: str, prefill: str) -> tuple[str, ...]:
    """The ways in which a label may stand after a prefill: as it is, and with a space before it, which a parser drops."""
    return (label,) if not label or label[0].isspace() or prefill[-1:].isspace() else (label, f" {label}")


def first_label_tokens(encode: Callable[[str], list[int]], request: Request) -> list[tuple[int, ...]]:
    """First tokens of each label as it would follow the prefill: of all its spellings, its own first.

    A spelling that begins like another label's (a space that is a token of its own) tells nothing, and is left out.

    Raises:
        SharedTokenError: if two labels begin with the same token.
    """
    before = encode(request.prefill)

    def first(text: str) -> int:
        after = encode(request.prefill + text)
        # Where the tokenizer would merge label and prefill, the label's own first token is what a model can write.
        return after[len(before)] if after[: len(before)] == before else encode(text)[0]

    return distinct_tokens(
        [[first(text) for text in spellings(one, request.prefill)] for one in request.labels], request
    )


def distinct_tokens(found: Sequence[Sequence[int]], request: Request) -> list[tuple[int, ...]]:
    """Each label's own first token, and those of its other spellings that nothing else begins with.

    Raises:
        SharedTokenError: if two labels have the same first token.
    """
    times = Counter(token for tokens in found for token in set(tokens))
    if len({tokens[0] for tokens in found}) < len(found):
        raise SharedTokenError(
            f"the labels {request.labels!r} do not differ in their first token for this tokenizer, so they cannot be "
            "read; choose other labels (single letters, or one-digit grades), or verdict='generate'"
        )
    return [(own, *(token for token in more if times[token] == 1 and token != own)) for own, *more in found]
