"""What a judge's server is told that nobody else is to see: credentials, resolved in this process for one host."""

from __future__ import annotations

import base64
import html
import importlib.util
import ipaddress
import json
import os
import re
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from mrjudge_reward.credentials import Address, Hidden, credentials_in, is_hidden, revealed, without_credentials
from mrjudge_reward.errors import ConfigError

_SOCKS = ("socks5", "socks5h")
_NO_KEYS = frozenset({"", "none", "empty", "dummy"})
"""What stands for a key where a server wants none, in lower case."""


def is_here(url: str) -> bool:
    """Whether a URL names this machine."""
    host = urllib.parse.urlsplit(url).hostname or ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    address = getattr(address, "ipv4_mapped", None) or address
    return address.is_loopback or address.is_unspecified  # the latter is where servers say that they listen


@dataclass(frozen=True)
class Access:
    """What is added to each request to one server, and to none of another.

    Attributes:
        url: the server's address, up to and including ``/v1``, without login and parameters.
        headers: further ones.
        query: parameters of each request.
        body: further fields of chat requests that hold credentials.
        secrets: texts that must not come back from it.
    """

    url: str
    headers: Mapping[str, str] = field(repr=False)
    query: tuple[tuple[str, str], ...] = field(repr=False)
    body: Mapping[str, Any] = field(repr=False)
    secrets: frozenset[str] = field(repr=False)

    @classmethod
    def of(
        cls,
        base_url: str,
        api_key: str | None,
        api_key_env: str,
        extra_headers: Mapping[str, str],
        extra_body: Mapping[str, Any],
        insecure_http: bool,
    ) -> Access:
        """Look up what settings stand for; they are those of ``OpenAIEngine``.

        A header that is given wins over a login in the address, and that over a key.

        Raises:
            ConfigError: if a credential is not to be had in this process, or would go unencrypted to another machine.
        """
        address = Address.of(base_url)
        headers = {str(name): str(value) for name, value in revealed(extra_headers).items()}
        body = {name: revealed(value) for name, value in extra_body.items() if is_hidden(value)}
        key = revealed(api_key) if api_key is not None else os.environ.get(api_key_env, "") if api_key_env else ""
        told = {name: value for name, value in headers.items() if is_hidden(extra_headers[name])}
        secrets = {*told.values(), *credentials_in(body)}
        holders = [f"extra_headers ({', '.join(told)})"] * bool(told)
        holders += [f"extra_body ({', '.join(body)})"] * any(credentials_in(body))
        if any(name.lower() == "authorization" for name in headers):
            key = ""
        elif address.login is not None:
            encoded = base64.b64encode(":".join(address.login).encode()).decode()
            headers["Authorization"], key = f"Basic {encoded}", ""
            secrets |= {encoded, ":".join(address.login)}
        elif key.lower() in _NO_KEYS:
            key = ""
        else:
            headers["Authorization"] = f"Bearer {key}"
            secrets.add(key)
            holders.append("api_key" if api_key is not None else f"the key in ${api_key_env}")
        if isinstance(base_url, Hidden):
            holders.append("base_url")
            secrets |= {part for pair in (*address.query, address.login or ()) for part in pair[-1:]}
            secrets |= set(address.login or ())
        if holders and not insecure_http and address.url.startswith("http://") and not is_here(address.url):
            raise ConfigError(
                f"{address.url} is http:// to another machine, where whoever is on the way can read what "
                f"{' and '.join(holders)} would tell it: use https://, leave it out (api_key_env: '' for no key), or set "
                "insecure_http: true to send it all the same"
            )
        return cls(address.url, headers, address.query, body, frozenset(filter(None, secrets)))

    @cached_property
    def _forms(self) -> list[tuple[bytes, bool]]:
        """What a secret may look like in a reply, the longest first, and whether it can be told from ordinary text."""
        forms: dict[bytes, bool] = {}
        for secret in self.secrets:
            telling = len(secret) >= 12 or (len(secret) >= 8 and re.search(r"[^A-Za-z]", secret) is not None)
            quoted = urllib.parse.quote
            shown = {secret, json.dumps(secret)[1:-1], quoted(secret), quoted(secret, safe=""), html.escape(secret)}
            shown |= {repr(secret)[1:-1], base64.b64encode(secret.encode()).decode()}
            forms |= {form.encode(): telling for form in shown if len(form) >= 4}
        return sorted(forms.items(), key=lambda form: -len(form[0]))

    def cleaned(self, data: bytes, failed: bool) -> bytes:
        """What a server sent, without the credentials that it may have been told.

        Args:
            data: e.g. a reply's body.
            failed: whether it is an error. In a judge's own words only what can be nothing else is replaced.
        """
        for form, telling in self._forms:
            if (failed or telling) and form in data:
                data = data.replace(form, b"***")
        return data

    def redirect(self, place: str) -> str:
        """What is said of a redirect."""
        place = self.cleaned_text(without_credentials(place))
        return f"the server redirects to {place}, and keys follow no redirect: if you trust it, set base_url to it"

    def cleaned_text(self, text: str) -> str:
        """A text that may quote a server, e.g. of an error."""
        return self.cleaned(text.encode(errors="surrogatepass"), failed=True).decode(errors="surrogatepass")


class NoRedirect(urllib.request.HTTPRedirectHandler):
    """For ``urllib``, which would send a key on to wherever a redirect leads."""

    def redirect_request(self, *_: Any) -> None:
        """Follow none."""


def proxy_of(url: str) -> str | None:
    """The proxy that the environment names for a URL; none stands before a server on this machine.

    Raises:
        ConfigError: if it is of a kind that cannot be used.
    """
    if is_here(url):
        return None
    parts = urllib.parse.urlsplit(url)
    proxies = urllib.request.getproxies()
    found = next((proxies[name] for name in (parts.scheme, "all") if name in proxies), None)
    if found is None or urllib.request.proxy_bypass(parts.netloc):
        return None
    kind, colon, _ = found.partition("://")
    if not colon:
        return f"http://{found}"
    if kind.lower() not in ("http", "https", *(_SOCKS if importlib.util.find_spec("socksio") else ())):
        raise ConfigError(
            f"{parts.scheme}_proxy or all_proxy names a proxy of kind {kind}:// for {parts.hostname}, which is not "
            "supported; name an http:// proxy, or install socksio for socks5://, or list the host in no_proxy"
        )
    return found
