"""Rows in and out of the synthesis: samples from a data set, items and examples as JSON values with where they come from."""

from __future__ import annotations

import io
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from hashlib import blake2b
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Protocol, TypeVar

from mrjudge_reward.errors import InputError
from mrjudge_reward.fields import field_at, plain
from mrjudge_reward.judging.tournament import is_degenerate
from mrjudge_reward.messages import ImagePart, Message, TextPart, as_messages, final_answer
from mrjudge_reward.training.items import from_choice, with_images
from recipes.common.rows import placed_rows

from .synthesis_filters import NEGATIVE_FILTERS, TRACE_FILTERS, is_refusal
from .synthesis_recipe import VERSION, SynthesisRecipe
from .synthesis_steps import Sample, Speaker, Work, answer_of, problem_of


class HasPrompt(Protocol):
    """A row of whatever kind, by its prompt."""

    @property
    def prompt(self) -> tuple[Message, ...]:
        """What is asked."""
        ...


Asked = TypeVar("Asked", bound=HasPrompt)

# -- samples ------------------------------------------------------------------------------------------------------------


def sample_of(row: Mapping[str, Any], number: int, recipe: SynthesisRecipe) -> Sample:
    """A sample of a row.

    Raises:
        InputError: if there is no prompt or no text for an answer.
    """
    prompt, answer = prompt_and_answer(row, recipe.prompt, recipe.answer)
    if isinstance(answer, list | tuple):
        turn = as_messages(answer)
        answer = turn[0].text if len(turn) == 1 and turn[0].role == "assistant" and not turn[0].images else None
    if not isinstance(answer, str):
        raise InputError(f"an answer is a text, or one turn of the assistant of text alone; got {answer!r:.60}")
    messages, reference = with_images(prompt, images_of(row)), final_answer(answer)
    return Sample(number, from_choice(messages, [reference], 0).group.key, messages, reference)


def prompt_and_answer(row: Mapping[str, Any], prompt: str, answer: str) -> tuple[Any, Any]:
    """What stands in these fields of a row; where there is no prompt, its ``messages``, of which the last is the answer.

    Args:
        row: of a data set.
        prompt: column.
        answer: column, or path to a field in it.

    Raises:
        InputError: if there is neither.
    """
    asked, given, turns = row.get(prompt), plain(field_at(row, answer)), row.get("messages")
    if asked is None and isinstance(turns, list | tuple) and len(turns) > 1:
        asked, given = turns[:-1], turns[-1:]
    if not asked or given is None:
        raise InputError(f"a row needs {prompt} and {answer}, or messages; it has {', '.join(map(str, row))}")
    return asked, given


def images_of(row: Mapping[str, Any]) -> Sequence[Any]:
    """What a row shows beside its prompt: ``images``, or one ``image``."""
    images = row.get("images")
    if images is None:
        return [] if (image := row.get("image")) is None else [image]
    return list(images)


def prompt_key(messages: Sequence[Message]) -> str:
    """The same for prompts that differ in case and spaces alone; other images make another prompt."""
    plain = [
        Message(
            message.role,
            tuple(
                TextPart(" ".join(unicodedata.normalize("NFKC", part.text).casefold().split()))
                if isinstance(part, TextPart)
                else part
                for part in message.content
            ),
        )
        for message in messages
    ]
    return from_choice(plain, [""], 0).group.key


def read_samples(recipe: SynthesisRecipe) -> tuple[list[Sample], Counter[str]]:
    """Samples in order, and how many rows are none for which reason.

    Raises:
        InputError: if there is no sample at all.
    """
    rows = placed_rows(recipe.source, recipe.hub_split, recipe.hub_name)[: recipe.count]

    def fault_of(sample: Sample) -> str:
        if is_degenerate(sample.reference):
            return "empty reference"
        return "refusal as reference" if is_refusal(sample.reference) else ""

    return different(recipe.source, rows, lambda row, number: sample_of(row, number, recipe), fault_of)


