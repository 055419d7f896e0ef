"""Which pictures a CLIP tower is shown, told by their one colour."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class Seen:
    """Colours whose pictures the tower was shown, while it was learning and while it was not; one for each picture.

    Args:
        processor: of a LLaVA.
        colours: that there are.
    """

    def __init__(self, processor: Any, colours: Sequence[str]) -> None:
        from PIL import Image

        made = processor.image_processor([Image.new("RGB", (28, 28), name) for name in colours], return_tensors="pt")
        self.known = dict(zip(colours, made["pixel_values"].mean((2, 3)), strict=True))
        self.learned: list[str] = []
        self.shown: list[str] = []

    def watching(self, forward: Any) -> Any:
        """The tower's ``forward``, which also takes note."""
        import torch

        def watched(tower: Any, pixel_values: Any, *rest: Any, **more: Any) -> Any:
            for colour in pixel_values.float().mean((2, 3)).cpu():
                far = {name: float((colour - known).abs().max()) for name, known in self.known.items()}
                name = min(far, key=far.__getitem__) if min(far.values()) < 0.02 else "none of ours"
                (self.learned if torch.is_grad_enabled() else self.shown).append(name)
            return forward(tower, pixel_values, *rest, **more)

        return watched

    def since(self) -> tuple[list[str], list[str]]:
        """Since the last call: what was learned from, and what was shown without learning from it."""
        found, self.learned, self.shown = (self.learned, self.shown), [], []
        return found
