"""What share of a training step a judge takes: TRL's GRPO on one device, its policy in vLLM, a judge beside it.

    python -m tests.benchmarks.step_share                                   # the embedded model as both, on a GPU or a CPU
    python -m tests.benchmarks.step_share --policy DIR --judge DIR --out rows.jsonl
    python -m tests.benchmarks.step_share --places server offload --schedules adaptive --verdicts read

A combination is a place of the judge, a schedule and a way to a verdict. Each runs in a process of its own, because TRL's
vLLM cannot be made twice in one, and has a time-out of its own. Its line is appended to ``--out`` as soon as it is there;
combinations that stand there already are not run again, so a run that was cut off goes on.

=========  ===========================================================================================================
place      the judge is
=========  ===========================================================================================================
none       none: completions are rewarded by their length, which gives the step without a judge
server     a vLLM server beside TRL's own vLLM, awake only while it judges
share      a vLLM server that keeps its share of the device
offload    in transformers, its weights in the CPU's memory between turns
base       a LoRA on the policy's own base
=========  ===========================================================================================================

Seconds are medians over the steps but the first. *generate* is TRL's, with waking, sleeping and syncing its own engine;
*wake* and *sleep* are the judge's; *judge* is the rest of the reward function; *update* the rest of the step. Memory is
that of the whole device, so that it counts what child processes take; on a CPU there is none to show. The policy's engine
sleeps between its turns on a GPU; on a CPU it cannot, so the figures there only show that everything runs.

Every verdict fails to parse where the judge is no instruct model: its time is the same, so nothing stops.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from tests.support.vllm_on_cpu import ENVIRONMENT, let_trl_train_on_a_cpu

GIB = 1 << 30
PLACES = ("none", "server", "share", "offload", "base")
SCHEDULES = ("listwise", "ring", "adaptive", "all_pairs")
VERDICTS: dict[str, dict[str, Any]] = {
    "read": {"verdict": "logprobs", "min_label_mass": 0.0},
    "thought": {"verdict": "logprobs", "min_label_mass": 0.0, "thinking_tokens": 256},
    "written": {"verdict": "generate", "max_tokens": 256},
}
SUBJECTS = (
    "why the sky is blue", "how a vaccine works", "what inflation is", "how to boil an egg", "why leaves turn red",
    "what a prime number is", "how a bicycle stays upright", "why salt melts ice", "what a compiler does",
    "how tides come about", "why bread rises", "what a black hole is", "how a lock opens", "why cats purr",
    "what a treaty is", "how glass is made",
)  # fmt: skip
TARGETS = ("judge's share of a step <= 0.10", "wake + sleep <= 0.05 of the step", "memory returned >= 0.95")

ALWAYS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}


class Combination(NamedTuple):
    """What is run in one process."""

    place: str
    schedule: str
    verdict: str

    @property
    def name(self) -> str:
        return " ".join(part for part in self if part)


# -- in a process of its own ----------------------------------------------------------------------------------------------


class Clock:
    """Adds up the seconds that calls take, by name, and starts anew with each step."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - began

    def around(self, owner: Any, verb: str, name: str, then: Callable[[], None] = lambda: None) -> None:
        """Take the time of ``owner.verb`` from now on."""
        run = getattr(owner, verb)

        def timed(*args: Any, **more: Any) -> Any:
            with self.timed(name):
                result = run(*args, **more)
            then()
            return result

        setattr(owner, verb, timed)

    def taken(self) -> dict[str, float]:
        taken, self.seconds = dict(self.seconds), defaultdict(float)
        return taken


class Device:
    """What is in use on the device; nothing is, on a CPU.

    Attributes:
        peak: the most that was in use since it was last set to 0, in bytes.
    """

    def __init__(self, name: str) -> None:
        self.on_gpu = name != "cpu"
        self.peak = 0
        threading.Thread(target=self._watch, daemon=True).start()

    def used(self) -> int:
        if not self.on_gpu:
            return 0
        import torch

        free, total = torch.cuda.mem_get_info()
        return int(total - free)

    def _watch(self) -> None:
        while self.on_gpu:
            self.peak = max(self.peak, self.used())
            time.sleep(0.02)


