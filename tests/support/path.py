"""Which files of this package a call enters, in which order, and which of them are on the stack."""

from __future__ import annotations

import gc
import re
import sys
import threading
from itertools import groupby
from types import FrameType
from typing import Any

import mrjudge_reward
from mrjudge_reward import integrations

from . import ROOT

_FOLDERS = {  # from a clone these lie side by side, in an installed package one in the other
    str(integrations.__file__).removesuffix("__init__.py"): "integrations/",
    mrjudge_reward.__file__.removesuffix("__init__.py"): "mrjudge_reward/",
}


class Path:
    """Follows all that is called inside a ``with``, in threads that begin there too.

    Attributes:
        files: entered, by first entry, as they stand in the repository.
        stacks: files on the stack of a call, outermost first, neighbours that are the same as one.
    """

    def __init__(self) -> None:
        self.files: list[str] = []
        self.stacks: set[tuple[str, ...]] = set()

    def begin(self) -> None:
        """Forget what was followed so far."""
        self.__init__()  # type: ignore[misc]

    def __enter__(self) -> Path:
        gc.collect()
        gc.disable()  # what an earlier test left would be entered wherever it is collected
        threading.setprofile(self._called)
        sys.setprofile(self._called)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]
        gc.enable()

    def _called(self, frame: FrameType, event: str, _: Any) -> None:
        if event != "call" or (file := _place(frame)) is None:
            return
        if file not in self.files:
            self.files.append(file)
        frames: list[str | None] = []
        at: FrameType | None = frame
        while at is not None:
            frames.append(_place(at))
            at = at.f_back
        self.stacks.add(tuple(name for name, _ in groupby(filter(None, reversed(frames)))))

    def of(self, files: list[str]) -> list[str]:
        """Those of these files that were entered, by first entry."""
        return [file for file in self.files if file in files]

    def entered_again(self, files: list[str]) -> set[tuple[str, ...]]:
        """Stacks on which one of these files stands twice, another of them between."""
        among = {tuple(name for name, _ in groupby(file for file in stack if file in files)) for stack in self.stacks}
        return {stack for stack in among if len(set(stack)) < len(stack)}


def _place(frame: FrameType) -> str | None:
    file = frame.f_code.co_filename
    return next(
        (name + file.removeprefix(folder) for folder, name in _FOLDERS.items() if file.startswith(folder)), None
    )


def written_path(framework: str) -> tuple[list[str], list[str]]:
    """What CONTRIBUTING.md says of the path from a framework to rewards: files that decide, in order; those they call."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = text.partition("## The path of one reward")[2].partition("\n## ")[0]
    parts = {name.strip(): part for name, part in re.findall(r"\*\*(.+?):\*\*(.*?)(?=\n\*\*|\Z)", section, re.DOTALL)}
    decide: list[str] = []
    called = re.findall(r"`([\w/]+\.py)`", parts["Everywhere"])
    for line in re.split(r"\n(?=\d+\. )", parts[f"From {framework}"] + parts["From both"]):
        head, _, leaves = line.partition("\n   ")
        decide += re.findall(r"^\d+\. `([\w/]+\.py)`", head, re.MULTILINE)
        called += re.findall(r"`([\w/]+\.py)`", leaves)
    return decide, called
