"""What judges are trained and tested on here: real data from packages, and preference sets of your own.

====================  =======  ====================================================  =======================================
source                items    what                                                  licence
====================  =======  ====================================================  =======================================
film reviews, tweets, 23,700   texts with the mean of human ratings (``reviews``)    MIT
editorials,           texts
Amazon reviews
quartz                3,828    science questions, two options                        CC BY 4.0 (Allen Institute for AI)
social_iqa            2,203    what people feel and do next, three options           CC BY 4.0 (Allen Institute for AI)
mmlu                  999      MMLU's test questions, four options                   MIT
emotional             86       situational tests of emotional intelligence, four or  MIT in ``evals``; its authors' terms are
                               five options, partly ranked by experts                not stated
reasoning_gym         endless  a right answer against flawed ones                    Apache-2.0
preferences           yours    pairs or rated lists: JSON lines, JSON, Parquet, hub  yours
items                 yours    written by ``synthesize`` or ``judged_traces``           yours
captions              yours    pictures, of which one caption is right (``captions``)  yours; see ``captioned_images.py``
====================  =======  ====================================================  =======================================

Quartz to emotional come out of the wheel of ``evals`` 3.0.1.post1 (MIT; its LICENSE.md lists data with other terms). Left
out of it: LogiQA, which its authors' repository of version 2 puts under CC BY-NC-SA, and ToMi (CC BY-NC); questions that
say of themselves that no answer is right; questions that stand there twice with opposite answers. A judge trained on
``mmlu`` must not be tested on MMLU.

Every source is cut by a hash of what its items could share: the text itself for rated texts, the situation for questions
(the sentences before the last one), the whole question for generated ones, the prompt for preferences, the caption for
pictures. Items that say from which side they came (``split``) stay there. So no task brings to training what another on the
same source tests on. Quartz has questions turned into their opposite by a word; such two may be on two sides.

    film = TaskConfig(source="film reviews", judge={"format": "choice"}, both_orders=True)
    task_problems(film, "train")
"""

from __future__ import annotations

import io
import random
import re
import sys
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar, Literal, get_args

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from mrjudge_reward import json_lines
from mrjudge_reward.errors import ConfigError, InputError, require
from mrjudge_reward.judge import JudgeConfig
from mrjudge_reward.messages import ImagePart, Message
from mrjudge_reward.prompting.formats import Format
from mrjudge_reward.prompting.rendering import conversation_text
from mrjudge_reward.settings import Settings
from mrjudge_reward.training.items import Item, from_choice, from_preference, from_ratings, rated_groups
from mrjudge_reward.training.tasks import Problem, Split, problems, split_of
from recipes.common.rows import placed_rows
from recipes.common.rows import read_rows as read_rows  # part of this module

from .captions import WHICH, caption_items, read_captions
from .overlap import apart
from .reviews import DOMAINS, SCALE, fetched, rated_texts

QUESTIONS = {
    "film reviews": "Write a positive sentence about a film.",
    "tweets": "Write a positive tweet.",
    "editorials": "Write a positive sentence about the news.",
    "Amazon reviews": "Write a positive sentence about a product.",
}
"""What rated texts are shown as answers to: the raters said how positive each is."""


@dataclass(frozen=True)
class _Set:
    """A file of ``evals``, what stands before each option in it, and what after the last one alone."""

    file: str
    marker: str
    options: tuple[int, ...]
    end: str = ""


EVALS = {
    "quartz": _Set("quartz/samples.jsonl", r"\n+ [AB]: ", (2,)),
    "social_iqa": _Set("theory_of_mind/socialiqa/test.jsonl", r";? [ABC]: ", (3,), end="."),
    "mmlu": _Set("sandbagging/samples-all-large.jsonl", r"\n[ABCD]\. ", (4,), end="Answer:"),
    "emotional": _Set("emotional-intelligence/samples.jsonl", r";? \([abcde]\) ", (4, 5), end="."),
}
"""Multiple-choice sets: name → where and how they stand in the wheel of ``evals``."""
FILES = ("preferences", "items", "captions")
"""Sources that are read from a path."""
GENERATORS = (
    "chain_sum",
    "gsm_symbolic",
    "calendar_arithmetic",
    "time_intervals",
    "number_sorting",
    "family_relationships",
)
"""Generators of reasoning-gym that are used unless a task names others: short questions, answers of a few words."""