def reward_of(combination: Combination, options: argparse.Namespace, adapter: str | None) -> Any:
    """The reward function, its judge built already where it does not wait for the trainer."""
    from mrjudge_reward.integrations.trl import JudgeReward, SharedBaseJudgeReward
    from mrjudge_reward.judge import JudgeConfig

    if combination.place == "none":

        def length(completions: Sequence[Any], **_: Any) -> list[float]:
            return [float(len(str(completion))) for completion in completions]

        return length
    values: dict[str, Any] = {
        "format": "choice", "schedule": combination.schedule, "max_failed_fraction": 1.0,
        "retries": 0, **VERDICTS[combination.verdict],
    }  # fmt: skip
    if combination.place == "base":
        return SharedBaseJudgeReward(
            JudgeConfig(model="the policy's base", **values), adapter=adapter, num_generations=options.generations
        )
    if combination.place == "offload":
        values |= {"engine": "offload", "device": options.device}
    else:
        values |= {
            "engine": "vllm_server",
            "colocated": combination.place == "server",
            "context_tokens": options.context,
        }
        if options.device == "cpu":
            values |= {"dtype": "float32", "engine_kwargs": {"enforce_eager": True, "block_size": 32}}
    reward = JudgeReward(JudgeConfig(model=options.judge, **values), num_generations=options.generations)
    assert reward.judge is not None
    return reward


