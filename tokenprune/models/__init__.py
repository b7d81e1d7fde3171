"""Models that experiments can load by name."""
