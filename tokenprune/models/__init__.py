"""Models that experiments can name."""
