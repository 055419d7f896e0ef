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

All of them take out what the slots explain (see ``least_squares``), so that a judge that looks at nothing but the slot
moves no score, whatever fails. Where slots are balanced that changes nothing.

Where games are missing because judgements failed, win rate and Borda favour whoever's losses are among them, since they
do not ask against whom a game was won; the two fits do. Candidates that no chain of games connects are comparable
through the prior alone, which holds that every part of the group is as good on average.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from .least_squares import PRIOR_GAMES, fit_log_odds, gather, normal_matrix, scatter, without_slots
from .tally import Matrix, Tally


def win_rate(tally: Tally) -> Matrix:
    """Wins divided by games. Shape (G,)."""
    with np.errstate(invalid="ignore"):
        return np.asarray(np.clip(_wins_GG(tally).sum(axis=1) / tally.games_G, 0.0, 1.0))


def borda(tally: Tally) -> Matrix:
    """Mean over opponents met of the share won against each (normalised Borda count). Shape (G,)."""
    met, wins_GG = tally.games_GG > 0, _wins_GG(tally)
    share = np.divide(wins_GG, tally.games_GG, out=np.zeros_like(wins_GG), where=met)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.clip(share.sum(axis=1) / met.sum(axis=1), 0.0, 1.0))


def _wins_GG(tally: Tally) -> Matrix:
    """Row's wins over column, with what the slots explain taken out."""
    return replace(tally, games=replace(tally.games, win=without_slots(tally))).wins_GG


def bradley_terry(tally: Tally) -> Matrix:
    """Bradley-Terry strengths; see ``bradley_terry_fit``. Shape (G,)."""
    return bradley_terry_fit(tally)[0]


def bradley_terry_fit(tally: Tally) -> tuple[Matrix, Matrix]:
    """Bradley-Terry strengths with Davidson's ties, slots' gains and a weak prior, by Newton's method; standard errors.

    Maximises ``sum_ij wins_ij log p(i beats j)`` with ``p(tie) ∝ nu * sqrt(pi_i pi_j)`` (Davidson 1970), plus
    ``PRIOR_GAMES`` tied games of everybody against an opponent of strength 0. What a slot gains adds to the strength of
    whoever stands there (Davidson & Beaver 1977), without a prior. A tie enters the wins as a half each, which is
    sufficient for the strengths; nu is fitted to the total number of ties. Soft wins are used as they are.

    The errors are those of the centred strengths, from the curvature of what is maximised (observed information, prior
    and slots included): how far few games leave a strength open, if games are independent and the model holds.

    Returns:
        Strengths and standard errors, each of shape (G,).
    """
    size, slots = tally.size, len(tally.columns)
    if size == 0:
        return np.zeros(0), np.zeros(0)
    win, weight = tally.games.win, tally.games.weight
    ties = min(tally.ties, 0.98 * float(weight.sum()))
    fitted, log_nu = np.zeros(size + slots), 0.0 if ties > 0 else -np.inf
    information = np.empty((size + slots + 1, size + slots + 1))
    for _ in range(200):
        difference = gather(tally, fitted)
        half = np.exp(-np.abs(difference) / 2)  # for numerical range: everything is relative to the stronger side
        nu = np.exp(log_nu)
        total = 1 + half**2 + nu * half
        p_tie = nu * half / total
        p_win = np.where(difference > 0, 1.0, half**2) / total
        expected = p_win + p_tie / 2
        prior = 1 / (1 + np.exp(-fitted[:size]))
        gradient = np.append(scatter(tally, weight * (win - expected)), ties - float(weight @ p_tie))
        gradient[:size] += PRIOR_GAMES * (0.5 - prior)
        information[:-1, :-1] = normal_matrix(tally, weight * (p_win + p_tie / 4 - expected**2))
        information[np.arange(size), np.arange(size)] += PRIOR_GAMES * prior * (1 - prior)
        information[:-1, -1] = information[-1, :-1] = scatter(tally, weight * p_tie * (0.5 - expected))
        information[-1, -1] = float(weight @ (p_tie * (1 - p_tie))) if ties > 0 else 1.0
        information[np.diag_indices_from(information)] += 1e-9
        step = np.linalg.solve(information, gradient)
        # What slots alone decide has no finite optimum: they go on for ever, and move no strength by it.
        settled = np.abs(np.delete(step, np.s_[size:-1])).max() < 1e-10 and np.abs(gradient).max() < 1e-9
        largest = float(np.abs(step).max())
        step *= min(1.0, 1.0 / max(largest, 1e-12))
        fitted, log_nu = fitted + step[:-1], log_nu + float(step[-1])
        if settled or largest < 1e-10:
            break
    s, centre = fitted[:size], np.eye(size) - 1 / size
    covariance = centre @ np.linalg.inv(information)[:size, :size] @ centre
    return np.asarray(s - s.mean()), np.sqrt(np.maximum(0.0, np.diag(covariance)))


def log_odds(tally: Tally) -> Matrix:
    """Least-squares fit of the games' log-odds, ridge ``PRIOR_GAMES`` (HodgeRank, logit model). Shape (G,).

    On a complete schedule it orders candidates by their mean log-odds. What slots gain is fitted along, slips of a judge
    that reads are weighted down, and a grade counts for where it stands on its scale as well.
    """
    fitted_G = fit_log_odds(tally)[: tally.size]
    return fitted_G - fitted_G.mean() if tally.size else fitted_G


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
