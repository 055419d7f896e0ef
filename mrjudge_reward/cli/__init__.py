"""The command line: ``mrjudge rank``, ``report``, ``doctor`` and ``cache``."""

from .app import app, main

__all__ = ["app", "main"]
