"""Adapters to training frameworks; imported as ``mrjudge_reward.integrations``."""
