"""The TRL adapter without a trainer: what it makes of rows, and what it refuses."""

from __future__ import annotations

import copy
import json
import pickle
import re
from importlib import resources
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mrjudge_reward import (
    Choice,
    ConfigError,
    EngineFailure,
    FailureAlarm,
    InputError,
    Judge,
    JudgeConfig,
    JudgeUnreliableError,
    Request,
    RewardShape,
    ScriptedEngine,
)
from mrjudge_reward.completions import judged
from mrjudge_reward.engines.scripted import shown_candidates
from mrjudge_reward.images import load_picture
from mrjudge_reward.integrations.trl.distributed import check_timeout
from mrjudge_reward.integrations.trl.reward import JudgeReward
from mrjudge_reward.prompting.formats import SENTIMENT
from mrjudge_reward.scoring.stats import METRICS
from tests.support.criteria_judge import ByUtilities


def judge(script: Any = None, **more: Any) -> Judge:
    engine = ScriptedEngine(script) if script else ScriptedEngine.by_utility(len)
    return Judge(engine, Choice(), schedule="ring", **more)


def chat(text: str) -> list[dict[str, Any]]:
    return [{"role": "assistant", "content": text}]


def test_groups_are_cut_by_block_even_if_prompts_repeat() -> None:
    seen = judge()
    rewards = JudgeReward(seen, num_generations=2)(["same"] * 4, ["a", "bb", "ccc", "dddd"])
    assert rewards[0] < rewards[1]  # type: ignore[operator]
    assert rewards[2] < rewards[3]  # type: ignore[operator]
    for request in seen.engine.requests:  # type: ignore[attr-defined]
        assert set(shown_candidates(request).values()) in ({"a", "bb"}, {"ccc", "dddd"})


def test_a_block_of_different_prompts_is_refused() -> None:
    with pytest.raises(InputError, match=r"rows 0\.\.1 should answer one prompt"):
        JudgeReward(judge(), num_generations=2)(["p", "q"], ["a", "b"])


def test_rows_that_do_not_fill_groups_are_refused() -> None:
    with pytest.raises(InputError, match="3 completions do not form groups of 2"):
        JudgeReward(judge(), num_generations=2)(["p"] * 3, ["a", "b", "c"])


