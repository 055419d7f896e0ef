"""What a run writes into its folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from mrjudge_reward.errors import ConfigError
from recipes.common.resumable import not_overwritten
from recipes.data.curate_traces import CurationRecipe, curate
from recipes.data.prune_rubrics import PruneRecipe, prune
from recipes.data.synthesis_recipe import SynthesisRecipe
from recipes.data.synthesize import synthesize
from recipes.data.write_rubrics import RubricRecipe, write_rubrics
from recipes.policy.dpo_pairs import PairsRecipe, build

WRITER = {"engine": {"model": "scripted"}}
JUDGE = {"model": "scripted"}


@pytest.mark.parametrize(
    ("source", "refused"),
    [
        ("out/rubrics.jsonl", True),
        ("out/../out/rubrics.jsonl", True),
        ("out/./rubrics.jsonl", True),
        ("link/rubrics.jsonl", True),
        ("linked.jsonl", True),
        ("out/report.json", True),
        ("rubrics.jsonl", False),
        ("out/pairs.jsonl", False),
        ("out/rubrics.jsonl.gz", False),
        ("out", False),
        ("openai/gsm8k", False),  # of the hub
        (None, False),
    ],
)
def test_what_a_run_reads_it_does_not_write(
    tmp_path: Path, source: str | None, refused: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    out = Path("out")
    out.mkdir()
    Path("link").symlink_to(out)
    Path("linked.jsonl").symlink_to(out / "rubrics.jsonl")
    if refused:
        with pytest.raises(ConfigError, match="would be overwritten"):
            not_overwritten(out, ["rubrics.jsonl"], None, source)
    else:
        not_overwritten(out, ["rubrics.jsonl"], None, source)


def test_no_recipe_for_data_overwrites_its_source(tmp_path: Path):
    files = {
        name: tmp_path / name
        for name in ("rubrics.jsonl", "rubric.yaml", "items.jsonl", "examples.jsonl", "pairs.jsonl")
    }
    at = {name: str(path) for name, path in files.items()}
    for path in files.values():
        path.write_text("as it was")
    runs = [
        lambda: write_rubrics(RubricRecipe(source=at["rubrics.jsonl"], writer=WRITER), tmp_path),
        lambda: prune(PruneRecipe(rubrics=at["rubrics.jsonl"], answers="a.jsonl", judge=JUDGE), tmp_path),
        lambda: prune(PruneRecipe(rubric=at["rubric.yaml"], answers="a.jsonl", judge=JUDGE), tmp_path),
        lambda: prune(PruneRecipe(rubrics="r.jsonl", answers=at["rubrics.jsonl"], judge=JUDGE), tmp_path),
        lambda: synthesize(SynthesisRecipe(source=at["items.jsonl"], writer=WRITER, reasoning=False), tmp_path),
        lambda: synthesize(SynthesisRecipe(source=at["examples.jsonl"], writer=WRITER, reasoning=False), tmp_path),
        lambda: build(PairsRecipe(candidates=at["pairs.jsonl"], judge=JUDGE), tmp_path),
        lambda: curate(CurationRecipe(source=at["examples.jsonl"]), tmp_path),
    ]
    for run in runs:
        with pytest.raises(ConfigError, match="would be overwritten"):
            run()
    assert {path.read_text() for path in files.values()} == {"as it was"}
    assert {path.name for path in tmp_path.iterdir()} == set(files)
