"""Strengths and slot bias by least squares: what the ratings and the adaptive schedule share.

A game of i, in slot a, against j, in slot b, has the expectation ``s_i - s_j + z_a - z_b``. The strengths s have a weak
prior; the slots' gains z have none, so whatever slots alone explain is never credited to a candidate: a judge that names
one slot whatever it sees gives equal strengths to the last digit, also where some of its verdicts are missing. Where slots
are balanced, z changes nothing. A tally whose plan shows everybody in one place only has no z (``Tally.columns``): there
slots cannot be told from answers, and by that plan they need not be.

Reads of label probabilities are now and then certain and wrong. Each is therefore weighted by the chance that it is no
slip: by how far it lies from what the *other* games expect, beside how likely a slip says so (a mixture of two densities,
Box & Tiao 1968, fitted by expectation maximisation). The noise of a game is the group's own, so a judge that is
overconfident everywhere alike loses little.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .tally import MAX_LOG_ODDS, Matrix, Tally

PRIOR_GAMES = 0.5
"""Weight of the prior, in tied games against an average opponent.

It keeps an unbeaten candidate's score finite, and discounts candidates with few games. For ``log_odds`` it stands for
the variance of a game's noise over that of the strengths; ``tests/benchmarks/schedules.py`` spans .25 to 1.
"""

SLIP_SHARE = 0.07
"""How many reads are slips. What these say is sure: their density is as the fourth power of the log-odds, to the bound."""

SLIP_TRUST, ROUNDS = 0.01, 5
"""Least weight of a read, which keeps the equations regular, and how often weights are estimated anew."""

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
    """Precision matrix and target of strengths and slots, prior included, as ``fit_log_odds`` solves them.

    Returns:
        Shapes (G + S, G + S) and (G + S,).
    """
    weight = trusted(tally)
    diagonal, target = _prior(tally)
    matrix = normal_matrix(tally, weight)
    matrix[np.diag_indices_from(matrix)] += diagonal
    return matrix, target + scatter(tally, weight * tally.games.log_odds)


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
    """The games' weights, less where a read is sure and contradicts the others. Shape (N,)."""
    games = tally.games
    read = games.read & (games.slot_first != games.slot_second)
    if not read.any():
        return games.weight
    sure = np.abs(games.log_odds - gather_slots(tally, _solve(tally, games.weight, games.log_odds)))
    slip = SLIP_SHARE / (1 - SLIP_SHARE) * 2.5 * np.minimum(sure, MAX_LOG_ODDS) ** 4 / MAX_LOG_ODDS**5
    weight = games.weight
    for _ in range(ROUNDS):  # from full trust: sure reads that agree with each other are believed
        fitted = _solve(tally, weight, games.log_odds)
        error = games.log_odds - gather(tally, fitted)
        spent = float(weight @ error**2) + PRIOR_GAMES * float((fitted[: tally.size] ** 2).sum())
        noise = max(1e-12, spent / max(1.0, float(weight.sum()) - len(tally.columns)))
        spread_G = 1 / (_prior(tally)[0][: tally.size] + _games_of_G(tally, weight))
        spread = spread_G[games.first] + spread_G[games.second]
        left = np.maximum(0.05, 1 - weight * spread)  # error and spread grow so once the game itself is left out
        variance = noise * (1 / games.weight + spread / left)
        odds = slip * np.sqrt(2 * np.pi * variance) * np.exp(np.minimum(50.0, (error / left) ** 2 / (2 * variance)))
        weight = games.weight * np.where(read, np.maximum(1 / (1 + odds), SLIP_TRUST), 1.0)
    return weight


def _games_of_G(tally: Tally, weight: Matrix) -> Matrix:
    games = tally.games
    return np.asarray(np.bincount(games.first, weight, tally.size) + np.bincount(games.second, weight, tally.size))


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
    of_S = np.bincount(games.slot_first, weight, last) + np.bincount(games.slot_second, weight, last)
    scale = diagonal + np.concatenate([_games_of_G(tally, weight), of_S[:-1]])
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
