"""Everything that only a GPU can show, in the order of its worth, for a machine that is lent for minutes.

    python -m tests.benchmarks.gpu_checks --out FOLDER                  # all that is not done there yet
    python -m tests.benchmarks.gpu_checks --out FOLDER --only serves    # one of them
    python -m tests.benchmarks.gpu_checks --list

Each check is a process with a time-out of its own. What it prints goes to ``FOLDER/<check>.log`` as it comes, how it ended
to ``FOLDER/checks.jsonl``. A check that passed there is not run again; one that failed, or was cut off, is. With
``--seconds`` nothing is begun that could not end in time.

The device must be nobody else's. ``pytest`` and the ``[vllm]`` and ``[trl]`` extras are needed; ``verl`` wants its own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from .step_share import SCHEDULES

READS = ("What a film!", "It was dull and terrible.", "I loved every minute of it.", "It is about a dog.")
DIFFERENCE = 0.3
"""Log-odds by which bfloat16 in two engines may differ."""


class Check(NamedTuple):
    """A command, and the seconds it may take."""

    name: str
    what: str
    seconds: int
    command: tuple[str, ...]


def checks(policy: str | None, judge: str | None, out: Path) -> list[Check]:
    """All of them, the most telling first."""
    python = sys.executable
    models = [part for name, value in (("--policy", policy), ("--judge", judge)) if value for part in (name, value)]
    share = (python, "-m", "tests.benchmarks.step_share", *models, "--out", str(out / "step_share.jsonl"))
    gpu = (python, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", "-m", "gpu", "tests/engines/test_gpu.py", "-k")
    return [
        Check("serves", "vLLM imports, serves, and reads labels as transformers does", 150,
              (python, "-m", "tests.benchmarks.gpu_checks", "--read", *(["--judge", judge] if judge else []))),
        Check("sleeps", "a sleeping vLLM gives its memory back, both levels, in process and child", 300,
              (*gpu, "sleeping_vllm")),
        Check("trains", "TRL's policy engine and the judge in turns; asleep after an exception", 300,
              (*gpu, "trls_policy_engine")),
        Check("steps", "shares of a step: no judge, and reads of a sleeping server", 300,
              (*share, "--places", "none", "server", "--verdicts", "read", "--steps", "6")),
        Check("places", "shares of a step: each place, each way to a verdict", 600,
              (*share, "--verdicts", "read", "thought", "written")),
        Check("turns", "two processes with a judge each are never awake at once", 200, (*gpu, "never_awake_at_once")),
        Check("others", "the checks that need no vLLM", 200, (*gpu, "verdicts or offloaded or policys_base")),
        Check("overhead", "judgements a second against the raw engine", 420,
              (python, "-m", "tests.benchmarks.overhead", "--engines", "vllm", "--parts", "engine",
               "--json", str(out / "overhead.json"))),
        Check("schedules", "shares of a step by schedule", 400,
              (*share, "--places", "server", "--verdicts", "read", "--schedules", *SCHEDULES)),
        Check("prefix", "prompt tokens from the prefix cache", 400,
              (python, "-m", "tests.benchmarks.prefix", "--groups", "8", "--scale", "0",
               "--json", str(out / "prefix.json"))),
        Check("verl", "verl with a colocated judge, two steps", 400,
              ("bash", "recipes/verl/launch.sh", "recipes/verl/grpo_colocated.yaml", "trainer.total_training_steps=2",
               *([f"actor_rollout_ref.model.path={policy}"] if policy else []))),
    ]  # fmt: skip


def read(judge: str | None) -> int:
    """Read the same labels in vLLM and in transformers; 1 if they differ by more than rounding.

    Prints how many reads a second the server makes of so many requests at once, no two of them alike from the first word on.
    """
    from mrjudge_reward.engines.embedded import embedded_model_path
    from mrjudge_reward.engines.local.engine import TransformersEngine
    from mrjudge_reward.engines.vllm.server import VLLMServerEngine
    from mrjudge_reward.messages import as_messages
    from mrjudge_reward.types import Reply, Request

    path = judge or str(embedded_model_path())
    requests = [Request(as_messages(text), prefill="Sentiment:", labels=(" negative", " positive")) for text in READS]
    began = time.perf_counter()
    server = VLLMServerEngine(path, gpu_memory_utilization=0.4, max_model_len=1024, max_concurrency=256)
    print(f"served after {time.perf_counter() - began:.1f} s", flush=True)
    for at_once in (1, 8, 64, 256):
        many = [
            replace(requests[0], messages=as_messages(f"{at_once} {number} " + "It was a film about a dog. " * 60))
            for number in range(at_once)
        ]
        began = time.perf_counter()
        server.label_logprobs(many)
        print(f"{at_once} at once: {at_once / (time.perf_counter() - began):.1f} reads a second", flush=True)
    odds: list[list[float]] = []
    for engine in (server, TransformersEngine(path)):
        replies = engine.label_logprobs(requests)
        assert all(isinstance(reply, Reply) for reply in replies), replies
        pairs = [reply.label_logprobs for reply in replies if isinstance(reply, Reply) and reply.label_logprobs]
        odds.append([pair[1] - pair[0] for pair in pairs])
        engine.close()
    most = max(abs(one - other) for one, other in zip(*odds, strict=True))
    print(f"log-odds in vLLM {odds[0]}, in transformers {odds[1]}; they differ by at most {most:.4f}")
    return int(most > DIFFERENCE)


def run(check: Check, out: Path) -> dict[str, Any]:
    """Run one check; how it ended."""
    began = time.monotonic()
    with (out / f"{check.name}.log").open("ab") as log:
        try:
            code: int | str = subprocess.run(
                check.command, stdout=log, stderr=subprocess.STDOUT, timeout=check.seconds, check=False
            ).returncode
        except subprocess.TimeoutExpired:
            code = "timed out"
        except OSError as error:
            code = str(error)
    return {"check": check.name, "code": code, "seconds": round(time.monotonic() - began, 1)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is not done yet; 1 if something of it failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder of logs and results")
    parser.add_argument("--policy", help="folder of a model; the embedded one by default")
    parser.add_argument("--judge", help="folder of a model; the policy by default")
    parser.add_argument("--only", nargs="+", help="names of checks")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="until the machine is gone")
    parser.add_argument("--list", action="store_true", help="name the checks and leave")
    parser.add_argument("--read", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.read:
        return read(options.judge)
    known = checks(options.policy, options.judge, options.out or Path())
    if options.list:
        print("\n".join(f"{check.name:10} {check.seconds:4} s  {check.what}" for check in known))
        return 0
    if options.out is None:
        parser.error("--out is needed: logs and results are kept there")
    if unknown := set(options.only or ()) - {check.name for check in known}:
        parser.error(f"there is no check {', '.join(sorted(unknown))}; there are {', '.join(c.name for c in known)}")
    options.out.mkdir(parents=True, exist_ok=True)
    results = options.out / "checks.jsonl"
    lines = results.read_text(encoding="utf-8").splitlines() if results.exists() else []
    passed = {row["check"] for row in map(json.loads, lines) if row["code"] == 0}
    until = time.monotonic() + options.seconds
    failed = 0
    for check in known:
        if check.name in passed or check.name not in (options.only or {check.name}):
            continue
        if (left := until - time.monotonic()) < 30:
            print(f"{check.name}: not begun, {max(0.0, left):.0f} s are left", flush=True)
            continue
        row = run(check._replace(seconds=int(min(check.seconds, left))), options.out)
        with results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        log = (options.out / f"{check.name}.log").read_text(encoding="utf-8", errors="replace")
        end = "\n".join(log.splitlines()[-15:])
        print(f"== {check.name} ({check.what}): {row['code']} after {row['seconds']} s\n{end}", flush=True)
        failed += row["code"] != 0
    return int(failed > 0)


if __name__ == "__main__":
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    sys.exit(main())
