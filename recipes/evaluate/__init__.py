"""Measuring a judge: its tasks, public benchmarks, baselines, tables."""
