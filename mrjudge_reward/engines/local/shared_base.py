"""A judge on the policy's own base: one copy of the weights, and the judge's LoRA beside the policy's.

The judge runs on the live PEFT model that a trainer trains. While it judges, its adapter (or none at all: then the frozen
base judges) is active, in eval mode and without gradients. Afterwards, also after an exception or an interrupt, the model
is what it was: active adapters, ``training`` and ``requires_grad`` flags, gradients, and with them the optimiser's state.
Between calls the judge's adapter is not part of the model, so checkpoints, resuming and weight transfer to a rollout
engine never see it (see ``peft_state``).

Memory: base parameters are counted once; the judge adds its adapter (3.6 % for rank 16 on all linear layers of a 135M
model), and while it judges its activations and KV cache. Each rank has its own copy, so nothing is gathered.

What it does not do:

1. It cannot see that a backward pass is under way, or that another thread generates with the policy. Trainers call
   rewards between the two; do not judge from a thread of your own while the policy runs.
2. FSDP and DeepSpeed ZeRO-3 are refused: a rank's judge calls differ from the next rank's, and sharded layers need all of
   them in step.
3. Merging the policy's adapter and unmerging it again (TRL does, to hand weights to vLLM) rounds the base's weights a
   little each time, and the judge's with them.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any
from weakref import WeakKeyDictionary

from mrjudge_reward.errors import EngineError
from mrjudge_reward.types import EngineFailure, Reply, Request

from .engine import TransformersEngine
from .model import fingerprint, folder_version, template_kwargs_version, tokenizer_version
from .peft_state import Visitor, check_usable, kept, own_parameters

_locks: WeakKeyDictionary[Any, threading.Lock] = WeakKeyDictionary()
"""One per model: two judges on one base must not interleave."""


class SharedBaseEngine(TransformersEngine):
    """Runs a judge on a PEFT model that trains.

    Its replies may be kept in a cache as long as the base is frozen: the identity holds the base's name, the adapter's
    files and a sample of the weights. Whether it is frozen is looked at when the engine is made.

    Args:
        model: the trainer's PEFT model, unwrapped.
        adapter: folder of the judge's LoRA; None for the base itself.
        name: of the judge's adapter while it is on the model.
        tokenizer: name, path or loaded tokenizer; None for the base's own.
        batch_size, batch_tokens, chat_template_kwargs: see ``TransformersEngine``.

    Attributes:
        extra_parameters: numbers that this judge adds to the policy's.
        weights_may_change: whether parameters that judge are being trained.

    Raises:
        EngineError: if the model is no PEFT model, is merged, sharded (FSDP, ZeRO-3) or offloaded; if the adapter's name is
            taken, or it cannot be loaded, is no LoRA, or needs changes of the base. The model is left as it was.
    """

    def __init__(
        self,
        model: Any,
        adapter: str | None = None,
        *,
        name: str = "judge",
        tokenizer: Any = None,
        batch_size: int = 32,
        batch_tokens: int = 32768,
        chat_template_kwargs: dict[str, Any] | None = None,
    ) -> None:
        check_usable(model)
        super().__init__(
            model,
            tokenizer=tokenizer,
            batch_size=batch_size,
            batch_tokens=batch_tokens,
            chat_template_kwargs=chat_template_kwargs,
        )
        self._turn = _locks.setdefault(model, threading.Lock())
        with self._turn:
            self._visitor = Visitor(model, adapter, name) if adapter is not None else None
            self.extra_parameters = self._visitor.parameters if self._visitor else 0
            with kept(model), self._visitor.present() if self._visitor else nullcontext():
                judging = own_parameters(model, name if self._visitor else None)
        self.weights_may_change = any(parameter.requires_grad for parameter in judging)
        base = getattr(model, "name_or_path", "") or type(model.get_base_model()).__name__
        extras = (f"+{adapter}" if adapter else "") + template_kwargs_version(chat_template_kwargs)
        weights = (
            f"{judging[0].dtype}{folder_version(adapter)}{tokenizer_version(self._tokenizer)} {fingerprint(judging)}"
        )
        self.identity = f"shared_base:{base}{extras} {weights}"

    def _padded(self, prompts: Any) -> tuple[Any, Any]:
        if self._model is not None:
            self._device = str(self._model.device)  # a trainer may move its model after the engine was made
        return super()._padded(prompts)

    def generate(self, requests: Sequence[Request]) -> list[Reply | EngineFailure]:
        """Let the judge write."""
        with self._judging():
            return super().generate(requests)

    def label_logprobs(self, requests: Sequence[Request]) -> list[Reply | EngineFailure]:
        """Read how likely each label is right after the prefill."""
        with self._judging():
            return super().label_logprobs(requests)

    @contextmanager
    def _judging(self) -> Iterator[None]:
        """The judge's adapter alone is active, for a whole call: switching costs some 0.1 s."""
        with self._turn:
            if self._model is None:
                raise EngineError(f"{self.name} was closed")
            check_usable(self._model)
            with kept(self._model), self._visitor.present() if self._visitor else _adapters_off(self._model):
                self._model.generation_config.use_cache = True  # trainers may turn it off
                yield

    def close(self) -> None:
        """Let go of the model and the adapter; safe to call twice."""
        super().close()
        self._visitor = None


@contextmanager
def _adapters_off(model: Any) -> Iterator[None]:
    model.base_model.disable_adapter_layers()  # ``kept`` turns them on again
    yield
