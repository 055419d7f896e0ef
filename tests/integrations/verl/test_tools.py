"""verl trains on a tool: the judge is shown what it is shown in TRL of the same run (``trl/test_tools.py``)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from mrjudge_reward.messages import as_messages
from mrjudge_reward.types import Request
from tests.support import ROOT
from tests.support.small_models import small_text_model
from tests.support.tool_runs import QUESTIONS, chat_template, expected, shown

from .test_training import GROUPED, scores_of, train

pytestmark = pytest.mark.timeout(900)

TOOLS = (
    "actor_rollout_ref.rollout.agent.default_agent_loop=tool_agent",
    f"actor_rollout_ref.rollout.multi_turn.function_tool_path={ROOT / 'tests/support/verl_tools.py'}",
    "data.max_prompt_length=384",
    "data.max_response_length=256",
    "actor_rollout_ref.rollout.max_model_len=704",
    "actor_rollout_ref.rollout.max_num_batched_tokens=704",
    "trainer.total_training_steps=1",
    "+mrjudge.judge.model=x",
    "+mrjudge.judge.audit=False",
    "+mrjudge.factory=tests.support.verl_judges:recording_judge",
)


@pytest.fixture(scope="module")
def policy(smol_path: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smol_path)
    tokenizer.chat_template = chat_template()
    return small_text_model(tokenizer, tmp_path_factory.mktemp("caller"))


def test_the_judge_is_shown_calls_and_results_as_in_trl(
    policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, data = tmp_path / "seen.jsonl", tmp_path / "asked.parquet"
    monkeypatch.setenv("MRJUDGE_TEST_SEEN", str(seen))
    rows: list[dict[str, Any]] = [
        {
            "data_source": "weather",
            "prompt": [{"role": "user", "content": question}],
            "reward_model": {"style": "model", "ground_truth": ""},
            "extra_info": {"index": index, "split": "train"},
        }
        for index, question in enumerate(QUESTIONS)
    ]
    Dataset.from_list(rows).to_parquet(data)
    (step,) = train("grpo", policy, tmp_path, *TOOLS, GROUPED, f"data.train_files={data}")
    assert step["training/num_turns/max"] == 6
    requests = [Request(as_messages(json.loads(line)[0])) for line in seen.read_text(encoding="utf-8").splitlines()]
    assert shown(requests) == {f"What is the weather in {city}?": expected(city) for city in ("Oslo", "Rome")}
    for group in scores_of(tmp_path, 1):
        worst, poor, good, best = sorted(group)
        assert worst <= poor < 0 < good <= best, "those that looked it up"
