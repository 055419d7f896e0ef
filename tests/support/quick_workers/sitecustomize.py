"""On the path of processes that train with verl, so that they start in less time.

transformers imports scikit-learn, and with it SciPy's statistics and pandas, wherever it is installed, for one function
that nothing here calls. And each of a run's eight Ray workers would import torch, vLLM and verl: they are forked from one
process that has (``fork_server.py``).
"""

import sys

sys.modules["sklearn"] = None  # type: ignore[assignment]  # as if it were not installed

if next((one for one in sys.orig_argv[1:] if one[0] != "-"), "").endswith("/ray/_private/workers/default_worker.py"):
    from fork_server import be_forked

    be_forked()
