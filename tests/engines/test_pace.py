"""What max_tokens, deadline_s and the requests in flight ask of a server: said by doctor, and by the first call."""

from __future__ import annotations

import logging
import pickle
from typing import Any

import pytest

from mrjudge_reward import JudgeConfig
from mrjudge_reward.cli.doctor import examine, request_deadline
from mrjudge_reward.engines.openai.engine import OpenAIEngine
from mrjudge_reward.messages import as_messages
from mrjudge_reward.types import Request, Sampling
from tests.support.judge_server import JudgeServer

SERVER = {"model": "judge", "base_url": "http://127.0.0.1:9/v1"}
WRITES = {"verdict": "generate"}

TABLE: list[tuple[dict[str, Any], str, bool]] = [
    # settings, what the pace says, whether it is sure to be kept
    (
        {},
        "1024 tokens within 120 s want 8.5 tokens a second for each request, 546 for 64 at once",
        True,
    ),  # the defaults
    ({"max_tokens": 4096, "max_concurrency": 512}, "34 tokens a second for each request, 17476 for 512 at once", False),
    (
        {"max_tokens": 4096, "deadline_s": 600.0},
        "6.8 tokens a second for each request, 437 for 64 at once",
        True,
    ),  # README
    ({"max_tokens": 4096, "deadline_s": 410.0}, "10 tokens a second", True),  # the deadline that is advised
    ({"max_tokens": 4096, "deadline_s": 409.0}, "10 tokens a second", False),
    (
        {"max_tokens": 32768, "deadline_s": 600.0, "max_concurrency": 8},
        "55 tokens a second for each request, 437",
        False,
    ),
    ({"max_tokens": 16, "deadline_s": 0.5, **WRITES}, "16 tokens within 0.5 s want 32 tokens", False),
    ({"max_tokens": 256, "deadline_s": 30.0, **WRITES}, "8.5 tokens a second", True),
    (
        {"verdict": "logprobs", "deadline_s": 5.0},
        "16 tokens within 5 s want 3.2 tokens",
        True,
    ),  # a read writes one token
    ({"verdict": "logprobs", "thinking_tokens": 2048}, "2064 tokens within 120 s want 17 tokens", False),
    ({"verdict": "logprobs", "thinking_tokens": 512}, "528 tokens within 120 s want 4.4 tokens", True),
    ({"max_tokens": 2048, "max_concurrency": 1}, "17 tokens a second for each request, 17 for 1 at once", False),
]


@pytest.mark.parametrize(("settings", "said", "fits"), TABLE, ids=str)
def test_doctor_says_the_speed_that_the_settings_imply(settings: dict[str, Any], said: str, fits: bool) -> None:
    config = JudgeConfig(**SERVER, **settings)
    (check,) = request_deadline(config)
    assert check.status == ("ok" if fits else "note")
    assert said in check.detail
    if not fits:
        setting = "thinking_tokens" if "thinking_tokens" in settings else "max_tokens"
        assert config.pace is not None
        assert f"Raise deadline_s to {config.pace.enough_s}, or lower {setting}" in check.detail
        assert config.model_copy(update={"deadline_s": float(config.pace.enough_s)}).pace.fits  # type: ignore[union-attr]


def test_a_server_of_ones_own_has_a_deadline_and_a_judge_in_this_process_has_none() -> None:
    (check,) = request_deadline(JudgeConfig(model="m", engine="vllm_server", max_tokens=4096))
    assert check.status == "note"
    assert list(request_deadline(JudgeConfig())) == []


def test_doctor_says_so_before_it_asks_the_server() -> None:
    names = [check.name for check in examine(JudgeConfig(**SERVER))]
    assert names.index("request deadline") == names.index("server") - 1


@pytest.mark.parametrize(("settings", "said", "fits"), TABLE, ids=str)
def test_the_first_call_says_it_once(
    settings: dict[str, Any], said: str, fits: bool, caplog: pytest.LogCaptureFixture
) -> None:
    config = JudgeConfig(**SERVER, **settings)
    assert config.pace is not None
    with JudgeServer() as server:
        engine = OpenAIEngine(
            "judge",
            server.base_url,
            deadline_s=config.deadline_s,
            max_concurrency=config.max_concurrency,
            api_key_env="",
        )
        with caplog.at_level(logging.INFO, "mrjudge_reward.engines.openai.engine"):
            for _ in range(2):
                engine.generate([Request(as_messages("Which?"), sampling=Sampling(max_tokens=config.pace.tokens))])
                engine = pickle.loads(pickle.dumps(engine))  # as it goes to another process
        engine.close()
    (record,) = [record for record in caplog.records if " a second for each request" in record.getMessage()]
    assert said in record.getMessage()
    assert (record.levelname == "INFO") == fits
    assert fits or f"Raise deadline_s to {config.pace.enough_s}" in record.getMessage()


def test_a_later_call_that_asks_too_much_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with JudgeServer() as server, caplog.at_level(logging.INFO, "mrjudge_reward.engines.openai.engine"):
        engine = OpenAIEngine("judge", server.base_url, api_key_env="")
        for tokens in (16, 1024, 4096, 8192):
            engine.generate([Request(as_messages("Which?"), sampling=Sampling(max_tokens=tokens))])
        engine.close()
    said = [(record.levelname, record.getMessage().split(": ")[1][:11]) for record in caplog.records]
    assert said == [("INFO", "16 tokens w"), ("WARNING", "4096 tokens")]
