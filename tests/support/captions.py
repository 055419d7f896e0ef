"""Captioned pictures drawn here: shapes in colours, a category for each shape."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

from PIL import Image, ImageDraw

COLOURS = ("red", "green", "blue", "black", "orange", "purple", "brown", "pink", "yellow", "grey", "navy", "olive")
SHAPES = ("circle", "square", "bar")


def drawn(colour: str, shape: str, side: int = 64) -> Image.Image:
    image = Image.new("RGB", (side, side), "white")
    draw = ImageDraw.Draw(image)
    box = (8, 8, side - 8, side - 8) if shape != "bar" else (8, side // 2 - 6, side - 8, side // 2 + 6)
    (draw.ellipse if shape == "circle" else draw.rectangle)(box, fill=colour)
    return image


def captioned(folder: Path) -> str:
    """36 pictures and the file that names them."""
    lines = []
    for colour, shape in product(COLOURS, SHAPES):
        drawn(colour, shape).save(folder / f"{colour}-{shape}.png")
        row = {"image": f"{colour}-{shape}.png", "caption": f"A {colour} {shape}.", "category": shape}
        lines.append(json.dumps(row))
    (folder / "captions.jsonl").write_text("\n".join([*lines, ""]))
    return str(folder / "captions.jsonl")
