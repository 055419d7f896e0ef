"""The steps from a sample to an item and a reasoned verdict, each one engine call over a whole batch of samples.

MR. Judge (arXiv 2505.13403) as far as it can be read: negatives by error family, the reference is best (reverse candidate
synthesis); description of the images, hinted text reasoner, hint removal, style alignment (reasoning extraction). Ours:
all wordings, the filters, the check of each trace by the parser of the judge's own format.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from mrjudge_reward.cache import ReplyCache
from mrjudge_reward.engines.contract import Engine
from mrjudge_reward.errors import EngineError
from mrjudge_reward.judging.comparisons import ask
from mrjudge_reward.judging.tournament import digest
from mrjudge_reward.messages import Message, TextPart
from mrjudge_reward.prompting.formats import Choice, read_reply
from mrjudge_reward.prompting.rendering import conversation_text, marked
from mrjudge_reward.prompting.sanitizing import Sanitizer, neutralise, section_code, verdict_marks, visible
from mrjudge_reward.reasoning import THINK_CLOSE, THINK_OPEN
from mrjudge_reward.training.items import Item, from_choice
from mrjudge_reward.training.tasks import Problem
from mrjudge_reward.types import EngineFailure, NoVerdict, Preference, Reply, Request, Sampling

from .synthesis_filters import Limits, description_leaks, hint_leaks, negative_fault, rewritten
from .writer_prompts import WRITTEN_OPEN, Wording, between_marks, chat, filled, load_wording, writer_guard, written

FAMILIES = {
    "hallucination": "it states as a fact something that neither the question nor what is shown supports: a thing, "
    "attribute, place, number, name or text that is not there, or one that is misread.",
    "incompleteness": "it leaves out something that the question needs, and reads as if it were complete.",
    "faulty reasoning": "one step of its reasoning or calculation is wrong, and its result follows from that step.",
    "wrong knowledge": "it rests on a wrong fact about the world: a wrong name, date, definition, cause or rule.",
}
"""Error families of MR. Judge, and what a writer is told about them."""

_ENOUGH_TO_STOP = 8
"""Failures of one call that are no coincidence."""


@dataclass(frozen=True)
class Sample:
    """A question with an answer known to be good."""

    row: int
    key: str
    prompt: tuple[Message, ...]
    reference: str

    @property
    def pictured(self) -> bool:
        """Whether it shows images."""
        return any(message.images for message in self.prompt)


@dataclass(frozen=True)
class Negative:
    """What a writer came to: a text, and why it is not kept (empty if it is)."""

    family: str
    text: str
    fault: str = ""


@dataclass
class Work:
    """A sample on its way.

    Attributes:
        negatives: asked for.
        fault: why there is no item.
        item: with shuffled candidates; ``families`` says of which family each is, None for the reference.
        description: of the images.
        hint: that the reasoner was given.
        trace: the reasoning, as far as it has come.
        trace_fault: why there is no trace.
        again: whether what is missing is so because an engine failed for the moment.
    """

    sample: Sample
    negatives: list[Negative] = field(default_factory=list)
    fault: str = ""
    item: Item | None = None
    families: tuple[str | None, ...] = ()
    description: str = ""
    hint: str = ""
    trace: str = ""
    trace_fault: str = ""
    again: bool = False


@dataclass(frozen=True)
class Speaker:
    """A model in one of the roles.

    Attributes:
        role: its name.
        engine: that runs it.
        sampling: how it writes.
        cache: of replies, so that no call is made twice.
        seed: of the run.
        retries: how often a request that failed for the moment is repeated at once.
        max_failed_fraction: of the requests of a call, above which the run stops.
        opened: whether its turn begins with the opening mark.
    """

    role: str
    engine: Engine
    sampling: Sampling
    cache: ReplyCache | None
    seed: int
    retries: int
    max_failed_fraction: float
    opened: bool = False

    def ask(self, named: Sequence[tuple[str, tuple[Message, ...]]]) -> list[Reply | EngineFailure]:
        """Replies to chats, in one call; each chat comes with what its sampling seed is made of.

        Raises:
            EngineError: if most requests fail: a run over an engine that is gone would drop every row.
        """
        if not named:
            return []
        greedy = self.sampling.temperature == 0
        requests = [
            Request(
                messages,
                prefill=WRITTEN_OPEN if self.opened else "",
                sampling=self.sampling,
                seed=None if greedy else digest(self.seed, self.role, name) % 2**31,
            )
            for name, messages in named
        ]
        with self.engine.session():
            replies = [answer.reply for answer in ask(self.engine, "generate", requests, self.cache)]
            for _ in range(self.retries):
                again = [i for i, reply in enumerate(replies) if isinstance(reply, EngineFailure) and reply.transient]
                if not again:
                    break
                answers = ask(self.engine, "generate", [requests[i] for i in again], self.cache)
                for index, answer in zip(again, answers, strict=True):
                    replies[index] = answer.reply
        failures = [reply for reply in replies if isinstance(reply, EngineFailure)]
        if len(failures) >= _ENOUGH_TO_STOP and len(failures) > self.max_failed_fraction * len(replies):
            raise EngineError(
                f"the {self.role} failed {len(failures)} of {len(replies)} requests, first {failures[0].reason} "
                f"({failures[0].detail:.200}); what was finished is kept, and the same command goes on from there"
            )
        return [between_marks(reply) for reply in replies] if self.opened else replies


@dataclass(frozen=True)
class Plan:
    """What is asked of each sample; fields as in ``SynthesisRecipe``."""

    families: tuple[str, ...]
    negatives: tuple[int, int]
    limits: Limits
    form: Choice
    domain: str
    seed: int
    max_text_tokens: int
    min_trace_words: int
    edit_ratio: tuple[float, float]

    def guard(self, engine: Engine) -> Sanitizer:
        """What outside texts pass on their way to an engine; new for each batch, because it remembers them."""
        reserved = engine.reserved | verdict_marks(self.form.answer_open)
        return Sanitizer(engine.count_tokens, self.max_text_tokens, reserved)


# -- reverse candidate synthesis ----------------------------------------------------------------------------------------


def chosen_families(plan: Plan, key: str) -> list[str]:
    """Which flaws a sample gets, by its content: different ones, from least to most in number."""
    draw = random.Random(f"{plan.seed} families {key}")
    return draw.sample(plan.families, draw.randint(*plan.negatives))


def write_negatives(works: Sequence[Work], writer: Speaker, plan: Plan) -> None:
    """Ask for flawed answers and build items of those that pass the filters."""
    wording, guard = load_wording("negative"), writer_guard(plan.guard(writer.engine))
    asked: list[tuple[Work, str]] = []
    chats: list[tuple[str, tuple[Message, ...]]] = []
    for work in works:
        sample = work.sample
        question = conversation_text(sample.prompt)
        # A writer who sees half of an answer writes one of half the length.
        if any(writer.engine.count_tokens(text) > plan.max_text_tokens for text in (question, sample.reference)):
            work.fault = "too long"
            continue
        images = tuple(image for message in sample.prompt for image in message.images)
        outside = {"question": question, "reference": sample.reference}
        for family in chosen_families(plan, sample.key):
            ours = {"flaw": FAMILIES[family], "words": str(len(sample.reference.split()))}
            asked.append((work, family))
            chats.append((f"{sample.key} {family}", chat(wording, outside, guard, ours, images)))
    for (work, family), reply in zip(asked, writer.ask(chats), strict=True):
        text = written(reply)
        if isinstance(text, NoVerdict):
            work.negatives.append(Negative(family, "", text.reason))
            work.again |= text.transient
            continue
        kept = [one.text for one in work.negatives if not one.fault]
        question = conversation_text(work.sample.prompt)
        fault = negative_fault(text, question, work.sample.reference, kept, plan.limits)
        work.negatives.append(Negative(family, text, fault or ""))
    for work in works:
        if not work.fault:
            _build(work, plan)


def _build(work: Work, plan: Plan) -> None:
    kept = [one for one in work.negatives if not one.fault]
    if not kept:
        work.fault = "no negative left"
        return
    work.again = False  # an item stands, if of fewer candidates
    options: list[tuple[str, str | None]] = [(work.sample.reference, None), *((one.text, one.family) for one in kept)]
    random.Random(f"{plan.seed} order {work.sample.key}").shuffle(options)
    work.families = tuple(family for _, family in options)
    texts = [text for text, _ in options]
    work.item = from_choice(work.sample.prompt, texts, work.families.index(None), plan.domain)


# -- reasoning extraction -----------------------------------------------------------------------------------------------


def problem_of(item: Item, form: Choice) -> Problem:
    """The item as the judge is asked about it; its candidates are shuffled already."""
    return Problem(item, tuple(range(len(item.gold_G))), form)


def _drop(work: Work, step: str, failed: NoVerdict) -> None:
    work.trace_fault = f"{step}: {failed.reason}"
    work.again |= failed.transient


def _standing(works: Sequence[Work]) -> list[Work]:
    return [work for work in works if work.item is not None and not work.trace_fault]


def extract_reasoning(
    works: Sequence[Work],
    describer: Speaker | None,
    reasoner: Speaker,
    editor: Speaker,
    plan: Plan,
    on_step: Callable[[], None],
) -> None:
    """Give each item a trace that ends in the right verdict and shows no trace of the hint, or the reason why not."""
    if describer is not None:  # there is one where there are images
        _describe(works, describer, plan)
    on_step()
    _reason(works, reasoner, plan)
    on_step()
    _edit(works, editor, plan, load_wording("strip_hint"), "hint removal")
    _edit(
        [work for work in works if work.sample.pictured], editor, plan, load_wording("align_style"), "style alignment"
    )
    on_step()
    for work in _standing(works):
        assert work.item is not None
        if hint_leaks(work.trace, work.hint):
            work.trace_fault = "hint leaked"
        elif work.sample.pictured and description_leaks(work.trace):
            work.trace_fault = "description leaked"
        elif not is_right(problem_of(work.item, plan.form), answer_of(work, plan.form)):
            work.trace_fault = "wrong verdict"


def answer_of(work: Work, form: Choice) -> str:
    """The judge's turn: reasoning, then the right verdict."""
    assert work.item is not None
    return f"{THINK_OPEN}{work.trace}{THINK_CLOSE}{problem_of(work.item, form).right()}"


