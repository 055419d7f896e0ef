"""On the path of processes that train with verl.

transformers imports scikit-learn, and with it SciPy's statistics and pandas, wherever it is installed, for one function
that nothing here calls: a quarter of what a process takes to start, and a verl run has eight.
"""

import sys

sys.modules["sklearn"] = None  # type: ignore[assignment]  # as if it were not installed
