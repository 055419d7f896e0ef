"""``python -m mrjudge_reward.cli``."""

from . import main

main()
