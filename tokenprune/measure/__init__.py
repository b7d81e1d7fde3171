"""Measurements: entropy curves, FLOPs, memory, latency."""
