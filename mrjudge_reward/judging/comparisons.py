"""How comparisons become verdicts: render, ask in one batch, parse or read the labels, try again.

The three ways share everything but what is asked:

* ``generate``: the judge writes its reasoning and a verdict, which is parsed; where it wrote none, its answer is opened
  after what it wrote, and read if the engine can;
* ``logprobs``: it reasons up to a cap (or not at all), then the probabilities of the labels are read;
* ``cascade``: both orders are read without reasoning, and the judge reasons as well where together they are close.

All groups of a round go to the engine together. A failed comparison is asked again where that can help, and stays failed
otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from mrjudge_reward.cache import ReplyCache, Verb, request_content, request_key
from mrjudge_reward.completions import own_words
from mrjudge_reward.config import JudgeSettings
from mrjudge_reward.engines.cancelling import cancelled
from mrjudge_reward.engines.contract import Engine
from mrjudge_reward.engines.label_tokens import SharedTokenError
from mrjudge_reward.errors import EngineError
from mrjudge_reward.images import Album
from mrjudge_reward.messages import Message
from mrjudge_reward.once import Once
from mrjudge_reward.prompting.formats import Format, read_reply
from mrjudge_reward.prompting.parsing import after_thinking
from mrjudge_reward.prompting.rendering import check_shown, load_template
from mrjudge_reward.prompting.sanitizing import encodable, neutralise, section_code, verdict_marks, visible
from mrjudge_reward.reasoning import THINK_CLOSE, THINK_OPEN, thought_in
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
from .tournament import Tournament, digest, players_of

Asked: TypeAlias = tuple[Tournament, Comparison]
"""A comparison of a group, in the numbers of its players."""

Scheduled: TypeAlias = tuple[int, Comparison]
"""A comparison of a round, with the identity of its tournament."""


UNREAD = frozenset({
    "labels improbable", "label not in top logprobs", "label missing", "labels share a token", "unreadable label",
    "no log-probabilities", "no token ids", "malformed reply",
})  # fmt: skip
"""Failures of a read that say nothing about what the judge would write."""

UNWRITTEN = frozenset({"no verdict", "truncated", "unclosed thinking", "unclosed verdict"})
"""Failures of a judge that never came to its verdict."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A reply and whether the engine was asked for it (as against the cache or a twin in the same batch)."""

    reply: Reply | EngineFailure
    fresh: bool


def round_of(asked: Sequence[Asked]) -> set[Scheduled]:
    """The comparisons of a round, to be looked up."""
    return {(id(tournament), comparison) for tournament, comparison in asked}


