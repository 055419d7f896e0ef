"""What goes wrong inside a verl run: missing members, dead actors and servers. Nothing hangs, nothing is invented."""

from __future__ import annotations

import asyncio
import math
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray
import torch
from PIL import Image
from verl.experimental.reward_loop.reward_loop import RewardLoopWorker
from verl.trainer.ppo.core_algos import compute_grpo_outcome_advantage

from mrjudge_reward.judge import JudgeConfig
from tests.support import ROOT
from tests.support.verl_judges import scripted_judge
from tests.support.verl_setup import (
    Rollout,
    Streaming,
    expected,
    judge_actors,
    made_reward_loop,
    rollouts,
    verl_config,
)

pytestmark = pytest.mark.timeout(300)

JUDGE = scripted_judge(JudgeConfig())
JUDGES = "tests.support.verl_judges"


ONE_WORKER = ("reward.num_workers=1", "actor_rollout_ref.rollout.n=4", "actor_rollout_ref.rollout.val_kwargs.n=4")


@pytest.fixture
def streaming(cluster: None, smol_path: str, smol_tokenizer: Any) -> Any:
    @contextmanager
    def start(**settings: Any) -> Iterator[Streaming]:
        with made_reward_loop(verl_config(smol_path, settings, *ONE_WORKER)) as manager:
            yield Streaming(manager, smol_tokenizer)

    return start


def info(output: Any) -> dict[str, float]:
    found: dict[str, float] = output.extra_fields["reward_extra_info"]
    return found


def test_members_that_never_come_or_come_too_late(streaming: Any):
    with streaming(factory=f"{JUDGES}:scripted_judge", deadline_s=3.0, settle_s=0.2) as stream:
        made = rollouts(3, 4)
        missing, present = made[2], [*made[:2], *made[3:]]
        began = time.monotonic()
        scored = stream.all(present, seed=1)
        assert 3 <= time.monotonic() - began < 120
        assert {r: o.reward_score for r, o in scored.items()} == pytest.approx(expected(present, JUDGE))
        assert {r for r, output in scored.items() if info(output)["judge_partial"]} == {made[0], made[1], made[3]}

        late = stream.all([missing])[missing]
        assert late.reward_score == pytest.approx(expected(made, JUDGE)[missing])
        assert info(late)["judge_partial"] == 1

        changed = Rollout(made[5].uid, made[5].session, made[5].prompt, "a second try", {})
        again = stream.all([changed])[changed]
        assert again.reward_score == pytest.approx(expected([made[4], changed, *made[6:8]], JUDGE)[changed])
        assert info(again)["judge_partial"] == 1


def test_a_killed_judge_actor_is_made_again_and_its_groups_meet_once_more(streaming: Any):
    with streaming(factory=f"{JUDGES}:slow_judge", deadline_s=60.0) as stream:
        stream.all(rollouts(1, 4))  # all is up
        (name,) = (name for name in judge_actors() if is_alive(name))
        made = rollouts(30, 4)

        async def run() -> dict[Rollout, float]:
            waiting = [asyncio.ensure_future(stream.score(rollout)) for rollout in made]
            await asyncio.sleep(0.5)
            assert not all(task.done() for task in waiting)
            ray.kill(ray.get_actor(name))
            outputs = await asyncio.gather(*waiting)
            return {rollout: output.reward_score for rollout, output in zip(made, outputs, strict=True)}

        assert asyncio.run(run()) == pytest.approx(expected(made, JUDGE))


def is_alive(name: str) -> bool:
    actor = ray.get_actor(name)
    try:
        return bool(ray.get(actor.metrics.remote(), timeout=60)["groups"] == 1)
    except ray.exceptions.RayError:
        return False


def test_an_actor_that_keeps_dying_ends_in_an_error(streaming: Any):
    with streaming(factory=f"{JUDGES}:deadly_judge") as stream:
        began = time.monotonic()
        with pytest.raises(ray.exceptions.RayTaskError, match="died 3 times under the same sample"):
            stream.all(rollouts(1, 4))
        assert time.monotonic() - began < 120


@pytest.fixture
def server() -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = ROOT / "tests/support/judge_server.py"
    process = subprocess.Popen([sys.executable, script, "--port", str(port), "--delay", "0.2"])
    for _ in range(100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.1)
    yield port, process
    process.kill()
    process.wait()


@pytest.mark.parametrize("limit", [1.0, 0.5], ids=["flagged", "stopped"])
def test_a_judge_server_killed_in_mid_batch(streaming: Any, server: Any, limit: float):
    port, process = server
    judge = {
        "model": "judge", "base_url": f"http://127.0.0.1:{port}/v1", "schedule": "ring", "verdict": "read",
        "deadline_s": 3.0, "outage_wait_s": 3.0, "retries": 0, "max_concurrency": 8, "max_failed_fraction": limit,
    }  # fmt: skip
    with streaming(judge=judge, deadline_s=1000.0) as stream:
        whole = stream.all(rollouts(2, 4))
        assert not any(info(output)["judge_failed"] for output in whole.values())
        made = rollouts(20, 4)

        async def run() -> list[Any]:
            waiting = [asyncio.ensure_future(stream.score(rollout)) for rollout in made]
            await asyncio.sleep(0.6)
            process.kill()
            return await asyncio.gather(*waiting, return_exceptions=True)

        began = time.monotonic()
        outputs = asyncio.run(run())
        assert time.monotonic() - began < 120
        errors = [output for output in outputs if isinstance(output, BaseException)]
        flagged = [
            output for output in outputs if not isinstance(output, BaseException) and info(output)["judge_abstained"]
        ]
        if limit == 1.0:
            assert not errors
            assert len(flagged) >= 4
        else:
            assert errors
            assert all("judgements failed (limit 50%)" in str(error) for error in errors)
            with pytest.raises(ray.exceptions.RayError, match="judgements failed"):  # the run has to end
                stream.all(rollouts(1, 4))
        groups: dict[str, list[Any]] = {}
        for rollout, output in zip(made, outputs, strict=True):
            if not isinstance(output, BaseException):
                groups.setdefault(rollout.uid, []).append(output)
        for members in groups.values():
            known = [output.reward_score for output in members if not info(output)["judge_abstained"]]
            mean = sum(known) / len(known) if known else 0.0
            unknown = [output.reward_score for output in members if info(output)["judge_abstained"]]
            assert unknown == pytest.approx([mean] * len(unknown)), "no row carries an invented score"


