"""An engine whose answers come from a function: for tests, dry runs of a pipeline, and baselines without a model.

>>> from mrjudge_reward.types import Reply, Request, as_messages
>>> engine = ScriptedEngine(lambda request: "<answer>A</answer>")
>>> engine.generate([Request(as_messages("Which?"))])[0].text
'<answer>A</answer>'

For judging without caring about the prompt's wording, ``ScriptedEngine.by_utility`` is shorter: it finds the candidates
in the rendered comparison and prefers the one with the highest utility.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from mrjudge_reward.messages import as_messages
from mrjudge_reward.types import EngineFailure, Reply, Request, Usage

from .contract import Engine

Script: TypeAlias = Callable[[Request], str | Mapping[str, float] | Reply | EngineFailure]

_LAST_END = re.compile(r".*^\[End of response\b[^\n\]]*?( [b-df-hj-np-tv-xz]{8})?\]$", re.DOTALL | re.MULTILINE)

_PROBE = "Which?\n[Response A]\none\n[End of response A]\n[Response B]\ntwo\n[End of response B]"


def shown_candidates(request: Request) -> dict[str, str]:
    """Label → candidate text of a comparison rendered by a built-in template, in slot order."""
    text = request.messages[-1].text
    end = _LAST_END.match(text)
    code = end[1] or "" if end else ""  # of this prompt's section marks: lines without it are part of a text
    section = rf"^\[Response(?: (\w+))??{code}\]\n(.*?)\n\[End of response(?(1) \1){code}\]$"
    return dict(re.findall(section, text, re.DOTALL | re.MULTILINE))


def _softmax(utilities: Mapping[str, float]) -> dict[str, float]:
    values = np.array(list(utilities.values()))
    logprobs = np.maximum(values - np.logaddexp.reduce(values), -700.0)  # never quite 0
    return dict(zip(utilities, map(float, np.exp(logprobs)), strict=True))


@dataclass(frozen=True)
class _ByUtility:
    """A script of ``ScriptedEngine.by_utility``; a class, because closures cannot be pickled."""

    utility: Callable[[str], float]
    position_bias: float

    def __call__(self, request: Request) -> str | Mapping[str, float]:
        shown = shown_candidates(request)
        values = {label: self.utility(text) for label, text in shown.items()}
        if len(values) == 1:
            (value,) = values.values()
            if request.labels:
                return _softmax({label: step * value for step, label in enumerate(request.labels)})
            good = 1 / (1 + math.exp(-max(-60.0, min(60.0, value))))
            return f"<think>alone</think><answer>{1 + round(4 * good)}</answer>"
        values[next(iter(values))] += self.position_bias
        if request.labels:
            further = (label for label in request.labels if label.strip() not in values)  # such as one for a tie
            values |= dict.fromkeys(further, min(values.values()))
            return _softmax(values)
        best = max(values, key=lambda label: values[label])
        return f"<think>compared {len(values)}</think><answer>{best}</answer>"


class ScriptedEngine(Engine):
    """Answers every request by calling a function on it.

    Args:
        script: gives the text the judge writes, or for ``label_logprobs`` a mapping from label to probability, or
            a ready ``Reply``, or an ``EngineFailure``. An exception becomes a failure, as with any engine.
        identity: part of the cache key; two scripts that answer differently need two identities.
        reads: whether the script gives probabilities where labels are asked for; None to call it once and see.

    Attributes:
        batches: the size of every batch received, in order.
        requests: every request received, in order.
    """

    can_read = True
    concurrent_calls = True
    context_tokens: int | None = 16384

    def __init__(self, script: Script, identity: str = "scripted", reads: bool | None = None) -> None:
        self.script = script
        self.identity = identity
        self._reads = reads
        self.batches: list[int] = []
        self.requests: list[Request] = []

    @classmethod
    def by_utility(
        cls, utility: Callable[[str], float], position_bias: float = 0.0, identity: str = "scripted-utility"
    ) -> ScriptedEngine:
        """A judge that chooses by a utility of the candidate's text.

        Args:
            utility: higher is better. A choice is softmax over utilities; a lone response is graded 1 to 5 by its
                sigmoid, or read as softmax over the labels offered, each worth one more utility than the one before.
            position_bias: added to the first slot's utility.
            identity: part of the cache key.
        """

        return cls(_ByUtility(utility, position_bias), identity, reads=True)

    def _answer(self, request: Request) -> Reply | EngineFailure:
        self.requests.append(request)
        try:
            answer = self.script(request)
        except Exception as error:  # noqa: BLE001  an engine never raises for one request
            return EngineFailure(type(error).__name__, str(error), transient=False)
        if isinstance(answer, Reply | EngineFailure):
            return answer
        usage = Usage(sum(self.count_tokens(message.text) for message in request.messages), 0, 1)
        if isinstance(answer, str):
            return Reply(answer, usage=Usage(usage.prompt_tokens, 0, self.count_tokens(answer)))
        missing = [label for label in request.labels if not answer.get(label, 0.0) > 0]
        if missing or not request.labels:
            return EngineFailure("label missing", f"no probability for {missing}", transient=False)
        return Reply(label_logprobs=tuple(math.log(answer[label]) for label in request.labels), usage=usage)

    def _serve(self, requests: Sequence[Request]) -> list[Reply | EngineFailure]:
        self.batches.append(len(requests))
        return [self._answer(request) for request in requests]

    def generate(self, requests: Sequence[Request]) -> list[Reply | EngineFailure]:
        """Call the script on each request."""
        return self._serve(requests)

    def label_logprobs(self, requests: Sequence[Request]) -> list[Reply | EngineFailure]:
        """Call the script on each request; it must give a mapping from label to probability."""
        return self._serve(requests)

    def reads_labels(self) -> bool:
        """Whether the script gives probabilities where labels are asked for; it is shown a small comparison to see."""
        if self._reads is None:
            try:
                answer = self.script(Request(as_messages(_PROBE), prefill="<answer>", labels=("A", "B")))
            except Exception:  # noqa: BLE001  a script that expects a comparison, and writes about it
                answer = ""
            given = answer.label_logprobs is not None if isinstance(answer, Reply) else isinstance(answer, Mapping)
            self._reads = given
        return self._reads

    def count_tokens(self, text: str) -> int:
        """Words, roughly: a quarter of the characters."""
        return len(text) // 4 + 1

    def close(self) -> None:
        """Nothing is held."""
