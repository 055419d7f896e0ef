"""Where the suite's time goes: the slowest files at the end of a run, and a failure where one test takes over a minute."""

from __future__ import annotations

import resource
from collections import defaultdict
from typing import Any

import pytest

from . import warm_python

SHOWN = 20
LIMIT_S = 60
LONGER = {
    "tests/integrations/verl/test_training.py": (400, "a dozen processes of verl, Ray, vLLM start one after the other"),
    "tests/recipes/test_main_job.py": (120, "two processes train, each of which imports TRL"),
    "tests/integrations/trl/test_colocated.py": (150, "TRL's vLLM and the judge's start one after the other"),
    "tests/integrations/trl/test_two_ranks.py": (150, "torchrun starts two processes, each of which imports TRL"),
    "tests/recipes/test_chain.py": (120, "synthesis, two trainings and measuring come one after the other"),
    "tests/recipes/test_two_ranks_pictured.py": (120, "two processes train twice, under ZeRO-3 too"),
    "tests/engines/vllm/test_engine.py": (150, "servers of vLLM are started, killed and started anew"),
    "tests/engines/vllm/test_images.py": (150, "vLLM starts with an image processor in a process of its own"),
    "tests/integrations/verl/test_streaming.py": (150, "five reward workers import verl"),
    "tests/benchmarks/": (150, "benchmarks repeat what they time"),
}
"""Tests that may take longer (the start of their id): how long, and why."""

_phases: dict[str, list[tuple[float, float]]] = defaultdict(list)  # (wall, CPU) seconds by test
_spent = 0.0


def cpu_s() -> float:
    """CPU time of this process, of the children that have ended, and of the warm interpreter's."""
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in both) + warm_python.cpu_s()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Any:
    global _spent
    report = yield
    report.cpu_s, _spent = cpu_s() - _spent, cpu_s()  # an attribute of a report reaches xdist's controller
    return report


def pytest_runtest_logreport(report: Any) -> None:
    _phases[report.nodeid].append((report.duration, report.cpu_s))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    files: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for test, phases in _phases.items():
        files[test.partition("::")[0]] += phases
    rows = sorted(((*map(sum, zip(*phases, strict=True)), name) for name, phases in files.items()), reverse=True)
    if len(rows) > 1:
        terminalreporter.section(f"slowest files: seconds, CPU seconds ({len(rows)} files in all)")
        for wall, cpu, name in rows[:SHOWN]:
            terminalreporter.line(f"{wall:7.0f} {cpu:7.0f}  {name}")
    for test in too_long():
        terminalreporter.line(f"over {limit_of(test)} s (see tests/support/timings.py): {test}", red=True)


def limit_of(test: str) -> float:
    return next((limit for start, (limit, _) in LONGER.items() if test.startswith(start)), LIMIT_S)


def too_long() -> list[str]:
    return [test for test, phases in _phases.items() if max(wall for wall, _ in phases) > limit_of(test)]


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    in_worker = hasattr(session.config, "workerinput")
    if not in_worker and too_long() and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
