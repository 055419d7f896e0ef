"""README.md and docs/ are run: each page from top to bottom, in a folder of its own, as a reader would.

* Python blocks of a page share their names. A comment below a ``print`` is what it prints.
* YAML blocks are settings of a judge or of a verl run. One that begins with a file's name is written to that file, and so
  is a text block.
* Bash commands are run (mrjudge), or what they name must exist (modules, files, make targets, extras).
* Only this is replaced: the address of the judge server, by a real server on loopback; policies, by a tiny one.
* A block below ``<!-- not run: REASON -->`` is left out, and counted here.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import re
import shlex
import subprocess
import sys
import tomllib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from mrjudge_reward import JudgeConfig
from mrjudge_reward.cli import app
from mrjudge_reward.integrations.verl.settings import CanarySettings, VerlSettings
from mrjudge_reward.scoring.stats import ANCHOR_WIN_RATE, METRICS
from mrjudge_reward.streaming.scores import INFO_KEYS
from tests.support import configuration_page
from tests.support.judge_server import JudgeServer, prompt_text
from tests.support.small_models import small_text_model

from .support import ROOT

ADDRESS = "http://127.0.0.1:8000/v1"
PAGES = ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
NOT_RUN = {"docs/quickstart.md": 1, "docs/server.md": 2}
"""Blocks that are left out, by page."""
POLICIES = ('"Qwen/Qwen2.5-0.5B-Instruct"', "str(embedded_model_path()),  # your policy")
"""In whose place a tiny one is trained."""

_BLOCK = re.compile(r"^(?:<!-- not run: (?P<reason>.+?) -->\n)?```(?P<kind>\w*)\n(?P<code>.*?)^```$", re.M | re.S)
_FILE = re.compile(r"# ([\w.-]+\.(?:yaml|txt|jsonl))\n")


@dataclass(frozen=True)
class Block:
    kind: str
    code: str
    reason: str | None

    @property
    def file(self) -> str | None:
        """The file that it shows, if it does."""
        named = _FILE.match(self.code) if self.kind in ("yaml", "text") else None
        return named[1] if named else None

    @property
    def promised(self) -> list[str]:
        """What its prints are said to print, where that is said."""
        said: list[str] = []
        follows = False
        for line in self.code.splitlines():
            follows = line.startswith("# ") if follows else False
            if follows:
                said.append(line[2:])
            follows = follows or line.startswith("print(")
        return said


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks_of(page: str) -> list[Block]:
    return [Block(found["kind"], found["code"], found["reason"]) for found in _BLOCK.finditer(text_of(page))]


def commands_of(code: str) -> list[str]:
    """Commands of a bash block, comments left out."""
    lines = code.replace("\\\n", "").splitlines()
    return [line for line in (re.sub(r"\s+#.*", "", line).strip() for line in lines) if line]


# -- reading a page aloud -----------------------------------------------------------------------------------------------


@dataclass
class Read:
    """A page that was run."""

    names: dict[str, Any]
    folder: Path
    server: JudgeServer
    printed: list[str] = field(default_factory=list)
    ran: dict[str, str] = field(default_factory=dict)  # command → its output


class Reader:
    """Runs pages, each once."""

    def __init__(self, folder: Path, policy: str) -> None:
        self.folder, self.policy = folder, policy
        self.pages: dict[str, Read] = {}

    def read(self, page: str) -> Read:
        if page not in self.pages:
            folder = self.folder / page.replace("/", "-")
            assert not folder.exists(), f"{page} does not run from top to bottom: see the test of that"
            folder.mkdir()
            with JudgeServer(reads="none") as server, pytest.MonkeyPatch.context() as patch:
                patch.chdir(folder)
                patch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
                prepare(folder, server)
                # Dataclasses look for the module that they are defined in.
                module = ModuleType(f"page_{Path(page).stem}")
                patch.setitem(sys.modules, module.__name__, module)
                read = Read(module.__dict__, folder, server)
                for block in blocks_of(page):
                    if block.reason is None:
                        self.run(page, block, read, patch)
            self.pages[page] = read
        return self.pages[page]

    def run(self, page: str, block: Block, read: Read, patch: pytest.MonkeyPatch) -> None:
        code = block.code.replace(ADDRESS, read.server.base_url)
        if block.file:
            (read.folder / block.file).write_text(code, encoding="utf-8")
        if block.kind == "python":
            for policy in POLICIES:
                code = code.replace(policy, repr(self.policy) + "," * policy.count(","))
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed), warnings.catch_warnings():
                warnings.filterwarnings("ignore", "You are using 'rollout_func'")
                exec(compile(code, f"{page}, {code.splitlines()[0]!r}", "exec"), read.names)
            lines = printed.getvalue().splitlines()
            read.printed += lines
            rest = iter(lines)
            assert all(line in rest for line in block.promised), f"{page} promises {block.promised}, and prints {lines}"
        elif block.kind == "yaml":
            check_settings(yaml.safe_load(code))
        elif block.kind == "bash":
            for command in commands_of(code):
                run_or_check(command, read, patch)


def prepare(folder: Path, server: JudgeServer) -> None:
    """Files that pages speak of and do not show."""
    for number, name in enumerate(("cat", "one", "two", "frame-0", "frame-1", "frame-2")):
        Image.new("RGB", (8, 8), (40 * number, 0, 0)).save(folder / f"{name}.png")
    line = '{"prompt": "Greet me.", "candidates": ["Go away.", "Hello, lovely to see you!"]}\n'
    (folder / "groups.jsonl").write_text(line * 2, encoding="utf-8")
    (folder / "judge.yaml").write_text(f"{{model: judge, base_url: '{server.base_url}'}}\n", encoding="utf-8")
    (folder / "recipes").symlink_to(ROOT / "recipes")


def check_settings(values: dict[str, Any]) -> None:
    """A judge's settings, or what is put into a verl config."""
    if not values.keys() & {"mrjudge", "reward"}:
        JudgeConfig(**values)
        return
    if "mrjudge" in values:
        section = VerlSettings(**values["mrjudge"])
        assert not section.judge or Path(str(section.judge)).suffix == ".yaml"
        if section.canaries is not None:
            CanarySettings(**section.canaries)
    if "reward" in values:
        manager = values["reward"]["reward_manager"]
        assert (manager["source"], manager["name"]) == ("importlib", "JudgeRewardManager")
        path = str(manager["module"]["path"])
        assert path == "pkg://mrjudge_reward.integrations.verl"
        assert importlib.util.find_spec(path.removeprefix("pkg://")) is not None


