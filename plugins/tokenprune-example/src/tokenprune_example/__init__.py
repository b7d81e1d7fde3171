"""An example plugin of tokenprune: one scorer, one method."""