def is_right(problem: Problem, text: str) -> bool:
    """Whether the format's own parser reads the right verdict in a text."""
    return problem.accuracy(problem.format.parse(text, len(problem.slots))) == 1


def _describe(works: Sequence[Work], describer: Speaker, plan: Plan) -> None:
    pictured = [work for work in _standing(works) if work.sample.pictured]
    wording, guard = load_wording("describe"), writer_guard(plan.guard(describer.engine))
    chats = [
        (
            work.sample.key,
            chat(
                wording,
                {"question": conversation_text(work.sample.prompt)},
                guard,
                images=tuple(image for message in work.sample.prompt for image in message.images),
            ),
        )
        for work in pictured
    ]
    for work, reply in zip(pictured, describer.ask(chats), strict=True):
        text = written(reply)
        if isinstance(text, NoVerdict):
            _drop(work, "description", text)
        elif not text:
            work.trace_fault = "description: empty"
        else:
            work.description = text


def hinted_chat(work: Work, plan: Plan, guard: Sanitizer) -> tuple[Message, ...]:
    """The judge's own prompt, with a description for the images and a hint; the hint is kept in the work."""
    assert work.item is not None
    wording, problem = load_wording("reason"), problem_of(work.item, plan.form)
    # Without images, which the reasoner does not see.
    prompt = tuple(Message(turn.role, (TextPart(turn.text),)) for turn in work.sample.prompt)
    group = replace(work.item.group, prompt=prompt)
    rendered = plan.form.render(group, group.candidates, guard)
    code = section_code(guard.seed, group.key)  # of the format's own section marks
    label = plan.form.labels[problem.gold_K.index(max(problem.gold_K))].strip()
    work.hint = filled(wording.sections["hint"], {"label": label})
    before: tuple[TextPart, ...] = ()
    if work.description:
        shown = {"description": guard(work.description, code)}
        before = (TextPart(filled(marked(wording.sections["description"], code), shown)),)
    hinted = TextPart(filled(marked(wording.sections["hinted"], code), {"hint": work.hint}))
    user = Message("user", (*before, *rendered[-1].content, hinted))
    return (*rendered[:-1], user)


