"""Named public preference sets: rows in each set's columns become items of a task, bad rows are left out by line and field.

The sets, with licence, size and where their columns are known from, stand in ``recipes/data/README.md``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from mrjudge_reward.images import load_picture
from mrjudge_reward.prompting.rendering import conversation_text
from mrjudge_reward.training.items import Item
from mrjudge_reward.training.tasks import split_of
from recipes.common.config import read_config
from recipes.data.judge_data import TaskConfig, items
from tests.support import ROOT

Row = dict[str, Any]
README = (ROOT / "recipes/data/README.md").read_text(encoding="utf-8")


def chat(*texts: str) -> list[Row]:
    return [{"content": text, "role": ("user", "assistant")[n % 2]} for n, text in enumerate(texts)]


def rating(value: str) -> Row:
    return {"Rating": value, "Rationale": "Because."}


def skywork(q: str, a: str, b: str) -> Row:
    return {"chosen": chat(q, a), "rejected": chat(q, b), "source": "magpie_ultra"}


def helpsteer3(q: str, a: str, b: str) -> Row:
    return {
        "domain": "code", "language": "python", "context": chat("Hi.", "Hello.", q), "response1": b, "response2": a,
        "overall_preference": 2,
        "individual_preference": [{"score": 2, "reasoning": "r", "feedback1": "f", "feedback2": "g"}],
    }  # fmt: skip


def ultrafeedback(q: str, a: str, b: str) -> Row:
    def completion(text: str, value: str, fine: float) -> Row:
        aspects = ("helpfulness", "honesty", "instruction_following", "truthfulness")
        return {
            "model": "m", "principle": "honesty", "custom_system_prompt": "s", "response": text, "critique": "c",
            "annotations": {name: rating(value) for name in aspects}, "fine-grained_score": fine, "overall_score": 7.0,
        }  # fmt: skip

    rated = [(b, "2", 2.0), (f"{b} Or so.", "3", 3.0), (a, "5", 5.0), (f"{b} Perhaps.", "2", 2.25)]
    return {
        "source": "sharegpt", "instruction": q, "models": ["m"] * 4, "completions": [completion(*one) for one in rated],
        "correct_answers": ["None"], "incorrect_answers": ["None"],
    }  # fmt: skip


def tulu(q: str, a: str, b: str) -> Row:
    return {"id": "1", "prompt": q, "chosen": chat(q, a), "rejected": chat(q, b), "source": "ai2-adapt-dev/x"}


def olmo(q: str, a: str, b: str) -> Row:
    more = {"chosen_model": "m", "rejected_model": "n", "chosen_rating": 4.75, "rejected_rating": 3.5}
    return tulu(q, a, b) | more


def rlaif_v(q: str, a: str, b: str) -> Row:
    return {
        "ds_name": "RLAIF-V", "image": "1.png", "question": q, "chosen": a, "rejected": b, "origin_dataset": "COCO",
        "origin_split": "{}", "idx": "1", "image_path": "gone.png",
    }  # fmt: skip


def mm_rlhf(q: str, a: str, b: str) -> Row:
    return {
        "prompt": f"<image>\n{q}", "image": "1.png", "chosen": a, "rejected": b, "is_tie": False,
        "chosen_reason": "r", "rejected_reason": "s",
    }  # fmt: skip


def vlfeedback(q: str, a: str, b: str) -> Row:
    names = ("Helpfulness", "Ethical Considerations", "Visual Faithfulness")
    notes = [dict.fromkeys(names, rating(value)) for value in ("2", "5", "3", "1")]
    texts = [b, a, f"{b} Or so.", f"{b} Perhaps."]
    completions = {
        "annotations": notes,
        "model": ["m"] * 4,
        "response": texts,
    }  # as the datasets library has a sequence
    return {"id": "1", "prompt": q, "models": ["m"] * 4, "completions": completions, "img_path": "1.png"}


SETS: Mapping[str, tuple[Callable[[str, str, str], Row], bool]] = {
    "Skywork/Skywork-Reward-Preference-80K-v0.2": (skywork, False),
    "nvidia/HelpSteer3": (helpsteer3, False),
    "openbmb/UltraFeedback": (ultrafeedback, False),
    "allenai/llama-3.1-tulu-3-8b-preference-mixture": (tulu, False),
    "allenai/olmo-2-1124-7b-preference-mix": (olmo, False),
    "openbmb/RLAIF-V-Dataset": (rlaif_v, True),
    "yifanzhang114/MM-RLHF": (mm_rlhf, True),
    "MMInstruction/VLFeedback": (vlfeedback, True),
}
"""Set → a row of it in which the first of two answers is better, and whether it shows pictures."""


def asked(number: int) -> str:
    return f"What is thing number {number}?"


def loaded(folder: Path, rows: list[Row], **settings: Any) -> list[Item]:
    """Items of a file of rows, over all sides."""
    Image.new("RGB", (28, 28), "red").save(folder / "1.png")
    file = folder / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    judge = {"format": "choice", "labels": ["A", "B"]}
    values = {"source": "preferences", "path": str(file), "judge": judge, "size": 4, **settings}
    task = TaskConfig(**values)
    found = [(side, item) for side in ("train", "dev", "test") for item in items(task, side)]
    assert all(split_of(conversation_text(item.group.prompt)) == side for side, item in found)
    return [item for _, item in found]


def test_the_readmes_table_names_the_sets_that_are_tested():
    section = README[README.index("## Preference sets") : README.index("## Synthetic data")]
    rows = [line.split(" | ") for line in section.splitlines() if line.startswith("| `")]
    named = {next(name for name in re.findall(r"`([\w./-]+)`", row[0]) if "/" in name) for row in rows}
    assert named == set(SETS)
    assert all(len(row) == 5 and all(cell.strip(" |") for cell in row) for row in rows), "licence and size of each"
    for row in rows:
        name = next(name for name in SETS if name in row[0])
        assert row[1].startswith("pictures") == SETS[name][1]


@pytest.mark.parametrize("name", SETS)
def test_rows_of_each_set_become_items_with_the_better_answer_best(name: str, tmp_path: Path):
    make, pictured = SETS[name]
    rows = [make(asked(number), f"It is {number}.", f"It is not {number}.") for number in range(12)]
    found = loaded(tmp_path, rows)
    assert len(found) == 12
    for item in found:
        best = item.group.candidates[item.gold_G.index(max(item.gold_G))]
        number = re.search(r"number (\d+)", item.group.prompt[-1].text)
        assert number
        assert best == f"It is {number[1]}."
        images = [part.image for turn in item.group.prompt for part in turn.images]
        assert len(images) == pictured
        assert all(load_picture(image).width == 28 for image in images)
    assert {len(item.gold_G) for item in found} == {4 if make in (ultrafeedback, vlfeedback) else 2}


PAIR = ("Why?", "So.", "Not so.")
BAD: list[tuple[str, Row, str]] = [
    ("Skywork", skywork("Why?", "So.", "So."), "chosen and rejected are the same answer"),
    ("Skywork", skywork("Why?", "So.", " "), "rejected: the answer is empty"),
    ("Skywork", skywork(*PAIR) | {"rejected": chat("How?", "Not so.")}, "no prompt in common"),
    ("Skywork", skywork(*PAIR) | {"chosen": None}, "chosen: missing"),
    ("HelpSteer3", helpsteer3(*PAIR) | {"overall_preference": 0}, "overall_preference: 0 says that both are as good"),
    ("HelpSteer3", helpsteer3(*PAIR) | {"overall_preference": 5}, "overall_preference: must be -3 to 3; got 5"),
    ("HelpSteer3", helpsteer3(*PAIR) | {"response2": None}, "response2: missing"),
    ("UltraFeedback", ultrafeedback(*PAIR) | {"completions": []}, "it has source, instruction"),
    ("UltraFeedback", ultrafeedback(*PAIR) | {"completions": ["So."]}, "completions: must be a list of objects"),
    ("Tulu", tulu(*PAIR) | {"chosen": "So."}, "of chosen and rejected only some begin with the prompt"),
    ("Tulu", tulu(*PAIR) | {"chosen": chat("Why?")}, "chosen"),
    ("OLMo", olmo(*PAIR) | {"chosen_rating": 3.5}, "chosen_rating 3.5 and rejected_rating 3.5 say that both are as good"),
    ("OLMo", olmo(*PAIR) | {"rejected_rating": 5.0}, "rejected is the better one"),
    ("RLAIF-V", rlaif_v("", "So.", "Not so."), "prompt: it is empty"),
    ("MM-RLHF", mm_rlhf(*PAIR) | {"is_tie": True}, "is_tie: says that both are as good"),
    ("MM-RLHF", {**mm_rlhf(*PAIR), "image": None, "video": "1.mp4"}, "video: a judge is shown texts and images, no video"),
    ("VLFeedback", vlfeedback(*PAIR) | {"completions": {"response": ["So."], "model": []}}, "completions: must be a list"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "row", "fault"), BAD)
def test_a_bad_row_is_left_out_with_its_line_and_field(
    name: str, row: Row, fault: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    good = tulu(asked(1), "It is.", "It is not.")
    assert len(loaded(tmp_path, [good, row])) == 1
    said = capsys.readouterr().err
    assert "1 of 2 rows left out; first line 2: " in said, name
    assert fault in said, name


def test_ratings_that_are_missing_say_nothing(tmp_path: Path):
    rows = [olmo(asked(n), "It is.", "It is not.") | {"chosen_rating": None, "rejected_rating": None} for n in range(3)]
    assert len(loaded(tmp_path, rows)) == 3


def test_the_readmes_task_is_one():
    block = re.search(r"```yaml\n(tasks:.*?)```", README, re.DOTALL)
    assert block
    for values in yaml.safe_load(block[1])["tasks"].values():
        assert TaskConfig(**values).path in SETS


def test_sets_that_configs_name_are_in_the_table():
    configs = [
        read_config(str(path)) for path in (ROOT / "recipes").rglob("*.yaml") if "tasks:" in path.read_text("utf-8")
    ]
    tasks = [task for config in configs for task in config.get("tasks", {}).values() if isinstance(task, dict)]
    named = {task["path"] for task in tasks if task.get("source") == "preferences"}
    assert len(named) >= 4
    assert named <= set(SETS)
