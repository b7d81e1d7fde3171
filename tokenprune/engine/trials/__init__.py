"""Several methods beside each other on the same samples, and what was measured for all of them once."""
