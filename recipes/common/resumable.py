"""A run that may be interrupted at any point: one line per finished row, each written once and made to last.

A line that a crash cut off is dropped when the run goes on. Of several lines of a row the last one counts, so that what
failed for the moment can be asked again. Lines are of one set of settings, which stand beside them; others are refused.
"""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from mrjudge_reward import json_lines
from mrjudge_reward.errors import ConfigError, InputError
from mrjudge_reward.sole_writer import SoleWriter

Left = TypeVar("Left")


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """A file of JSON lines, there whole or as it was before."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=True) + "\n" for row in rows))


def write_text(path: Path, text: str) -> None:
    """A file, there whole or as it was before."""
    scratch = path.with_name(f"{path.name}.{os.getpid()}.partial")  # others may write the same file
    with scratch.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(scratch, path)


def not_overwritten(out: Path, names: Iterable[str], *sources: str | None) -> None:
    """Raise ConfigError if a file that a run writes into its folder, or its report, is one that it reads."""
    for written in (out / name for name in (*names, "report.json")):
        if written.resolve() in [Path(source).resolve() for source in sources if source is not None]:
            raise ConfigError(f"{written} is read, and would be overwritten; name another folder")


def write_report(folder: Path, report: Mapping[str, Any]) -> None:
    """``report.json``, and a printed line of each of its parts."""
    write_text(folder / "report.json", json.dumps(report, indent=2))
    for name, value in report.items():
        print(f"{name}: {', '.join(f'{key} {of}' for key, of in value.items()) if isinstance(value, dict) else value}")


def batches(todo: Sequence[Left], of: int, size: int, what: str) -> Iterator[Sequence[Left]]:
    """What is left to do, so many at a time, with a progress bar where someone watches.

    Args:
        todo: what is left.
        of: how many there are with those that are finished.
        size: of a batch.
        what: is counted.
    """
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty(), redirect_stdout=False) as bar:
        shown = bar.add_task(what, total=of, completed=of - len(todo))
        for start in range(0, len(todo), size):
            batch = todo[start : start + size]
            yield batch
            bar.advance(shown, len(batch))


def differences(before: Any, now: Any, name: str = "") -> list[str]:
    """Dotted names of the settings that differ; one that is missing is like one that is None."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = sorted(before.keys() | now.keys())
        return [
            place
            for key in keys
            for place in differences(before.get(key), now.get(key), f"{name}.{key}" if name else key)
        ]
    return [] if before == now else [name]


class HasKey(Protocol):
    """A row of whatever kind."""

    @property
    def row(self) -> int:
        """Its number."""
        ...

    @property
    def key(self) -> str:
        """Of its content."""
        ...


Keyed = TypeVar("Keyed", bound=HasKey)


class ResumableRows:
    """The finished rows of a run, in a folder that no other run writes to meanwhile.

    Args:
        folder: of the run; made if it does not exist.
        settings: all that decides what a row comes to, as JSON values.

    Attributes:
        entries: row number → its last line.

    Raises:
        ConfigError: if the folder holds a run with other settings, naming them, or one that is running.
        InputError: if a line that is not the last one is no JSON.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "progress.jsonl"
        self.entries: dict[int, dict[str, Any]] = {}
        try:
            self._lock = SoleWriter(folder / "progress.lock")
        except InputError as error:
            raise ConfigError(f"another run writes to {folder}: {error}") from None
        try:
            self._agree(folder, json.loads(json.dumps(settings)))
            self._read()
            self._file = self.path.open("ab")
        except BaseException:
            self._lock.close()
            raise

    def _agree(self, folder: Path, settings: dict[str, Any]) -> None:
        beside = folder / "settings.json"
        if not beside.exists():
            if self.path.exists():
                raise ConfigError(f"{self.path} is there without {beside.name}; name another folder")
            write_text(beside, json.dumps(settings, indent=2))
            return
        try:
            before = json.loads(beside.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ConfigError(f"{beside} is no JSON: {error}") from error
        if changed := differences(before, settings):
            raise ConfigError(
                f"{folder} holds a run with other settings (changed: {', '.join(changed)}), and rows of two settings are "
                "not mixed; name another folder, or remove this one"
            )

    def _read(self) -> None:
        if not self.path.exists():
            return
        data = self.path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        for number, line in json_lines.lines(json_lines.unpacked(io.BytesIO(whole), self.path), self.path):
            with json_lines.placed(f"{self.path}, line {number}"):
                entry = json_lines.parsed(line)
                self.entries[int(entry["row"])] = entry
        if len(whole) < len(data):  # cut off by a crash
            os.truncate(self.path, len(whole))

    def todo(self, rows: Sequence[Keyed], what: str) -> list[Keyed]:
        """The rows that are not finished, or failed for the moment.

        Args:
            rows: all of them.
            what: is said of a row in a message, after its number: " of pairs.jsonl".

        Raises:
            ConfigError: if one that was asked before has another key now.
        """
        for one in rows:
            if (known := self.entries.get(one.row)) is not None and known["key"] != one.key:
                raise ConfigError(
                    f"row {one.row}{what} is not what it was when {self.path.parent} was begun; name another folder"
                )
        return [one for one in rows if self.entries.get(one.row, {"again": True})["again"]]

    def add(self, entries: Iterable[dict[str, Any]]) -> None:
        """Write lines, each with its row number under ``row``; they last when this returns."""
        for entry in entries:
            self.entries[entry["row"]] = entry
            self._file.write(json.dumps(entry, ensure_ascii=True).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Give the folder back; safe to call twice."""
        self._file.close()
        self._lock.close()
