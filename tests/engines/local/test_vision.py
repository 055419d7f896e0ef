"""The transformers engine on models that see: real architectures and processors, random weights, on a CPU."""

from __future__ import annotations

import copy
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from mrjudge_reward.engines.local.batches import Prompt, Seen, batches
from mrjudge_reward.engines.local.engine import TransformersEngine
from mrjudge_reward.engines.local.vision import ImageReader
from mrjudge_reward.errors import EngineError
from mrjudge_reward.images import load_picture
from mrjudge_reward.judge import Judge, JudgeConfig
from mrjudge_reward.messages import ImagePart, Message, TextPart
from mrjudge_reward.prompting.formats import Choice
from mrjudge_reward.types import EngineFailure, Group, NoVerdict, Reply, Request, Sampling
from tests.support.vision_setup import IMAGES_FIRST, MAKERS, encoded, llava, picture, saved

GREEDY = Sampling(0.0, 1.0, 6)


def showing(*images: Any, text: str = "Which is better?", **more: Any) -> Request:
    user = Message("user", (*map(ImagePart, images), TextPart(text)))
    return Request((Message("system", (TextPart("Be fair."),)), user), **more)


def reading(*images: Any, **more: Any) -> Request:
    return showing(*images, prefill="<answer>", labels=("A", "B"), **more)


def logprobs(replies: list[Reply | EngineFailure]) -> list[tuple[float, ...]]:
    assert all(isinstance(reply, Reply) for reply in replies), replies
    return [reply.label_logprobs or () for reply in replies if isinstance(reply, Reply)]


@pytest.fixture(scope="module", params=MAKERS)
def made(request: pytest.FixtureRequest, smol_path: str) -> tuple[Any, Any]:
    return MAKERS[request.param](smol_path)


@pytest.fixture
def engine(made: tuple[Any, Any]) -> TransformersEngine:
    return TransformersEngine(made[0], tokenizer=made[1], batch_size=8)


MIXED = [
    reading(picture("red")),
    reading(picture("blue", (200, 100)), text="A much longer text. " * 9),
    reading(),
    reading(picture("red"), picture("green", (90, 30))),
]

# -- every family -------------------------------------------------------------------------------------------------------


def test_reads_with_images_in_a_batch_equal_reads_one_by_one(engine: TransformersEngine):
    together = logprobs(engine.label_logprobs(MIXED))
    alone = [logprobs(engine.label_logprobs([request]))[0] for request in MIXED]
    assert together == [pytest.approx(values, abs=2e-4) for values in alone]


def test_a_read_differs_where_the_image_does_and_nowhere_else(engine: TransformersEngine):
    red, same, blue, none = logprobs(
        engine.label_logprobs(
            [reading(picture("red")), reading(encoded(picture("red"))), reading(picture("blue")), reading()]
        )
    )
    assert red == same
    assert min(abs(red[0] - blue[0]), abs(red[0] - none[0]), abs(blue[0] - none[0])) > 1e-3


def test_a_prompt_is_what_the_processor_itself_makes_of_the_chat(engine: TransformersEngine, made: tuple[Any, Any]):
    model, processor = made
    shown = [picture("red"), picture("green", (90, 30))]
    request = reading(*shown)
    chat = [
        {"role": "system", "content": [{"type": "text", "text": "Be fair."}]},
        {
            "role": "user",
            "content": [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "Which is better?"}],
        },
    ]
    text = processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) + "<answer>"
    whole = processor(
        text=[text], images=[shown], images_kwargs={"return_tensors": "pt"}, text_kwargs={"add_special_tokens": False}
    )
    prompt = engine._prompt(request)
    assert isinstance(prompt, Prompt)
    assert prompt.ids == whole["input_ids"][0]
    given = engine._images.inputs([prompt], len(prompt), "cpu", torch.float32)  # type: ignore[union-attr]
    for name, value in given.items():
        ours, theirs = value, torch.as_tensor(whole[name])
        if ours.ndim > 4:  # rows of one prompt or of its images: the model goes through both in the same order
            ours, theirs = (t.flatten(0, 1)[t.flatten(0, 1).flatten(1).any(1)] for t in (ours, theirs))
        elif ours.numel() == theirs.numel():
            ours = ours.reshape(theirs.shape)
        if name != "pixel_attention_mask":
            assert torch.equal(ours, theirs.to(ours.dtype)), name
    assert {"pixel_values"} <= given.keys()
    ids = torch.tensor([prompt.ids])
    with torch.no_grad():
        extras = {
            name: torch.as_tensor(value) for name, value in whole.items() if name not in ("input_ids", "attention_mask")
        }
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), **extras).logits[0, -1]
    spelt = [[processor.tokenizer.encode(text, add_special_tokens=False)[0] for text in (x, f" {x}")] for x in "AB"]
    expected = torch.log_softmax(logits.float(), -1)[torch.tensor(spelt)].logsumexp(-1).tolist()
    assert logprobs(engine.label_logprobs([request]))[0] == pytest.approx(expected, abs=2e-4)


