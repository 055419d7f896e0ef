"""The verifiable reward beside a judge."""

from __future__ import annotations

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
