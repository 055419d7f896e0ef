"""How comparisons become verdicts: render, ask in one batch, parse or read the labels, try again.

The three ways share everything but what is asked:

* ``generate``: the judge writes its reasoning and a verdict, which is parsed;
* ``logprobs``: it reasons up to a cap (or not at all), then the probabilities of the labels are read;
* ``cascade``: both orders are read without reasoning, and the judge reasons only where these contradict each other or are
  close.

All groups of a round go to the engine together. A failed comparison is asked again where that can help, and stays failed
otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from mrjudge_reward.cache import ReplyCache, Verb, request_key
from mrjudge_reward.config import JudgeSettings
from mrjudge_reward.engines.cancelling import cancelled
from mrjudge_reward.engines.contract import Engine
from mrjudge_reward.errors import EngineError
from mrjudge_reward.images import Album
from mrjudge_reward.messages import Message
from mrjudge_reward.prompting.formats import read_reply
from mrjudge_reward.prompting.parsing import THINK_CLOSE, THINK_OPEN
from mrjudge_reward.prompting.rendering import check_shown, load_template
from mrjudge_reward.scoring.tally import bounded_log_odds
from mrjudge_reward.types import (
    Comparison,
    EngineFailure,
    Group,
    JudgedComparison,
    NoVerdict,
    Preference,
    Reply,
    Request,
    Sampling,
    Verdict,
    VerdictForm,
)

from .group_images import BAD, image_tokens
from .token_budget import TokenBudget
from .tournament import Tournament, digest

Asked: TypeAlias = tuple[Tournament, Comparison]
"""A comparison of a group, in the numbers of its players."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A reply and whether the engine was asked for it (as against the cache or a twin in the same batch)."""

    reply: Reply | EngineFailure
    fresh: bool


