"""Recipes run: a few steps of each, on real data."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.usefixtures("smol_path")
@pytest.mark.parametrize("judge_format", ["sentiment", "choice"])
def test_the_demo_trains_and_leaves_a_log_and_an_adapter(judge_format: str, tmp_path: Path) -> None:
    command = [
        sys.executable, str(ROOT / "recipes" / "demo.py"), "--steps", "2", "--num-generations", "4",
        "--prompts-per-step", "1", "--out", str(tmp_path), "--format", judge_format,
    ]  # fmt: skip
    done = subprocess.run(
        command, env=os.environ | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    assert all(row["failed"] == 0 and row["spread"] > 0 for row in rows)
    assert all(row["generate_s"] > 0 and row["judge_s"] > 0 and row["update_s"] > 0 for row in rows)
    assert all(0 <= row["consistency"] <= 1 for row in rows)
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    assert re.search(r"before .*\n +after .*\n +verdict \[#|not one completion changed", done.stdout)
    assert re.search(r"prefers 'after' in \d+ of \d+", done.stdout)


def test_reviews_are_read_whole_with_their_ratings() -> None:
    sys.path.insert(0, str(ROOT / "recipes"))
    try:
        from reviews import load_reviews, openings
    finally:
        sys.path.pop(0)
    reviews = load_reviews()
    assert len(reviews) == 10605
    assert all(review.text and -4 <= review.rating <= 4 for review in reviews)
    prompts = openings()
    assert len(prompts) == len(set(prompts)) > 8000
    assert all(len(prompt.split()) == 6 for prompt in prompts)
