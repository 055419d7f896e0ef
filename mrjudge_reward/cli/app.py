"""The command line: ``mrjudge rank`` scores a JSONL file, ``mrjudge report`` shows a run, ``mrjudge doctor`` checks a judge,
``mrjudge cache`` a cache.

Exit codes: 0 done; 1 done, but some input lines were bad (rank), or a check failed (doctor); 2 wrong usage, settings or
files, or an engine that cannot work; 3 the judge failed too often (which goes before 1); 130 interrupted. Whatever the
code, what was finished in order is in the output. What is heavy is imported where it is used, so that ``--help`` is quick.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sqlite3
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mrjudge_reward.errors import ConfigError, InputError, JudgeUnreliableError, MRJudgeError
from mrjudge_reward.json_lines import opened, unpacked
from mrjudge_reward.sole_writer import SoleWriter

from .lines import Counts, ImageSource, plain, read_items, say, skip_finished, write_all

if TYPE_CHECKING:
    from mrjudge_reward.judge import JudgeConfig

    from .doctor import Check

app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)

_ConfigPath = Annotated[Path | None, typer.Option("--config", "-c", help="YAML file with the judge's settings.")]
_Settings = Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE", help="Override a setting; repeatable.")]


@contextmanager
def _reported() -> Iterator[None]:
    """What a user can put right ends in one line and exit code 2."""
    try:
        yield
    except BrokenPipeError:
        raise
    except (MRJudgeError, OSError) as error:
        say(str(error))
        raise typer.Exit(2) from error


def _examiner(framework: str) -> Callable[[str, Sequence[str]], list[Check]]:
    """What checks a framework's config: an entry point, because this package knows no framework."""
    for found in importlib.metadata.entry_points(group="mrjudge.doctor", name=framework):
        examine: Callable[[str, Sequence[str]], list[Check]] = found.load()
        return examine
    raise ConfigError(f"mrjudge-reward was installed before it could check {framework} configs; install it again")


def _load(path: Path | None, settings: list[str]) -> JudgeConfig:
    import yaml

    from mrjudge_reward.credentials import without_credentials
    from mrjudge_reward.judge import JudgeConfig
    from mrjudge_reward.yaml_files import yaml_fault

    overrides: dict[str, Any] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        try:
            overrides[key.strip()] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {key}: the value is not YAML: {yaml_fault(error)}") from None
        if not equals:
            raise ConfigError(f"--set takes KEY=VALUE; got {without_credentials(repr(setting))}")
    return JudgeConfig.load(path, **overrides) if path is not None else JudgeConfig(**overrides)


