"""Run on two ranks by test_two_ranks_pictured.py: warm-up and reinforcement of a small LLaVA on items with pictures.

Usage: LAUNCHER -m tests.support.two_ranks_pictured MODEL_DIR ITEMS OUT_DIR

Each rank writes down the colours of the pictures that its vision tower was shown.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from transformers import AutoProcessor, CLIPVisionModel

from recipes.judge import train_rl, train_sft
from tests.support.seen_pictures import Seen

COLOURS = ["red", "lime", "blue", "yellow", "cyan", "magenta", "black", "orange"]
CHOICE = {"format": "choice", "labels": ["A", "B"]}


def main(model: str, items: str, out: Path) -> None:
    seen = Seen(AutoProcessor.from_pretrained(model), COLOURS)
    CLIPVisionModel.forward = seen.watching(CLIPVisionModel.forward)
    tasks: dict[str, Any] = {"cards": {"source": "items", "path": items, "judge": CHOICE, "both_orders": True}}
    common = {
        "max_steps": 2, "use_cpu": True, "bf16": False, "gradient_checkpointing": False, "save_strategy": "no",
        "logging_steps": 1, "learning_rate": 1e-3, "warmup_steps": 0,
    }  # fmt: skip
    lora = {"r": 2, "target_modules": r".*language_model.*\.(q_proj|v_proj)"}
    sft = {**common, "output_dir": str(out / "sft"), "per_device_train_batch_size": 2, "max_length": 2048}
    rl = {
        **common, "output_dir": str(out / "rl"), "per_device_train_batch_size": 2, "num_generations": 2,
        "max_completion_length": 3,
    }  # fmt: skip
    found: dict[str, Any] = {"zero": os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE")}
    train_sft.train(train_sft.SFTRecipe(model=model, tasks=tasks, lora=lora, training=sft))
    found["sft"] = seen.since()
    train_rl.train(train_rl.RLRecipe(model=model, adapter=str(out / "sft"), tasks=tasks, training=rl))
    found["rl"] = seen.since()
    (out / f"rank{os.environ['RANK']}.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
