"""``mrjudge doctor --verl CONFIG``: what would go wrong in a verl run, said before it starts.

A reward manager that is never called, a group that never fills, a judge that no reward worker can reach: verl starts
all of these without a word, and the run is wrong or waits. ``CONFIG`` is a file that verl's own loader composes, as in
``recipes/verl/``, or a resolved dump of one. No model is loaded and no Ray cluster is started; one that runs is asked.

Read in the source of verl 0.9.1; what cannot be known before the run is a note.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from mrjudge_reward.cli.doctor import Check, examine
from mrjudge_reward.errors import ConfigError, require
from mrjudge_reward.integrations.verl.settings import SECTION, VerlSettings, is_colocated, served_judge
from mrjudge_reward.judge import JudgeConfig

from .capacity import capacity
from .components import components
from .groups import groups
from .load import load_verl_config
from .nodes import nodes
from .versions import installed

MANAGER = "JudgeRewardManager"
MODULE = "pkg://mrjudge_reward.integrations.verl"
_OURS = f"reward.reward_manager: {{source: importlib, name: {MANAGER}, module: {{path: {MODULE}}}}}"
_ROUTER = "verl-router"
"""Stands for the address that verl's router has only in the run."""


def examine_verl(source: str, overrides: Sequence[str] = ()) -> list[Check]:
    """Check a verl config.

    Args:
        source: YAML file with ``defaults: [ppo_trainer, _self_]``, or a resolved dump.
        overrides: as on verl's command line: ``key=value``, ``+key=value``.

    Raises:
        MissingPackageError: without verl.
        ConfigError: if there is no config to be read.
    """
    require("verl", extra="verl")
    config = load_verl_config(source, overrides)
    checks = [*installed(config), *_manager(config), *_legacy(config), *_reward_model(config), *_trainer(config)]
    try:
        settings = VerlSettings.of(config)
    except ConfigError as error:
        return [*checks, Check("mrjudge section", "failed", str(error))]
    checks += _section(config, settings)
    served = served_judge(config, _ROUTER)
    try:
        judge = settings.judge_config(served)
    except ConfigError as error:
        return [*checks, Check("judge settings", "failed", f"{SECTION}.judge: {error}")]
    checks += _judge(config, settings, judge)
    checks += groups(config, settings, judge)
    checks += components(config, settings, judge)
    checks += capacity(config, settings, judge)
    checks += nodes(config, settings, judge)
    checks += _metrics(config)
    return checks


# -- who is asked -----------------------------------------------------------------------------------------------------


def _manager(config: Mapping[str, Any]) -> Iterator[Check]:
    reward = config["reward"]
    manager, function = reward["reward_manager"], reward["custom_reward_function"]
    path = (manager.get("module") or {}).get("path")
    fault = _fault_of_manager(manager["source"], manager["name"], path)
    if fault:
        scorer = f"; {function['name']} of {function['path']} then scores each sample alone" if function["path"] else ""
        yield Check("reward manager", "failed", f"{fault}{scorer}. The judge is never asked. Set {_OURS}")
    else:
        yield Check("reward manager", "ok", f"{manager['name']} of {path}")
    workers = reward["num_workers"]
    if fault and workers > 1:
        detail = f"each of the {workers} reward workers has a manager of its own, which sees only parts of groups"
        yield Check("reward workers", "note", detail, {"workers": workers})
    else:
        yield Check("reward workers", "ok", f"{workers}, which share one judge actor", {"workers": workers})
    enabled = reward["reward_model"]["enable"]
    if enabled and not function["path"]:
        yield Check(
            "manager called",
            "failed",
            "reward.reward_model.enable=True without reward.custom_reward_function.path: verl takes the model for a "
            f"classifier, asks it for /classify and calls no manager. Set the path to {MODULE}, whose compute_score is "
            "there for this only",
        )
    elif (
        function["path"]
        and not fault
        and function["path"] != MODULE
        and not (config.get(SECTION) or {}).get("rule_weight")
    ):
        detail = f"yes; {function['name']} of {function['path']} is loaded and never called: the judge alone scores"
        yield Check("manager called", "note", detail)
    elif not fault:
        yield Check("manager called", "ok", "yes, for each sample")


