"""A server that repeats all that it was told, in replies and in errors: whatever leaks, leaks here."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from .judge_server import longest_wins


class EchoingServer:
    """``status(number)`` says what happens to each post; what is no 200 is an error that repeats the request.

    Attributes:
        seen: of each request: path, headers (names in lower case) and decoded body.
    """

    def __init__(self, status: Callable[[int], int] = lambda number: 200, location: str = "") -> None:
        self.status, self.location = status, location
        self.seen: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._http.daemon_threads = True
        self._http.echoing = self  # type: ignore[attr-defined]
        self.port = int(self._http.server_address[1])
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def __enter__(self) -> EchoingServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        """Be quiet."""

    def do_GET(self) -> None:
        self._answer({}, {"data": [{"id": "judge"}], "told": self._told({})})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))))
        if not self.path.partition("?")[0].endswith("/chat/completions"):
            self._send(404, {"error": {"message": f"no such page: {self._told(body)}"}})
            return
        told = self._told(body)
        thought = f"<think>I was told {told}. {longest_wins(body)}"
        choice = {"message": {"content": thought, "role": "assistant"}, "finish_reason": "stop"}
        self._answer(body, {"choices": [choice], "system_fingerprint": told})

    def _told(self, body: Mapping[str, Any]) -> str:
        rest = {name: value for name, value in body.items() if name != "messages"}
        return f"{self.path} {dict(self.headers)} {json.dumps(rest)} {rest}"

    def _answer(self, body: dict[str, Any], payload: dict[str, Any]) -> None:
        echoing: EchoingServer = self.server.echoing  # type: ignore[attr-defined]
        echoing.seen.append((self.path, {k.lower(): v for k, v in self.headers.items()}, body))
        status = echoing.status(len(echoing.seen) - 1)
        self._send(status, payload if status == 200 else {"error": {"message": f"no: {self._told(body)}"}})

    def _send(self, status: int, payload: dict[str, Any]) -> None:
        echoing: EchoingServer = self.server.echoing  # type: ignore[attr-defined]
        data = json.dumps(payload).encode()
        self.send_response(status)
        if echoing.location and status in (301, 302, 303, 307, 308):
            self.send_header("Location", echoing.location)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