def test_flagged_rows_have_no_advantage_by_verls_own_estimator(streaming: Any):
    with streaming(factory=f"{JUDGES}:failing_judge") as stream:
        silent = [Rollout(r.uid, r.session, f"{r.prompt} no verdict", r.answer, {}) for r in rollouts(1, 4)]
        made = [*silent, *rollouts(1, 4)]
        scored = stream.all(made)
    assert [info(scored[r])["judge_abstained"] for r in made] == [1] * 4 + [0] * 4
    assert [info(scored[r])["judge_failed"] for r in made] == [1] * 4 + [0] * 4
    assert [math.isnan(info(scored[r])["judge_score"]) for r in made] == [True] * 4 + [False] * 4
    scores = torch.tensor([[scored[r].reward_score] for r in made])
    index = np.array([r.uid for r in made], dtype=object)
    advantages, _ = compute_grpo_outcome_advantage(scores, torch.ones_like(scores), index)
    assert advantages[:4].abs().max() == 0
    assert advantages[4:].abs().max() > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"factory": f"{JUDGES}:no_such_judge"}, "cannot be imported"),
        ({"factory": "json:loads"}, "factory 'json:loads'"),
        ({"dedline_s": 3}, "did you mean 'deadline_s'"),
        ({"judge": {"shedule": "ring"}}, "did you mean 'schedule'"),
        ({"judge": "no/such/file.yaml"}, "no/such/file.yaml"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bad_settings_end_in_an_error_that_names_them(streaming: Any, settings: dict[str, Any], message: str):
    with pytest.raises(ray.exceptions.RayError, match=message), streaming(**settings) as stream:
        stream.all(rollouts(1, 4))


def test_a_worker_that_does_not_begin_tells_every_sample_why(cluster: None, smol_path: str, smol_tokenizer: Any):
    worker = ray.remote(RewardLoopWorker).remote(verl_config(smol_path, {"dedline_s": 3}, *ONE_WORKER))
    stream = Streaming(SimpleNamespace(reward_loop_workers=[worker]), smol_tokenizer)
    with pytest.raises(ray.exceptions.RayError, match="did you mean 'deadline_s'"):
        stream.all(rollouts(1, 4))


@pytest.mark.parametrize("beside", [False, True], ids=["in the prompt", "beside it"])
def test_images_reach_the_judge(streaming: Any, beside: bool):
    def seen(rollout: Rollout, rgb: tuple[int, int, int]) -> Rollout:
        image = Image.new("RGB", (4, 4), rgb)
        fields: dict[str, Any] = {"multi_modal_data": {"images": [image]}}
        if not beside:
            parts = [{"type": "image", "image": image}, {"type": "text", "text": rollout.prompt}]
            fields = {"raw_prompt": [{"role": "user", "content": parts}]}
        return Rollout(rollout.uid, rollout.session, rollout.prompt, rollout.answer, fields)

    texts = ["it is red", "it is blue", "it is green", "it is blue too"]
    made = [
        seen(Rollout(r.uid, r.session, r.prompt, texts[r.session], {}), rgb)
        for group, rgb in zip((0, 1), ((255, 0, 0), (0, 0, 255)), strict=True)
        for r in rollouts(1, 4)
    ]
    with streaming(factory=f"{JUDGES}:seeing_judge") as stream:
        scored = stream.all(made)
    assert not any(info(output)["judge_failed"] for output in scored.values())
    red, blue = [scored[r].reward_score for r in made[:4]], [scored[r].reward_score for r in made[4:]]
    assert max(red) == red[0]
    assert sorted(blue)[2:] == sorted([blue[1], blue[3]])


def test_the_policys_reasoning_is_not_judged(streaming: Any):
    made = rollouts(2, 4)
    with streaming(factory=f"{JUDGES}:scripted_judge") as stream:
        thinking = [Rollout(r.uid, r.session, r.prompt, f"<think>hm {r.session}</think>{r.answer}", {}) for r in made]
        scored = stream.all(thinking)
    assert [scored[r].reward_score for r in thinking] == pytest.approx(list(expected(made, JUDGE).values()))


def test_the_embedded_model_judges_in_the_actor(streaming: Any, smol_engine: Any):
    made = rollouts(2, 4)
    with streaming() as stream:
        scored = stream.all(made)
    want = expected(made, JudgeConfig().build(smol_engine))
    assert {r: o.reward_score for r, o in scored.items()} == pytest.approx(want, rel=1e-3, abs=1e-3)
