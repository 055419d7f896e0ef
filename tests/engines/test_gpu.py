"""What only a GPU can show: memory that comes back, and a judge beside a policy in bfloat16.

Those that need no vLLM passed on one H200 (26 November 2026); the others were not yet run.

``pytest -m gpu`` needs one GPU that nobody else uses, 40 GB or more of it, and some ten minutes; ``-s`` prints the
figures. Free memory is that of the whole device, so that it counts what a child process takes.
"""

from __future__ import annotations

import gc
import importlib.util
import itertools
import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model

from mrjudge_reward.engines.colocation import ColocatedEngine
from mrjudge_reward.engines.local.engine import TransformersEngine
from mrjudge_reward.engines.local.offload import OffloadEngine
from mrjudge_reward.engines.local.shared_base import SharedBaseEngine
from mrjudge_reward.messages import as_messages
from mrjudge_reward.types import Reply, Request
from tests.engines.local.test_shared_base import load, randomise, save_adapter
from tests.support import ROOT

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available(), reason="needs a CUDA device: pytest -m gpu on a machine with one"
    ),
    pytest.mark.filterwarnings("default"),  # what the CUDA builds of torch and vLLM warn about was never seen
]
needs_vllm = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="needs vLLM: pip install '.[vllm]'")

DEVICE = "cuda:0"
SHARE = 0.3
"""Of the device, for each vLLM."""
GIB = 1 << 30
TEXTS = ["What a film!", "It was dull and terrible.", "I loved every minute of it.", "It is about a dog."]
READS = [Request(as_messages(text), prefill="Sentiment:", labels=(" negative", " positive")) for text in TEXTS]


def free() -> int:
    """Bytes that nobody on the device uses."""
    return torch.cuda.mem_get_info()[0]


def total() -> int:
    return torch.cuda.mem_get_info()[1]


def allocated() -> int:
    """Bytes of this process's tensors on the device."""
    gc.collect()
    return torch.cuda.memory_allocated()


def reads(engine: Any) -> list[tuple[float, ...]]:
    replies = engine.label_logprobs(READS)
    assert all(isinstance(reply, Reply) for reply in replies), replies
    return [reply.label_logprobs for reply in replies]


def gap(ones: list[tuple[float, ...]], others: list[tuple[float, ...]]) -> float:
    """The largest difference between two lists of log-probabilities."""
    pairs = [pair for one, other in zip(ones, others, strict=True) for pair in zip(one, other, strict=True)]
    return max(abs(one - other) for one, other in pairs)


def apart(function: Callable[..., Any], *arguments: Any, processes: int = 1) -> list[Any]:
    """Call it in fresh processes, where nothing of CUDA or vLLM is left over from another test."""
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        return [future.result() for future in [pool.submit(function, *arguments) for _ in range(processes)]]


def vllm_engine(name: str, path: str, level: int) -> Any:
    settings: dict[str, Any] = {
        "gpu_memory_utilization": SHARE,
        "max_model_len": 1024,
        "enable_sleep_mode": True,
        "sleep_level": level,
        "engine_kwargs": {"enforce_eager": level == 2},  # the CUDA graphs of level 1 must outlive the sleep
    }
    if name == "vllm":
        from mrjudge_reward.engines.vllm.engine import VLLMEngine

        return VLLMEngine(path, **settings)
    from mrjudge_reward.engines.vllm.server import VLLMServerEngine

    return VLLMServerEngine(path, **settings)


# -- a judge of its own ---------------------------------------------------------------------------------------------------


def test_verdicts_on_the_gpu_are_those_of_the_cpu(smol_path: str, smol_engine: TransformersEngine):
    expected = reads(smol_engine)
    exact = TransformersEngine(smol_path, device=DEVICE, dtype="float32")
    assert gap(reads(exact), expected) < 5e-3
    usual = TransformersEngine(smol_path)
    assert (usual._device, usual._dtype) == ("cuda", "bfloat16")
    positive = [values[1] - values[0] for values in reads(usual)]
    assert positive[1] < positive[2], "bfloat16 rounds, and still tells dull from loved"
    assert gap(reads(usual), expected) < 0.5


