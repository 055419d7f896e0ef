"""A judge model in this process, through transformers: any causal language model, any device, optional PEFT adapter.

Models that take images and write text (LLaVA, Qwen2.5-VL, Qwen3-VL, Idefics3, SmolVLM) are loaded with their processor; see
``vision``. Where it cannot be loaded they judge texts, and a request with images fails and says why.

Requests are batched by length and padded on the left; what all reads of a batch begin with is computed once (``reading``).
Each request samples from a random generator of its own (``sampling``), so that requests of different seeds share a batch,
and judging does not shift the random numbers of a policy that trains in the same process.

Writing, sampled or greedy, and reads equal one-by-one judging up to floating point.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from mrjudge_reward import special_tokens
from mrjudge_reward.engines.contract import Engine
from mrjudge_reward.engines.label_tokens import first_label_tokens
from mrjudge_reward.errors import EngineError, InputError, require
from mrjudge_reward.images import Picture
from mrjudge_reward.reasoning import decode_marked, hidden_tokens
from mrjudge_reward.types import EngineFailure, Reply, Request, Sampling, Usage

from .batches import Prompt, batches, padded
from .chat_template import ChatTemplate
from .model import (
    check_weights,
    context_of,
    fingerprint,
    folder_version,
    loaded_whole,
    sharded_by_trainer,
    template_kwargs_version,
    tokenizer_version,
)
from .reading import GREEDY, next_logits
from .sampling import RowSampler
from .vision import ImageReader, load_processor, pictures_of, vision_model


@contextmanager
def _in_eval_mode(model: Any) -> Iterator[None]:
    """Every submodule gets its own ``training`` flag back: a policy may keep some of them frozen in eval mode."""
    before = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, training in before:
            module.training = training


class TransformersEngine(Engine):
    """Runs a causal language model.

    A loaded model may be one that trains: it is in eval mode only while it judges, and its weights may change, so that
    no cache may keep its replies.

    Args:
        model: hub name or path, or a loaded model.
        tokenizer: name, path or loaded tokenizer (or processor, for images); None for the model's own.
        adapter: path of a PEFT adapter to put on the model.
        revision: branch, tag or commit of a model on the hub.
        device: e.g. ``"cuda:0"``; None for a GPU where there is one.
        dtype: e.g. ``"bfloat16"``; None for bfloat16 on a GPU and float32 on a CPU.
        batch_size: most requests of a batch.
        batch_tokens: most tokens of a batch, padding and replies included; bounds memory.
        chat_template_kwargs: passed to the chat template, e.g. ``{"enable_thinking": True}``.

    Raises:
        EngineError: if the model cannot be loaded, or its tokenizer has no chat template or none that takes a user turn.
        MissingPackageError: if torch, transformers or (for an adapter) peft is missing.
    """

    can_read = True

    def __init__(
        self,
        model: Any,
        *,
        tokenizer: Any = None,
        adapter: str | None = None,
        revision: str | None = None,
        device: str | None = None,
        dtype: str | None = None,
        batch_size: int = 32,
        batch_tokens: int = 32768,
        chat_template_kwargs: dict[str, Any] | None = None,
    ) -> None:
        torch = require("torch", extra="transformers")
        require("transformers", extra="transformers")
        self._source, self._tokenizer_source, self._adapter = model, tokenizer, adapter
        self._revision = {"revision": revision} if revision is not None else {}
        self._device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self._dtype = dtype or ("bfloat16" if self._device.startswith("cuda") else "float32")
        self.batch_size, self.batch_tokens = batch_size, batch_tokens
        self._chat_template_kwargs = chat_template_kwargs or {}
        self._lock = threading.Lock()
        self.weights_may_change = not isinstance(model, str)
        self._load()
        name = model if isinstance(model, str) else getattr(model, "name_or_path", type(model).__name__)
        commit = getattr(self._model.config, "_commit_hash", None)  # of a model from the hub
        extras = (f"@{commit}" if commit else "") + (f"+{adapter}" if adapter else "")
        extras += template_kwargs_version(chat_template_kwargs)
        versions = "".join(folder_version(part) for part in (model, adapter)) + tokenizer_version(self._tokenizer)
        self.identity = f"transformers:{name}{extras} {self._dtype}{versions}"

    def _load(self) -> None:
        torch = require("torch", extra="transformers")
        transformers = require("transformers", extra="transformers")
        source = self._source
        try:
            if isinstance(source, str):
                if sharded_by_trainer():
                    raise EngineError(
                        "this process trains with DeepSpeed ZeRO-3, which would cut the judge's weights up as well and wait "
                        "for all ranks at each of its layers: use engine vllm_server, or a server (base_url)"
                    )
                dtype = getattr(torch, self._dtype, None)
                if not isinstance(dtype, torch.dtype):
                    raise EngineError(f"torch has no dtype {self._dtype!r}; choose bfloat16, float16 or float32")
                sees = vision_model(transformers.AutoConfig.from_pretrained(source, **self._revision))
                kind = transformers.AutoModelForImageTextToText if sees else transformers.AutoModelForCausalLM
                with loaded_whole():
                    self._model: Any = kind.from_pretrained(source, dtype=dtype, **self._revision)
                check_weights(self._model, source)
                self._model.to(self._device).eval()
            else:
                self._model, self._device = source, str(source.device)
            named = self._tokenizer_source or (source if isinstance(source, str) else source.name_or_path)
            revision = self._revision if named == source else {}
            if not isinstance(named, str):
                processor, self._blind = named, "it was given a tokenizer and no processor"
            elif vision_model(self._model.config):
                processor, self._blind = load_processor(named, **revision)
            else:
                processor, self._blind = None, "its model takes text alone"
            tokenizer = getattr(processor, "tokenizer", processor)
            if tokenizer is None:
                tokenizer = transformers.AutoTokenizer.from_pretrained(named, **revision)
        except EngineError:
            raise
        except (OSError, ValueError, RuntimeError) as error:  # torch: an unknown device, or too little memory on it
            raise EngineError(f"the judge model {source!r:.200} cannot be loaded: {error}") from error
        if self._adapter is not None:
            peft = require("peft", extra="peft")
            try:
                with _in_eval_mode(self._model), loaded_whole():
                    self._model = peft.PeftModel.from_pretrained(self._model, self._adapter)
            except (OSError, ValueError) as error:
                raise EngineError(f"the adapter {self._adapter!r} cannot be loaded: {error}") from error
        self.weights_checksum = fingerprint(list(self._model.parameters())) if isinstance(source, str) else ""
        self._tokenizer: Any = tokenizer
        self._images = ImageReader(processor) if hasattr(processor, "image_processor") else None
        templated = processor if self._images and processor.chat_template else tokenizer
        self._chat = ChatTemplate(templated, f"{source!r:.200}", self._chat_template_kwargs)
        self._hidden = hidden_tokens(tokenizer)
        self._pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        config = self._model.config.get_text_config()
        self.context_tokens: int | None = context_of(config, tokenizer)
        self.reserved = special_tokens.of_tokenizer(tokenizer)
        stop = self._model.generation_config.eos_token_id
        stops = stop if isinstance(stop, list) else [stop]
        ends = (*stops, tokenizer.eos_token_id, self._pad)  # a row that ended at a stop string is padded
        self._ends = {token for token in ends if token is not None}

    # -- the two verbs --------------------------------------------------------------------------------------------

    def generate(self, requests: Sequence[Request]) -> list[Reply | EngineFailure]:
        """Let the judge write."""
        replies: list[Reply | EngineFailure | None] = [None] * len(requests)
        seeds = [request.seed or 0 for request in requests]
        groups: dict[tuple[Sampling, tuple[str, ...]], list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault((request.sampling, request.stop), []).append(index)
        for (sampling, stop), indices in groups.items():
            prompts = self._prompts(requests, indices, replies, sampling.max_tokens)
            for batch in self._batches(prompts, sampling.max_tokens):
                self._write([prompts[i] for i in batch], batch, replies, sampling, stop, seeds)
        return [
            self._chat.whole_reply(request, reply) if reply is not None else EngineFailure("no reply")
            for request, reply in zip(requests, replies, strict=True)
        ]

    def label_logprobs(self, requests: Sequence[Request]) -> list[Reply | EngineFailure]:
        """Read the log-probability of each label's first token right after the prefill.

        Raises:
            EngineError: if two labels of a request begin with the same token, so that one token cannot tell them apart.
        """
        replies: list[Reply | EngineFailure | None] = [None] * len(requests)
        labels = {i: first_label_tokens(self._encode, request) for i, request in enumerate(requests)}
        prompts = self._prompts(requests, range(len(requests)), replies, 1)
        for batch in self._batches(prompts, 1, apart=True):
            self._read([prompts[i] for i in batch], batch, replies, labels)
        return [reply if reply is not None else EngineFailure("no reply") for reply in replies]

    # -- prompts and batches --------------------------------------------------------------------------------------

    def _prompts(
        self,
        requests: Sequence[Request],
        indices: Sequence[int],
        replies: list[Reply | EngineFailure | None],
        new_tokens: int,
    ) -> dict[int, Prompt]:
        """Tokens and images per request; those that cannot be served get their failure instead."""
        prompts: dict[int, Prompt] = {}
        for index in indices:
            prompt = self._prompt(requests[index])
            if isinstance(prompt, EngineFailure):
                replies[index] = prompt
            elif self.context_tokens is not None and len(prompt) + new_tokens > self.context_tokens:
                detail = f"{len(prompt)} tokens and {new_tokens} to write do not fit {self.context_tokens}"
                replies[index] = EngineFailure("context", detail, transient=False)
            else:
                prompts[index] = prompt
        return prompts

    def _prompt(self, request: Request) -> Prompt | EngineFailure:
        try:
            if self._images is None and any(message.images for message in request.messages):
                return EngineFailure("images", f"this engine judges text only: {self._blind}", transient=False)
            pictures = pictures_of(request)
            ids = self._encode(self._chat.text(request))
            return self._images.prompt(ids, pictures) if pictures and self._images else Prompt(ids)
        except InputError as error:
            return EngineFailure("image", str(error), transient=False)
        except Exception as error:  # noqa: BLE001  one bad request must not take the batch with it
            return EngineFailure("chat template", f"{type(error).__name__}: {error}", transient=False)

    def _batches(self, prompts: dict[int, Prompt], new_tokens: int, apart: bool = False) -> Iterator[list[int]]:
        return batches(prompts, new_tokens, self.batch_size, self.batch_tokens, apart)

    def _padded(self, prompts: Sequence[Prompt]) -> tuple[Any, Any]:
        return padded(prompts, self._pad, self._device)

    # -- model calls ------------------------------------------------------------------------------------------------

    @contextmanager
    def _running(self) -> Iterator[Any]:
        """The model for one call: by one thread, without gradients, in eval mode."""
        with self._lock:
            if self._model is None:
                raise EngineError(f"{self.name} was closed")
            with require("torch", extra="transformers").no_grad(), _in_eval_mode(self._model):
                yield self._model

    def _write(
        self,
        prompts: list[Prompt],
        batch: list[int],
        replies: list[Reply | EngineFailure | None],
        sampling: Sampling,
        stop: tuple[str, ...],
        seeds: Sequence[int],
    ) -> None:
        torch = require("torch", extra="transformers")
        transformers = require("transformers", extra="transformers")
        ids, mask = self._padded(prompts)
        # Whatever the model's own generation config says: a judge is asked with what the request says.
        how = dict(GREEDY)
        if sampling.temperature > 0:
            # Made anew for each attempt, so that the halves of a batch that did not fit draw what the whole had drawn.
            sampler = RowSampler(sampling, [seeds[index] for index in batch], ids.device)
            # Beams would be rows of their own.
            how |= {"num_beams": 1, "logits_processor": transformers.LogitsProcessorList([sampler])}
        if stop:
            how |= {"stop_strings": list(stop), "tokenizer": self._tokenizer}
        out_of_memory = ""
        try:
            with self._running() as model:
                written = model.generate(
                    input_ids=ids,
                    attention_mask=mask,
                    **self._shown(prompts, ids),
                    max_new_tokens=sampling.max_tokens,
                    pad_token_id=self._pad,
                    **how,
                )[:, ids.shape[1] :].tolist()  # (B, new)
        except torch.OutOfMemoryError as error:
            out_of_memory = str(error) or "out of memory"
        if out_of_memory:  # out here, because the error held the failed attempt's tensors
            again = partial(self._write, replies=replies, sampling=sampling, stop=stop, seeds=seeds)
            self._split(prompts, batch, replies, out_of_memory, again)
            return
        for index, prompt, tokens in zip(batch, prompts, written, strict=True):
            end = next((position for position, token in enumerate(tokens) if token in self._ends), None)
            body = tokens if end is None else tokens[:end]
            text = decode_marked(self._tokenizer, body, self._hidden)
            cut = min((at for at in (text.find(mark) for mark in stop) if at >= 0), default=None)
            ended = end is not None or cut is not None
            usage = Usage(len(prompt), 0, len(body) if end is None else end + 1)
            replies[index] = Reply(text[:cut], "stop" if ended else "length", usage=usage)

    def _read(
        self,
        prompts: list[Prompt],
        batch: list[int],
        replies: list[Reply | EngineFailure | None],
        labels: dict[int, list[tuple[int, ...]]],
    ) -> None:
        torch = require("torch", extra="transformers")
        out_of_memory = ""
        try:
            with self._running() as model:
                logits = next_logits(model, prompts, self._padded, self._shown, self._pad if self._images else None)
                logprobs = torch.log_softmax(logits.float(), dim=-1)
        except torch.OutOfMemoryError as error:
            out_of_memory = str(error) or "out of memory"
        if out_of_memory:  # out here, because the error held the failed attempt's tensors
            self._split(prompts, batch, replies, out_of_memory, partial(self._read, replies=replies, labels=labels))
            return
        for row, (index, prompt) in enumerate(zip(batch, prompts, strict=True)):
            values = tuple(float(logprobs[row, list(tokens)].logsumexp(0)) for tokens in labels[index])
            likeliest = self._tokenizer.decode([int(logprobs[row].argmax())], clean_up_tokenization_spaces=False)
            replies[index] = Reply(likeliest, label_logprobs=values, usage=Usage(len(prompt), 0, 1))

    def _shown(self, prompts: Sequence[Prompt], ids: Any) -> dict[str, Any]:
        """What the model takes of the images of a batch."""
        if self._images is None or not any(prompt.seen for prompt in prompts):
            return {}
        return self._images.inputs(prompts, ids.shape[1], ids.device, self._model.dtype)

    def _split(
        self,
        prompts: list[Prompt],
        batch: list[int],
        replies: list[Reply | EngineFailure | None],
        error: str,
        again: Callable[[list[Prompt], list[int]], None],
    ) -> None:
        """Out of memory: try the halves; a single request that does not fit fails alone."""
        require("torch", extra="transformers").cuda.empty_cache()
        if len(batch) == 1:
            replies[batch[0]] = EngineFailure("out of memory", error[:300], transient=False)
            return
        half = len(batch) // 2
        again(prompts[:half], batch[:half])
        again(prompts[half:], batch[half:])

    # -- tokens -------------------------------------------------------------------------------------------------------

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False, verbose=False)
        return ids

    def prompt_text(self, request: Request) -> str:
        """A request as the model reads it."""
        return self._chat.text(request)

    def count_tokens(self, text: str) -> int:
        """Tokens of a text without special ones."""
        return len(self._encode(text))

    def image_tokens(self, picture: Picture) -> int | None:
        """Tokens that a picture takes of the context; None if this judge sees none, or not this one."""
        try:
            return self._images.tokens_of(picture) if self._images is not None else None
        except Exception:  # noqa: BLE001  told where the picture is asked about
            return None

    def close(self) -> None:
        """Let go of the model; safe to call twice."""
        self._model = None

    def __getstate__(self) -> dict[str, Any]:
        if not isinstance(self._source, str):
            raise EngineError("an engine around a loaded model cannot be pickled; give it the model's name instead")
        dropped = ("_model", "_tokenizer", "_chat", "_images", "_lock")
        return {name: value for name, value in vars(self).items() if name not in dropped}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._lock = threading.Lock()
        self._load()
