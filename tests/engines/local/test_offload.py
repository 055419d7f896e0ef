"""A judge that visits its device: replies, and where the weights lie between calls. No GPU is needed."""

from __future__ import annotations

import logging
import pickle
from typing import Any

import pytest
import torch

from mrjudge_reward.engines.local.engine import TransformersEngine
from mrjudge_reward.engines.local.offload import OffloadEngine
from mrjudge_reward.errors import EngineError
from mrjudge_reward.messages import as_messages
from mrjudge_reward.types import EngineFailure, Reply, Request, Sampling

READ = Request(as_messages("What a film!"), prefill="Sentiment:", labels=(" negative", " positive"))
WRITE = Request(as_messages("Hi!"), sampling=Sampling(0.0, 1.0, 4))


@pytest.fixture(scope="module")
def engine(smol_path: str) -> Any:
    return OffloadEngine(smol_path, device="cpu", dtype="float32")


class Travels:
    """Counts journeys, and stands for a device: what comes back from it is a copy, as on a GPU."""

    def __init__(self, engine: OffloadEngine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.engine, self.seen = engine, []
        forward = engine._model.forward
        homes = [(tensor, _Home(home)) for tensor, home in engine._homes]
        monkeypatch.setattr(engine, "_homes", homes)

        def watched(*args: Any, **more: Any) -> Any:
            self.seen.append(self.at_home)
            if self.breaks:
                raise RuntimeError("broken")
            return forward(*args, **more)

        self.breaks = False
        monkeypatch.setattr(engine._model, "forward", watched)

    @property
    def at_home(self) -> bool:
        return all(tensor.data_ptr() == home.data_ptr() for tensor, home in self.engine._homes)


class _Home(torch.Tensor):
    """A tensor that is copied when it is moved."""

    @staticmethod
    def __new__(cls, tensor: torch.Tensor) -> Any:
        return tensor.as_subclass(cls)

    def to(self, *_: Any, **__: Any) -> torch.Tensor:
        return self.as_subclass(torch.Tensor).clone()


def test_it_answers_as_an_engine_that_stays(engine: OffloadEngine, smol_engine: TransformersEngine):
    assert engine.label_logprobs([READ]) == smol_engine.label_logprobs([READ])
    assert engine.generate([WRITE]) == smol_engine.generate([WRITE])
    assert engine.identity == smol_engine.identity
    assert not engine.weights_may_change


@pytest.mark.parametrize(("verb", "request_"), [("generate", WRITE), ("label_logprobs", READ)])
def test_weights_are_away_while_it_judges_and_home_afterwards_also_on_an_exception(
    engine: OffloadEngine, monkeypatch: pytest.MonkeyPatch, verb: str, request_: Request
):
    travels = Travels(engine, monkeypatch)
    assert travels.at_home
    getattr(engine, verb)([request_])
    assert travels.seen
    assert not any(travels.seen)
    assert travels.at_home
    assert not engine.awake
    travels.breaks = True
    with pytest.raises(RuntimeError, match="broken"):
        getattr(engine, verb)([request_])
    assert travels.at_home
    assert not engine.awake


def test_between_wake_and_sleep_it_stays_for_several_calls(engine: OffloadEngine, monkeypatch: pytest.MonkeyPatch):
    travels = Travels(engine, monkeypatch)
    engine.wake()
    there = next(engine._model.parameters()).data_ptr()
    engine.label_logprobs([READ])
    engine.wake()
    assert next(engine._model.parameters()).data_ptr() == there
    assert engine.awake
    engine.sleep()
    engine.sleep()
    assert travels.at_home


def test_no_room_fails_the_requests_and_leaves_nothing_behind(engine: OffloadEngine, monkeypatch: pytest.MonkeyPatch):
    travels = Travels(engine, monkeypatch)

    def full(*_: Any, **__: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("no room left")

    monkeypatch.setattr(engine._homes[5][1], "to", full)
    replies = engine.label_logprobs([READ, READ])
    assert [reply.reason for reply in replies if isinstance(reply, EngineFailure)] == ["out of memory"] * 2
    assert travels.at_home
    with pytest.raises(EngineError, match=r"no room on cpu for the judge .*no room left"):
        engine.wake()
    assert travels.at_home
    monkeypatch.undo()
    assert isinstance(engine.label_logprobs([READ])[0], Reply)


def test_on_a_cpu_it_says_once_that_there_is_nothing_to_offload(smol_path: str, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING, "mrjudge_reward.engines.local.offload"):
        engine = OffloadEngine(smol_path, device="cpu", dtype="bfloat16")
        engine.label_logprobs([READ])
        engine.label_logprobs([READ])
    assert [record.getMessage() for record in caplog.records] == [
        f"{smol_path} judges on the CPU: there is nothing to offload"
    ]
    twin = pickle.loads(pickle.dumps(engine))
    assert twin.label_logprobs([READ]) == engine.label_logprobs([READ])
    twin.close()
    twin.close()
    with pytest.raises(EngineError, match="was closed"):
        twin.label_logprobs([READ])


def test_a_loaded_model_is_not_moved(smol_engine: TransformersEngine):
    with pytest.raises(EngineError, match="name or path"):
        OffloadEngine(smol_engine._model)  # type: ignore[arg-type]
