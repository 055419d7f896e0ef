"""Make training data for a judge out of answers known to be good (MR. Judge), or choose it from judged traces (Flex-Judge).

    python -m recipes.data.synthesize recipes/data/synthesize.yaml --out runs/synthetic
    python -m recipes.data.synthesize CONFIG --set source=sft.jsonl --set count=1000 --out runs/synthetic-sft

From each sample (a prompt, its reference answer, images if any) a writer makes one to three answers that are plausible and
flawed, each by one error family; the reference stays the best, and the candidates are shuffled. A reasoner that was given a
hint (and for images a description) reasons its way to the right one; an editor removes what shows the hint and speaks of
the image where the reasoner spoke of its description. ``synthesis_steps`` has the steps, ``synthesis_filters`` what is
dropped and why. ``mode: curate`` is described in ``curate_traces``.

==================  =================================================================================================
file in ``--out``   what
==================  =================================================================================================
``examples.jsonl``  ``messages``, ``answer``, ``task``, ``split``, ``provenance``: for ``judge/train_sft.py`` (``examples``),
                    which takes those of the training side
``items.jsonl``     ``prompt``, ``candidates``, ``gold`` (1 for the reference), ``families``, ``provenance``: for RL and
                    evaluation, as task source ``items``. An item whose trace was dropped is here all the same
``report.json``     how many rows, negatives and traces were dropped for which reason, and the leak test on all
                    negatives that were written, on those that passed the filters, and after ``match_length``
``progress.jsonl``   one line per finished row; interrupted, the same command goes on from there
``replies.sqlite``  all replies of the models, so that no finished call is made again
==================  =================================================================================================

A call that failed drops what it was for, is counted, and is made again when the same command is run again. ``max_leak``
fails a run, after everything was written, whose best answers can be told by their style alone (``style_leak``).

Known of the paper, from readings of it: error families, the reference as best, the four steps of reasoning extraction, two
to four options. Ours: the wordings, the number of negatives (drawn evenly), filters, the leak test, items without a trace.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from itertools import compress
from pathlib import Path
from typing import Any

from mrjudge_reward.cache import ReplyCache
from mrjudge_reward.engines.contract import Engine
from mrjudge_reward.engines.engine_config import EngineConfig
from mrjudge_reward.errors import ConfigError, InputError, MissingPackageError, MRJudgeError
from mrjudge_reward.prompting.rendering import conversation_text
from mrjudge_reward.training.tasks import split_of
from mrjudge_reward.types import Sampling
from recipes.common.config import command_line, read_config
from recipes.common.resumable import ResumableRows, not_overwritten, write_lines, write_text

from .curate_traces import CurationRecipe, curate
from .style_leak import Leak, Told, check, item_of, length_matched, measure, told
from .synthesis_filters import content_of
from .synthesis_recipe import ROLES, SynthesisRecipe
from .synthesis_rows import entry_of, read_samples
from .synthesis_steps import Negative, Sample, Speaker, Work, extract_reasoning, write_negatives


def _speakers(
    recipe: SynthesisRecipe,
    roles: Sequence[str],
    cache: ReplyCache,
    given: Mapping[str, Engine] | None,
    stack: ExitStack,
) -> dict[str, Speaker]:
    """The models of these roles; those with the same settings are loaded once."""
    built: list[tuple[EngineConfig, Engine]] = []
    speakers: dict[str, Speaker] = {}
    for name in roles:
        role = recipe.role(name)
        config = EngineConfig(**role.engine)
        engine = given[name] if given is not None else next((one for known, one in built if known == config), None)
        if engine is None:
            engine = config.build_engine()
            stack.callback(engine.close)
            built.append((config, engine))
        sampling = Sampling(role.temperature, role.top_p, role.max_tokens)
        speakers[name] = Speaker(
            name, engine, sampling, cache, recipe.seed, recipe.retries, recipe.max_failed_fraction, role.opened
        )
    return speakers


def _batches(recipe: SynthesisRecipe, todo: Sequence[Sample]) -> Iterator[list[Work]]:
    for start in range(0, len(todo), recipe.batch):
        yield [Work(sample) for sample in todo[start : start + recipe.batch]]


def synthesize(recipe: SynthesisRecipe, out: Path, engines: Mapping[str, Engine] | None = None) -> dict[str, Any]:
    """Make the data, or what is still missing of it, and write it.

    Args:
        recipe: what to make.
        out: folder of the run.
        engines: role → engine, instead of building them.

    Returns:
        The report.

    Raises:
        ConfigError: if the folder holds a run with other settings, or the source where it would be overwritten.
        EngineError: if most requests of a call fail.
        InputError: if there is no sample, or the leak is above ``max_leak``.
    """
    from rich.console import Console
    from rich.progress import Progress

    not_overwritten(out, ["items.jsonl", "examples.jsonl"], recipe.source)
    samples, dropped = read_samples(recipe)
    plan = recipe.plan()
    with ExitStack() as stack:
        progress = ResumableRows(out, recipe.of_rows())
        stack.callback(progress.close)
        if todo := progress.todo(samples, f" of {recipe.source}"):
            cache = ReplyCache(out / "replies.sqlite")
            stack.callback(cache.close)
            roles = [
                name
                for name in (ROLES if recipe.reasoning else ROLES[:1])
                if name != "describer" or any(sample.pictured for sample in todo)
            ]
            speakers = _speakers(recipe, roles, cache, engines, stack)
            bar = Progress(console=Console(stderr=True), disable=not sys.stderr.isatty(), redirect_stdout=False)
            with bar:
                shown = bar.add_task("samples", total=len(samples), completed=len(samples) - len(todo))
                steps = 4 if recipe.reasoning else 1

                for works in _batches(recipe, todo):

                    def advance(count: int = len(works)) -> None:
                        bar.advance(shown, count / steps)

                    write_negatives(works, speakers["writer"], plan)
                    advance()
                    if recipe.reasoning:
                        extract_reasoning(
                            works, speakers.get("describer"), speakers["reasoner"], speakers["editor"], plan, advance
                        )
                    progress.add(entry_of(work, recipe, speakers, out) for work in works)
        return _finish(recipe, out, samples, dropped, progress.entries)


def _finish(
    recipe: SynthesisRecipe, out: Path, samples: Sequence[Sample], dropped: Counter[str], entries: Mapping[int, Any]
) -> dict[str, Any]:
    """Write all files from the finished rows; nothing else decides what is in them."""
    rows, traces, negatives = Counter(dropped), Counter[str](), Counter[str]()
    passed: list[dict[str, Any]] = []
    as_written: list[Told] = []
    seen: set[str] = set()
    again = 0
    for sample in samples:
        entry = entries[sample.row]
        again += entry["again"]
        told_of = [Negative(**negative) for negative in entry["negatives"]]
        negatives.update(one.fault or "" for one in told_of)
        others = tuple(one.text for one in told_of if one.text and one.text != sample.reference)
        if others:
            as_written.append(Told(conversation_text(sample.prompt), sample.reference, others))
        if entry["item"] is None:
            rows[entry["fault"]] += 1
            continue
        mine = {content_of(one.text) for one in told_of if not one.fault} - {None}
        if mine & seen:
            rows["negative of an earlier item"] += 1
            continue
        seen |= {content for content in mine if content}
        passed.append(entry)
    shown = [told(item_of(entry["item"])) for entry in passed]
    filtered = kept = [one for one in shown if one is not None]  # an item has one best answer, so all of them
    if recipe.match_length:
        keep = length_matched(filtered)
        rows["length matched"] += keep.count(False)
        passed, kept = list(compress(passed, keep)), list(compress(filtered, keep))
    items = [entry["item"] for entry in passed]
    examples = [
        entry["example"] | {"split": split_of(conversation_text(item_of(entry["item"]).group.prompt))}
        for entry in passed
        if entry["example"] is not None
    ]
    if recipe.reasoning:
        traces.update(entry["trace_fault"] for entry in passed if entry["example"] is None)
    write_lines(out / "items.jsonl", items)
    write_lines(out / "examples.jsonl", examples)
    sets = {"as written": as_written, "filtered": filtered} | ({"length matched": kept} if recipe.match_length else {})
    leaks = {name: _leak(one, recipe.seed) for name, one in sets.items()}
    report: dict[str, Any] = {
        "rows": {
            "all": len(samples) + sum(dropped.values()),
            "items": len(items),
            "dropped": dict((+rows).most_common()),
        },
        "negatives": {
            "asked": sum(negatives.values()),
            "kept": negatives.pop("", 0),
            "dropped": dict((+negatives).most_common()),
        },
        "traces": {
            "asked": len(examples) + sum(traces.values()),
            "kept": len(examples),
            "dropped": dict((+traces).most_common()),
        },
        "failed for the moment": again,
        "leak": {name: asdict(leak) if isinstance(leak, Leak) else leak for name, leak in leaks.items()},
    }
    write_text(out / "report.json", json.dumps(report, indent=2))
    for name, counts in list(report.items())[:3]:
        print(f"{name}: {', '.join(f'{key} {value}' for key, value in counts.items())}")
    for name, leak in leaks.items():
        print(f"leak test, {name}: {leak}")
    if again:
        print(f"{again} rows failed for the moment; the same command asks for them again")
    final = leaks["length matched" if recipe.match_length else "filtered"]
    if recipe.max_leak is not None and not isinstance(final, Leak):
        raise InputError(f"max_leak is set and the leak test could not be made: {final}; all else is in {out}")
    if isinstance(final, Leak):
        check(final, recipe.max_leak)
    return report


def _leak(sets: Sequence[Told], seed: int) -> Leak | str:
    try:
        return measure(sets, seed=seed)
    except (InputError, MissingPackageError) as error:
        return str(error)


def main() -> None:
    """Make the data."""
    parser = command_line(__doc__)
    parser.add_argument("--out", required=True, metavar="FOLDER")
    args = parser.parse_args()
    try:
        values = read_config(args.config, args.overrides)
        mode = values.pop("mode", "synthesize")
        if mode == "curate":
            curate(CurationRecipe(**values), Path(args.out))
        elif mode == "synthesize":
            synthesize(SynthesisRecipe(**values), Path(args.out))
        else:
            raise ConfigError(f"mode is synthesize or curate; got {mode!r}")
    except MRJudgeError as error:
        raise SystemExit(f"synthesize: {error}") from error


if __name__ == "__main__":
    main()
