"""Named in ``VERL_USE_EXTERNAL_MODULES``: what verl's trainer makes of GDPO's components, a line a row, in the file that
``MRJUDGE_TEST_ADVANTAGES`` names."""

from __future__ import annotations

import json
import os
from types import ModuleType
from typing import Any

from cpu_platform import AfterImport


def _recorded(core_algos: ModuleType) -> None:
    estimate = core_algos.ADV_ESTIMATOR_REGISTRY["gdpo"]

    def estimate_and_record(**given: Any) -> Any:
        advantages, returns = estimate(**given)
        parts = zip(*(given["non_tensor_batch"][key] for key in given["config"].gdpo_reward_keys), strict=True)
        masks = given["response_mask"].bool()
        with open(os.environ["MRJUDGE_TEST_ADVANTAGES"], "a", encoding="utf-8") as file:
            for group, values, row, mask in zip(given["index"], parts, advantages, masks, strict=True):
                line = {"group": group, "parts": list(map(float, values)), "advantages": row[mask].tolist()}
                file.write(json.dumps(line) + "\n")
        return advantages, returns

    core_algos.ADV_ESTIMATOR_REGISTRY["gdpo"] = estimate_and_record


AfterImport("verl.trainer.ppo.core_algos", _recorded)
