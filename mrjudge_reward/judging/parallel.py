"""Groups that go through their rounds side by side, so that none waits for the slowest comparison of another.

In lock-step a round ends when its slowest comparison does, and with a judge that thinks for very different times most
of a server's slots stand empty by then. An engine that serves several calls at once (``concurrent_calls``) lets groups go
on by themselves: they are dealt into shares, and each share goes through its rounds in a thread of its own. Judgements
are the same; the server has more to do at any moment.

Groups that ask the same question are in one share, so that identical comparisons still meet in one batch and are asked
once. What is shared beyond that (texts of different questions that render to the same request) is asked once only with
a reply cache, and not if it is in flight.

An engine that batches by itself gets one call per round over all groups, as a schedule of one round does everywhere.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Sequence
from queue import SimpleQueue
from typing import TypeVar

from mrjudge_reward.engines.cancelling import Cancellation
from mrjudge_reward.messages import TextPart
from mrjudge_reward.types import Group

from .tournament import Tournament

MOST_SHARES = 64
"""Threads of one ``Judge.judge``. More groups than that share a thread, and its rounds."""

_GRACE_S = (
    1.0  # for threads that were told to stop; those that wait for an engine which cannot be stopped are left alone
)

_Share = TypeVar("_Share")


def shares(tournaments: Sequence[Tournament]) -> list[list[Tournament]]:
    """Deal groups out; those of one question stay together."""
    questions: dict[Hashable, list[Tournament]] = {}
    for tournament in tournaments:
        questions.setdefault(_question(tournament.group), []).append(tournament)
    dealt: list[list[Tournament]] = [[] for _ in range(min(MOST_SHARES, len(questions)))]
    for index, twins in enumerate(questions.values()):
        dealt[index % len(dealt)] += twins
    return dealt


def _question(group: Group) -> Hashable:
    """All that a group's comparisons have in common; a loaded image is known by its identity."""

    def known_by(image: object) -> Hashable:
        return image if isinstance(image, str | bytes) else id(image)

    turns = tuple(
        (turn.role, *(part.text if isinstance(part, TextPart) else (known_by(part.image),) for part in turn.content))
        for turn in group.prompt
    )
    return turns, group.reference, group.rubric


def side_by_side(shares: Sequence[_Share], work: Callable[[_Share], None]) -> None:
    """Work on every share in a thread of its own, and wait for all.

    Calls of engines are made in those threads alone, so that an interrupt, which reaches the caller's, can cancel them
    and what they have is kept.

    Raises:
        BaseException: the first that a share raised, or an interrupt of the wait. The other shares are told to stop, and
            their engine calls are cancelled where the engine can (see ``engines/cancelling.py``). What cannot stop is
            left behind after a second; its results go nowhere but into the reply cache.
    """
    cancellation = Cancellation()
    ended: SimpleQueue[BaseException | None] = SimpleQueue()

    def run(share: _Share) -> None:
        try:
            with cancellation.governs():
                work(share)
        except BaseException as error:  # noqa: BLE001  raised again by the thread that waits
            ended.put(error)  # before the others hear of it, so that what they raise then comes later
            cancellation.cancel()
        else:
            ended.put(None)

    threads = [threading.Thread(target=run, args=(share,), name="mrjudge-rounds", daemon=True) for share in shares]
    error: BaseException | None = None
    try:
        for thread in threads:
            thread.start()
        for _ in threads:
            error = ended.get()
            if error is not None:
                raise error
    except BaseException:
        cancellation.cancel()
        raise
    finally:
        error = None  # an exception that holds a frame that holds the exception lives until the next collection
        until = time.monotonic() + _GRACE_S
        for thread in threads:
            if thread.ident is not None:
                thread.join(max(0.0, until - time.monotonic()))
