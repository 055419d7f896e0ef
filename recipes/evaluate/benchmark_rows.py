"""Rows of public benchmarks of judges as cases: a group, which of its candidates are right, and its subset.

A row that is not in the benchmark's own columns is refused with its line and field; if its columns are those of another
benchmark, that is named. A case's key is the row's id, or its line where there is none; an id that stands twice is said.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mrjudge_reward import images
from mrjudge_reward.errors import InputError
from mrjudge_reward.json_lines import placed
from mrjudge_reward.messages import as_messages, placed_images
from mrjudge_reward.training.items import with_images
from mrjudge_reward.types import Group
from recipes.common.rows import placed_rows


@dataclass(frozen=True)
class Case:
    """A question of a benchmark: a group whose key names it, the indices of its right candidates, and its subset."""

    group: Group
    right: frozenset[int]
    subset: str


COLUMNS: Mapping[str, tuple[str, ...]] = {
    "rewardbench": ("prompt", "chosen", "rejected", "subset"),
    "rewardbench2": ("prompt", "chosen", "rejected", "subset"),
    "judgebench": ("source", "question", "response_A", "response_B", "label"),
    "vl_rewardbench": ("query", "response", "image", "human_ranking"),
    "multimodal_rewardbench": ("Text", "Image", "Output1", "Output2", "Better", "Category"),
    "rm_bench": ("prompt", "chosen", "rejected", "domain"),
}
"""Benchmark → columns without which its rows cannot be read."""

_SECTIONS = {
    "Chat": r"alpacaeval-.*|mt-bench-(easy|med)",
    "Chat Hard": r"mt-bench-hard|llmbar-.*",
    "Safety": r"refusals-.*|xstest-.*|donotanswer",
    "Reasoning": r"math-prm|hep-.*",
}
MATH_WEIGHT = 984 / 447
"""Of a case of RewardBench's math-prm: all 447 count as much as the 984 of code, as reward-bench weighs them."""


def section_of(subset: str) -> str:
    """The section of RewardBench that a subset is in; one of another set is its own."""
    return next((section for section, pattern in _SECTIONS.items() if re.fullmatch(pattern, subset)), subset)


# -- loaders ----------------------------------------------------------------------------------------------------------


def load_rewardbench(path: str | None = None, split: str = "filtered") -> list[Case]:
    """RewardBench 1: the chosen answer against the rejected one.

    Args:
        path: a file with the columns ``id, prompt, chosen, rejected, subset``; None for the hub.
        split: of the hub data set.

    Raises:
        InputError: naming the line and the field.
    """
    cases = []
    for row in _rows("rewardbench", path or "allenai/reward-bench", split, "id"):
        with placed(row.where):
            texts = [_one(row, field) for field in ("chosen", "rejected")]
            cases.append(row.case(row["prompt"], texts, [0], row.text("subset")))
    return cases


def load_rewardbench2(path: str | None = None, split: str = "test") -> list[Case]:
    """Best of 4: the first chosen answer against three rejected ones. Ties: all answers, ``num_correct`` of them right.

    Args:
        path: a file with the columns ``id, prompt, chosen, rejected, num_correct, subset``; None for the hub.
        split: of the hub data set.

    Raises:
        InputError: naming the line and the field.
    """
    cases = []
    for row in _rows("rewardbench2", path or "allenai/reward-bench-2", split, "id"):
        with placed(row.where):
            one = "one text is how rewardbench has it, the first edition: name that benchmark"
            chosen, rejected, subset = row.texts("chosen", one), row.texts("rejected", one), row.text("subset")
            if subset.lower() == "ties":
                texts, right = [*chosen, *rejected], row.get("num_correct") or len(chosen)
                if right not in range(1, len(texts)):
                    raise InputError(
                        f"num_correct: must be 1 to {len(texts) - 1}, of {len(texts)} answers; got {right!r}"
                    )
                if row.twice or not re.fullmatch(r"(ref|tied):.+", row.name):
                    raise InputError(f"id: of the Ties subset it is ref:N or tied:N, once each; got {row.get('id')!r}")
            else:
                texts, right = [chosen[0], *rejected[:3]], 1
            cases.append(row.case(row["prompt"], texts, range(int(right)), subset))
    return cases


