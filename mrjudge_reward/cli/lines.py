"""The lines of ``mrjudge rank``: read, match with finished results, judge, write in the input's order.

An output that is continued must hold, line for line, results of the same input with the same settings: each result
carries a digest of both. Nothing is written before there is a new result, and every result is written as soon as those
before it are.

A server gets the next line whenever one is done, so that none waits for the slowest of its neighbours. A model in this
process, which batches by itself, gets lines in chunks.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import sys
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import typer

from mrjudge_reward import json_lines
from mrjudge_reward.completions import Candidate, candidate_of
from mrjudge_reward.credentials import reply_fields_hash
from mrjudge_reward.errors import InputError
from mrjudge_reward.fields import shown_text, texts_of
from mrjudge_reward.images import fingerprint
from mrjudge_reward.judging.criteria import rubric_of
from mrjudge_reward.judging.parallel import in_order
from mrjudge_reward.judging.tournament import is_degenerate
from mrjudge_reward.messages import Message, placed_image, placed_images
from mrjudge_reward.monitoring.explain import criterion_record, printable, verdict_record
from mrjudge_reward.rubrics.reading import own_rubric
from mrjudge_reward.scoring.stats import JudgeStats
from mrjudge_reward.training.items import with_images
from mrjudge_reward.types import Group, Judgement

if TYPE_CHECKING:
    from rich.progress import Progress

    from mrjudge_reward.judge import Judge, JudgeConfig

_NOT_OF_SCORES = {
    "base_url", "api_key_env", "extra_headers", "insecure_http", "extra_body", "max_concurrency", "deadline_s",
    "outage_wait_s", "device", "batch_size", "batch_tokens", "cache", "max_failed_fraction", "failure_window", "centre",
    "length_weight", "gpu_memory_utilization", "tensor_parallel_size", "colocated", "sleep_level", "turn_wait_s",
    "token_parameter", "top_logprobs",
}  # fmt: skip
"""Settings that say where, how fast and how long to judge, or how scores become rewards: no part of a line's digest."""

SERVED, TOGETHER = 64, 16
"""Lines judged at once: by a server, each by itself; by a model in this process, in one batch."""

AHEAD = 8
"""Results that may wait for a slow line before them, as a multiple of the lines judged at once."""

_START = b'{"id": '  # of every output line, which tells a half-written one from somebody else's file

_CONTROLS = re.compile(r"[\x7f-\x9f]")  # json.dumps leaves them as they are, and a terminal obeys some


def say(message: str) -> None:
    """One line to standard error."""
    typer.echo(f"mrjudge: {printable(message)}", err=True)


@dataclass(frozen=True)
class InputLine:
    """An input line: a group, or what is wrong with it. The digest is of its content and of the judge's settings."""

    line: int
    id: str | int
    digest: str
    group: Group | None = None
    error: str = ""


@dataclass
class Counts:
    """What happened so far; ``total`` is the number of input lines, where it is known.

    ``comparisons``, and how many of them failed, include those of the results found; ``calls``, ``cut`` (candidates that
    were not judged whole), and why comparisons failed, are this run's alone.
    """

    written: int = 0
    found: int = 0
    bad: int = 0
    calls: int = 0
    comparisons: int = 0
    failed: int = 0
    cut: int = 0
    failures: JudgeStats = JudgeStats()  # noqa: RUF009  never changed
    total: int | None = None

    def add(self, other: Counts) -> None:
        """What a line brought."""
        self.written += other.written
        self.calls += other.calls
        self.comparisons += other.comparisons
        self.failed += other.failed
        self.cut += other.cut
        self.failures += other.failures


_FIELDS = {"prompt": (str, list), "candidates": list, "images": list}


@dataclass(frozen=True)
class ImageSource:
    """Where the images of an input may come from; see ``images.placed``."""

    folder: Path = Path()
    allowed: Sequence[str] = ()

    def prompt(self, messages: Sequence[Message]) -> tuple[Message, ...]:
        """A prompt with its images as they are to be opened."""
        return placed_images(messages, self.folder, self.allowed)

    def candidate(self, given: Any) -> Candidate:
        """A candidate as ``candidate_of`` reads it, likewise: its parts, or its turns and the results of its tools."""
        read = candidate_of(given)
        parts = ((number, placed_image(part, self.folder, self.allowed)) for number, part in read.images)
        return replace(read, images=tuple(parts))


