"""A verifiable reward to stand beside a judge, the last number of a completion; for TRL and for verl."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from mrjudge_reward.completions import judged, own_words
from mrjudge_reward.errors import InputError
from mrjudge_reward.messages import final_answer

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def number(
    completions: Sequence[str | Sequence[Mapping[str, Any]]], answer: Sequence[float | str | None], **_: Any
) -> list[float | None]:
    """As TRL calls it: 1 where the last number of a completion is the row's answer, else 0; None (not scored) where the row
    has none.

    Args:
        completions: texts, or chats that end in the answer. Length n.
        answer: the dataset's column, numbers or numerals. Length n.

    >>> number(["So it is 1,200.", "12", "twelve", "An essay."], answer=[1200, "13", 12, None])
    [1.0, 0.0, 0.0, None]

    Raises:
        InputError: if an answer is no number.
    """
    texts = (own_words(judged(said, "final").text) for said in completions)
    return [None if right is None else _right(text, right) for text, right in zip(texts, answer, strict=True)]


def compute_score(data_source: str, solution_str: str, ground_truth: Any, extra_info: Any = None, **_: Any) -> float:
    """As verl calls it (``reward.custom_reward_function``): 1 where the last number is ``ground_truth``, else 0.

    Raises:
        InputError: if it is no number, or the row has none; give its ``data_source`` the ``rule_weight`` 0 then.
    """
    if ground_truth in (None, ""):
        raise InputError(
            f"a row of {data_source!r} has no reward_model.ground_truth, and rule_weight asks for its rule"
        )
    return _right(final_answer(solution_str), ground_truth)


def _right(text: str, answer: float | str) -> float:
    try:
        right = _value(str(answer))
    except ValueError:
        raise InputError(f"an answer must be a number, such as 1,200 or '0.5'; got {answer!r:.60}") from None
    found = _NUMBER.findall(text)
    return float(bool(found) and _value(found[-1]) == right)


def _value(numeral: str) -> float:
    return float(numeral.replace(",", ""))
