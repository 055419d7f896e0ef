"""The package as a whole: which way imports run, what importing costs, what is exported, documented and shipped."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import pickle
import shutil
import subprocess
import sys
import sysconfig
import typing
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import mrjudge_reward
from mrjudge_reward import errors

from .support import ROOT

PACKAGE = ROOT / "mrjudge_reward"

ARROW = """errors > credentials once sole_writer json_lines > settings images reasoning special_tokens fields yaml_files >
  messages rubrics > completions > types > prompting engines scoring > cache training config > judging > judge >
  monitoring reranker > streaming cli"""
"""Which way imports run. A folder imports from what stands to its left, and from nothing beside it."""

PLACE = {name: step for step, names in enumerate(ARROW.split(">")) for name in names.split()}


TOP = {
    "mrjudge_reward", "integrations", "recipes", "tests", "docs", "pyproject.toml", "README.md",
    "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "Makefile", "constraints.txt", ".ci",
    ".gitignore", ".pre-commit-config.yaml",
}  # fmt: skip
"""What stands in the root, the owner's six first; the rest is what tooling looks for there."""


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="asks git what belongs to the project: run it in a clone")
def test_nothing_else_stands_in_the_root() -> None:
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert {Path(name).parts[0] for name in listed} == TOP


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {
    module_name(path): path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"
}  # fmt: skip


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """(level, module) of every import in a file, also those inside functions and for type checking."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.level, node.module or ""
            # a module may be imported as a name of its folder
            yield from ((node.level, ".".join(filter(None, (node.module, alias.name)))) for alias in node.names)


def own_imports(name: str) -> set[str]:
    """Modules of this package that a module imports."""
    found = set()
    path = SOURCES[name]
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for level, target in imported(path):
        if level:
            full = ".".join([*package[: len(package) - (level - 1)], *([target] if target else [])])
        elif target.startswith("mrjudge_reward."):
            full = target.removeprefix("mrjudge_reward.")
        else:
            continue
        if full in SOURCES and full != name:
            found.add(full)
    return found


def modules() -> list[ModuleType]:
    return [
        mrjudge_reward,
        *(importlib.import_module(f"mrjudge_reward.{name}") for name in SOURCES if name != "__main__"),
    ]


# -- imports ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SOURCES)
def test_imports_run_one_way(name: str):
    folder = name.partition(".")[0]
    others = {other.partition(".")[0] for other in own_imports(name)} - {folder}
    assert folder in PLACE, "a new folder: give it its place in ARROW"
    beside = {other for other in others if PLACE[other] >= PLACE[folder]}
    assert not beside, f"{name} may import only what stands to the left of {folder} in ARROW"


def test_no_module_imports_itself_by_a_detour():
    rest = {name: own_imports(name) for name in SOURCES}
    while leaves := [name for name, needs in rest.items() if not needs & rest.keys()]:
        for name in leaves:
            del rest[name]
    assert not rest, f"a circle: {sorted(rest)}"


def test_the_order_is_checked_against_real_imports():
    assert {"scoring.tally", "types"} <= own_imports("scoring.stats")
    assert "engines.openai.wire" in own_imports("engines.openai.engine")
    assert "engines.vllm.supervise" in own_imports("engines.vllm.child"), "a module imported as a name of its folder"
    assert "engines.embedded" in own_imports("engines.engine_config"), "imports inside functions count"
    assert len(PLACE) == len(ARROW.replace(">", " ").split())


@pytest.mark.parametrize("name", SOURCES)
def test_the_core_knows_no_training_framework(name: str):
    roots = {target.split(".")[0] for level, target in imported(SOURCES[name]) if not level}
    assert not roots & {"trl", "verl", "ray", "integrations"}
    assert not any(target.startswith("mrjudge_reward.integrations") for _, target in imported(SOURCES[name]))
    assert not any("integrations" in target for level, target in imported(SOURCES[name]) if level)


INTEGRATIONS = {
    path.relative_to(ROOT).with_suffix("").as_posix(): path for path in (ROOT / "integrations").rglob("*.py")
}


@pytest.mark.parametrize("name", INTEGRATIONS)
def test_integrations_know_the_package_and_one_framework_each(name: str):
    framework, other = ("trl", "verl") if name.startswith("integrations/trl") else ("verl", "trl")
    targets = {target for level, target in imported(INTEGRATIONS[name]) if not level}
    roots = {target.split(".")[0] for target in targets}
    assert not roots & {"recipes", "tests", other}
    assert not any(target.startswith(f"mrjudge_reward.integrations.{other}") for target in targets), framework


@pytest.mark.parametrize("name", ["mrjudge_reward", "mrjudge_reward.judge", "mrjudge_reward.config"])
def test_importing_costs_no_heavy_package(name: str):
    heavy = ["torch", "transformers", "peft", "openai", "datasets", "trl", "scipy", "pandas", "vllm"]
    code = f"import {name}, sys; print(*[heavy for heavy in {heavy!r} if heavy in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout.split() == []


# -- public names and documentation -----------------------------------------------------------------------------------


def test_public_names_exist_once_and_in_order():
    names = list(mrjudge_reward.__all__)
    assert [name for name in names if not hasattr(mrjudge_reward, name)] == []
    assert len(set(names)) == len(names)


def test_public_names_are_documented():
    for name in mrjudge_reward.__all__:
        value = getattr(mrjudge_reward, name)
        if (inspect.isclass(value) or inspect.isroutine(value)) and typing.get_origin(value) is None:
            assert (value.__doc__ or "").strip(), name


def public_members(module: ModuleType) -> Iterator[tuple[str, Any]]:
    for name, value in vars(module).items():
        if name.startswith("_") or getattr(value, "__module__", None) != module.__name__:
            continue
        if inspect.isfunction(value):
            yield f"{module.__name__}.{name}", value
        elif inspect.isclass(value):
            yield f"{module.__name__}.{name}", value
            for inner, member in vars(value).items():
                member = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
                if not inner.startswith("_") and inspect.isfunction(member):
                    yield f"{module.__name__}.{name}.{inner}", member


@pytest.mark.parametrize("module", modules(), ids=lambda module: module.__name__)
def test_every_module_and_every_public_part_of_it_has_a_docstring(module: ModuleType):
    assert (module.__doc__ or "").strip()
    bare = [name for name, member in public_members(module) if not own_docstring(member)]
    assert bare == []


def own_docstring(member: Any) -> str:
    text = (member.__doc__ or "").strip()
    generated = inspect.isclass(member) and text.startswith(f"{member.__name__}(")  # what a dataclass writes by itself
    return "" if generated else text


@pytest.mark.parametrize("module", modules(), ids=lambda module: module.__name__)
def test_the_examples_in_docstrings_hold(module: ModuleType):
    assert doctest.testmod(module, optionflags=doctest.ELLIPSIS).failed == 0


def test_there_are_examples_to_hold():
    assert sum(doctest.testmod(module).attempted for module in modules()) >= 5


# -- errors -----------------------------------------------------------------------------------------------------------

ERRORS = [error for error in vars(errors).values() if inspect.isclass(error) and issubclass(error, Exception)]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
def test_errors_share_a_base_and_survive_pickling(error: type[Exception]):
    assert issubclass(error, errors.MRJudgeError)
    copy = pickle.loads(pickle.dumps(error("what came, what was expected")))
    assert type(copy) is error
    assert str(copy) == "what came, what was expected"
    assert error.__name__ in (errors.__doc__ or ""), "the tree in the docstring shows every error"


def test_a_missing_package_is_named_with_the_line_that_installs_it():
    with pytest.raises(errors.MissingPackageError, match=r"pip install 'mrjudge-reward\[vllm\]'"):
        errors.require("no_such_package_at_all", extra="vllm")


def test_an_installed_package_is_returned_and_a_broken_one_shows_its_own_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    assert errors.require("json", extra="x").__name__ == "json"
    (tmp_path / "broken_package.py").write_text("import what_it_needs_and_lacks\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="what_it_needs_and_lacks") as caught:
        errors.require("broken_package", extra="x")
    assert not isinstance(caught.value, errors.MissingPackageError)


# -- what is shipped --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    tree = folder / "tree"
    tree.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    for name in ("mrjudge_reward", "integrations"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    quiet = ("--quiet", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(folder))
    command = [sys.executable, "-m", "pip", "wheel", *quiet, str(tree)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    (made,) = folder.glob("*.whl")
    return made


def test_a_wheel_holds_the_templates_the_type_marker_and_the_integrations(wheel: Path):
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
    expected = {f"mrjudge_reward/{path.relative_to(PACKAGE)}" for path in PACKAGE.rglob("*.py")}
    templates = PACKAGE / "prompting" / "templates"
    expected |= {f"mrjudge_reward/prompting/templates/{path.name}" for path in templates.glob("*.txt")}
    expected |= {f"mrjudge_reward/monitoring/report/page.{kind}" for kind in ("html", "css", "js")}
    ours = ROOT / "integrations"
    expected |= {f"mrjudge_reward/integrations/{path.relative_to(ours)}" for path in ours.rglob("*.py")}
    expected |= {"mrjudge_reward/py.typed", "mrjudge_reward/integrations/trl/reward.py"}
    assert expected - held == set()
    assert not [name for name in held if name.startswith(("tests/", "integrations/", "recipes/", "benchmarks/"))]


PUBLIC = """
import importlib.metadata, sys
import mrjudge_reward
from mrjudge_reward.integrations import trl