def _group(record: dict[str, Any], key: str, source: ImageSource, config: JudgeConfig) -> Group:
    from mrjudge_reward.scoring.tally import MAX_GROUP

    for field, kinds in _FIELDS.items():
        value = record.get(field)
        if value is None and field == "images":
            continue
        if field not in record:
            raise InputError(f"{field}: missing")
        if not isinstance(value, kinds):  # type: ignore[arg-type]
            lists = {"candidates": "a list of texts", "images": "a list of paths or URLs"}
            wanted = {"prompt": "text or a list of messages", **lists}.get(field, "text")
            raise InputError(f"{field}: must be {wanted}; got {value!r:.60}")
    if not 0 < len(record["candidates"]) <= MAX_GROUP:
        raise InputError(f"candidates: must be 1 to {MAX_GROUP} texts; got {len(record['candidates'])}")
    candidates: list[Candidate] = []
    for index, candidate in enumerate(record["candidates"]):
        if not isinstance(candidate, str | list):
            raise InputError(f"candidates[{index}]: must be text; got {candidate!r:.60}")
        try:
            candidates.append(source.candidate(candidate))
        except (InputError, TypeError) as error:
            raise InputError(f"candidates[{index}]: {error}") from error
    prompt = record["prompt"]
    if not prompt:
        raise InputError("prompt: must not be empty")
    reference = shown_text(record.get("reference"), "reference")
    anchors = texts_of(record["anchors"], "anchor") if record.get("anchors") is not None else None
    if anchors is not None and all(map(is_degenerate, anchors)):
        raise InputError("anchors: none of them says anything; give one, or leave the field out")
    if reference is not None and reference in (anchors or ()):
        raise InputError("anchors: one is the reference too, so that the judge would know which response it is")
    if len(candidates) + len(anchors or ()) > MAX_GROUP:
        raise InputError(f"candidates and anchors: at most {MAX_GROUP} are judged together")
    rubric = own_rubric(record.get("rubric"), "rubric", config.criteria is not None)
    try:
        shown = source.prompt(with_images(prompt, record.get("images") or ()))
        return Group.of(shown, candidates, key, reference, rubric, anchors=anchors)
    except (InputError, TypeError) as error:
        raise InputError(f"prompt: {error}") from error


def _image_contents(group: Group) -> list[str]:
    """What a group's images hold now, so that a result is not taken for that of a file that has changed."""
    parts = [image for turn in group.prompt for image in turn.images] + [image for _, image in group.images]
    contents = []
    for part in parts:
        try:
            contents.append(fingerprint(part.image))
        except (OSError, InputError):
            contents.append("unreadable")
    return contents


