"""Credentials in settings: sent to the judge's server, and in nothing that is shown or written.

A user may put one into an address (``https://user:password@host/v1?key=...``), a field of the body, a header, or an
argument. Where settings are read it becomes a :class:`Hidden`: to whoever prints, logs, dumps, compares or pickles it a
text that shows what may be shown. What it stands for stays in this process, and is looked up where a request is sent.

A pickle holds the text alone. ``multiprocessing`` carries the rest on, through its own pipes to the processes it starts.
To any other process (Ray's actors, another machine) no credential travels: there ``env:NAME`` as a value of
``extra_body`` or ``extra_headers``, and ``api_key_env``, name a variable of the environment that holds it.

Of a body, whatever is no option of a well-known protocol, no number and no plain word is taken for a credential.

>>> settings = put_aside({"base_url": "https://ann:s3cr3t@gateway.example/v1", "extra_body": {"token": "sk-1", "top_k": 5}})
>>> settings
{'base_url': 'https://gateway.example/v1', 'extra_body': {'token': '***', 'top_k': 5}}
>>> revealed(settings["extra_body"])
{'token': 'sk-1', 'top_k': 5}
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.reduction import ForkingPickler
from typing import Any
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from .errors import ConfigError

CONFIDENTIAL = frozenset({"base_url", "extra_body", "extra_headers", "api_key", "api_key_env"})
"""Settings that may hold a credential; an error does not repeat them."""

_SHOWN = "***"
_kept: dict[str, Any] = {}  # what is hidden in this process, by a random handle

_ENVIRONMENT = re.compile(r"env:([A-Za-z_][A-Za-z0-9_]*)")
_SECRET_NAMES = re.compile(
    r"api_?key|key|token|secret|password|passw(or)?d|passphrase|pwd|pass|pin|auth\w*|credentials?|bearer|cookie|session|"
    r"signature|sig|sas|jwt|login|user(name)?|email|account|metadata|webhook"
)
_NEVER_A_NUMBER = re.compile(r"token|key|user|session|metadata|auth\w*|account")
_PROTOCOL = frozenset(
    {
        "bad_words", "chat_template", "chat_template_kwargs", "documents", "ebnf", "grammar", "guided_choice",
        "guided_grammar", "guided_json", "guided_regex", "guided_decoding_backend", "include", "json_schema",
        "mm_processor_kwargs", "modalities", "model", "models", "plugins", "provider", "reasoning", "reasoning_effort",
        "regex", "response_format", "safety_settings", "samplers", "service_tier", "stop", "structural_tag",
        "structured_outputs", "thinking", "tools", "tool_choice", "transforms", "truncation", "verbosity",
    }
)  # fmt: skip
"""Fields of requests to vLLM, SGLang, llama.cpp and hosted APIs whose texts are options."""
_NOT_OF_REPLIES = frozenset({"metadata", "user", "safety_identifier", "prompt_cache_key", "store", "service_tier"})
"""Fields of requests that no reply depends on."""
_WORD = re.compile(r"[a-z][a-z_]{0,15}|v?\d[\d.\-]{0,11}(-[a-z]{1,10})?")  # an option, or a version
_TOKEN = re.compile(r"(?=.*[0-9])(?=.*[A-Za-z])[\w\-.~+/=:]{16,}|(sk|hf|ghp|gsk|pk|rk|xox\w|eyJ\w*)[-_]\S+")
_IN_ADDRESS = re.compile(r"(?<=://)[^/\s?#]*@|[?#][^\s'\",;)\]}]*")


class Hidden(str):
    """A setting that holds a credential, as it may be shown.

    Attributes:
        setting: where it stands, e.g. ``"extra_body.metadata.token"``.
    """

    setting: str
    _handle: str

    def __new__(cls, shown: str, secret: Any, setting: str) -> Hidden:
        """Put a secret aside."""
        handle = secrets.token_hex(8)
        _kept[handle] = secret
        return cls._with(shown, handle, setting)

    @classmethod
    def _with(cls, shown: str, handle: str, setting: str) -> Hidden:
        hidden = super().__new__(cls, shown)
        hidden._handle, hidden.setting = handle, setting
        return hidden

    @property
    def secret(self) -> Any:
        """What it stands for.

        Raises:
            ConfigError: in a process to which it did not travel.
        """
        if self._handle in _kept:
            return _kept[self._handle]
        where = self.setting.partition(".")[0]
        instead = {
            "api_key": "api_key_env: NAME",
            "base_url": "extra_headers: {Authorization: env:NAME}, and an address without it",
        }.get(where, f"{where}: {{...: env:NAME}}")
        raise ConfigError(
            f"{self.setting} holds a credential that was given in another process, and no pickle carries one here. Put it "
            f"into a variable of the environment of both, and name that: {instead}"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return Hidden._with, (str(self), self._handle, self.setting)


def _carried(hidden: Hidden) -> tuple[Any, ...]:
    """For the pipes of ``multiprocessing``, as the standard library does with its own keys."""
    return (Hidden, (str(hidden), hidden.secret, hidden.setting)) if hidden._handle in _kept else hidden.__reduce__()


ForkingPickler.register(Hidden, _carried)


# -- what is one ------------------------------------------------------------------------------------------------------


def _named_secret(path: tuple[str, ...], number: bool = False) -> bool:
    words = {
        word for name in path for word in re.split(r"[^a-z0-9]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower())
    }
    return any(_SECRET_NAMES.fullmatch(word) and not (number and _NEVER_A_NUMBER.fullmatch(word)) for word in words)


def _is_credential(path: tuple[str, ...], value: Any) -> bool:
    """Whether a value is one by its name or its look."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return False
    if not isinstance(value, str):
        return _named_secret(path, number=True)
    return _named_secret(path) or (_TOKEN.fullmatch(value) is not None and not (_PROTOCOL & set(path)))