# -- commands -------------------------------------------------------------------------------------------------------------


def run_or_check(command: str, read: Read, patch: pytest.MonkeyPatch) -> None:
    if command.startswith("export "):
        name, _, value = command.removeprefix("export ").partition("=")
        patch.setenv(name, value)
        return
    said, _, piped = command.rpartition(" | ")
    words = shlex.split(piped)
    while "=" in words[0]:  # variables for this command alone
        words.pop(0)
    if words[0] == "mrjudge":
        done = CliRunner().invoke(app, words[1:], input=" ".join(shlex.split(said)[1:]) + "\n" if said else "")
        assert done.exit_code == 0, f"{command}\n{done.output}"
        read.ran[command] = done.stdout
        return
    CHECKS[words[0]](words[1:])


def check_python(words: list[str]) -> None:
    """A module of this project, and the files that it is given."""
    if words[0] == "-m":
        assert is_module(words[1]), f"there is no module {words[1]}"
        words = words[2:]
    check_files(words)


def is_module(name: str) -> bool:
    if name.isupper() or ".FOLDER" in name or name.split(".")[0] in ("verl", "vllm", "pytest"):
        return True  # a placeholder, or somebody else's
    path = ROOT / name.replace(".", "/")
    return path.with_suffix(".py").is_file() or (path / "__main__.py").is_file()


def check_files(words: list[str]) -> None:
    for previous, word in pairwise(["", *words]):
        inside = word.startswith(("recipes/", "tests/", "docs/", "mrjudge_reward/"))
        if inside and previous not in ("-o", "--out") and "=" not in word:
            assert (ROOT / word).exists(), f"there is no {word}"


def check_make(words: list[str]) -> None:
    targets = [word for word in words if "=" not in word]
    for target in targets:
        assert re.search(rf"^{target}:", text_of("Makefile"), re.M), f"make has no target {target}"


def check_pip(words: list[str]) -> None:
    extras = tomllib.loads(text_of("pyproject.toml"))["project"]["optional-dependencies"]
    for named in re.findall(r"\[([\w,]+)\]", " ".join(words)):
        assert set(named.split(",")) <= set(extras), f"there are no extras {named}"


