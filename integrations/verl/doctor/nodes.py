"""Whether what a judge needs is there on every machine that it may land on: files, folders, environment variables.

verl's reward workers are on all nodes, and each reads ``mrjudge.judge`` where that is a path. The judge actor gets its
settings by value from whoever makes it, and lands on any node that has what ``actor_options`` ask for: its model, its
adapter and its key must be there. Neither has the environment of the shell that verl is started in, but that of its
node's ``ray start``, and what ``ray_kwargs.ray_init.runtime_env.env_vars`` adds.

A cluster that runs already (``RAY_ADDRESS``, or ``ray_kwargs.ray_init.address``) is asked, a task on each node. None is
started.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mrjudge_reward.cli.doctor import Check
from mrjudge_reward.engines.engine_config import EMBEDDED
from mrjudge_reward.errors import require
from mrjudge_reward.integrations.verl.settings import SECTION, VerlSettings
from mrjudge_reward.judge import JudgeConfig

from .versions import WITHOUT_TRL

ANSWER_S = 60.0
"""For a node's answer; a worker has to be started on it."""


@dataclass(frozen=True)
class Needed:
    """Something that must be on a node.

    Attributes:
        setting: that asks for it.
        name: a path, or an environment variable.
        variable: which of the two.
        everywhere: needed by the reward workers of all nodes, not only by the judge actor.
    """

    setting: str
    name: str
    variable: bool = False
    everywhere: bool = False

    def __str__(self) -> str:
        return f"{'$' if self.variable else ''}{self.name} ({self.setting})"


def nodes(config: Mapping[str, Any], settings: VerlSettings, judge: JudgeConfig) -> Iterator[Check]:
    """Check what the nodes of a run hold.

    Args:
        config: of the run, as plain containers.
        settings: its ``mrjudge`` section.
        judge: its settings.
    """
    wanted, written = needed(settings, judge), _written(settings, judge)
    several = int(config["trainer"]["nnodes"]) > 1
    start = (config.get("ray_kwargs") or {}).get("ray_init") or {}
    ray = require("ray", extra="verl")
    address = str(start.get("address") or os.environ.get("RAY_ADDRESS") or "")
    listed = ", ".join(map(str, wanted)) or "nothing"
    if address in ("", "local"):
        if several and wanted:
            detail = f"each must have {listed}; none was asked: run the doctor with RAY_ADDRESS of the running cluster"
            yield Check("nodes", "note", detail)
    else:
        yield from _asked(ray, address, start, settings, wanted)
    if several and written and not _pinned(settings):
        detail = (
            f"{', '.join(map(str, written))}: written on the node where the judge actor lands, and on another one after a "
            f"restart. Name a shared folder, or pin the actor ({SECTION}.actor_options={{resources: {{'node:IP': 0.001}}}})"
        )
        yield Check("nodes' folders", "note", detail)


def needed(settings: VerlSettings, judge: JudgeConfig) -> list[Needed]:
    """What a node must hold."""
    found = [Needed(f"{SECTION}.judge", settings.judge, everywhere=True)] if isinstance(settings.judge, str) else []
    if judge.base_url is None:
        of_model = {"model": judge.model, "adapter": judge.adapter or EMBEDDED}
        found += [Needed(name, path) for name, path in of_model.items() if path != EMBEDDED and _is_path(path)]
    if isinstance(judge.template, str) and (_is_path(judge.template) or judge.template.endswith(".txt")):
        found.append(Needed("template", judge.template, everywhere=True))
    if path := (settings.canaries or {}).get("path"):
        found.append(Needed(f"{SECTION}.canaries.path", path))
    if judge.base_url is not None and judge.api_key_env in os.environ:
        found.append(Needed("api_key_env", judge.api_key_env, variable=True))
    for setting in ("extra_headers", "extra_body"):
        values = [value for value in getattr(judge, setting).values() if isinstance(value, str)]
        found += [Needed(setting, value[4:], variable=True) for value in values if value.startswith("env:")]
    if WITHOUT_TRL in os.environ.get("VERL_USE_EXTERNAL_MODULES", ""):
        found.append(Needed("TRL", "VERL_USE_EXTERNAL_MODULES", variable=True, everywhere=True))
    return found


