"""vLLM's CPU build on the embedded model: in this process, and as a child server that must never be left behind."""

from __future__ import annotations

import http.client
import importlib.util
import json
import logging
import os
import pickle
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from mrjudge_reward.engines.colocation import ColocatedEngine
from mrjudge_reward.engines.contract import Engine
from mrjudge_reward.engines.label_tokens import first_label_tokens
from mrjudge_reward.engines.local.engine import TransformersEngine
from mrjudge_reward.engines.openai.engine import OpenAIEngine
from mrjudge_reward.engines.vllm import supervise
from mrjudge_reward.engines.vllm.child import command_line, environment, reserve_port
from mrjudge_reward.engines.vllm.setup import VLLMSetup, cpu_build
from mrjudge_reward.errors import ConfigError, EngineError
from mrjudge_reward.judge import Judge
from mrjudge_reward.messages import ImagePart, Message, TextPart
from mrjudge_reward.messages import as_messages as chat
from mrjudge_reward.prompting.formats import SENTIMENT, Choice
from mrjudge_reward.scoring.alarms import FailureAlarm
from mrjudge_reward.scoring.cures import cure_of
from mrjudge_reward.types import EngineFailure, Group, Preference, Reply, Request, Sampling, VerdictForm
from tests.benchmarks.test_overhead import assert_rows_of_a_duel
from tests.benchmarks.test_peers import assert_both_tables
from tests.benchmarks.test_prefix import assert_each_schedule_in_both_orders_and_caches
from tests.engines.local.test_shared_base import save_adapter
from tests.support import ROOT
from tests.support.trl_setup import tiny_policy

needs_vllm = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None or not cpu_build(),
    reason="needs vLLM's CPU build, which `make setup` installs",
)
# vLLM registers its kernels by looking at every attribute of torch.distributed, a deprecated one among them.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.distributed.reduce_op` is deprecated:FutureWarning")

GREEDY = Sampling(0.0, 1.0, 12)
WARM = Sampling(1.0, 1.0, 12)
LABELS = (" negative", " positive")
QUESTIONS = ["Hi!", "Name a colour of the rainbow, please, and say no more than its name.", "What is 2 + 2?"]
# float32, as the transformers engine on a CPU: then both must agree. 32 is the smallest block of vLLM's CPU attention.
SETTINGS: dict[str, Any] = {
    "dtype": "float32",
    "max_model_len": 1024,
    "engine_kwargs": {"enforce_eager": True, "block_size": 32},
}


def reading(text: str, labels: tuple[str, ...] = LABELS, prefill: str = "Sentiment:") -> Request:
    return Request(chat(text), prefill=prefill, labels=labels)


def writing(text: str, sampling: Sampling = GREEDY, **more: Any) -> Request:
    return Request(chat(text), sampling=sampling, **more)


def logprobs(replies: list[Reply | EngineFailure]) -> list[tuple[float, ...]]:
    assert all(isinstance(reply, Reply) for reply in replies), replies
    return [reply.label_logprobs or () for reply in replies if isinstance(reply, Reply)]


def texts(replies: list[Reply | EngineFailure]) -> list[str]:
    assert all(isinstance(reply, Reply) for reply in replies), replies
    return [reply.text for reply in replies if isinstance(reply, Reply)]


def reasons(replies: list[Reply | EngineFailure]) -> list[str]:
    return [reply.reason if isinstance(reply, EngineFailure) else "" for reply in replies]


@pytest.fixture(scope="module", autouse=True)
def cpu() -> Iterator[None]:
    """What vLLM wants to know on a small CPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        patch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        patch.setenv("TORCHDYNAMO_DISABLE", "1")
        patch.setenv("VLLM_NO_USAGE_STATS", "1")
        yield


@pytest.fixture(scope="module")
def small_path(smol_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny model for all that is not about verdicts. It expects labels whatever it has read, so that they can be read."""
    import torch
    import transformers

    config = tiny_policy(smol_tokenizer, heads=2).config
    config.update({"mlp_bias": True, "max_position_embeddings": 2048})
    model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        model.model.layers[-1].mlp.down_proj.bias.fill_(5.0)
        for label in (*"ABCDEFGH", *LABELS):
            model.model.embed_tokens.weight[smol_tokenizer.encode(label)[0]] += 0.15
    folder = tmp_path_factory.mktemp("small")
    model.save_pretrained(folder)
    smol_tokenizer.save_pretrained(folder)
    return str(folder)


# -- in this process --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def engine(smol_path: str, cpu: None) -> Iterator[Any]:
    from mrjudge_reward.engines.vllm.engine import VLLMEngine

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of vLLM's import
        built = VLLMEngine(smol_path, enable_sleep_mode=True, **SETTINGS)
    yield built
    built.close()
    from vllm.distributed import cleanup_dist_env_and_memory

    cleanup_dist_env_and_memory()  # later tests must not find themselves in vLLM's process group


@needs_vllm
def test_it_is_an_engine(engine: Any, smol_engine: TransformersEngine, smol_path: str):
    assert isinstance(engine, Engine)
    assert engine.identity.startswith(f"vllm:{smol_path} ")
    assert "float32" in engine.identity
    assert engine.context_tokens == 1024
    assert engine.reserved == smol_engine.reserved
    assert engine.count_tokens("How many?") == smol_engine.count_tokens("How many?")
    assert engine.generate([]) == engine.label_logprobs([]) == []