class Comparer:
    """Decides comparisons.

    Args:
        engine: runs the judge model.
        settings: of the judge.
        cache: replies kept on disk.
        said: what was warned about already.
    """

    def __init__(
        self, engine: Engine, settings: JudgeSettings, cache: ReplyCache | None = None, said: Once | None = None
    ) -> None:
        self.engine, self.settings, self.cache = engine, settings, cache
        self.format, self.mode, self.sampling = settings.judge_format, settings.verdict_mode, settings.sampling
        self._writes_unread = settings.writes_unread
        self._reserved = engine.reserved | verdict_marks(self.format.answer_open)
        self._album = Album(settings.max_pixels)
        self.budget = TokenBudget(
            engine, self.format, settings.reply_tokens, self._reserved, settings.max_candidate_tokens, said
        )

    def decide(
        self, asked: Sequence[Asked], scheduled: Collection[Scheduled] | None = None
    ) -> list[list[JudgedComparison]]:
        """What each comparison came to, as games in the players' numbers.

        A cascade returns both quick reads as games of their own, each once, and what the judge wrote where that was needed.
        What shows a bad image has failed without being asked.

        Args:
            asked: comparisons.
            scheduled: those of the whole round, each of which brings its own quick read; these alone unless given.
        """
        faults = [self._image_fault(*pair) for pair in asked]
        sound = [pair for pair, fault in zip(asked, faults, strict=True) if fault is None]
        decided = iter(self._decide(sound, round_of(sound) if scheduled is None else scheduled))
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

    def _decide(self, asked: Sequence[Asked], scheduled: Collection[Scheduled]) -> list[list[JudgedComparison]]:
        if self.mode == "cascade":
            return self._cascade(asked, scheduled)
        verdicts = self._with_retries(asked, self._generate if self.mode == "generate" else self._think_and_read)
        if self._writes_unread:
            unread = [i for i, verdict in enumerate(verdicts) if _reason(verdict) in UNREAD]
            written = self._with_retries([asked[i] for i in unread], self._generate)
            for index, verdict in zip(unread, written, strict=True):
                verdicts[index] = replace(verdict, usage=verdicts[index].usage + verdict.usage)
        return [
            [JudgedComparison(comparison, verdict)] for (_, comparison), verdict in zip(asked, verdicts, strict=True)
        ]

    def _cascade(self, asked: Sequence[Asked], scheduled: Collection[Scheduled]) -> list[list[JudgedComparison]]:
        both = [(one, order) for one, comparison in asked for order in (comparison, comparison.swap())]
        verdicts = self._with_retries(both, self._read_at_once)
        reads = [JudgedComparison(comparison, verdict) for (_, comparison), verdict in zip(both, verdicts, strict=True)]
        decided: list[list[JudgedComparison]] = []
        unsure: list[int] = []
        for index, (tournament, comparison) in enumerate(asked):
            pair = reads[2 * index : 2 * index + 2]
            # Where the mirror image is scheduled too, it brings its own quick read: none may count twice.
            own = pair[:1] if (id(tournament), comparison.swap()) in scheduled else pair
            tournament.read_quickly(own)
            margin = _margin(pair[0], pair[1])
            # One order alone would count a liking for a slot. Both together are a verdict, however close.
            decided.append([] if margin is None else own)
            if margin is None or margin < self.settings.cascade_margin:
                unsure.append(index)
        thought = self._with_retries([asked[index] for index in unsure], self._generate)
        for index, verdict in zip(unsure, thought, strict=True):
            if not (verdict.failed and decided[index]):
                decided[index] = [*decided[index], JudgedComparison(asked[index][1], verdict)]
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
            self._seeded(Request(self.render(*pair), sampling=self.sampling, form=self._form(*pair)), pair[1], attempt)
            for pair in asked
        ]
        verdicts: list[Verdict] = []
        for (tournament, comparison), answer in zip(asked, self._ask("generate", asked, requests), strict=True):
            if isinstance(answer.reply, EngineFailure):
                verdicts.append(_not_served(answer.reply))
                continue
            verdict = read_reply(self._format_of(tournament), answer.reply, len(comparison.slots))
            # A greedy judge repeats itself, and one that ran into the cap mostly will again.
            if verdict.failed and self.sampling.temperature > 0 and answer.reply.finish != "length":
                verdict = _passing(verdict)
            verdicts.append(verdict)
        return self._opened(asked, verdicts)

    def _opened(self, asked: Sequence[Asked], verdicts: list[Verdict]) -> list[Verdict]:
        """The verdicts, with those read that the judge never came to write."""
        unwritten = [i for i, verdict in enumerate(verdicts) if _reason(verdict) in UNWRITTEN]
        if not unwritten or not self.settings.retries or not self.format.readable or not self.engine.reads_labels():
            return verdicts
        begun = [_up_to_its_verdict(verdicts[i].rationale, self.format.answer_open) for i in unwritten]
        for index, read in zip(unwritten, self._read([asked[i] for i in unwritten], begun), strict=True):
            wrote = verdicts[index]
            opened = wrote if read.failed else replace(read, rationale=wrote.rationale, opened=True)
            verdicts[index] = replace(opened, usage=wrote.usage + read.usage)
        return verdicts

    def _think_and_read(self, asked: Sequence[Asked], attempt: int) -> list[Verdict]:
        if self.settings.thinking_tokens == 0:
            return self._read_at_once(asked, attempt)
        # The judge opens its reasoning itself: templates of thinking models rewrite a turn that was opened for them.
        sampling = Sampling(self.sampling.temperature, self.sampling.top_p, self.settings.thinking_tokens)
        requests = [
            self._seeded(Request(self.render(*pair), sampling=sampling, stop=(THINK_CLOSE,)), pair[1], attempt)
            for pair in asked
        ]
        answers = self._ask("generate", asked, requests)
        failed = {
            i: _not_served(answer.reply) for i, answer in enumerate(answers) if isinstance(answer.reply, EngineFailure)
        }
        thoughts = {i: answer.reply for i, answer in enumerate(answers) if not isinstance(answer.reply, EngineFailure)}
        closed = [_closed_thought(reply.text) for reply in thoughts.values()]
        read = self._read([asked[i] for i in thoughts], closed)
        if sampling.temperature > 0:  # another thought may lead to a verdict
            read = [_passing(verdict) if _reason(verdict) in UNREAD else verdict for verdict in read]
        verdicts = failed | {
            i: replace(verdict, usage=verdict.usage + thoughts[i].usage)
            for i, verdict in zip(thoughts, read, strict=True)
        }
        return [verdicts[i] for i in range(len(asked))]

    def _read_at_once(self, asked: Sequence[Asked], attempt: int) -> list[Verdict]:
        verdicts = self._read(asked, [""] * len(asked), attempt)
        if self.engine.repeats_reads:
            return verdicts
        return [_passing(verdict) if _reason(verdict) in UNREAD else verdict for verdict in verdicts]

    def _read(self, asked: Sequence[Asked], thoughts: Sequence[str], attempt: int = 0) -> list[Verdict]:
        """Open the answer after each thought and read the offered labels."""
        if not asked:
            return []
        requests = [
            Request(
                self.render(*pair),
                prefill=thought + self.format.answer_open,
                labels=self._format_of(pair[0]).read_labels(len(pair[1].slots)),
                seed=attempt or None,  # of no use but to tell it from the read that failed
            )
            for pair, thought in zip(asked, thoughts, strict=True)
        ]
        try:
            answers = self._ask("label_logprobs", asked, requests)
        except SharedTokenError as error:
            if not self._writes_unread:
                raise
            return [Verdict(NoVerdict("labels share a token", str(error)))] * len(asked)
        return [
            self._verdict_read(self._format_of(tournament), answer, thought, len(comparison.slots))
            for (tournament, comparison), thought, answer in zip(asked, thoughts, answers, strict=True)
        ]

    def _verdict_read(self, format: Format, answer: Answer, thought: str, slots: int) -> Verdict:
        reply = answer.reply
        if isinstance(reply, EngineFailure):
            return _not_served(reply, thought)
        if reply.label_logprobs is None:
            return Verdict(NoVerdict("malformed reply", "no label log-probabilities"), thought, reply.usage)
        mass = sum(map(math.exp, reply.label_logprobs))
        outcome = format.from_logprobs(reply.label_logprobs, slots)
        if mass < self.settings.min_label_mass:
            instead = repr(reply.text) if reply.text else "something else"
            outcome = NoVerdict("labels improbable", f"together {mass:.1e}: the judge was about to write {instead:.60}")
        return Verdict(outcome, thought, reply.usage, label_mass=mass, likeliest=reply.text)

    # -- requests -----------------------------------------------------------------------------------------------------

    def _ask(self, verb: Verb, asked: Sequence[Asked], requests: Sequence[Request]) -> list[Answer]:
        answers = ask(self.engine, verb, requests, self.cache)
        for (tournament, _), answer in zip(asked, answers, strict=True):
            tournament.spent.count(answer.reply, answer.fresh)
        return answers

    def _seeded(self, request: Request, comparison: Comparison, attempt: int) -> Request:
        # Not of the group's key: identical comparisons of different groups stay identical, and are asked once.
        if self.sampling.temperature == 0:
            return request
        seed = digest(self.settings.seed, request_content(request), comparison.repeat, attempt)
        return replace(request, seed=seed % 2**31)

    def _format_of(self, tournament: Tournament) -> Format:
        return tournament.format or self.format

    def _form(self, tournament: Tournament, comparison: Comparison) -> VerdictForm | None:
        form = getattr(self._format_of(tournament), "form", None)  # a format of one's own may lack it
        held = self.settings.structured_output or getattr(self.engine, "structured_output", None)
        return form(len(comparison.slots)) if held and form is not None else None

    def render(self, tournament: Tournament, comparison: Comparison) -> tuple[Message, ...]:
        """The chat that shows a comparison, outside texts made safe and short enough."""
        group, texts = tournament.images.group if tournament.images else tournament.group, tournament.texts(comparison)
        guard = tournament.guard(
            self.budget.of_each(tournament, texts),
            self.engine.count_tokens,
            self._reserved,
            self.settings.seed,
            self.settings.max_candidate_tokens,
        )
        chat = self._format_of(tournament).render(group, texts, guard)
        if guard.cut:
            self.budget.note_cut(tournament, texts, guard)
        return chat

    def check_shown(self, group: Group) -> None:
        """Raise InputError if a group has a reference or rubric that the wording does not place."""
        if (template := getattr(self.format, "template", None)) is not None:
            check_shown(load_template(template), group)

    def seat(self, group: Group) -> tuple[dict[str, str], set[str]]:
        """Who plays (see ``players_of``), and the candidates whose policy wrote a marker."""
        code = section_code(self.settings.seed, group.key)

        def safe(text: str) -> str:
            return neutralise(encodable(text), self._reserved, code)

        shown = {text: safe(text) for text in group.candidates}
        players = players_of(group, self.settings.seed, {text: visible(look) for text, look in shown.items()})
        changed = (text for text in shown if shown[text] != encodable(text))
        return players, {text for text in changed if safe(own := own_words(text)) != encodable(own)}


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
    return f"{THINK_OPEN}\n{thought_in(text)}\n{THINK_CLOSE}\n\n"


