"""Strengths and slot bias by least squares: what the ratings and the adaptive schedule share.

A game of i, in slot a, against j, in slot b, has the expectation ``s_i - s_j + z_a - z_b``. The strengths s have a weak
prior; the slots' gains z have none, so whatever slots alone explain is never credited to a candidate: a judge that names
one slot whatever it sees gives equal strengths to the last digit, also where some of its verdicts are missing. Where slots
are balanced, z changes nothing. A tally whose plan shows everybody in one place only has no z (``Tally.columns``): there
slots cannot be told from answers, and by that plan they need not be.

Reads of label probabilities are now and then certain and wrong. Games that are far surer than the group's are therefore
weighted by the chance that they are no slip, in a mixture of two normals (Box & Tiao 1968), by expectation maximisation.
That bound is the group's own, so a judge that is overconfident everywhere alike loses nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .tally import HARD_LOG_ODDS, Matrix, Tally

PRIOR_GAMES = 0.5
"""Weight of the prior, in tied games against an average opponent.

It keeps an unbeaten candidate's score finite, and discounts candidates with few games. For ``log_odds`` it stands for
the variance of a game's noise over that of the strengths; ``tests/benchmarks/schedules.py`` spans .25 to 1.
"""

SURE = 1.5
"""Reads whose log-odds, the slots' gains taken out, are above this multiple of the group's median may be slips; none that is
no surer than a verdict written out (``HARD_LOG_ODDS``)."""

SLIP_SHARE, SLIP_VARIANCE, ROUNDS = 0.05, 25.0, 5
"""How many of such games are slips, how much noisier these are, and how often weights are estimated anew."""

GRADE_GAMES = 4.0
"""Weight of a grade as a game against the average, for where it stands on the scale, whoever it was shown with."""

DENSE = 512
"""Largest group whose equations are solved as a matrix; above it by conjugate gradients, which needs only the games."""


def scatter(tally: Tally, values: Matrix) -> Matrix:
    """A value per game, added for its first side and subtracted for its second. Shape (G + S,)."""
    games, size, last = tally.games, tally.size, len(tally.columns) + 1
    of_G = np.bincount(games.first, values, size) - np.bincount(games.second, values, size)
    of_S = np.bincount(games.slot_first, values, last) - np.bincount(games.slot_second, values, last)
    return np.concatenate([of_G, of_S[:-1]])


def gather(tally: Tally, fitted: Matrix) -> Matrix:
    """The games' expectations under fitted strengths and slots of shape (G + S,). Shape (N,)."""
    games = tally.games
    return fitted[games.first] - fitted[games.second] + gather_slots(tally, fitted)


def gather_slots(tally: Tally, fitted: Matrix) -> Matrix:
    """What the slots alone give to the games' first sides. Shape (N,)."""
    if not tally.columns:
        return np.zeros(len(tally.games.first))
    slots = np.append(fitted[tally.size :], 0.0)  # the last slot is the one that others gain over
    return np.asarray(slots[tally.games.slot_first] - slots[tally.games.slot_second])


def normal_matrix(tally: Tally, weight: Matrix) -> Matrix:
    """``X' W X`` of the games, without a prior. Shape (G + S, G + S)."""
    games, size, last = tally.games, tally.size, len(tally.columns) + 1
    matrix = np.empty((size + last, size + last))
    matrix[:size, :size] = _laplacian(games.first, games.second, weight, size)
    if last == 1:
        return matrix[:size, :size]
    matrix[size:, size:] = _laplacian(games.slot_first, games.slot_second, weight, last)
    cross = np.zeros(size * last)
    for of_G, sign in ((games.first, 1.0), (games.second, -1.0)):
        for of_S, side in ((games.slot_first, 1.0), (games.slot_second, -1.0)):
            cross += np.bincount(of_G * last + of_S, sign * side * weight, size * last)
    matrix[:size, size:] = cross.reshape(size, last)
    matrix[size:, :size] = matrix[:size, size:].T
    return matrix[:-1, :-1]


def _laplacian(one: np.ndarray, other: np.ndarray, weight: Matrix, size: int) -> Matrix:
    games = np.bincount(one * size + other, weight, size * size).reshape(size, size)
    games = games + games.T
    return np.asarray(np.diag(games.sum(axis=1)) - games)


def log_odds_system(tally: Tally) -> tuple[Matrix, Matrix]:
    """Precision matrix and target of strengths and slots, prior included, from the games' log-odds as they are.

    Returns:
        Shapes (G + S, G + S) and (G + S,).
    """
    matrix = normal_matrix(tally, tally.games.weight)
    diagonal, target = _prior(tally)
    matrix[np.diag_indices_from(matrix)] += diagonal
    return matrix, target + scatter(tally, tally.games.weight * tally.games.log_odds)