@pytest.mark.parametrize(
    ("turn", "told"),
    [
        ({"content": "", "function_call": {"name": "f", "arguments": "{}"}}, "f {}"),
        ({"content": None, "function_call": {"name": "f", "arguments": {"a": 1}}}, 'f {"a": 1}'),
        ({"content": "", "tool_calls": np.array([{"function": {"name": "f", "arguments": "{}"}}])}, "f {}"),
        ({"content": "", "tool_calls": np.array([])}, None),
        ({"content": None, "refusal": "I will not say."}, "I will not say."),
        ({"content": "", "refusal": "I will not say."}, "I will not say."),
        ({"content": "x", "refusal": None}, "x"),
        ({"content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "x"}]}, "x"),
    ],
)
def test_whatever_a_turn_holds_is_judged(turn: dict[str, Any], told: str | None) -> None:
    seen = judge()
    rewards = JudgeReward(seen, num_generations=2)(["q"] * 2, [[{"role": "assistant", **turn}], chat("other")])
    shown = {text for request in seen.engine.requests for text in shown_candidates(request).values()}  # type: ignore[attr-defined]
    assert any(told in text for text in shown) if told else not shown
    assert None not in rewards


@pytest.mark.parametrize(
    "returned", [["one", "two"], [{"title": "t"}], [], [1], [["x"]], {"a": [1]}, True, ["a", None]]
)
def test_a_tool_that_returns_a_list_does_not_stop_the_run(returned: Any) -> None:
    called = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    result = {"role": "tool", "name": "f", "content": returned}
    seen = judge()
    for ids in (None, [[1, 2, 3], [1]]):
        rewards = JudgeReward(seen, num_generations=2)(["q"] * 2, [[called, result, *chat("end")], chat("o")], ids)
        assert rewards[0] > rewards[1]  # type: ignore[operator]
    shown = {text for request in seen.engine.requests for text in shown_candidates(request).values()}  # type: ignore[attr-defined]
    assert any(json.dumps(returned) in text for text in shown)


def test_images_of_columns_and_of_messages_reach_the_judge() -> None:
    red, blue = (Image.new("RGB", (8, 8), colour) for colour in ("red", "blue"))
    asks = [{"role": "user", "content": "What?"}]
    filled = [{"role": "user", "content": [{"type": "image", "image": red}, {"type": "text", "text": "What?"}]}]
    for prompt, columns, shown in (
        ("What?", {"image": [red, red.copy()]}, [red]),
        (asks, {"images": [[red, blue], [red, blue]]}, [red, blue]),
        (filled, {"image": [red, red]}, [red]),  # TRL has put it in already
        (filled, {}, [red]),
        (asks, {"image": [None, None]}, []),
        (asks, {"images": [[], []]}, []),
    ):
        seen = judge()
        JudgeReward(seen, num_generations=2)([prompt, prompt], ["a", "bb"], **columns)
        (message,) = [m for m in seen.engine.requests[0].messages if m.role == "user"]  # type: ignore[attr-defined]
        assert [part.image.key for part in message.images] == [load_picture(image).key for image in shown]


def test_rows_with_different_images_are_no_group() -> None:
    images = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    with pytest.raises(InputError, match=r"rows 0\.\.1 should answer one prompt"):
        JudgeReward(judge(), num_generations=2)(["What?"] * 2, ["a", "b"], image=images)


def test_chat_messages_and_a_policys_own_reasoning_are_understood() -> None:
    seen = judge()
    JudgeReward(seen, num_generations=2)(
        [[{"role": "user", "content": "q"}]] * 2, [chat("<think>secret</think>short"), chat("rather longer")]
    )
    text = "".join(message.text for message in seen.engine.requests[0].messages)  # type: ignore[attr-defined]
    assert "secret" not in text
    assert "short" in text


@pytest.mark.parametrize(
    ("completion", "text"),
    [
        ("plain", "plain"),
        (chat("one turn"), "one turn"),
        ([*chat("calls"), {"role": "tool", "content": "result"}, *chat("the last turn")], "the last turn"),
        ([{"role": "assistant", "content": None}], ""),
        ([], ""),
        ([{"role": "assistant", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}], "a\nb"),
    ],
)
def test_the_final_text_of_a_completion(completion: Any, text: str) -> None:
    assert judged(completion, "final").text == text


def test_one_prompts_failure_does_not_touch_another() -> None:
    def script(request: Request) -> Any:
        return EngineFailure("down") if "bad" in request.messages[-1].text else "<answer>A</answer>"

    reward = JudgeReward(judge(script), num_generations=2, on_abstain="none")
    rewards = reward(["bad", "bad", "good", "good"], ["a", "b", "c", "d"])
    assert rewards[:2] == [None, None]
    assert None not in rewards[2:]
    assert reward.abstained_rows == (0, 1)


@pytest.mark.parametrize("rating", ["log_odds", "win_rate", "borda", "bradley_terry"])
def test_unknown_scores_take_their_groups_mean_where_a_trainer_is_not_known(rating: Any) -> None:
    """Nobody can tell whether a second reward function would turn None into 0. Of a plain call there is none."""

    def partly(request: Request) -> Any:
        return EngineFailure("down") if "lost" in request.messages[-1].text else {"A": 0.7, "B": 0.3}

    state = {"trainer_state": SimpleNamespace(global_step=1)}
    failing = JudgeReward(judge(lambda _: EngineFailure("down"), rating=rating), num_generations=2)
    assert failing(["p", "p"], ["a", "b"]) == [None, None]
    assert failing.abstained_rows == (0, 1)
    one, other = failing(["p", "p"], ["a", "b"], **state)
    assert one == other == (failing.judge.rating.neutral or 0.0)
    assert failing(["p", "p"], ["a", "b"], log_metric=lambda *_: None) == [None, None], "a logger of one's own"
    reward = JudgeReward(judge(partly, rating=rating), num_generations=3)
    plain, told = (reward(["p"] * 3, ["a", "b", "lost"], **more) for more in ({}, state))
    assert plain[2] is None
    assert None not in plain[:2]
    assert told == pytest.approx([*plain[:2], sum(plain[:2]) / 2])  # type: ignore[arg-type]


def test_an_unreliable_judge_stops_the_run() -> None:
    broken = judge(lambda _: "no verdict at all", alarm=FailureAlarm(0.5, 16, 4))
    with pytest.raises(JudgeUnreliableError, match="no verdict"):
        JudgeReward(broken, num_generations=4)(["p"] * 4, ["a", "b", "c", "d"])


def test_metrics_have_the_same_names_at_every_call() -> None:
    names: list[set[str]] = []
    for completions in (["a", "b"], ["", ""], ["x", "x"]):
        logged: dict[str, float] = {}
        extra: dict[str, list[Any]] = {}
        JudgeReward(judge(), num_generations=2, name="judge")(
            ["p", "p"], completions, log_metric=logged.__setitem__, log_extra=extra.__setitem__
        )
        names.append(set(logged))
        assert [len(values) for values in extra.values()] == [2]
    assert names == [{f"judge/{metric}" for metric in METRICS}] * 3


def test_columns_become_reference_and_criteria() -> None:
    seen = judge()
    reward = JudgeReward(seen, num_generations=2, reference_column="solution", rubric_column="criteria")
    reward(["p", "p"], ["a", "b"], solution=["the solution"] * 2, criteria=["be brief"] * 2)
    text = seen.engine.requests[0].messages[-1].text  # type: ignore[attr-defined]
    assert re.search(r"\[Reference answer \w{8}\]\nthe solution", text)
    assert re.search(r"\[Criteria \w{8}\]\nbe brief", text)
    with pytest.raises(ConfigError, match="no column 'solution'; it has other"):
        reward(["p", "p"], ["a", "b"], other=[1, 2])


def test_the_same_step_called_twice_gives_different_groups_but_a_rerun_the_same() -> None:
    def keys(seen: JudgeReward, steps: list[int]) -> list[str]:
        found = []
        for step in steps:
            seen(["p", "p"], ["a", "b"], trainer_state=SimpleNamespace(global_step=step))
            found.append(seen.last_judgements[0].group.key)
        return found

    first, second = (keys(JudgeReward(judge(), num_generations=2), [0, 0, 1]) for _ in range(2))
    assert first == second == ["train/0/0/0", "train/0/1/0", "train/1/0/0"]


def test_pairs_of_online_dpo_are_rows_half_a_batch_apart() -> None:
    reward = JudgeReward(judge(), num_generations=2, layout="halves")
    with pytest.raises(ConfigError, match="JudgeOnlineDPOTrainer"):
        reward(["p", "q", "p", "q"], ["a", "b", "cc", "dd"])
    reward.pairs_can_be_left_out = True
    rewards = reward(["p", "q", "p", "q"], ["a", "bbb", "cc", "d"])
    assert rewards[0] < rewards[2]  # type: ignore[operator]
    assert rewards[1] > rewards[3]  # type: ignore[operator]


def test_instances_have_names_of_their_own() -> None:
    one, two = JudgeReward(judge(), num_generations=2), JudgeReward(judge(), num_generations=2)
    assert one.__name__ != two.__name__
    assert JudgeReward(judge(), num_generations=2, name="style").__name__ == "style"


def test_it_travels_to_another_process() -> None:
    reward = JudgeReward(JudgeConfig(model="m", base_url="http://127.0.0.1:9/v1"), num_generations=4, name="judge")
    copy = pickle.loads(pickle.dumps(reward))
    assert (copy.__name__, copy.num_generations) == ("judge", 4)
    assert copy.judge.engine.identity == reward.judge.engine.identity
    reward.judge.close()
    copy.judge.close()


@pytest.mark.parametrize(
    "arguments",
    [
        {"num_generations": 0},
        {"num_generations": 4, "layout": "halves"},
        {"num_generations": 2, "num_generations_eval": 0},
        {"num_generations": 2, "layout": "halfs"},
        {"num_generations": 2, "on_abstain": "zero"},
        {"num_generations": 2, "thinking": "drop"},
    ],
)
def test_impossible_settings_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        JudgeReward(judge(), **arguments)


def test_no_rows_give_no_rewards() -> None:
    assert JudgeReward(judge(), num_generations=4)([], []) == []


@pytest.mark.parametrize(
    ("thinking", "completion", "shown"),
    [
        ("strip", "<think>plan</think>answer", "answer"),
        ("strip", "unfinished plan", "unfinished plan"),
        ("opened", "plan</think>answer", "answer"),
        ("opened", "unfinished plan", ""),  # the template opened the reasoning, and nothing closed it
        ("keep", "<think>plan</think>answer", "(think>plan(/think>answer"),
    ],
)
def test_the_policys_reasoning_is_stripped_or_kept_as_asked(thinking: Any, completion: str, shown: str) -> None:
    seen = judge()
    reward = JudgeReward(seen, num_generations=3, thinking=thinking)
    reward(["p"] * 3, [completion, "b</think>b", "c</think>c"])
    candidates = {text for request in seen.engine.requests for text in shown_candidates(request).values()}  # type: ignore[attr-defined]
    assert (shown in candidates) == bool(shown)
    assert reward.last_judgements[0].forfeits == (() if shown else (0,))


class Trainer:
    """What a reward sees of TRL's, with a chat template."""

    num_generations = 3

    def __init__(self, tokenizer: Any, opening: str, **kwargs: Any) -> None:
        self.processing_class = copy.copy(tokenizer)
        self.processing_class.chat_template = tokenizer.chat_template + opening
        self.model = SimpleNamespace(training=True)
        self.reward_funcs = [None]
        self.chat_template_kwargs = kwargs

    def log_metric(self, name: str, value: float) -> None:
        """As TRL takes it."""


CHAT = [{"role": "user", "content": "p"}]


@pytest.mark.parametrize(
    ("prompt", "opening", "written", "parsed", "shown"),
    [
        (CHAT, "<think>\n", "unfinished plan", None, ""),
        (CHAT, "<think>\n", "unfinished plan", "unfinished plan", ""),  # a parser of TRL's makes content of it
        (CHAT, "<think>\n", "plan</think>answer", None, "answer"),
        (CHAT, "<think>\n", "plan</think>answer", "answer", "answer"),
        (CHAT, "<think>\n", "\n</think>answer", "answer", "answer"),  # closed and empty: no reasoning is told of
        (CHAT, "<think>\n\n</think>\n\n", "answer", None, "answer"),  # thinking switched off
        (CHAT, "", "answer", None, "answer"),
        (CHAT, "", "<think>unfinished", None, ""),
        (CHAT, "{% if deep %}<think>{% endif %}", "unfinished plan", None, ""),
        ("p", "<think>\n", "answer", None, "answer"),  # no template is applied to plain text
    ],
)
def test_a_chat_template_that_opens_the_reasoning_is_asked(
    smol_tokenizer: Any, prompt: Any, opening: str, written: str, parsed: str | None, shown: str
) -> None:
    seen = judge()
    trainer = Trainer(smol_tokenizer, opening, deep=True)
    texts = [parsed if parsed is not None else written, "b</think>b", "c</think>c"]
    completions = texts if prompt == "p" else [[{"role": "assistant", "content": text}] for text in texts]
    ids = [smol_tokenizer.encode(text, add_special_tokens=False) for text in (written, *texts[1:])]
    reward = JudgeReward(seen, num_generations=3)
    reward([prompt] * 3, completions, ids, log_metric=trainer.log_metric)
    candidates = {text for request in seen.engine.requests for text in shown_candidates(request).values()}  # type: ignore[attr-defined]
    assert (shown in candidates) == bool(shown)
    assert reward.last_judgements[0].forfeits == (() if shown else (0,))


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(
    ("prompt", "written", "shown"),
    [
        ("User: p\nAssistant: Step by step.\n<think>", "unfinished plan", ""),
        ("User: p\nAssistant: <think>\n", "plan</think>answer", "answer"),
        ("p <thinking>", "unfinished plan", ""),
        ("p [THINK]", "plan[/THINK]answer", "answer"),
        ("p [THINK]\n\n", "unfinished plan", ""),
        ("p ◁think▷", "unfinished plan", ""),
        ("p <think>", "I know the mark <reasoning>.</think>answer", "answer"),
        ("p <think>\n\n</think>\n\n", "answer", "answer"),
        ("Reason in <think> </think>. p", "answer", "answer"),
        ("Begin with <think>. p", "<think>unfinished plan", ""),
        ("p", "answer", "answer"),
    ],
)
def test_a_plain_text_that_ends_in_an_open_reasoning_opens_it(
    smol_tokenizer: Any, prompt: str, written: str, shown: str, known: bool
) -> None:
    texts = [written, "b</think>b", "c</think>c"]
    more: dict[str, Any] = {}
    if known:
        more = {"completion_ids": list(map(smol_tokenizer.encode, texts))}
        more["log_metric"] = Trainer(smol_tokenizer, "<think>\n").log_metric
    reward = JudgeReward(judge(), num_generations=3)
    reward([prompt] * 3, texts, **more)
    (judgement,) = reward.last_judgements
    assert judgement.group.candidates[0] == shown
    assert judgement.forfeits == (() if shown else (0,))


def is_essay(row: Any) -> bool:
    return row["topic"] == "essay"


@pytest.mark.parametrize("judged_if", ["open", is_essay], ids=["column", "function"])
def test_groups_that_need_no_judge_are_not_judged_and_get_none(judged_if: Any) -> None:
    seen = judge()
    reward = pickle.loads(pickle.dumps(JudgeReward(JudgeConfig(), num_generations=2, judged_if=judged_if)))
    reward._judge = seen
    columns = {"open": [True] * 2 + [False] * 2 + [1] * 2, "topic": ["essay"] * 2 + ["sum"] * 2 + ["essay"] * 2}
    texts = ["a", "bb b", "c", "dd d", "e", "ff f"]
    rewards = reward(["p"] * 2 + ["1+1"] * 2 + ["q"] * 2, texts, **columns)
    assert [value is None for value in rewards] == [False, False, True, True, False, False]
    assert reward.last_stats.groups == 2
    assert not any("1+1" in request.messages[-1].text for request in seen.engine.requests)  # type: ignore[attr-defined]
    assert rewards[:2] == JudgeReward(judge(), num_generations=2)(["p"] * 2, texts[:2])


def test_no_group_that_needs_a_judge_costs_nothing() -> None:
    seen = judge()
    reward = JudgeReward(seen, num_generations=2, judged_if="open")
    assert reward(["p"] * 4, list("abcd"), open=[0] * 4) == [None] * 4
    assert seen.engine.requests == []  # type: ignore[attr-defined]


@pytest.mark.parametrize(("column", "says"), [([1, 0], "true for some rows"), (None, "no column 'open'")])
def test_a_group_that_is_judged_in_part_is_refused(column: Any, says: str) -> None:
    reward = JudgeReward(judge(), num_generations=2, judged_if="open")
    with pytest.raises((InputError, ConfigError), match=says):
        reward(["p"] * 2, ["a", "b"], **({} if column is None else {"open": column}))


@pytest.mark.parametrize(
    ("path", "columns", "shown"),
    [
        ("solution", {"solution": 42}, "42"),
        ("solution", {"solution": "42"}, "42"),
        ("solution", {"solution": ["42", "forty-two"]}, "Reference 1 of 2: 42\nReference 2 of 2: forty-two"),
        ("solution", {"solution": [["42"], []]}, "42"),
        ("answers.text", {"answers": {"text": ["42", "42"], "start": [1, 9]}}, "42"),
        ("answers.text", {"answers": [{"text": "42"}]}, "42"),
        ("answers.text", {"answers.text": "42", "answers": "other"}, "42"),
        ("a.b.c", {"a": {"b": {"c": 42.5}}}, "42.5"),
        ("solution", {"solution": None}, None),
        ("solution", {"solution": []}, None),
        ("answers.text", {"answers": None}, None),
        ("answers.text", {"answers": {}}, None),
    ],
)
def test_references_are_texts_and_numbers_in_columns_of_any_depth(
    path: str, columns: dict[str, Any], shown: str | None
) -> None:
    seen = judge()
    reward = JudgeReward(seen, num_generations=2, reference_column=path)
    reward(["p", "p"], ["a", "b"], **{name: [value, value] for name, value in columns.items()})
    text = seen.engine.requests[0].messages[-1].text  # type: ignore[attr-defined]
    found = re.search(r"\[Reference answer \w{8}\]\n(.*?)\n\[End", text, re.DOTALL)
    assert (found and found[1]) == shown


def test_a_column_of_mappings_is_refused_with_their_fields() -> None:
    reward = JudgeReward(judge(), num_generations=2, rubric_column="rubric")
    with pytest.raises(InputError, match=r"rubric: the rubric must be text.* with the fields title, weight; name one"):
        reward(["p", "p"], ["a", "b"], rubric=[[{"title": "Brief", "weight": 1}]] * 2)


@pytest.mark.parametrize("column", ["reference_column", "rubric_column"])
@pytest.mark.parametrize(
    ("judge", "says"),
    [
        (None, "'sentiment' shows responses alone"),
        (JudgeConfig(model="some/model", format="sentiment", verdict="logprobs"), "'sentiment' shows responses alone"),
        (Judge(ScriptedEngine.by_utility(len), SENTIMENT), "'sentiment' shows responses alone"),
        ("own", r"own.txt' has no section (reference|rubric)"),
    ],
)
def test_a_column_that_the_wording_does_not_show_is_refused_at_once(
    column: str, judge: Any, says: str, tmp_path: Path
) -> None:
    if judge == "own":
        wording = (resources.files("mrjudge_reward.prompting.templates") / "choice.txt").read_text()
        for part in ("reference", "rubric"):
            wording = re.sub(rf"=== {part} ===.*?(?===)|{{{part}}}", "", wording, flags=re.DOTALL)
        (tmp_path / "own.txt").write_text(wording)
        judge = JudgeConfig(model="some/model", template=str(tmp_path / "own.txt"))
    with pytest.raises(ConfigError, match=f"{column}='extra' brings a (reference|rubric) that.*{says}"):
        JudgeReward(judge, num_generations=2, **{column: "extra"})
    JudgeReward(judge, num_generations=2)


SERVED = {"model": "judge", "base_url": "http://127.0.0.1:8000/v1"}


@pytest.mark.parametrize(
    ("settings", "waits", "world", "takes"),
    [
        (SERVED, 1800, 8, None),  # the defaults of both: 2 tries of 120 s and 600 s of an outage
        (SERVED, 840, 8, None),
        (SERVED, 839, 8, 840),
        (SERVED, 120, 1, None),  # nobody waits
        (SERVED, None, 8, None),  # a trainer that tells nothing
        (SERVED | {"deadline_s": 600.0}, 1800, 2, None),
        (SERVED | {"deadline_s": 900.0}, 1800, 2, 2400),
        (SERVED | {"deadline_s": 900.0, "retries": 0}, 1800, 2, None),
        (SERVED | {"deadline_s": 900.0, "retries": 0, "outage_wait_s": 901.0}, 1800, 2, 1801),
        (SERVED | {"deadline_s": 300.0, "retries": 4}, 1800, 2, 2100),
        ({"model": "some/judge", "engine": "vllm_server", "deadline_s": 1000.0}, 1800, 2, 2600),
        ({"model": "some/judge"}, 1, 8, None),  # in this process nothing has a deadline
    ],
)
def test_ranks_wait_for_each_other_as_long_as_a_comparison_may_take(
    settings: dict[str, Any], waits: int | None, world: int, takes: int | None
) -> None:
    trainer = SimpleNamespace(args=SimpleNamespace(ddp_timeout=waits))
    if takes is None:
        check_timeout(trainer, JudgeConfig(**settings), world)
        check_timeout(None, JudgeConfig(**settings), world)
    else:
        with pytest.raises(ConfigError, match=f"may take {takes} s.*ddp_timeout = {waits} s.*raise ddp_timeout"):
            check_timeout(trainer, JudgeConfig(**settings), world)


def test_what_is_counted_of_steps_is_bounded_and_no_two_calls_share_a_key() -> None:
    reward = JudgeReward(judge(), num_generations=2)
    keys = []
    for call in range(600):
        state = SimpleNamespace(global_step=call // 2) if call % 3 else None
        keys.append(reward._now("train" if state else "eval", state).key)
    assert len(set(keys)) == 600
    assert len(reward._calls) == 256


# -- anchors ------------------------------------------------------------------------------------------------------------

ONE, OTHER = ["longer words", "the longest words"], ["no", "not"]


@pytest.mark.parametrize(
    ("path", "columns", "answers", "above"),
    [
        ("answer", {"answer": "a reply"}, ONE, True),
        ("answer", {"answer": "a reply"}, OTHER, False),
        ("answer", {"answer": ["a reply", "replies"]}, ONE, True),
        ("answers.text", {"answers": {"text": ["a reply"]}}, OTHER, False),
        ("answers.text", {"answers": [{"text": "a reply"}, {"text": "another"}]}, ONE, True),
        ("answer", {"answer": 1234567}, ONE, True),
        ("answer", {"answer": 1234567}, OTHER, False),
        ("answer", {"answer": "<think>Long thoughts of an earlier policy.</think>a reply"}, ONE, True),
        ("answer", {"answer": "a reply  "}, ["a reply", "a reply"], None),
        ("earlier.content", {"earlier": [{"role": "assistant", "content": "a reply"}]}, ONE, True),
    ],
)
def test_rewards_are_relative_to_the_anchors_of_a_column(
    path: str, columns: dict[str, Any], answers: list[str], above: bool | None
) -> None:
    seen = judge()
    reward = JudgeReward(seen, num_generations=2, anchor_column=path, name="judge")
    metrics: dict[str, float] = {}
    rewards = reward(
        ["p", "p"], answers, log_metric=metrics.__setitem__, **{name: [value] * 2 for name, value in columns.items()}
    )
    assert len(rewards) == 2
    assert [one > 0 for one in rewards] == [bool(above)] * 2  # type: ignore[operator]
    assert metrics["judge/anchor_win_rate"] == (0.5 if above is None else above)
    if above is None:
        assert rewards == [0.0, 0.0]
        assert seen.engine.requests == []  # type: ignore[attr-defined]
    for request in seen.engine.requests:  # type: ignore[attr-defined]
        assert "Long thoughts" not in request.messages[-1].text
        assert "Reference" not in request.messages[-1].text


@pytest.mark.parametrize(
    ("thinking", "shown"), [("strip", "a reply"), ("opened", "a reply"), ("keep", "<think>Hm.</think>a reply")]
)
def test_of_an_anchor_that_is_judged_what_of_a_completion_is(thinking: Any, shown: str) -> None:
    for text in ("<think>Hm.</think>a reply", "a reply"):
        reward = JudgeReward(judge(), num_generations=2, anchor_column="answer", thinking=thinking)
        reward(["p", "p"], ["Hm.</think>one", "Hm.</think>two"], answer=[text] * 2)
        assert reward.last_judgements[0].group.anchors == (shown if text != "a reply" else text,)


def test_groups_of_a_batch_have_levels_of_their_own_and_one_without_an_anchor_abstains() -> None:
    seen = judge()
    reward = JudgeReward(seen, num_generations=2, anchor_column="answer", on_abstain="none")
    answers = ["a reply"] * 4 + [None] * 2 + [" ", " "]
    rewards = reward(["p"] * 8, ONE + OTHER + ONE + ONE, answer=answers)
    assert min(rewards[:2]) > 0 > max(rewards[2:4])  # type: ignore[type-var, operator]
    assert rewards[4:] == [None] * 4
    assert reward.abstained_rows == (4, 5, 6, 7)
    assert reward.last_stats.reasons == {"no anchor": 2}
    assert reward.last_stats.calls == len(seen.engine.requests) == 12  # type: ignore[attr-defined]


def test_beside_another_reward_a_group_without_a_level_gets_what_stands_for_an_unknown_score() -> None:
    reward = JudgeReward(judge(), num_generations=2, anchor_column="answer", on_abstain="group_mean")
    assert reward(["p"] * 2, ONE, answer=[None] * 2) == [0.0, 0.0]


def test_a_lone_completion_is_judged_against_its_anchor() -> None:
    reward = JudgeReward(judge(), num_generations=1, anchor_column="answer")
    first, second = reward(["p", "q"], ["longer words", "no"], answer=["a reply"] * 2)
    assert first > 0 > second  # type: ignore[operator]


def test_rows_of_a_group_that_bring_different_anchors_are_refused() -> None:
    reward = JudgeReward(judge(), num_generations=2, anchor_column="answer")
    with pytest.raises(InputError, match=r"rows 0\.\.1 are one group and bring different anchors \(answer\)"):
        reward(["p", "p"], ONE, answer=["a reply", "another"])
    with pytest.raises(ConfigError, match="no column 'answer'; it has other"):
        reward(["p", "p"], ONE, other=[1, 2])
    with pytest.raises(InputError, match=r"answer: the anchor must be text.*with the fields text; name one"):
        reward(["p", "p"], ONE, answer=[{"text": "x"}] * 2)


SHAPES: list[dict[str, Any]] = [
    {}, {"centre": True}, {"length_weight": 0.5}, {"centre": True, "length_weight": 2.0}, {"length_weight": 0.01},
]  # fmt: skip


@pytest.mark.parametrize("given", [None, RewardShape(), RewardShape(length_weight=1.0)])
@pytest.mark.parametrize("named", SHAPES, ids=str)
def test_a_ready_judge_has_the_shape_of_its_settings(named: dict[str, Any], given: RewardShape | None) -> None:
    config = JudgeConfig(model="x", audit=False, rating="win_rate", **named)
    engine = ScriptedEngine.by_utility(lambda _: 1.0)
    shape = given or RewardShape(**named)
    for one in (config, config.build(engine), Judge(engine, audit=False, rating="win_rate", **named)):
        reward = JudgeReward(one, num_generations=2, shape=given)
        assert reward.shape == shape
        reward._judge = config.build(engine)
        short, long = reward(["p"] * 2, ["no", "so much longer than that"])
        assert short is not None
        assert long is not None
        assert short + long == pytest.approx(0.0 if shape.centre else 1.0)
        assert short - long == pytest.approx(shape.length_weight * 2 * (24 - 13) / 13)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"shape": RewardShape(centre=True)}, "anchor_column='answer' gives rewards a level, and centre takes it out"),
        ({"judge": JudgeConfig(model="m", centre=True)}, "and centre takes it out again: leave out one"),
        ({"reference_column": "answer"}, "is also shown as the reference, so that the judge would know which"),
        ({"anchor_column": "answers.text", "reference_column": "answers"}, "is also shown as the reference"),
        ({"anchor_column": "answers", "reference_column": "answers.text"}, "is also shown as the reference"),
        ({"layout": "halves"}, "anchor_column does nothing with layout 'halves'"),
    ],
    ids=str,
)
def test_anchors_that_would_do_nothing_are_refused_by_name(settings: dict[str, Any], says: str) -> None:
    settings = {"judge": JudgeConfig(model="m"), "anchor_column": "answer", **settings}
    with pytest.raises(ConfigError, match=says):
        JudgeReward(num_generations=2, **settings)
    with pytest.raises(ConfigError, match=says):
        JudgeReward(num_generations=2, **settings | {"judge": settings["judge"].build(ScriptedEngine(len))})
    JudgeReward(num_generations=2, anchor_column="answer", reference_column="answers", judge=JudgeConfig(model="m"))
    JudgeReward(num_generations=2, anchor_column="answer", reference_column="other", judge=JudgeConfig(model="m"))


