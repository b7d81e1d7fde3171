"""Experiments: methods x budgets on a task, resumable."""
