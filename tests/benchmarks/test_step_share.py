"""The shares of a step and the sequence of GPU checks: what they measure, and that a run that was cut off goes on."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mrjudge_reward.engines.vllm.setup import cpu_build
from mrjudge_reward.scoring.stats import JudgeStats
from mrjudge_reward.types import Usage
from tests.support.trl_setup import tiny_policy

from . import gpu_checks, step_share
from .gpu_checks import Check
from .step_share import GIB, Combination

needs_vllm = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None or not cpu_build(),
    reason="needs vLLM's CPU build, which `make setup` installs",
)

SIZES = ("--steps", "2", "--generations", "2", "--groups", "2", "--length", "4", "--context", "2048", "--device", "cpu")


@needs_vllm
def test_a_step_beside_a_real_policy_engine_is_told_by_its_parts(
    smol_tokenizer: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy, out = tmp_path / "policy", tmp_path / "rows.jsonl"
    tiny_policy(smol_tokenizer, heads=2, context=2048).save_pretrained(policy)
    smol_tokenizer.save_pretrained(policy)
    arguments = ["--policy", str(policy), "--out", str(out), "--places", "offload", "--verdicts", "written", *SIZES]
    assert step_share.main(arguments) == 0, capsys.readouterr().err
    (row,) = map(json.loads, out.read_text().splitlines())
    assert row["combination"] == "offload adaptive written"
    parts = ("generate", "wake", "judge", "sleep", "update")
    assert sum(row[part] for part in parts) == pytest.approx(row["step"], abs=1e-3)
    assert all(row[part] > 0 for part in ("generate", "judge", "update"))
    assert row["calls"] == 4, "two groups of two, in both orders"
    assert row["written"] > 0

    written = out.read_text()
    assert step_share.main(arguments) == 0
    assert out.read_text() == written, "what stands there is not run again"
    assert "| offload adaptive written |" in capsys.readouterr().out


def test_a_row_holds_medians_of_the_later_steps_shares_and_memory() -> None:
    def step(seconds: float, judge: float) -> dict[str, float]:
        return {"step": seconds, "generate": 1.0, "wake": 0.1, "judge": judge, "sleep": 0.3, "update": 1.0, "peak": 9.0}

    steps = [step(50.0, 40.0), step(10.0, 0.6), step(10.0, 0.5), step(12.0, 0.7)]
    stats = JudgeStats(calls=30, failed=3, usage=Usage(1000, 250, 30))
    memory = {"asleep": [4 * GIB] * 3, "woken": [14 * GIB] * 3, "back": [4 * GIB, 4 * GIB, 4 * GIB, 5 * GIB]}
    row = step_share.summary(Combination("server", "ring", "read"), steps, [stats], memory)
    assert (row["steps"], row["step"], row["judge"]) == (3, 10.0, 0.6)
    assert (row["share"], row["turns_share"]) == (0.1, 0.04)
    assert (row["calls_per_s"], row["cached"], row["failed"]) == (50.0, 0.25, 3)
    assert (row["took_gib"], row["returned"], row["leak_gib"]) == (10.0, 0.9, 1.0)


@pytest.mark.parametrize(
    ("places", "names"),
    [
        (["none"], ["none"]),
        (["none", "base"], ["none", "base ring read", "base ring written"]),
        (["server"], ["server ring read", "server ring written"]),
    ],
)
def test_without_a_judge_there_is_one_combination(places: list[str], names: list[str]) -> None:
    options = SimpleNamespace(places=places, schedules=["ring"], verdicts=["read", "written"])
    assert [combination.name for combination in step_share.combinations(options)] == names  # type: ignore[arg-type]


def test_a_combination_that_fails_is_shown_with_its_reason_and_run_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ends = [{"combination": "none", "error": "out of memory"}, {"combination": "none", "step": 1.0}]
    monkeypatch.setattr(step_share, "run_apart", lambda *_: ends.pop(0))
    arguments = ["--policy", "p", "--device", "cpu", "--places", "none", "--out", str(tmp_path / "rows.jsonl")]
    assert step_share.main(arguments) == 1
    assert "| none | out of memory |" in capsys.readouterr().out
    assert step_share.main(arguments) == 0
    assert step_share.main(arguments) == 0
    assert ends == []


def test_checks_that_passed_are_not_run_again_and_a_late_one_is_not_begun(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def python(code: str) -> tuple[str, ...]:
        return (sys.executable, "-c", code)

    known = [
        Check("good", "passes", 60, python("print('fine')")),
        Check("bad", "fails", 60, python("raise SystemExit('no device')")),
        Check("slow", "does not end", 1, python("import time; time.sleep(60)")),
        Check("missing", "has no program", 60, ("no-such-program",)),
    ]
    monkeypatch.setattr(gpu_checks, "checks", lambda *_: known)
    assert gpu_checks.main(["--out", str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert all(end in printed for end in ("fine", "no device", "timed out", "No such file"))
    rows = [json.loads(line) for line in (tmp_path / "checks.jsonl").read_text().splitlines()]
    assert [(row["check"], row["code"] == 0) for row in rows] == [(check.name, check.name == "good") for check in known]

    assert gpu_checks.main(["--out", str(tmp_path), "--only", "good", "bad"]) == 1
    again = [json.loads(line)["check"] for line in (tmp_path / "checks.jsonl").read_text().splitlines()[len(known) :]]
    assert again == ["bad"]

    capsys.readouterr()
    assert gpu_checks.main(["--out", str(tmp_path), "--seconds", "5", "--only", "bad"]) == 0
    assert "bad: not begun" in capsys.readouterr().out


def test_every_gpu_check_names_what_exists(tmp_path: Path) -> None:
    known = gpu_checks.checks("a policy", "a judge", tmp_path)
    assert len({check.name for check in known}) == len(known)
    for check in known:
        modules = [check.command[at + 1] for at, part in enumerate(check.command) if part == "-m" and at == 1]
        assert all(importlib.util.find_spec(module) for module in modules)
        assert all(Path(part).exists() for part in check.command if part.endswith((".py", ".sh", ".yaml")))
        if "-k" in check.command:
            tests = Path("tests/engines/test_gpu.py").read_text(encoding="utf-8")
            assert all(word in tests for word in check.command[-1].split(" or "))
