"""Wordings of the judge formats, one text file each; the loader is in ``mrjudge_reward.prompting.rendering``."""
