"""Everything this package raises.

::

    MRJudgeError
    ├── ConfigError            (ValueError)    a setting that is unknown, out of range or contradicts another
    ├── InputError             (ValueError)    data that cannot be judged: a malformed group, batch or JSONL line
    ├── MissingPackageError    (ImportError)   an optional package; the message holds the pip line
    ├── EngineError            (RuntimeError)  an engine that cannot work at all (one bad request never raises)
    └── JudgeUnreliableError   (RuntimeError)  too many failed judgements: the run stops rather than train on noise
        └── JudgeDriftedError                  the judge falls for canaries: the run stops rather than train on a hack

Each carries one message that says what came, what was expected and what to do, and survives pickling.
"""

from __future__ import annotations

import importlib
from typing import Any


class MRJudgeError(Exception):
    """Base of every error raised by this package."""


class ConfigError(MRJudgeError, ValueError):
    """A setting is unknown, out of range, or contradicts another setting."""


class InputError(MRJudgeError, ValueError):
    """Data that cannot be judged: a malformed group, batch or input line."""


class MissingPackageError(MRJudgeError, ImportError):
    """An optional package is not installed."""


class EngineError(MRJudgeError, RuntimeError):
    """An engine cannot work at all (model not found, verb not supported)."""


class JudgeUnreliableError(MRJudgeError, RuntimeError):
    """So many judgements failed that rewards would be noise."""


class JudgeDriftedError(JudgeUnreliableError):
    """The judge prefers answers that are known to be worse, so that rewards would teach a hack."""


def require(module: str, extra: str) -> Any:
    """Import an optional module at its point of use.

    Args:
        module: dotted name to import, e.g. ``"torch"``.
        extra: the extra of this package that brings it, e.g. ``"transformers"``.

    Raises:
        MissingPackageError: with the exact pip line, if the module is absent.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or module.split(".")[0] != error.name.split(".")[0]:
            raise  # the package is there and broken: hiding its own error would mislead
        raise MissingPackageError(
            f"{module} is needed here and not installed; run: pip install 'mrjudge-reward[{extra}]'"
        ) from error