def test_greedy_writing_with_images_in_a_batch_equals_one_by_one(engine: TransformersEngine):
    requests = [showing(picture("red"), sampling=GREEDY), showing(picture("blue", (200, 100)), sampling=GREEDY)]
    together = engine.generate(requests)
    assert [r.text for r in together if isinstance(r, Reply)] == [
        r.text for request in requests for r in engine.generate([request]) if isinstance(r, Reply)
    ]
    assert all(isinstance(reply, Reply) and reply.usage.completion_tokens == 6 for reply in together)


def test_tokens_of_an_image_count(engine: TransformersEngine):
    (none, one), shown = engine.label_logprobs([reading(), reading(picture())]), load_picture(picture())
    assert isinstance(none, Reply)
    assert isinstance(one, Reply)
    places = len(engine._encode(engine._chat.text(reading(picture())))) - 1 + (engine.image_tokens(shown) or 0)
    assert one.usage.prompt_tokens == places > none.usage.prompt_tokens


def test_a_shared_image_is_processed_once_in_a_group_of_eight_judged_in_all_pairs(engine: TransformersEngine):
    group = Group.of(
        [{"role": "user", "content": [{"type": "image", "image": picture()}, {"type": "text", "text": "What is it?"}]}],
        [f"answer number {number}" for number in range(8)],
    )
    judge = Judge(
        engine, Choice(), schedule="all_pairs", verdict="read", both_orders=False, audit=False, min_label_mass=0
    )
    (judgement,) = judge.judge([group])
    assert judgement.calls == 28
    assert None not in judgement.scores_G
    assert engine._images is not None
    assert engine._images.calls == 1


@pytest.mark.parametrize("images", [[picture("red")], [picture("red", (40, 150)), picture("green", (90, 30))]])
def test_images_that_a_batch_begins_with_go_through_the_vision_tower_once_and_reads_stay_the_same(
    engine: TransformersEngine, images: list[Any]
):
    seen = []
    parts = dict(engine._model.model.named_children())
    tower = next(parts[name] for name in ("vision_tower", "visual", "vision_model") if name in parts)
    hook = tower.register_forward_hook(lambda *_: seen.append(1))
    requests = [reading(*images, text="Which? " + "A much longer text. " * more) for more in (0, 5, 1, 9, 2)]
    try:
        together = logprobs(engine.label_logprobs(requests))
        assert len(seen) == 1
        alone = [logprobs(engine.label_logprobs([request]))[0] for request in requests]
    finally:
        hook.remove()
    assert len(seen) == 1 + len(requests)
    assert together == [pytest.approx(values, abs=2e-4) for values in alone]
    assert len({round(values[0], 3) for values in alone}) > 1, "the texts differ, and so do the verdicts"


def test_texts_are_read_alike_in_a_batch_after_images_were_seen(engine: TransformersEngine):
    engine.label_logprobs([reading(picture("red"), text=text) for text in ("Which?", "Which is better?")])
    requests = [reading(text="Which? " + "A much longer text. " * more) for more in (0, 5, 2)]
    together = logprobs(engine.label_logprobs(requests))
    alone = [logprobs(engine.label_logprobs([request]))[0] for request in requests]
    assert together == [pytest.approx(values, abs=2e-4) for values in alone]


