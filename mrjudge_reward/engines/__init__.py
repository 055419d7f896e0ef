"""Engines: what runs the judge model. See ``mrjudge_reward.types.Engine`` for the contract."""