@app.command()
def rank(
    source: Annotated[str, typer.Argument(metavar="[INPUT]", help="File of JSON lines; - is standard input.")] = "-",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="JSONL file; else standard output.")] = None,
    config: _ConfigPath = None,
    settings: _Settings = [],  # noqa: B006  never changed
    chunk: Annotated[
        int | None,
        typer.Option(
            min=1, help="Lines judged at once: 64 with a server; 16, in one batch, with a model in this process."
        ),
    ] = None,
    images: Annotated[
        list[str], typer.Option("--images", metavar="WHERE", help="Allow images from a folder or address; repeatable.")
    ] = [],  # noqa: B006  never changed
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Drop what OUTPUT holds and judge all anew.")] = False,
) -> None:
    """Score the candidates of each input line.

    A line is {"prompt": text or chat messages, "candidates": [text, ...]}, with "id" (or "key"), "reference",
    "rubric" and "anchors" (answers that scores are relative to: 0 is as good) if there are any; other fields are ignored.
    A candidate may be a list of parts, {"type": "text", "text": ...} and {"type": "image", "image": ...}, or a transcript,
    a list of messages. Images are parts of a message or of a candidate, or a list "images" beside the prompt: paths,
    relative to the INPUT's folder and below it, data URLs, or web addresses for a server to fetch, but not those of this
    machine or its network alone; --images allows more. An image that cannot be shown fails the comparisons of its line.
    Each line gets a result, in the same order: "id", "scores" (null where unknown), "order" (indices, best first), "best"
    (null where nothing is known or different texts tie for the best), "verdicts", "rationale", "calls", "failed", "cut"
    (candidates that were not judged whole); with anchors also their scores, "anchors", and their rating, "level"; in
    "verdicts" -1 is the first anchor. A bad line gets "id", "line" and "error" instead, the others are judged, and
    the exit code is 1. It is 3 if more than max_failed_fraction of all comparisons failed.

    Results are written in the input's order, each as soon as those before it are. A server always has CHUNK lines to
    work on. With a model in this process, lines are judged, and written, in batches of CHUNK.

    An OUTPUT that holds results is continued. Each of them must be the result of the input line in its place, with the
    same settings (address, speed, device, cache and alarm may differ); a half-written last line is dropped. Otherwise
    nothing is judged or written: remove the file, or pass --overwrite. Only one process writes to an OUTPUT at a time.
    """
    with _reported(), ExitStack() as stack:
        judge_config = _load(config, settings)
        given = "standard input" if source == "-" else source
        stream = unpacked(sys.stdin.buffer, given) if source == "-" else stack.enter_context(opened(source))
        if output is not None and output.exists() and source != "-" and output.samefile(source):
            raise InputError(f"{output} is the input; name another output")
        counts = Counts()
        if sys.stderr.isatty() and Path(source).is_file():
            counts.total = sum(1 for raw in stream if raw.strip())
            stream.seek(0)
        shown = ImageSource(Path() if source == "-" else Path(source).parent, images)
        items = read_items(stream, given, judge_config, counts, shown)
        sink, keep = sys.stdout.buffer, None
        if output is not None:
            regular = output.is_file() or not output.exists()
            if regular:
                stack.enter_context(closing(SoleWriter(output)))
            if output.is_file() and not overwrite:
                keep = skip_finished(output, items, counts)
            elif regular:
                keep = 0
            sink = stack.enter_context(output.open("ab"))
        resume = "the same command goes on from there" if output is not None else "with -o FILE a run can be continued"
        try:
            write_all(judge_config, items, chunk, sink, keep, counts)
        except KeyboardInterrupt:
            say(f"interrupted; {counts.written} results are written, {resume}")
            raise typer.Exit(130) from None
        except JudgeUnreliableError as error:
            say(f"{error} {counts.written} results are written, {resume}.")
            raise typer.Exit(3) from error
        say(
            f"{counts.written} lines"
            + (f" ({counts.found} of them found in {output})" if counts.found else "")
            + f", {counts.bad} bad, {counts.calls} calls, {counts.failed} failed comparisons"
            + (f", {counts.cut} candidates not judged whole (cut)" if counts.cut else "")
        )
        if counts.failures.failed:
            say(f"what failed: {counts.failures.failures}; {counts.failures.advice}")
        limit = judge_config.max_failed_fraction
        if counts.failed > limit * counts.comparisons:
            say(
                f"{counts.failed} of {counts.comparisons} comparisons failed, more than max_failed_fraction ({limit:.0%}) "
                "allows; mrjudge doctor shows more. The results are written, for what they are worth"
            )
            raise typer.Exit(3)
        if counts.bad:
            raise typer.Exit(1)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="Folder of the run: log_dir of JudgeReward, mrjudge.log_dir in verl.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="HTML file; else report.html in RUN.")] = None,
    name: Annotated[str | None, typer.Option("--name", help="Of the reward, where several logged.")] = None,
) -> None:
    """Make one HTML page of a run's log: charts, what to look at, and groups with the judge's reasoning.

    The page is complete in itself and loads nothing. It can be made while the run goes on, and again.
    """
    with _reported():
        from mrjudge_reward.monitoring.report.page import page_of

        page = page_of(run, name).encode("utf-8")
        target = output if output is not None else run / "report.html"
        target.write_bytes(page)
        say(f"{target}: {len(page) / 1e6:.1f} MB")


# -- doctor, cache, version -------------------------------------------------------------------------------------------


@app.command()
def doctor(
    config: _ConfigPath = None,
    settings: _Settings = [],  # noqa: B006  never changed
    smoke: Annotated[bool, typer.Option("--smoke/--no-smoke", help="Judge one comparison.")] = True,
    show_prompt: Annotated[bool, typer.Option("--show-prompt", help="Show what the judge is asked.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable results.")] = False,
    verl: Annotated[str | None, typer.Option(metavar="CONFIG", help="Check a verl config, not a judge alone.")] = None,
    verl_settings: Annotated[
        list[str], typer.Option("--verl-set", metavar="KEY=VALUE", help="An override as verl takes it; repeatable.")
    ] = [],  # noqa: B006  never changed
) -> None:
    """Check versions, devices and the judge, and let it judge one comparison.

    With --verl, check instead what a verl run makes of its judge: whether the reward manager is called, whether groups
    can fill, whether all fits the judge's context, whether its server answers. No model is loaded.

    Exit code 1 if a check failed, else 0. A judge that gave no verdict on the example in some order, or prefers the worse
    answer, "works, with notes".
    """
    with _reported():
        from .doctor import as_table, examine

        if verl is None and verl_settings:
            raise ConfigError("--verl-set belongs to --verl CONFIG")
        if verl is not None:
            if config is not None or settings:
                raise ConfigError("with --verl the judge is in CONFIG: use --verl-set +mrjudge.judge.KEY=VALUE")
            checks = _examiner("verl")(verl, verl_settings)
        else:
            checks = examine(_load(config, settings), smoke, show_prompt)
        passed = all(check.status != "failed" for check in checks)
        works = passed and all(check.data.get("convincing", True) for check in checks)
        if as_json:
            report = {"works": works, "checks": [vars(check) for check in checks]}
            typer.echo(json.dumps(plain(report), allow_nan=False, indent=2))
        else:
            as_table(checks)
            subject = "The judge" if verl is None else "The verl config"
            if not passed:
                typer.echo(f"{subject} does not work: see what failed.")
            else:
                typer.echo(f"{subject} works{'' if works else ', with notes: see the smoke test'}.")
        raise typer.Exit(0 if passed else 1)


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
