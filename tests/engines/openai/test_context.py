"""What a server tells of its judge's context, and how tokens are counted there."""

from __future__ import annotations

import base64
import pickle
import random
import string
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mrjudge_reward.engines.openai import context, counting
from mrjudge_reward.engines.openai.context import context_of
from mrjudge_reward.engines.openai.counting import Estimate
from mrjudge_reward.engines.openai.engine import OpenAIEngine
from mrjudge_reward.messages import as_messages
from mrjudge_reward.types import Reply, Request
from tests.support import ROOT
from tests.support.judge_server import JudgeServer

Connect = Callable[..., OpenAIEngine]


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Engines of a server, closed at the end."""
    engines: list[OpenAIEngine] = []

    def build(server: JudgeServer, **options: Any) -> OpenAIEngine:
        engines.append(OpenAIEngine("judge", server.base_url, **{"deadline_s": 10.0, **options}))
        return engines[-1]

    yield build
    for engine in engines:
        engine.close()


def models(*cards: dict[str, Any]) -> dict[str, Any]:
    return {"/v1/models": {"object": "list", "data": list(cards)}}


PLAIN = {"id": "judge", "object": "model"}
TOLD: dict[str, tuple[dict[str, Any], int | None]] = {
    "vLLM and SGLang": (models(PLAIN | {"max_model_len": 32768}), 32768),
    "vLLM's adapter has its parent's": (
        models(
            {"id": "base", "max_model_len": 8192},
            {"id": "other", "max_model_len": 64},
            PLAIN | {"parent": "base", "max_model_len": None},
        ),
        8192,
    ),
    "several models: the judge's own": (
        models({"id": "small", "max_model_len": 512}, PLAIN | {"max_model_len": 4096}), 4096,
    ),
    "llama.cpp: of a slot, not what the model was trained for": (
        models(PLAIN | {"meta": {"n_ctx": 4096, "n_ctx_train": 131072}}), 4096,
    ),
    "older llama.cpp": (
        {
            **models(PLAIN | {"meta": {"n_ctx_train": 131072}}),
            "/props": {"default_generation_settings": {"n_ctx": 2048}, "total_slots": 4},
        },
        2048,
    ),
    "what it was trained for, where nothing else is told": (models(PLAIN | {"meta": {"n_ctx_train": 40960}}), 40960),
    "OpenRouter: the smaller of the model's and the provider's": (
        models(PLAIN | {"context_length": 131072, "top_provider": {"context_length": 65536}}), 65536,
    ),
    "Groq": (models(PLAIN | {"context_window": 8192}), 8192),
    "Mistral": (models(PLAIN | {"max_context_length": 32000}), 32000),
    "TGI": ({**models(PLAIN), "/info": {"model_id": "x", "max_total_tokens": 4096, "max_input_tokens": 4095}}, 4095),
    "LM Studio": (
        {
            **models(PLAIN),
            "/api/v0/models": {"data": [PLAIN | {"max_context_length": 32768, "loaded_context_length": 4096}]},
        },
        4096,
    ),
    "Ollama": ({**models(PLAIN), "/api/ps": {"models": [{"name": "judge:latest", "context_length": 4096}]}}, 4096),
    "a name that is not listed, on a server of one model": (models({"id": "served", "max_model_len": 1024}), 1024),
    "a name that is not listed, among several": (
        models({"id": "a", "max_model_len": 1024}, {"id": "b", "max_model_len": 2048}), None,
    ),
    "a hosted API that tells nothing": (models(PLAIN), None),
    "no list": ({"/v1/models": "<html>hello</html>"}, None),
    "a list of anything": ({"/v1/models": {"data": ["judge", None, 7]}}, None),
    "no number": (models(PLAIN | {"max_model_len": "much", "context_length": True, "context_window": -1}), None),
    "no models at all": ({"/v1/models": {"data": []}}, None),
}  # fmt: skip


@pytest.mark.parametrize("case", TOLD)
def test_a_server_is_asked_for_its_context_in_its_own_words_once(connect: Connect, case: str) -> None:
    facts, size = TOLD[case]
    with JudgeServer(facts=facts) as server:
        engine = connect(server)
        assert [engine.context_tokens for _ in range(3)] == [size] * 3
        assert server.asked.count("/v1/models") == 1
        assert len(server.asked) <= 5


@pytest.mark.parametrize(
    ("given", "told", "holds"),
    [(None, 4096, 4096), (2048, 4096, 2048), (8192, 4096, 4096), (8192, None, 8192), (None, None, None)],
)
def test_of_what_is_given_and_what_is_told_the_smaller_holds(
    connect: Connect, given: int | None, told: int | None, holds: int | None
) -> None:
    with JudgeServer(max_model_len=told) as server:
        assert connect(server, context_tokens=given).context_tokens == holds


def test_a_server_that_could_not_be_asked_is_asked_again(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    server = JudgeServer(max_model_len=4096)
    engine = connect(server)
    server._http.server_close()  # nothing listens there
    assert engine.context_tokens is None
    with JudgeServer(max_model_len=4096, port=server.port) as again:
        assert engine.context_tokens is None, "not yet: it is left alone for a while"
        monkeypatch.setattr(context, "AGAIN_S", 0.0)
        assert engine.context_tokens == 4096
        assert again.asked == ["/v1/models"]


def test_a_pickled_engine_keeps_what_it_was_told(connect: Connect) -> None:
    with JudgeServer(max_model_len=4096) as server:
        engine = connect(server)
        assert engine.context_tokens == 4096
        assert engine.count_tokens("AABB") == 4
        twin = pickle.loads(pickle.dumps(engine))
        assert (twin.context_tokens, twin.count_tokens("AABB")) == (4096, 4)
        assert len(server.asked) == 3


def test_what_is_no_mapping_tells_nothing() -> None:
    assert [context_of(payload, "judge") for payload in (None, [], "4096", 4096)] == [None] * 4


# -- counting -----------------------------------------------------------------------------------------------------------


def words(text: str) -> list[int]:
    return list(range(len(text.split())))


COUNTING: dict[str, Callable[[dict[str, Any]], Any]] = {
    "vLLM": lambda body: {"count": len(words(body["prompt"])), "tokens": words(body["prompt"]), "max_model_len": 9},
    "SGLang": lambda body: {"tokens": words(body["prompt"]), "count": len(words(body["prompt"])), "max_model_len": 9},
    "llama.cpp": lambda body: {"tokens": words(body["content"])},
    "llama.cpp with pieces": lambda body: {"tokens": [{"id": i, "piece": "x"} for i in words(body["content"])]},
    "TGI": lambda body: [{"id": i, "text": "x", "start": 0, "stop": 1} for i in words(body["inputs"])],
}


@pytest.mark.parametrize("case", COUNTING)
def test_a_server_counts_and_is_asked_once_for_each_text(connect: Connect, case: str) -> None:
    with JudgeServer(facts={"/tokenize": COUNTING[case]}) as server:
        engine = connect(server)
        assert [engine.count_tokens(text) for text in ("", "a b c", "a b c", "日本 語", "\ud800 x")] == [0, 3, 3, 2, 2]
        assert server.asked == ["/tokenize"] * 4, "to find out how, and each text once"


UNCOUNTABLE: dict[str, Any] = {
    "an empty answer": {},
    "no tokens": {"tokens": []},
    "tokens that are none": {"tokens": "abc"},
    "a count alone": {"count": 3},
    "more tokens than characters": {"count": 900, "tokens": []},
    "a page": "<html>hello</html>",
    "a number": 7,
    "nothing": None,
    "a negative count": {"count": -1, "tokens": []},
    "an error with status 200": {"error": {"message": "no such thing"}},
}


@pytest.mark.parametrize("case", [*UNCOUNTABLE, "404"])
def test_a_server_that_cannot_count_is_asked_once_and_estimated_for(connect: Connect, case: str) -> None:
    facts = {} if case == "404" else {"/tokenize": UNCOUNTABLE[case]}
    with JudgeServer(facts=facts, reads="top") as server:
        engine = connect(server)
        assert [engine.count_tokens(text) for text in ("one two", "three four")] == [
            Estimate()("one two"), Estimate()("three four"),
        ]  # fmt: skip
        assert server.asked == ["/tokenize"]


def test_a_server_that_is_silent_is_left_alone_for_a_while(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    server = JudgeServer()
    engine = connect(server)
    server._http.server_close()
    assert engine.count_tokens("AABB") == Estimate()("AABB") != 4
    with JudgeServer(port=server.port) as again:
        assert engine.count_tokens("AABB") == Estimate()("AABB")
        monkeypatch.setattr(counting, "AGAIN_S", 0.0)
        assert engine.count_tokens("AABB") == 4
        assert again.asked == ["/tokenize"] * 2


# -- the estimate ---------------------------------------------------------------------------------------------------------


def noise(alphabet: str, size: int = 4000, seed: int = 0) -> str:
    return "".join(random.Random(seed).choices(alphabet, k=size))


def between(first: str, last: str) -> str:
    return "".join(map(chr, range(ord(first), ord(last) + 1)))


PROSE = (ROOT / "docs" / "concepts.md").read_text()
KINDS: dict[str, str] = {
    "prose": PROSE,
    "a table of settings": (ROOT / "docs" / "configuration.md").read_text(),
    "Python": Path(counting.__file__).read_text() + Path(__file__).read_text(),
    "JavaScript": (ROOT / "mrjudge_reward/monitoring/report/page.js").read_text(),
    "HTML": (ROOT / "mrjudge_reward/monitoring/report/page.html").read_text(),
    "YAML": (ROOT / "recipes/data/synthesize.yaml").read_text(),
    "numbered code": "\n".join(f"line {i} of it: value = compute(value, {i})" for i in range(300)),
    "numbers": " ".join(noise(string.digits, 7, seed) for seed in range(500)),
    "hexadecimal": noise("0123456789abcdef"),
    "base64": base64.b64encode(random.Random(0).randbytes(3000)).decode(),
    "punctuation": noise(string.punctuation),
    "formulas": noise("xyz+-*/^() =0123456789{}\\"),
    "random letters": noise(string.ascii_lowercase),
    "random words": " ".join(noise(string.ascii_lowercase, 2 + seed % 10, seed) for seed in range(500)),
    "shouting": PROSE.upper(),
    "Chinese": noise(between("一", "龥"), 2000),
    "Japanese": noise(between("ぁ", "ゖ") + between("一", "丿"), 2000),
    "Korean": noise(between("가", "힣"), 2000),
    "Russian": noise(between("а", "я") + " ", 2000),
    "Arabic": noise(between("ء", "ي") + " ", 2000),
    "emoji": noise(between("🌀", "🙏"), 1000),
    "blank lines": "    \n" * 900,
    "one letter": "a" * 5000,
    "code with Chinese comments": "\n".join(
        f"x_{i} = f(x_{i})  # {noise(between('一', '龥'), 12, i)}" for i in range(150)
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_an_estimate_is_an_upper_one_for_text_of_any_kind(smol_tokenizer: Any, kind: str) -> None:
    taken = len(smol_tokenizer.encode(KINDS[kind], add_special_tokens=False))
    assert taken <= Estimate()(KINDS[kind]) <= 12 * taken + 50
    if kind in ("prose", "Python", "JavaScript", "YAML", "Chinese", "numbered code"):
        assert Estimate()(KINDS[kind]) < 2 * taken, "and no more than that of what is mostly judged"


@pytest.mark.parametrize("first", KINDS)
def test_what_was_learnt_from_one_kind_of_text_leaves_the_others_an_upper_estimate(
    smol_tokenizer: Any, first: str
) -> None:
    def count(text: str) -> int:
        return len(smol_tokenizer.encode(text, add_special_tokens=False))

    estimate = Estimate()
    for _ in range(3):
        estimate.learn([PROSE[:1200], KINDS[first]], count(PROSE[:1200]) + count(KINDS[first]) + 20)
    for kind in ("prose", "Python", "JavaScript", "Chinese", "Japanese", "numbered code", "random words", first):
        mixed = PROSE[:1200] + KINDS[kind]
        assert estimate(mixed) >= 0.95 * count(mixed), kind


def test_an_estimate_comes_down_where_a_vocabulary_knows_the_script_and_up_where_it_does_not() -> None:
    text = KINDS["Chinese"]
    estimate = Estimate()
    assert estimate(text) == 6000
    estimate.learn(["short", text], 1300)
    assert 1300 < estimate(text) < 2000
    estimate.learn(["short", text], 5000)
    assert estimate(text) >= 5000
    before = estimate(PROSE)
    for _ in range(100):
        estimate.learn(["Which?"], 2500)  # what a server puts before a chat says nothing of texts
    assert estimate(PROSE) == before


def test_replies_correct_the_estimate_of_a_server_that_cannot_count(connect: Connect) -> None:
    text = KINDS["Chinese"]
    with JudgeServer(reads="top", count=lambda said: 2 * len(said) // 3) as server:
        engine = connect(server)
        assert engine.count_tokens(text) == 6000
        (reply,) = engine.generate([Request(as_messages(text))])
        assert isinstance(reply, Reply)
        assert 1334 <= engine.count_tokens(text) < 2000
