"""Configs of recipes: a YAML file, and settings that override it."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from mrjudge_reward.credentials import without_credentials
from mrjudge_reward.errors import ConfigError
from mrjudge_reward.yaml_files import WordLoader, read_yaml


def command_line(doc: str | None) -> argparse.ArgumentParser:
    """A recipe's arguments: its config, and settings of it that are changed; more may be added."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="overrides")
    return parser


def read_config(path: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The settings in a file, overridden by ``a.b=value`` with YAML for values; ``a.b=null`` takes a setting out.

    Raises:
        ConfigError: if the file is missing or holds no settings, or an override is none.
    """
    values = read_yaml(path, WordLoader)
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
        read = yaml.load(value, WordLoader)
        if read is None:
            place.pop(last, None)
        else:
            place[last] = read
    return settings