def load_judgebench(path: str | None = None, split: str = "gpt") -> list[Case]:
    """Pairs of which one is objectively right; the label is ``A>B`` or ``B>A``.

    Args:
        path: a file with the columns ``pair_id, source, question, response_A, response_B, label``; None for the hub.
        split: of the hub data set: whose answers, ``gpt`` or ``claude``.

    Raises:
        InputError: naming the line and the field.
    """
    cases = []
    for row in _rows("judgebench", path or "ScalerLab/JudgeBench", split, "pair_id"):
        with placed(row.where):
            right = row.choice("label", ("A>B", "B>A"))
            source = row.text("source")
            subset = "mmlu-pro" if source.startswith("mmlu-pro") else source
            texts = [row.text("response_A"), row.text("response_B")]
            cases.append(row.case(row["question"], texts, [right], subset))
    return cases


_VL_GROUPS = {
    "RLAIF": "hallucination", "RLHF": "hallucination", "hallucination": "hallucination",
    "mathverse": "reasoning", "mmmu": "reasoning",
}  # fmt: skip
"""Beginning of an id, up to its first ``_`` or ``-`` → group; all others are general (``cal.py``)."""


def load_vl_rewardbench(path: str | None = None, split: str = "test") -> list[Case]:
    """Pairs of answers to a question about an image; of ``human_ranking`` the least rank is the best: [0, 1], or [1, 2].

    Args:
        path: a file with the columns ``id, query, response, image, human_ranking``; None for the hub.
        split: of the hub data set.

    Raises:
        InputError: naming the line and the field.
    """
    cases = []
    for row in _rows("vl_rewardbench", path or "MMInstruction/VL-RewardBench", split, "id"):
        with placed(row.where):
            texts, ranks = row.texts("response"), row["human_ranking"]
            whole = isinstance(ranks, list | tuple) and all(type(rank) in (int, float) for rank in ranks)
            if not whole or len(ranks) != len(texts) or len(set(ranks)) < len(ranks):
                raise InputError(
                    f"human_ranking: must be {len(texts)} different ranks, one an answer; got {ranks!r:.60}"
                )
            query = row.text("query").replace("<image>\n", "").replace("<image>", "")
            images.given_as(row["image"])  # raises if it is none
            start = row.name.replace("-", "_").partition("_")[0]
            right, subset = list(ranks).index(min(ranks)), _VL_GROUPS.get(start, "general")
            cases.append(row.case(with_images(query, [row["image"]]), texts, [right], subset))
    return cases


def load_multimodal_rewardbench(path: str | None = None, split: str = "") -> list[Case]:
    """Pairs of answers to a question about an image; ``Better`` is ``Output1`` or ``Output2``.

    Args:
        path: ``all_data.json`` as the benchmark's download script leaves it, with ``images/`` beside it.
        split: there is none.

    Raises:
        InputError: without a path: this benchmark is in no hub; else naming the line and the field.
    """
    if path is None:
        raise InputError("multimodal_rewardbench needs --path to the all_data.json that its own download script makes")
    cases = []
    for row in _rows("multimodal_rewardbench", path, split, "ID"):
        with placed(row.where):
            subset, name = row.text("Category"), row.name.lower()
            if subset == "safety":
                subset = "safety/bias" if name.startswith("pairs") else "safety/toxicity"
            elif subset == "reasoning":
                subset = "reasoning/math" if name.startswith("math") else "reasoning/coding"
            right = row.choice("Better", ("Output1", "Output2"))
            prompt = with_images(row.text("Text"), [row.text("Image")])
            cases.append(row.case(prompt, [row.text("Output1"), row.text("Output2")], [right], subset))
    return cases


