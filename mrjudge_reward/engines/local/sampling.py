"""Sampling in which every row of a batch has random numbers of its own.

A request brings its seed, and nearly every request another one. ``generate`` draws the tokens of a whole batch from torch's
global random state: what a row writes then depends on its neighbours, and requests of different seeds cannot share a
batch, so that each would go through the model alone.

Here each row draws from a generator of its own. The draw is made by the Gumbel-max trick: if to the logits x of the tokens
independent noise g = -log(e), e ~ Exp(1), is added, then argmax(x + g) is an exact sample of softmax(x). So ``generate``
takes the likeliest token, as it does without sampling, and draws nothing itself: torch's global random state stays as it
is. Noise belongs to a token and not to its rank, so that logits which differ a little (another batch rounds differently)
nearly always give the same token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mrjudge_reward.errors import require
from mrjudge_reward.types import Sampling


class RowSampler:
    """A logits processor after which the likeliest token is a sample; must come last, and serves one ``generate``.

    Args:
        sampling: temperature, above 0, and nucleus.
        seeds: of the batch's rows. Length B.
        device: of the logits.
    """

    def __init__(self, sampling: Sampling, seeds: Sequence[int], device: Any) -> None:
        torch = require("torch", extra="transformers")
        kinds = require("transformers", extra="transformers")
        self._warpers: list[Any] = []  # in the order in which ``generate`` itself applies them
        if sampling.temperature != 1:
            self._warpers.append(kinds.TemperatureLogitsWarper(float(sampling.temperature)))
        if sampling.top_p < 1:
            self._warpers.append(kinds.TopPLogitsWarper(sampling.top_p))
        self._generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]
        # CUDA draws no exponential below this; elsewhere a zero may come, whose noise is infinite and would always win.
        self._least = torch.finfo(torch.float32).eps / 2

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """Noisy logits of the tokens that may come next, (B, V)."""
        torch = require("torch", extra="transformers")
        for warper in self._warpers:
            scores = warper(input_ids, scores)
        noise = torch.empty_like(scores, dtype=torch.float32)  # (B, V)
        # Rows that have ended draw on until the last one ends; nobody looks at that.
        for row, generator in zip(noise, self._generators, strict=True):
            row.exponential_(generator=generator)
        return scores - noise.clamp_(min=self._least).log_()