def read_items(
    stream: BinaryIO, name: str, config: JudgeConfig, counts: Counts, images: ImageSource = ImageSource()
) -> Iterator[InputLine]:
    """The input lines, in order; what is wrong with one is said at once and kept in its place.

    Args:
        images: where images may come from.
    """
    from mrjudge_reward.prompting.rendering import check_shown, load_template

    form = config.judge_format
    wording = load_template(form.template) if hasattr(form, "template") else None
    body = reply_fields_hash(config.extra_body)
    settings = repr((config.model_dump(exclude=_NOT_OF_SCORES), body, form, wording)).encode()
    for line, raw in json_lines.lines(stream, name):
        key: str | int = line
        content: Any = raw.hex()
        group, fault = None, ""
        try:
            record = json_lines.parsed(raw)
            given = record["id"] if record.get("id") is not None else record.get("key")
            if given is not None:
                if type(given) not in (str, int):
                    raise InputError(f"id: must be text or a whole number; got {given!r:.60}")
                key = given
            read = _group(record, str(key), images, config)
            if wording is not None:
                check_shown(wording, read)
            if config.criteria is not None:
                rubric_of(read, config)  # a line without one is a bad line
            content = [key, *(record.get(field) for field in ("prompt", "candidates", "reference", "rubric"))]
            content += _image_contents(read)
            content += [] if read.anchors is None else [["anchors", *read.anchors]]
            group = read
        except InputError as error:
            fault = str(error)
            counts.bad += 1
            say(f"{name}, line {line}: {fault}")
        digest = hashlib.blake2b(settings + json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()
        yield InputLine(line, key, digest, group, fault)


def skip_finished(output: Path, items: Iterator[InputLine], counts: Counts) -> int:
    """Skip the input lines whose results are there, and say how many bytes of the output to keep."""
    keep = 0
    with output.open("rb") as file:
        for number, raw in enumerate(file, 1):
            if not raw.endswith(b"\n") and (raw.startswith(_START) or _START.startswith(raw)):
                break  # half-written
            item = next(items, None)
            try:
                record = json.loads(raw)
                same = item is not None and raw.endswith(b"\n") and record["input"] == item.digest
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
            counts.comparisons += len(record.get("verdicts", ()))
            counts.failed += record.get("failed", 0)
    return keep


def plain(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become null."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _encoded(item: InputLine, judgement: Judgement | None) -> tuple[bytes, Counts]:
    """A line of the output, and what it adds to the counts."""
    record: dict[str, Any] = {"id": item.id, "line": item.line, "error": item.error}
    counts = Counts(written=1)
    if judgement is not None:
        failed = sum(played.verdict.failed for played in judgement.played)
        reasoned = (p.verdict.rationale for p in judgement.played if p.verdict.rationale and not p.verdict.failed)
        record = {
            "id": item.id, "scores": judgement.scores_G, "order": judgement.order, "best": judgement.best,
            "verdicts": [verdict_record(played) for played in judgement.played], "rationale": next(reasoned, ""),
            "calls": judgement.calls, "failed": failed, "cut": judgement.cut,
        }  # fmt: skip
        if judgement.group.anchors is not None:
            record |= {"anchors": judgement.anchors_A, "level": judgement.level}
        if judgement.criteria:
            record["criteria"] = [criterion_record(one) for one in judgement.criteria]
        asked, cut = len(judgement.played), len(judgement.cut)
        failures = JudgeStats.of([judgement])
        counts = Counts(1, calls=judgement.calls, comparisons=asked, failed=failed, cut=cut, failures=failures)
    text = json.dumps(plain(record | {"input": item.digest}), ensure_ascii=False, allow_nan=False)
    text = _CONTROLS.sub(lambda control: f"\\u{ord(control[0]):04x}", text)
    return text.encode(errors="backslashreplace") + b"\n", counts  # half a surrogate pair becomes its JSON escape


def _judged(judge: Judge, batch: list[InputLine]) -> list[tuple[bytes, Counts]]:
    judgements = iter(judge.judge([item.group for item in batch if item.group is not None]))
    return [_encoded(item, next(judgements) if item.group else None) for item in batch]


def results(
    config: JudgeConfig, items: Iterator[InputLine], chunk: int | None
) -> Generator[list[tuple[bytes, Counts]]]:
    """Lines of the output in order, those together that come together; see ``write_all``. Close it to stop judging."""
    for item in items:
        if item.group is not None:
            break
        yield [_encoded(item, None)]
    else:
        return
    if config.embedded:
        trained = "trained for pairs" if config.trained else "untrained"
        say(f"the embedded model judges: it is {trained}, and only orders texts by sentiment")
    with closing(config.build()) as judge:
        several = judge.engine.concurrent_calls
        at_once = chunk or (SERVED if several else TOGETHER)
        rest = chain([item], items)
        batches = iter(lambda: list(islice(rest, 1 if several else at_once)), [])
        judged = partial(_judged, judge)
        if several:
            with closing(in_order(batches, judged, at_once, AHEAD * at_once)) as served:
                yield from served
        else:
            yield from map(judged, batches)


def _progress(sink: BinaryIO) -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    look = (BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    hidden = not sys.stderr.isatty() or sink.isatty()
    return Progress(*look, console=Console(stderr=True), disable=hidden, redirect_stdout=False, transient=True)


def write_all(
    config: JudgeConfig,
    items: Iterator[InputLine],
    chunk: int | None,
    sink: BinaryIO,
    keep: int | None,
    counts: Counts,
) -> None:
    """Judge, and write each result as soon as it is its turn; what is beyond ``keep`` goes before the first write.

    Args:
        chunk: lines judged at once; None for ``SERVED`` or ``TOGETHER``.
    """
    with closing(results(config, items, chunk)) as found, _progress(sink) as progress:
        task = progress.add_task("loading the judge", total=counts.total)
        for written in found:
            if keep is not None:
                sink.truncate(keep)
                keep = None
            sink.write(b"".join(line for line, _ in written))
            sink.flush()
            for _, of_line in written:
                counts.add(of_line)
            done = f"{counts.written} groups done, {counts.calls} calls, {counts.failed} failed comparisons"
            progress.update(task, completed=counts.written, description=done)
        if keep is not None:
            sink.truncate(keep)
