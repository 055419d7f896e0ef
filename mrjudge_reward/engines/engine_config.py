"""Where the judge model runs, as plain values: which engine, on which device, beside whom.

==================  ===============================================================================================
engine              for
==================  ===============================================================================================
``openai``          a server that runs already, here or elsewhere (``base_url``)
``transformers``    small judges, and anything without vLLM; in this process
``offload``         the same, its weights in the CPU's memory between turns
``vllm``            long reasoning in a process that does nothing else (``mrjudge rank``, an inference job): on a GPU
                    only one vLLM of a process can sleep, so it does not go beside TRL's own
``vllm_server``     long reasoning beside a trainer: a child process; with ``colocated`` awake only while it judges
==================  ===============================================================================================

A judge that is a LoRA on a policy's own base is built on the trainer's model: ``integrations/trl/shared_base.py``.
"""

from __future__ import annotations

import logging
import os
import re
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PlainSerializer, PlainValidator, PositiveInt

from mrjudge_reward.credentials import hidden_address, hidden_fields
from mrjudge_reward.errors import ConfigError, EngineError, require
from mrjudge_reward.settings import Settings

from .colocation import ColocatedEngine
from .contract import Engine
from .memory import GIB, MemoryPlan, device_room, model_size, plan_memory
from .structured import StructuredOutput

logger = logging.getLogger(__name__)

EngineName = Literal["auto", "transformers", "offload", "openai", "vllm", "vllm_server"]

EMBEDDED = "embedded"

_VLLM = ("vllm", "vllm_server")
_LOADED = ("transformers", "offload", *_VLLM)
_HERE = ("transformers", "offload")
SERVED = ("openai", "vllm_server")
"""Engines that ask a server, the vllm_server one of its own."""

ONLY: dict[str, tuple[str, ...]] = {
    "adapter": _LOADED,
    "revision": _LOADED,
    "base_url": ("openai",),
    "api_key_env": ("openai",),
    "extra_headers": ("openai",),
    "insecure_http": ("openai",),
    "max_concurrency": SERVED,
    "deadline_s": SERVED,
    "outage_wait_s": SERVED,
    "fold_system": ("openai",),
    "extra_body": ("openai",),
    "token_parameter": ("openai",),
    "top_logprobs": ("openai",),
    "structured_output": ("openai", *_VLLM),
    "context_tokens": ("openai", *_VLLM),
    "device": ("transformers", "offload", "vllm_server"),
    "dtype": _LOADED,
    "chat_template_kwargs": _LOADED,
    "batch_size": _HERE,
    "batch_tokens": _HERE,
    "gpu_memory_utilization": _VLLM,
    "tensor_parallel_size": _VLLM,
    "engine_kwargs": _VLLM,
    "colocated": ("vllm_server", "vllm", "offload"),
    "sleep_level": _VLLM,
    "turn_wait_s": ("offload", *_VLLM),
}
"""Settings that hold for some engines only; others would silently ignore them."""
_ELSEWHERE = {
    "adapter": "a server is told to load it, and names it as model",
    "chat_template_kwargs": "a server takes it as extra_body: {chat_template_kwargs: {...}}",
    "revision": "a server has the one it was started with",
    "base_url": "the others load the model",
    "structured_output": "the others cannot hold a model to a form",
    "device": "vllm takes the first visible GPU: set CUDA_VISIBLE_DEVICES; a server has its own",
}
"""What to do instead."""
_OWN = {"max_model_len": "context_tokens", "enable_sleep_mode": "colocated"}
"""What vLLM calls some of our settings; locks and plans would not see the argument."""


_AS_IT_IS = PlainSerializer(lambda value: value, return_type=Any)  # pydantic would make a plain text of what is hidden


def _address(value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise ValueError("must be a text")
    return value if value is None else hidden_address(value)


def _headers(value: Any) -> dict[str, str]:
    plain = isinstance(value, dict) and all(isinstance(text, str) for pair in value.items() for text in pair)
    if not plain or any(set(text) & set("\r\n\0") for pair in value.items() for text in pair):
        raise ValueError("must be names of headers, each with a text of one line")
    return hidden_fields(value, "extra_headers")


def _variable(value: str) -> str:
    if value and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,99}", value):
        raise ValueError("must be the name of an environment variable, e.g. OPENAI_API_KEY, and not a key itself")
    return value


