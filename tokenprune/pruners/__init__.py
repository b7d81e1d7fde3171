"""Pruners: they choose the visual tokens that survive, and may merge the others into them."""
