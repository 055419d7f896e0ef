"""Warnings that are said once, however often their cause comes."""

from __future__ import annotations

import logging

logger = logging.getLogger(__name__)


class Once:
    """Says each thing once, to the log. Several threads may share one; a copy does not say it again."""

    def __init__(self) -> None:
        self._said: dict[str, object] = {}

    def warn(self, what: str, message: str) -> None:
        """Warn, unless that was said.

        Args:
            what: tells things apart.
            message: whole sentences.
        """
        mine = object()
        if self._said.setdefault(what, mine) is mine:
            logger.warning("%s This is said once.", message, stacklevel=2)
