"""Scorers: how valuable is each visual token? One file per idea."""