@needs_vllm
def test_reads_equal_those_of_the_transformers_engine(engine: Any, smol_engine: TransformersEngine):
    requests = [reading(question) for question in [*QUESTIONS, "awful " * 300]]
    requests += [reading(question, ("A", "B", "C"), "<think>Hm.</think><answer>") for question in QUESTIONS]
    ours, theirs = logprobs(engine.label_logprobs(requests)), logprobs(smol_engine.label_logprobs(requests))
    assert [len(values) for values in ours] == [2, 2, 2, 2, 3, 3, 3]
    for one, other in zip(ours, theirs, strict=True):
        assert one == pytest.approx(other, abs=2e-3)


@needs_vllm
def test_greedy_writing_equals_that_of_the_transformers_engine(engine: Any, smol_engine: TransformersEngine):
    requests = [writing(question) for question in QUESTIONS]
    ours, theirs = engine.generate(requests), smol_engine.generate(requests)
    assert texts(ours) == texts(theirs)
    assert [reply.finish for reply in ours] == [reply.finish for reply in theirs]
    assert [reply.usage.completion_tokens for reply in ours] == [reply.usage.completion_tokens for reply in theirs]


@needs_vllm
def test_a_judge_on_it_reads_and_orders_by_sentiment(engine: Any):
    judge = Judge(engine, SENTIMENT, schedule="pointwise", verdict="read")
    judged = judge.rank("How was the film?", ["It was dull and terrible.", "I loved every minute of it."])
    assert judged.order == (1, 0)


@needs_vllm
def test_sampled_verdicts_can_be_parsed(engine: Any):
    ask = "Which number is larger? A: 3, B: 5. Reply with <answer>A</answer> or <answer>B</answer>."
    requests = [writing(ask, WARM, prefill="The larger one is <answer>", stop=("</",), seed=seed) for seed in range(24)]
    outcomes = [Choice().parse(f"<answer>{text}</answer>", 2) for text in texts(engine.generate(requests))]
    chosen = {outcome.probabilities_K for outcome in outcomes if isinstance(outcome, Preference)}
    assert chosen == {(1.0, 0.0), (0.0, 1.0)}, "an untrained model says both"


@needs_vllm
@pytest.mark.filterwarnings("ignore:max_rollback_tokens is deprecated:DeprecationWarning")  # of vLLM's xgrammar
def test_a_model_that_knows_no_form_is_held_to_it_where_that_is_asked_for(engine: Any, monkeypatch: pytest.MonkeyPatch):
    form = VerdictForm("<answer>", "</answer>", ("A", "B"))
    asked = [writing("Say hello.", Sampling(1.0, 1.0, 40), seed=seed, form=form) for seed in range(4)]
    free = texts(engine.generate(asked))
    monkeypatch.setattr(engine, "_setup", replace(engine._setup, structured_output="structured_outputs"))
    held = engine.generate(asked)
    ended = [reply.text for reply in held if isinstance(reply, Reply) and reply.finish == "stop"]
    assert all(isinstance(Choice().parse(text, 2), Preference) for text in ended), ended
    assert all(text.startswith(("<think>", "<answer>")) for text in texts(held))
    assert not any(text.startswith(("<think>", "<answer>")) for text in free)


@needs_vllm
def test_a_prefill_is_continued_and_not_returned(engine: Any):
    (text,) = texts(engine.generate([writing("What is the capital of France?", prefill="The capital of France is")]))
    assert "Paris" in text
    assert not text.startswith("The capital")


