"""What ``mrjudge report`` draws and says of a run: charts, tiles and findings, as plain values for the page.

A chart is left out where nothing of it was logged. Of long runs neighbouring steps are averaged, ``MAX_POINTS`` at most.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any, TypeVar

from mrjudge_reward.monitoring.run_log import LoggedBatch, RunLog
from mrjudge_reward.monitoring.trainer_logs import TrainerLogs, step_seconds
from mrjudge_reward.scoring.stats import ANCHOR_WIN_RATE, JudgeStats

MAX_POINTS = 400
"""Points of a line."""

MAX_DOTS = 1200
"""Points of the scatter plot."""

MAX_DOTTED = 150
"""Groups of each half of a run whose completions are in the scatter plot."""

TRAINER_METRICS = {
    "loss": ("Loss", ("loss", "actor/pg_loss")),
    "kl": ("KL from the reference", ("kl", "actor/ppo_kl", "actor/kl_loss")),
    "grad_norm": ("Gradient norm", ("grad_norm", "actor/grad_norm")),
    "entropy": ("Entropy", ("entropy", "actor/entropy")),
    "clipped": ("Answers cut at the cap", ("completions/clipped_ratio", "response_length/clip_ratio")),
}
"""The trainer's own metrics that are drawn: the first of these names that it logged."""

PARTS = {"generate": "generating", "judge": "judging", "update": "updating"}

Point = tuple[float, float | None]
T = TypeVar("T")