def fit_log_odds(tally: Tally) -> Matrix:
    """Strengths and slots' gains, in log-odds. Shape (G + S,)."""
    return _solve(tally, trusted(tally), tally.games.log_odds)


def without_slots(tally: Tally) -> Matrix:
    """The games' win shares of the first side, with what the slots explain taken out. Shape (N,)."""
    games = tally.games
    if not tally.columns:
        return games.win
    return np.asarray(games.win - gather_slots(tally, _solve(tally, games.weight, games.win - 0.5, grades=False)))


def trusted(tally: Tally) -> Matrix:
    """The games' weights, less where a game is surer than the others and contradicts them. Shape (N,)."""
    games = tally.games
    if not tally.columns:
        return games.weight
    read = games.read & (games.slot_first != games.slot_second)
    if not read.any():
        return games.weight
    sure = np.abs(games.log_odds - gather_slots(tally, _solve(tally, games.weight, games.log_odds)))
    bound = max(HARD_LOG_ODDS, SURE * float(np.median(sure[read])))  # among ties a plain win is no slip
    may_slip = read & (sure > bound)
    trust = np.where(may_slip, (bound / np.maximum(sure, 1e-12)) ** 2, 1.0)
    for _ in range(ROUNDS if may_slip.any() else 0):
        weight = games.weight * trust
        fitted = _solve(tally, weight, games.log_odds)
        error = (games.log_odds - gather(tally, fitted)) ** 2
        spent = float(weight @ error) + PRIOR_GAMES * float((fitted[: tally.size] ** 2).sum())
        error = error / max(1e-12, spent / max(1.0, float(weight.sum()) - len(tally.columns)))
        slip = SLIP_SHARE / (1 - SLIP_SHARE) / np.sqrt(SLIP_VARIANCE)  # its odds without an error
        odds = slip * np.exp(np.minimum(50.0, error / 2 * (1 - 1 / SLIP_VARIANCE)))
        trust = (1 + odds / SLIP_VARIANCE) / (1 + odds) * (1 + slip) / (1 + slip / SLIP_VARIANCE)
        trust = np.where(may_slip, trust, 1.0)
    return np.asarray(games.weight * trust)


def _prior(tally: Tally, grades: bool = True) -> tuple[Matrix, Matrix]:
    """What holds beside the games: diagonal of the precision, and target. Shapes (G + S,)."""
    diagonal, target = np.zeros(tally.size + len(tally.columns)), np.zeros(tally.size + len(tally.columns))
    diagonal[: tally.size] = PRIOR_GAMES
    if grades and tally.steepness > 0:
        count_G = GRADE_GAMES * tally.graded_G
        known_G = np.where(tally.graded_G > 0, tally.grades_G, 0.0)
        level_G = tally.steepness * (known_G - float(count_G @ known_G) / float(count_G.sum()))
        diagonal[: tally.size] += count_G
        target[: tally.size] = count_G * level_G
    return diagonal, target


def _solve(tally: Tally, weight: Matrix, values: Matrix, grades: bool = True) -> Matrix:
    diagonal, target = _prior(tally, grades)
    target = target + scatter(tally, weight * values)
    if len(target) <= DENSE:
        matrix = normal_matrix(tally, weight)
        matrix[np.diag_indices_from(matrix)] += diagonal
        return np.asarray(np.linalg.solve(matrix, target))
    games, last = tally.games, len(tally.columns) + 1
    of_G = np.bincount(games.first, weight, tally.size) + np.bincount(games.second, weight, tally.size)
    of_S = np.bincount(games.slot_first, weight, last) + np.bincount(games.slot_second, weight, last)
    scale = diagonal + np.concatenate([of_G, of_S[:-1]])
    return _conjugate_gradients(lambda x: diagonal * x + scatter(tally, weight * gather(tally, x)), target, scale)


def _conjugate_gradients(apply: Callable[[Matrix], Matrix], target: Matrix, scale: Matrix) -> Matrix:
    """Solve a positive definite system, preconditioned by its diagonal."""
    x = np.zeros_like(target)
    residual = target.copy()
    direction = residual / scale
    size = float(residual @ direction)
    enough = 1e-24 * size
    for _ in range(10 * len(target)):
        if size <= enough:
            break
        image = apply(direction)
        step = size / float(direction @ image)
        x = x + step * direction
        residual = residual - step * image
        scaled = residual / scale
        previous, size = size, float(residual @ scaled)
        direction = scaled + size / previous * direction
    return x
