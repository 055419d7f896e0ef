"""From a tally to a score per candidate. A candidate without any game gets None, never a number.

==============  ========================================  =======  ==================================================
rating          range                                     neutral  when
==============  ========================================  =======  ==================================================
win_rate        0..1                                      .5       complete schedules, hard verdicts
borda           0..1                                      .5       as win_rate, each opponent counted once
bradley_terry   log-odds, zero-centred                    0        hard verdicts and ties on incomplete schedules
log_odds        log-odds, zero-centred                    0        soft verdicts, any schedule (the default)
mean_score      the format's grades                       -        formats that grade
==============  ========================================  =======  ==================================================

Win rate and Borda agree where everybody met everybody equally often. All of them give equal scores to a group of ties:
nothing is stretched to fill a range.

Where games are missing because judgements failed, win rate and Borda favour whoever's losses are among them, since they
do not ask against whom a game was won; the two fits do. Candidates that no chain of games connects are comparable
through the prior alone, which holds that every part of the group is as good on average.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .tally import Matrix, Tally

PRIOR_GAMES = 0.5
"""Weight of the prior, in tied games against an average opponent.

It keeps an unbeaten candidate's score finite, and discounts candidates with few games. For ``log_odds`` it stands for
the variance of a game's noise over that of the strengths; ``tests/benchmarks/schedules.py`` spans .25 to 1.
"""


def win_rate(tally: Tally) -> Matrix:
    """Wins divided by games. Shape (G,)."""
    with np.errstate(invalid="ignore"):
        rate: Matrix = tally.wins_GG.sum(axis=1) / tally.games_G
    return rate


def borda(tally: Tally) -> Matrix:
    """Mean over opponents met of the share won against each (normalised Borda count). Shape (G,)."""
    met = tally.games_GG > 0
    share = np.divide(tally.wins_GG, tally.games_GG, out=np.zeros_like(tally.wins_GG), where=met)
    with np.errstate(invalid="ignore"):
        count: Matrix = share.sum(axis=1) / met.sum(axis=1)
    return count


def bradley_terry(tally: Tally) -> Matrix:
    """Bradley-Terry strengths; see ``bradley_terry_fit``. Shape (G,)."""
    return bradley_terry_fit(tally)[0]


def bradley_terry_fit(tally: Tally) -> tuple[Matrix, Matrix]:
    """Bradley-Terry strengths with Davidson's ties and a weak prior, by Newton's method, and their standard errors.

    Maximises ``sum_ij wins_ij log p(i beats j)`` with ``p(tie) ∝ nu * sqrt(pi_i pi_j)`` (Davidson 1970), plus
    ``PRIOR_GAMES`` tied games of everybody against an opponent of strength 0. A tie enters the wins as a half each,
    which is sufficient for the strengths; nu is fitted to the total number of ties. Soft wins are used as they are.

    The errors are those of the centred strengths, from the curvature of what is maximised (observed information, the
    prior included): how far few games leave a strength open, if games are independent and the model holds.

    Returns:
        Strengths and standard errors, each of shape (G,).
    """
    size = tally.size
    if size == 0:
        return np.zeros(0), np.zeros(0)
    games, wins = tally.games_GG, tally.wins_GG.sum(axis=1)
    ties = min(tally.ties, 0.98 * games.sum() / 2)
    s, log_nu = np.zeros(size), 0.0 if ties > 0 else -np.inf
    for _ in range(200):
        difference = s[:, None] - s[None, :]
        half = np.exp(-np.abs(difference) / 2)  # for numerical range: everything is relative to the stronger side
        nu = np.exp(log_nu)
        total = 1 + half**2 + nu * half
        p_tie = nu * half / total
        p_win = np.where(difference > 0, 1.0, half**2) / total
        expected = p_win + p_tie / 2
        prior = 1 / (1 + np.exp(-s))
        gradient = np.append(
            wins - (games * expected).sum(axis=1) + PRIOR_GAMES * (0.5 - prior), ties - (games * p_tie).sum() / 2
        )
        curvature = games * (p_win + p_tie / 4 - expected**2)
        shared = (games * p_tie * (0.5 - expected)).sum(axis=1)
        tie_curvature = (games * p_tie * (1 - p_tie)).sum() / 2
        information = np.block(
            [
                [np.diag(curvature.sum(axis=1) + PRIOR_GAMES * prior * (1 - prior)) - curvature, shared[:, None]],
                [shared[None, :], np.array([[tie_curvature if ties > 0 else 1.0]])],
            ]
        )
        step = np.linalg.solve(information + 1e-9 * np.eye(size + 1), gradient)
        largest = float(np.abs(step).max())
        step *= min(1.0, 1.0 / max(largest, 1e-12))
        s, log_nu = s + step[:-1], log_nu + float(step[-1])
        if largest < 1e-10:
            break
    centre = np.eye(size) - 1 / size
    covariance = centre @ np.linalg.inv(information + 1e-9 * np.eye(size + 1))[:size, :size] @ centre
    return np.asarray(s - s.mean()), np.sqrt(np.maximum(0.0, np.diag(covariance)))


def log_odds_system(tally: Tally) -> tuple[Matrix, Matrix]:
    """The normal equations of :func:`log_odds`: the precision matrix of strengths and slot bias, and its target.

    Returns:
        Matrix of shape (G + 1, G + 1) and vector of shape (G + 1,); the last entry is the bias, which adds to every
        game's log-odds with the sign of the slot.
    """
    size = tally.size
    system, target = np.empty((size + 1, size + 1)), np.empty(size + 1)
    system[:size, :size] = np.diag(tally.games_G + PRIOR_GAMES) - tally.games_GG
    system[:size, size] = system[size, :size] = tally.first_G
    system[size, size] = tally.slotted + 1.0
    target[:size], target[size] = tally.log_odds_GG.sum(axis=1), tally.first_log_odds
    return system, target


def log_odds(tally: Tally) -> Matrix:
    """Least-squares fit of the games' mean log-odds, ridge ``PRIOR_GAMES`` (HodgeRank, logit model). Shape (G,).

    On a complete schedule it orders candidates by their mean log-odds. A common bias towards the earlier slot is fitted
    along with the strengths; where every candidate is first as often as second it drops out exactly.
    """
    return np.asarray(np.linalg.solve(*log_odds_system(tally))[:-1])


def mean_score(tally: Tally) -> Matrix:
    """Mean grade. Shape (G,)."""
    return tally.grades_G


@dataclass(frozen=True)
class Rating:
    """How a tally becomes scores.

    Attributes:
        name: for logs and errors.
        fit: a score per candidate. Shape (G,).
        neutral: the score of a candidate nobody can tell from the others; None for a rating that gives means of grades,
            which has none, and which knows a candidate by its grades instead of its games.
    """

    name: str
    fit: Callable[[Tally], Matrix]
    neutral: float | None = 0.0


RATINGS: dict[str, Rating] = {
    rating.name: rating
    for rating in (
        Rating("win_rate", win_rate, 0.5),
        Rating("borda", borda, 0.5),
        Rating("bradley_terry", bradley_terry),
        Rating("log_odds", log_odds),
        Rating("mean_score", mean_score, None),
    )
}


def rate(rating: Rating, tally: Tally) -> list[float | None]:
    """Score every candidate.

    Args:
        rating: one of ``RATINGS``, or one's own.
        tally: the group's games. Size G.

    Returns:
        G scores; None for a candidate without a game (for ``mean_score``: without a grade).
    """
    if tally.size == 0:
        return []
    scores_G = rating.fit(tally)
    known_G = np.isfinite(scores_G)  # a fit that came to nothing says nothing
    if rating.neutral is not None:
        known_G &= tally.games_G > 0
    # Rounding keeps equal candidates equal: a solver's last bits are not a preference.
    return [round(float(score), 9) if known else None for score, known in zip(scores_G, known_G, strict=True)]
