"""``python -m mrjudge_reward.cli``."""

from . import main

if __name__ == "__main__":
    main()