def load_rm_bench(path: str | None = None, split: str = "train") -> list[Case]:
    """RM-Bench: the right answer in three styles, plain to fancy, against the wrong one in the same, nine pairs a row.

    A pair is hard where the wrong answer has the fancier style, easy where the right one has, else normal.

    Args:
        path: a file with the columns ``id, prompt, chosen, rejected, domain``; None for the hub.
        split: of the hub data set.

    Raises:
        InputError: naming the line and the field.
    """
    cases = []
    for row in _rows("rm_bench", path or "THU-KEG/RM-Bench", split, "id"):
        with placed(row.where):
            chosen, rejected = row.texts("chosen"), row.texts("rejected")
            if len(chosen) != 3 or len(rejected) != 3:
                raise InputError(f"chosen, rejected: must be 3 styles each; got {len(chosen)} and {len(rejected)}")
            domain = row.text("domain").partition("-")[0]  # safety-refuse and safety-response are one
            for i, good in enumerate(chosen):
                for j, bad in enumerate(rejected):
                    level = "hard" if i < j else "easy" if i > j else "normal"
                    cases.append(row.case(row["prompt"], [good, bad], [0], f"{domain}/{level}", f"/{i}{j}"))
    return cases


# -- rows -------------------------------------------------------------------------------------------------------------


class _Row(dict[str, Any]):
    """A row's columns, where it stands, and its name: its id, or its place where it has none.

    ``twice`` is whether the id is also that of an earlier row; the key then holds the place too.
    """

    def __init__(
        self, columns: Mapping[str, Any], benchmark: str, path: str, place: str, name: str, twice: bool
    ) -> None:
        super().__init__(columns)
        self.where, self.name, self.twice, self._folder = f"{path}, {place}", name, twice, Path(path).parent
        self._key = f"{benchmark}/{f'{name}/{place}' if twice else name}"

    def case(self, prompt: Any, texts: Sequence[str], right: Sequence[int], subset: str, end: str = "") -> Case:
        if not prompt or not isinstance(prompt, str | list | tuple):
            raise InputError(f"the question must be text or messages; got {prompt!r:.60}")
        turns = placed_images(as_messages(prompt, unshown=True), self._folder)
        return Case(Group.of(turns, texts, self._key + end), frozenset(right), subset)

    def text(self, field: str) -> str:
        if not isinstance(self[field], str):
            raise InputError(f"{field}: must be text; got {self[field]!r:.60}")
        return str(self[field])

    def texts(self, field: str, hint: str = "") -> list[str]:
        found = self[field]
        if not isinstance(found, list | tuple) or not found or not all(isinstance(text, str) for text in found):
            said = hint if hint and isinstance(found, str) else ""
            raise InputError(f"{field}: must be a list of texts; got {found!r:.60}{f' ({said})' if said else ''}")
        return list(found)

    def choice(self, field: str, options: Sequence[str]) -> int:
        if self[field] not in options:
            raise InputError(f"{field}: must be {' or '.join(options)}; got {self[field]!r:.60}")
        return options.index(self[field])


def _one(row: _Row, field: str) -> str:
    """A text, or the only one of a list."""
    found = row[field]
    if isinstance(found, list | tuple) and len(found) != 1:
        raise InputError(f"{field}: must be one text; got {len(found)} (lists are how rewardbench2 has it: name that)")
    return row.text(field) if not isinstance(found, list | tuple) else row.texts(field)[0]


def _rows(benchmark: str, path: str, split: str, id_: str) -> Iterator[_Row]:
    rows = placed_rows(path, split)
    if not rows:
        raise InputError(f"{path} is empty")
    seen: Counter[str] = Counter()
    for place, row in rows:
        if missing := [name for name in COLUMNS[benchmark] if row.get(name) is None]:
            others = [name for name, needed in COLUMNS.items() if all(row.get(one) is not None for one in needed)]
            hint = f" (its columns are those of {' and '.join(others)})" if others else ""
            raise InputError(f"{path}, {place}: {benchmark} needs {', '.join(missing)}{hint}")
        name = place if row.get(id_) in (None, "") else str(row[id_])
        seen[name] += 1
        yield _Row(row, benchmark, path, place, name, seen[name] > 1)
    if twice := [name for name, count in seen.items() if count > 1]:
        print(f"{path}: {len(twice)} ids stand more than once, first {twice[0]!r}; each row is a case", file=sys.stderr)
