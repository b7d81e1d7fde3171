"""Scorers: they rate how valuable each visual token is. One file per idea."""