def run_one(options: argparse.Namespace, combination: Combination) -> dict[str, Any]:
    """Train some steps and say what they took."""
    import transformers
    from datasets import Dataset
    from peft import LoraConfig
    from trl import GRPOConfig, GRPOTrainer

    on_cpu = options.device == "cpu"
    if on_cpu:
        let_trl_train_on_a_cpu()
    clock, device = Clock(), Device(options.device)
    lora = LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM")
    adapter = None
    if combination.place == "base":
        from peft import get_peft_model

        adapter = f"{options.folder}/adapter"
        base = transformers.AutoModelForCausalLM.from_pretrained(options.policy)
        get_peft_model(base, lora).save_pretrained(adapter)
        del base
    reward = reward_of(combination, options, adapter)
    engine: Any = None if combination.place in ("none", "base") else reward.judge.engine
    memory: dict[str, list[int]] = {"asleep": [], "woken": [], "back": []}
    if hasattr(engine, "engine"):  # one that takes turns
        within = engine.engine
        wake = within.wake

        def wake_and_look() -> None:
            memory["asleep"].append(device.used())
            wake()

        within.wake = wake_and_look
        clock.around(within, "wake", "wake", lambda: memory["woken"].append(device.used()))
        clock.around(within, "sleep", "sleep", lambda: memory["back"].append(device.used()))

    steps: list[dict[str, float]] = []
    counts: list[Any] = []

    class Steps(transformers.TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            clock.taken()
            self.began, device.peak = time.perf_counter(), device.used()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            taken = clock.taken()
            whole = time.perf_counter() - self.began
            asleep = taken.get("wake", 0.0) + taken.get("sleep", 0.0)
            judge = taken.get("reward", 0.0) - asleep
            generate = taken.get("generate", 0.0)
            steps.append({
                "step": whole, "generate": generate, "wake": taken.get("wake", 0.0), "judge": judge,
                "sleep": taken.get("sleep", 0.0), "update": whole - generate - judge - asleep, "peak": device.peak / GIB,
            })  # fmt: skip

    questions = [f"Explain {subject}, as you would to {who}." for who, subject in product(
        ("a child", "a friend", "an expert", "a jury"), SUBJECTS)]  # fmt: skip
    data = Dataset.from_dict({"prompt": [[{"role": "user", "content": question}] for question in questions]})
    trainer = GRPOTrainer(
        model=options.policy,
        reward_funcs=reward,
        train_dataset=data,
        callbacks=[Steps()],
        peft_config=lora if combination.place == "base" else None,
        args=GRPOConfig(
            output_dir=f"{options.folder}/out", max_steps=options.steps, logging_steps=1, save_strategy="no",
            report_to="none", disable_tqdm=True, use_cpu=on_cpu, bf16=not on_cpu, learning_rate=1e-6,
            per_device_train_batch_size=options.generations, gradient_accumulation_steps=options.groups,
            num_generations=options.generations, max_completion_length=options.length, dataloader_pin_memory=not on_cpu,
            gradient_checkpointing=not on_cpu, use_vllm=True, vllm_mode="colocate",
            vllm_enable_sleep_mode=not on_cpu, vllm_gpu_memory_utilization=0.3,
            vllm_max_model_length=128 + options.length,
            model_init_kwargs={"dtype": "float32" if on_cpu else "bfloat16"},
        ),
    )  # fmt: skip
    if combination.place == "base":
        reward.attach(trainer)
    clock.around(trainer.vllm_generation, "sync_weights", "generate")
    clock.around(trainer.vllm_generation, "generate", "generate")
    ask = trainer.reward_funcs[0]

    def asked(*args: Any, **more: Any) -> Any:
        with clock.timed("reward"):
            rewards = ask(*args, **more)
        if hasattr(ask, "last_stats"):
            counts.append(ask.last_stats)
        return rewards

    trainer.reward_funcs[0] = asked
    trainer.train()
    if engine is not None:
        engine.close()
    return summary(combination, steps, counts, memory)


def summary(
    combination: Combination,
    steps: Sequence[dict[str, float]],
    counts: Sequence[Any],
    memory: dict[str, list[int]],
) -> dict[str, Any]:
    """Medians over the steps but the first, in which things are made that last."""
    later = steps[1:] or steps
    row: dict[str, Any] = {"combination": combination.name, "steps": len(later)}
    row |= {name: round(statistics.median(step[name] for step in later), 4) for name in later[0]}
    judging = row["wake"] + row["judge"] + row["sleep"]
    row["share"] = round(judging / row["step"], 4)
    row["turns_share"] = round((row["wake"] + row["sleep"]) / row["step"], 4)
    if counts:
        stats = counts[-1]
        row["calls"] = stats.calls
        row["failed"] = stats.failed
        row["calls_per_s"] = round(stats.calls / row["judge"], 2)
        row["tokens"] = stats.usage.prompt_tokens
        row["cached"] = round(stats.usage.cached_tokens / max(1, stats.usage.prompt_tokens), 3)
        row["written"] = stats.usage.completion_tokens
    took = [woken - asleep for woken, asleep in zip(memory["woken"], memory["asleep"], strict=False)]
    if took and took[-1] > 0:
        gave = [woken - back for woken, back in zip(memory["woken"], memory["back"][-len(took) :], strict=False)]
        row["took_gib"] = round(took[-1] / GIB, 3)
        row["returned"] = round(gave[-1] / took[-1], 4)
        row["leak_gib"] = round((memory["back"][-1] - memory["back"][0]) / GIB, 4)
    return row


# -- all of them ----------------------------------------------------------------------------------------------------------


def combinations(options: argparse.Namespace) -> list[Combination]:
    """What is to be run; without a judge there is neither schedule nor verdict."""
    judged = [place for place in options.places if place != "none"]
    bare = [Combination("none", "", "")] if "none" in options.places else []
    return bare + [Combination(*each) for each in product(judged, options.schedules, options.verdicts)]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    columns = (
        "combination", "step", "generate", "wake", "judge", "sleep", "update", "share", "turns_share", "calls_per_s",
        "calls", "failed", "tokens", "cached", "written", "peak", "took_gib", "returned", "leak_gib",
    )  # fmt: skip
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for row in rows:
        cells = (row.get("error", "") if "error" in row and name == "step" else row.get(name, "") for name in columns)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def run_apart(options: argparse.Namespace, combination: Combination) -> dict[str, Any]:
    """One combination in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "row.json"
        arguments = {
            "policy": options.policy, "judge": options.judge, "device": options.device, "steps": options.steps,
            "generations": options.generations, "groups": options.groups, "length": options.length,
            "context": options.context,
        }  # fmt: skip
        command = [sys.executable, "-m", "tests.benchmarks.step_share", "--one", json.dumps(combination)]
        command += [part for name, value in arguments.items() for part in (f"--{name}", str(value))]
        environment = os.environ | ALWAYS | (ENVIRONMENT if options.device == "cpu" else {})
        log = Path(folder) / "log"
        try:
            with log.open("wb") as file:
                done = subprocess.run(
                    [*command, "--folder", folder], env=environment, stdout=file, stderr=file, check=False,
                    timeout=options.timeout,
                )  # fmt: skip
        except subprocess.TimeoutExpired:
            return {"combination": combination.name, "error": f"not done within {options.timeout} s"}
        if done.returncode or not out.exists():
            said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-40:]
            print("\n".join(said), file=sys.stderr)
            return {"combination": combination.name, "error": said[-1] if said else f"exit {done.returncode}"}
        row: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
        return row


def parser() -> argparse.ArgumentParser:
    ours = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ours.add_argument("--policy", help="folder of the policy; the embedded model by default")
    ours.add_argument("--judge", help="folder of the judge; the policy by default")
    ours.add_argument("--device", help="cpu or cuda:0; a GPU where there is one")
    ours.add_argument("--steps", type=int, default=4, help="of the optimizer, the first of which does not count")
    ours.add_argument("--generations", type=int, default=8, help="completions of a prompt, G")
    ours.add_argument("--groups", type=int, default=8, help="prompts of a step")
    ours.add_argument("--length", type=int, default=256, help="most tokens of a completion")
    ours.add_argument("--context", type=int, default=4096, help="of a judge in vLLM, in tokens")
    ours.add_argument("--places", nargs="+", choices=PLACES, default=list(PLACES))
    ours.add_argument("--schedules", nargs="+", choices=SCHEDULES, default=["adaptive"])
    ours.add_argument("--verdicts", nargs="+", choices=list(VERDICTS), default=list(VERDICTS))
    ours.add_argument("--timeout", type=float, default=240.0, help="seconds for one combination")
    ours.add_argument("--out", type=Path, help="file of JSON lines, which a later run goes on with")
    ours.add_argument("--one", help=argparse.SUPPRESS)
    ours.add_argument("--folder", help=argparse.SUPPRESS)
    return ours


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is not there yet, and print the table; 1 if a combination did not come through."""
    options = parser().parse_args(arguments)
    if options.device is None:
        import torch

        options.device = "cuda:0" if torch.cuda.is_available() else "cpu"
    if options.policy is None:
        from mrjudge_reward.engines.embedded import embedded_model_path

        options.policy = str(embedded_model_path())
    options.judge = options.judge or options.policy
    if options.one:
        row = run_one(options, Combination(*json.loads(options.one)))
        (Path(options.folder) / "row.json").write_text(json.dumps(row), encoding="utf-8")
        return 0
    known: dict[str, dict[str, Any]] = {}
    if options.out is not None and options.out.exists():
        lines = options.out.read_text(encoding="utf-8").splitlines()
        known = {row["combination"]: row for row in map(json.loads, lines) if "error" not in row}
    rows = []
    for combination in combinations(options):
        row = known.get(combination.name) or run_apart(options, combination)
        rows.append(row)
        if combination.name not in known:
            print(json.dumps(row), flush=True)
            if options.out is not None:
                with options.out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
    print(f"\ntargets: {'; '.join(TARGETS)}\n\n{table(rows)}")
    return int(any("error" in row for row in rows))


if __name__ == "__main__":
    sys.exit(main())
