"""A judge server in a process of its own that fails as it is put to sleep or woken (engines/vllm/test_engine.py).

Usage: python -m tests.support.restless_server PORT STARTS

STARTS is a file that it leaves when it starts: without it, it will not wake; with it, it will not go to sleep.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path

from . import judge_server


class Restless(judge_server._Handler):
    wakes = False
    asleep = False

    def do_GET(self) -> None:
        if self.path == "/is_sleeping":
            self.send(200, {"is_sleeping": Restless.asleep})
        else:
            super().do_GET()

    def do_POST(self) -> None:
        if self.path.startswith("/sleep"):
            Restless.asleep = not self.wakes
            self.send(200, {})
        elif self.path == "/wake_up":
            self.send(500, {"error": {"message": "out of memory"}})
        else:
            super().do_POST()


def main(port: int, starts: Path) -> None:
    Restless.wakes = starts.exists()
    starts.touch()
    judge_server._Handler = Restless  # type: ignore[misc]
    with judge_server.JudgeServer(port=port):
        threading.Event().wait()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
