"""What the images of a group show: loaded once for all of its comparisons, or the reason why they cannot be judged.

A bad image costs what it is shown in and nothing else: one of the prompt fails every comparison of its group, one of a
candidate those in which that candidate stands. What is neither text nor image, such as audio, fails its group wherever it
stands. Nothing of it is asked. Web addresses stay as they are, for servers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mrjudge_reward.completions import image_numbers, unshown
from mrjudge_reward.engines.contract import Engine
from mrjudge_reward.errors import InputError
from mrjudge_reward.images import Album, Picture, estimated_tokens, is_web_address
from mrjudge_reward.messages import ImagePart, Message, TextPart, UnshownPart
from mrjudge_reward.types import Group, NoVerdict

BAD = "image"
"""Reason of a comparison that fails for an image."""


@dataclass(frozen=True)
class GroupImages:
    """A group with its images loaded.

    Attributes:
        group: it, with a ``Picture`` in each image part.
        fault: why nothing of the group can be judged.
        faults: why a candidate cannot, by the number of the image in ``Group.images``.
    """

    group: Group
    fault: NoVerdict | None
    faults: dict[str, NoVerdict]

    def fault_of(self, texts: Sequence[str]) -> NoVerdict | None:
        """Why these candidates cannot be compared; None if they can."""
        if self.fault is None and self.faults:
            return next((self.faults[number] for number in image_numbers(texts) if number in self.faults), None)
        return self.fault

    def images(self, texts: Sequence[str]) -> list[ImagePart]:
        """All that a comparison of these candidates shows."""
        known = dict(self.group.images)
        shown = [image for message in self.group.prompt for image in message.images]
        return shown + [known[number] for number in image_numbers(texts) if number in known]


def shows_more_than_text(group: Group) -> bool:
    """Whether there is something to load, or something that cannot be shown."""
    more = (isinstance(part, ImagePart | UnshownPart) for message in group.prompt for part in message.content)
    return bool(group.images) or any(more) or bool(unshown(group.candidates))


def fault_in_parts(group: Group) -> NoVerdict | None:
    """Why a group cannot be judged for what it holds besides text and images; None if it can."""
    asked = (part.kind for message in group.prompt for part in message.content if isinstance(part, UnshownPart))
    for kind, where in ((next(asked, ""), "the prompt"), (unshown(group.candidates), "a candidate")):
        if kind:
            return NoVerdict(kind, f"{where} holds a part of type {kind!r}, and a judge is shown text and images alone")
    return None


def load_images(group: Group, album: Album) -> GroupImages:
    """Load a group's images, each once.

    Raises:
        MissingPackageError: if there are some to load and Pillow is missing.
    """
    known: dict[int, ImagePart | NoVerdict] = {}

    def seen(part: ImagePart) -> ImagePart | NoVerdict:
        if is_web_address(part.image):
            return part
        if id(part.image) not in known:
            try:
                known[id(part.image)] = ImagePart(album.picture(part.image))
            except InputError as error:
                known[id(part.image)] = NoVerdict(BAD, str(error))
        return known[id(part.image)]

    fault = fault_in_parts(group)
    prompt: list[Message] = []
    for message in group.prompt:
        parts = [part if isinstance(part, TextPart) else seen(part) for part in message.content]
        fault = fault or next((part for part in parts if isinstance(part, NoVerdict)), None)
        prompt.append(Message(message.role, tuple(part for part in parts if not isinstance(part, NoVerdict))))
    shown = {number: seen(part) for number, part in group.images}
    images = tuple((number, part) for number, part in shown.items() if isinstance(part, ImagePart))
    faults = {number: part for number, part in shown.items() if isinstance(part, NoVerdict)}
    return GroupImages(replace(group, prompt=tuple(prompt), images=images), fault, faults)


def image_tokens(engine: Engine, images: Sequence[ImagePart]) -> int:
    """Tokens that images take of the judge's context; an estimate unless the engine tells."""
    total = 0
    for part in images:
        picture = part.image if isinstance(part.image, Picture) else None
        size = None if picture is None else engine.image_tokens(picture)
        total += (
            size if size is not None else estimated_tokens(*((picture.width, picture.height) if picture else (1, 1)))
        )
    return total
