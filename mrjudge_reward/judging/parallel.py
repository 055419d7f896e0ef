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
from collections.abc import Callable, Generator, Hashable, Iterable, Sequence
from concurrent.futures import Future
from queue import SimpleQueue
from typing import TypeVar

from mrjudge_reward.engines.cancelling import Cancellation, governed
from mrjudge_reward.messages import TextPart
from mrjudge_reward.types import Group

from .tournament import Tournament

MOST_SHARES = 64
"""Threads of one ``Judge.judge``. More groups than that share a thread, and its rounds."""

_GRACE_S = (
    1.0  # for threads that were told to stop; those that wait for an engine which cannot be stopped are left alone
)

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


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


def side_by_side(shares: Sequence[_Item], work: Callable[[_Item], None]) -> None:
    """Work on every share in a thread of its own, and wait for all; see ``in_order`` for what is raised."""
    if len(shares) == 1 and governed():  # whoever waits for this thread can cancel what it asks
        work(shares[0])
        return
    for _ in in_order(shares, work, len(shares)):
        pass


def in_order(
    items: Iterable[_Item], work: Callable[[_Item], _Result], in_flight: int, ahead: int = 0
) -> Generator[_Result]:
    """Work on so many items at any moment, each in a thread of its own, and give the results in the items' order.

    Calls of engines are made in those threads alone, so that an interrupt, which reaches the caller's, can cancel them
    and what they have is kept. Close the generator where it may not be run to its end.

    Args:
        items: taken one by one, each when a thread is free for it.
        work: what to do with one.
        in_flight: items worked on at once.
        ahead: results that may wait for an earlier one while others are worked on.

    Raises:
        BaseException: the first that an item raised, or an interrupt of the wait. The others are told to stop, and
            their engine calls are cancelled where the engine can (see ``engines/cancelling.py``). What cannot stop is
            left behind after a second; its results go nowhere but into the reply cache.
    """
    cancellation = Cancellation()
    ended: SimpleQueue[tuple[int, Future[_Result]]] = SimpleQueue()
    threads: dict[int, threading.Thread] = {}
    results: dict[int, _Result] = {}
    coming, given = enumerate(items), 0

    def run(number: int, item: _Item) -> None:
        outcome: Future[_Result] = Future()
        try:
            with cancellation.governs():
                outcome.set_result(work(item))
        except BaseException as error:  # noqa: BLE001  raised again by the thread that waits
            outcome.set_exception(error)
            ended.put((number, outcome))  # before the others hear of it, so that what they raise then comes later
            cancellation.cancel()
        else:
            ended.put((number, outcome))

    try:
        while True:
            while given in results:
                yield results.pop(given)
                given += 1
            while len(threads) < in_flight and len(threads) + len(results) < in_flight + ahead:
                if (entry := next(coming, None)) is None:
                    break
                thread = threading.Thread(target=run, args=entry, name="mrjudge-rounds", daemon=True)
                thread.start()
                threads[entry[0]] = thread
            if not threads:
                return
            number, outcome = ended.get()
            threads.pop(number).join()
            results[number] = outcome.result()
            del outcome
    except BaseException:
        cancellation.cancel()
        raise
    finally:
        until = time.monotonic() + _GRACE_S
        for thread in threads.values():
            thread.join(max(0.0, until - time.monotonic()))
