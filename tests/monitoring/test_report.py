"""The report's page in a real browser: what it shows, what it lets happen, and runs of every shape."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mrjudge_reward import Group, Judge, ScriptedEngine
from mrjudge_reward.monitoring.canaries import Canaries
from mrjudge_reward.monitoring.report.charts import MAX_POINTS
from mrjudge_reward.monitoring.report.page import MAX_BYTES, MAX_GROUPS, data_block, page_of
from mrjudge_reward.monitoring.run_log import RunLogWriter
from tests.support import ROOT
from tests.support.report_runs import HOSTILE, browser, log_run

QUIET = ("Seconds per step", "Reward", "Position consistency", "Judge calls", "Length against reward")


@pytest.fixture(scope="module")
def window() -> Iterator[Any]:
    with browser() as found:
        yield found


@pytest.fixture
def opened(window: Any, tmp_path: Path) -> Callable[..., Any]:
    """Make the report of a run, open it, and check that it neither complains nor asks the network for anything."""

    def show(folder: Path, dark: bool = False) -> Any:
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        window.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        page = tmp_path / "report.html"
        page.write_bytes(page_of(folder).encode("utf-8"))
        window.get_log("performance")
        window.get(page.as_uri())
        until(lambda: window.execute_script("return document.querySelectorAll('#charts svg').length") > 0)
        check_quiet(window, page.as_uri())
        return window

    return show


def until(holds: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.05)


def check_quiet(window: Any, page: str) -> None:
    assert [entry["message"] for entry in window.get_log("browser")] == []
    messages = [json.loads(entry["message"])["message"] for entry in window.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert [url for url in asked if url not in (page, "data:,")] == []


def texts(window: Any, selector: str) -> list[str]:
    found: list[str] = window.execute_script(
        "return [...document.querySelectorAll(arguments[0])].map(node => node.textContent.toWellFormed())", selector
    )
    return found


# -- what it shows ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    log_run(folder, 12, canaries=Canaries(every=4))
    writer = RunLogWriter(folder, rank=1)
    for step in range(1, 13):
        writer.seconds(step, generate=3.0, judge=1.0, update=2.0)
        writer.trainer(step, {"loss": 1 / step, "kl": 0.01 * step, "epoch": 0.1, "note": "text"})
    return folder


def test_charts_are_there_with_their_data_axes_and_names(opened: Any, run: Path) -> None:
    window = opened(run)
    titles = texts(window, "#charts figcaption h3")
    assert {*QUIET, "Canaries in the right order", "Markers sanitized", "Loss", "KL from the reference"} <= set(titles)
    marks = window.execute_script(
        "return [...document.querySelectorAll('#charts figure')].map(f => ["
        "f.querySelector('svg').getAttribute('aria-label'), f.querySelectorAll('svg path, svg circle').length,"
        "f.querySelectorAll('svg text').length,"
        "[...f.querySelectorAll('path')].every(p => !/NaN/.test(p.getAttribute('d')))])"
    )
    assert len(marks) == len(titles)
    for label, drawn, words, finite in marks:
        assert label
        assert drawn > 0, label
        assert words >= 4, label
        assert finite, label
    assert "12" in texts(window, ".tile .value")
    assert any("Long answers are paid for" in text for text in texts(window, ".finding"))


def test_a_chart_is_read_by_pointer_by_keyboard_and_as_a_table(opened: Any, run: Path) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    window = opened(run)
    plot = window.execute_script(
        "return [...document.querySelectorAll('figure')].find(f => /Seconds/.test(f.textContent)).querySelector('svg')"
    )
    ActionChains(window).move_to_element(plot).perform()
    until(lambda: "generating" in window.find_element("id", "tip").text)
    window.execute_script("arguments[0].focus()", plot)
    ActionChains(window).send_keys(Keys.HOME).perform()
    assert window.find_element("id", "tip").text.splitlines() == ["step 1", "generating 3", "judging 1", "updating 2"]
    ActionChains(window).send_keys(Keys.ARROW_RIGHT).perform()
    assert window.find_element("id", "tip").text.startswith("step 2")
    ActionChains(window).send_keys(Keys.ESCAPE).perform()
    assert not window.find_element("id", "tip").is_displayed()
    values = window.execute_script(
        "const d = arguments[0].closest('figure').querySelector('details'); d.open = true; return d", plot
    )
    until(lambda: len(values.find_elements("tag name", "tr")) == 13)
    assert "2" in values.find_elements("tag name", "tr")[1].text


def test_a_group_opens_on_click_and_by_keyboard_and_shows_candidates_and_reasoning(opened: Any, run: Path) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    window = opened(run)
    buttons = window.find_elements("css selector", "#list button")
    assert len(buttons) == 12
    buttons[3].click()
    assert texts(window, "#group h3") == ["Step 4, train"]
    assert len(texts(window, "#group .candidate")) == 4
    assert any("says more" in text for text in texts(window, "#group .verdict .text"))
    assert len(texts(window, "#group .matrix tbody tr")) == 4
    assert window.execute_script("return document.querySelectorAll('#group svg.strengths circle').length") == 4
    ActionChains(window).send_keys(Keys.ARROW_DOWN).send_keys(Keys.ENTER).perform()
    assert texts(window, "#group h3") == ["Step 5, train"]
    assert texts(window, "#list [aria-current=true] .step") == ["step 5"]
    window.find_element("id", "filter").send_keys("step 11")
    until(lambda: sum(button.is_displayed() for button in buttons) == 1)


@pytest.mark.parametrize("dark", [False, True])
def test_light_and_dark_follow_the_system_are_readable_and_can_be_switched(opened: Any, run: Path, dark: bool) -> None:
    window = opened(run, dark)
    for expected in (dark, not dark):
        assert window.execute_script("return document.documentElement.dataset.theme") == (
            "dark" if expected else "light"
        )
        for selector in (
            "h1",
            ".muted",
            ".tile .value",
            ".card .note",
            ".legend li",
            ".text",
            ".tag",
            ".finding",
            "svg text",
        ):
            assert contrast(window, selector) >= 4.5, (selector, expected)
        window.find_element("id", "theme").click()


def contrast(window: Any, selector: str) -> float:
    """WCAG's contrast of an element's text against what is behind it."""
    colours = window.execute_script(
        "const e = document.querySelector(arguments[0]), s = getComputedStyle(e);"
        "let b = e; while (/, 0\\)|transparent/.test(getComputedStyle(b).backgroundColor)) b = b.parentElement;"
        "return [e instanceof SVGElement ? s.fill : s.color, getComputedStyle(b).backgroundColor]",
        selector,
    )
    lights = []
    for colour in colours:
        channels = [int(value) / 255 for value in re.findall(r"\d+", colour)[:3]]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        lights.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    return (max(lights) + 0.05) / (min(lights) + 0.05)


# -- what it does not let happen --------------------------------------------------------------------------------------


def test_what_a_policy_wrote_is_shown_and_does_nothing(opened: Any, tmp_path: Path) -> None:
    folder = tmp_path / "</title><script>window.hacked=1<" / "script>"
    log_run(folder, 1, answers=HOSTILE, prompt=HOSTILE[2])
    window = opened(folder)
    shown = texts(window, "#group .candidate .text")
    assert set(HOSTILE[:3]) <= set(shown)
    assert any("onload" in text for text in shown)
    assert texts(window, "#group .text")[0] == HOSTILE[2]
    for details in window.find_elements("css selector", ".verdict summary"):
        details.click()
    time.sleep(0.3)
    assert window.execute_script("return window.hacked") is None
    assert (
        window.execute_script("return document.querySelectorAll('img, iframe, object, [onerror], [onload]').length")
        == 0
    )
    assert window.execute_script("return document.scripts.length") == 2


def test_a_script_that_got_in_would_not_run(window: Any, run: Path, tmp_path: Path) -> None:
    """The page's policy is a second wall: it is tried with a page that was tampered with."""
    page = tmp_path / "tampered.html"
    planted = "<script>window.hacked=1</script><img src=x onerror='window.hacked=1'><h1 style='color: red'>"
    page.write_text(page_of(run).replace("<main>", f"<main>{planted}"), encoding="utf-8")
    window.get(page.as_uri())
    time.sleep(0.3)
    assert window.execute_script("return window.hacked") is None
    refused = [entry["message"] for entry in window.get_log("browser")]
    assert sum("Content Security Policy" in message for message in refused) >= 3
    assert texts(window, "#charts figcaption h3"), "the page's own script runs"


