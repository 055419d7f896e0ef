"""Warm-up and reinforcement of a small LLaVA on two ranks: both see the pictures of their rows."""

from __future__ import annotations

import json
import os
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mrjudge_reward.prompting.rendering import conversation_text
from mrjudge_reward.training.items import with_images
from mrjudge_reward.training.tasks import split_of
from tests.recipes.test_recipe_configs import launcher
from tests.support import ROOT, vision_setup
from tests.support.small_models import small_tokenizer
from tests.support.two_ranks_pictured import COLOURS
from tests.support.warm_python import run_python, warm_python

pytestmark = pytest.mark.usefixtures("vllm_hidden")


@pytest.fixture(scope="module")
def model(smol_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("model")
    wordings = [path.read_text("utf-8") for path in (ROOT / "mrjudge_reward/prompting/templates").glob("*.txt")]
    return vision_setup.saved(
        vision_setup.llava(small_tokenizer(smol_tokenizer, wordings, out / "words")), out / "llava"
    )


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An item for each colour; the last is of the dev side."""
    folder, rows = tmp_path_factory.mktemp("items"), []
    for colour in COLOURS:
        path = folder / f"{colour}.png"
        Image.new("RGB", (28, 28), colour).save(path)
        side = "dev" if colour == COLOURS[-1] else "train"
        asked = (f"What is in picture {n}?" for n in count(len(rows) * 1000))
        question = next(q for q in asked if split_of(conversation_text(with_images(q, [str(path)]))) == side)
        rows.append({"prompt": question, "images": [str(path)], "candidates": ["a card", "a cup"], "gold": [1, 0]})
    (folder / "items.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder / "items.jsonl"


@pytest.mark.parametrize("name", ["ddp", "zero3"])
def test_both_ranks_see_the_pictures_of_their_rows(name: str, model: str, items: Path, tmp_path: Path):
    ranks = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHON_EXEC": warm_python()}
    done = run_python(
        *launcher(name), "-m", "tests.support.two_ranks_pictured", model, items, tmp_path, env=os.environ | ranks
    )
    assert done.returncode == 0, done.stderr[-4000:]
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1))
    for stage in ("sft", "rl"):
        for rank in (first, second):
            learned, shown = rank[stage]
            assert len(learned) == 4, "two steps of two rows"
            assert {*learned, *shown} <= {*COLOURS[:-1]}
            assert len(shown) == (0 if stage == "sft" else 4)
        assert rank["zero"] == ("3" if name == "zero3" else None)
        assert (tmp_path / stage / "adapter_model.safetensors").is_file()
        assert (tmp_path / stage / "processor_config.json").is_file()
    assert first["sft"][0] != second["sft"][0], "ranks have rows of their own"
    assert first["rl"] == second["rl"], "each rank has one order of an item"
