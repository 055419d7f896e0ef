"""Whether what is installed is what verl and this package were built for; nothing heavy is imported.

verl's own metadata say what it accepts (``transformers<5.11``, ...) and what its ``vllm`` extra pins. The first is a
condition of every run, the second was tested by verl's makers and is only worth knowing.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from mrjudge_reward.cli.doctor import TESTED, Check

RUN_WITH: Mapping[str, str] = {"verl": "0.9.1", "ray": "2.60.0", "tensordict": "0.10.0", "vllm": ""}
"""Package → the version that this adapter was run with, beside those in ``TESTED``; of vLLM only the CPU build was."""

_WATCHED = ("verl", "ray", "torch", "transformers", "tensordict", "numpy", "vllm")
_VALUE_HEAD = "AutoModelForCausalLMWithValueHead"


def installed(config: Mapping[str, Any]) -> Iterator[Check]:
    """Compare Python and the packages with what verl asks for.

    Args:
        config: of the run, as plain containers.
    """
    accepted, pinned = _wanted_by_verl()
    python = platform.python_version()
    wanted = importlib.metadata.metadata("verl")["Requires-Python"] or ""
    fits = SpecifierSet(wanted).contains(python, prereleases=True)
    detail = python if fits else f"{python}; verl accepts {wanted}: make an environment with Python 3.11 or 3.12"
    yield Check("Python", "ok" if fits else "failed", detail, {"found": python, "accepted": wanted})
    engines = {config["actor_rollout_ref"]["rollout"]["name"], config["reward"]["reward_model"]["rollout"]["name"]}
    for name in _WATCHED:
        if name != "vllm" or "vllm" in engines:
            yield _package(name, accepted.get(name), pinned.get(name))
    if str(config["actor_rollout_ref"]["actor"].get("strategy", "")).startswith("fsdp"):
        yield from _trl()


def _wanted_by_verl() -> tuple[dict[str, SpecifierSet], dict[str, SpecifierSet]]:
    """What verl requires of each package, and what its ``vllm`` extra pins."""
    accepted: dict[str, SpecifierSet] = {}
    pinned: dict[str, SpecifierSet] = {}
    for line in importlib.metadata.requires("verl") or ():
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            accepted[requirement.name] = requirement.specifier
        elif requirement.marker.evaluate({"extra": "vllm"}):
            pinned[requirement.name] = requirement.specifier
    return accepted, pinned


def _package(name: str, accepted: SpecifierSet | None, pinned: SpecifierSet | None) -> Check:
    run_with = RUN_WITH[name] if name in RUN_WITH else TESTED.get(name, ("", ""))[0]
    data = {"found": None, "accepted": str(accepted or ""), "pinned": str(pinned or ""), "run_with": run_with}
    try:
        found = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Check(name, "note", f"not installed here; the run needs it: pip install '{name}{pinned or ''}'", data)
    data["found"] = found
    if accepted and not accepted.contains(found, prereleases=True):
        return Check(
            name, "failed", f"{found}; verl accepts {accepted}: pip install '{name}{pinned or accepted}'", data
        )
    public = found.partition("+")[0]
    remarks = [f"verl's vllm extra pins {pinned}"] if pinned and not pinned.contains(public, prereleases=True) else []
    if run_with and public != run_with:
        remarks.append(f"this adapter was run with {run_with}")
    return Check(name, "note" if remarks else "ok", "; ".join([found, *remarks]), data)


WITHOUT_TRL = "mrjudge_reward.integrations.verl.without_trl"
"""The module that keeps TRL from verl."""


def _home_of_trl() -> Path | None:
    spec = importlib.util.find_spec("trl")
    return Path(spec.origin).parent if spec is not None and spec.origin else None


def _trl() -> Iterator[Check]:
    """verl patches a class of TRL's in every FSDP model, if TRL is there at all; newer TRL has it no more."""
    home = _home_of_trl()
    if home is None:
        yield Check("trl", "ok", "not installed; verl does without", {"found": None})
        return
    found = importlib.metadata.version("trl")
    places = (home / "experimental" / "ppo" / "__init__.py", home / "__init__.py")
    if any(_VALUE_HEAD in path.read_text(encoding="utf-8") for path in places if path.is_file()):
        yield Check("trl", "ok", f"{found}, with the {_VALUE_HEAD} that verl's FSDP models import", {"found": found})
        return
    modules = os.environ.get("VERL_USE_EXTERNAL_MODULES", "")
    if WITHOUT_TRL in modules.split(","):
        yield Check("trl", "ok", f"{found}, kept from verl by {WITHOUT_TRL}", {"found": found})
        return
    detail = (
        f"{found} has no {_VALUE_HEAD}, which verl imports for every FSDP model if TRL is installed, so that the workers "
        f"end with ImportError. Set VERL_USE_EXTERNAL_MODULES={WITHOUT_TRL}, or use an environment without TRL"
    )
    status: Literal["note", "failed"] = "failed"
    if modules:
        status, detail = "note", f"{detail}. VERL_USE_EXTERNAL_MODULES={modules} may bring a stand-in"
    yield Check("trl", status, detail, {"found": found})
