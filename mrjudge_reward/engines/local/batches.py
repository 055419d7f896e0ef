"""Requests as tokens, and which of them go through a model together: by length, padded on the left."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mrjudge_reward.errors import require

IMAGE_BYTES = 256 * 2**20
"""Pixel values that are kept, and the most that go into a batch of several requests."""

WORTH_A_BATCH = 4
"""Reads of the same images that have batches of their own, so that the images are computed once for all (``reading``)."""


@dataclass(frozen=True)
class Seen:
    """An image as a model takes it.

    Attributes:
        ids: tokens that stand for it.
        types: per name of a model input, a value for each of these tokens; text has 0.
        features: further model inputs, tensors whose first dimension is the image's own.
        size: bytes of the features.
    """

    ids: list[int]
    types: dict[str, list[int]]
    features: dict[str, Any]
    size: int


@dataclass(frozen=True)
class Prompt:
    """A request as tokens, with the images in it, and the place behind the last of them."""

    ids: list[int]
    seen: tuple[Seen, ...] = ()
    types: dict[str, list[int]] | None = None
    images_end: int = 0

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def image_bytes(self) -> int:
        """Of its pixel values."""
        return sum(image.size for image in self.seen)


def batches(
    prompts: Mapping[int, Prompt], new_tokens: int, most: int, most_tokens: int, apart: bool = False
) -> Iterator[list[int]]:
    """Deal prompts into batches, the longest first.

    Args:
        prompts: by number.
        new_tokens: written for each.
        most: prompts of a batch.
        most_tokens: of a batch, padding and what is written included.
        apart: prompts that show the same images, at least ``WORTH_A_BATCH`` of them, are in batches without others.

    Yields:
        The numbers of a batch; one that is too large by itself is alone.
    """
    shown: dict[tuple[int, ...], list[int]] = {}
    for index in sorted(prompts, key=lambda i: -len(prompts[i])):  # the first of a batch is its longest
        shown.setdefault(tuple(map(id, prompts[index].seen)) if apart else (), []).append(index)
    rest = [index for images, alike in shown.items() if not images or len(alike) < WORTH_A_BATCH for index in alike]
    pools = [alike for images, alike in shown.items() if images and len(alike) >= WORTH_A_BATCH]
    for pool in (*pools, sorted(rest, key=lambda i: -len(prompts[i]))):
        batch: list[int] = []
        image_bytes = 0
        for index in pool:
            longest = len(prompts[batch[0]]) if batch else len(prompts[index])
            image_bytes += prompts[index].image_bytes
            full = len(batch) == most or (len(batch) + 1) * (longest + new_tokens) > most_tokens
            if batch and (full or image_bytes > IMAGE_BYTES):
                yield batch
                batch, image_bytes = [], prompts[index].image_bytes
            batch.append(index)
        if batch:
            yield batch


def padded(prompts: Sequence[Prompt], pad: int, device: Any) -> tuple[Any, Any]:
    """Token ids and attention mask of a batch, both (B, T)."""
    torch = require("torch", extra="transformers")
    width = max(map(len, prompts))
    ids = [[pad] * (width - len(prompt)) + prompt.ids for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)