def _written(settings: VerlSettings, judge: JudgeConfig) -> list[Needed]:
    paths = {f"{SECTION}.log_dir": settings.log_dir, "cache": judge.cache}
    return [Needed(setting, str(path)) for setting, path in paths.items() if path is not None]


def _is_path(name: str) -> bool:
    """A name of the hub has one slash, and is no folder here."""
    return name.startswith(("/", "./", "../", "~")) or name.count("/") > 1 or os.path.isdir(name)


def _pinned(settings: VerlSettings) -> bool:
    options = settings.actor_options
    return "scheduling_strategy" in options or any(key.startswith("node:") for key in options.get("resources") or {})


def _asked(
    ray: Any, address: str, start: Mapping[str, Any], settings: VerlSettings, wanted: Sequence[Needed]
) -> Iterator[Check]:
    connected = not ray.is_initialized()
    try:
        if connected:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR", include_dashboard=False)
        alive = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) > 0]
        variables = {str(k): str(v) for k, v in ((start.get("runtime_env") or {}).get("env_vars") or {}).items()}
        home = {node["NodeID"]: node["NodeManagerHostname"] for node in alive}
        lacking = _lacking(ray, list(home), variables, [(one.name, one.variable) for one in wanted])
        may_land = [node["NodeID"] for node in alive if _has(node["Resources"], settings.actor_options)]
    except Exception as error:  # noqa: BLE001  Ray raises many things, and a doctor reports
        yield Check("nodes", "note", f"the cluster at {address} cannot be asked: {' '.join(str(error).split())[:300]}")
        return
    finally:
        if connected:
            ray.shutdown()
    if not may_land:
        options = f"{SECTION}.actor_options={settings.actor_options}"
        yield Check("nodes", "failed", f"no node has what {options} ask for, so the judge actor would wait for ever")
        return
    faults = []
    for node, name in home.items():
        missing = lacking[node]
        if missing is None:
            faults.append(f"{name} cannot import mrjudge_reward")
            continue
        absent = [str(one) for one in wanted if one.name in missing and (one.everywhere or node in may_land)]
        if absent:
            faults.append(f"{name} lacks {', '.join(absent)}")
    data = {"nodes": len(home), "may_land": len(may_land), "needed": [one.name for one in wanted]}
    if not faults:
        detail = f"{len(home)} asked: all that is needed is there ({', '.join(map(str, wanted)) or 'nothing'})"
        yield Check("nodes", "ok", detail, data)
        return
    remedy = (
        f"Write the judge's fields into the section {SECTION}.judge itself, put files on shared storage, variables into "
        f"ray_kwargs.ray_init.runtime_env.env_vars, or keep the actor on a node that has them ({SECTION}.actor_options)"
    )
    yield Check("nodes", "failed", f"{'; '.join(faults)}. {remedy}", data)


def _has(resources: Mapping[str, float], options: Mapping[str, Any]) -> bool:
    """Whether a node has what an actor's options ask for."""
    asked = {
        "CPU": options.get("num_cpus") or 0,
        "GPU": options.get("num_gpus") or 0,
        **(options.get("resources") or {}),
    }
    return all(resources.get(name, 0) >= amount for name, amount in asked.items())


def _lacking(
    ray: Any, ids: Sequence[str], variables: Mapping[str, str], names: Sequence[tuple[str, bool]]
) -> dict[str, list[str] | None]:
    """What each node lacks; None where it cannot import this package."""

    def lacking() -> (
        list[str] | None
    ):  # not at the module's top: Ray then sends its code, and a node needs no package of ours
        import importlib.util
        import os

        if importlib.util.find_spec("mrjudge_reward") is None:
            return None
        there = {
            name: name in os.environ if variable else os.path.exists(os.path.expanduser(name))
            for name, variable in names
        }
        return [name for name, found in there.items() if not found]

    affinity = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
    options = {"num_cpus": 0, **({"runtime_env": {"env_vars": dict(variables)}} if variables else {})}
    task = ray.remote(lacking)
    asked = [task.options(scheduling_strategy=affinity(node, soft=False), **options).remote() for node in ids]
    return dict(zip(ids, ray.get(asked, timeout=ANSWER_S), strict=True))