def different(
    source: str,
    rows: Sequence[tuple[str, Mapping[str, Any]]],
    sample_of: Callable[[Mapping[str, Any], int], Asked],
    fault_of: Callable[[Asked], str],
) -> tuple[list[Asked], Counter[str]]:
    """Samples of different prompts in order, and how many rows are none for which reason.

    Args:
        source: of the rows, for messages.
        rows: each with where it stands.
        sample_of: makes a sample of a row and its number, from 1; what it refuses (ValueError, TypeError) is malformed.
        fault_of: why a sample is not to be used; empty if it is.

    Raises:
        InputError: if there is no sample at all.
    """
    samples: list[Asked] = []
    dropped: Counter[str] = Counter()
    seen: set[str] = set()
    first = "there are no rows"
    for number, (place, row) in enumerate(rows, 1):
        try:
            sample = sample_of(row, number)
        except (ValueError, TypeError) as error:
            dropped["malformed"] += 1
            first = f"{place}: {error}" if dropped["malformed"] == 1 else first
            continue
        if fault := fault_of(sample):
            dropped[fault] += 1
        elif (key := prompt_key(sample.prompt)) in seen:
            dropped["duplicate prompt"] += 1
        else:
            seen.add(key)
            samples.append(sample)
    if dropped["malformed"]:
        print(f"{source}: {dropped['malformed']} of {len(rows)} rows are no samples; first {first}", file=sys.stderr)
    if not samples:
        raise InputError(f"{source} has no sample ({dict(dropped) or first})")
    return samples, dropped


# -- rows that are written ------------------------------------------------------------------------------------------------


_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")


def _stored(image: Any, folder: Path) -> str:
    """Where an image is; one without a place is put into the folder, named by its content."""
    if isinstance(image, str | PathLike):
        return fspath(image)
    if not isinstance(image, bytes):
        buffer = io.BytesIO()
        (image if image.mode in _PNG_MODES else image.convert("RGB")).save(buffer, format="PNG")
        image = buffer.getvalue()
    folder.mkdir(parents=True, exist_ok=True)
    # Without a suffix: whoever opens it looks at its first bytes.
    path = folder / blake2b(image, digest_size=16).hexdigest()
    if not path.exists():
        scratch = path.with_name(f"{path.name}.partial")
        scratch.write_bytes(image)
        scratch.replace(path)
    return str(path)


def plain_messages(messages: Sequence[Message], images: Path) -> list[dict[str, Any]]:
    """Messages as JSON values: texts, or lists of parts where there are images, so that a row is all of one kind."""
    pictured = any(message.images for message in messages)
    said: list[dict[str, Any]] = []
    for message in messages:
        parts = [
            {"type": "image", "image": _stored(part.image, images)}
            if isinstance(part, ImagePart)
            else {"type": "text", "text": part.text}
            for part in message.content
        ]
        said.append({"role": message.role, "content": parts if pictured else message.text})
    return said


def entry_of(work: Work, recipe: SynthesisRecipe, speakers: Mapping[str, Speaker], out: Path) -> dict[str, Any]:
    """The line of a finished row in ``progress.jsonl``."""
    sample, plan, images = work.sample, recipe.plan(), out / "images"
    entry: dict[str, Any] = {
        "row": sample.row, "key": sample.key, "fault": work.fault, "trace_fault": work.trace_fault, "again": work.again,
        "negatives": [asdict(negative) for negative in work.negatives], "item": None, "example": None,
    }  # fmt: skip
    if work.item is None:
        return entry
    used = (
        ["writer", *(["describer"] if sample.pictured else []), "reasoner", "editor"]
        if recipe.reasoning
        else ["writer"]
    )
    provenance = {
        "source": recipe.source, "row": sample.row, "key": sample.key, "seed": recipe.seed, "recipe": VERSION,
        "families": work.families, "filters": list(NEGATIVE_FILTERS),
        "engines": {name: speakers[name].engine.identity for name in used},
    }  # fmt: skip
    entry["item"] = {
        "key": work.item.group.key,
        "prompt": plain_messages(sample.prompt, images),
        "candidates": list(work.item.group.candidates),
        "gold": list(work.item.gold_G),
        "families": work.families,
        "domain": recipe.task,
        "provenance": provenance,
    }
    if recipe.reasoning and not work.trace_fault:
        guard = plan.guard(speakers["reasoner"].engine)
        entry["example"] = {
            "messages": plain_messages(problem_of(work.item, plan.form).render(guard), images),
            "answer": answer_of(work, plan.form),
            "task": recipe.task,
            "provenance": provenance
            | {
                "filters": [*NEGATIVE_FILTERS, *TRACE_FILTERS],
                "format": "choice",
                "template": recipe.template,
                "labels": recipe.labels,
            },
        }
    return entry