@needs_vllm
def test_stop_strings_and_caps_are_those_of_each_request(engine: Any):
    whole = texts(engine.generate([writing("Count: one, two, three", Sampling(0.0, 1.0, 16))]))[0]
    mark = whole[len(whole) // 2 :][:3]
    cut, capped, ended = engine.generate(
        [
            writing("Count: one, two, three", Sampling(0.0, 1.0, 16), stop=(mark,)),
            writing("Write a long story.", Sampling(0.0, 1.0, 5)),
            writing("What is 2 + 2?", Sampling(0.0, 1.0, 40)),
        ]
    )
    assert (cut.text, cut.finish) == (whole[: whole.index(mark)], "stop")
    assert (capped.finish, capped.usage.completion_tokens) == ("length", 5)
    assert ended.finish == "stop"
    assert "<|im_end|>" not in ended.text


@needs_vllm
def test_many_requests_are_one_batch_and_each_repeats_with_its_seed(engine: Any):
    import torch

    requests = [writing(f"Tell story {index}.", Sampling(1.0, 1.0, 4), seed=index) for index in range(64)]
    before = torch.get_rng_state()
    first = texts(engine.generate(requests))
    assert torch.equal(torch.get_rng_state(), before), "a policy that trains here draws as if nothing had happened"
    assert len(set(first)) > 20
    again = texts(engine.generate(requests[:40]))
    assert sum(one == other for one, other in zip(first, again, strict=False)) >= 39, "but for a tie in floating point"
    others = texts(engine.generate([writing("Tell story 0.", Sampling(1.0, 1.0, 4), seed=seed) for seed in (500, 501)]))
    assert any(other != first[0] for other in others)


@needs_vllm
def test_a_prefix_is_computed_once_and_what_was_cached_is_counted(engine: Any):
    long = "The film was long. " * 30
    first = engine.label_logprobs([reading(long + "One.")])[0].usage
    second = engine.label_logprobs([reading(long + "Two.")])[0].usage
    assert first.prompt_tokens == second.prompt_tokens > 150
    assert second.cached_tokens >= 96 > first.cached_tokens
    assert second.completion_tokens == 1


@needs_vllm
@pytest.mark.parametrize("verb", ["generate", "label_logprobs"])
def test_a_request_that_cannot_be_served_fails_alone(engine: Any, verb: str):
    make = writing if verb == "generate" else reading
    picture = Request((Message("user", (TextPart("What is it?"), ImagePart(b"png"))),), labels=LABELS, sampling=GREEDY)
    replies = getattr(engine, verb)([make("Hi!"), make("word " * 2000), picture, make("Bye!")])
    assert reasons(replies) == ["", "context", "images", ""]
    assert not any(reply.transient for reply in replies if isinstance(reply, EngineFailure))
    assert replies[3].text == getattr(engine, verb)([make("Bye!")])[0].text


@needs_vllm
def test_settings_that_vllm_refuses_are_a_failure_of_that_request(engine: Any):
    replies = engine.generate([writing("Hi!"), writing("Hi!", Sampling(4.0, 1.0, 4)), writing("Hi!")])
    assert reasons(replies) == ["", "invalid request", ""]
    assert "temperature" in replies[1].detail
    many = tuple(chr(code) for code in range(0x4E00, 0x4E00 + 200))
    ids = first_label_tokens(engine._tokens.encode, reading("Hi!", LABELS))
    assert len(ids) == 2
    with pytest.raises(EngineError, match="do not differ in their first token"):
        engine.label_logprobs([reading("Hi!", many)])


@needs_vllm
def test_a_prompt_that_vllm_refuses_when_it_is_handed_over_fails_alone(engine: Any, monkeypatch: pytest.MonkeyPatch):
    generate, sizes = engine._llm.generate, []

    def picky(prompts: list[Any], *args: Any, **more: Any) -> Any:
        sizes.append(len(prompts))
        if any(len(prompt["prompt_token_ids"]) > 100 for prompt in prompts):
            raise ValueError("I take no more than 100 tokens")
        return generate(prompts, *args, **more)

    monkeypatch.setattr(engine._llm, "generate", picky)
    replies = engine.label_logprobs([reading("Hi!"), reading("word " * 100), reading("Bye!"), reading("So.")])
    assert reasons(replies) == ["", "invalid request", "", ""]
    assert sizes == [4, 2, 1, 1, 2]


@needs_vllm
def test_without_reads_by_token_id_a_label_among_the_top_tokens_is_read_and_another_is_a_failure(
    engine: Any, monkeypatch: pytest.MonkeyPatch
):
    likely = engine.generate([writing("Say yes or no.", Sampling(0.0, 1.0, 1), prefill="I say")])[0].text
    exact = logprobs(engine.label_logprobs([reading("Say yes or no.", (likely,), "I say")]))
    monkeypatch.setattr(engine, "_exact", False)
    asked = [reading("Say yes or no.", labels, "I say") for labels in ((likely,), (likely, " xylophone"))]
    found, missing = engine.label_logprobs(asked)
    assert found.label_logprobs == pytest.approx(exact[0], abs=1e-4)
    assert missing.reason == "label not in top logprobs"
    assert "xylophone" in missing.detail


@needs_vllm
def test_an_interrupt_leaves_nothing_for_the_next_call(engine: Any, monkeypatch: pytest.MonkeyPatch):
    expected = logprobs(engine.label_logprobs([reading("Hi!")]))
    step, steps = engine._llm.llm_engine.step, []

    def interrupted() -> Any:
        steps.append(1)
        if len(steps) == 2:
            raise KeyboardInterrupt
        return step()

    with monkeypatch.context() as patch:
        patch.setattr(engine._llm.llm_engine, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            engine.generate([writing(question) for question in QUESTIONS])
    assert logprobs(engine.label_logprobs([reading("Hi!")])) == [pytest.approx(expected[0], abs=1e-4)]


@needs_vllm
def test_a_vllm_that_breaks_raises_then_and_ever_after(engine: Any, monkeypatch: pytest.MonkeyPatch):
    def broken(*args: Any, **more: Any) -> Any:
        raise RuntimeError("the device is gone")

    monkeypatch.setattr(engine, "_broken", "")
    with monkeypatch.context() as patch:
        patch.setattr(engine._llm, "generate", broken)
        with pytest.raises(EngineError, match="vLLM failed: RuntimeError: the device is gone"):
            engine.generate([writing("Hi!")])
    with pytest.raises(EngineError, match="is broken since RuntimeError"):
        engine.generate([writing("Hi!")])


@needs_vllm
def test_answers_to_other_requests_are_never_taken(engine: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(engine, "_broken", "")
    generate = engine._llm.generate
    monkeypatch.setattr(engine._llm, "generate", lambda *args, **more: generate(*args, **more)[::-1])
    with pytest.raises(EngineError, match="or other ones"):
        engine.label_logprobs([reading("Hi!"), reading("Bye!")])


@needs_vllm
def test_asleep_it_refuses_and_a_cpu_that_frees_nothing_is_said_once(engine: Any, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING, "mrjudge_reward"):
        for _ in range(2):
            engine.sleep()
            engine.sleep()
            with pytest.raises(EngineError, match=r"is asleep; call wake\(\)"):
                engine.generate([writing("Hi!")])
            engine.wake()
            engine.wake()
    assert sum("cannot put a model to sleep on a CPU" in record.message for record in caplog.records) == 1
    assert texts(engine.generate([writing("Hi!")]))[0]


@needs_vllm
def test_an_adapter_says_what_it_says_under_transformers_also_after_pickling(
    cpu: None, smol_tokenizer: Any, tmp_path: Path
):
    from mrjudge_reward.engines.vllm.engine import VLLMEngine

    base, path = tiny_policy(smol_tokenizer, heads=2), str(tmp_path / "tiny")
    base.save_pretrained(path)
    smol_tokenizer.save_pretrained(path)
    adapter = save_adapter(base, tmp_path / "adapter", target_modules=["q_proj", "v_proj"])
    judge = VLLMEngine(path, adapter=adapter, **{**SETTINGS, "max_model_len": 256})
    pickled = pickle.dumps(judge)
    said = logprobs(judge.label_logprobs([reading("Hi!")]))[0]
    judge.close()
    judge.close()
    with pytest.raises(EngineError, match="was closed"):
        judge.generate([writing("Hi!")])
    adapted, plain = (
        logprobs(TransformersEngine(path, adapter=one, device="cpu").label_logprobs([reading("Hi!")]))[0]
        for one in (adapter, None)
    )
    assert said == pytest.approx(adapted, abs=2e-3)
    assert max(abs(one - other) for one, other in zip(said, plain, strict=True)) > 1e-2
    assert adapter in judge.identity
    twin = pickle.loads(pickled)
    assert (twin.identity, twin.context_tokens) == (judge.identity, 256)
    assert logprobs(twin.label_logprobs([reading("Hi!")]))[0] == pytest.approx(said, abs=1e-4)
    twin.close()


@needs_vllm
def test_a_model_or_adapter_that_is_not_there_is_named(engine: Any, smol_path: str, tmp_path: Path):
    from mrjudge_reward.engines.vllm.engine import VLLMEngine

    with pytest.raises(EngineError, match="no-such-model"):
        VLLMEngine(str(tmp_path / "no-such-model"))
    with pytest.raises(EngineError, match="no-such-adapter"):
        VLLMEngine(smol_path, adapter=str(tmp_path / "no-such-adapter"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gpu_memory_utilization": 0.0}, "gpu_memory_utilization must be in"),
        ({"gpu_memory_utilization": 1.5}, "gpu_memory_utilization must be in"),
        ({"tensor_parallel_size": 0}, "tensor_parallel_size must be"),
        ({"sleep_level": 3}, "a sleep level is 1"),
    ],
)
def test_a_setting_out_of_range_is_refused(settings: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        VLLMSetup("m", **settings)


def test_an_adapter_gets_room_for_its_rank_and_is_not_dropped_by_a_deep_sleep(tmp_path: Path):
    (tmp_path / "adapter_config.json").write_text('{"r": 24}')
    setup = VLLMSetup("m", adapter=str(tmp_path))
    assert setup.engine_arguments()["max_lora_rank"] == 32
    with pytest.raises(ConfigError, match="use level 1"):
        VLLMSetup("m", adapter=str(tmp_path), sleep_level=2)
    (tmp_path / "adapter_config.json").write_text('{"r": 1024}')
    with pytest.raises(EngineError, match="rank 1024; vLLM takes at most 512"):
        setup.engine_arguments()


def test_an_argument_of_the_users_wins():
    arguments = VLLMSetup("m", engine_kwargs={"enable_prefix_caching": False, "seed": 3}).engine_arguments()
    assert (arguments["enable_prefix_caching"], arguments["seed"], arguments["model"]) == (False, 3, "m")


# -- the supervisor: no process is left behind --------------------------------------------------------------------------

FAMILY = textwrap.dedent(
    """
    import os, signal, subprocess, sys, time
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if len(sys.argv) < 3:
        subprocess.Popen([sys.executable, __file__, sys.argv[1], "grandchild"])
    with open(sys.argv[1], "a") as pids:
        pids.write(f"{os.getpid()}\\n")
    time.sleep(600)
    """
)
"""A server that ignores SIGTERM, and its worker that does so too."""


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def descendants(pid: int) -> set[int]:
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    found, fresh = set(), {pid}
    while fresh:
        fresh = {child for child, parent in parents.items() if parent in fresh} - found
        found |= fresh
    return found


def wait_for(condition: Callable[[], Any], timeout_s: float = 15.0) -> Any:
    until = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < until, "it did not come to that in time"
        time.sleep(0.05)
    return value


@pytest.fixture
def family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[subprocess.Popen[bytes], list[int]]]:
    """A supervisor that runs a server and its worker, and the process ids of both."""
    script, pids = tmp_path / "family.py", tmp_path / "pids"
    script.write_text(FAMILY)
    quick = tmp_path / "supervise.py"
    quick.write_text(Path(supervise.__file__).read_text().replace("GRACE_S = 5.0", "GRACE_S = 0.5"))
    command = [sys.executable, "-I", str(quick), str(os.getpid()), sys.executable, str(script), str(pids)]
    supervisor = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
    wait_for(lambda: pids.exists() and len(pids.read_text().split()) == 2)
    members = [int(pid) for pid in pids.read_text().split()]
    yield supervisor, members
    supervisor.communicate()
    for pid in members:
        if alive(pid):
            os.kill(pid, signal.SIGKILL)


linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


@linux
@pytest.mark.parametrize("how", ["stdin closes", "SIGTERM", "server killed"])
def test_the_supervisor_ends_all_that_it_started(family: tuple[subprocess.Popen[bytes], list[int]], how: str):
    supervisor, members = family
    assert supervisor.stdin is not None
    assert supervisor.stdout is not None
    server = int(supervisor.stdout.readline())
    assert server in members
    if how == "stdin closes":
        supervisor.stdin.close()
        supervisor.stdin = None
    elif how == "SIGTERM":
        supervisor.terminate()
    else:
        os.kill(server, signal.SIGKILL)
    status = supervisor.wait(timeout=15)
    assert status == 128 + (signal.SIGKILL if how == "server killed" else signal.SIGTERM)
    assert not any(map(alive, members))


@linux
def test_a_supervisor_that_is_killed_itself_takes_the_server_with_it(
    family: tuple[subprocess.Popen[bytes], list[int]],
):
    supervisor, members = family
    assert supervisor.stdout is not None
    server = int(supervisor.stdout.readline())
    supervisor.kill()
    wait_for(lambda: not alive(server))
    os.killpg(server, signal.SIGKILL)  # what the engine does with the rest
    wait_for(lambda: not any(map(alive, members)))


# -- the child's command and environment --------------------------------------------------------------------------------


def test_arguments_become_flags():
    command = command_line({"model": "m", "block_size": 32, "enforce_eager": True, "seed": None}, 80, ("judge", "/a=b"))
    assert command[1:8] == ["-m", "vllm.entrypoints.openai.api_server", "--model", "m", "--block-size", "32",
                            "--enforce-eager"]  # fmt: skip
    assert json.loads(command[command.index("--lora-modules") + 1]) == {"name": "judge", "path": "/a=b"}
    (limit,) = (
        command_line({"limit_mm_per_prompt": {"image": 1}}, 80, None)[position + 1]
        for position, part in enumerate(command_line({"limit_mm_per_prompt": {"image": 1}}, 80, None))
        if part == "--limit-mm-per-prompt"
    )
    assert json.loads(limit) == {"image": 1}


@pytest.mark.parametrize(
    ("device", "base", "gpus", "visible"),
    [
        (None, {}, 1, None),
        (None, {"CUDA_VISIBLE_DEVICES": "4,5"}, 1, "4,5"),
        ("cuda:1", {}, 1, "1"),
        ("cuda:1", {"CUDA_VISIBLE_DEVICES": "4,5"}, 1, "5"),
        ("cuda", {"LOCAL_RANK": "1"}, 1, None),
        (None, {"LOCAL_RANK": "1"}, 1, "1"),
        (None, {"LOCAL_RANK": "1", "CUDA_VISIBLE_DEVICES": "4,5"}, 1, "5"),
        (None, {"LOCAL_RANK": "3", "CUDA_VISIBLE_DEVICES": "6"}, 1, "6"),  # the launcher shows each rank its own alone
        (None, {}, 2, None),
        (None, {"LOCAL_RANK": "1"}, 2, "2,3"),
        (None, {"LOCAL_RANK": "1", "CUDA_VISIBLE_DEVICES": "4,5,6,7"}, 2, "6,7"),
        (None, {"LOCAL_RANK": "1", "CUDA_VISIBLE_DEVICES": "4,5"}, 2, "4,5"),
    ],
)
def test_the_child_gets_the_device_it_is_told_or_its_ranks_own(
    device: str | None, base: dict[str, str], gpus: int, visible: str | None
):
    assert environment("key", device, False, base, gpus).get("CUDA_VISIBLE_DEVICES") == visible


def test_the_child_joins_no_process_group_of_the_trainer_and_sleeps_without_expandable_segments():
    base = {
        "RANK": "1", "WORLD_SIZE": "2", "MASTER_PORT": "29500", "TORCHELASTIC_USE_AGENT_STORE": "True", "HOME": "/h",
        "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
    }  # fmt: skip
    child = environment("key", None, True, base)
    assert set(child) == {"HOME", "VLLM_API_KEY", "VLLM_SERVER_DEV_MODE", "PYTHONPATH"}
    assert child["VLLM_API_KEY"] == "key"
    awake = environment("key", None, False, base)
    assert "VLLM_SERVER_DEV_MODE" not in awake
    assert awake["PYTORCH_CUDA_ALLOC_CONF"] == "expandable_segments:True"


def test_a_reserved_port_is_free_for_a_server_and_for_nobody_by_chance():
    import socket

    with reserve_port() as held:
        assert held.getsockname()[0] == "127.0.0.1"
        with socket.socket() as server:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind(held.getsockname())
            server.listen()
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(held.getsockname())


# -- a real child -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(small_path: str, cpu: None) -> Iterator[Any]:
    from mrjudge_reward.engines.vllm.server import VLLMServerEngine

    built = VLLMServerEngine(small_path, enable_sleep_mode=True, start_timeout_s=300, **SETTINGS)
    yield built
    built.close()


@linux
@needs_vllm
def test_the_child_says_what_the_engine_in_process_says(server: Any, small_path: str):
    from mrjudge_reward.engines.vllm.engine import VLLMEngine

    engine = VLLMEngine(small_path, **SETTINGS)
    assert isinstance(server, Engine)
    assert server.concurrent_calls
    assert (server.context_tokens, server.reserved) == (1024, engine.reserved)
    assert server.count_tokens("How many?") == engine.count_tokens("How many?")
    asked = [reading(question) for question in QUESTIONS]
    for one, other in zip(*(logprobs(e.label_logprobs(asked)) for e in (server, engine)), strict=True):
        assert one == pytest.approx(other, abs=2e-3)
    written = [writing(question) for question in QUESTIONS]
    assert texts(server.generate(written)) == texts(engine.generate(written))
    engine.close()
    assert server.label_logprobs(asked[1:2])[0].usage.cached_tokens >= 32
    seeded = [writing("Tell a story.", WARM, seed=1)]
    assert texts(server.generate(seeded)) == texts(server.generate(seeded))
    assert reasons(server.generate([writing("Hi!"), writing("word " * 2000)])) == ["", "http 400"]


@linux
@needs_vllm
def test_a_live_server_is_judged_with_through_the_openai_engine(server: Any):
    """Writing, reading, a cascade, prefix tokens in ``usage`` and what a server refuses, over HTTP as a user has it."""
    name, port = server._setup.model, server._port.getsockname()[1]
    engine = OpenAIEngine(name, f"http://127.0.0.1:{port}/v1", api_key=server._child._key, max_concurrency=4)
    asked = [writing(question) for question in QUESTIONS]
    assert texts(engine.generate(asked)) == texts(server.generate(asked))
    seeded = [writing("Tell a story.", WARM, seed=seed) for seed in (1, 2, 1)]
    one, other, again = texts(engine.generate(seeded))
    assert one == again != other
    capped = engine.generate([writing("Tell a story.", Sampling(0.0, 1.0, 3))])[0]
    assert (capped.finish, capped.usage.completion_tokens) == ("length", 3)
    assert engine.reads_labels() is True
    reads = [reading(question) for question in QUESTIONS]
    for ours, theirs in zip(
        logprobs(engine.label_logprobs(reads)), logprobs(server.label_logprobs(reads)), strict=True
    ):
        assert ours == pytest.approx(theirs, abs=2e-3)
    assert engine.label_logprobs(reads[1:2])[0].usage.cached_tokens >= 32
    long, unknown = (
        engine.generate([writing("word " * 2000)])[0],
        OpenAIEngine("m", engine.base_url, api_key=server._child._key),
    )
    assert (long.reason, long.transient) == ("http 400", False)
    assert "context_tokens" in cure_of(long.reason, long.detail)
    (nobody,) = unknown.generate([writing("Hi!")])
    assert nobody.reason == "http 404"
    assert "`m` does not exist" in nobody.detail
    stranger = OpenAIEngine(name, engine.base_url, api_key="guessed")
    assert reasons(stranger.generate([writing("Hi!")])) == ["http 401"]
    for verdict, more in (("logprobs", {}), ("cascade", {"max_tokens": 12})):
        settings: dict[str, Any] = {"verdict": verdict, "schedule": "all_pairs", "retries": 0, **more}
        judge = Judge(engine, Choice(), alarm=FailureAlarm(1.0), **settings)
        judged = judge.judge([Group.of("Say hello.", ["Hello!", "Go away."], key) for key in "ab"])
        assert all(item.scores_G != (None, None) for item in judged), judged
    for client in (engine, unknown, stranger):
        client.close()


@linux
@needs_vllm
@pytest.mark.parametrize("path", ["/v1/models", "/is_sleeping", "/tokenize", "/health"])
def test_nobody_else_is_served(server: Any, path: str):
    connection = http.client.HTTPConnection("127.0.0.1", server._port.getsockname()[1], timeout=10)
    connection.request("GET", path, headers={"Authorization": "Bearer guessed"})
    answer = connection.getresponse()
    answer.read()
    connection.close()
    assert answer.status == 401
    with open(f"/proc/{server.pid}/cmdline") as command:
        assert server._child._key not in command.read()


@linux
@needs_vllm
def test_sleep_waits_for_calls_in_flight_and_refuses_new_ones_until_woken(
    server: Any, caplog: pytest.LogCaptureFixture
):
    answers: list[Any] = []
    call = threading.Thread(
        target=lambda: answers.extend(server.generate([writing("Tell a long story.", Sampling(1.0, 1.0, 900), seed=1)]))
    )
    call.start()
    wait_for(lambda: server._child.calls_in_flight)
    with caplog.at_level(logging.WARNING, "mrjudge_reward"):
        server.sleep()
        assert reasons(answers) == [""], "it was drained"
        call.join()
        assert server._child.ask("GET", "/is_sleeping") == {"is_sleeping": True}
        with pytest.raises(EngineError, match="is asleep"):
            server.generate([writing("Hi!")])
        server.wake()
        server.sleep()
        server.wake()
    assert sum("cannot put a model to sleep on a CPU" in record.message for record in caplog.records) == 1
    assert texts(server.generate([writing("Hi!")]))[0]


@linux
@needs_vllm
def test_a_colocated_server_sleeps_after_success_failure_and_interrupt(
    server: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("MRJUDGE_LOCKS", str(tmp_path))
    colocated = ColocatedEngine(lambda: server, ["cpu"])

    def asleep() -> bool:
        return bool(server._child.ask("GET", "/is_sleeping")["is_sleeping"])

    assert asleep(), "as soon as it is loaded"
    judge = Judge(colocated, SENTIMENT, verdict="read", schedule="pointwise")
    judged = judge.judge([Group.of("Say hello.", ["Hello!", "Go away.", "What?"], key) for key in "ab"])
    assert not any(played.verdict.failed for item in judged for played in item.played)
    assert asleep()
    assert colocated.turns == 2

    ask = server._child.engine.label_logprobs
    for error in (RuntimeError, KeyboardInterrupt):

        def fails(requests: Any, error: type[BaseException] = error) -> Any:
            assert not asleep()
            ask(requests[:1])
            raise error("in the middle")

        with monkeypatch.context() as patch:
            patch.setattr(server._child.engine, "label_logprobs", fails)
            with pytest.raises(error, match="in the middle"):
                judge.judge([Group.of("Say hello.", ["Hello!", "Go away."], "c")])
        assert asleep()
    assert judge.judge([Group.of("Say hello.", ["Hello!", "Go away."], "d")])[0].calls
    server.wake()


@linux
@needs_vllm
def test_a_real_interrupt_while_a_colocated_judge_writes_leaves_it_asleep(
    server: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("MRJUDGE_LOCKS", str(tmp_path))
    colocated = ColocatedEngine(lambda: server, ["cpu"])

    def interrupt() -> None:
        wait_for(lambda: server._child.calls_in_flight)
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        colocated.generate([writing(f"Tell story {i}.", Sampling(1.0, 1.0, 900), seed=i) for i in range(8)])
    thread.join()
    assert server._child.ask("GET", "/is_sleeping") == {"is_sleeping": True}
    assert texts(colocated.generate([writing("Hi!")]))[0], "what was interrupted is not in its way"
    server.wake()


@linux
@needs_vllm
def test_a_pickled_engine_is_a_description_without_the_key_and_without_a_server(server: Any):
    pickled = pickle.dumps(server)
    assert server._child._key.encode() not in pickled
    twin = pickle.loads(pickled)
    assert (twin.identity, twin.pid, twin.context_tokens) == (server.identity, 0, 1024)
    twin.close()
    assert alive(server.pid)
    with pytest.raises(EngineError, match="was closed"):
        twin.generate([writing("Hi!")])


# -- the benchmarks on the engines that are here ------------------------------------------------------------------------


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Any:
    """Runs a benchmark in this process and returns what it printed and wrote."""

    def run(module: Any, **replaced: Any) -> tuple[str, Any]:
        for name, value in replaced.items():
            monkeypatch.setattr(module, name, value)
        monkeypatch.setattr(module, "start_in_environment", lambda threads: None)
        monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", "--quick", "--json", str(tmp_path / "rows.json")])
        module.main()
        return capsys.readouterr().out, json.loads((tmp_path / "rows.json").read_text())

    return run


@needs_vllm
@pytest.mark.usefixtures("benchmark")
def test_the_overhead_benchmark_measures_vllm(small_path: str, monkeypatch: pytest.MonkeyPatch):
    from tests.benchmarks import overhead

    monkeypatch.setattr(overhead, "embedded_model_path", lambda: small_path)
    rows = overhead.duels("vllm", quick=True)
    assert_rows_of_a_duel("\n".join(row.line() for row in rows), [asdict(row) for row in rows], "vllm")
    assert len(overhead.speed_findings("vllm", rows)) == 2


@needs_vllm
def test_the_prefix_benchmark_prints_each_schedule_in_both_orders_and_caches(small_path: str, benchmark: Any):
    from tests.benchmarks import prefix

    small = benchmark(prefix, embedded_model_path=lambda: small_path, ROOMY=512)
    assert_each_schedule_in_both_orders_and_caches(*small)


@linux
@needs_vllm
def test_the_benchmark_against_other_patterns_prints_both_tables(server: Any, small_path: str, benchmark: Any):
    from tests.benchmarks import peers

    small = benchmark(peers, embedded_model_path=lambda: small_path, server=lambda context: nullcontext(server))
    assert_both_tables(*small)


@linux
@needs_vllm
def test_a_killed_server_costs_the_calls_in_flight_is_started_once_more_and_ends_with_close(
    server: Any, monkeypatch: pytest.MonkeyPatch
):
    expected = logprobs(server.label_logprobs([reading("Hi!")]))[0]
    doomed = descendants(server._child._supervisor.pid)
    assert {server.pid} < doomed, "vLLM starts processes of its own"
    answers: list[Any] = []
    requests = [writing(f"Story {index}.", Sampling(1.0, 1.0, 900), seed=index) for index in range(8)]
    call = threading.Thread(target=lambda: answers.extend(server.generate(requests)))
    call.start()
    wait_for(lambda: server._child.calls_in_flight)
    os.kill(server.pid, signal.SIGKILL)
    call.join(timeout=30)
    assert reasons(answers) == ["judge server died"] * 8
    assert all(answer.transient for answer in answers)
    assert f"{server.log_path} ends:\n" in answers[0].detail
    assert len(answers[0].detail.splitlines()) > 3, "the end of the log is in it"
    assert logprobs(server.label_logprobs([reading("Hi!")]))[0] == pytest.approx(expected, abs=2e-3)
    assert not any(map(alive, doomed))
    with monkeypatch.context() as patch:
        patch.setattr(server._child, "died", "the judge server ended again")
        with pytest.raises(EngineError, match="ended again"):
            server.generate([writing("Hi!")])
        patch.setattr("mrjudge_reward.engines.vllm.server._RENEWED_AFTER_S", -1.0)
        patch.setattr(server._child, "stop", lambda: None)
        patch.setattr(server, "_start", lambda: "another")
        assert server._serving() == "another", "one that lasted is started anew once more"

    started = descendants(server._child._supervisor.pid) | {server._child._supervisor.pid}
    log = server.log_path
    server.close()
    server.close()
    wait_for(lambda: not any(map(alive, started)))
    assert not log.exists()
    with pytest.raises(EngineError, match="was closed"):
        server.generate([writing("Hi!")])


@linux
@needs_vllm
@pytest.mark.parametrize("judge", ["planted", pytest.param("vLLM", marks=pytest.mark.scale)])
def test_a_server_that_does_not_wake_or_sleep_is_ended_and_started_anew(
    judge: str, smol_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Each of vLLM's starts takes half a minute; planted, the faults come from a judge server of the tests."""
    from mrjudge_reward.engines.vllm import server as vllm_server

    if judge == "planted":
        restless = [sys.executable, "-m", "tests.support.restless_server"]
        monkeypatch.setattr(
            vllm_server, "command_line", lambda _, port, __: [*restless, str(port), str(tmp_path / "started")]
        )
    engine: Any = vllm_server.VLLMServerEngine(
        smol_path, enable_sleep_mode=True, start_timeout_s=300, restarts=1, **SETTINGS
    )
    try:
        engine.sleep()
        first = engine.pid
        ask = engine._child.ask

        def refuses(method: str, path: str, *more: Any, **named: Any) -> Any:
            if path.startswith("/wake_up"):
                raise EngineError("HTTP 500: out of memory")
            return ask(method, path, *more, **named)

        if judge == "vLLM":
            engine._child.ask = refuses
        with pytest.raises(EngineError, match=r"(?s)did not wake and was ended .*500: .*out of memory.*its log"):
            engine.wake()
        wait_for(lambda: not alive(first))
        with pytest.raises(EngineError, match="is asleep"):
            engine.generate([writing("Hi!")])
        engine.wake()
        assert engine.pid not in (0, first)
        assert texts(engine.generate([writing("Hi!")]))[0]

        second = engine.pid
        if judge == "vLLM":
            engine._child.ask = lambda *_, **__: {"is_sleeping": False}
        engine.sleep()
        wait_for(lambda: not alive(second))
        with pytest.raises(EngineError, match="did not go to sleep and was ended"):
            engine.wake()
    finally:
        engine.close()


PARENT = textwrap.dedent(
    """
    import json, sys
    from mrjudge_reward.engines.vllm.server import VLLMServerEngine
    VLLMServerEngine(sys.argv[1], **json.loads(sys.argv[2]))
    """
)


@linux
@needs_vllm
def test_a_parent_killed_while_its_server_starts_leaves_no_process_behind(smol_path: str, tmp_path: Path):
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    settings = json.dumps({**SETTINGS, "log_path": str(tmp_path / "log")})
    root = ROOT
    parent = subprocess.Popen([sys.executable, str(script), smol_path, settings], cwd=root,
                              env={**os.environ, "PYTHONPATH": str(root)})  # fmt: skip

    def started() -> set[int] | None:
        names = [Path(f"/proc/{pid}/cmdline") for pid in descendants(parent.pid)]
        # The engine's process takes the name once it has imported vLLM; that it is there is enough.
        commands = [name.read_text() for name in names if name.exists()]
        grown = len(names) >= 4 and any("spawn_main" in command or "VLLM::" in command for command in commands)
        return descendants(parent.pid) if grown else None

    try:
        everyone = wait_for(started, timeout_s=120)
    finally:
        parent.kill()
        parent.wait()
    wait_for(lambda: not any(map(alive, everyone)), timeout_s=15)


@linux
@needs_vllm
def test_a_model_that_cannot_be_served_is_an_error_with_the_end_of_the_log(smol_path: str, tmp_path: Path):
    from mrjudge_reward.engines.vllm.server import VLLMServerEngine

    broken = tmp_path / "broken"
    shutil.copytree(smol_path, broken, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps({**config, "architectures": ["NoSuchModel"], "model_type": "llama"}))
    before = descendants(os.getpid())
    with pytest.raises(EngineError, match=r"judge server ended \(exit status \d+\); its log .*ends:") as caught:
        VLLMServerEngine(str(broken), log_path=tmp_path / "log", start_timeout_s=200, **SETTINGS)
    log = (tmp_path / "log").read_text()
    assert "NoSuchModel" in log
    assert str(tmp_path / "log") in str(caught.value)
    assert str(caught.value).endswith(log.strip()[-500:])
    wait_for(lambda: descendants(os.getpid()) <= before)
