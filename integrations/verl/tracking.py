"""The judge's metrics in verl's loggers, at every step that verl logs.

verl 0.9.1 has no place for metrics of a reward: what a reward tells of a row is kept for the row, and in training nothing of
it is logged. The one thing that all trainers do at the end of a step is ``Tracking.log(data, step)``. In the process of
the trainer, which loads the reward manager, that method is wrapped: it asks the judge actor what was judged since the
step before, and adds it as ``judge/...`` (and ``val-judge/...``). What cannot be had is left out with a warning; a step is
logged in any case.

A trainer that runs ahead of its steps (asynchronous ones) has judged groups of later steps too by then; they count where
they were judged.
"""

from __future__ import annotations

import functools
import inspect
import logging
from typing import Any

import ray
from verl.utils.tracking import Tracking

from .settings import ACTOR

logger = logging.getLogger(__name__)

WAIT_S = 60.0
"""For the judge actor's answer. It answers at once, unless it is writing its log."""


def fits() -> bool:
    """Whether verl's ``Tracking.log`` is the method that is wrapped here."""
    return list(inspect.signature(Tracking.log).parameters) == ["self", "data", "step", "backend"]


def log_judge_metrics() -> None:
    """Have verl's loggers told of the judge, in this process; once."""
    plain = Tracking.log
    if hasattr(plain, "__wrapped__"):
        return
    if not fits():
        logger.warning("verl's loggers are not told of the judge: its Tracking.log is another; mrjudge report shows it")
        return

    @functools.wraps(plain)
    def log(self: Tracking, data: dict[str, Any], step: int, backend: Any = None) -> None:
        plain(self, {**data, **judged_since("training/global_step" in data, step)}, step, backend)

    Tracking.log = log


def judged_since(trained: bool, step: int) -> dict[str, float]:
    """See ``StreamMonitor.end_step``; empty without a judge actor, and where none answers."""
    metrics: dict[str, float] = {}
    try:
        for name in ray.util.list_named_actors() if ray.is_initialized() else ():
            if name.startswith(ACTOR):
                metrics |= ray.get(ray.get_actor(name).end_step.remote(step, trained), timeout=WAIT_S)
    except (ray.exceptions.RayError, ValueError) as error:
        logger.warning("step %d is logged without the judge's metrics: %s", step, " ".join(str(error).split())[:300])
    return metrics
