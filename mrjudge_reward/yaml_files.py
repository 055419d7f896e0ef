"""YAML as people write it: a file in which a fault is told by its place, and words that stay words."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import yaml

from .credentials import without_credentials
from .errors import ConfigError, MRJudgeError


class WordLoader(yaml.SafeLoader):
    """YAML 1.2's numbers and truth values: ``5e-4`` is a number, and ``no`` a word."""


_BOOL, _FLOAT = "tag:yaml.org,2002:bool", "tag:yaml.org,2002:float"
WordLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in found if tag != _BOOL]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
WordLoader.add_implicit_resolver(_BOOL, re.compile("^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
WordLoader.add_implicit_resolver(
    _FLOAT, re.compile(r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)[eE][-+]?[0-9]+$"), list("-+.0123456789")
)


def read_yaml(
    path: str | os.PathLike[str],
    loader: type[yaml.SafeLoader] = yaml.SafeLoader,
    fault: type[MRJudgeError] = ConfigError,
) -> Any:
    """What a file holds.

    Raises:
        fault: if it cannot be read, or is not YAML.
    """
    try:
        return yaml.load(Path(path).read_text(encoding="utf-8"), loader)
    except yaml.YAMLError as error:
        raise fault(f"{path}: {yaml_fault(error)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise fault(f"{path}: {error}") from error


def yaml_fault(error: Exception) -> str:
    """What is wrong with a YAML text and where, without the line itself, which may hold a credential."""
    problem, mark = getattr(error, "problem", None), getattr(error, "problem_mark", None)
    if problem is None:
        return without_credentials(" ".join(str(error).split()))
    return f"{problem}, line {mark.line + 1}, column {mark.column + 1}" if mark is not None else str(problem)
