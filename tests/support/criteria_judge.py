"""A scripted judge that judges by criteria: it finds them in the prompt, and looks each up by what it is told."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise

from mrjudge_reward.engines.scripted import shown_candidates
from mrjudge_reward.types import Request

Utility = Callable[[str], float]

_CRITERION = re.compile(
    r"^\[Criterion (\d+) ([a-z]{8})\]\n(.*?)\n\[End of criterion \1 \2\]$", re.DOTALL | re.MULTILINE
)


def shown_criteria(request: Request) -> dict[int, str]:
    """Number → what a judge is told of a criterion, in the order shown."""
    return {int(number): told for number, _, told in _CRITERION.findall(request.messages[-1].text)}


@dataclass(frozen=True)
class ByUtilities:
    """A script: by each criterion the candidate with the highest utility, "tie" where all are equal, or their order; of one
    alone, whether its utility is positive ("met"), zero ("partly") or negative."""

    utilities: Mapping[str, Utility]

    def verdict(self, told: str, shown: Mapping[str, str], ranks: bool = False) -> str:
        """On one criterion."""
        utility = next(of for text, of in self.utilities.items() if text in told)
        values = {label: utility(text) for label, text in shown.items()}
        if len(values) == 1:
            (value,) = values.values()
            return "met" if value > 0 else "not met" if value < 0 else "partly"
        order = sorted(values, key=lambda label: -values[label])
        if ranks:
            signs = [" = " if values[a] == values[b] else " > " for a, b in pairwise(order)]
            return "".join(map("".join, zip(order, [*signs, ""], strict=True)))
        best = order[0]
        return "tie" if list(values.values()).count(values[best]) > 1 else best

    def __call__(self, request: Request) -> str:
        shown, criteria = shown_candidates(request), shown_criteria(request)
        said = {
            number: self.verdict(told, shown, "Rank all" in request.messages[-1].text)
            for number, told in criteria.items()
        }
        if len(said) == 1:
            return f"<think>one</think><answer>{said[1]}</answer>"
        return "<think>several</think>" + "".join(f"<answer>{number}: {one}</answer>" for number, one in said.items())
