"""What ``mrjudge report`` needs of memory and time for a long run of many ranks, and how large its page is.

    python -m tests.benchmarks.report                         # 10,000 steps of 8 ranks: 3.7 GB of disk, two minutes
    python -m tests.benchmarks.report --quick                 # seconds, for a smoke test

The rows are written by ``RunMonitor`` (of each batch of 4 groups of 8, two with all texts: completions of 100 to 260 words,
a reasoning of 150 words per verdict, 2 % of them failed), a few dozen of them; these are then repeated for all steps and
ranks, each with a rejected text of its own. The first rank also has what a trainer logs, 60 metrics a step.

The command runs in a process of its own, whose peak memory (VmHWM, so on Linux only) is shown. It exits with 1 if that is
above 1 GiB, or the page above 10 MB.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

from mrjudge_reward import Choice, Group, Judge, ScriptedEngine
from mrjudge_reward.monitoring.monitor import RunMonitor
from mrjudge_reward.scoring.alarms import FailureAlarm
from mrjudge_reward.types import Request
from tests.support import ROOT

MOST_MEMORY, MOST_PAGE = 2**30, 10_000_000
STEP, OWN = 987654321, "My own words."  # stand in the rows that are repeated

CHILD = """
import re, sys
from mrjudge_reward.cli import main
try:
    main()
finally:
    print(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1], sum(__import__("os").times()[:2]))
"""

PROSE = (
    "the a film was slow but its music carried every scene and I would watch it again because of one actor who never "
    'smiled while he cut onions f(x) = 9, "quoted", naïve, 你好 \n\n- first'
)


def rows(folder: Path, count: int) -> tuple[str, list[str]]:
    """The first line of a log, and lines of batches."""
    rng = random.Random(0)

    words = PROSE.split(" ")

    def text(count: int) -> str:
        return " ".join(rng.choices(words, k=count))

    def script(request: Request) -> str:
        drawn = zlib.crc32(request.messages[-1].text.encode()) % 50  # asked again it says the same
        verdict = "AB"[drawn % 2] if drawn else OWN
        return f"<think>{text(150)}</think><answer>{verdict}</answer>"

    alarm = FailureAlarm(max_fraction=1.0)
    judge = Judge(ScriptedEngine(script), Choice(), schedule="adaptive", verdict="generate", alarm=alarm)
    monitor = RunMonitor(folder, "made", None)
    for batch in range(count):
        groups = [Group.of(text(60), [text(rng.randint(100, 260)) for _ in range(8)], f"{batch}.{g}") for g in range(4)]
        judgements = judge.judge(groups)
        lengths = [[len(answer) // 4 for answer in group.candidates] for group in groups]
        monitor.log(0, STEP, "train", judge, judgements, [one.scores_G for one in judgements], lengths, None)
    (path,) = folder.glob("*.jsonl")
    start, *batches = path.read_text().splitlines(keepends=True)
    path.unlink()
    return start, batches


def write(folder: Path, steps: int, ranks: int) -> int:
    """Write a run's log, and say how many bytes it has."""
    start, batches = rows(folder, 24)
    size = 0
    for rank in range(ranks):
        rng = random.Random(rank)
        with (folder / f"judge.rank{rank}.jsonl").open("w") as file:
            file.write(start)
            for step in range(1, steps + 1):
                line = rng.choice(batches).replace(str(STEP), str(step), 1)
                file.write(line.replace(OWN, f"My words {rng.random()}.", 1))
                if rank == 0:
                    logs = {f"metric/{name}": rng.random() for name in range(58)} | {"loss": 1 / step, "kl": 0.1}
                    file.write(json.dumps({"kind": "trainer", "step": step, "logs": logs, "time": float(step)}) + "\n")
            size += file.tell()
    return size


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--quick", action="store_true", help="100 steps of 2 ranks, for a smoke test")
    args = parser.parse_args()
    if args.quick:
        args.steps, args.ranks = 100, 2
    with tempfile.TemporaryDirectory() as name:
        size = write(Path(name), args.steps, args.ranks)
        began = time.perf_counter()
        command = [sys.executable, "-c", CHILD, "report", name]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT)
        took = time.perf_counter() - began
        page = (Path(name) / "report.html").stat().st_size
    peak, seconds = int(done.stdout.split()[0]) * 1024, float(done.stdout.split()[1])
    print(
        f"{args.steps} steps x {args.ranks} ranks, {size / 1e6:.0f} MB of log: peak memory {peak / 2**20:.0f} MiB, "
        f"{seconds:.1f} s of CPU, {took:.1f} s in all, page {page / 1e6:.1f} MB"
    )
    if peak > MOST_MEMORY or page > MOST_PAGE:
        print(f"FAIL: more than {MOST_MEMORY / 2**20:.0f} MiB, or a page above {MOST_PAGE / 1e6:.0f} MB")
        sys.exit(1)


if __name__ == "__main__":
    main()