ASKED = ("format", "template", "labels", "grades", "tie_label")
"""Settings of ``JudgeConfig`` that say how a judge is asked."""


class TaskConfig(Settings):
    """What a judge is asked about, and how.

    Args:
        source: name in the table of this module.
        judge: settings of ``JudgeConfig`` that say how the judge is asked (``ASKED``). What is judged needs a ``format``,
            unless the recipe's own judge names it (:func:`asked_tasks`).
        count: items of the training split. Sets of a fixed size give what they have, if that is less.
        eval_count: items of the dev and of the test split, likewise.
        size: candidates of an item, at most; of a longer list of preferences one of the best and a draw of the others. 1
            with rated texts gives single ones.
        gap: least difference of two ratings of an item. A single text lies at least half of it from the middle of the
            scale, so that it is plainly good or plainly bad.
        slots: candidates shown at once; None for all.
        both_orders: show each selection also in the opposite order.
        question: instead of the source's own in ``QUESTIONS``, for rated texts, or ``captions.WHICH``.
        path: of preferences: a file, or the name of a hub data set; of items and captions: the file. Images of a file may be
            named by a path from its folder.
        hub_split, hub_name: split of a hub data set, before our own splits are made of it, and its configuration.
        without: of preferences and items: benchmarks whose questions are left out, by file or name on the hub, each with its
            split (``overlap``).
        generators: of reasoning-gym.
        accuracy: of items: only those of which a judge was right in such a share of its replies, from least to most
            (``evaluate/judged_traces.py`` measures it); None for all.
        distractors: of captions: the wrong ones are of the picture's own category (``"near"``), or of ``"any"``.
        categories, not_categories: of captions: only these, all but these; empty for all.
        describe: of captions, in the warm-up: teach to write the caption of the picture instead of choosing one, which is
            how a connector is trained (LLaVA, arXiv 2304.08485, section 4.2). Nothing is judged.
        held_out: ``"task"`` is never trained on, its texts may be (a format held out); of ``"source"`` all texts are
            test texts, and no task may train on them (a domain held out; see :func:`check_tasks`). Categories are held out
            likewise.
        weight: its part of a mixture, beside the weights of the other tasks.
        reasoning: what a judge is taught to write before its verdict in the warm-up: nothing, or the raters' mean of each
            text; for rated texts (:func:`reasoning`).
        seed: of what is drawn and shown in which order; the splits know no seed.

    Raises:
        ConfigError: on construction.
    """

    where: ClassVar[str] = "a task"

    source: str
    judge: dict[str, Any] = Field(default_factory=dict)
    count: PositiveInt = 1000
    eval_count: PositiveInt = 500
    size: PositiveInt = 2
    gap: NonNegativeFloat = 1.0
    slots: PositiveInt | None = None
    both_orders: bool = False
    question: str | None = None
    path: str | None = None
    hub_split: str = "train"
    hub_name: str | None = None
    without: dict[str, str] = Field(default_factory=dict)
    generators: list[str] = Field(default_factory=lambda: list(GENERATORS), min_length=1)
    accuracy: list[float] | None = Field(default=None, min_length=2, max_length=2)
    distractors: Literal["near", "any"] = "near"
    categories: list[str] = Field(default_factory=list)
    not_categories: list[str] = Field(default_factory=list)
    describe: bool = False
    held_out: Literal["no", "task", "source"] = "no"
    weight: PositiveFloat = 1.0
    reasoning: Literal["none", "ratings"] = "none"
    seed: int = 0

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        known = (*DOMAINS, *EVALS, "reasoning_gym", *FILES)
        if self.source not in known:
            raise ConfigError(f"no source {self.source!r}; there are {', '.join(known)}")
        if (self.path is not None) != (self.source in FILES):
            raise ConfigError("path belongs to source 'preferences', 'items' or 'captions', which need it")
        if self.without and self.source not in ("preferences", "items"):
            raise ConfigError(f"without belongs to sources 'preferences' and 'items', not to {self.source!r}")
        if self.accuracy is not None and self.source != "items":
            raise ConfigError(f"accuracy belongs to source 'items', not to {self.source!r}")
        if self.question is not None and self.source not in (*DOMAINS, "captions"):
            raise ConfigError("question belongs to rated texts and captions; other sources have their own")
        if self.source != "captions" and (self.categories or self.not_categories or self.describe):
            raise ConfigError(f"categories and describe belong to source 'captions', not to {self.source!r}")
        if self.categories and self.not_categories:
            raise ConfigError(
                "categories names those that are taken, not_categories those that are not: give one of them"
            )
        if self.reasoning != "none" and self.source not in DOMAINS:
            raise ConfigError(f"reasoning from ratings belongs to rated texts, and {self.source} has none")
        if self.source not in DOMAINS and self.size < 2:
            raise ConfigError(f"items of {self.source} have at least 2 candidates; got size {self.size}")
        if strange := self.judge.keys() - set(ASKED):
            raise ConfigError(f"a task's judge has {', '.join(ASKED)}; got {', '.join(sorted(strange))}")
        if "format" in self.judge:
            self.build_format()

    def build_format(self, name: str | None = None) -> Format:
        """In which the judge is asked.

        Args:
            name: of the task, for the error; None for its source.

        Raises:
            ConfigError: if the task names none. Which one a judge takes by itself hangs on its model, and a task has none.
        """
        if self.judge.get("format", "auto") == "auto":
            raise ConfigError(
                f"{f'the task on {self.source}' if name is None else f'task {name!r}'} names no format, and each judge "
                "has another of its own: write judge: {format: choice}, or ranking, pair_scores, score or sentiment"
            )
        return JudgeConfig(**self.judge).judge_format


