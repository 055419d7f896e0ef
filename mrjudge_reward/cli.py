"""The command line: ``mrjudge rank`` scores a JSONL file, ``mrjudge doctor`` checks a judge, ``mrjudge cache`` a cache.

Exit codes: 0 done; 1 done, but some input lines were bad (rank), or a check failed (doctor); 2 wrong usage, settings or
files, or an engine that cannot work; 3 the judge failed too often; 130 interrupted. Whatever the code, finished chunks
are in the output. What is heavy is imported where it is used, so that ``--help`` is quick.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import os
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer

from .errors import ConfigError, InputError, JudgeUnreliableError, MRJudgeError
from .types import Group, Judgement

if TYPE_CHECKING:
    from .config import JudgeConfig

app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)

_ConfigPath = Annotated[Path | None, typer.Option("--config", "-c", help="YAML file with the judge's settings.")]
_Settings = Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE", help="Override a setting; repeatable.")]

_NOT_OF_SCORES = {
    "api_key_env", "max_concurrency", "deadline_s", "device", "batch_size", "batch_tokens", "cache",
    "max_failed_fraction", "failure_window", "centre", "length_weight",
}  # fmt: skip
"""Settings that say where, how fast and how long to judge, or how scores become rewards: no part of a line's digest."""

_START = b'{"id": '  # of every output line, which tells a half-written one from somebody else's file


def _say(message: str) -> None:
    typer.echo(f"mrjudge: {message}", err=True)


@contextmanager
def _reported() -> Iterator[None]:
    """What a user can put right ends in one line and exit code 2."""
    try:
        yield
    except BrokenPipeError:
        raise
    except (MRJudgeError, OSError, sqlite3.Error) as error:
        named = isinstance(error, OSError) and error.filename
        _say(f"{error.filename}: {error.strerror}" if named else str(error))  # type: ignore[union-attr]
        raise typer.Exit(2) from error


def _load(path: Path | None, settings: list[str]) -> JudgeConfig:
    import yaml

    from .config import JudgeConfig

    overrides: dict[str, Any] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        try:
            overrides[key.strip()] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {setting}: the value is not YAML: {' '.join(str(error).split())}") from error
        if not equals:
            raise ConfigError(f"--set takes KEY=VALUE; got {setting!r}")
    return JudgeConfig.load(path, **overrides) if path is not None else JudgeConfig(**overrides)


@dataclass(frozen=True)
class _Item:
    """An input line: a group, or what is wrong with it. The digest is of its content and of the judge's settings."""

    line: int
    id: str | int
    digest: str
    group: Group | None = None
    error: str = ""


@dataclass
class _Counts:
    lines: int = 0
    found: int = 0
    bad: int = 0
    calls: int = 0
    failed: int = 0