CHECKS: dict[str, Callable[[list[str]], None]] = {
    "python": check_python,
    "bash": check_files,
    "sh": check_files,
    "make": check_make,
    "pip": check_pip,
    "accelerate": check_files,
    "vllm": lambda words: None,
    "git": lambda words: None,
    "pytest": check_files,
    "pre-commit": lambda words: None,
}
"""Of commands that are not run."""


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory, smol_tokenizer: Any) -> Iterator[Reader]:
    folder = tmp_path_factory.mktemp("docs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        yield Reader(folder, small_text_model(smol_tokenizer, folder / "policy"))


@pytest.mark.parametrize("page", PAGES)
def test_a_page_runs_from_top_to_bottom(reader: Reader, page: str) -> None:
    reader.read(page)


# -- what came of it --------------------------------------------------------------------------------------------------------


def test_readme_ranks_with_one_file_and_reports_the_run_that_it_trains(reader: Reader) -> None:
    read = reader.read("README.md")
    (ranked,) = [json_line for command, json_line in read.ran.items() if "mrjudge rank" in command]
    assert yaml.safe_load(ranked)["best"] == 1
    trainer = read.names["trainer"]
    assert trainer.state.global_step == 2
    (reward,) = trainer.reward_funcs  # "judge" in a process of its own; a second reward in a process has another name
    assert any(f"{reward.__name__}/calls" in entry for entry in trainer.state.log_history)
    assert (read.folder / "runs" / "first" / "report.html").stat().st_size > 10_000


def test_the_quickstart_ranks_with_the_embedded_judge(reader: Reader) -> None:
    ran = reader.read("docs/quickstart.md").ran
    (ranked,) = [printed for command, printed in ran.items() if command.endswith("| mrjudge rank")]
    assert yaml.safe_load(ranked)["best"] == 1


def test_pages_on_images_show_the_judge_what_they_say(reader: Reader) -> None:
    requests = [body for body in reader.read("docs/images.md").server.requests if not body.get("logprobs")]
    shown = [str(body["messages"][-1]["content"]).count("'image_url':") for body in requests]
    assert sorted(shown) == sorted([1, 1, 2, 2, 3, 3, *[0] * 6])
    texts = [prompt_text(body) for body in requests]
    assert any("At 1 s:\n(image 2)\nAt 2 s:\n(image 3)\nWhat does the ball do?" in text for text in texts)
    assert any(r"F/C=C\F" in text for text in texts)


def test_the_canaries_shown_are_the_defaults(reader: Reader) -> None:
    from mrjudge_reward.monitoring.canaries import Canaries

    assert reader.read("docs/monitoring.md").names["canaries"] == Canaries()


def test_the_trl_page_trains_four_policies(reader: Reader) -> None:
    code = text_of("docs/trl.md")
    assert code.count("trainer.train()") == 4
    assert reader.read("docs/trl.md").names["trainer"].state.global_step == 2


def test_the_command_is_installed() -> None:
    done = subprocess.run([Path(sys.executable).parent / "mrjudge", "--version"], capture_output=True, text=True)
    assert done.stdout.startswith("mrjudge-reward "), done.stderr


# -- what is written --------------------------------------------------------------------------------------------------------


def test_readme_is_short() -> None:
    assert len(text_of("README.md").split()) <= 900


def test_blocks_that_are_not_run_are_counted_and_give_a_reason() -> None:
    assert {page: n for page in PAGES if (n := sum(b.reason is not None for b in blocks_of(page)))} == NOT_RUN
    for page in PAGES:
        known = {"python", "bash", "yaml", "text", ""}
        assert {block.kind for block in blocks_of(page)} <= known, page
        assert text_of(page).count("\n```") == 2 * len(blocks_of(page)), page
        assert text_of(page).count("<!--") == NOT_RUN.get(page, 0), page


def anchors(text: str) -> set[str]:
    """Anchors of headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", [*PAGES, "CONTRIBUTING.md", "CHANGELOG.md", "recipes/README.md"])
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        path = (ROOT / page).parent / name if name else ROOT / page
        assert path.exists(), f"{page} links to {target}"
        if anchor:
            assert anchor in anchors(path.read_text(encoding="utf-8")), f"{page} links to {target}"


@pytest.mark.parametrize("page", [*PAGES, "CONTRIBUTING.md"])
def test_files_modules_and_targets_named_in_prose_exist(page: str) -> None:
    prose = re.sub(r"^```.*?^```", "", text_of(page), flags=re.M | re.S)
    for code in re.findall(r"`([^`\n]+)`", prose):
        if re.fullmatch(r"(?:mrjudge_reward|integrations|recipes|tests|docs)/[\w./-]+", code):
            assert (ROOT / code).exists(), f"{page}: {code}"
        elif code.startswith("make "):
            check_make(code.split()[1:])
        elif code.startswith("python -m "):
            check_python(code.split()[1:])


def test_commands_for_contributors_name_what_exists() -> None:
    for block in blocks_of("CONTRIBUTING.md"):
        for command in commands_of(block.code):
            words = [word for word in shlex.split(command) if "=" not in word]
            CHECKS[Path(words[0]).name](words[1:])


def test_metrics_that_the_pages_name_are_logged() -> None:
    known = {*METRICS, ANCHOR_WIN_RATE, "canary_right", "undecided_pairs"}
    for page in PAGES:
        for name in re.findall(r"`judge/(\w+)`", text_of(page)):
            assert name in known, f"{page}: judge/{name}"


def test_what_a_row_of_verl_carries_is_all_named() -> None:
    assert set(re.findall(r"`(judge_\w+)`", text_of("docs/verl.md"))) == set(INFO_KEYS)


def test_settings_that_the_pages_name_exist() -> None:
    verl = {"enable_resource_pool", "custom_reward_function"}
    known = JudgeConfig.model_fields.keys() | VerlSettings.model_fields.keys() | verl
    for page in PAGES:
        for name in re.findall(r"`(\w+): [^`]*`", text_of(page)):
            assert name in known or page == "docs/results.md", f"{page}: {name}"  # there they are the recipes' too


def test_no_page_names_the_machine_it_was_written_on() -> None:
    for page in [*PAGES, "CONTRIBUTING.md", "CHANGELOG.md"]:
        assert not re.search(r"/(?:work|tmp|home|root)/", text_of(page)), page


def test_the_configuration_page_is_made_from_the_settings() -> None:
    made = "run python -m tests.support.configuration_page > docs/configuration.md"
    assert (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8") == configuration_page.page(), made
