"""FSDP on CPUs: accelerate shards on accelerators alone, and wraps a policy on CPUs in DDP whatever is asked for.

``python -m tests.support.fsdp_on_cpu MODULE ARGUMENTS`` runs a module so.
"""

from __future__ import annotations

import runpy
import sys
from typing import Any

from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType


def allow() -> None:
    """Have accelerate shard on CPUs, by the code that it runs on accelerators; torch can."""
    made = AcceleratorState.__init__

    def sharded(self: Any, *args: Any, fsdp_plugin: Any = None, **more: Any) -> None:
        made(self, *args, fsdp_plugin=fsdp_plugin, **more)
        if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
            self.fsdp_plugin = fsdp_plugin

    AcceleratorState.__init__ = sharded


if __name__ == "__main__":
    allow()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