def _reason(works: Sequence[Work], reasoner: Speaker, plan: Plan) -> None:
    asked, guard = _standing(works), plan.guard(reasoner.engine)
    chats = [(work.sample.key, hinted_chat(work, plan, guard)) for work in asked]
    for work, reply in zip(asked, reasoner.ask(chats), strict=True):
        assert work.item is not None
        if isinstance(reply, EngineFailure):
            _drop(work, "reasoning", NoVerdict(f"engine: {reply.reason}", reply.detail, reply.transient))
            continue
        problem = problem_of(work.item, plan.form)
        outcome = read_reply(plan.form, reply, len(problem.slots)).outcome
        if isinstance(outcome, NoVerdict):
            _drop(work, "reasoning", outcome)
        elif not (isinstance(outcome, Preference) and problem.accuracy(outcome) == 1):
            work.trace_fault = "reasoning: wrong verdict"
        else:
            thought, closed, _ = reply.text.rpartition(THINK_CLOSE)
            thought = thought if closed else reply.text.rpartition(plan.form.answer_open)[0]
            work.trace = visible(thought.strip().removeprefix(THINK_OPEN).strip())
            work.trace_fault = _trace_fault(work.trace, reasoner, plan)


def _trace_fault(trace: str, speaker: Speaker, plan: Plan) -> str:
    reserved = speaker.engine.reserved | {plan.form.answer_open, plan.form.answer_close or plan.form.answer_open}
    if neutralise(trace, reserved) != trace:
        return "markers"
    return "too short" if len(trace.split()) < plan.min_trace_words else ""


def _edit(works: Sequence[Work], editor: Speaker, plan: Plan, wording: Wording, step: str) -> None:
    # A trace must come back whole: what the editor cannot be shown or cannot write in full is dropped, never cut.
    guard = writer_guard(replace(plan.guard(editor.engine), max_tokens=editor.sampling.max_tokens))
    asked: list[Work] = []
    for work in _standing(works):
        if guard(work.trace) == work.trace:
            asked.append(work)
        else:
            work.trace_fault = f"{step}: too long or with markers"
    chats = [
        (f"{work.sample.key} {step}", chat(wording, {"trace": work.trace}, guard, {"hint": work.hint}))
        for work in asked
    ]
    for work, reply in zip(asked, editor.ask(chats), strict=True):
        text = written(reply)
        if isinstance(text, NoVerdict):
            _drop(work, step, text)
        elif rewritten(work.trace, text, plan.edit_ratio):
            work.trace_fault = f"{step}: rewritten"
        else:
            work.trace = visible(text)
            work.trace_fault = _trace_fault(work.trace, editor, plan)
