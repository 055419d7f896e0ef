"""Which tokens say a label, for tokenizers of several kinds."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mrjudge_reward.engines.label_tokens import distinct_tokens, first_label_tokens, spellings
from mrjudge_reward.errors import EngineError
from mrjudge_reward.messages import as_messages
from mrjudge_reward.types import Request


def request(prefill: str, labels: tuple[str, ...]) -> Request:
    return Request(as_messages("Which?"), prefill=prefill, labels=labels)


def tokenizer(pieces: tuple[str, ...]) -> Callable[[str], list[int]]:
    """One that takes the longest piece it knows, and else a character."""

    def encode(text: str) -> list[int]:
        ids: list[int] = []
        while text:
            piece = max((p for p in pieces if text.startswith(p)), key=len, default=text[0])
            ids.append(pieces.index(piece) if piece in pieces else 1000 + ord(piece))
            text = text[len(piece) :]
        return ids

    return encode


@pytest.mark.parametrize(
    ("label", "prefill", "expected"),
    [
        ("A", "<answer>", ("A", " A")), ("B", "", ("B", " B")), ("10", "<answer>", ("10", " 10")),
        ("yes", "[[", ("yes", " yes")), (" A", "<answer>", (" A",)), ("\tA", "<answer>", ("\tA",)),
        ("A", "Best: ", ("A",)), ("A", "<answer>\n", ("A",)), ("好", "<answer>", ("好", " 好")), ("A ", "x", ("A ", " A ")),
    ],
)  # fmt: skip
def test_a_label_is_spelt_with_and_without_a_space_unless_one_stands_there(
    label: str, prefill: str, expected: tuple[str, ...]
) -> None:
    assert spellings(label, prefill) == expected


def test_both_spellings_of_each_label_are_read_where_they_are_tokens() -> None:
    encode = tokenizer(("A", "B", " A", " B", "<answer>"))
    assert first_label_tokens(encode, request("<answer>", ("A", "B"))) == [(0, 2), (1, 3)]


def test_a_space_that_is_a_token_of_its_own_tells_nothing() -> None:
    encode = tokenizer(("A", "B", "<answer>"))
    assert first_label_tokens(encode, request("<answer>", ("A", "B"))) == [(0,), (1,)]


def test_only_the_labels_own_tokens_must_differ() -> None:
    asked = request("x", ("A", "B"))
    assert distinct_tokens([[1, 7], [2, 7]], asked) == [(1,), (2,)]
    assert distinct_tokens([[1, 2], [2, 8]], asked) == [(1,), (2, 8)], "a spelling of one that is the other's own"
    assert distinct_tokens([[1, 1], [2, 2]], asked) == [(1,), (2,)]
    with pytest.raises(EngineError, match="do not differ in their first token"):
        distinct_tokens([[1, 7], [1, 8]], asked)
