"""A run's log: what the judge did, batch by batch, for ``mrjudge report`` and whoever reads JSON lines.

One file per rank and reward, ``judge.rank0.jsonl``, in the run's folder. A line is complete when it is there: it is appended
and flushed at once, and a line that a crash cut off is ignored on reading and removed when the run goes on. One process
writes to a file at a time. What is logged never ends a run: where the disk or another writer says no, one warning is all
that happens, and what follows is tried again.

=============  ======================================================================================================
a line's kind  holds
=============  ======================================================================================================
start          the judge's settings; every process of a run that is continued writes one
batch          counts of ``JudgeStats``, sums over rewards and lengths, a bounded sample of groups, canaries if measured
seconds        where a step's time went
trainer        what the trainer logged
=============  ======================================================================================================

Lines of ranks, and of several calls in a step, are added up on reading, which keeps sums and finds the texts of a group in
the file again where they are wanted: memory grows with the steps, not with the file. A run that goes on from a checkpoint
repeats steps: lines of the process before, from that step on, count no more.
"""

from .lines import MAX_CANDIDATES, MAX_CHARS, LoggedCandidate, LoggedGroup, RewardSums
from .reading import GroupPlace, LoggedBatch, RunLog, log_files, read_run
from .writing import RunLogWriter, log_name

__all__ = [
    "MAX_CANDIDATES",
    "MAX_CHARS",
    "GroupPlace",
    "LoggedBatch",
    "LoggedCandidate",
    "LoggedGroup",
    "RewardSums",
    "RunLog",
    "RunLogWriter",
    "log_files",
    "log_name",
    "read_run",
]
