"""Tools of a verl run (``multi_turn.function_tool_path``), whose policy says what ``tool_runs`` has it say.

verl runs this file in its agent-loop workers. There vLLM generates as ever, and its tokens are replaced.
"""

from __future__ import annotations

from typing import Any

from verl.tools.function_tool import function_tool
from verl.workers.rollout.llm_server import LLMServerClient

from tests.support.tool_runs import Sampler, weather

_generate = LLMServerClient.generate
_samplers: list[Sampler] = []


async def _scripted(
    self: Any, *args: Any, prompt_ids: list[int], sampling_params: dict[str, Any], **kwargs: Any
) -> Any:
    short = sampling_params | {"max_tokens": 8}
    sampled = await _generate(self, *args, prompt_ids=prompt_ids, sampling_params=short, **kwargs)
    if not _samplers:
        from transformers import AutoTokenizer

        _samplers.append(Sampler(AutoTokenizer.from_pretrained(self.config.actor_rollout_ref.model.path)))
    said = _samplers[0](prompt_ids)
    log_probs = [-1.0] * len(said) if sampled.log_probs else sampled.log_probs
    return sampled.model_copy(update={"token_ids": said, "log_probs": log_probs})


LLMServerClient.generate = _scripted


function_tool(weather)
