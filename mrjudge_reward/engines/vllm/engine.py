"""A judge model in this process, through vLLM: prefix caching, continuous batching, sampling with a seed per request.

>>> engine = VLLMEngine("Qwen/Qwen3-8B", gpu_memory_utilization=0.4)  # doctest: +SKIP

A batch is one call of vLLM. The tokens that go in are those of ``TransformersEngine``: the chat template renders the
request, the prefill continues it. Labels are read as exact log-probabilities (``logprob_token_ids``); a vLLM without
that gives the 20 most likely tokens, and a label that is not among them is a failure.

vLLM joins the ``torch.distributed`` group of its process and can sleep in one engine per process only. In a process that
trains, or that holds another vLLM, use ``VLLMServerEngine``.

Not yet run on a GPU; sleeping and waking are therefore untried (on a CPU they go through and free nothing).
"""

from __future__ import annotations

import gc
import logging
import math
import random
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import chain
from typing import Any, TypeAlias

import numpy as np

from mrjudge_reward.engines.contract import Engine
from mrjudge_reward.engines.label_tokens import first_label_tokens
from mrjudge_reward.engines.local.model import tokenizer_version
from mrjudge_reward.engines.local.vision import pictures_of
from mrjudge_reward.engines.structured import pattern
from mrjudge_reward.errors import EngineError, InputError, require
from mrjudge_reward.images import Picture, opened
from mrjudge_reward.reasoning import without_hidden
from mrjudge_reward.types import EngineFailure, Reply, Request, Usage

from .setup import ADAPTER, VLLMSetup, cannot_sleep, wake_in_steps

logger = logging.getLogger(__name__)

_TOP = 20  # most likely tokens asked for, where labels cannot be

_Prompt: TypeAlias = tuple[list[int], Any, list[Picture]]  # token ids, vLLM's SamplingParams, what is shown