def test_a_rollout_that_sees_prompts_alone_has_no_anchors() -> None:
    from mrjudge_reward.integrations.trl.rollout import SelectingRollout

    with pytest.raises(ConfigError, match="the reward's anchor_column"):
        SelectingRollout(JudgeReward(judge(), num_generations=2, anchor_column="answer"), candidates=4)


def test_components_are_relative_to_the_anchors_by_each_criterion() -> None:
    rubric = [{"title": "long", "description": "Is long."}, {"title": "loud", "description": "Exclaims.", "weight": -2}]
    script = ByUtilities({"Is long.": lambda text: len(text) - 6, "Exclaims.": lambda text: 2 * text.count("!") - 1})
    by_criteria = Judge(ScriptedEngine(script), criteria="absolute", rubric=rubric, verdict="generate")
    reward = JudgeReward(by_criteria, num_generations=2, anchor_column="answer")
    answers = {"answer": ["loudly!"] * 2 + ["soft"] * 2}
    total, parts = reward.judged(["p"] * 4, ["long one", "no!"] * 2, **answers)
    assert parts == {"long": [0.0, -1.0, 1.0, 0.0], "loud": [1.0, 0.0, 0.0, -1.0]}
    assert total == pytest.approx([2 / 3, -1 / 3, 1 / 3, -2 / 3])
    lacking = {"answer": ["..."] * 4}
    for on_abstain, unknown in (("group_mean", 0.0), ("none", None)):
        reward.on_abstain = on_abstain
        for part in reward.components():
            assert part(["p"] * 4, ["long one", "no!"] * 2, **lacking) == [unknown] * 4
    long, loud = reward.components()
    assert long(["p"] * 4, ["long one", "no!"] * 2, **answers) == parts["long"]
    assert loud(["p"] * 4, ["long one", "no!"] * 2, **answers) == parts["loud"]
