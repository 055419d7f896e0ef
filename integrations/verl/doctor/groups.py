"""Whether groups in a verl run can fill: their sizes, in training and in validation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mrjudge_reward.cli.doctor import Check
from mrjudge_reward.errors import require
from mrjudge_reward.integrations.verl.settings import SECTION, VALIDATION_SPLITS, VerlSettings, is_colocated
from mrjudge_reward.judge import JudgeConfig

AGENT_LOOP_MANAGER = "mrjudge_reward.integrations.verl.agent_loop.GroupAgentLoopManager"
"""For the V1 trainer; that for V0 has V0 at its end."""

_AGENT_KEY = "actor_rollout_ref.rollout.agent.agent_loop_manager_class"
_GROUP_ESTIMATORS = (
    "grpo",
    "grpo_passk",
    "grpo_vectorized",
    "gdpo",
    "rloo",
    "rloo_vectorized",
    "opo",
    "gpg",
    "reinforce_plus_plus_baseline",
)
"""Advantage estimators whose baseline is the group."""


def groups(config: Mapping[str, Any], settings: VerlSettings, judge: JudgeConfig) -> Iterator[Check]:
    """Check the sizes of groups.

    Args:
        config: of the run, as plain containers.
        settings: its ``mrjudge`` section.
        judge: whether it compares or grades decides what a lone completion means.
    """
    rollout = config["actor_rollout_ref"]["rollout"]
    compares = judge.judge_format.max_slots > 1
    lonely = compares and settings.anchor_field is None
    size, estimator = rollout["n"], config["algorithm"]["adv_estimator"]
    data = {"n": size, "group_size": settings.group_size, "compares": compares}
    if settings.group_size != size:
        yield Check("group size", "failed", _mismatch(f"{SECTION}.group_size", settings.group_size, "n", size), data)
    elif size < 2 and lonely:
        detail = (
            f"actor_rollout_ref.rollout.n={size}: the judge compares, and a lone completion has nothing to be compared "
            f"with. Set n to 4 or more, let the judge grade alone ({SECTION}.judge.format=score), or give it anchors "
            f"({SECTION}.anchor_field)"
        )
        yield Check("group size", "failed", detail, data)
    elif size < 2 and estimator in _GROUP_ESTIMATORS:
        detail = (
            f"algorithm.adv_estimator={estimator} with actor_rollout_ref.rollout.n={size}: a group of one is its own "
            "baseline; raise n"
        )
        yield Check("group size", "failed", detail, data)
    else:
        yield Check("group size", "ok", f"{size} completions per prompt, {'compared' if compares else 'graded'}", data)
    if estimator == "gae":
        yield _critic(judge, settings)
    yield from _agent_loop(config)
    trainer = config["trainer"]
    if trainer.get("val_before_train") or trainer.get("val_only") or (trainer.get("test_freq") or 0) > 0:
        yield from _validation(config, settings, lonely)
    else:
        yield Check("validation", "ok", "none in this run")


def _critic(judge: JudgeConfig, settings: VerlSettings) -> Check:
    """A critic learns what a prompt's completions are rewarded with on average."""
    rating = judge.judge_rating.name
    if settings.anchor_field is not None:
        return Check("critic", "ok", "rewards relative to anchors have a level that it can learn", {"rating": rating})
    if judge.judge_rating.neutral is None and not judge.centre:
        return Check("critic", "ok", f"rating {rating}: rewards have a level that it can learn", {"rating": rating})
    why = "rewards are centred in each group" if judge.centre else f"rating {rating} has the same mean in every group"
    detail = (
        f"{why}, so that the critic learns a constant, and does nothing for the advantages. Let the judge grade "
        f"({SECTION}.judge: {{format: score, rating: mean_score}}, centre not set), compare with anchors "
        f"({SECTION}.anchor_field), or use an estimator with the group as its baseline (grpo)"
    )
    return Check("critic", "note", detail, {"rating": rating})


def _mismatch(key: str, given: int | None, name: str, size: int) -> str:
    outcome = (
        "no group ever fills, and each is judged only at its deadline"
        if (given or 0) > size
        else "groups are judged in parts"
    )
    return (
        f"{key}={given}, but verl draws actor_rollout_ref.rollout.{name}={size} completions per prompt: {outcome}. "
        f"Remove {key}"
    )


