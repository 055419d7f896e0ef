"""The last step to a judge's server: credentials are put on here, and taken out of what comes back.

Nothing before it holds them, so no client logs them, and no error quotes them. A redirect is not followed: it comes back
as an error that says where it leads.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from .access import Access

_OF_THE_CLIENT = frozenset({"accept", "accept-encoding", "connection", "content-type", "user-agent"})
_OF_OPENAI = ("openai-organization", "openai-project")
_ENCODING = frozenset({"content-encoding", "content-length", "transfer-encoding"})


def http_library(client: type[Any]) -> Any:
    """What a client of the openai package is made of: httpx, and of late httpx2."""
    kind = next(kind for kind in client.__mro__ if kind.__name__ == "AsyncClient")
    return sys.modules[kind.__module__.partition(".")[0]]


class OneServerTransport:
    """Carries requests to one server; an ``httpx.AsyncBaseTransport`` in all but its base.

    Args:
        http: httpx, or what takes its place.
        inner: does the carrying.
        access: what that server is told.

    Attributes:
        reached: whether a connection has ever been made.
    """

    reached = False

    def __init__(self, http: Any, inner: Any, access: Access) -> None:
        self._http, self._inner, self._access = http, inner, access
        url = http.URL(access.url)
        self._origin = url.scheme, url.host, url.port

    async def handle_async_request(self, request: Any) -> Any:
        """Send a request with what only the server may see."""
        response = await self._inner.handle_async_request(await self._told(request))
        if response.is_redirect:
            await response.aclose()
            said = self._access.redirect(response.headers["location"])
            response = self._http.Response(response.status_code, json={"error": {"message": said}})
        await response.aread()
        failed = response.status_code >= 300
        kept = [
            (name, self._access.cleaned(value, failed))
            for name, value in response.headers.raw
            if name.decode("ascii", "replace").lower() not in _ENCODING
        ]
        content = self._access.cleaned(response.content, failed)
        return self._http.Response(response.status_code, headers=kept, content=content, request=request)

    async def _see(self, event: str, info: Any) -> None:
        self.reached = self.reached or event == "connection.connect_tcp.complete"

    async def _told(self, request: Any) -> Any:
        if (request.url.scheme, request.url.host, request.url.port) != self._origin:
            raise self._http.UnsupportedProtocol(f"{request.url} is not at {self._access.url}, for which the key is")
        passed = _OF_THE_CLIENT | set(_OF_OPENAI if request.url.host == "api.openai.com" else ())
        headers = self._http.Headers([(k, v) for k, v in request.headers.multi_items() if k.lower() in passed])
        headers["Authorization"] = "Bearer none"  # what a server without keys is told
        headers.update(self._access.headers)
        content = await request.aread()
        if self._access.body and content.endswith(b"}") and request.url.path.endswith("/chat/completions"):
            fields = json.dumps(dict(self._access.body), ensure_ascii=False).encode()
            content = content[:-1] + (b"," if len(content) > 2 else b"") + fields[1:]
        url = request.url.copy_merge_params(self._access.query) if self._access.query else request.url
        extensions = request.extensions | {"trace": self._see}
        return self._http.Request(request.method, url, headers=headers, content=content, extensions=extensions)

    async def aclose(self) -> None:
        """Close all connections."""
        await self._inner.aclose()
