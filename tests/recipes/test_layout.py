"""The recipes' house: one arrow of imports, no circle, no path edited, and every command that is written down exists."""

from __future__ import annotations

import ast
import re
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.support import ROOT

RECIPES = ROOT / "recipes"
MAY_IMPORT = {
    "common": set(),
    "data": {"common"},
    "judge": {"common", "data"},
    "evaluate": {"common", "data", "judge"},
    "policy": {"common", "data", "judge", "evaluate"},
    "studies": {"common", "data", "judge", "evaluate", "policy"},
    "verl": {"common", "data"},
}  # fmt: skip
"""Folder → the other folders that it may import from."""

OTHERS = {
    "judge.yaml", "CONFIG.yaml", "rubric.yaml",  # the reader's
    "curation.yaml", "run.yaml",  # that a study writes
    "cal.py", "utils/lrm_process.py",  # of a benchmark and of a paper
    "trl/trainer/utils.py", "trl/trainer/grpo_trainer.py",
}  # fmt: skip
"""Files that are named and lie elsewhere."""


def modules() -> dict[str, Path]:
    """Name → file, packages included."""
    found = {}
    for path in sorted(RECIPES.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imported(name: str, source: str, known: set[str]) -> set[str]:
    """The recipes that a recipe imports, within functions too."""
    package = name if MODULES.get(name, Path()).name == "__init__.py" else name.rpartition(".")[0]
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            found |= {base if f"{base}.{alias.name}" not in known else f"{base}.{alias.name}" for alias in node.names}
    return found & known


@cache
def imports() -> dict[str, set[str]]:
    """Recipe → the recipes that it imports."""
    return {name: imported(name, path.read_text(encoding="utf-8"), set(MODULES)) for name, path in MODULES.items()}


def folder(name: str) -> str:
    """Of a recipe; empty for the package itself."""
    return name.split(".")[1] if "." in name else ""


def test_every_folder_is_in_the_arrow():
    assert {folder(name) for name in MODULES} - {""} == set(MAY_IMPORT)


def test_a_recipe_imports_only_from_folders_to_its_left():
    wrong = [
        f"{name} imports {other}"
        for name, others in imports().items()
        for other in sorted(others)
        if folder(other) != folder(name) and folder(other) not in MAY_IMPORT.get(folder(name), set())
    ]
    assert wrong == []


def test_no_recipe_imports_itself_by_a_detour():
    TopologicalSorter(imports()).prepare()  # raises for a circle, and names it


@pytest.mark.parametrize(
    "source",
    [
        "def main():\n    from recipes.evaluate.judge import ask",
        "from ..evaluate import judge",
        "import recipes.evaluate.judge",
        "from recipes.evaluate import judge as measured",
    ],
)
def test_an_import_is_seen_however_it_is_written(source: str):
    assert imported("recipes.judge.train_sft", source, set(MODULES)) == {"recipes.evaluate.judge"}


TEXTS = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in [*sorted(RECIPES.rglob("*")), ROOT / "docs" / "results.md"]
    if path.suffix in {".py", ".yaml", ".sh", ".md", ".txt"}
}
"""All in which commands stand: docstrings and messages of recipes, configs, scripts, Markdown."""


def test_no_recipe_edits_the_path_that_modules_are_found_on():
    assert [name for name, text in TEXTS.items() if re.search(r"sys\.path|syspath", text)] == []


RECIPE = re.compile(r"\brecipes((?:\.\w+)+)")
FILE = re.compile(r"(?<![\w./-])(?:\.\./)*((?:[\w-]+/)*[\w-]+\.(?:py|yaml|sh))\b")


def is_a_recipe(name: str) -> bool:
    """Whether it is a module, or a name in one that is no package."""
    around = MODULES.get(name.rpartition(".")[0])
    return name in MODULES or (around is not None and around.name != "__init__.py")


def is_a_file(path: str, beside: Path) -> bool:
    """Whether it exists, from the root, from the recipes, or from a folder around what names it."""
    places = [RECIPES, *beside.parents[: len(beside.relative_to(ROOT).parts)]]
    return any((place / path).is_file() for place in places)


@pytest.mark.parametrize("name", TEXTS)
def test_every_recipe_and_file_that_is_named_exists(name: str):
    text = TEXTS[name]
    assert [f"recipes{found[1]}" for found in RECIPE.finditer(text) if not is_a_recipe(f"recipes{found[1]}")] == []
    files = {found[1] for found in FILE.finditer(text)} - OTHERS
    if name.startswith("docs/"):
        files = {file for file in files if file.startswith("recipes/")}
    assert sorted(file for file in files if not is_a_file(file, ROOT / name)) == []


RUN = re.compile(r"-m recipes\.((?:data|studies|policy)\.\S+) (\S+\.yaml|CONFIG)[^\n`]*?--out (runs/[\w-]+)")


def test_no_two_runs_that_are_written_down_share_a_folder():
    """A folder holds rows of one set of settings, and refuses others."""
    runs: dict[str, set[tuple[str, str]]] = {}
    for text in TEXTS.values():
        for recipe, config, out in RUN.findall(re.sub(r"\\\n\s*#?\s*", " ", text)):
            runs.setdefault(out, set()).add((recipe, config))
    assert len(runs) >= 10
    assert {out: found for out, found in runs.items() if len(found) > 1} == {}


LINK = re.compile(r"\]\(([^)\s#:]*)(?:#([^)\s]+))?\)")


def anchors(path: Path) -> set[str]:
    """Of the headings of a Markdown file, as GitHub makes them."""
    heads = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("name", [name for name in TEXTS if name.endswith(".md")])
def test_links_lead_somewhere(name: str):
    for target, anchor in LINK.findall(TEXTS[name]):
        path = (ROOT / name).parent / target if target else ROOT / name
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), f"{target}#{anchor}"