def test_bad_images_cost_their_own_requests_alone(engine: TransformersEngine):
    requests = [reading(picture()), reading(b"no image"), reading("https://example.org/a.png"), reading()]
    seen, bad, web, text = engine.label_logprobs(requests)
    assert isinstance(bad, EngineFailure)
    assert isinstance(web, EngineFailure)
    assert (bad.reason, web.reason, bad.transient) == ("image", "image", False)
    assert "not fetched here" in web.detail
    assert isinstance(seen, Reply)
    assert isinstance(text, Reply)


# -- LLaVA alone ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(smol_path: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved(llava(smol_path), tmp_path_factory.mktemp("llava"))


def test_a_model_that_sees_is_loaded_by_its_path_and_survives_pickling(folder: str):
    engine = TransformersEngine(folder, device="cpu")
    again = pickle.loads(pickle.dumps(engine))
    assert logprobs(again.label_logprobs(MIXED)) == logprobs(engine.label_logprobs(MIXED))
    assert "<image>" in engine.reserved
    assert not engine.weights_may_change


@pytest.mark.parametrize("verdict", ["read", "sampled", "cascade"])
def test_a_config_makes_a_judge_that_sees(folder: str, verdict: Any):
    more: dict[str, Any] = {} if verdict == "read" else {"max_tokens": 4, "temperature": 0.0}
    more |= {} if verdict == "sampled" else {"min_label_mass": 0.0}
    more |= {"cascade_margin": 0.0} if verdict == "cascade" else {}
    judge = JudgeConfig(
        model=folder, device="cpu", verdict=verdict, schedule="ring", max_failed_fraction=1.0, **more
    ).build()  # fmt: skip
    shown = [{"role": "user", "content": [{"type": "image", "image": picture()}, {"type": "text", "text": "What?"}]}]
    broken = [{"role": "user", "content": [{"type": "image", "image": b""}, {"type": "text", "text": "What?"}]}]
    candidates = ["red", "blue", "<image> green"]
    fine, bad, text = judge.judge([Group.of(p, candidates, str(n)) for n, p in enumerate((shown, broken, "What?"))])
    reasons = {p.verdict.outcome.reason for p in fine.played + text.played if isinstance(p.verdict.outcome, NoVerdict)}
    assert reasons <= {"truncated"}, "a random model writes nonsense; its images are no reason to fail"
    assert bad.scores_G == (None, None, None)
    if verdict != "cascade":  # which thinks where it likes
        assert fine.usage.prompt_tokens > text.usage.prompt_tokens
    judge.close()


@pytest.fixture(scope="module")
def made_llava(smol_path: str) -> tuple[Any, Any]:
    return llava(smol_path)


@pytest.fixture(scope="module")
def images_first(made_llava: tuple[Any, Any]) -> TransformersEngine:
    """As LLaVA 1.5's own template."""
    model, processor = made_llava
    processor = copy.copy(processor)
    processor.chat_template = IMAGES_FIRST
    return TransformersEngine(model, tokenizer=processor)


def test_a_template_that_drops_plain_content_gets_lists(images_first: TransformersEngine):
    engine = images_first
    assert "Which is better?" in engine._chat.text(reading())
    assert engine._chat.text(reading(picture())).startswith("system: Be fair. user: <image>\nWhich is better?")
    assert len(logprobs(engine.label_logprobs([reading(picture()), reading()]))) == 2


def test_a_template_that_moves_images_to_the_front_cannot_show_those_of_candidates(
    images_first: TransformersEngine, made_llava: tuple[Any, Any]
):
    engine = images_first
    behind = Request((Message("user", (TextPart("A:"), ImagePart(picture()), TextPart("B: none"))),), labels=("A", "B"))
    before = reading(picture())
    refused, seen = engine.label_logprobs([behind, before])
    assert isinstance(refused, EngineFailure)
    assert "puts all images in front" in refused.detail
    assert isinstance(seen, Reply)
    kept = TransformersEngine(made_llava[0], tokenizer=made_llava[1])
    assert isinstance(kept.label_logprobs([behind])[0], Reply)


