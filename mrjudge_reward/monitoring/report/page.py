"""``mrjudge report``: one HTML page from a run's log, complete in itself.

The page loads nothing: style, script and data are inside, and its Content-Security-Policy names the digest of the one
script and the one style sheet that may act, so that nothing a policy wrote could run even if it were taken for markup. It is
not: texts reach the page as JSON in which ``<``, ``>`` and ``&`` are escaped, and the script puts them in as text.

The page is bounded (``MAX_GROUPS``, ``MAX_BYTES``): of more groups, some are shown, evenly over the run.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any

from mrjudge_reward.monitoring.run_log import LoggedGroup, RunLog, read_run
from mrjudge_reward.monitoring.trainer_logs import trainer_logs

from .charts import charts_of, evenly, findings_of, number, tiles_of

MAX_GROUPS = 150
"""Groups that can be browsed."""

MAX_BYTES = 4_000_000
"""Size of the groups in the page."""


def page_of(folder: str | os.PathLike[str], name: str | None = None) -> str:
    """The report of a run, as HTML.

    Args:
        folder: of the run, where the log lies (``log_dir``); what the trainer left there is used too.
        name: of the reward; may be left out where only one logged.

    Raises:
        InputError: if there is no log that can be read.
    """
    run = read_run(folder, name)
    logs = trainer_logs(Path(folder))
    for step, values in run.trainer.items():
        logs.setdefault(step, {}).update(values)
    groups, logged = browsable(run)
    said = {
        "name": run.name,
        "about": {str(key): str(value) for key, value in run.about.items()},
        "started": _moment(run.started),
        "ended": _moment(run.ended),
        "tiles": tiles_of(run),
        "findings": findings_of(run),
        "charts": charts_of(run, logs),
        "groups": groups,
        "logged": logged,
    }
    return _filled(Path(folder).resolve().name or "run", said)


def browsable(run: RunLog) -> tuple[list[dict[str, Any]], int]:
    """The groups that the page shows, and how many were logged."""
    logged = [(batch.step, batch.mode, place) for batch in run.batches for place in batch.places]
    count = min(MAX_GROUPS, len(logged))
    while count:
        shown: list[dict[str, Any]] = []
        size = 0
        for step, mode, place in evenly(logged, count):
            shown.append({"step": step, "mode": mode, **_plain(place.read())})
            size += len(json.dumps(shown[-1]))
            if size > MAX_BYTES and count > 1:
                break
        else:
            return shown, len(logged)
        count //= 2
    return [], len(logged)


def _plain(group: LoggedGroup) -> dict[str, Any]:
    candidates = [
        {key: number(value) if isinstance(value, float) else value for key, value in asdict(candidate).items()}
        for candidate in group.candidates
    ]
    return {**asdict(group), "candidates": candidates}


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%d %B %Y, %H:%M UTC")


def _filled(title: str, said: Mapping[str, Any]) -> str:
    files = resources.files("mrjudge_reward.monitoring.report")
    page, style, script = (
        files.joinpath(name).read_text(encoding="utf-8") for name in ("page.html", "page.css", "page.js")
    )
    shown = title.encode(errors="replace").decode()
    values = {
        "title": html.escape(shown),
        "style": style,
        "script": script,
        "style_digest": _digest(style),
        "script_digest": _digest(script),
        "data": data_block({**said, "title": shown}),
    }
    pieces = page.split("@@")  # text, name, text, name, ..., in one pass: values are not looked at again
    return "".join(piece if index % 2 == 0 else values[piece] for index, piece in enumerate(pieces))


def data_block(value: Mapping[str, Any] | Sequence[Any]) -> str:
    """JSON that can stand inside a script element, whatever texts it holds: pure ASCII, without ``<``, ``>`` and ``&``."""
    text = json.dumps(_finite(value), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _finite(value: Any) -> Any:
    """JSON has no NaN: it becomes null."""
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return number(value) if isinstance(value, float) else value


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
