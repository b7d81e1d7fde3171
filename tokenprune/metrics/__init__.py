"""Metrics: scores of a generated text as an answer, from 0 to 1."""
