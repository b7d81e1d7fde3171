"""Tests of tokenprune."""
