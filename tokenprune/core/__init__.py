"""Components by name, found through entry points, and what every room may use."""