def _up_to_its_verdict(text: str, answer_open: str) -> str:
    """What a judge wrote, as far as it can stand before a verdict that is opened for it."""
    if isinstance(after_thinking(text), NoVerdict):
        return _closed_thought(text)
    return text.removesuffix(answer_open).rstrip() + "\n" if text.strip() else ""


def _reason(verdict: Verdict) -> str:
    return verdict.outcome.reason if isinstance(verdict.outcome, NoVerdict) else ""


def _passing(verdict: Verdict) -> Verdict:
    """A verdict that, if it failed, may come out otherwise."""
    outcome = verdict.outcome
    return replace(verdict, outcome=replace(outcome, transient=True)) if isinstance(outcome, NoVerdict) else verdict


def _not_served(failure: EngineFailure, rationale: str = "") -> Verdict:
    return Verdict(NoVerdict(failure.reason, failure.detail, failure.transient), rationale)


def _margin(forward: JudgedComparison, backward: JudgedComparison) -> float | None:
    """Log-odds between the two best of two mirrored quick reads together, in which a liking for a slot cancels out."""
    p, q = forward.verdict.outcome, backward.verdict.outcome
    if not isinstance(p, Preference) or not isinstance(q, Preference):
        return None
    both = zip(p.probabilities_K, q.probabilities_K[::-1], strict=True)
    first, second = sorted((math.sqrt(a * b) for a, b in both), reverse=True)[:2]
    return bounded_log_odds(first, second)
