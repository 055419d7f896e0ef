"""Numbers that are the same on every machine and in every process: what slots, schedules and sampling are drawn from."""

from __future__ import annotations

import hashlib


def digest(*parts: object) -> int:
    """A number that depends on the parts alone. From 0 to 2**64 - 1."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "big")
