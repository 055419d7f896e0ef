"""Configs of recipes: a YAML file, and settings that override it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from mrjudge_reward.errors import ConfigError


def read_config(path: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The settings in a file, overridden by ``a.b=value`` with YAML for values; ``a.b=null`` takes a setting out.

    Raises:
        ConfigError: if the file is missing or holds no settings, or an override is none.
    """
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: {error}") from error
    if not isinstance(values, Mapping):
        raise ConfigError(f"{path} must hold settings (key: value); got {type(values).__name__}")
    settings = dict(values)
    for override in overrides:
        name, equals, value = override.partition("=")
        if not equals:
            raise ConfigError(f"an override is name=value; got {override!r}")
        *parents, last = name.split(".")
        place: Any = settings
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                raise ConfigError(f"{override}: {parent} holds {place!r}, no settings")
        read = yaml.safe_load(value)
        if read is None:
            place.pop(last, None)
        else:
            place[last] = read
    return settings