def number(value: float | None) -> float | None:
    """A value for JSON, five digits of it and no rounding errors about 0; None where it is unknown."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.5g}") if abs(value) > 1e-12 else 0.0


def evenly(items: Sequence[T], count: int) -> list[T]:
    """At most so many of them, evenly over all."""
    count = min(count, len(items))
    return [items[index * len(items) // count] for index in range(count)]


def thinned(points: Sequence[Point]) -> tuple[list[float | None], list[float | None]]:
    """x and y of a line; of too many points, neighbours are averaged."""
    size = math.ceil(len(points) / MAX_POINTS) if points else 1
    xs: list[float | None] = []
    ys: list[float | None] = []
    for start in range(0, len(points), size):
        part = points[start : start + size]
        known = [y for _, y in part if y is not None and math.isfinite(y)]
        xs.append(number(fmean(x for x, _ in part)))
        ys.append(number(fmean(known)) if known else None)
    return xs, ys


def line(name: str, points: Sequence[Point], spread: Sequence[Point] = ()) -> dict[str, Any]:
    """A line of a chart, with a band around it if there is a spread."""
    xs, ys = thinned(points)
    made: dict[str, Any] = {"name": name, "x": xs, "y": ys}
    if spread:
        _, widths = thinned(spread)
        known = [(y, w) if y is not None and w is not None else None for y, w in zip(ys, widths, strict=True)]
        made["low"] = [number(pair[0] - pair[1]) if pair else None for pair in known]
        made["high"] = [number(pair[0] + pair[1]) if pair else None for pair in known]
    return made


def chart(title: str, note: str, series: Sequence[Mapping[str, Any]], **more: Any) -> dict[str, Any] | None:
    """A chart; None where none of its lines has a value."""
    drawn = [one for one in series if any(y is not None for y in one["y"])]
    return {"title": title, "note": note, "series": drawn, "kind": "line", **more} if drawn else None


def charts_of(run: RunLog, trainer: TrainerLogs) -> list[dict[str, Any]]:
    """The charts of a run, in reading order."""
    train = [batch for batch in run.batches if batch.mode == "train"]
    evaluated = [batch for batch in run.batches if batch.mode != "train"]

    def of(values: Callable[[LoggedBatch], float | None], batches: Sequence[LoggedBatch] = train) -> list[Point]:
        return [(batch.step, values(batch)) for batch in batches]

    def metric(name: str, batches: Sequence[LoggedBatch] = train) -> list[Point]:
        return of(lambda batch: batch.stats.metrics()[name], batches)

    def sums(name: str, batches: Sequence[LoggedBatch] = train) -> list[Point]:
        return of(lambda batch: batch.rewards.metrics()[name], batches)

    share = {"low": 0.0, "high": 1.0, "unit": "share"}
    found = [
        chart(
            "Reward",
            "Mean over all completions, with their spread inside groups. Ratings that are centred in each group "
            "(log_odds, bradley_terry) keep the mean near zero: then look at the spread.",
            [line("mean", sums("reward"), sums("spread")), line("evaluation", sums("reward", evaluated))],
        ),
        chart(
            "Against the anchors",
            "Completions that are better than the anchors of their group, ties half.",
            [
                line(name, of(lambda batch: batch.stats.metrics().get(ANCHOR_WIN_RATE), batches))
                for name, batches in (("share", train), ("evaluation", evaluated))
            ],
            **share,
        ),
        chart(
            "Spread inside groups",
            "Mean standard deviation of the rewards of a group: what a policy can learn from.",
            [line("spread", sums("spread")), line("evaluation", sums("spread", evaluated))],
            low=0.0,
        ),
        chart(
            "Position consistency",
            "Same winner in both orders: 0, the slot alone decides; .5, a coin; 1, the slot does not matter. Without bias: "
            "of reads, with the bias all of them share taken out, as the ratings do.",
            [
                line("consistency", metric("position_consistency")),
                line("without bias", metric("position_consistency_debiased")),
            ],
            **share,
        ),
        chart(
            "Ties, failures, abstentions",
            "Ties and failures among judgements, completions without a score, groups that teach nothing.",
            [
                line("ties", metric("tie_rate")),
                line("failed", metric("failed_rate")),
                line("no score", metric("abstained_rate")),
                line("groups without spread", of(lambda b: b.stats.zero_spread_groups / max(1, b.stats.groups))),
            ],
            **share,
        ),
        chart(
            "Answer length",
            "Mean over completions, in tokens where the adapter knows them, else characters.",
            [line("length", sums("length")), line("evaluation", sums("length", evaluated))],
            low=0.0,
        ),
        chart(
            "Length and reward",
            "Correlation inside groups. Steadily above 0: long answers are paid for.",
            [line("correlation", metric("length_correlation"))],
            low=-1.0,
            high=1.0,
            zero=True,
        ),
        *_criteria(train),
        _scatter(train),
        chart(
            "Canaries in the right order",
            "Groups of known order, by kind of trick; a tie counts half.",
            _canaries(train),
            **share,
        ),
        chart(
            "Markers sanitized",
            "Completions that held a verdict tag, a section header or a chat token.",
            [line("sanitized", metric("sanitized_rate"))],
            **share,
        ),
        chart(
            "Texts cut",
            "Completions that the judge did not see whole, or not the whole of what they answer.",
            [line("cut", metric("cut_rate"))],
            **share,
        ),
        _seconds(run, train, trainer),
        chart(
            "Judge calls",
            "Requests to the judge's engine, and those that a cache answered.",
            [
                line("calls", of(lambda b: float(b.stats.calls))),
                line("from cache", of(lambda b: float(b.stats.cache_hits))),
            ],
            low=0.0,
            unit="per step",
        ),
        chart(
            "Judge tokens",
            "Read: prompts, cached ones included. Written: reasoning and verdicts.",
            [
                line("read", of(lambda b: float(b.stats.usage.prompt_tokens))),
                line("written", of(lambda b: float(b.stats.usage.completion_tokens))),
            ],
            low=0.0,
            unit="per step",
        ),
    ]
    for title, names in TRAINER_METRICS.values():
        name = next((name for name in names if any(name in logs for logs in trainer.values())), None)
        if name is not None:
            points = [(float(step), logs.get(name)) for step, logs in sorted(trainer.items()) if name in logs]
            found.append(chart(title, f"Logged by the trainer as {name}.", [line(title.lower(), points)]))
    return [one for one in found if one is not None]


def _criteria(train: Sequence[LoggedBatch]) -> list[dict[str, Any] | None]:
    """A chart a metric with a line a criterion, where groups were judged by criteria."""
    names = dict.fromkeys(name for batch in train for name in batch.stats.criteria)

    def lines(metric: str) -> list[dict[str, Any]]:
        met = [(batch.step, batch.stats.criteria) for batch in train]
        return [
            line(name, [(s, of[name].metrics()[metric] if name in of else None) for s, of in met]) for name in names
        ]

    share = {"low": 0.0, "high": 1.0, "unit": "share"}
    return [
        chart("Reward by criterion", "Mean over completions; of a pitfall with its sign turned.", lines("reward")),
        chart(
            "Spread by criterion", "Inside groups. At 0 a criterion teaches a policy nothing.", lines("spread"), low=0.0
        ),
        chart("Failures by criterion", "Share of its verdicts.", lines("failed_rate"), **share),
        chart(
            "Position consistency by criterion", "Same winner in both orders.", lines("position_consistency"), **share
        ),
    ]


def _canaries(train: Sequence[LoggedBatch]) -> list[dict[str, Any]]:
    points: dict[str, list[Point]] = {}
    for batch in train:
        for kind, count in ((batch.canaries or {}).get("kinds") or {}).items():
            share = count["right"] / count["decided"] if count["decided"] else None
            points.setdefault(str(kind), []).append((batch.step, share))
    return [line(kind, found) for kind, found in points.items()]


def _scatter(train: Sequence[LoggedBatch]) -> dict[str, Any] | None:
    """Length against reward, each about its group's mean, so that groups can lie over each other."""
    halves: list[tuple[str, Sequence[LoggedBatch]]] = [("all steps", train)]
    if len(train) > 1:
        middle = len(train) // 2
        halves = [("first half", train[:middle]), ("second half", train[middle:])]
    series = []
    for name, batches in halves:
        dots: list[tuple[float, float]] = []
        for place in evenly([place for batch in batches for place in batch.places], MAX_DOTTED):
            known = [(one.length, one.reward) for one in place.read().candidates if one.reward is not None]
            if len(known) > 1:
                length, reward = fmean(x for x, _ in known), fmean(y for _, y in known)
                dots += [(x - length, y - reward) for x, y in known]
        step = math.ceil(len(dots) / (MAX_DOTS / 2)) or 1
        dots = dots[::step]
        series.append({"name": name, "x": [number(x) for x, _ in dots], "y": [number(y) for _, y in dots]})
    note = "Completions of the logged groups, each against the mean of its group."
    axes = {"kind": "scatter", "x_label": "longer or shorter than the group", "unit": "reward", "zero": True}
    return chart("Length against reward", note, series, **axes)