@pytest.mark.parametrize("text", [*HOSTILE, "</ScRiPt >", "<!--<script>", "&lt;", "\u2028", "\x00\x1b[31m", "𝕏"])
def test_data_inside_a_script_element_is_plain_ascii_without_markup(text: str) -> None:
    block = data_block({"text": text})
    assert block.isascii()
    assert not set("<>&") & set(block)
    assert json.loads(block) == {"text": text}


def test_numbers_that_json_does_not_have_become_null() -> None:
    assert data_block({"a": float("nan"), "b": [float("inf")]}) == '{"a":null,"b":[null]}'


# -- runs of every shape ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        (("only one",), "nothing to compare"),
        (("", "", ""), "No games between these candidates"),
        (("fail here", "fail here too"), "Every judgement of this group failed"),
        (("same", "same"), "No games between these candidates"),
    ],
)
def test_groups_without_a_picture_say_why(opened: Any, tmp_path: Path, answers: tuple[str, ...], said: str) -> None:
    log_run(tmp_path, 1, answers=answers)
    window = opened(tmp_path)
    assert said in window.find_element("id", "group").text
    assert len(texts(window, "#group .candidate")) == len(answers)


def test_a_group_judged_by_criteria_shows_who_met_which(opened: Any, tmp_path: Path) -> None:
    rubric = [
        {"title": "dose <b>", "description": "Names it."},
        {"title": "alarm", "description": "Alarms.", "weight": -2},
    ]
    judge = Judge(ScriptedEngine.by_utility(len), criteria="absolute", verdict="logprobs", rubric=rubric)
    (judgement,) = judge.judge([Group.of("Which?", ["a", "bbb"], "g")])
    RunLogWriter(tmp_path).batch(1, "train", [judgement], [judgement.scores_G], [[1, 3]], {})
    window = opened(tmp_path)
    assert texts(window, "#group .matrix tbody th") == ["dose <b>", "alarm"]
    assert texts(window, "#group .matrix tbody tr:last-child td")[0].replace("\u2212", "-") == "-2"
    assert "Spread by criterion" in window.find_element("id", "charts").text
    assert "Who met which criterion" in window.find_element("id", "group").text
    assert any(said.startswith("alarm: #") for said in texts(window, "#group .verdict summary"))


