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
    from rich.progress import Progress

    from .config import JudgeConfig
    from .judge import Judge

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
    typer.echo(f"mrjudge: {' '.join(message.split())}", err=True)


@contextmanager
def _reported() -> Iterator[None]:
    """What a user can put right ends in one line and exit code 2."""
    try:
        yield
    except BrokenPipeError:
        raise
    except (MRJudgeError, OSError) as error:
        _say(str(error))
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


# -- rank: lines in, lines out ----------------------------------------------------------------------------------------


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
    written: int = 0
    found: int = 0
    bad: int = 0
    calls: int = 0
    failed: int = 0
    total: int | None = None


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
            wanted = {"prompt": "text or a list of messages", "candidates": "a list of texts"}.get(field, "text")
            raise InputError(f"{field}: must be {wanted}; got {value!r:.60}")
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
            counts.written += 1
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


def _judged(judge: Judge | None, batch: list[_Item], counts: _Counts) -> bytes:
    groups = [item.group for item in batch if item.group is not None]
    judgements = iter(judge.judge(groups) if judge is not None and groups else ())
    return b"".join(_encoded(item, next(judgements) if item.group else None, counts) for item in batch)


def _progress(sink: BinaryIO) -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    look = (BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    hidden = not sys.stderr.isatty() or sink.isatty()
    return Progress(*look, console=Console(stderr=True), disable=hidden, redirect_stdout=False, transient=True)


def _write_all(
    config: JudgeConfig, items: Iterator[_Item], chunk: int, sink: BinaryIO, keep: int | None, counts: _Counts
) -> None:
    """Judge in chunks and write each as soon as it is judged; what is beyond ``keep`` goes before the first write."""
    judge: Judge | None = None
    with ExitStack() as stack:
        progress = stack.enter_context(_progress(sink))
        task = progress.add_task("loading the judge", total=counts.total)
        while batch := list(islice(items, chunk)):
            if judge is None and any(item.group for item in batch):
                if config.embedded:
                    _say("the embedded model judges: it is untrained, and only orders texts by sentiment")
                judge = config.build()
                stack.callback(judge.close)
            lines = _judged(judge, batch, counts)
            if keep is not None:
                sink.truncate(keep)
                keep = None
            sink.write(lines)
            sink.flush()
            counts.written += len(batch)
            done = f"{counts.written} groups done, {counts.calls} calls, {counts.failed} failed comparisons"
            progress.update(task, completed=counts.written, description=done)
        if keep is not None:
            sink.truncate(keep)


@app.command()
def rank(
    source: Annotated[str, typer.Argument(metavar="[INPUT]", help="JSONL file; - is standard input.")] = "-",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="JSONL file; else standard output.")] = None,
    config: _ConfigPath = None,
    settings: _Settings = [],  # noqa: B006  never changed
    chunk: Annotated[int, typer.Option(min=1, help="Groups that are judged, and then written, together.")] = 16,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Drop what OUTPUT holds and judge all anew.")] = False,
) -> None:
    """Score the candidates of each input line.

    A line is {"prompt": text or chat messages, "candidates": [text, ...]}, with "id" (or "key"), "reference" and
    "rubric" if there are any; other fields are ignored. Each line gets a result, in the same order: "id", "scores"
    (null where unknown), "order" (indices, best first), "best", "verdicts", "rationale", "calls", "failed". A bad line
    gets "id", "line" and "error" instead, the others are judged, and the exit code is 1.

    An OUTPUT that holds results is continued. Each of them must be the result of the input line in its place, with the
    same settings (speed, device, cache and alarm may differ); a half-written last line is dropped. Otherwise nothing
    is judged or written: remove the file, or pass --overwrite.
    """
    with _reported(), ExitStack() as stack:
        judge_config = _load(config, settings)
        stream: BinaryIO = sys.stdin.buffer if source == "-" else stack.enter_context(open(source, "rb"))
        if output is not None and output.exists() and source != "-" and output.samefile(source):
            raise InputError(f"{output} is the input; name another output")
        counts = _Counts()
        if sys.stderr.isatty() and Path(source).is_file():
            counts.total = sum(1 for raw in stream if raw.strip())
            stream.seek(0)
        items = _items(stream, "standard input" if source == "-" else source, judge_config, counts)
        sink, keep = sys.stdout.buffer, None
        if output is not None:
            regular = output.is_file() or not output.exists()
            if output.is_file() and not overwrite:
                keep = _skip_finished(output, items, counts)
            elif regular:
                keep = 0
            sink = stack.enter_context(output.open("ab"))
        resume = "the same command goes on from there" if output is not None else "with -o FILE a run can be continued"
        try:
            _write_all(judge_config, items, chunk, sink, keep, counts)
        except KeyboardInterrupt:
            _say(f"interrupted; {counts.written} results are written, {resume}")
            raise typer.Exit(130) from None
        except JudgeUnreliableError as error:
            _say(f"{error} {counts.written} results are written, {resume}.")
            raise typer.Exit(3) from error
        _say(
            f"{counts.written} lines"
            + (f" ({counts.found} of them found in {output})" if counts.found else "")
            + f", {counts.bad} bad, {counts.calls} calls, {counts.failed} failed comparisons"
        )
        if counts.bad:
            raise typer.Exit(1)


# -- doctor, cache, version -------------------------------------------------------------------------------------------


@app.command()
def doctor(
    config: _ConfigPath = None,
    settings: _Settings = [],  # noqa: B006  never changed
    smoke: Annotated[bool, typer.Option("--smoke/--no-smoke", help="Judge one comparison.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable results.")] = False,
) -> None:
    """Check versions, devices and the judge, and let it judge one comparison.

    Exit code 0 if the judge works, 1 if a check failed.
    """
    with _reported():
        from .doctor import as_table, examine

        checks = examine(_load(config, settings), smoke)
        works = all(check.status != "failed" for check in checks)
        if as_json:
            report = {"works": works, "checks": [vars(check) for check in checks]}
            typer.echo(json.dumps(_plain(report), allow_nan=False, indent=2))
        else:
            as_table(checks)
            typer.echo("The judge works." if works else "The judge does not work: see what failed.")
        raise typer.Exit(0 if works else 1)


@app.command()
def cache(
    path: Annotated[Path, typer.Argument(help="The file named by the setting 'cache'.")],
    clear: Annotated[bool, typer.Option("--clear", help="Remove all replies.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Show how many replies a cache holds, or empty it."""
    with _reported():
        if not path.is_file():
            raise InputError(f"{path}: there is no such file")
        try:
            with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=rw", uri=True, timeout=60)) as connection:
                (count,) = connection.execute("SELECT COUNT(*) FROM replies").fetchone()
                typer.echo(f"{path}: {count} replies, {path.stat().st_size / 1e6:.1f} MB")
                if clear and (yes or typer.confirm("Remove all replies?", err=True)):
                    with connection:
                        connection.execute("DELETE FROM replies")
                    connection.execute("VACUUM")
                    typer.echo("Emptied.")
        except sqlite3.Error as error:
            raise InputError(f"{path} is not a reply cache, or is in use ({error})") from error


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"mrjudge-reward {importlib.metadata.version('mrjudge-reward')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Reasoning judges as pairwise and listwise rewards for RL fine-tuning."""


def main() -> None:
    """Run the command line."""
    if not sys.stderr.isatty():  # no bars of weights being loaded in a log file
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    app(prog_name="mrjudge")


if __name__ == "__main__":
    main()
