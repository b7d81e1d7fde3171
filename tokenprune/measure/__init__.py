"""Measurements of entropy curves, FLOPs, memory and latency."""
