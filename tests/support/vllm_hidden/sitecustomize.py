"""On the path of processes that train with TRL and without vLLM (fixture ``vllm_hidden``).

TRL imports vLLM and wandb wherever they are installed, which costs a process a dozen seconds of CPU time. Whoever trains
without them has not installed them.
"""

import sys

for name in ("vllm", "wandb"):
    sys.modules[name] = None  # type: ignore[assignment]  # as if it were not installed
