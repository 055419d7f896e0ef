"""Captions of Open Clip Art's drawings: what is said of them in the metadata of their SVG files.

Titles are short and in several languages, so a caption is the title and up to three keywords: "Coccinelle, insect,
animal." Left out are titles that name whoever drew the picture, keywords that say nothing, and folders of icons, flags,
playing cards, road signs and patterns. The category is the first folder, except that whatever its keywords call food, a
vehicle or a flag is in that category (also what lies among holidays), so that these can be held out as among the stamps.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from html import unescape
from pathlib import Path

FOLDERS = {
    "animals", "buildings", "computer", "containers", "decorations", "education", "electronics", "food", "office", "people",
    "plants", "recreation", "science", "signs_and_symbols", "tools", "transportation", "unsorted",
}  # fmt: skip
LEFT_OUT = re.compile("cards|icons|flags|map_symbols|/led|buttons|aiga|roadsigns|computer/folders|computer/diagrams")
RENAMED = {"transportation": "vehicles", "signs_and_symbols": "symbols"}
KINDS = {
    "food": {"food", "beverage", "beverages", "fruit", "menu", "drink", "vegetable", "dessert", "alcohol", "icecream"},
    "vehicles": {
        "vehicle", "vehicles", "transport", "transportation", "travel", "airtravel", "roadtravel", "boat", "ship", "car",
        "truck", "train", "plane", "airplane",
    },
    "flags": {"flag", "flags"},
}  # fmt: skip
"""Category → keywords that put a picture into it."""
SAYS_NOTHING = frozenset(
    {"unsorted", "symbol", "shape", "icon", "image", "clipart", "clip art", "various cliparts", "line art",
     "signs_and_symbols"}
)  # fmt: skip
_METADATA = re.compile("<metadata.*?</metadata>", re.DOTALL)
_TITLE = re.compile("<dc:title>(.*?)</dc:title>", re.DOTALL)
_KEYWORD = re.compile("<rdf:li>(.*?)</rdf:li>", re.DOTALL)
_AGENT = re.compile("<cc:Agent.*?<dc:title>(.*?)</dc:title>", re.DOTALL)


@dataclass(frozen=True)
class Found:
    """A picture file with its caption, not yet looked at.

    Attributes:
        name: of the copy, without its ending.
    """

    file: Path
    name: str
    caption: str
    category: str


def clip_art(drawings: Path, pictures: Path) -> Iterator[Found]:
    """Pictures whose drawing says what they show; sorted by path.

    Args:
        drawings: folder of the SVG files, which hold the metadata.
        pictures: folder of the PNG files, of the same names.
    """
    for drawing in sorted(drawings.rglob("*.svg")):
        path = drawing.relative_to(drawings)
        folder = path.parent.as_posix()
        picture = pictures / path.with_suffix(".png")
        if path.parts[0] not in FOLDERS or LEFT_OUT.search(folder) or not picture.is_file():
            continue
        metadata = _METADATA.search(drawing.read_text(encoding="utf-8", errors="replace"))
        said = metadata.group() if metadata else ""
        if caption := caption_of(said):
            yield Found(picture, "-".join(path.with_suffix("").parts), caption, category_of(path.parts[0], said))


def caption_of(metadata: str) -> str:
    """Title and keywords as one line; empty if they say nothing."""
    people = {word for name in _AGENT.findall(metadata) for word in _line(name).casefold().split()}
    found = _TITLE.search(metadata)
    title = _title(found.group(1)) if found else ""
    if _idle(title, people):
        title = ""
    words = [title.lower() if title.isupper() else title] if title else []
    for text in _KEYWORD.findall(metadata):
        keyword = _line(text).lower()
        if not (_idle(keyword, people) or len(keyword) > 24 or keyword in title.lower() or keyword in words):
            words.append(keyword)
    caption = ", ".join(words[: 3 + bool(title)])
    return f"{caption[0].upper()}{caption[1:]}." if caption else ""


def category_of(folder: str, metadata: str) -> str:
    """Of which kind the picture is."""
    own = RENAMED.get(folder, folder)
    words = {word for text in _KEYWORD.findall(metadata) for word in _line(text).lower().split()}
    return own if own in KINDS else next((kind for kind, known in KINDS.items() if words & known), own)


def _line(text: str) -> str:
    return " ".join(unescape(text).split())


def _title(text: str) -> str:
    """Without what programs and series put around it: ``Clipart by NAME - dog_01.svg`` is ``dog``."""
    text = re.sub("^clipart by .* - ", "", _line(text), flags=re.IGNORECASE)
    text = re.sub("[_#]+", " ", text.removesuffix(".svg"))
    text = re.sub("([a-z])([A-Z])", r"\1 \2", text)
    return " ".join(re.sub(r"(?<=[a-zA-Z])\d+\b|\b\d+\b|\([^)]*\)", " ", text).split()).strip(" -.,:")


def _idle(text: str, people: set[str]) -> bool:
    """Says nothing of the picture, or names who drew it, or is in no Latin letters."""
    words = set(text.casefold().split())
    return (
        not text.isascii()
        or not words
        or text.casefold() in SAYS_NOTHING
        or text.startswith("hash")
        or bool(words & people)
    )