def test_a_group_with_anchors_shows_them_under_their_own_name(opened: Any, tmp_path: Path) -> None:
    judge = Judge(ScriptedEngine.by_utility(len), "choice", verdict="generate", schedule="anchor")
    (judgement,) = judge.judge([Group.of("Which?", ["a", "bbb"], "g", anchors=["<b>of old</b>", "rr"])])
    RunLogWriter(tmp_path).batch(1, "train", [judgement], [judgement.scores_G], [[1, 3]], {})
    window = opened(tmp_path)
    group = window.find_element("id", "group").text
    assert "Anchor 1, score" in group
    assert "<b>of old</b>" in group
    assert "scores are relative to the anchors" in group
    assert len(texts(window, "#group .candidate")) == 2
    heads = texts(window, "#group .verdict summary")
    assert any(said.startswith("anchor 2 against #") for said in heads)
    assert any("prefers anchor 1" in said for said in heads)
    assert "Against the anchors" in window.find_element("id", "charts").text


def test_a_run_without_groups_or_of_evaluation_alone_is_shown(opened: Any, tmp_path: Path) -> None:
    RunLogWriter(tmp_path).batch(1, "eval", [], [], [])
    RunLogWriter(tmp_path).seconds(1, judge=0.5)
    window = opened(tmp_path)
    assert "No group was logged" in window.find_element("id", "group").text


def test_two_thousand_steps_and_huge_answers_make_a_bounded_page(opened: Any, tmp_path: Path) -> None:
    huge = tuple("long words " * 20_000 + str(index) for index in range(4))
    log_run(tmp_path, 1, answers=huge)
    path = tmp_path / "judge.rank0.jsonl"
    line = json.loads(path.read_text().splitlines()[1])
    with path.open("a") as file:
        file.writelines(json.dumps({**line, "step": step}) + "\n" for step in range(2, 2001))
    page = page_of(tmp_path)
    assert len(page) < MAX_BYTES + 2_000_000
    said = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])  # type: ignore[index]
    assert len(said["groups"]) <= MAX_GROUPS
    assert said["groups"][-1]["step"] > 1900, "evenly over the run"
    assert max(
        len(series["x"]) for chart in said["charts"] for series in chart["series"] if chart["kind"] == "line"
    ) <= (MAX_POINTS)
    window = opened(tmp_path)
    assert "shortened here: " in window.find_element("id", "group").text


def test_what_trainers_leave_in_the_folder_is_shown(tmp_path: Path) -> None:
    log_run(tmp_path, 2)
    for step in (1, 2):
        state = {"log_history": [{"step": s, "loss": 0.5, "grad_norm": float("nan")} for s in range(1, step + 1)]}
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(json.dumps(state))
    (tmp_path / "checkpoint-2" / "broken").mkdir()
    verl = [
        {"step": s, "data": {"timing_s/gen": 4.0, "timing_s/reward": 1.5, "timing_s/update_actor": 2.0}} for s in (1, 2)
    ]
    (tmp_path / "verl.jsonl").write_text("".join(json.dumps(line) + "\n" for line in verl) + '{"step": 3, "da')
    page = page_of(tmp_path)
    charts = {c["title"]: c for c in json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])["charts"]}  # type: ignore[index]
    assert charts["Loss"]["series"][0]["y"] == [0.5, 0.5]
    assert "Gradient norm" not in charts
    assert {s["name"]: s["y"] for s in charts["Seconds per step"]["series"]} == {
        "generating": [4.0, 4.0], "judging": [1.5, 1.5], "updating": [2.0, 2.0],
    }  # fmt: skip


# -- the command ------------------------------------------------------------------------------------------------------


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "mrjudge_reward.cli", "report", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, check=False, cwd=ROOT)


def test_the_command_writes_beside_the_log_or_where_it_is_told(run: Path, tmp_path: Path) -> None:
    done = command(run)
    assert (done.returncode, done.stdout) == (0, "")
    assert "report.html: " in done.stderr
    assert (run / "report.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert command(run, "-o", tmp_path / "x.html").returncode == 0
    assert (tmp_path / "x.html").stat().st_size > 10_000
    refused = command(tmp_path)
    assert refused.returncode == 2
    assert "holds no log of a judge" in refused.stderr