class EngineConfig(Settings):
    """Where the judge model runs.

    Raises:
        ConfigError: on construction, for an unknown setting (naming the nearest known one), or a value that is of the
            wrong type, out of range, does nothing, or contradicts another.
    """

    model: str = EMBEDDED
    """Hub name, path, ``embedded``, or the name that a server knows."""
    engine: EngineName = "auto"
    """See the module. ``auto`` is ``openai`` if ``base_url`` is set, else ``transformers``."""
    adapter: str | None = None
    """PEFT adapter; ``embedded`` is the one in this package, which makes a pairwise judge of sentiment out of the embedded
    model."""
    revision: str | None = None
    """Branch, tag or commit of a model on the hub; None for its main branch."""
    base_url: Annotated[str | None, PlainValidator(_address), _AS_IT_IS] = None
    """Of an OpenAI-compatible server, up to and including ``/v1``. A login and parameters in it are sent, and not shown."""
    api_key_env: Annotated[str, AfterValidator(_variable)] = "OPENAI_API_KEY"
    """Environment variable that holds the server's key, empty for none; a key itself never stands in a config."""
    extra_headers: Annotated[dict[str, str], PlainValidator(_headers), _AS_IT_IS] = Field(default_factory=dict)
    """Further headers of each request; ``env:NAME`` as a value is taken from the environment."""
    insecure_http: bool = False
    """Send credentials over ``http://`` to another machine, where whoever is on the way can read them."""
    max_concurrency: PositiveInt = 64
    """Requests in flight."""
    deadline_s: Annotated[float, Field(gt=0)] = 120.0
    """Seconds a request may take, tries included."""
    outage_wait_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 600.0
    """Seconds that requests wait besides, while the server answers nobody or asks to be left alone (429). One of them asks
    again; what fails in the end can be asked again later."""
    fold_system: bool = False
    """Put the instructions into the user turn, for models without a system role behind a server; the other engines find
    out by themselves."""
    extra_body: Annotated[dict[str, Any], AfterValidator(partial(hidden_fields, setting="extra_body"))] = Field(
        default_factory=dict
    )
    """Further fields of each request; ``None`` as a value removes a field, ``env:NAME`` is taken from the environment."""
    token_parameter: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """Field of a request that bounds the reply; hosted reasoning models want ``max_completion_tokens``."""
    top_logprobs: Annotated[int, Field(ge=1, le=20)] = 20
    """Tokens whose probabilities are asked for where a server cannot be asked for the labels'; some allow only 5."""
    structured_output: StructuredOutput | None = None
    """Hold the judge to verdicts that can be read, after its reasoning, by the server's structured output:
    ``structured_outputs`` (vLLM), ``guided`` (older vLLM), or ``response_format`` (hosted)."""
    context_tokens: PositiveInt | None = None
    """Most tokens of a prompt and its reply together. A server is asked for its own besides, and the smaller one holds;
    vLLM's engines are given this one, None for the model's own."""
    device: str | None = None
    """E.g. ``cuda:1``; None for a GPU where there is one, under a launcher (torchrun) the rank's own."""
    dtype: str | None = None
    """E.g. ``float16``; None for bfloat16 on a GPU and float32 on a CPU."""
    batch_size: PositiveInt = 32
    """Most requests of a batch."""
    batch_tokens: PositiveInt = 32768
    """Most tokens of a batch, padding and replies included; bounds memory."""
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    """For the model's chat template, e.g. ``{"enable_thinking": True}``."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.3
    """Fraction of the GPU that vLLM takes for weights and prefix cache; the rest is the policy's."""
    tensor_parallel_size: PositiveInt = 1
    """GPUs that share the model."""
    colocated: bool = False
    """Whether the judge shares its device with a policy, and so is awake only while it judges (always so for
    ``offload``); see ``ColocatedEngine``."""
    sleep_level: Literal[1, 2] | None = None
    """How vLLM sleeps: 1 keeps the weights in the CPU's memory, 2 drops them and reads them again; None for 1 where that
    memory has room for them."""
    turn_wait_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1800.0
    """Seconds that a colocated judge waits for its device."""
    engine_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of vLLM's ``EngineArgs``, e.g. ``{"enforce_eager": True}``."""

    def __init__(self, **values: Any) -> None:
        if values.get("engine") == "shared_base":
            raise ConfigError(
                "a judge on the policy's own base is built on the trainer's model: leave engine out and use "
                "SharedBaseJudgeReward from mrjudge_reward.integrations.trl"
            )
        super().__init__(**values)
        if self.engine == "openai" and self.base_url is None:
            raise ConfigError("engine 'openai' needs base_url, e.g. http://127.0.0.1:8000/v1")
        for name, engines in ONLY.items():
            if self.is_set(name) and self.engine_name not in engines:
                instead = f" ({_ELSEWHERE[name]})" if name in _ELSEWHERE else ""
                raise ConfigError(
                    f"{name} does nothing with engine {self.engine_name!r}: it is for {', '.join(map(repr, engines))}"
                    f"{instead}; remove it or set engine"
                )
        if self.engine in _VLLM and self.structured_output not in (None, "structured_outputs"):
            raise ConfigError(
                f"structured_output {self.structured_output!r} is for other servers: engine {self.engine!r} takes "
                "'structured_outputs'"
            )
        if self.base_url is not None and self.embedded:
            raise ConfigError("base_url is set: name the model that the server knows (model: ...)")
        if self.device is not None and self.tensor_parallel_size > 1:
            raise ConfigError("tensor_parallel_size takes the first visible GPUs; set CUDA_VISIBLE_DEVICES, not device")
        own = sorted(
            EngineConfig.model_fields.keys() & self.engine_kwargs.keys() | _OWN.keys() & self.engine_kwargs.keys()
        )
        if own:
            raise ConfigError(f"engine_kwargs must not hold {own[0]}; set {_OWN.get(own[0], own[0])} instead")
        if self.adapter == EMBEDDED and not self.embedded:
            raise ConfigError(f"the adapter 'embedded' belongs to the embedded model, not to {self.model}")
        if self.embedded and self.revision is not None:
            raise ConfigError("revision is for a model of the hub; the embedded model comes in a package")
        if self.sleep_level == 2 and self.adapter is not None:
            raise ConfigError("sleep_level 2 drops the adapter and vLLM reloads the model alone; use level 1")
        if self.sleep_level is not None and not self.colocated:
            raise ConfigError("sleep_level is for a judge that sleeps; remove it or set colocated: true")
        if self.is_set("turn_wait_s") and not self.takes_turns:
            raise ConfigError("turn_wait_s is for a judge that shares its device; remove it or set colocated: true")

    # -- what it resolves to --------------------------------------------------------------------------------------------

    @property
    def engine_name(self) -> str:
        """The engine, with ``auto`` resolved."""
        return self.engine if self.engine != "auto" else "openai" if self.base_url is not None else "transformers"

    @property
    def embedded(self) -> bool:
        """Whether the embedded model judges."""
        return self.model == EMBEDDED

    @property
    def trained(self) -> bool:
        """Whether the embedded model judges with the adapter of this package."""
        return self.embedded and self.adapter == EMBEDDED

    @property
    def takes_turns(self) -> bool:
        """Whether the engine is awake only while it judges."""
        return self.colocated or self.engine == "offload"

    def model_path(self) -> str:
        """Hub name or path of the model."""
        if not self.embedded:
            return self.model
        from .embedded import embedded_model_path

        return str(embedded_model_path())

    def adapter_path(self) -> str | None:
        """Name or path of the adapter."""
        if self.adapter != EMBEDDED:
            return self.adapter
        from .embedded import embedded_adapter_path

        return str(embedded_adapter_path())

    def devices(self) -> list[str]:
        """The devices of an engine that loads a model, as torch names them in this process."""
        torch = require("torch", extra="transformers")
        on_cpu = not torch.cuda.is_available()
        if self.engine in _VLLM:
            from mrjudge_reward.engines.vllm.setup import cpu_build

            on_cpu |= cpu_build()
        kind, _, index = (self.device or "cuda").partition(":")
        if on_cpu or kind != "cuda":
            return ["cpu" if kind == "cuda" else str(self.device)]
        count = torch.cuda.device_count()
        if self.tensor_parallel_size > count or (index.isdigit() and int(index) >= count):
            wanted = self.device or f"tensor_parallel_size {self.tensor_parallel_size}"
            raise ConfigError(f"{wanted} is not to be had: there are {count} visible GPUs")
        each, ranks = self.tensor_parallel_size, int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        if each > 1 and ranks > 1 and (ranks * each > count or self.engine == "vllm"):
            raise ConfigError(
                f"each of {ranks} ranks on this machine would start a judge over {each} GPUs of its own, and {count} are "
                "visible: start one server for all of them and set base_url, or set tensor_parallel_size: 1"
            )
        if not index and self.engine != "vllm":
            index = os.environ.get("LOCAL_RANK", "")
        first = int(index) * each if index.isdigit() and int(index) * each < count else 0
        return [f"cuda:{first + number}" for number in range(each)]

    def plan(self) -> MemoryPlan | None:
        """What the judge takes and what its device has free now; None for a server, which has its own.

        Raises:
            EngineError: if the model's size cannot be told.
        """
        if self.base_url is not None:
            return None
        options = {k: v for k, v in self.engine_kwargs.items() if k == "trust_remote_code"}
        if self.revision is not None:
            options["revision"] = self.revision
        room = device_room(self.devices())
        on_cpu = not room.name.startswith("cuda")
        dtype = self.dtype
        if dtype is None and self.engine not in _VLLM:
            dtype = "float32" if on_cpu else "bfloat16"
        size = model_size(self.model_path(), dtype, options)
        share: float | None = None
        cache_tokens = self.batch_tokens
        if self.engine in _VLLM:
            cache_tokens = self.context_tokens or size.context_tokens or 0
            space = os.environ.get("VLLM_CPU_KVCACHE_SPACE", "") if on_cpu else ""
            if space.isdigit() and int(space):
                cache_tokens = int(space) * GIB // size.cache_bytes_per_token
            else:
                share = self.gpu_memory_utilization
        return plan_memory(
            size,
            room,
            share=share,
            cache_tokens=cache_tokens,
            sleeps=self.takes_turns and not on_cpu,
            must_keep=self.adapter is not None or self.engine == "offload",
            sleep_level=self.sleep_level,
        )

    # -- building -----------------------------------------------------------------------------------------------------

    def build_engine(self) -> Engine:
        """Load or reach the judge model; a judge that takes turns sleeps afterwards.

        Whether it fits the device is said before it is loaded, as a warning: the plan is an estimate.
        """
        if self.base_url is not None:
            from mrjudge_reward.engines.openai.engine import OpenAIEngine

            return OpenAIEngine(
                self.model,
                base_url=self.base_url,
                api_key_env=self.api_key_env,
                extra_headers=self.extra_headers or None,
                insecure_http=self.insecure_http,
                max_concurrency=self.max_concurrency,
                deadline_s=self.deadline_s,
                outage_wait_s=self.outage_wait_s,
                fold_system=self.fold_system,
                context_tokens=self.context_tokens,
                extra_body=self.extra_body or None,
                token_parameter=self.token_parameter,
                top_logprobs=self.top_logprobs,
                structured_output=self.structured_output,
            )
        if self.takes_turns:
            return ColocatedEngine(partial(_planned, self), self.devices(), self.turn_wait_s)
        return _planned(self) if self.devices()[0].startswith("cuda") else self._load()

    def _load(self, sleep_level: int = 1) -> Engine:
        if self.engine in _VLLM:
            return self._load_vllm(sleep_level)
        device = self.devices()[0]
        settings: dict[str, Any] = {
            "adapter": self.adapter_path(),
            "revision": self.revision,
            # That of the lock and the plan; what is no GPU is left to the engine, which knows why it cannot have it.
            "device": device if device.startswith("cuda") else self.device,
            "dtype": self.dtype,
            "batch_size": self.batch_size,
            "batch_tokens": self.batch_tokens,
            "chat_template_kwargs": self.chat_template_kwargs or None,
        }
        if self.engine == "offload":
            from mrjudge_reward.engines.local.offload import OffloadEngine

            return OffloadEngine(self.model_path(), **settings)
        from mrjudge_reward.engines.local.engine import TransformersEngine

        return TransformersEngine(self.model_path(), **settings)

    def _load_vllm(self, sleep_level: int) -> Engine:
        settings: dict[str, Any] = {
            "adapter": self.adapter_path(),
            "dtype": self.dtype,
            "gpu_memory_utilization": self.gpu_memory_utilization,
            "max_model_len": self.context_tokens,
            "tensor_parallel_size": self.tensor_parallel_size,
            "enable_sleep_mode": self.colocated,
            "sleep_level": self.sleep_level or sleep_level,
            "engine_kwargs": self.engine_kwargs | ({"revision": self.revision} if self.revision is not None else {}),
            "chat_template_kwargs": self.chat_template_kwargs,
            **({"structured_output": self.structured_output} if self.structured_output else {}),
        }
        if self.engine == "vllm":
            from mrjudge_reward.engines.vllm.engine import VLLMEngine

            return VLLMEngine(self.model_path(), **settings)
        from mrjudge_reward.engines.vllm.server import VLLMServerEngine

        settings |= {name: getattr(self, name) for name in ("device", "max_concurrency", "deadline_s", "outage_wait_s")}
        return VLLMServerEngine(self.model_path(), **settings)


def _planned(config: EngineConfig) -> Engine:
    """Say whether it will fit, then load it."""
    level = 1
    try:
        plan = config.plan()
    except EngineError as error:
        logger.info("no memory plan: %s", error)
    else:
        if plan is not None:
            logger.log(logging.INFO if plan.fits else logging.WARNING, "the judge %s %s", config.model, plan)
            level = plan.sleep_level or 1
    return config._load(level)
