"""Samples in and rewards out in few calls, where a call between processes costs more than judging with a fast judge.

A client hands in what it has and waits; the call returns as soon as anything is ready for it, whichever call had brought
that. At most one call of a client waits: a later one sends it home.
"""

from __future__ import annotations

import asyncio

from mrjudge_reward.errors import MRJudgeError

from .scores import Scored

Outcome = tuple[int, Scored | MRJudgeError]
"""A sample's number, given by its client, and its reward or what went wrong."""


class Desk:
    """Where one client's outcomes lie until it fetches them. All methods belong to one event loop."""

    def __init__(self) -> None:
        self._ready: list[Outcome] = []
        self._asking: asyncio.Future[None] | None = None

    def put(self, outcome: Outcome) -> None:
        """Something is ready."""
        self._ready.append(outcome)
        self._wake()

    async def collect(self) -> list[Outcome]:
        """Wait until something is ready, or until a later call waits, and take what there is."""
        self._wake()
        asking = self._asking = asyncio.get_running_loop().create_future()
        if self._ready:
            self._wake()
        await asking
        ready, self._ready = self._ready, []
        return ready

    def _wake(self) -> None:
        if self._asking is not None and not self._asking.done():
            self._asking.set_result(None)
