"""How preference sets lay out a row: what was asked, what was answered, and which answer is better.

====================================================  ==================================================================
layout                                                seen in
====================================================  ==================================================================
``prompt, chosen, rejected``: texts, messages, or     TRL; Skywork, Tulu, UltraFeedback binarized, RLAIF-V, MM-RLHF,
both answers with the prompt before them; ``scores``  RLHF-V (as JSON in ``text``), UltraInteract (``trajectory``)
that contradict or are equal refuse the row
texts with speakers (``\\n\\nHuman: ...``)              HH-RLHF, Nectar's prompts; HelpSteer2's ``<extra_id_1>``
two answers and a verdict on them                     HelpSteer2 and 3 (-3..3), PKU-SafeRLHF (an index), arenas
                                                      (``winner``, also one-hot), JudgeBench (``A>B``)
``completions`` with ratings                          UltraFeedback, VLFeedback
``answers`` with ranks, ``human_ranking``             Nectar, VL-RewardBench: the least rank is the best
``candidates, gold``                                  ``recipes/data/synthesize.py``
====================================================  ==================================================================

A row that is none of these, a tie, or an empty answer is refused with the field. Conversations that part before their last
message (an arena's second turn) cannot be shown as answers to one prompt, and are refused too.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, TypeAlias

from mrjudge_reward.errors import InputError
from mrjudge_reward.messages import ImagePart, Message, Part, TextPart, as_messages, final_answer

Said: TypeAlias = str | tuple[Message, ...]
Row: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True)
class Compared:
    """What a row says.

    Attributes:
        prompt: messages; an image part without an image is the place of one.
        images: of the prompt, as they stand in the row.
        answers_G: final answers, none of them empty.
        gold_G: their worth, on ``scale``; not all the same.
        scale: least and greatest worth that there can be.
    """

    prompt: tuple[Message, ...]
    images: tuple[Any, ...]
    answers_G: tuple[str, ...]
    gold_G: tuple[float, ...]
    scale: tuple[float, float] = (0.0, 1.0)


_QUESTIONS = ("prompt", "instruction", "question", "query", "context", "trajectory", "conversations", "input")
_IMAGES = ("images", "image", "image_path", "img_path")
_CHOSEN = (("chosen", "rejected"), ("chosen_response", "rejected_response"))
_TWO = (
    *(("response1", "response2"), ("response_1", "response_2"), ("response_0", "response_1")),
    *(("conversation_a", "conversation_b"), ("response_a", "response_b"), ("response_A", "response_B")),
)
_SCORES = (
    *(("score_chosen", "score_rejected"), ("chosen_score", "rejected_score"), ("chosen-rating", "rejected-rating")),
    *(("chosen_rating", "rejected_rating"), ("chosen_avg_rating", "rejected_avg_rating")),
)
_WORDS = {"model_a": 0, "a": 0, "a>b": 0, "a>>b": 0, "model_b": 1, "b": 1, "b>a": 1, "b>>a": 1}
_TIES = ("tie", "tie (bothbad)", "bothbad", "both_bad", "a=b")
_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "function_call": "assistant",
    "observation": "tool",
}


def compared(row: Row) -> Compared:
    """What a row of a preference set says, in whichever layout.

    Raises:
        InputError: if it is in none, or does not say that one answer is better than another; with the field.
    """
    if _has(row, "text") and not _has(row, "chosen") and str(row["text"]).lstrip().startswith("{"):
        row = {**row, **_decoded("text", row["text"], dict)}
    paired = any(all(_has(row, name) for name in pair) for pair in _CHOSEN)
    for layout in (_chosen,) if paired else (_listed, _decided, _chosen):
        if (found := layout(row)) is not None:
            return found
    raise InputError(
        "a preference needs chosen and rejected, or two answers and which is better, or a list of answers with ratings "
        f"or ranks; it has {', '.join(map(str, row)) or 'nothing'}"
    )


# -- layouts ----------------------------------------------------------------------------------------------------------


def _chosen(row: Row) -> Compared | None:
    pair = next((pair for pair in _CHOSEN if any(_has(row, name) for name in pair)), None)
    if pair is None:
        return None
    _need(row, pair)
    if row.get("is_tie"):  # MM-RLHF
        raise InputError("is_tie: says that both are as good; a preference needs a better one")
    for names in _SCORES:
        if all(_has(row, name) for name in names):
            better, worse = (_number(name, row[name]) for name in names)
            if better <= worse:
                said = "both are as good" if better == worse else "rejected is the better one"
                raise InputError(f"{names[0]} {better:g} and {names[1]} {worse:g} say that {said}")
    return _made(row, pair, [row[name] for name in pair], (1.0, 0.0))


def _decided(row: Row) -> Compared | None:
    pair = next((pair for pair in _TWO if all(name in row for name in pair)), None)
    if pair is None:
        return None
    _need(row, pair)
    one_hot = _has(row, "winner_model_a")
    answers = [row[name] for name in pair]
    if one_hot:  # lmsys-arena-human-preference-55k: turns as JSON, also of the prompt
        row = {**row, "prompt": _only_turn("prompt", row.get("prompt"))}
        answers = [_only_turn(name, said) for name, said in zip(pair, answers, strict=True)]
    better = _better(row, pair)
    return _made(row, pair, answers, (1.0 - better, float(better)))


def _better(row: Row, pair: tuple[str, str]) -> int:
    """Which of two answers is better, by whatever says it."""
    for field in ("overall_preference", "preference_strength"):
        if _has(row, field):
            strength = _number(field, row[field])
            if not -3 <= strength <= 3:
                raise InputError(f"{field}: must be -3 to 3; got {row[field]!r}")
            if strength == 0:
                raise InputError(f"{field}: 0 says that both are as good; a preference needs a better one")
            return int(strength > 0)
    if _has(row, "better_response_id"):
        if (number := _number("better_response_id", row["better_response_id"])) not in (0, 1):
            raise InputError(f"better_response_id: must be 0 or 1; got {row['better_response_id']!r}")
        return int(number)
    if _has(row, "winner_model_a"):
        won = [_number(name, row[name]) for name in ("winner_model_a", "winner_model_b") if _has(row, name)]
        if sorted(won) != [0, 1]:
            raise InputError(f"winner_model_a and winner_model_b name no better one (a tie?); got {won}")
        return won.index(1)
    for field in ("winner", "label"):
        if _has(row, field):
            word = str(row[field]).strip().lower()
            if word in _TIES:
                raise InputError(f"{field}: {row[field]!r} says that none is better; a preference needs a better one")
            if not isinstance(row[field], str) or word not in _WORDS:
                raise InputError(f"{field}: must be model_a, model_b, A>B or B>A; got {row[field]!r:.60}")
            return _WORDS[word]
    raise InputError(
        f"{' and '.join(pair)} are there, and nothing says which is better (overall_preference, preference_strength, "
        "better_response_id, winner or label)"
    )


def _listed(row: Row) -> Compared | None:
    if _has(row, "candidates") and _has(row, "gold"):
        texts, gold = _texts(row, "candidates"), _numbers(row, "gold")
        return _made(row, _places("candidates", texts), texts, gold)
    if _has(row, "human_ranking"):
        texts, ranks = _texts(row, "response"), _numbers(row, "human_ranking")
        return _made(row, _places("response", texts), texts, _by_rank(ranks))
    for field, text in (("completions", "response"), ("answers", "answer")):
        if _has(row, field) and (entries := _entries(row, field)):
            names = _places(field, entries, f".{text}")
            texts = [entry.get(text) for entry in entries]
            if field == "answers":
                places = _places(field, entries, ".rank")
                ranks = [_number(name, entry.get("rank")) for name, entry in zip(places, entries, strict=True)]
                return _made(row, names, texts, _by_rank(ranks))
            gold, scale = _ratings(field, entries)
            return _made(row, names, texts, gold, scale)
    return None


def _ratings(field: str, entries: Sequence[Row]) -> tuple[list[float], tuple[float, float]]:
    """The mean over aspects, 1 to 5, as UltraFeedback's own binarizations rank; the critique's 1 to 10 only without it."""
    if all(_has(entry, "fine-grained_score") for entry in entries):
        found = [_number(f"{field}.fine-grained_score", entry["fine-grained_score"]) for entry in entries]
        return found, (1.0, 5.0)
    means = [_aspects(entry.get("annotations")) for entry in entries]
    if all(mean is not None for mean in means):
        return [mean for mean in means if mean is not None], (1.0, 5.0)
    if all(_has(entry, "overall_score") for entry in entries):
        return [_number(f"{field}.overall_score", entry["overall_score"]) for entry in entries], (1.0, 10.0)
    raise InputError(f"{field}: not every answer has ratings (fine-grained_score, annotations or overall_score)")


def _aspects(annotations: Any) -> float | None:
    """The mean of the ratings that are numbers; some are "N/A"."""
    ratings = [
        float(said["Rating"])
        for said in (annotations.values() if isinstance(annotations, Mapping) else ())
        if isinstance(said, Mapping) and re.fullmatch(r"\d+(\.\d+)?", str(said.get("Rating")))
    ]
    return fmean(ratings) if ratings else None


def _by_rank(ranks: Sequence[float]) -> list[float]:
    """Worth from 1, the best, to 0, whether ranks begin at 0 or at 1."""
    least, span = min(ranks), max(ranks) - min(ranks)
    return [1 - (rank - least) / span if span else 1.0 for rank in ranks]


# -- an item of a layout ----------------------------------------------------------------------------------------------


def _made(
    row: Row, names: Sequence[str], said: Sequence[Any], gold: Sequence[float], scale: tuple[float, float] = (0.0, 1.0)
) -> Compared:
    if len(gold) != len(said):
        raise InputError(f"{len(gold)} gold values for {len(said)} answers ({', '.join(names)})")
    if wrong := [name for name, worth in zip(names, gold, strict=True) if not scale[0] <= worth <= scale[1]]:
        raise InputError(f"{wrong[0]}: its worth lies outside {scale[0]:g}..{scale[1]:g}; got {list(gold)}")
    spoken = [_said(name, one) for name, one in zip(names, said, strict=True)]
    if any(isinstance(one, str) for one in spoken):  # an answer may be a dialogue
        spoken = [one if isinstance(one, str) else read for one, read in zip(said, spoken, strict=True)]
    prompt, answered = _parted(names, spoken, _question(row))
    if not any(message.text.strip() or message.images for message in prompt):
        raise InputError("prompt: it is empty")
    answers = [_answer(name, one) for name, one in zip(names, answered, strict=True)]
    for index, answer in enumerate(answers):
        if (before := answers.index(answer)) < index and (len(answers) == 2 or gold[before] != gold[index]):
            raise InputError(f"{names[before]} and {names[index]} are the same answer")
    if len(set(gold)) == 1:
        raise InputError(f"all answers ({', '.join(names)}) are as good; a preference needs a better one")
    if _has(row, "video"):
        raise InputError("video: a judge is shown texts and images, no video")
    field = next((name for name in _IMAGES if _has(row, name)), None)
    images = () if field is None else row[field]
    images = tuple(images) if isinstance(images, list | tuple) else (images,)
    return Compared(_with_places(prompt, len(images)), images, tuple(answers), tuple(map(float, gold)), scale)


def _question(row: Row) -> tuple[Message, ...] | None:
    field = next((name for name in _QUESTIONS if _has(row, name)), None)
    if field is None:
        return None
    said = _said(field, row[field])
    if isinstance(said, str):
        more = row.get("input") if field == "instruction" else None  # Alpaca
        said = as_messages(f"{said}\n\n{more}" if isinstance(more, str) and more.strip() else said)
    if len(said) > 1 and said[-1].role == "assistant" and not said[-1].text.strip():
        said = said[:-1]  # HH-RLHF's prompts end where the answer begins
    system = row.get("system")
    if isinstance(system, str) and system.strip() and said[0].role != "system":
        said = (Message("system", (TextPart(system),)), *said)
    return said


def _parted(
    names: Sequence[str], said: Sequence[Said], prompt: tuple[Message, ...] | None
) -> tuple[tuple[Message, ...], list[Said]]:
    """Prompt and answers, where conversations hold both; also where the prompt is given beside them."""
    whole = [one for one in said if not isinstance(one, str) and one and one[0].role not in ("assistant", "tool")]
    if not whole and prompt is not None:
        return prompt, list(said)
    if len(whole) < len(said):
        if prompt is None:
            raise InputError(f"without a prompt, {' and '.join(names)} must be conversations that begin with it")
        raise InputError(f"of {' and '.join(names)} only some begin with the prompt, or with a turn that is no answer")
    shared = 0
    while all(len(one) > shared + 1 and one[shared] == whole[0][shared] for one in whole):
        shared += 1
    if not shared:
        raise InputError(f"{' and '.join(names)} have no prompt in common: they differ from the first message on")
    common = whole[0][:shared]
    if prompt is not None and not _agree(prompt, common):
        raise InputError(f"prompt: it is not what {names[0]} begins with; got {prompt[-1].text!r:.80}")
    return prompt if prompt is not None and len(prompt) > shared else common, [one[shared:] for one in whole]


def _agree(prompt: Sequence[Message], common: Sequence[Message]) -> bool:
    """Whether one ends with the other, or a prompt of one text is or holds one of the turns."""
    mine, theirs = ([" ".join(turn.text.split()) for turn in turns] for turns in (prompt, common))
    size = min(len(mine), len(theirs))
    return mine[-size:] == theirs[-size:] or (len(mine) == 1 and (mine[0] in theirs or theirs[-1] in mine[0]))


def _answer(name: str, said: Said) -> str:
    turns = as_messages([{"role": "assistant", "content": said}]) if isinstance(said, str) else said
    roles = [turn.role for turn in turns]
    if (
        not roles
        or roles[-1] != "assistant"
        or set(roles) - {"assistant", "tool"}
        or any(turn.images for turn in turns)
    ):
        raise InputError(f"{name}: must be a text or one assistant message of text, with calls of tools before it at most; "
                         f"got messages of {', '.join(roles) or 'nobody'}")  # fmt: skip
    last = final_answer(turns[-1].text)
    if not last:
        why = " after its reasoning, which may be cut off" if turns[-1].text.strip() else ""
        raise InputError(f"{name}: the answer is empty{why}")
    return "\n\n".join([*(f"{turn.role}: {final_answer(turn.text)}" for turn in turns[:-1]), last])


def _with_places(prompt: tuple[Message, ...], images: int) -> tuple[Message, ...]:
    """Where a text says ``<image>`` there is the place of one; of all of them, if it says so once."""
    marks = sum(message.text.count("<image>") for message in prompt)
    if not images or not marks or any(message.images for message in prompt):
        return prompt
    here = images if marks == 1 else 1

    def parted(text: str) -> list[Part]:
        first, *rest = (piece.strip("\n") for piece in text.split("<image>"))
        parts: list[Part] = [TextPart(first)] if first else []
        for piece in rest:
            parts += [ImagePart(None)] * here + ([TextPart(piece)] if piece else [])
        return parts

    return tuple(Message(turn.role, tuple(parted(turn.text))) if "<image>" in turn.text else turn for turn in prompt)


# -- fields -----------------------------------------------------------------------------------------------------------


def _has(row: Row, name: str) -> bool:
    value = row.get(name)  # NaN is what tables put for nothing
    return value is not None and not (isinstance(value, float) and math.isnan(value))


def _need(row: Row, names: Sequence[str]) -> None:
    if missing := [name for name in names if not _has(row, name)]:
        raise InputError(f"a preference needs {' and '.join(names)}; {' and '.join(missing)}: missing")


def _number(field: str, value: Any) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f"{field}: must be a number; got {value!r:.60}")
    return number


def _numbers(row: Row, field: str) -> list[float]:
    if not isinstance(row[field], list | tuple) or not row[field]:
        raise InputError(f"{field}: must be a list of numbers; got {row[field]!r:.60}")
    return [_number(f"{field}[{index}]", value) for index, value in enumerate(row[field])]


def _texts(row: Row, field: str) -> list[Any]:
    if not isinstance(row.get(field), list | tuple):
        raise InputError(f"{field}: must be a list of texts; got {row.get(field)!r:.60}")
    return list(row[field])


def _places(field: str, entries: Sequence[Any], end: str = "") -> list[str]:
    return [f"{field}[{index}]{end}" for index in range(len(entries))]


def _entries(row: Row, field: str) -> list[Row]:
    """A list of objects, also where it is kept as an object of lists, as ``datasets`` keeps a sequence of objects."""
    found = row[field]
    if isinstance(found, Mapping):
        lists = list(found.values())
        if not all(isinstance(one, list | tuple) and len(one) == len(lists[0]) for one in lists):
            raise InputError(f"{field}: must be a list of objects; got {found!r:.60}")
        found = [dict(zip(found, values, strict=True)) for values in zip(*lists, strict=True)]
    if not isinstance(found, list | tuple) or not all(isinstance(entry, Mapping) for entry in found):
        raise InputError(f"{field}: must be a list of objects; got {found!r:.60}")
    return list(found)


def _decoded(field: str, text: Any, kind: type) -> Any:
    try:
        value = json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{field}: not JSON: {error}") from error
    if not isinstance(value, kind):
        raise InputError(f"{field}: must be JSON of a {kind.__name__}; got {value!r:.60}")
    return value


def _only_turn(field: str, said: Any) -> Any:
    """The one text of a list of turns in JSON; any other text is itself."""
    if not isinstance(said, str) or not (said.startswith("[") and said.endswith("]")):
        return said
    turns = _decoded(field, said, list)
    if len(turns) != 1:
        raise InputError(f"{field}: must be one turn; got {len(turns)}, and answers to different prompts are no group")
    return "" if turns[0] is None else turns[0]


# -- conversations ----------------------------------------------------------------------------------------------------

_HUMAN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
_EXTRA = re.compile(r"(?:\A|\n)<extra_id_1>(User|Assistant)\n")


def _said(field: str, value: Any) -> Said:
    """A text, or messages, however they are written."""
    if isinstance(value, str):
        return _speakers(value) or value
    turns = [value] if isinstance(value, Mapping) else value
    if not isinstance(turns, list | tuple):
        raise InputError(f"{field}: must be text or messages; got {value!r:.60}")
    try:
        return as_messages([_turn(turn) for turn in turns])
    except (InputError, TypeError) as error:
        raise InputError(f"{field}: {error}") from error


def _turn(turn: Any) -> Any:
    """A message, also of those who write ``from`` and ``value``."""
    if not isinstance(turn, Mapping) or not _has(turn, "from") or _has(turn, "role"):
        return turn
    speaker = str(turn["from"])
    return {"role": _ROLES.get(speaker, speaker), "content": turn.get("value")}


def _speakers(text: str) -> tuple[Message, ...] | None:
    """The turns of a text in which speakers are named; None if it is not one."""
    if _EXTRA.search(text):
        pieces = ["", "User", *_EXTRA.split(text)] if not text.startswith("<extra_id_1>") else _EXTRA.split(text)
    elif text.lstrip().startswith("Human:") and "\n\nAssistant:" in text:
        pieces = _HUMAN.split(text)
    else:
        return None
    turns = zip(pieces[1::2], pieces[2::2], strict=True)
    return tuple(
        Message("assistant" if speaker == "Assistant" else "user", (TextPart(said.strip()),) if said.strip() else ())
        for speaker, said in turns
    )