def _seconds(run: RunLog, train: Sequence[LoggedBatch], trainer: TrainerLogs) -> dict[str, Any] | None:
    by_step = {step: dict(parts) for step, logs in trainer.items() if (parts := step_seconds(logs))}
    by_step |= {step: dict(parts) for step, parts in run.seconds.items()}
    if not by_step:
        by_step = {batch.step: {"judge": batch.stats.seconds} for batch in train}
    lines = [
        line(said, [(step, parts.get(part)) for step, parts in sorted(by_step.items())]) for part, said in PARTS.items()
    ]
    only_judge = all(parts.keys() == {"judge"} for parts in by_step.values())
    note = "Only the judge's own time was logged." if only_judge else "Where the time of a step went."
    return chart("Seconds per step", note, lines, kind="stack", low=0.0, unit="s")


# -- in words ---------------------------------------------------------------------------------------------------------


def total(batches: Sequence[LoggedBatch]) -> JudgeStats:
    """Stats over steps, whose seconds follow each other."""
    stats = sum((batch.stats for batch in batches), JudgeStats())
    seconds = math.fsum(batch.stats.seconds for batch in batches)
    return JudgeStats(**{**{name: getattr(stats, name) for name in stats.__dataclass_fields__}, "seconds": seconds})


def tiles_of(run: RunLog) -> list[dict[str, str]]:
    """The run in a few numbers."""
    train = [batch for batch in run.batches if batch.mode == "train"] or list(run.batches)
    stats, steps = total(train), len({batch.step for batch in train})
    metrics = stats.metrics()

    def shown(name: str) -> str:
        value = metrics[name]
        return "not measured" if math.isnan(value) else f"{value:.2f}"

    judged = f"{stats.groups:,} groups, {stats.candidates:,} completions"
    parts = [dict(parts) for parts in run.seconds.values()]
    whole, judging = (math.fsum(math.fsum(p.values()) for p in parts), math.fsum(p.get("judge", 0.0) for p in parts))
    time = f"{judging / whole:.0%} of the steps' time" if whole > 0 else f"{stats.seconds / max(1, steps):.1f} s a step"
    tokens = stats.usage.prompt_tokens + stats.usage.completion_tokens
    return [
        {"name": "steps judged", "value": f"{steps:,}", "note": judged},
        {"name": "position consistency", "value": shown("position_consistency"), "note": f"{stats.mirrored:,} pairs"},
        {"name": "failed", "value": f"{metrics['failed_rate']:.1%}", "note": f"of {stats.comparisons:,} judgements"},
        {"name": "ties", "value": f"{metrics['tie_rate']:.1%}", "note": "of those with a verdict"},
        {"name": "length and reward", "value": shown("length_correlation"), "note": "correlation inside groups"},
        {"name": "judging", "value": f"{stats.seconds:,.0f} s", "note": time},
        {"name": "judge calls", "value": f"{stats.calls:,}", "note": f"{tokens:,} tokens"},
    ]


