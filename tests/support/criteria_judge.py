"""Judges that judge by criteria: they find them in the prompt, and look each up by what they are told."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from mrjudge_reward.engines.contract import Engine
from mrjudge_reward.engines.scripted import ScriptedEngine, shown_candidates
from mrjudge_reward.prompting.formats import Choice
from mrjudge_reward.prompting.sanitizing import Sanitizer
from mrjudge_reward.types import EngineFailure, Group, Reply, Request

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
    alone, whether its utility is positive ("met"), zero ("partly") or negative. A read has it as the likely label.
    """

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

    def __call__(self, request: Request) -> str | dict[str, float]:
        shown, criteria = shown_candidates(request), shown_criteria(request)
        said = {
            number: self.verdict(told, shown, "Rank all" in request.messages[-1].text)
            for number, told in criteria.items()
        }
        if request.labels:
            return {label: 0.9 if label.strip() == said[1] else 0.05 for label in request.labels}
        if len(said) == 1:
            return f"<think>one</think><answer>{said[1]}</answer>"
        return "<think>several</think>" + "".join(f"<answer>{number}: {one}</answer>" for number, one in said.items())


THREE_CRITERIA = [
    {"name": "sentiment", "description": "The text is positive.", "weight": 2},
    {"name": "length", "description": "The text is long."},
    {"name": "keyword", "description": "The text says 'e'.", "weight": -1},
]
"""A random policy's answers differ by each."""


class ThreeCriteriaEngine(ScriptedEngine):
    """A model reads which text is more positive, in the words it was trained on; length and keyword are looked up.

    Args:
        model: the embedded one with its adapter.
        calls: file to which each request adds a line, the name of its criterion.
    """

    concurrent_calls = False

    def __init__(self, model: Engine, calls: Path) -> None:
        super().__init__(ByUtilities({"is long": len, "says 'e'": lambda text: text.count("e")}), reads=True)
        self.model, self.calls = model, calls

    def _serve(self, requests: Sequence[Request]) -> list[Reply | EngineFailure]:
        names = [told.partition(":")[0] for request in requests for told in shown_criteria(request).values()]
        with self.calls.open("a", encoding="utf-8") as file:
            file.writelines(f"{name}\n" for name in names)
        asked = list(zip(names, requests, strict=True))
        read = iter(self.model.label_logprobs([at_a_glance(one) for name, one in asked if name == "sentiment"]))
        return [next(read) if name == "sentiment" else self._answer(one) for name, one in asked]


def at_a_glance(request: Request) -> Request:
    """The same choice, without its criterion."""
    texts = tuple(shown_candidates(request).values())
    group = Group.of("Write a positive sentence about a film.", texts, "0")
    return replace(request, messages=Choice(template="glance").render(group, texts, Sanitizer(len, 4096)))


def calls_in(calls: Path) -> Counter[str]:
    """How often each criterion was asked about."""
    return Counter(calls.read_text(encoding="utf-8").split())