class VLLMEngine(Engine):
    """Runs a causal language model in vLLM.

    Args:
        model: hub name or path.
        settings: see ``VLLMSetup``.

    Raises:
        ConfigError: if an argument is out of range.
        EngineError: if the model or its adapter cannot be loaded, or its tokenizer has no chat template.
        MissingPackageError: if vLLM is missing.
    """

    can_read = True

    def __init__(self, model: str, **settings: Any) -> None:
        self._setup = VLLMSetup(model, **settings)
        self._load()

    def _load(self) -> None:
        self._vllm = require("vllm", extra="vllm")
        self._lock = threading.RLock()
        self._llm: Any = None
        self._asleep: bool | None = False  # None while it changes, and after an interrupt of that
        self._broken = ""
        self._told = False
        self._lora: Any = None
        self._tokens = self._setup.load_tokenizer()
        exceptions = require("vllm.exceptions", extra="vllm")
        self._refusals = (ValueError, getattr(exceptions, "VLLMValidationError", ValueError))
        self._exact = hasattr(self._vllm.SamplingParams, "logprob_token_ids")
        self.reserved = self._tokens.reserved
        self.identity = self._setup.identity("vllm") + tokenizer_version(self._tokens.tokenizer)
        self.structured_output = self._setup.structured_output
        try:
            with _own_random_state():
                self._llm = self._vllm.LLM(**self._setup.engine_arguments())
                _keep_process_group(self._llm)
                if self._setup.adapter is not None:
                    lora = require("vllm.lora.request", extra="vllm")
                    self._lora = lora.LoRARequest(ADAPTER, 1, self._setup.adapter)
                    self._llm.llm_engine.add_lora(self._lora)  # now, and not with the first request
        except EngineError:
            raise
        except Exception as error:
            self.close()
            what = f"{self._setup.model!r:.200}" + (
                f" with {self._setup.adapter!r:.200}" if self._setup.adapter else ""
            )
            raise EngineError(f"vLLM cannot load the judge {what}: {type(error).__name__}: {error}") from error
        config = self._llm.llm_engine.model_config
        self.context_tokens: int | None = config.max_model_len
        self._sees = bool(config.is_multimodal_model)

    # -- the two verbs --------------------------------------------------------------------------------------------

    def generate(self, requests: Sequence[Request]) -> list[Reply | EngineFailure]:
        """Let the judge write.

        Raises:
            EngineError: if the engine is asleep, closed or broken.
        """

        def params(request: Request) -> Any:
            how = request.sampling
            held: dict[str, Any] = {}
            if self._setup.structured_output and request.form is not None:
                kind = require("vllm.sampling_params", extra="vllm").StructuredOutputsParams
                held["structured_outputs"] = kind(regex=pattern(request.form))
            return self._vllm.SamplingParams(
                temperature=how.temperature,
                top_p=how.top_p,
                max_tokens=how.max_tokens,
                stop=list(request.stop) or None,
                seed=request.seed if how.temperature > 0 else None,
                skip_special_tokens=not self._tokens.hidden,
                **held,
            )

        def reply(request: Request, output: Any) -> Reply | EngineFailure:
            written = output.outputs[0]
            if written.finish_reason not in ("stop", "length"):
                return EngineFailure("unknown finish", str(written.finish_reason))
            text = without_hidden(written.text, self._tokens.hidden)
            said = Reply(text, written.finish_reason, usage=_usage(output))
            return self._tokens.chat.whole_reply(request, said)

        return self._serve(requests, params, reply)

    def label_logprobs(self, requests: Sequence[Request]) -> list[Reply | EngineFailure]:
        """Read the log-probability of each label's first token right after the prefill.

        Raises:
            EngineError: if two labels of a request begin with the same token, so that one token cannot tell them apart,
                or if the engine is asleep, closed or broken.
        """
        labels = {id(request): first_label_tokens(self._tokens.encode, request) for request in requests}

        def params(request: Request) -> Any:
            ids = list(chain.from_iterable(labels[id(request)]))
            asked = {"logprobs": len(ids), "logprob_token_ids": ids} if self._exact else {"logprobs": _TOP}
            return self._vllm.SamplingParams(temperature=0.0, max_tokens=1, **asked)

        def reply(request: Request, output: Any) -> Reply | EngineFailure:
            first = (output.outputs[0].logprobs or [{}])[0]
            found = [
                [float(first[token].logprob) for token in tokens if token in first] for tokens in labels[id(request)]
            ]
            missing = [label for label, values in zip(request.labels, found, strict=True) if not values]
            if missing:
                return EngineFailure(
                    "label not in top logprobs", f"{missing} not among {len(first)} tokens", transient=False
                )
            values = tuple(float(np.logaddexp.reduce(values)) for values in found)
            if not all(map(math.isfinite, values)):
                return EngineFailure("no log-probabilities", f"{request.labels} have {values}", transient=False)
            return Reply(output.outputs[0].text, label_logprobs=values, usage=_usage(output))

        return self._serve(requests, params, reply)

    # -- calling vLLM -------------------------------------------------------------------------------------------------

    def _serve(
        self,
        requests: Sequence[Request],
        params: Callable[[Request], Any],
        reply: Callable[[Request, Any], Reply | EngineFailure],
    ) -> list[Reply | EngineFailure]:
        prepared = [self._prompt(request, params) for request in requests]
        ready = [index for index, prompt in enumerate(prepared) if not isinstance(prompt, EngineFailure)]
        outputs: dict[int, Any] = {}
        with self._lock:
            llm = self._awake()
            if ready:
                with _own_random_state():
                    outputs = dict(zip(ready, self._run(llm, [prepared[i] for i in ready]), strict=True))
        replies: list[Reply | EngineFailure] = []
        for index, (request, prompt) in enumerate(zip(requests, prepared, strict=True)):
            output = outputs.get(index, prompt)
            replies.append(output if isinstance(output, EngineFailure) else reply(request, output))
        return replies

    def _prompt(self, request: Request, params: Callable[[Request], Any]) -> _Prompt | EngineFailure:
        """Tokens and settings, or why the request cannot be served."""
        try:
            if not self._sees and any(message.images for message in request.messages):
                return EngineFailure("images", f"{self._setup.model} judges text only", transient=False)
            pictures = pictures_of(request)
            ids = self._tokens.encode(self._tokens.chat.text(request))
        except InputError as error:
            return EngineFailure("image", str(error), transient=False)
        except Exception as error:  # noqa: BLE001  one bad request must not take the batch with it
            return EngineFailure("chat template", f"{type(error).__name__}: {error}", transient=False)
        try:
            how = params(request)
        except Exception as error:  # noqa: BLE001  e.g. a temperature above vLLM's bound
            return EngineFailure("invalid request", str(error)[:500], transient=False)
        if self.context_tokens is not None and len(ids) + how.max_tokens > self.context_tokens:
            detail = f"{len(ids)} tokens and {how.max_tokens} to write do not fit {self.context_tokens}"
            return EngineFailure("context", detail, transient=False)
        return ids, how, pictures

    def _working(self) -> Any:
        if self._broken:
            raise EngineError(f"{self.name} is broken since {self._broken}; build it anew")
        if self._llm is None:
            raise EngineError(f"{self.name} was closed")
        return self._llm

    def _awake(self) -> Any:
        llm = self._working()
        if self._asleep is not False:
            raise EngineError(f"{self.name} is asleep; call wake() first")
        return llm

    def _run(self, llm: Any, prompts: list[Any]) -> list[Any]:
        """vLLM's output for each prompt, or a failure."""
        try:
            outputs = llm.generate(
                _shown(prompts),
                [how for _, how, _ in prompts],
                use_tqdm=False,
                lora_request=self._lora,
            )
        except self._refusals as error:  # one of them is refused, before any has begun
            _forget_requests(llm)
            if len(prompts) == 1:
                return [EngineFailure("invalid request", str(error)[:500], transient=False)]
            half = len(prompts) // 2
            return self._run(llm, prompts[:half]) + self._run(llm, prompts[half:])
        except Exception as error:
            self._broken = f"{type(error).__name__}: {error}"[:500]
            raise EngineError(f"{self.name}: vLLM failed: {self._broken}") from error
        except BaseException:  # an interrupt: what is left would be answered in the next call
            _forget_requests(llm)
            raise
        answered = len(outputs) == len(prompts) and all(
            output.prompt_token_ids == ids or pictures  # for which vLLM puts in more tokens
            for output, (ids, _, pictures) in zip(outputs, prompts, strict=True)
        )
        if not answered:
            self._broken = f"it gave {len(outputs)} answers to {len(prompts)} requests, or other ones"
            raise EngineError(f"{self.name}: {self._broken}")
        return list(outputs)

    # -- the device ---------------------------------------------------------------------------------------------------

    def sleep(self) -> None:
        """Give the GPU's memory back until ``wake``; waits for the call in progress.

        Without ``enable_sleep_mode`` nothing happens, and on a CPU nothing is freed; both are logged once.

        Raises:
            EngineError: if vLLM fails at it; the engine is broken then.
        """
        with self._lock:
            if self._asleep:
                return
            why, llm = cannot_sleep(self._setup), self._working()
            if why and not self._told:
                self._told = True
                logger.warning("%s keeps its memory while it sleeps: %s", self.name, why)
            if self._setup.enable_sleep_mode:
                self._asleep = None
                with self._breaks_if_it_fails("going to sleep"):
                    llm.sleep(self._setup.sleep_level)
                self._asleep = True

    def wake(self) -> None:
        """Take the GPU again; does nothing for an engine that is awake.

        Raises:
            EngineError: if vLLM fails at it, mostly for want of memory; the engine is broken then.
        """
        with self._lock:
            if self._asleep is False:
                return
            llm = self._working()
            self._asleep = None
            with self._breaks_if_it_fails("waking"):
                wake_in_steps(
                    self._setup,
                    lambda tag: llm.wake_up(tags=None if tag is None else [tag]),
                    lambda: llm.collective_rpc("reload_weights"),
                )
            self._asleep = False  # not before: a sleeping vLLM would never answer

    @contextmanager
    def _breaks_if_it_fails(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._broken = f"{what} failed: {type(error).__name__}: {error}"[:500]
            raise EngineError(f"{self.name}: {self._broken}") from error

    def close(self) -> None:
        """Let go of the model; safe to call twice."""
        with self._lock:
            llm, self._llm, self._asleep = self._llm, None, False
            if llm is not None:
                with suppress(Exception):  # of an engine that is broken already
                    _shut_down(llm)
                del llm
                gc.collect()
                torch = sys.modules.get("torch")
                if torch is not None and torch.cuda.is_initialized():
                    torch.cuda.empty_cache()

    def prompt_text(self, request: Request) -> str:
        """A request as the model reads it."""
        return self._tokens.chat.text(request)

    def count_tokens(self, text: str) -> int:
        """Tokens of a text without special ones."""
        return len(self._tokens.encode(text))

    def __getstate__(self) -> dict[str, Any]:
        return {"_setup": self._setup}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A pickled engine is its description; loading it loads the model once more."""
        self.__dict__.update(state)
        self._load()


def _shown(prompts: Sequence[_Prompt]) -> list[dict[str, Any]]:
    """Prompts as vLLM takes them; an image of several is one object, and known to vLLM's caches by its content."""
    images = {picture.key: picture for _, _, pictures in prompts for picture in pictures}
    loaded = {key: opened(picture) for key, picture in images.items()}
    return [
        {
            "prompt_token_ids": ids,
            "multi_modal_data": {"image": [loaded[picture.key] for picture in pictures]},
            "multi_modal_uuids": {"image": [picture.key for picture in pictures]},
        }
        if pictures
        else {"prompt_token_ids": ids}
        for ids, _, pictures in prompts
    ]


def _shut_down(llm: Any) -> None:
    client = llm.llm_engine.engine_core
    core = getattr(client, "engine_core", None)
    if core is None:  # it runs in a process of its own
        client.shutdown()
        return
    core.model_executor.shutdown()
    core.scheduler.shutdown()
    gc.unfreeze()


def _keep_process_group(llm: Any) -> None:
    """In this process, vLLM's own shutdown destroys ``torch.distributed``'s group with whoever else is in it."""
    client = llm.llm_engine.engine_core
    finalizer = getattr(client, "_finalizer", None)
    if hasattr(client, "engine_core") and finalizer is not None:
        finalizer.detach()


def _usage(output: Any) -> Usage:
    written = len(output.outputs[0].token_ids)
    return Usage(len(output.prompt_token_ids), output.num_cached_tokens or 0, written)


def _forget_requests(llm: Any) -> None:
    with suppress(Exception):  # of an engine that is beyond help
        engine = llm.llm_engine
        engine.abort_request(list(engine.output_processor.request_states), internal=True)


@contextmanager
def _own_random_state() -> Iterator[None]:
    """vLLM seeds the process it runs in and draws from it; a policy that trains there must not notice."""
    torch, numpy = require("torch", extra="vllm"), require("numpy", extra="vllm")
    python, array = random.getstate(), numpy.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(python)
        numpy.random.set_state(array)