class Comparer:
    """Decides comparisons.

    Args:
        engine: runs the judge model.
        settings: of the judge.
        cache: replies kept on disk.
    """

    def __init__(self, engine: Engine, settings: JudgeSettings, cache: ReplyCache | None = None) -> None:
        self.engine, self.settings, self.cache = engine, settings, cache
        self.format, self.mode, self.sampling = settings.judge_format, settings.verdict_mode, settings.sampling
        self._reserved = engine.reserved | {self.format.answer_open}
        self._album = Album(settings.max_pixels)
        writes = settings.thinking_tokens + 16 if self.mode == "logprobs" else settings.max_tokens
        self.budget = TokenBudget(engine, self.format, writes, self._reserved, settings.max_candidate_tokens)

    def decide(self, asked: Sequence[Asked]) -> list[list[JudgedComparison]]:
        """What each comparison came to, as games in the players' numbers.

        A cascade returns both quick reads as games of their own where it trusts them, each once. What shows a bad image has
        failed without being asked.
        """
        faults = [self._image_fault(*pair) for pair in asked]
        decided = iter(self._decide([pair for pair, fault in zip(asked, faults, strict=True) if fault is None]))
        return [
            next(decided) if fault is None else [JudgedComparison(comparison, Verdict(fault))]
            for (_, comparison), fault in zip(asked, faults, strict=True)
        ]

    def _image_fault(self, tournament: Tournament, comparison: Comparison) -> NoVerdict | None:
        images = tournament.load_images(self._album)
        if images is None:
            return None
        texts = tournament.texts(comparison)
        if fault := images.fault_of(texts):
            return fault
        why = self.budget.lacks_room_for(image_tokens(self.engine, images.images(texts)), len(texts))
        return NoVerdict(BAD, why) if why else None

    def _decide(self, asked: Sequence[Asked]) -> list[list[JudgedComparison]]:
        if self.mode == "cascade":
            return self._cascade(asked)
        way = self._generate if self.mode == "generate" else self._think_and_read
        verdicts = self._with_retries(asked, way)
        return [
            [JudgedComparison(comparison, verdict)] for (_, comparison), verdict in zip(asked, verdicts, strict=True)
        ]

    def _cascade(self, asked: Sequence[Asked]) -> list[list[JudgedComparison]]:
        both = [(one, order) for one, comparison in asked for order in (comparison, comparison.swap())]
        verdicts = self._read(both, [""] * len(both))
        reads = [JudgedComparison(comparison, verdict) for (_, comparison), verdict in zip(both, verdicts, strict=True)]
        scheduled = {(id(tournament), comparison) for tournament, comparison in asked}
        decided: list[list[JudgedComparison]] = []
        unsure: list[int] = []
        for index, (tournament, comparison) in enumerate(asked):
            pair = reads[2 * index : 2 * index + 2]
            # Where the mirror image is scheduled too, it brings its own quick read: none may count twice.
            own = pair[:1] if (id(tournament), comparison.swap()) in scheduled else pair
            tournament.read_quickly(own)
            decided.append(own if _agree(pair[0], pair[1], self.settings.cascade_margin) else [])
            if not decided[-1]:
                unsure.append(index)
        thought = self._with_retries([asked[index] for index in unsure], self._generate)
        for index, verdict in zip(unsure, thought, strict=True):
            decided[index] = [JudgedComparison(asked[index][1], verdict)]
        return decided

    def _with_retries(
        self, asked: Sequence[Asked], way: Callable[[Sequence[Asked], int], list[Verdict]]
    ) -> list[Verdict]:
        if not asked:
            return []
        verdicts = way(asked, 0)
        for attempt in range(1, self.settings.retries + 1):
            outcomes = (verdict.outcome for verdict in verdicts)
            again = [i for i, outcome in enumerate(outcomes) if isinstance(outcome, NoVerdict) and outcome.transient]
            if not again:
                break
            for index, verdict in zip(again, way([asked[i] for i in again], attempt), strict=True):
                verdicts[index] = verdict
        return verdicts

    def _generate(self, asked: Sequence[Asked], attempt: int) -> list[Verdict]:
        requests = [
            Request(
                self.render(*pair), sampling=self.sampling, seed=self._seed(pair[1], attempt), form=self._form(pair[1])
            )
            for pair in asked
        ]
        verdicts: list[Verdict] = []
        for (_, comparison), answer in zip(asked, self._ask("generate", asked, requests), strict=True):
            if isinstance(answer.reply, EngineFailure):
                verdicts.append(_not_served(answer.reply))
                continue
            verdict = read_reply(self.format, answer.reply, len(comparison.slots))
            # A greedy judge repeats itself, and one that ran into the cap mostly will again.
            if verdict.failed and self.sampling.temperature > 0 and answer.reply.finish != "length":
                assert isinstance(verdict.outcome, NoVerdict)
                verdict = replace(verdict, outcome=replace(verdict.outcome, transient=True))
            verdicts.append(verdict)
        return verdicts

    def _think_and_read(self, asked: Sequence[Asked], attempt: int) -> list[Verdict]:
        if self.settings.thinking_tokens == 0:
            return self._read(asked, [""] * len(asked))
        # The judge opens its reasoning itself: templates of thinking models rewrite a turn that was opened for them.
        sampling = Sampling(self.sampling.temperature, self.sampling.top_p, self.settings.thinking_tokens)
        requests = [
            Request(
                self.render(*pair), sampling=sampling, stop=(THINK_CLOSE,), seed=self._seed(pair[1], attempt)
            )
            for pair in asked
        ]  # fmt: skip
        answers = self._ask("generate", asked, requests)
        failed = {
            i: _not_served(answer.reply) for i, answer in enumerate(answers) if isinstance(answer.reply, EngineFailure)
        }
        thoughts = {i: answer.reply for i, answer in enumerate(answers) if not isinstance(answer.reply, EngineFailure)}
        closed = [_closed_thought(reply.text) for reply in thoughts.values()]
        read = self._read([asked[i] for i in thoughts], closed)
        verdicts = failed | {
            i: replace(verdict, usage=verdict.usage + thoughts[i].usage)
            for i, verdict in zip(thoughts, read, strict=True)
        }
        return [verdicts[i] for i in range(len(asked))]

    def _read(self, asked: Sequence[Asked], thoughts: Sequence[str]) -> list[Verdict]:
        """Open the answer after each thought and read the offered labels."""
        if not asked:
            return []
        requests = [
            Request(
                self.render(*pair),
                prefill=thought + self.format.answer_open,
                labels=self.format.read_labels(len(pair[1].slots)),
            )
            for pair, thought in zip(asked, thoughts, strict=True)
        ]
        answers = self._ask("label_logprobs", asked, requests)
        return [
            self._verdict_read(answer, thought, len(comparison.slots))
            for (_, comparison), thought, answer in zip(asked, thoughts, answers, strict=True)
        ]

    def _verdict_read(self, answer: Answer, thought: str, slots: int) -> Verdict:
        reply = answer.reply
        if isinstance(reply, EngineFailure):
            return _not_served(reply, thought)
        if reply.label_logprobs is None:
            return Verdict(NoVerdict("malformed reply", "no label log-probabilities"), thought, reply.usage)
        mass = sum(map(math.exp, reply.label_logprobs))
        if mass < self.settings.min_label_mass:
            detail = f"together {mass:.1e}: the judge was about to write something else"
            return Verdict(NoVerdict("labels improbable", detail), thought, reply.usage)
        return Verdict(self.format.from_logprobs(reply.label_logprobs, slots), thought, reply.usage)

    # -- requests -----------------------------------------------------------------------------------------------------

    def _ask(self, verb: Verb, asked: Sequence[Asked], requests: Sequence[Request]) -> list[Answer]:
        answers = ask(self.engine, verb, requests, self.cache)
        for (tournament, _), answer in zip(asked, answers, strict=True):
            tournament.spent.count(answer.reply, answer.fresh)
        return answers

    def _seed(self, comparison: Comparison, attempt: int) -> int | None:
        # Not of the group's key: identical comparisons of different groups stay identical, and are asked once.
        if self.sampling.temperature == 0:
            return None
        return digest(self.settings.seed, comparison.repeat, attempt) % 2**31

    def _form(self, comparison: Comparison) -> VerdictForm | None:
        form = getattr(self.format, "form", None)  # a format of one's own may lack it
        held = self.settings.structured_output or getattr(self.engine, "structured_output", None)
        return form(len(comparison.slots)) if held and form is not None else None

    def render(self, tournament: Tournament, comparison: Comparison) -> tuple[Message, ...]:
        """The chat that shows a comparison, outside texts made safe and short enough."""
        group, texts = tournament.images.group if tournament.images else tournament.group, tournament.texts(comparison)
        guard = tournament.guard(self.budget.of_each(tournament, texts), self.engine.count_tokens, self._reserved)
        return self.format.render(group, texts, guard)

    def check_shown(self, group: Group) -> None:
        """Raise InputError if a group has a reference or rubric that the wording does not place."""
        if (template := getattr(self.format, "template", None)) is not None:
            check_shown(load_template(template), group)

    def look_for_markers(self, tournament: Tournament) -> None:
        """Note which texts hold markers, of a group in which too few play to show any."""
        template = getattr(self.format, "template", None)
        headers = load_template(template).headers if template is not None else ()
        guard = tournament.guard(1 << 20, self.engine.count_tokens, self._reserved)
        for text in tournament.players:
            guard(text, headers)