def asked_tasks(
    tasks: Mapping[str, Mapping[str, Any]], judge: Mapping[str, Any] | None = None
) -> dict[str, TaskConfig]:
    """Tasks of a recipe whose problems are asked of a judge, by name.

    Args:
        tasks: name → settings of ``TaskConfig``.
        judge: settings of the recipe's ``JudgeConfig``: they say how the judge is asked where a task does not.

    Raises:
        ConfigError: naming a task without a format, unless it teaches to describe; see also :func:`check_tasks`.
    """
    own = {name: value for name, value in (judge or {}).items() if name in ASKED}
    made = {name: TaskConfig(**values) for name, values in tasks.items()}
    made = {name: task.model_copy(update={"judge": {**own, **task.judge}}) for name, task in made.items()}
    check_tasks(made)
    for name, task in made.items():
        if not task.describe:
            task.build_format(name)
    return made


def check_tasks(tasks: Mapping[str, TaskConfig]) -> None:
    """Raise ConfigError if a task trains on a source, or on categories of it, that another holds out."""
    for name, task in tasks.items():
        for other, one in tasks.items():
            if (
                task.held_out == "source"
                and one.held_out == "no"
                and (one.source, one.path) == (task.source, task.path)
                and not _apart(one, task)
            ):
                what = " and ".join(task.categories) or task.source
                raise ConfigError(f"task {other!r} trains on {what}, which task {name!r} holds out")


Trait = Literal["format", "modality"]
"""What tasks of a mixture may have in common."""


def mixture_weights(
    tasks: Mapping[str, TaskConfig], pictured: Mapping[str, bool], balance: Sequence[Trait]
) -> dict[str, float]:
    """Weights of tasks in a mixture: their own, or so that each kind of task has the same share.

    Args:
        tasks: name → task.
        pictured: name → whether its items show images.
        balance: what makes a kind; empty for the tasks' own weights. Within a kind they still count. Tasks that teach to
            describe are of a format of their own.

    >>> film = {"source": "film reviews", "judge": {"format": "choice"}}
    >>> tweets = TaskConfig(source="tweets", judge={"format": "ranking"})
    >>> tasks = {"a": TaskConfig(**film), "b": TaskConfig(**film), "c": tweets}
    >>> mixture_weights(tasks, dict.fromkeys(tasks, False), ["format"])
    {'a': 0.5, 'b': 0.5, 'c': 1.0}
    """
    traits = {
        name: {"format": None if task.describe else type(task.build_format()), "modality": pictured[name]}
        for name, task in tasks.items()
    }
    kinds = {name: tuple(traits[name][trait] for trait in balance) for name in tasks}
    total: Counter[Any] = Counter()
    for name, task in tasks.items():
        total[kinds[name]] += task.weight  # type: ignore[assignment]
    return {name: task.weight / total[kinds[name]] if balance else task.weight for name, task in tasks.items()}


