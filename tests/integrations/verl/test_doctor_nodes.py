"""``mrjudge doctor --verl`` on a real Ray cluster of two nodes: what the judge needs is looked for on each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mrjudge_reward.integrations.verl.doctor.nodes import needed, nodes
from mrjudge_reward.integrations.verl.settings import VerlSettings
from mrjudge_reward.judge import JudgeConfig

pytestmark = pytest.mark.timeout(300)

SERVER = {"model": "judge", "base_url": "http://127.0.0.1:9/v1"}


def config(nnodes: int = 2, address: str | None = None, **variables: str) -> dict[str, Any]:
    runtime = {"env_vars": variables} if variables else {}
    return {"trainer": {"nnodes": nnodes}, "ray_kwargs": {"ray_init": {"address": address, "runtime_env": runtime}}}


@pytest.mark.parametrize(
    ("settings", "judge", "names"),
    [
        ({}, {}, []),  # the embedded model comes with this package
        ({}, {"model": "some/judge"}, []),  # of the hub
        ({}, {"model": "/models/judge"}, ["/models/judge"]),
        ({}, {"model": "~/judge"}, ["~/judge"]),
        ({}, {"model": "some/judge", "adapter": "./out/adapter"}, ["./out/adapter"]),
        ({}, {"adapter": "embedded"}, []),
        ({}, {"model": "a/folder/deep"}, ["a/folder/deep"]),
        ({"judge": "judge.yaml"}, {}, ["judge.yaml"]),
        ({"canaries": {"every": 9, "path": "mine.jsonl"}}, {}, ["mine.jsonl"]),
        ({}, {**SERVER, "api_key_env": "A_KEY"}, ["A_KEY"]),
        ({}, {**SERVER, "api_key_env": "NOT_SET"}, []),  # nor is it here: the judge's own checks say so
        ({}, {**SERVER, "model": "/models/judge"}, []),  # the server has it
        ({}, {**SERVER, "extra_headers": {"X": "env:A_KEY", "Y": "plain"}}, ["A_KEY"]),
        ({}, {**SERVER, "extra_body": {"user": "env:A_KEY", "n": 1}}, ["A_KEY"]),
    ],
    ids=str,
)
def test_what_a_node_needs(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], judge: dict[str, Any], names: list[str]
) -> None:
    monkeypatch.setenv("A_KEY", "secret")
    for name in ("OPENAI_API_KEY", "NOT_SET", "VERL_USE_EXTERNAL_MODULES"):
        monkeypatch.delenv(name, raising=False)
    found = needed(VerlSettings(**settings), JudgeConfig(**judge))
    assert [one.name for one in found] == names


def test_without_a_running_cluster_several_nodes_are_told_what_they_need(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    settings = VerlSettings(judge="judge.yaml", log_dir="runs/verl")
    found = {check.name: check for check in nodes(config(), settings, JudgeConfig())}
    assert found["nodes"].status == "note"
    assert "judge.yaml (mrjudge.judge)" in found["nodes"].detail
    assert "RAY_ADDRESS" in found["nodes"].detail
    assert "runs/verl (mrjudge.log_dir)" in found["nodes' folders"].detail
    assert list(nodes(config(nnodes=1), settings, JudgeConfig())) == []
    pinned = settings.model_copy(update={"actor_options": {"resources": {"node:10.0.0.1": 0.001}}})
    assert [check.name for check in nodes(config(), pinned, JudgeConfig())] == ["nodes"]


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[str]:
    """A cluster whose second node has neither the key nor the resource ``judge``."""
    from ray.cluster_utils import Cluster

    plain = {"num_cpus": 1, "include_dashboard": False}
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("JUDGE_KEY", raising=False)
        path = os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])
        second = {"PYTHONPATH": path}
        cluster = Cluster(
            initialize_head=True,
            head_node_args={**plain, "resources": {"judge": 1}, "env_vars": {**second, "JUDGE_KEY": "secret"}},
        )
        cluster.add_node(num_cpus=1, env_vars=second)
    yield cluster.address
    cluster.shutdown()


ASK = """
import json, sys
from mrjudge_reward.integrations.verl.doctor.nodes import nodes
from mrjudge_reward.integrations.verl.settings import VerlSettings
from mrjudge_reward.judge import JudgeConfig
for config, section, judge in json.load(sys.stdin):
    found = nodes(config, VerlSettings(**section), JudgeConfig(**judge))
    print(json.dumps([(check.status, check.detail) for check in found]))
"""
"""In a process of its own, as this one may belong to another cluster."""


def test_each_node_is_asked_for_what_it_lacks(two_nodes: str, tmp_path: Path) -> None:
    (tmp_path / "judge.yaml").write_text("{}", encoding="utf-8")
    key = {**SERVER, "api_key_env": "JUDGE_KEY"}
    pinned = {"actor_options": {"resources": {"judge": 1}}}
    table: list[tuple[dict[str, Any], dict[str, Any], dict[str, str], str, list[str]]] = [
        # section, judge, variables of runtime_env, status, what is said
        ({}, key, {}, "failed", ["lacks $JUDGE_KEY (api_key_env)", "runtime_env.env_vars"]),
        ({}, key, {"JUDGE_KEY": "x"}, "ok", ["2 asked"]),
        (pinned, key, {}, "ok", ["$JUDGE_KEY"]),
        ({"actor_options": {"num_gpus": 1}}, key, {}, "failed", ["no node has what", "num_gpus"]),
        ({"judge": f"{tmp_path}/judge.yaml"}, {}, {}, "ok", ["judge.yaml (mrjudge.judge)"]),
        ({"judge": f"{tmp_path}/other.yaml", **pinned}, {}, {}, "failed", ["other.yaml", "Write the judge's fields"]),
        ({}, {"model": f"{tmp_path}/model"}, {}, "failed", [f"{tmp_path}/model (model)"]),
        ({}, {}, {}, "note", ["the cluster at not-an-address cannot be asked"]),
    ]
    addresses = [two_nodes] * (len(table) - 1) + ["not-an-address"]
    asked = [
        (config(1, address, **variables), section, judge)
        for address, (section, judge, variables, _, _) in zip(addresses, table, strict=True)
    ]
    environment = {name: value for name, value in os.environ.items() if name != "VERL_USE_EXTERNAL_MODULES"}
    done = subprocess.run(
        [sys.executable, "-c", ASK], input=json.dumps(asked), env=environment | {"JUDGE_KEY": "secret"},
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == len(table)
    for (_, _, _, status, said), checks in zip(table, found, strict=True):
        ((given, detail),) = checks
        assert given == status, detail
        assert all(text in detail for text in said), detail
        assert "secret" not in detail
