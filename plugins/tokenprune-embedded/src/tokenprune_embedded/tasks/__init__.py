"""Evaluation tasks that the embedded models can answer."""
