"""A folder of a training as an interruption would have left it."""

from __future__ import annotations

import shutil
from pathlib import Path


def interrupted(folder: Path, steps: int) -> None:
    """Undo the end of a finished run, and its checkpoints after so many steps."""
    (folder / "recipe.json").rename(folder / "recipe.unfinished.json")
    (folder / "adapter_model.safetensors").unlink()
    for checkpoint in folder.glob("checkpoint-*"):
        if int(checkpoint.name.rpartition("-")[2]) > steps:
            shutil.rmtree(checkpoint)
