"""Validated settings: an unknown key names the nearest known one, and every fault is a ``ConfigError``."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from .credentials import CONFIDENTIAL, hidden_within, without_credentials
from .errors import ConfigError


class Settings(BaseModel):
    """Base of settings that are given as keyword arguments.

    Attributes:
        where: added to messages, if the settings stand in a part of some larger config.

    Raises:
        ConfigError: on construction, for an unknown setting, or a value of the wrong type or out of range.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)

    where: ClassVar[str] = ""

    def __init__(self, **values: Any) -> None:
        known = list(type(self).model_fields)
        place = f" in {self.where}" if self.where else ""
        for key in values:
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
                hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
                raise ConfigError(f"unknown setting {key!r}{place}; {hint}")
        try:
            super().__init__(**{name: hidden_within(value) for name, value in values.items()})
        except ValidationError as error:
            faults = {str(e["loc"][0]): e["msg"].removeprefix("Value error, ") + _came(e) for e in error.errors()}
            said = "; ".join(f"{name}: {fault.removeprefix(f'{name} ')}" for name, fault in faults.items())
            raise ConfigError(f"{self.where}: {said}" if self.where else said) from None  # pydantic's repeats what came

    def is_set(self, name: str) -> bool:
        """Whether a setting differs from its default."""
        value: Any = getattr(self, name)
        default: Any = type(self).model_fields[name].get_default(call_default_factory=True)
        return bool(value != default)


def _came(fault: ErrorDetails) -> str:
    """What came, unless it may be a credential."""
    came = fault["input"]
    if CONFIDENTIAL & set(map(str, fault["loc"])) or (isinstance(came, Mapping) and CONFIDENTIAL & came.keys()):
        return f" (got {type(came).__name__}, not shown)"
    return f" (got {without_credentials(repr(came)):.100})"