def _apart(one: TaskConfig, other: TaskConfig) -> bool:
    """Whether no category can be in both tasks, whatever categories there are."""
    mine, theirs = set(one.categories), set(other.categories)
    if mine and theirs:
        return mine.isdisjoint(theirs)
    return bool(mine and mine <= set(other.not_categories)) or bool(theirs and theirs <= set(one.not_categories))


def items(task: TaskConfig, split: Split) -> list[Item]:
    """Items of one side; the same ones in every process.

    Raises:
        ConfigError: if the task is held out from that side.
        InputError: if the data cannot be had, or there are not that many rated or generated items.
    """
    if (task.held_out != "no" and split == "train") or (task.held_out == "source" and split == "dev"):
        raise ConfigError(f"this task on {task.source} is held out: it has no {split} items")
    sides: set[Split] = {"train", "dev", "test"} if task.held_out == "source" else {split}
    count = task.count if split == "train" else task.eval_count
    if task.source in DOMAINS:
        return _rated(task, sides, count)
    if task.source == "reasoning_gym":
        return _generated(task, sides, count)
    if task.source == "captions":
        found = _captions(task, sides, split)
    else:
        found = _choices(task, sides) if task.source in EVALS else _preferences(task, sides)
    random.Random(task.seed).shuffle(found)
    return found[:count]


def task_problems(task: TaskConfig, split: Split) -> list[Problem]:
    """Problems of one side, in the task's format.

    Raises:
        ConfigError: for a task that teaches to describe.
        InputError: if the data cannot be had, or give no problem.
    """
    if task.describe:
        raise ConfigError(f"the task on {task.source} teaches to describe: it has examples, and nothing to judge")
    made = problems(
        items(task, split), task.build_format(), slots=task.slots, both_orders=task.both_orders, seed=task.seed
    )
    if not made:
        raise InputError(f"the task on {task.source} has no {split} problem that its format can verify")
    return made


def shows_images(one: Problem | Item) -> bool:
    """Whether the prompt of an item holds an image."""
    return any(turn.images for turn in (one if isinstance(one, Item) else one.item).group.prompt)


def reasoning(problem: Problem) -> str:
    """What a rater might think before the verdict: how each text is rated, in the order shown, on the item's own scale.

    A stand-in, ours, for the reasoning that MR. Judge distils from a text reasoner (``synthesize.py``): it costs a small
    judge some twenty tokens, and says what the verdict follows from.
    """
    labels = getattr(problem.format, "labels", ("",))
    rated = (
        f"{label.strip()}: {worth:+.1f}".removeprefix(": ")
        for label, worth in zip(labels, problem.gold_K, strict=False)
    )
    return f"<think>{', '.join(rated)}</think>"


# -- rated texts ------------------------------------------------------------------------------------------------------


def _rated(task: TaskConfig, sides: set[Split], count: int) -> list[Item]:
    rated = [(text.text, text.rating) for text in rated_texts(task.source) if split_of(text.text) in sides]
    question = task.question if task.question is not None else QUESTIONS[task.source]
    if task.size > 1:
        return rated_groups(
            rated, question, size=task.size, count=count, gap=task.gap, domain=task.source, scale=SCALE, seed=task.seed
        )
    plain = [(text, rating) for text, rating in rated if abs(rating - fmean(SCALE)) >= task.gap / 2]
    random.Random(task.seed).shuffle(plain)
    return [from_ratings(question, [text], [rating], task.source, scale=SCALE) for text, rating in plain[:count]]


# -- multiple choice --------------------------------------------------------------------------------------------------


def _evals_rows(file: str) -> Iterator[tuple[str, str, str]]:
    """System prompt, question with options, right label."""
    wheel = fetched("evals==3.0.1.post1", "evals-3.0.1.post1-*.whl", "multiple-choice questions, 46 MB")
    with zipfile.ZipFile(wheel) as archive:
        held = json_lines.unpacked(io.BytesIO(archive.read(f"evals/registry/data/{file}")), file)
    for row in (json_lines.parsed(raw) for _, raw in json_lines.lines(held, file)):
        turns = {turn["role"]: turn["content"] for turn in row.get("input", ())}
        yield turns.get("system", ""), turns.get("user") or row["question"], row.get("ideal") or row["answer"]