def _fault_of_manager(source: str, name: str, path: str | None) -> str:
    if source != "importlib":
        return f"reward.reward_manager.source={source}, name={name}: a manager of verl's own"
    if not path:
        return f"reward.reward_manager.source=importlib without module.path: verl cannot load {name}"
    if (name, path.replace("/", ".").removeprefix("pkg:..")) == (MANAGER, MODULE.removeprefix("pkg://")):
        return ""
    from verl.utils.import_utils import load_extern_object

    try:
        found: Any = load_extern_object(path, name)
    except Exception as error:  # noqa: BLE001  whatever that module raises on import
        return f"{name} cannot be loaded from {path} ({type(error).__name__}: {error})"
    if MANAGER in [base.__name__ for base in getattr(found, "__mro__", ())]:
        return ""
    return f"{name} of {path} is not {MANAGER}, nor derived from it"


def _legacy(config: Mapping[str, Any]) -> Iterator[Check]:
    """Sections of older verl are still accepted; ``main_ppo`` no longer reads them."""
    found = [
        f"{section}.{key}" for section in ("reward_model", "custom_reward_function") for key in _set_in(config, section)
    ]
    if found and "async_training" not in config:
        detail = f"{', '.join(found)}: main_ppo no longer reads these; set the keys of the same names below reward"
        yield Check("old keys", "failed", detail)
    if SECTION in config["reward"]:
        yield Check(
            "old keys", "failed", f"reward.{SECTION} is read by nobody; {SECTION} stands at the top of the config"
        )


def _set_in(config: Mapping[str, Any], section: str) -> Iterator[str]:
    for key, value in (config.get(section) or {}).items():
        given = any(inner is not None for inner in value.values()) if isinstance(value, dict) else value is not None
        if given:
            yield key


def _reward_model(config: Mapping[str, Any]) -> Iterator[Check]:
    model, trainer = config["reward"]["reward_model"], config["trainer"]
    if not model["enable"]:
        return
    rollout, faults = model["rollout"], []
    if not model["model_path"]:
        faults.append("reward.reward_model.model_path is empty: name the judge's model")
    if rollout["name"] in (None, "???"):
        faults.append("reward.reward_model.rollout.name is empty: set vllm or sglang")
    pool = model["enable_resource_pool"]
    home = model if pool else trainer
    gpus, each = home["nnodes"] * home["n_gpus_per_node"], 1
    for way in ("tensor", "pipeline"):
        each *= rollout.get(f"{way}_model_parallel_size") or 1
    each *= rollout.get("data_parallel_size") or 1
    if pool and gpus < 1:
        faults.append("enable_resource_pool=True with no GPU: set reward.reward_model.nnodes and n_gpus_per_node")
    elif gpus % each:
        faults.append(f"{gpus} GPUs do not divide into replicas of {each}: change rollout.tensor_model_parallel_size")
    if pool and rollout.get("free_cache_engine") and "async_training" not in config:
        faults.append(
            "enable_resource_pool=True with rollout.free_cache_engine=True: verl puts the judge's engines to sleep at the "
            "start and wakes them only where they are colocated; set reward.reward_model.rollout.free_cache_engine=False"
        )
    if not pool and (config["algorithm"].get("filter_groups") or {}).get("enable"):
        faults.append("algorithm.filter_groups needs rewards before sampling: set enable_resource_pool=True")
    if faults:
        yield Check("reward model", "failed", "; ".join(faults))
    else:
        place = "on GPUs of its own" if pool else "on the trainer's GPUs, after the rollouts"
        yield Check("reward model", "ok", f"{model['model_path']}: {gpus // each} replicas of {each} GPU {place}")


def _trainer(config: Mapping[str, Any]) -> Iterator[Check]:
    trainer = config["trainer"]
    mode = trainer["v1"]["trainer_mode"] if trainer.get("use_v1") else "V0"
    fully = "async_training" in config  # the section of verl.experimental.fully_async_policy
    if is_colocated(config) and (fully or mode == "separate_async"):
        yield Check(
            "trainer",
            "failed",
            f"{'fully asynchronous' if fully else mode} training never pauses its rollouts, so a colocated judge has no "
            "GPU memory: set reward.reward_model.enable_resource_pool=True with nnodes and n_gpus_per_node, or name a "
            f"server in {SECTION}.judge.base_url and set reward.reward_model.enable=False",
        )
    elif mode == "V0" and not fully:
        yield Check("trainer", "note", "trainer.use_v1=False: the V0 trainer, which verl is about to remove")
    else:
        yield Check("trainer", "ok", "fully asynchronous" if fully else mode)