def ask(engine: Engine, verb: Verb, requests: Sequence[Request], cache: ReplyCache | None = None) -> list[Answer]:
    """One engine call for a whole batch: each distinct request once, none that the cache knows.

    Requests go to the engine sorted by their text, so that neighbours share the longest prefix and an engine with a prefix
    cache computes it once. What was answered before the call was cancelled is in the cache.

    Returns:
        As many answers as requests, in their order.

    Raises:
        EngineError: if the engine returns another number of replies than requests, or judging was cancelled: what was
            not answered then has failed for a reason that says nothing.
    """
    if cancelled():
        raise EngineError("judging was cancelled")
    keys = [request_key(engine, verb, request) for request in requests]  # not the requests: images have no hash
    first: dict[bytes, int] = {}
    for index, key in enumerate(keys):
        first.setdefault(key, index)
    known: dict[bytes, Reply | EngineFailure] = dict(cache.get(list(first))) if cache is not None else {}
    open_keys = [key for key in first if key not in known]
    open_keys.sort(key=lambda key: _reading_order(requests[first[key]]))
    if open_keys:
        batch = [requests[first[key]] for key in open_keys]
        replies = engine.generate(batch) if verb == "generate" else engine.label_logprobs(batch)
        if len(replies) != len(batch):
            raise EngineError(f"{engine.name} returned {len(replies)} replies to {len(batch)} requests")
        fresh = dict(zip(open_keys, replies, strict=True))
        if cache is not None:
            cache.put({key: reply for key, reply in fresh.items() if isinstance(reply, Reply)})
        known |= fresh
    if cancelled():
        raise EngineError("judging was cancelled")
    asked = {first[key] for key in open_keys}
    return [Answer(known[key], index in asked) for index, key in enumerate(keys)]


def _reading_order(request: Request) -> tuple[str, ...]:
    return (*(message.text for message in request.messages), request.prefill)


def _closed_thought(text: str) -> str:
    """Reasoning as a closed section, whether the judge (or its server) wrote the tags or not."""
    body = text.lstrip().removeprefix(THINK_OPEN).partition(THINK_CLOSE)[0].strip()
    return f"{THINK_OPEN}\n{body}\n{THINK_CLOSE}\n\n"


def _not_served(failure: EngineFailure, rationale: str = "") -> Verdict:
    return Verdict(NoVerdict(failure.reason, failure.detail, failure.transient), rationale)


def _agree(forward: JudgedComparison, backward: JudgedComparison, margin: float) -> bool:
    """Whether two mirrored quick reads name the same winner, together by at least ``margin`` in log-odds."""
    p, q = forward.verdict.outcome, backward.verdict.outcome
    if not isinstance(p, Preference) or not isinstance(q, Preference):
        return False
    one, two = p.probabilities_K, q.probabilities_K[::-1]
    if one.index(max(one)) != two.index(max(two)):
        return False
    mean = sorted(((a + b) / 2 for a, b in zip(one, two, strict=True)), reverse=True)
    return bounded_log_odds(mean[0], mean[1]) >= margin
