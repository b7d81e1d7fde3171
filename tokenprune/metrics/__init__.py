"""Metrics: how good a generated text is as an answer, from 0 to 1."""