def findings_of(run: RunLog) -> list[dict[str, str]]:
    """What a reader should look at first, worst first; levels are ``bad``, ``warn`` and ``good``."""
    train = [batch for batch in run.batches if batch.mode == "train"] or list(run.batches)
    third = max(1, len(train) // 3)
    first, last, whole = total(train[:third]), total(train[-third:]), total(train)
    begun, now = first.metrics(), last.metrics()
    found: list[tuple[str, str]] = []
    reports = [batch for batch in train if batch.canaries]
    if reports and (reports[-1].canaries or {}).get("problems"):
        said = "; ".join(map(str, (reports[-1].canaries or {})["problems"]))
        found.append(("bad", f"Canaries at step {reports[-1].step}: {said}."))
    if whole.comparisons and whole.failed / whole.comparisons > 0.05:
        said = f"{whole.failed / whole.comparisons:.0%} of all judgements failed: {whole.failures}; {whole.advice}."
        found.append(("bad", said))
    if now["sanitized_rate"] > 0.02 and now["sanitized_rate"] > 2 * begun["sanitized_rate"]:
        said = f"{begun['sanitized_rate']:.0%} of the completions at first, {now['sanitized_rate']:.0%} at last"
        found.append(("bad", f"The policy writes more and more of what would speak for the judge: {said}."))
    if whole.cut:
        found.append(
            (
                "warn",
                f"{whole.cut / max(1, whole.candidates):.0%} of the completions were not judged whole: they, or what they "
                "answer, did not fit the judge's context or max_candidate_tokens.",
            )
        )
    if now["length_correlation"] > 0.3:
        found.append(("warn", f"Long answers are paid for: correlation {now['length_correlation']:.2f} inside groups."))
    if now["position_consistency"] < 0.7:
        said = f"both orders agree in {now['position_consistency']:.0%} of the pairs"
        found.append(("warn", f"The judge looks at the slot as much as at the answer: {said}."))
    if last.groups and last.zero_spread_groups / last.groups > 0.3:
        found.append(("warn", f"{last.zero_spread_groups / last.groups:.0%} of the latest groups teach nothing."))
    if run.damaged:
        found.append(("warn", f"{run.damaged} lines of the log could not be read."))
    return [{"level": level, "text": text} for level, text in found] or [
        {"level": "good", "text": "Nothing stands out in what was logged."}
    ]