def _parsed(raw: bytes) -> dict[str, Any]:
    def refuse(name: str) -> None:
        raise ValueError(f"{name} is no JSON value")

    try:
        record = json.loads(raw.decode("utf-8-sig"), parse_constant=refuse)
    except json.JSONDecodeError as error:
        raise InputError(f"not JSON: {error.msg} at column {error.colno}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"not JSON: {error}") from error
    if not isinstance(record, dict):
        raise InputError(f"must be an object with prompt and candidates; got {type(record).__name__}")
    return record


def _group(record: dict[str, Any], key: str) -> Group:
    from .tally import MAX_GROUP

    for field, kinds in {"prompt": (str, list), "candidates": list, "reference": str, "rubric": str}.items():
        value = record.get(field)
        if value is None and field in ("reference", "rubric"):
            continue
        if field not in record:
            raise InputError(f"{field}: missing")
        if not isinstance(value, kinds):  # type: ignore[arg-type]
            raise InputError(f"{field}: must be {'text' if kinds is str else 'a list'}; got {value!r:.60}")
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise InputError(f"{field}: holds half a surrogate pair, which is not text") from error
    if not 0 < len(record["candidates"]) <= MAX_GROUP:
        raise InputError(f"candidates: must be 1 to {MAX_GROUP} texts; got {len(record['candidates'])}")
    for index, text in enumerate(record["candidates"]):
        if not isinstance(text, str):
            raise InputError(f"candidates[{index}]: must be text; got {text!r:.60}")
    if not record["prompt"]:
        raise InputError("prompt: must not be empty")
    try:
        return Group.of(record["prompt"], record["candidates"], key, record.get("reference"), record.get("rubric"))
    except (InputError, TypeError) as error:
        raise InputError(f"prompt: {error}") from error


def _items(stream: BinaryIO, name: str, config: JudgeConfig, counts: _Counts) -> Iterator[_Item]:
    from .prompts import load_template

    form = config.build_format()
    wording = load_template(form.template) if hasattr(form, "template") else None
    settings = repr((config.model_dump(exclude=_NOT_OF_SCORES), form, wording)).encode()
    for line, raw in enumerate(stream, 1):
        if not raw.strip():
            continue
        key: str | int = line
        content: Any = raw.hex()
        group, fault = None, ""
        try:
            record = _parsed(raw)
            given = record["id"] if record.get("id") is not None else record.get("key")
            if given is not None:
                if type(given) not in (str, int):
                    raise InputError(f"id: must be text or a whole number; got {given!r:.60}")
                key = given
            group = _group(record, str(key))
            content = [key, *(record.get(field) for field in ("prompt", "candidates", "reference", "rubric"))]
        except InputError as error:
            fault = str(error)
            counts.bad += 1
            _say(f"{name}, line {line}: {fault}")
        counts.lines += 1
        digest = hashlib.blake2b(settings + json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()
        yield _Item(line, key, digest, group, fault)


def _skip_finished(output: Path, items: Iterator[_Item], counts: _Counts) -> int:
    """Skip the input lines whose results are there, and say how many bytes of the output to keep."""
    keep = 0
    with output.open("rb") as file:
        for number, raw in enumerate(file, 1):
            if not raw.endswith(b"\n") and (raw.startswith(_START) or _START.startswith(raw)):
                break  # half-written
            item = next(items, None)
            try:
                same = item is not None and raw.endswith(b"\n") and json.loads(raw)["input"] == item.digest
            except (ValueError, TypeError, KeyError):
                same = False
            if not same:
                raise InputError(
                    f"{output}, line {number} is no result of the input's {f'line {item.line}' if item else 'lines'} "
                    "with these settings (one of them changed?), and results are not mixed; remove the file, name "
                    "another, or pass --overwrite. Replies kept by the setting 'cache' are used again"
                )
            keep += len(raw)
            counts.found += 1
    return keep


def _plain(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become null."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _encoded(item: _Item, judgement: Judgement | None, counts: _Counts) -> bytes:
    from .explain import verdict_record

    record: dict[str, Any] = {"id": item.id, "line": item.line, "error": item.error}
    if judgement is not None:
        failed = sum(played.verdict.failed for played in judgement.played)
        reasoned = (p.verdict.rationale for p in judgement.played if p.verdict.rationale and not p.verdict.failed)
        record = {
            "id": item.id, "scores": judgement.scores_G, "order": judgement.order, "best": judgement.best,
            "verdicts": [verdict_record(played) for played in judgement.played], "rationale": next(reasoned, ""),
            "calls": judgement.calls, "failed": failed,
        }  # fmt: skip
        counts.calls += judgement.calls
        counts.failed += failed
    text = json.dumps(_plain(record | {"input": item.digest}), ensure_ascii=False, allow_nan=False)
    return text.encode(errors="backslashreplace") + b"\n"  # half a surrogate pair becomes its JSON escape


@app.command()
def rank(
    source: Annotated[str, typer.Argument(metavar="[INPUT]", help="JSONL file; - is standard input.")] = "-",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="JSONL file; else standard output.")] = None,
    config: _ConfigPath = None,
    settings: _Settings = [],  # noqa: B006  typer copies it
    chunk: Annotated[int, typer.Option(min=1, help="Groups judged, and then written, together.")] = 16,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Judge all anew.")] = False,
) -> None:
    """Score the candidates of each input line.

    A line is {"prompt": text or chat messages, "candidates": [text, ...]}, with "id" (or "key"), "reference" and
    "rubric" if you like; other fields are ignored. A result per line comes out in the same order: "scores" (null where
    unknown), "order" (best first), "best", "verdicts", "rationale", "calls", "failed". A line that is bad gets
    {"id", "line", "error"}, the others are judged, and the exit code is 1.

    An OUTPUT that holds results is continued: each of its lines must be the result of the input line in that place,
    with the same settings (but for speed, devices, cache and alarm); a half-written last line is dropped. If any is
    not, nothing is judged or written; --overwrite starts anew.
    """
    from rich.console import Console
    from rich.progress import Progress

    with _reported(), ExitStack() as stack:
        judge_config = _load(config, settings)
        name = "standard input" if source == "-" else source
        stream: BinaryIO = sys.stdin.buffer if source == "-" else stack.enter_context(open(source, "rb"))
        if output is not None and output.exists() and source != "-" and output.samefile(source):
            raise InputError(f"{output} is the input; name another output")
        counts = _Counts()
        items = _items(stream, name, judge_config, counts)
        keep: int | None = 0 if output is not None and (overwrite or not output.exists()) else None
        if output is not None and output.is_file() and not overwrite:
            keep = _skip_finished(output, items, counts)
        sink: BinaryIO = stack.enter_context(output.open("ab")) if output is not None else sys.stdout.buffer
        resume = "run the same command to go on" if output is not None else "with -o FILE the next run could go on"
        written = counts.found
        console = Console(stderr=True)
        progress = stack.enter_context(Progress(console=console, disable=not sys.stderr.isatty(), transient=True))
        task = progress.add_task("", total=None)
        judge = None
        try:
            while batch := list(islice(items, chunk)):
                groups = [item.group for item in batch if item.group is not None]
                if groups and judge is None:
                    judge = judge_config.build()
                    stack.callback(judge.close)
                judged = iter(judge.judge(groups) if groups and judge is not None else ())
                lines = [_encoded(item, next(judged) if item.group else None, counts) for item in batch]
                if keep is not None:
                    sink.truncate(keep)
                    keep = None
                sink.write(b"".join(lines))
                sink.flush()
                written += len(lines)
                done = f"{written} lines done, {counts.calls} calls, {counts.failed} failed"
                progress.update(task, description=done)
            if keep is not None:
                sink.truncate(keep)
        except KeyboardInterrupt:
            _say(f"interrupted; the results of {written} lines are written; {resume}")
            raise typer.Exit(130) from None
        except JudgeUnreliableError as error:
            _say(f"{error} The results of {written} lines are written; {resume}")
            raise typer.Exit(3) from error
    ...