names = [getattr(mrjudge_reward, name) for name in mrjudge_reward.__all__]
ours = (trl.JudgeReward, trl.SelectingRollout, trl.SharedBaseJudgeReward, trl.JudgeOnlineDPOTrainer)
judge = mrjudge_reward.Judge(mrjudge_reward.ScriptedEngine.by_utility(len))
assert judge.rank("Greet me.", ["Hi", "Good morning to you"]).best == 1
scripts = importlib.metadata.distribution("mrjudge-reward").entry_points
for script in scripts:
    script.load()
from mrjudge_reward.integrations import verl
verl.JudgeRewardManager, verl.compute_score
print(mrjudge_reward.__file__, len(names), len(scripts))
"""


def test_every_public_name_can_be_imported_from_a_wheel_in_a_fresh_environment(wheel: Path, tmp_path: Path):
    venv.create(tmp_path / "fresh")  # without pip
    (site,) = (tmp_path / "fresh").glob("lib/python*/site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")  # other packages, and no editable install
    command = [tmp_path / "fresh" / "bin" / "python", "-W", "ignore", "-c", PUBLIC]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    where, names, scripts = done.stdout.split()[-3:]
    assert Path(where).is_relative_to(site)
    assert (int(names), int(scripts)) == (len(mrjudge_reward.__all__), 2)
