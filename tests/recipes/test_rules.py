"""The verifiable reward beside a judge."""

from __future__ import annotations

from typing import Any

import pytest

from mrjudge_reward.errors import InputError
from recipes.common.rules import compute_score, number


@pytest.mark.parametrize(
    ("said", "answer", "right"),
    [
        ("42", 42, 1.0),
        ("So it is 42.", "42", 1.0),
        ("It is 41, no, 42", 42, 1.0),  # the last one counts
        ("42 and not 41", 42, 0.0),
        ("1,200", 1200, 1.0),
        ("1200.0", "1,200", 1.0),
        ("-3", -3, 1.0),
        ("3", -3, 0.0),
        ("0.5", 0.5, 1.0),
        ("", 42, 0.0),
        ("forty-two", 42, 0.0),
        ("<think>42</think>It is 7", 42, 0.0),  # of the answer, not of the reasoning
        ("<think>7</think>It is 42", 42, 1.0),
        ("An essay of 42 words.", None, None),  # nothing to verify
    ],
)
def test_the_last_number_of_a_completion_is_verified_alike_for_trl_and_verl(
    said: str, answer: float | str | None, right: float | None
) -> None:
    chat = [{"role": "assistant", "content": said}]
    assert number([said, chat], answer=[answer] * 2) == [right] * 2
    if answer is not None:
        assert compute_score("maths", said, answer) == right
    else:
        with pytest.raises(InputError, match=r"'maths' has no reward_model\.ground_truth"):
            compute_score("maths", said, answer)


CALL = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "add", "arguments": {"a": "x"}}}]}


@pytest.mark.parametrize(
    ("chat", "right"),
    [
        ([], 0.0),
        ([{"role": "assistant", "content": None}], 0.0),
        ([{"role": "assistant", "content": [{"type": "text", "text": "It is 42."}]}], 1.0),
        ([CALL], 0.0),
        ([CALL, {"role": "tool", "content": "42"}], 0.0),  # what a tool said is no answer of the policy
        ([CALL, {"role": "tool", "content": "7"}, {"role": "assistant", "content": "42"}], 1.0),
        ([CALL, {"role": "tool", "content": "42"}, {"role": "assistant", "content": "7"}], 0.0),
        ([{"role": "assistant", "content": "42"}, {"role": "user", "content": "Sure?"}], 1.0),
    ],
    ids=str,
)
def test_what_is_verified_is_the_policys_last_turn(chat: list[dict[str, Any]], right: float) -> None:
    assert number([chat], answer=[42]) == [right]


@pytest.mark.parametrize("answer", ["x = 42", "1/2", "forty", "-", "A", " ", "12 km", "1 or 2", ["42"], {"a": 1}])
def test_an_answer_that_is_no_number_is_refused_with_what_came(answer: Any) -> None:
    with pytest.raises(InputError, match="must be a number"):
        number(["42"], answer=[answer])
    with pytest.raises(InputError, match="must be a number"):
        compute_score("maths", "42", answer)