def _may_travel(path: tuple[str, ...], value: Any) -> bool:
    if isinstance(value, str) and _ENVIRONMENT.fullmatch(value):
        return True
    option = not isinstance(value, str) or not value or _WORD.fullmatch(value) or _PROTOCOL & set(path)
    return bool(option) and not _is_credential(path, value)


# -- putting aside ----------------------------------------------------------------------------------------------------


def put_aside(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a judge, their credentials hidden. What is hidden already stays so.

    Raises:
        ConfigError: if ``base_url`` is no address.
    """
    aside = dict(settings)
    if isinstance(address := aside.get("base_url"), str):
        aside["base_url"] = hidden_address(address)
    for name in ("extra_body", "extra_headers"):
        if isinstance(fields := aside.get(name), Mapping):
            aside[name] = hidden_fields(fields, name)
    return aside


def hidden_within(value: Any) -> Any:
    """The same, for settings of judges wherever they stand within others.

    Raises:
        ConfigError: see ``put_aside``.
    """
    if isinstance(value, dict):
        return {name: hidden_within(item) for name, item in put_aside(value).items()}
    return [hidden_within(item) for item in value] if type(value) is list else value


def hidden_fields(fields: Mapping[str, Any], setting: str) -> dict[str, Any]:
    """Fields of a body or headers, each credential in them hidden.

    Raises:
        ConfigError: for a value that JSON does not have, so that no request could be sent; it names the field alone.
    """

    def of(value: Any, path: tuple[str, ...]) -> Any:
        if isinstance(value, Hidden):
            return value
        if isinstance(value, Mapping):
            if any(_TOKEN.fullmatch(str(name)) for name in value):
                return Hidden(_SHOWN, dict(value), ".".join((setting, *path)))
            return {str(name): of(item, (*path, str(name))) for name, item in value.items()}
        if isinstance(value, list | tuple):
            return [of(item, path) for item in value]
        if not isinstance(value, str | int | float | None) or value in (math.inf, -math.inf) or value != value:
            raise ConfigError(
                f"{'.'.join((setting, *path))} holds a {type(value).__name__} that JSON does not have; give text, a finite "
                "number, true, false, null, or lists and mappings of these"
            )
        return value if _may_travel(path, value) else Hidden(_SHOWN, value, ".".join((setting, *path)))

    return {name: of(value, (str(name),)) for name, value in fields.items()}


def hidden_address(url: str) -> str:
    """An address, its login and whatever in its query may be a credential hidden.

    Raises:
        ConfigError: if it is no address of a server; it says what is wrong and not what came.
    """
    if isinstance(url, Hidden):
        return url
    address = Address.of(url)
    public = [(name, value) for name, value in address.query if _may_travel((name,), value)]
    if address.login is None and len(public) == len(address.query):
        return url
    query = f"?{urlencode(public)}" if public else ""
    return Hidden(address.url + query, url, "base_url")


@dataclass(frozen=True)
class Address:
    """A server's address, taken apart.

    Attributes:
        url: without login and query.
        login: user and password.
        query: further parameters of each request.
    """

    url: str
    login: tuple[str, str] | None
    query: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, url: str) -> Address:
        """Take an address apart; of a hidden one what it stands for.

        Raises:
            ConfigError: see ``hidden_address``, ``Hidden.secret``.
        """
        given: str = url.secret if isinstance(url, Hidden) else url
        if re.search(r"[\x00-\x20\x7f\\]", given):
            raise ConfigError("base_url must be one address without spaces, backslashes or line breaks")
        try:
            parts = urlsplit(given)
            host, port = parts.hostname, parts.port
        except ValueError:
            host = port = None
        if parts.scheme not in ("http", "https") if host else True:
            raise ConfigError(
                "base_url must begin with http:// or https:// and name a host, e.g. http://127.0.0.1:8000/v1; write the "
                "characters / ? # @ of a password as %2F %3F %23 %40"
            )
        if "@" in parts.path + parts.query + parts.fragment:
            raise ConfigError(
                "base_url must have no @ behind its host: write the characters / ? # @ of a password as %2F %3F %23 %40"
            )
        place = f"[{host}]" if ":" in str(host) else str(host)
        clean = f"{parts.scheme}://{place}{'' if port is None else f':{port}'}{parts.path}".rstrip("/")
        user, colon, password = parts.netloc.rpartition("@")[0].partition(":")
        login = (unquote(user), unquote(password)) if user or colon else None
        return cls(clean, login, tuple(parse_qsl(parts.query, keep_blank_values=True)))


# -- taking out again -------------------------------------------------------------------------------------------------


def revealed(value: Any) -> Any:
    """Settings as they are to be sent: what is hidden, and what stands in the environment, in its place.

    Raises:
        ConfigError: if a variable of the environment is not set, or see ``Hidden.secret``.
    """
    if isinstance(value, Hidden):
        return value.secret
    if isinstance(value, Mapping):
        return {name: revealed(item) for name, item in value.items()}
    if isinstance(value, list):
        return [revealed(item) for item in value]
    if isinstance(value, str) and (named := _ENVIRONMENT.fullmatch(value)):
        if named[1] not in os.environ:
            raise ConfigError(f"{value} names a variable of the environment that is not set here; set {named[1]}")
        return os.environ[named[1]]
    return value


def is_hidden(value: Any) -> bool:
    """Whether a setting holds something that is hidden, or stands in the environment."""
    if isinstance(value, Mapping):
        return any(map(is_hidden, value.values()))
    if isinstance(value, list):
        return any(map(is_hidden, value))
    return isinstance(value, Hidden) or (isinstance(value, str) and _ENVIRONMENT.fullmatch(value) is not None)


def credentials_in(fields: Mapping[str, Any]) -> Iterator[str]:
    """The credentials in fields that were revealed, as texts."""

    def of(value: Any, path: tuple[str, ...]) -> Iterator[str]:
        if isinstance(value, Mapping):
            for name, item in value.items():
                if _TOKEN.fullmatch(str(name)):
                    yield str(name)
                yield from of(item, (*path, str(name)))
        elif isinstance(value, list | tuple):
            for item in value:
                yield from of(item, path)
        elif _is_credential(path, value):
            yield str(value)

    yield from of(fields, ())


def reply_fields_hash(body: Mapping[str, Any]) -> str:
    """Hash of what decides replies in further fields of a request; empty if nothing does. Credentials do not, nor do names
    under which a server keeps its books."""

    def of(value: Any, path: tuple[str, ...]) -> Any:
        if isinstance(value, Mapping):
            kept = {
                name: of(item, (*path, str(name))) for name, item in value.items() if not credential(path, name, item)
            }
            return {name: item for name, item in kept.items() if item != {} or value[name] == {}}
        return value

    def credential(path: tuple[str, ...], name: Any, item: Any) -> bool:
        within = (*path, str(name))
        return not _PROTOCOL & set(within) and _named_secret((str(name),)) and _is_credential(within, item)

    deciding = of({name: item for name, item in revealed(body).items() if name not in _NOT_OF_REPLIES}, ())
    if not deciding:
        return ""
    return hashlib.blake2b(json.dumps(deciding, sort_keys=True, default=repr).encode(), digest_size=8).hexdigest()


def without_credentials(text: str) -> str:
    """A text that may quote an address: of each one the login and the query are left out.

    >>> without_credentials("got 'https://ann:s3cr3t@gateway.example/v1?key=1'")
    "got 'https://gateway.example/v1'"
    """
    return re.sub(r"[a-z][a-z+]*://\S+", lambda url: _IN_ADDRESS.sub("", url[0]), text, flags=re.IGNORECASE)
