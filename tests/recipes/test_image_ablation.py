"""The image ablation: a judge that ignores the picture is called so, and one that reads it is not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mrjudge_reward.engines.scripted import ScriptedEngine, shown_candidates
from mrjudge_reward.images import load_picture, opened
from mrjudge_reward.training.tasks import split_of
from mrjudge_reward.types import Request
from recipes.data import judge_data
from recipes.evaluate import image_ablation
from recipes.evaluate.judge import EvaluationRecipe, evaluate, markdown
from tests.support.captions import captioned

BLIND = "the judge does not look at the picture"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> str:
    return captioned(tmp_path_factory.mktemp("captioned"))


def task(file: str, **more: Any) -> dict[str, Any]:
    """All 36 pictures, whatever their split."""
    return {
        "source": "captions", "path": file, "judge": {"format": "choice"}, "both_orders": True, "distractors": "any",
        "held_out": "source", **more,
    }  # fmt: skip


def evaluated(script: Callable[[Request], Any], tasks: dict[str, Any], **more: Any) -> dict[str, Any]:
    recipe = EvaluationRecipe(
        judge={"model": "scripted", "verdict": "logprobs"}, tasks=tasks, resamples=200, **more
    )  # fmt: skip
    report: dict[str, Any] = evaluate(recipe, ScriptedEngine(script))
    return report | {"markdown": markdown(report)}


def sure_of(best: Callable[[Request, dict[str, str]], str]) -> Callable[[Request], dict[str, float]]:
    def script(request: Request) -> dict[str, float]:
        label = best(request, shown_candidates(request))
        return {other: 0.9 if other == label else 0.1 for other in request.labels}

    return script


def looking(file: str) -> Callable[[Request, dict[str, str]], str]:
    """Names the caption of the picture that it is shown; of one that it does not know, the first slot."""
    known = {load_picture(str(path)).key: path.stem for path in Path(file).parent.glob("*.png")}

    def best(request: Request, candidates: dict[str, str]) -> str:
        (image,) = [part.image for turn in request.messages for part in turn.images]
        colour, _, shape = known.get(load_picture(image).key, "no-thing").partition("-")
        return next((label for label, text in candidates.items() if text == f"A {colour} {shape}."), min(candidates))

    return best


def test_a_judge_that_reads_the_picture_is_not_called_blind(file: str, capsys: pytest.CaptureFixture[str]):
    report = evaluated(sure_of(looking(file)), {"pictures": task(file)})
    row = report["tasks"]["pictures"]
    assert row["accuracy"] == (1.0, 1.0, 1.0)
    assert row["blanked"][0] == 0.5, "the first slot, in both orders"
    assert row["swapped"][0] < 0.6
    assert row["seen"][0] == pytest.approx(0.5)
    assert row["seen"][1] > 0.3
    assert BLIND not in report["markdown"]
    assert BLIND not in capsys.readouterr().out


def test_a_judge_that_ignores_the_picture_is_called_blind_however_accurate_it_is(
    file: str, capsys: pytest.CaptureFixture[str]
):
    truth = {"A red circle.", "A green circle.", "A blue circle."}
    for knows in (False, True):  # it guesses by the wording: not at all, or so that it is often right
        script = sure_of(
            lambda _, shown, knows=knows: min(shown, key=lambda k: (shown[k] not in truth) if knows else shown[k])
        )
        report = evaluated(script, {"pictures": task(file)})
        row = report["tasks"]["pictures"]
        assert row["blanked"] == row["swapped"] == row["accuracy"]
        assert row["seen"] == (0.0, 0.0, 0.0)
        assert f"* **pictures**: {BLIND}: its accuracy with it, less that without it, is 0.000" in report["markdown"]
        assert f"pictures: {BLIND}" in capsys.readouterr().out


FITS = """# shows: responses alone
=== system ===
=== user ===
{responses}
Is it in the picture?
=== response ===
[Text]
{text}
[End]
"""


def test_of_captions_graded_alone_pairs_in_the_right_order_are_compared(file: str, tmp_path: Path):
    (tmp_path / "fits.txt").write_text(FITS, "utf-8")
    known = {load_picture(str(path)).key: path.stem for path in Path(file).parent.glob("*.png")}

    def grade(request: Request) -> dict[str, float]:
        (image,) = [part.image for turn in request.messages for part in turn.images]
        colour, _, shape = known.get(load_picture(image).key, "no-thing").partition("-")
        fits = 0.3 if f"A {colour} {shape}." in str(request.messages) else 0.2  # to say no each time is half right
        return {label: fits if label == " yes" else 1 - fits for label in request.labels}

    judge = {
        "format": "sentiment",
        "template": str(tmp_path / "fits.txt"),
        "grades": {" no": 0.0, " yes": 1.0},
    }
    row = evaluated(grade, {"pictures": task(file, judge=judge)})["tasks"]["pictures"]
    assert row["problems"] == 2 * row["items"] == 72
    assert row["order"] == (1.0, 1.0, 1.0)
    assert row["blanked"] == (0.0, 0.0, 0.0), "two grades alike are in no order"
    assert row["swapped"][0] < 0.2
    assert row["seen"] == (1.0, 1.0, 1.0)


def test_the_ablation_can_be_turned_off_and_leaves_tasks_without_pictures_alone(file: str):
    texts = {"source": "film reviews", "judge": {"format": "choice"}, "eval_count": 5}
    script = sure_of(lambda _, shown: min(shown))
    report = evaluated(script, {"pictures": task(file), "texts": texts}, image_ablation=False)
    assert not any({"blanked", "swapped", "seen"} & row.keys() for row in report["tasks"].values())
    report = evaluated(script, {"texts": texts})
    assert not {"blanked", "swapped", "seen"} & report["tasks"]["texts"].keys()
    assert BLIND not in report["markdown"]


def test_a_blanked_picture_is_grey_of_the_same_size_and_a_swapped_one_is_never_its_own(file: str):
    made = judge_data.task_problems(judge_data.TaskConfig(**task(file)), "test")
    keys = [load_picture(image).key for one in made for image in image_ablation.pictures_of(one)]
    for one, other in zip(made, image_ablation.blanked(made), strict=True):
        (image,) = image_ablation.pictures_of(other)
        picture = load_picture(image)
        assert (picture.width, picture.height) == (64, 64)
        assert opened(picture).getcolors() == [(64 * 64, (128, 128, 128))]
        assert (other.slots, other.gold_K, other.item.group.key) == (one.slots, one.gold_K, one.item.group.key)
        assert other.item.group.prompt[0].text == one.item.group.prompt[0].text
    others = [
        load_picture(image).key for one in image_ablation.swapped(made, 0) for image in image_ablation.pictures_of(one)
    ]
    assert all(own != other for own, other in zip(keys, others, strict=True))
    assert others[::2] == others[1::2], "both orders show the same picture"
    assert len(set(others)) > 10
    assert set(others) <= set(keys)
    again = [
        load_picture(image).key for one in image_ablation.swapped(made, 1) for image in image_ablation.pictures_of(one)
    ]
    assert again != others
    same = [one for one in made if one.item.group.key == made[0].item.group.key]
    assert image_ablation.swapped(same, 0) is None, "there is no other picture"


def test_a_picture_that_cannot_be_loaded_fails_in_every_variant(file: str, tmp_path: Path):
    folder = tmp_path / "broken"
    folder.mkdir()
    broken = captioned(folder)
    (folder / "red-circle.png").write_bytes(b"no picture")
    assert split_of("A red circle.") in ("train", "dev", "test")
    recipe = EvaluationRecipe(
        judge={"model": "scripted", "verdict": "logprobs", "max_failed_fraction": 1.0},
        tasks={"pictures": task(broken)}, resamples=50,
    )  # fmt: skip
    report = evaluate(recipe, ScriptedEngine(sure_of(looking(file))))
    row = report["tasks"]["pictures"]
    assert row["failed"] == pytest.approx(1 / 36)
    assert row["accuracy"][0] == pytest.approx(35 / 36)