def test_an_offloaded_judge_gives_its_memory_back_after_each_call(smol_path: str):
    stays = TransformersEngine(smol_path, device=DEVICE, dtype="float32")
    expected = reads(stays)  # and now the libraries have their workspaces
    before = allocated()
    visits = OffloadEngine(smol_path, device=DEVICE, dtype="float32")
    weights = sum(parameter.nbytes for parameter in visits._model.parameters())
    assert allocated() - before < 0.01 * weights, "it was loaded into the CPU's memory"
    for _ in range(2):
        torch.cuda.reset_peak_memory_stats()
        assert gap(reads(visits), expected) < 1e-3
        assert torch.cuda.max_memory_allocated() - before > weights
        assert allocated() - before < 0.01 * weights
    visits.wake()
    awake = free()
    assert gap(reads(visits), expected) < 1e-3
    visits.sleep()
    asleep = free()
    print(f"offload: weights {weights / GIB:.2f} GiB, given back {(asleep - awake) / GIB:.2f} GiB")
    assert asleep - awake > 0.9 * weights, "to the device, and not only to torch's cache"
    assert {parameter.device.type for parameter in visits._model.parameters()} == {"cpu"}


@dataclass(frozen=True)
class Night:
    """A device's free bytes and a judge's reads around a sleep."""

    before: int
    awake: int
    asleep: int
    woken: int
    first: list[tuple[float, ...]]
    second: list[tuple[float, ...]]


def spend_a_night(name: str, path: str, level: int) -> Night:
    before = free()
    engine = vllm_engine(name, path, level)
    try:
        first = reads(engine)
        awake = free()
        engine.sleep()
        asleep = free()
        engine.wake()
        second = reads(engine)
        return Night(before, awake, asleep, free(), first, second)
    finally:
        engine.close()


@needs_vllm
@pytest.mark.parametrize("level", [1, 2])
@pytest.mark.parametrize("name", ["vllm_server", "vllm"])
def test_a_sleeping_vllm_gives_its_memory_back_and_wakes_as_it_was(name: str, level: int, smol_path: str):
    (night,) = apart(spend_a_night, name, smol_path, level)
    took, gave = night.before - night.awake, night.asleep - night.awake
    print(f"{name}, level {level}: took {took / GIB:.2f} GiB, gave back {gave / GIB:.2f} GiB asleep")
    assert took > 0.8 * SHARE * total()
    assert gave >= 0.9 * took
    assert night.before - night.woken == pytest.approx(took, rel=0.1)
    assert gap(night.first, night.second) < 0.3, "the last digits of bfloat16 depend on how requests meet in batches"


# -- a judge beside others ------------------------------------------------------------------------------------------------


