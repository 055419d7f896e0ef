"""Images for a judge model in this process: what stands for them in the prompt, and what the model reads of them.

A model's processor (``AutoProcessor``) is asked about one image at a time: which tokens stand for it, and its pixel values.
Both are kept by the image's content, so an image that many comparisons show is processed once, and the prompt of each is put
together from pieces. Pixel values of a batch are joined along their first dimension, the others padded with zeros, which is
what the processors do: LLaVA and LLaVA-NeXT, Qwen2-VL, Qwen2.5-VL and Qwen3-VL, Idefics3 and SmolVLM.

Where all prompts of a batch begin with the same images, as the comparisons of a group do, the vision tower runs once for all
that are read (``reading``). What is written runs it for each comparison; for that vLLM has its caches.

Not covered: processors that treat several images of a prompt otherwise than each by itself (LLaVA-OneVision; one image is
fine), and those whose template does not write ``processor.image_token`` (Gemma 3). Their requests fail and say so.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from mrjudge_reward.errors import EngineError, require
from mrjudge_reward.images import Picture, load_picture, opened
from mrjudge_reward.types import EngineFailure, Request

from .batches import IMAGE_BYTES, Prompt, Seen

_OF_TOKENS = ("token_type_ids", "mm_token_type_ids")


class ImageReader:
    """A processor, and what it made of the latest images. Threads may share it.

    Attributes:
        calls: how many images were processed.

    Raises:
        EngineError: if the processor has no token for an image.
    """

    def __init__(self, processor: Any) -> None:
        self.processor = processor
        self.token = str(getattr(processor, "image_token", ""))
        ids = processor.tokenizer.encode(self.token, add_special_tokens=False) if self.token else []
        if len(ids) != 1:
            raise EngineError(f"{type(processor).__name__} has no single token that stands for an image")
        self.token_id: int = ids[0]
        self.calls = 0
        self._kept: OrderedDict[str, Seen] = OrderedDict()
        self._lengths: dict[tuple[int, int], int] = {}
        self._lock = threading.Lock()

    def seen(self, picture: Picture) -> Seen:
        """What the model takes of a picture."""
        with self._lock:  # processing included: two threads that need the same image do it once
            if picture.key not in self._kept:
                self._kept[picture.key] = self._processed(picture)
            self._kept.move_to_end(picture.key)
            seen = self._kept[picture.key]
            while len(self._kept) > 1 and sum(image.size for image in self._kept.values()) > IMAGE_BYTES:
                self._kept.popitem(last=False)
        return seen

    def tokens_of(self, picture: Picture) -> int:
        """How many tokens stand for a picture; those of one size take as many."""
        size = picture.width, picture.height
        if size not in self._lengths:
            self._lengths[size] = len(self.seen(picture).ids)
        return self._lengths[size]

    def _processed(self, picture: Picture) -> Seen:
        self.calls += 1
        made = self.processor(
            text=[self.token],
            images=[opened(picture)],
            text_kwargs={"add_special_tokens": False},
            images_kwargs={"return_tensors": "pt"},
        )
        values = {name: value for name, value in made.items() if name != "attention_mask"}
        ids = list(map(int, values.pop("input_ids")[0]))
        types = {name: list(map(int, values.pop(name)[0])) for name in _OF_TOKENS if name in values}
        size = sum(value.numel() * value.element_size() for value in values.values())
        return Seen(ids, types, values, size)

    def prompt(self, ids: list[int], pictures: Sequence[Picture]) -> Prompt | EngineFailure:
        """The tokens of a chat in which one token stands for each picture, with those put in that really do."""
        places = ids.count(self.token_id)
        if places != len(pictures):
            detail = f"the chat template makes {places} places for {len(pictures)} images"
            return EngineFailure("chat template", detail, transient=False)
        try:
            seen = tuple(map(self.seen, pictures))
        except Exception as error:  # noqa: BLE001  e.g. Qwen's, of an image 200 times as wide as high
            detail = f"the judge's processor refuses an image: {type(error).__name__}: {error!s:.300}"
            return EngineFailure("image", detail, transient=False)
        rest, whole, end = iter(seen), list[int](), 0
        types: dict[str, list[int]] = {name: [] for image in seen for name in image.types}
        for token in ids:
            image = next(rest) if token == self.token_id else None
            whole += [token] if image is None else image.ids
            end = end if image is None else len(whole)
            for name, values in types.items():
                values += [0] if image is None else image.types[name]
        return Prompt(whole, seen, types, end)

    def inputs(self, prompts: Sequence[Prompt], width: int, device: str, dtype: Any) -> dict[str, Any]:
        """What the model takes besides padded tokens and their mask.

        Args:
            prompts: of a batch, in its order. Length B.
            width: to which they are padded on the left.
            device, dtype: of the model.
        """
        torch = require("torch", extra="transformers")
        images = [image for prompt in prompts for image in prompt.seen]
        made: dict[str, Any] = {}
        for name in dict.fromkeys(name for prompt in prompts for name in prompt.types or ()):
            rows = [(prompt.types or {}).get(name, [0] * len(prompt)) for prompt in prompts]
            made[name] = torch.tensor([[0] * (width - len(row)) + row for row in rows], device=device)  # (B, T)
        for name in dict.fromkeys(name for image in images for name in image.features):
            joined = _joined([image.features[name] for image in images])
            made[name] = joined.to(device, dtype) if joined.is_floating_point() else joined.to(device)
        return made


def _joined(tensors: Sequence[Any]) -> Any:
    """Tensors one after the other along the first dimension, the others padded with zeros to the largest."""
    torch = require("torch", extra="transformers")
    largest = [max(sizes) for sizes in zip(*(tensor.shape[1:] for tensor in tensors), strict=True)]
    whole = tensors[0].new_zeros(sum(len(tensor) for tensor in tensors), *largest)
    for tensor, end in zip(tensors, torch.tensor([len(tensor) for tensor in tensors]).cumsum(0).tolist(), strict=True):
        whole[(slice(end - len(tensor), end), *map(slice, tensor.shape[1:]))] = tensor
    return whole


def pictures_of(request: Request) -> list[Picture]:
    """The images of a request, in order; those that were not loaded are, within the usual bound.

    Raises:
        InputError: if one is no image, or a web address.
    """
    return [load_picture(part.image) for message in request.messages for part in message.images]


def vision_model(config: Any) -> bool:
    """Whether a model's config is one of a model that takes images and writes text."""
    transformers = require("transformers", extra="transformers")
    return hasattr(config, "vision_config") and type(config) in transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING


def load_processor(source: str, **options: Any) -> tuple[Any, str]:
    """A model's processor, or None and why there is none."""
    transformers = require("transformers", extra="transformers")
    try:
        processor = transformers.AutoProcessor.from_pretrained(source, **options)
    except (ImportError, OSError, ValueError, TypeError) as error:  # many want torchvision
        return None, f"the processor of {source!r:.200} cannot be loaded ({' '.join(str(error).split())[:300]})"
    if not hasattr(processor, "image_processor"):
        return None, f"the processor of {source!r:.200} takes no images"
    return processor, ""
