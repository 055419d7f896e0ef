"""What ``train_side_by_side.py`` leaves to other commands: traces, reinforcement that generates, verdicts that are written.

Each runs in a process of its own, because an engine and a trainer of the same process would not give its memory back, and
is not run again where its result is there.
"""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml


def make_traces(asking: Path, changes: Sequence[str], model: str, curation: Mapping[str, Any], out: Path) -> None:
    """Let the base reason about training items, and keep what is right of it, in ``kept/examples.jsonl``."""
    if (out / "kept" / "examples.jsonl").is_file():
        return
    if not (out / "judged" / "traces.jsonl").is_file():
        own = [f"judge.model={model}", f"judge.cache={out / 'judged' / 'replies.sqlite'}"]
        run("recipes.evaluate.judged_traces", asking, [*changes, *own], "--out", out / "judged")
    source = out / "judged" / "traces.jsonl"
    recipe = kept(out / "curation.yaml", {**curation, "mode": "curate", "source": str(source)})
    run("recipes.data.synthesize", recipe, [], "--out", out / "kept")


def train_alone(settings: Mapping[str, Any], lora: Mapping[str, Any], start: Path | None, out: Path) -> None:
    """Reinforce a judge by ``judge/train_rl.py``, from the adapter of another run or a fresh one."""
    begun = {"adapter": str(start), "lora": None} if start else {"adapter": None, "lora": dict(lora)}
    training = {**settings["training"], "output_dir": str(out)}
    run("recipes.judge.train_rl", kept(out / "run.yaml", {**settings, **begun, "training": training}), [])


def write(evaluation: Path, changes: Sequence[str], model: str, adapter: Path | None, out: Path) -> None:
    """Measure a judge by what it writes; replies to whole tasks are kept, so that an interrupted call goes on."""
    if (out / "report.json").is_file():
        return
    out.mkdir(parents=True, exist_ok=True)
    own = [f"judge.model={model}", f"judge.cache={out / 'replies.sqlite'}"]
    own += [] if adapter is None else [f"judge.adapter={adapter}"]
    run("recipes.evaluate.judge", evaluation, [*changes, *own], "--out", out)


def kept(file: Path, settings: Mapping[str, Any]) -> Path:
    """A config, as the file that a command reads."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(dict(settings)), encoding="utf-8")
    return file


def run(module: str, config: Path, changes: Sequence[str], *more: object) -> None:
    """Run a recipe; what it fails of stands above."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()  # for the process that follows
    overrides = [part for change in changes for part in ("--set", change)]
    subprocess.run([sys.executable, "-m", module, str(config), *overrides, *map(str, more)], check=True)
