"""Lets verl start beside a TRL that has moved on, if ``VERL_USE_EXTERNAL_MODULES`` names this module.

If TRL is installed at all, verl 0.9.1 imports ``AutoModelForCausalLMWithValueHead`` from it in every FSDP worker, only to
patch it; TRL 1.16 no longer has that class, and the workers end with ``ImportError``. With this module verl takes TRL to
be absent, and does without. The variable must reach every node (``runtime_env`` of Ray, where there are several).

Source: verl 0.9.1, ``models/transformers/monkey_patch.py`` and ``utils/model.py``, which ask ``is_trl_available``.
"""

from __future__ import annotations

from verl.utils import import_utils

import_utils.is_trl_available = lambda: False
