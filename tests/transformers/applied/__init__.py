"""A pytest plugin for transformers' own tests. It runs beside their package `tests`, so it imports nothing of ours."""
