"""Configs of recipes: a YAML file, and settings that override it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from mrjudge_reward.credentials import without_credentials
from mrjudge_reward.errors import ConfigError
from mrjudge_reward.settings import yaml_fault


class _Loader(yaml.SafeLoader):
    """YAML 1.2's numbers and truth values: ``5e-4`` is a number, and ``no`` a word."""


_BOOL, _FLOAT = "tag:yaml.org,2002:bool", "tag:yaml.org,2002:float"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in found if tag != _BOOL]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_BOOL, re.compile("^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Loader.add_implicit_resolver(
    _FLOAT, re.compile(r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)[eE][-+]?[0-9]+$"), list("-+.0123456789")
)


def read_config(path: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The settings in a file, overridden by ``a.b=value`` with YAML for values; ``a.b=null`` takes a setting out.

    Raises:
        ConfigError: if the file is missing or holds no settings, or an override is none.
    """
    try:
        values = yaml.load(Path(path).read_text(encoding="utf-8"), _Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: {yaml_fault(error)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from error
    if not isinstance(values, Mapping):
        raise ConfigError(f"{path} must hold settings (key: value); got {type(values).__name__}")
    settings = dict(values)
    for override in overrides:
        name, equals, value = override.partition("=")
        if not equals:
            raise ConfigError(f"an override is name=value; got {without_credentials(repr(override))}")
        *parents, last = name.split(".")
        place: Any = settings
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                raise ConfigError(f"{name}: {parent} holds a {type(place).__name__}, no settings")
        read = yaml.load(value, _Loader)
        if read is None:
            place.pop(last, None)
        else:
            place[last] = read
    return settings
