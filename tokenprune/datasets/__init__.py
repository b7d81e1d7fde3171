"""Rows of questions in files and datasets, read one at a time, and the pictures and videos that they name."""
