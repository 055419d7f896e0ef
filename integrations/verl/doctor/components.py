"""Whether verl's GDPO finds the rewards that it is to normalise each by itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mrjudge_reward.cli.doctor import Check
from mrjudge_reward.integrations.verl.settings import VerlSettings
from mrjudge_reward.judge import JudgeConfig
from mrjudge_reward.streaming.scores import INFO_KEYS, criterion_keys

_MAY_BE_NAN = ("judge_score", "judge_position_consistency", "rule_score")


def components(config: Mapping[str, Any], settings: VerlSettings, judge: JudgeConfig) -> Iterator[Check]:
    """Check the keys and weights of GDPO; nothing of other estimators.

    Args:
        config: of the run, as plain containers.
        settings: its ``mrjudge`` section.
        judge: whose rubric names the criteria.
    """
    algorithm = config["algorithm"]
    if algorithm["adv_estimator"] != "gdpo":
        return
    rewards = ["judge_reward", *criterion_keys(judge).values(), *["rule_reward"] * bool(settings.rule_weight)]
    keys, weights = algorithm.get("gdpo_reward_keys") or [], algorithm.get("gdpo_reward_weights")
    of_rule = () if settings.unruled() else settings.rule_info or ()  # None on rows that it is not asked about
    unknown = [key for key in keys if key not in (*rewards, *INFO_KEYS, *_MAY_BE_NAN, *of_rule)]
    faults = []
    if config["trainer"].get("use_v1"):
        faults.append("the V1 trainer gives gdpo no components, and ends in its first step: set trainer.use_v1=False")
    if not keys:
        faults.append(f"algorithm.gdpo_reward_keys is empty: name some of {', '.join(rewards)}")
    if unknown and settings.factory is None:
        faults.append(
            f"algorithm.gdpo_reward_keys: not every row has {', '.join(unknown)}; its rewards are {', '.join(rewards)}"
        )
    faults += [
        f"algorithm.gdpo_reward_keys: {key} may be NaN, and so would a whole batch"
        for key in keys
        if key in _MAY_BE_NAN
    ]
    if weights is not None and keys and len(weights) != len(keys):
        faults.append(f"algorithm.gdpo_reward_weights has {len(weights)} weights for {len(keys)} keys")
    yield Check("components", "failed" if faults else "ok", "; ".join(faults) or ", ".join(keys), {"keys": list(keys)})
