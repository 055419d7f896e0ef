"""Reasoning judges as pairwise and listwise rewards for RL fine-tuning."""