def test_a_judge_on_the_policys_base_costs_its_adapter_and_leaves_the_policy_bit_for_bit(
    smol_path: str, tmp_path: Path
):
    adapter = save_adapter(load(smol_path), tmp_path / "judge", r=16)
    base = transformers.AutoModelForCausalLM.from_pretrained(smol_path, dtype=torch.bfloat16).to(DEVICE)
    policy = get_peft_model(base, LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM"))
    randomise(policy, 1).train()
    ids = torch.arange(1, 65, device=DEVICE).reshape(2, 32)  # (B, T)
    policy(input_ids=ids, labels=ids).loss.backward()

    def look() -> dict[str, Any]:
        with torch.no_grad():
            seen: dict[str, Any] = {"logits": policy(input_ids=ids).logits.clone()}
        for name, parameter in policy.named_parameters():
            seen[name] = parameter.detach().clone()
            seen[f"gradient of {name}"] = torch.zeros(()) if parameter.grad is None else parameter.grad.clone()
            seen[f"flag of {name}"] = torch.tensor(parameter.requires_grad)
        for name, module in policy.named_modules():
            seen[f"mode of {name}"] = torch.tensor(module.training)
        return seen

    looked = look()
    before = allocated()
    judge = SharedBaseEngine(policy, adapter)
    assert judge._visitor is not None
    own = sum(weight.nbytes for weight in judge._visitor._weights())
    policys = sum(parameter.nbytes for parameter in policy.parameters())
    extra = allocated() - before
    said = reads(judge)
    print(f"shared base: policy {policys / GIB:.3f} GiB, judge {extra / GIB:.3f} GiB more, adapter {own / GIB:.3f} GiB")
    assert 0 < own < 0.1 * policys
    assert extra == pytest.approx(own, rel=0.1)
    assert allocated() - before == pytest.approx(own, rel=0.1), "nothing is left of judging"
    after = look()
    assert looked.keys() == after.keys()
    assert [name for name, value in looked.items() if not torch.equal(value, after[name])] == []
    alone = TransformersEngine(smol_path, adapter=adapter, device=DEVICE, dtype="bfloat16")
    assert gap(said, reads(alone)) < 0.3


def judge_in_turns(path: str, meeting: str, rounds: int) -> list[tuple[float, float]]:
    """From when to when a colocated judge was awake; the clock is the machine's."""
    awake: list[tuple[float, float]] = []

    def build() -> Any:
        since = time.monotonic()
        engine = vllm_engine("vllm_server", path, 1)
        wake, sleep = engine.wake, engine.sleep

        def woken() -> None:
            nonlocal since
            since = time.monotonic()
            wake()

        def slept() -> None:
            sleep()
            awake.append((since, time.monotonic()))

        engine.wake, engine.sleep = woken, slept
        return engine

    engine = ColocatedEngine(build, [DEVICE])
    try:
        (Path(meeting) / str(os.getpid())).touch()
        until = time.monotonic() + 240
        while len(list(Path(meeting).iterdir())) < 2:  # both have loaded, and now both want the device
            assert time.monotonic() < until, "the other one never came"
            time.sleep(0.05)
        for _ in range(rounds):
            reads(engine)
            time.sleep(0.2)  # lets the other have its turn
    finally:
        engine.close()
    return awake


@needs_vllm
def test_judges_of_two_processes_are_never_awake_at_once(smol_path: str, tmp_path: Path):
    ours, theirs = apart(judge_in_turns, smol_path, str(tmp_path), 5, processes=2)
    assert len(ours) == len(theirs) == 6, "one turn to load and five to judge"
    turns = sorted([*ours, *theirs])
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(turns)), turns
    assert ours[1][0] < theirs[-1][1], "they did contend"
    assert theirs[1][0] < ours[-1][1]


@needs_vllm
def test_trls_policy_engine_and_the_judge_share_the_device_in_turns(smol_path: str, tmp_path: Path):
    """Who is awake when is also checked on the CPU, in test_trl_colocated.py; here it is the memory."""
    out = tmp_path / "run.json"
    command = [sys.executable, "-m", "tests.support.trl_colocated_run", smol_path, str(out), DEVICE]
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]  # with more, the trainer would use them all
    environment = os.environ | {"MRJUDGE_LOCKS": str(tmp_path / "locks"), "CUDA_VISIBLE_DEVICES": first}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=550, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    run = json.loads(out.read_text(encoding="utf-8"))
    assert run["failed"] == [0.0, 0.0]
    assert all(gradient > 0 for gradient in run["gradients"])
    shares = [(when, judge, used / total()) for (when, judge), used in zip(run["seen"], run["used"], strict=True)]
    print("\n".join(f"{when}: judge {judge}, {used:.1%} of the device in use" for when, judge, used in shares))
    assert len(shares) == 2 + 2 * 4
    for when, judge, used in shares:
        assert judge == ("awake" if when == "judging" else "asleep"), when
        if when in ("judging", "policy generates"):  # one of the two, and not both
            assert 0.8 * SHARE < used < 1.5 * SHARE, (when, used)
        else:
            assert used < 0.5 * SHARE, (when, used)
    assert run["error"] == "planted in the middle of a judgement"
    assert run["seen_with_error"][-1] == ["after the error", "asleep"]
    assert run["used_with_error"][-1] < 0.5 * SHARE * total()
