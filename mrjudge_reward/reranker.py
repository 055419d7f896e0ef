"""A judge that chooses: the best of N answers at inference, and the most informative G of M completions for training.

::

    reranker = Reranker(JudgeConfig(model="Qwen/Qwen3-8B").build(), votes=3)
    answer = reranker.best_of_n("How do magnets work?", sampled_answers)  # None if the judge found out nothing
    rankings = reranker.rank_groups(groups)                                # many prompts, one judging

**Votes.** Each vote judges a group anew, with other slots, other opponents where the schedule leaves pairs out, and other
seeds of what the judge writes; all votes on all groups go to the judge together. A judge that is read without reasoning and
shown every pair in both orders, or every text alone, repeats itself: then further votes cost nothing and add nothing.
``Judge(votes=...)`` is another thing: it asks the very same comparison again.

**Failure.** A vote in which nothing was found out is no vote. A candidate about which nothing is known is never placed
before one that has a score: it is in no order at all. Where nothing is known about any, there is no best.

**Selection.** :func:`select` is for rollouts that generate more than they train on. Groups without spread teach nothing
(their advantages are zero), so the completions that the judge tells apart most are kept. What is trained is then no longer
the average completion: the group's mean is the mean of those kept, and rare extremes count as much as what is common.
``mrjudge_reward.integrations.trl.rollout`` does it in TRL's GRPO. It knows no framework here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from statistics import fmean
from typing import Any, Literal, TypeAlias, get_args

from mrjudge_reward.judging.tournament import digest

from .errors import ConfigError, InputError
from .fields import Shown
from .judge import Judge
from .messages import Message, final_answer
from .types import Comparison, Group, JudgedComparison, Judgement

How: TypeAlias = Literal["extremes", "spread"]


@dataclass(frozen=True)
class Reranked:
    """What one or several votes found out about the candidates of one prompt.

    Attributes:
        judgements: one per vote, of the same group.
        votes_G: how many votes a candidate won. A vote whose best is shared by different texts is split between them;
            identical texts each have the votes of their text.
        scores_G: mean score over the votes in which a candidate has one; None for a candidate that never has.
    """

    judgements: tuple[Judgement, ...]
    votes_G: tuple[float, ...]
    scores_G: tuple[float | None, ...]

    @property
    def order(self) -> tuple[int, ...]:
        """Scored candidates, best first: by votes, then by score; what is left equal, by a hash of the text."""
        group = self.judgements[0].group
        scored = [(index, score) for index, score in enumerate(self.scores_G) if score is not None]
        ranked = sorted(
            scored, key=lambda item: (-self.votes_G[item[0]], -item[1], digest(group.key, group.candidates[item[0]]))
        )
        return tuple(index for index, _ in ranked)

    @property
    def best(self) -> int | None:
        """Index of the best candidate, the first of :attr:`order`; None if nothing is known about any.

        Where all candidates are the same text, that is the best one without a judge.
        """
        if self.order:
            return self.order[0]
        return 0 if len(set(self.judgements[0].group.candidates)) == 1 else None

    @property
    def tied(self) -> tuple[int, ...]:
        """The candidates that nothing distinguishes from the best one, itself included; empty if there is none."""
        order = self.order
        return tuple(
            i for i in order if (self.votes_G[i], self.scores_G[i]) == (self.votes_G[order[0]], self.scores_G[order[0]])
        )


def combined(judgements: Sequence[Judgement]) -> Reranked:
    """Put the votes on one group together.

    Raises:
        InputError: if there is none, or they are on different candidates.
    """
    if not judgements:
        raise InputError("there is no judgement to combine")
    candidates = judgements[0].group.candidates
    if any(judgement.group.candidates != candidates for judgement in judgements):
        raise InputError("votes must be on the same candidates in the same order")
    won: dict[str, float] = dict.fromkeys(candidates, 0.0)
    for judgement in judgements:
        top = max((score for score in judgement.scores_G if score is not None), default=None)
        first = {text for text, score in zip(candidates, judgement.scores_G, strict=True) if score == top is not None}
        for text in first:
            won[text] += 1 / len(first)
    scores_G = []
    for known in zip(*(judgement.scores_G for judgement in judgements), strict=True):
        found = [score for score in known if score is not None]
        scores_G.append(fmean(found) if found else None)
    return Reranked(tuple(judgements), tuple(won[text] for text in candidates), tuple(scores_G))


class Reranker:
    """Best of N by a judge, which it does not close.

    Args:
        judge: ranks the candidates.
        votes: how often each group is judged (see the module).
        shown: what of a candidate the judge is shown; by default what follows the policy's own reasoning.

    Raises:
        ConfigError: if there is no vote.
    """

    def __init__(self, judge: Judge, votes: int = 1, shown: Callable[[str], str] = final_answer) -> None:
        if votes < 1:
            raise ConfigError(f"votes must be at least 1; got {votes}")
        self.judge = judge
        self.votes = votes
        self.shown = shown

    def rank_groups(self, groups: Sequence[Group]) -> list[Reranked]:
        """Rank the candidates of many prompts in one judging.

        Args:
            groups: their candidates are shown as they are. Groups of the same key and the same candidates come out alike.

        Returns:
            As many results, in their order; those of a group do not depend on the others.

        Raises:
            InputError: if a group is too large to be judged together.
            JudgeUnreliableError: if too many judgements failed.
        """
        copies = [
            replace(group, key=f"{group.key}/vote {vote}" if vote else group.key)
            for group in groups
            for vote in range(self.votes)
        ]
        firsts = [vote * self.judge.settings.votes for _ in groups for vote in range(self.votes)]
        judgements = iter(self.judge.judge(copies, first_votes=firsts))
        return [combined([replace(next(judgements), group=group) for _ in range(self.votes)]) for group in groups]

    def rank(
        self,
        prompt: str | Sequence[Mapping[str, Any] | Message],
        candidates: Sequence[str],
        key: str = "0",
        reference: Shown = None,
        rubric: Any = None,
    ) -> Reranked:
        """Rank the candidates of one prompt; see :meth:`rank_groups` for errors."""
        Group.of(prompt, candidates, key, reference, rubric)  # says what is no text before anything is done
        return self.rank_groups([Group.of(prompt, list(map(self.shown, candidates)), key, reference, rubric)])[0]

    def best_of_n(
        self,
        prompt: str | Sequence[Mapping[str, Any] | Message],
        candidates: Sequence[str],
        key: str = "0",
        reference: Shown = None,
        rubric: Any = None,
    ) -> str | None:
        """The best candidate, whole, as it was given; None if nothing is known about any. See :meth:`rank_groups`."""
        best = self.rank(prompt, candidates, key, reference, rubric).best
        return None if best is None else candidates[best]


def select(scores_M: Sequence[float | None], keep: int, how: How = "extremes", seed: int = 0) -> tuple[int, ...]:
    """Choose the completions that a group is trained on.

    ``extremes`` keeps the best and the worst, half of each, one more of the best where ``keep`` is odd. (PODS, arXiv
    2504.13818, also keeps highest and lowest, in whatever proportion has the largest variance.) ``spread`` keeps
    completions evenly over the quantiles, best and worst included; a single one is the median. Equal scores are taken in
    random order.

    Unscored completions come in, at random, only where too few have a score.

    Args:
        scores_M: of all that were generated; None where nothing is known.
        keep: how many to keep, from 1 to M.
        how: ``"extremes"`` or ``"spread"``.
        seed: of the random order.

    Returns:
        Indices in ascending order, ``keep`` of them.

    Raises:
        InputError: if ``keep`` is out of range.
        ConfigError: if there is no such way to choose.
    """
    if how not in get_args(How):
        raise ConfigError(f"how must be one of {', '.join(get_args(How))}; got {how!r}")
    if not 1 <= keep <= len(scores_M):
        raise InputError(f"cannot keep {keep} of {len(scores_M)} completions")
    shuffled = Random(seed).sample(range(len(scores_M)), len(scores_M))
    known = {index: score for index in shuffled if (score := scores_M[index]) is not None and not math.isnan(score)}
    ranked = sorted(known, key=known.__getitem__, reverse=True)  # stable: equal scores stay shuffled
    if len(ranked) <= keep:
        unknown = [index for index in shuffled if index not in known]
        chosen = ranked + unknown[: keep - len(ranked)]
    elif how == "extremes":
        chosen = ranked[: keep - keep // 2] + ranked[len(ranked) - keep // 2 :]
    elif keep == 1:
        chosen = [ranked[len(ranked) // 2]]
    else:
        step = (len(ranked) - 1) / (keep - 1)  # at least 1, so that no two places coincide
        chosen = [ranked[math.floor(place * step + 0.5)] for place in range(keep)]
    return tuple(sorted(chosen))


def part_of(judgement: Judgement, indices: Sequence[int]) -> Judgement:
    """A judgement seen by some of its candidates alone: scores as they are, and of the comparisons those among them and with
    anchors.

    Calls, tokens and seconds are left out: they belong to the whole.

    Args:
        judgement: of the whole group.
        indices: of the candidates, in the order wanted.
    """
    place = {index: number for number, index in enumerate(indices)}
    place |= {slot: slot for slot in range(-len(judgement.anchors_A), 0)}
    group, names = judgement.group, judgement.group.names
    played = tuple(
        JudgedComparison(
            Comparison(tuple(place[slot] for slot in item.comparison.slots), item.comparison.repeat),
            item.verdict,
            item.criterion,
        )
        for item in judgement.played
        if all(slot in place for slot in item.comparison.slots)
    )
    return Judgement(
        group=replace(
            group,
            candidates=tuple(group.candidates[index] for index in indices),
            names=None if names is None else tuple(names[index] for index in indices),
        ),
        scores_G=tuple(judgement.scores_G[index] for index in indices),
        games_G=tuple(judgement.games_G[index] for index in indices),
        played=played,
        forfeits=tuple(place[index] for index in judgement.forfeits if index in place),
        sanitized=tuple(place[index] for index in judgement.sanitized if index in place),
        cut=tuple(place[index] for index in judgement.cut if index in place),
        grades_G=tuple(judgement.grades_G[index] for index in indices) if judgement.grades_G else (),
        criteria=tuple(
            replace(
                one,
                scores_G=tuple(one.scores_G[index] for index in indices),
                grades_G=tuple(one.grades_G[index] for index in indices),
            )
            for one in judgement.criteria
        ),
        anchors_A=judgement.anchors_A,
        level=judgement.level,
    )