def _choices(task: TaskConfig, sides: set[Split]) -> list[Item]:
    wanted = EVALS[task.source]
    found: dict[tuple[str, frozenset[str]], tuple[Sequence[str], list[float]] | None] = {}
    for system, text, right in _evals_rows(wanted.file):
        question, *options = (part.strip() for part in re.split(wanted.marker, text.removesuffix(wanted.end)))
        if len(options) not in wanted.options:
            raise InputError(f"{task.source}: {len(options)} options in {text!r:.200}")
        if "no right or wrong answers" in system:
            continue
        # The best options are named in order; those that are not named are all the worst.
        places = [ord(label.lower()) - ord("a") for label in right.split("-")]
        worth = [1 - places.index(i) / len(options) if i in places else 0.0 for i in range(len(options))]
        key = question, frozenset(options)
        if key in found and (before := found[key]) is not None:
            same = before[0][before[1].index(1.0)] == options[places[0]]
            found[key] = before if same else None  # the same question with two answers has none
        found.setdefault(key, (options, worth))
    made = []
    for (question, _), kept in found.items():
        situation = question.rpartition(". ")[0] or question
        if kept is None or split_of(situation) not in sides:
            continue
        options, worth = list(kept[0]), kept[1]
        best = worth.index(1.0)
        others = [i for i, text in enumerate(options) if text not in (options[best], *options[:i])]
        draw = random.Random(f"{task.seed} {question}")
        chosen = sorted([best, *draw.sample(others, min(task.size - 1, len(others)))])
        if len(chosen) < 2 or options.count(options[best]) > 1:
            continue
        texts, gold_G = [options[i] for i in chosen], [worth[i] for i in chosen]
        made.append(from_ratings(question, texts, gold_G, task.source, scale=(0.0, 1.0)))
    return made


# -- generated --------------------------------------------------------------------------------------------------------


def _generated(task: TaskConfig, sides: set[Split], count: int) -> list[Item]:
    gym = require("reasoning_gym", extra="dev")
    made: list[Item] = []
    for place, name in enumerate(task.generators):
        share = count // len(task.generators) + (place < count % len(task.generators))
        # The generators seed each question with the sum of seed and number: so seeds lie far apart.
        questions = gym.create_dataset(name, size=100 * share + 200, seed=task.seed * 1_000_003)
        seen: dict[str, str] = {}  # question → answer
        mine: list[Item] = []
        for number in range(100 * share + 200):
            if len(mine) == share:
                break
            entry = questions[number]
            question, answer = entry["question"], entry["answer"]
            if not isinstance(answer, str) or question in seen or split_of(question) not in sides:
                continue
            others = list(dict.fromkeys(seen.values()))[-20:]
            seen[question] = answer
            draw = random.Random(f"{task.seed} {name} {number}")
            flawed: dict[str, None] = {}
            for flaw in flaws(answer, others, draw):
                if len(flawed) < task.size - 1 and flaw != answer and questions.score_answer(flaw, entry) < 0.5:
                    flawed[flaw] = None
            if len(flawed) == task.size - 1 and questions.score_answer(answer, entry) == 1:
                options = [answer, *flawed]
                draw.shuffle(options)
                mine.append(from_choice(question, options, options.index(answer), f"reasoning_gym {name}"))
        if len(mine) < share:
            raise InputError(f"reasoning-gym's {name} gave {len(mine)} questions with flawed answers, not {share}")
        made += mine
    random.Random(task.seed).shuffle(made)
    return made


def flaws(answer: str, others: Sequence[str], draw: random.Random) -> list[str]:
    """Answers that could pass for this one: a slip in a number, neighbours exchanged, the answer to another question.

    Args:
        answer: that is right.
        others: right answers to other questions of the kind.
        draw: source of randomness.

    Returns:
        Different texts in random order, mostly wrong; whether they are is for the caller to check.
    """
    found = draw.sample(list(others), min(3, len(others)))
    numbers = list(re.finditer(r"-?\d+", answer))
    if numbers:
        number = draw.choice(numbers)
        digits = number[0]
        value = int(digits)
        slips = [str(value + step).zfill(len(digits)) for step in (-10, -2, -1, 1, 2, 10)] + [str(-value)]
        slips += [digits[:i] + digits[i + 1] + digits[i] + digits[i + 2 :] for i in range(len(digits) - 1)]
        found += [
            answer[: number.start()] + slip + answer[number.end() :] for slip in slips if re.fullmatch(r"-?\d+", slip)
        ]
    words = answer.split(" ")
    if len(words) > 1:
        i = draw.randrange(len(words) - 1)
        found.append(" ".join([*words[:i], words[i + 1], words[i], *words[i + 2 :]]))
    draw.shuffle(found)
    return [text for text in dict.fromkeys(found) if text != answer]


