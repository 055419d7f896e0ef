"""Those who wait for something of a batch or a group."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any


def refuse(waiters: Iterable[asyncio.Future[Any]], error: Exception) -> None:
    """Tell all that still wait what went wrong."""
    for waiter in waiters:
        if not waiter.done():
            waiter.set_exception(error)


def serve(waiters: Iterable[asyncio.Future[Any]], result: Any) -> None:
    """Give all that still wait what they wait for."""
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(result)