def _agent_loop(config: Mapping[str, Any]) -> Iterator[Check]:
    given, wanted = _agent_loop_manager(config), _wanted_agent_loop_manager(config)
    if given.startswith(AGENT_LOOP_MANAGER) and given != wanted:
        detail = f"{_AGENT_KEY}={given} is for the other trainer: with this trainer.use_v1 it is {wanted}"
        yield Check("agent loop", "failed", detail)
    if VerlSettings.tells_no_turns(config):
        detail = (
            "sessions have several turns, and verl does not tell a reward which of their tokens the policy wrote: set "
            f"{_AGENT_KEY}={wanted}"
        )
        yield Check("agent loop", "failed", detail)


def _agent_loop_manager(config: Mapping[str, Any]) -> str:
    agent = config["actor_rollout_ref"]["rollout"].get("agent") or {}
    return str(agent.get("agent_loop_manager_class") or "")


def _wanted_agent_loop_manager(config: Mapping[str, Any]) -> str:
    return AGENT_LOOP_MANAGER if config["trainer"].get("use_v1") else f"{AGENT_LOOP_MANAGER}V0"


def _validation(config: Mapping[str, Any], settings: VerlSettings, lonely: bool) -> Iterator[Check]:
    rollout = config["actor_rollout_ref"]["rollout"]
    train, size, given = rollout["n"], rollout["val_kwargs"]["n"], settings.validation_group_size
    data = {"n": train, "validation_n": size}
    if given != size:
        yield Check(
            "validation", "failed", _mismatch(f"{SECTION}.validation_group_size", given, "val_kwargs.n", size), data
        )
    elif size < 2 and lonely:
        detail = (
            f"actor_rollout_ref.rollout.val_kwargs.n={size}: the judge compares, so every validation reward will be "
            "neutral. Set it to 2 or more with do_sample=True, or leave validation out (trainer.val_before_train=False, "
            "trainer.test_freq=-1)"
        )
        yield Check("validation", "note", detail, data)
    elif size > 1 and not rollout["val_kwargs"]["do_sample"]:
        detail = (
            f"actor_rollout_ref.rollout.val_kwargs.n={size} with do_sample=False: all completions of a prompt are the "
            "same and tie; set do_sample=True"
        )
        yield Check("validation", "note", detail, data)
    else:
        yield Check("validation", "ok", f"{size} completions per prompt", data)
    if train != size and not is_colocated(config):
        yield _told_apart(config, train, size)


def _told_apart(config: Mapping[str, Any], train: int, size: int) -> Check:
    """Nothing that verl passes with a sample says whether it is from training or from validation."""
    name = "validation told apart"
    manager = _wanted_agent_loop_manager(config)
    if _agent_loop_manager(config) == manager:
        return Check(name, "ok", "by the agent-loop manager")
    found = {key: _splits(config["data"].get(f"{key}_files")) for key in ("train", "val")}
    shown = {key: sorted(map(str, values)) for key, values in found.items() if values is not None}
    wrong = []
    if found["train"] is not None and found["train"] & VALIDATION_SPLITS:
        wrong.append("train")
    if found["val"] is not None and not found["val"] <= VALIDATION_SPLITS:
        wrong.append("val")
    if not wrong and len(shown) == 2:
        return Check(name, "ok", "by extra_info.split of the dataset", shown)
    outcome = f"groups of {size} wait for {train} members until the deadline"
    why = (
        f"training has rollout.n={train} completions per prompt and validation val_kwargs.n={size}, and verl does not say "
        f"which a sample is from; a sample that does not tell counts as training, and "
        f"{outcome if size < train else 'validation groups are judged in parts'}. Set +{_AGENT_KEY}={manager}, or have "
        "extra_info.split of each validation row say val, or make both sizes equal"
    )
    seen = "; ".join(f"extra_info.split of data.{key}_files is {', '.join(shown[key])}" for key in wrong)
    return Check(name, "failed" if wrong else "note", f"{why} ({seen or 'the dataset cannot be read here'})", shown)


def _splits(files: str | Sequence[str] | None) -> set[str | None] | None:
    """``extra_info.split`` in the first row of each Parquet file; None if a file cannot be read here."""
    arrow, parquet = require("pyarrow", extra="verl"), require("pyarrow.parquet", extra="verl")
    found: set[str | None] = set()
    for name in [files] if isinstance(files, str) else files or ():
        path = Path(name).expanduser()
        try:
            with parquet.ParquetFile(path) as file:
                batch = next(file.iter_batches(1, columns=["extra_info"]), None)
        except (OSError, arrow.ArrowException):
            return None
        rows = batch.to_pylist() if batch is not None else []
        info = rows[0].get("extra_info") if rows else None
        found.add(info.get("split") if isinstance(info, dict) else None)
    return found or None