# -- preferences ------------------------------------------------------------------------------------------------------


def _preferences(task: TaskConfig, sides: set[Split]) -> list[Item]:
    assert task.path is not None
    made: dict[str, Item] = {}
    faults: list[str] = []
    rows = placed_rows(task.path, task.hub_split, task.hub_name)
    ours, folder = task.source == "items", Path(task.path).parent if Path(task.path).is_file() else None
    for place, row in rows:
        try:
            item = from_preference(row, str(row.get("domain") or task.path) if ours else task.path)
            if task.accuracy is not None and not _within(row.get("accuracy"), task.accuracy):
                continue
            side = _side(item, row.get("split") if ours else None)
        except InputError as error:
            if ours:  # of our own making: one that cannot be read was cut off or changed
                raise InputError(f"{task.path}, {place}: {error}") from error
            faults.append(f"{place}: {error}")
            continue
        if side in sides:
            made.setdefault(item.group.key, _narrowed(item if folder is None else _beside(item, folder), task))
    if len(faults) == len(rows):
        raise InputError(f"{task.path} has no preference; {faults[0] if faults else 'it is empty'}")
    if faults:
        print(f"{task.path}: {len(faults)} of {len(rows)} rows left out; first {faults[0]}", file=sys.stderr)
    return apart(list(made.values()), task.without)


def _side(item: Item, said: Any) -> Split:
    """The side that an item says it came from, or that of its prompt where it says nothing."""
    if said is not None and said not in get_args(Split):
        raise InputError(f"split must be {', '.join(get_args(Split))}; got {said!r:.60}")
    return said or split_of(conversation_text(item.group.prompt))


def _beside(item: Item, folder: Path) -> Item:
    """An item whose images are found where its file names them by a path from its own folder."""

    def found(image: Any) -> Any:
        plain = isinstance(image, str) and len(image) < 1024 and ":" not in image
        return str(folder / image) if plain and (folder / image).is_file() else image

    if not shows_images(item):
        return item
    prompt = tuple(
        Message(turn.role, tuple(ImagePart(found(p.image)) if isinstance(p, ImagePart) else p for p in turn.content))
        for turn in item.group.prompt
    )
    return replace(item, group=replace(item.group, prompt=prompt))


def _within(accuracy: Any, bounds: Sequence[float]) -> bool:
    if not isinstance(accuracy, int | float):
        raise InputError(
            f"accuracy must be a number, as recipes.evaluate.judged_traces writes it; got {accuracy!r:.60}"
        )
    return bounds[0] <= accuracy <= bounds[1]


def _narrowed(item: Item, task: TaskConfig) -> Item:
    """An item with no more candidates than the task shows: one of the best, and others that are worse if there are any."""
    gold_G, texts = item.gold_G, item.group.candidates
    if len(texts) <= task.size:
        return item
    draw = random.Random(f"{task.seed} {item.group.key}")
    places = draw.sample(range(len(texts)), len(texts))
    best = next(place for place in places if gold_G[place] == max(gold_G))
    others = sorted((place for place in places if place != best), key=lambda place: gold_G[place] == max(gold_G))
    kept = sorted([best, *others[: task.size - 1]])
    question, ratings = item.group.prompt, [gold_G[place] for place in kept]
    return from_ratings(question, [texts[place] for place in kept], ratings, item.domain, scale=item.scale)


# -- captions ---------------------------------------------------------------------------------------------------------


def _captions(task: TaskConfig, sides: set[Split], split: Split) -> list[Item]:
    """Each picture once; of the training split as often as its count asks for, each time with other wrong captions."""
    assert task.path is not None
    rows = read_captions(task.path, task.categories, task.not_categories)
    mine = sum(split_of(row.caption) in sides for row in rows)
    rounds = -(-task.count // mine) if split == "train" and mine else 1
    return caption_items(
        rows, sides, task.question or WHICH, size=task.size, distractors=task.distractors, rounds=rounds, seed=task.seed
    )
