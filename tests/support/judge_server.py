"""A small server that speaks the OpenAI chat protocol, with faults, for tests: ``with JudgeServer() as server: ...``.

It can also run by itself, to be killed and started again on the same port::

    python tests/support/judge_server.py --port 8123 --faults 500,drop,half --share 0.2 --seed 1
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

FAULTS = (
    "400", "500", "503", "429", "hang", "drop", "half", "garbage", "text", "error_object", "no_choices", "two_choices",
    "wrong_count", "off_menu", "truncated",
)  # fmt: skip

_RESPONSE = re.compile(
    r"^\[Response(?: (\w+?))??( [b-df-hj-np-tv-xz]{8})?\]\n(.*?)\n\[End of response(?(1) \1)(?(2)\2)\]$",
    re.DOTALL | re.MULTILINE,
)
_KNOWN_BY_HOSTED = {
    "model", "messages", "temperature", "top_p", "max_tokens", "max_completion_tokens", "stop", "seed", "logprobs",
    "top_logprobs", "n",
}  # fmt: skip


def prompt_text(body: Mapping[str, Any]) -> str:
    """All text of the last user turn."""
    content = next(turn["content"] for turn in reversed(body["messages"]) if turn["role"] == "user")
    return content if isinstance(content, str) else "\n".join(part.get("text", "") for part in content)


def longest_wins(body: Mapping[str, Any]) -> str:
    """A judge that prefers the longest response."""
    shown = {label: text for label, _, text in _RESPONSE.findall(prompt_text(body))}
    best = max(shown, key=lambda label: len(shown[label]), default="A")
    verdict = f"{best}</answer>"
    begun = body["messages"][-1]["content"] if body.get("continue_final_message") else ""
    return verdict if "<answer>" in begun else f"<think>{best} says the most.</think><answer>{verdict}"


def seeded(kinds: Sequence[str], share: float, seed: int = 0) -> Callable[[int], str | None]:
    """A fault plan in which each call draws its own fate, the same in every run."""

    def plan(index: int) -> str | None:
        draw = random.Random(f"{seed}:{index}")
        return draw.choice(kinds) if draw.random() < share else None

    return plan


class JudgeServer:
    """Serves ``answer(body)`` as chat completions.

    Args:
        answer: the text to reply with, or a whole ``message`` mapping; may hold ``finish_reason`` too.
        port: 0 takes a free one.
        faults: what happens to call number 0, 1, ... (one of ``FAULTS`` or None); after a list's end nothing.
        label_logprobs: planted log-probability of each token text, for reads.
        reads: "vllm" (token ids and top tokens), "top" (top tokens alone), "none" (fields ignored, no logprobs) or
            "hosted" (unknown fields are rejected with 400).
        delay_s: time to think.
        hang_s: how long a hanging call hangs.
        retry_after: header of a 429, 500 and 503.
        max_model_len: told with the models; what takes more is answered 400, as vLLM does.
        count: tokens of a text, for ``usage`` and ``max_model_len``; a quarter of the characters by default.
        facts: what is answered to further paths, in place of what would be.
        rejects: what is wrong with a body, as the error that is sent with ``rejects_with``; None if nothing is.

    Attributes:
        requests: bodies of the chat requests, in order of arrival.
        asked: paths of all other requests.
        largest: tokens of the largest chat request, its reply's bound included, where they are counted.
        all_fail: a fault for every call from now on; it can be flipped during a run.
        most_in_flight: most chat requests worked on at once.
        open_connections: connections open now.
        most_connections: most connections open at once.
        connections: all connections ever accepted.
    """

    def __init__(
        self,
        answer: Callable[[Mapping[str, Any]], str | Mapping[str, Any]] = longest_wins,
        *,
        port: int = 0,
        faults: Iterable[str | None] | Callable[[int], str | None] = (),
        label_logprobs: Mapping[str, float] | None = None,
        reads: str = "vllm",
        delay_s: float = 0.0,
        hang_s: float = 60.0,
        retry_after: str = "0",
        max_model_len: int | None = None,
        count: Callable[[str], int] | None = None,
        facts: Mapping[str, Any] | None = None,
        rejects: Callable[[Mapping[str, Any]], Any] = lambda body: None,
        rejects_with: int = 400,
    ) -> None:
        planned = faults if callable(faults) else dict(enumerate(faults)).get
        self.answer, self.plan, self.reads = answer, planned, reads
        self.delay_s, self.hang_s, self.retry_after = delay_s, hang_s, retry_after
        self.max_model_len, self.count, self.facts = max_model_len, count, dict(facts or {})
        self.asked: list[str] = []
        self.largest = 0
        self.rejects, self.rejects_with = rejects, rejects_with
        self.tokens = dict(label_logprobs or {"A": math.log(0.7), "B": math.log(0.2), "C": math.log(0.1)})
        self.requests: list[dict[str, Any]] = []
        self.all_fail: str | None = None
        self.in_flight = self.most_in_flight = 0
        self.open_connections = self.most_connections = self.connections = 0
        self.lock = threading.Lock()
        self.stopping = threading.Event()
        self._http = _Server(("127.0.0.1", port), _Handler)
        self._http.judge = self
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    @property
    def port(self) -> int:
        return int(self._http.server_address[1])

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def start(self) -> JudgeServer:
        self._thread.start()
        return self

    def close(self) -> None:
        """Stop at once, cutting every open connection."""
        self.stopping.set()
        self._http.shutdown()
        self._http.cut()
        self._http.server_close()
        self._thread.join()

    def __enter__(self) -> JudgeServer:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def wait_until(self, condition: Callable[[JudgeServer], bool], within_s: float = 5.0) -> bool:
        """Whether a condition came true in time."""
        end = time.monotonic() + within_s
        while not condition(self) and time.monotonic() < end:
            time.sleep(0.005)
        return condition(self)

    def token_id(self, text: str) -> int:
        """The planted vocabulary: labels first, then one token per character."""
        return list(self.tokens).index(text) if text in self.tokens else 1000 + ord(text)

    def tokenize(self, text: str) -> list[int]:
        labels = sorted((re.escape(token) for token in self.tokens if token), key=len, reverse=True)
        return [self.token_id(piece) for piece in re.findall("|".join([*labels, "(?s:.)"]), text)]

    def prompt_tokens(self, body: Mapping[str, Any]) -> int:
        """Tokens of a chat request."""
        if self.count is None:
            return len(json.dumps(body["messages"])) // 4
        turns = [turn["content"] for turn in body["messages"]]
        parts = [part for turn in turns for part in (turn if isinstance(turn, list) else [{"text": turn}])]
        return sum(self.count(part["text"]) if "text" in part else 300 for part in parts) + 4 * len(turns)

    def logprobs(self, body: Mapping[str, Any]) -> dict[str, Any] | None:
        """The log-probabilities a reply carries."""
        if self.reads == "none" or not body.get("logprobs"):
            return None
        ranked = sorted(self.tokens.items(), key=lambda item: -item[1])
        shown = ranked[: body.get("top_logprobs") or 0]
        as_ids = self.reads == "vllm" and body.get("return_tokens_as_token_ids")
        if self.reads == "vllm" and body.get("logprob_token_ids"):
            by_id = {self.token_id(text): (text, value) for text, value in ranked}
            shown = [ranked[0]] + [by_id.get(number, (f"<{number}>", -30.0)) for number in body["logprob_token_ids"]]

        def entry(text: str, value: float) -> dict[str, Any]:
            token = f"token_id:{self.token_id(text)}" if as_ids else text
            return {"token": token, "logprob": value, "bytes": list(text.encode())}

        return {"content": [entry(*ranked[0]) | {"top_logprobs": [entry(*item) for item in shown]}]}


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 512
    judge: JudgeServer

    def __init__(self, *args: Any) -> None:
        self.sockets: set[socket.socket] = set()
        super().__init__(*args)

    def process_request(self, request: Any, client_address: Any) -> None:
        judge = self.judge
        with judge.lock:
            self.sockets.add(request)
            judge.connections += 1
            judge.open_connections += 1
            judge.most_connections = max(judge.most_connections, judge.open_connections)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        super().shutdown_request(request)
        with self.judge.lock:
            if request in self.sockets:
                self.sockets.discard(request)
                self.judge.open_connections -= 1

    def cut(self) -> None:
        with self.judge.lock:
            sockets = list(self.sockets)
        for open_socket in sockets:
            try:
                open_socket.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no error of a test."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    server: _Server

    def log_message(self, *args: Any) -> None:
        """Be quiet."""

    def send(
        self, status: int, payload: Any, headers: Mapping[str, str] | None = None, kind: str = "application/json"
    ) -> None:
        data = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        judge = self.server.judge
        judge.asked.append(self.path)
        if self.path in judge.facts:
            self.send(200, judge.facts[self.path])
        elif self.path.endswith("/models"):
            size = {} if judge.max_model_len is None else {"max_model_len": judge.max_model_len}
            self.send(200, {"object": "list", "data": [{"id": "judge", "object": "model"} | size]})
        else:
            self.send(404, {"error": {"message": "not found"}})

    def do_POST(self) -> None:
        judge = self.server.judge
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))))
        if self.path != "/v1/chat/completions":
            judge.asked.append(self.path)
        if self.path in judge.facts:
            found = judge.facts[self.path]
            self.send(200, found(body) if callable(found) else found)
        elif self.path == "/tokenize" and judge.reads == "vllm" and judge.count is None:
            tokens = judge.tokenize(body["prompt"])
            self.send(200, {"tokens": tokens, "count": len(tokens), "max_model_len": 4096})
        elif self.path == "/v1/chat/completions":
            with judge.lock:
                index = len(judge.requests)
                judge.requests.append(body)
                judge.in_flight += 1
                judge.most_in_flight = max(judge.most_in_flight, judge.in_flight)
            try:
                self.chat(body, judge.all_fail or judge.plan(index))
            finally:
                with judge.lock:
                    judge.in_flight -= 1
        else:
            self.send(404, {"error": {"message": f"no {self.path} here"}})

    def chat(self, body: Mapping[str, Any], fault: str | None) -> None:
        judge = self.server.judge
        judge.stopping.wait(judge.hang_s if fault == "hang" else judge.delay_s)
        unknown = body.keys() - _KNOWN_BY_HOSTED
        if judge.reads == "hosted" and unknown:
            self.send(400, {"error": {"message": f"Unrecognized request arguments: {', '.join(sorted(unknown))}"}})
            return
        if (error := judge.rejects(body)) is not None:
            self.send(judge.rejects_with, error)
            return
        if judge.count is not None:
            wanted = judge.prompt_tokens(body) + body.get("max_tokens", 0)
            judge.largest = max(judge.largest, wanted)
            if judge.max_model_len is not None and wanted > judge.max_model_len:
                said = f"This model's maximum context length is {judge.max_model_len} tokens; this needs {wanted}."
                self.send(400, {"error": {"message": said}})
                return
        if fault == "drop" or judge.stopping.is_set():
            self.close_connection = True
            return
        if fault and fault.isdigit():
            headers = {"Retry-After": judge.retry_after} if fault in ("429", "500", "503") else None
            self.send(int(fault), {"error": {"message": f"planned {fault}", "code": int(fault)}}, headers)
            return
        if fault in ("garbage", "text"):
            kind = "application/json" if fault == "garbage" else "text/html"
            self.send(200, b"<html>upstream says hello</html>", kind=kind)
            return
        if fault == "error_object":
            self.send(200, {"error": {"message": "upstream failed", "code": 502}})
            return
        reply = self.reply(body, fault)
        if fault == "half":
            data = json.dumps(reply).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
            return
        self.send(200, reply)

    def reply(self, body: Mapping[str, Any], fault: str | None) -> dict[str, Any]:
        judge = self.server.judge
        answer = judge.answer(body)
        message = {"role": "assistant", **({"content": answer} if isinstance(answer, str) else answer)}
        finish = message.pop("finish_reason", "stop")
        if fault == "wrong_count":
            message["content"] = "<think>Both.</think><answer>A B A B</answer>"
        elif fault == "off_menu":
            message["content"] = "<think>None of them.</think><answer>Zebra</answer>"
        elif fault == "truncated":
            message["content"], finish = "<think>Let me see. Response", "length"
        choice = {"index": 0, "message": message, "finish_reason": finish, "logprobs": judge.logprobs(body)}
        prompt_tokens = judge.prompt_tokens(body)
        usage = {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": 1 + len(str(message.get("content"))) // 4,
            "prompt_tokens_details": {"cached_tokens": prompt_tokens // 2},
        }
        choices = {"no_choices": [], "two_choices": [choice, choice]}.get(fault or "", [choice])
        return {"id": "x", "object": "chat.completion", "model": body["model"], "choices": choices, "usage": usage}


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--faults", default="", help="comma-separated, of: " + ", ".join(FAULTS))
    parser.add_argument("--share", type=float, default=0.2, help="share of the calls that get a fault")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reads", default="vllm", choices=("vllm", "top", "none", "hosted"))
    parser.add_argument("--delay", type=float, default=0.0, help="seconds of thinking")
    options = parser.parse_args()
    kinds = [kind for kind in options.faults.split(",") if kind]
    if set(kinds) - set(FAULTS):
        parser.error(f"unknown faults: {', '.join(sorted(set(kinds) - set(FAULTS)))}")
    plan = seeded(kinds, options.share, options.seed) if kinds else ()
    server = JudgeServer(port=options.port, faults=plan, reads=options.reads, delay_s=options.delay)
    with server:
        print(f"serving on {server.base_url}", flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
