"""A level across groups: scores relative to those of anchors, which are judged along with the candidates.

Comparisons order a group and say nothing of how good it is: the mean of their scores is the same in every group. An anchor
is an answer that does not come from the group, such as a reference or an earlier policy's answer. It plays like a
candidate, and

``score_i = rating_i - mean over anchors of rating_a``

so that 0 is as good as the anchors. The idea is that of Writing-Zero's pivot (BRPO, arXiv 2506.00103), with three
differences: its pivot is a rollout of the group itself; its rewards are +1 or -1 where these are log-odds (or what the
rating gives); and a judgement that failed counts as a loss there.

What is not known stays so. A candidate that no chain of games connects with an anchor has no score: the prior alone would
place it, and say that every part of a group is as good. A candidate that looks like the only anchor is as good as that,
whatever the judge said.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

import numpy as np

from .tally import Matrix


def relative(
    scores_G: Sequence[float | None], anchors: Sequence[int], games_GG: Matrix | None
) -> tuple[list[float | None], float | None]:
    """Scores relative to anchors, and the anchors' mean rating.

    Args:
        scores_G: as rated; None where nothing is known.
        anchors: which of these are of anchors; at least one.
        games_GG: games between each two; None for a rating that needs none, which grades everybody alone.

    Returns:
        G scores, and the mean rating of the anchors that have one; None where none has.

    >>> relative([0.5, 1.5, -0.5, None], [0], None)
    ([0.0, 1.0, -1.0, None], 0.5)
    """
    known = {index: score for index in anchors if (score := scores_G[index]) is not None}
    found: list[float | None] = [None] * len(scores_G)
    met_GG = np.ones((len(scores_G),) * 2, dtype=bool) if games_GG is None else games_GG > 0
    for anchor in known:
        if found[anchor] is None:
            part_G = _connected(met_GG, anchor)
            level = fmean(known[index] for index in known if part_G[index])
            for index in np.flatnonzero(part_G).tolist():
                if (score := scores_G[index]) is not None:
                    found[index] = round(score - level, 9)
    if len(anchors) == 1:
        found[anchors[0]] = 0.0
    return found, fmean(known.values()) if known else None


def _connected(met_GG: np.ndarray, first: int) -> np.ndarray:
    """Whom a chain of games connects with one. Shape (G,)."""
    part_G = np.zeros(len(met_GG), dtype=bool)
    front_G = part_G.copy()
    front_G[first] = True
    while front_G.any():
        part_G |= front_G
        front_G = met_GG[front_G].any(axis=0) & ~part_G
    return part_G