def _metrics(config: Mapping[str, Any]) -> Iterator[Check]:
    """Whether verl's loggers will be told of the judge; see ``integrations.verl.tracking``."""
    from mrjudge_reward.integrations.verl.tracking import fits

    if "async_training" in config:
        detail = "verl's loggers are not told of the judge in fully asynchronous training; mrjudge report shows it"
        yield Check("judge's metrics", "note", detail)
    elif not fits():
        detail = (
            "verl's loggers are not told of the judge: Tracking.log of this verl is another; mrjudge report shows it"
        )
        yield Check("judge's metrics", "note", detail)
    else:
        yield Check("judge's metrics", "ok", "logged at every step, as judge/...")


# -- the judge --------------------------------------------------------------------------------------------------------


def _section(config: Mapping[str, Any], settings: VerlSettings) -> Iterator[Check]:
    if not config.get(SECTION):
        detail = f"there is no {SECTION}, so the defaults hold; set {SECTION}.judge"
        yield Check("mrjudge section", "note", detail)
    else:
        yield Check("mrjudge section", "ok", ", ".join(sorted(config[SECTION])))
    if lacking := settings.not_passed(config):
        yield Check(
            "fields of a row",
            "failed",
            f"{SECTION}.{', '.join(lacking)}: verl's colocated path passes prompts and responses alone. Have prompts carry "
            "the rest (agent_loop_manager_class=mrjudge_reward.integrations.verl.agent_loop.GroupAgentLoopManager), or "
            "judge as samples arrive (reward.reward_model.enable_resource_pool=True, or a server)",
        )
    if settings.deadline_s < 60:
        detail = (
            f"{SECTION}.deadline_s={settings.deadline_s:g} runs from a group's first response to its last one: a group "
            "with one slow response is judged without it"
        )
        yield Check("deadline", "note", detail)
    else:
        yield Check("deadline", "ok", f"{settings.deadline_s:g} s for a group to fill")


def _judge(config: Mapping[str, Any], settings: VerlSettings, judge: JudgeConfig) -> Iterator[Check]:
    model = config["reward"]["reward_model"]
    served = model["enable"] and judge.base_url == f"http://{_ROUTER}/v1"
    if settings.factory:
        detail = (
            f"{settings.factory} builds the judge in the run; its settings are taken as they stand in {SECTION}.judge"
        )
        yield Check("judge", "note", detail)
    elif served:
        yield Check("judge", "note", f"{judge.model}, served by verl in the run, so it cannot be asked before")
    elif judge.base_url is not None:
        asked = {"server", "engine", "settings", "can read labels"}
        yield from (check for check in examine(judge, smoke=False) if check.name in asked)
    else:
        yield _inside(config, settings, judge)
    if model["enable"] and not served:
        who = judge.base_url or f"{judge.model} inside the judge actor"
        status: Literal["note", "failed"] = "note" if judge.base_url or settings.factory else "failed"
        yield Check(
            "served judge",
            status,
            f"verl serves {model['model_path']} and nobody asks it: {SECTION}.judge names {who}. Remove model and "
            f"base_url from {SECTION}.judge, or set reward.reward_model.enable=False",
        )


def _inside(config: Mapping[str, Any], settings: VerlSettings, judge: JudgeConfig) -> Check:
    """A judge that is loaded in the judge actor; it is not loaded here."""
    what = "the embedded model, which only orders texts by sentiment" if judge.embedded else judge.model
    if config["trainer"].get("device", "cuda") == "cpu" or settings.actor_options.get("num_gpus"):
        status: Literal["ok", "note"] = "note" if judge.embedded else "ok"
        return Check("judge", status, f"{what}, inside the judge actor {settings.actor_options or ''}".rstrip())
    return Check(
        "judge",
        "note",
        f"{what}, inside the judge actor and on the CPU: Ray shows an actor no GPU unless it asks for a share. Set "
        f"{SECTION}.actor_options={{num_gpus: 0.2}}, or let verl serve the judge (reward.reward_model.enable=True)",
    )