def test_a_model_without_its_processor_judges_texts_and_says_why_it_sees_nothing(folder: str, tmp_path: Path):
    shutil.copytree(folder, tmp_path / "blind")
    (tmp_path / "blind/processor_config.json").unlink()
    engine = TransformersEngine(str(tmp_path / "blind"), device="cpu")
    text, image = engine.label_logprobs([reading(), reading(picture())])
    assert isinstance(text, Reply)
    assert isinstance(image, EngineFailure)
    assert image.reason == "images"
    assert "processor" in image.detail


def test_a_text_model_says_that_it_sees_nothing(smol_engine: TransformersEngine):
    (refused,) = smol_engine.label_logprobs([reading(picture())])
    assert isinstance(refused, EngineFailure)
    assert refused.detail == "this engine judges text only: its model takes text alone"
    assert smol_engine.image_tokens(load_picture(picture())) is None


def test_a_template_without_a_place_for_images_fails_the_request(made_llava: tuple[Any, Any]):
    model, processor = made_llava[0], copy.copy(made_llava[1])
    processor.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'][-1]['text'] }}{% endfor %}"
    (refused,) = TransformersEngine(model, tokenizer=processor).label_logprobs([reading(picture())])
    assert isinstance(refused, EngineFailure)
    assert "0 places for 1 images" in refused.detail


def test_an_image_that_does_not_fit_the_context_fails_alone(made_llava: tuple[Any, Any]):
    engine = TransformersEngine(made_llava[0], tokenizer=made_llava[1])
    engine.context_tokens = 40
    fits, large = engine.label_logprobs([reading(picture()), reading(*[picture()] * 5)])
    assert isinstance(fits, Reply)
    assert isinstance(large, EngineFailure)
    assert large.reason == "context"


def test_a_processor_without_an_image_token_is_refused():
    class NoToken:
        image_token = "not one token"
        tokenizer = type("T", (), {"encode": staticmethod(lambda text, add_special_tokens: [1, 2, 3])})()

    with pytest.raises(EngineError, match="NoToken has no single token that stands for an image"):
        ImageReader(NoToken())


# -- batches ----------------------------------------------------------------------------------------------------------------


def test_reads_of_many_different_images_are_still_one_batch():
    seen = [Seen([7] * 4, {}, {}, 8) for _ in range(10)]
    prompts = {number: Prompt([1] * (20 - number), (seen[number // 2],)) for number in range(20)}
    prompts |= {20 + number: Prompt([1] * 9, (seen[9],)) for number in range(4)}
    dealt = [sorted(batch) for batch in batches(prompts, 1, 32, 10_000, apart=True)]
    assert sorted(map(len, dealt)) == [6, 18], "two orders of a pair are not worth a batch; a group's comparisons are"


def test_pixel_values_bound_a_batch_and_the_oldest_are_forgotten(
    made_llava: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
):
    big = Seen([7] * 4, {}, {}, 100 * 2**20)
    prompts = {number: Prompt([1] * 10, (big,)) for number in range(5)} | {9: Prompt([1] * 10)}
    dealt = list(batches(prompts, 1, 32, 10_000))
    assert [len(batch) for batch in dealt] == [2, 2, 2]
    assert sorted(number for batch in dealt for number in batch) == [0, 1, 2, 3, 4, 9]
    apart = list(batches(prompts, 1, 32, 10_000, apart=True))
    assert sorted(map(sorted, apart)) == [[0, 1], [2, 3], [4], [9]]
    monkeypatch.setattr("mrjudge_reward.engines.local.vision.IMAGE_BYTES", 1)
    reader = ImageReader(made_llava[1])
    for colour in ("red", "blue", "red"):
        reader.seen(load_picture(Image.new("RGB", (30, 30), colour)))
    assert reader.calls == 3
